"""Bounds how long the drift of an ensemble waits for the manifest of a version that the registry does not return."""

from __future__ import annotations

import logging

import msgspec

from stream_scorer.clock import Clock
from stream_scorer.state.counters import CounterStore

# After this long without a manifest, a version is deleted and its panes are passed.
WAIT_S = 86_400.0
# Turns follow each other within seconds. A longer gap, such as an outage of Redis, is no attempt to load the manifest.
MAX_STEP_S = 600.0
# Waiting time between two saves, and time between two log lines.
SAVE_EVERY_S, LOG_EVERY_S = 600.0, 3_600.0
# Bound of the versions that are kept.
MAX_KEPT = 100
KEPT = "drift-waits"

_log = logging.getLogger("stream_scorer.monitor.drift")

# Ensemble and version.
Version = tuple[str, str]


class ManifestWaits:
    """The time that each version was waited for. It is in the store, so that the next leader goes on with it."""

    def __init__(self, store: CounterStore, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._waited: dict[str, float] | None = None
        self._saved: dict[str, float] = {}
        self._asked: dict[Version, float] = {}
        # Panes that were passed since the last log line about them.
        self._passed: dict[Version, int] = {}
        self._logged: dict[tuple[str, Version], float] = {}

    def waits(self, version: Version) -> bool:
        """Whether to wait for this manifest, which could not be loaded just now."""
        kept, name, now = self._load(), ":".join(version), self._clock.monotonic()
        waited = kept.get(name, 0.0)
        if waited >= WAIT_S:
            return False
        waited += min(now - self._asked.get(version, now), MAX_STEP_S)
        self._asked[version] = now
        kept[name] = waited
        if waited >= WAIT_S or waited - self._saved.get(name, 0.0) >= SAVE_EVERY_S:
            while len(kept) > MAX_KEPT:
                del kept[next(iter(kept))]
            self._store.keep(KEPT, msgspec.json.encode(kept))
            self._saved = dict(kept)
        return waited < WAIT_S

    def passed(self, version: Version) -> None:
        """Count a pane that is passed, because its manifest could not be loaded in time."""
        self._passed[version] = self._passed.get(version, 0) + 1

    def log(self, waiting: set[Version], panes: int) -> None:
        """Log what waits, with the number of closed panes, and what was passed: each at most once an hour."""
        for version in sorted(waiting):
            if self._due("waits", version):
                text = "drift detection of %s waits for at most a day: the manifest of version %s cannot be loaded (%s)"
                _log.warning(text, *version, f"closed panes that wait: {panes:,}")
        for version, number in sorted(self._passed.items()):
            if self._due("passed", version):
                text = "drift detection of %s passed %s panes: the manifest of version %s could not be loaded for a day"
                _log.warning(text, version[0], f"{number:,}", version[1])
                del self._passed[version]

    def forget(self) -> None:
        """Another worker leads, which keeps the times."""
        self._waited = None
        self._saved.clear()
        self._asked.clear()

    def _due(self, what: str, version: Version) -> bool:
        now, last = self._clock.monotonic(), self._logged.get((what, version))
        if last is not None and now - last < LOG_EVERY_S:
            return False
        self._logged[what, version] = now
        return True

    def _load(self) -> dict[str, float]:
        if self._waited is None:
            kept = self._store.kept(KEPT)
            try:
                self._waited = {} if kept is None else msgspec.json.decode(kept, type=dict[str, float])
            except msgspec.DecodeError as error:  # of another release
                _log.warning("the waits for manifests cannot be read, and begin anew: %s", error)
                self._waited = {}
            self._saved = dict(self._waited)
        return self._waited
