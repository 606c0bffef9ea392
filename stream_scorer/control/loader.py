"""Loads versions in threads of their own, so that the thread that reads commands never waits for a download.

State of a version (one thread, the caller's, changes it):

    unknown ── want ──► loading ── collect ──► loaded
                          ▲    └── collect ──► failed ── want, after RETRY_S ──┐
                          └────────────────────────────────────────────────────┘

A version that is no longer wanted returns to unknown. If its thread still runs, it is abandoned, and its result is
dropped.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Collection, Sequence

from stream_scorer.clock import Clock
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.errors import ArtifactError, StreamScorerError
from stream_scorer.records import ServedVersion

_log = logging.getLogger(__name__)
# Interval at which a version that failed to load is tried again: the registry may be available again.
RETRY_S = 5.0
# Bound of the threads, which includes abandoned ones. A load that hangs keeps its thread.
MAX_THREADS = 4

Result = Ensemble | StreamScorerError


class Loader:
    """See the module.

    Args:
        load: loads and checks a version. Raises `StreamScorerError`. Runs in several threads at once.
    """

    def __init__(self, load: Callable[[ServedVersion], Ensemble], clock: Clock) -> None:
        self._load = load
        self._clock = clock
        self._loaded: dict[ServedVersion, Ensemble] = {}
        self._failed: dict[ServedVersion, tuple[StreamScorerError, float]] = {}
        self._threads: dict[ServedVersion, threading.Thread] = {}
        self._wanted: Sequence[ServedVersion] = ()
        self._results: queue.SimpleQueue[tuple[ServedVersion, Result]] = queue.SimpleQueue()
        self._full = False

    def want(
        self, versions: Sequence[ServedVersion], keep: Collection[ServedVersion] = (), *, retry_now: bool = False
    ) -> None:
        """Load `versions`, the first one first, and drop every other version except those in `keep`.

        A version that failed is tried again after `RETRY_S`, or at once if `retry_now`.
        """
        self._wanted = versions
        self._loaded = {v: ensemble for v, ensemble in self._loaded.items() if v in versions or v in keep}
        self._failed = {v: failure for v, failure in self._failed.items() if v in versions}
        now = self._clock.monotonic()
        for version in versions:
            _, failed_at = self._failed.get(version, (None, None))
            due = failed_at is None or retry_now or now - failed_at >= RETRY_S
            if due and version not in self._loaded and version not in self._threads:
                self._start(version)

    def collect(self) -> list[tuple[ServedVersion, Result]]:
        """The versions that were loaded, or failed to load, since the last call."""
        out = []
        while not self._results.empty():
            version, result = self._results.get()
            self._threads.pop(version).join()
            if version not in self._wanted:
                continue
            self._failed.pop(version, None)
            if isinstance(result, Ensemble):
                self._loaded[version] = result
            else:
                self._failed[version] = result, self._clock.monotonic()
            out.append((version, result))
        return out

    def get(self, version: ServedVersion) -> Result | None:
        """The ensemble, or the error of the last attempt; None during the first attempt."""
        found = self._loaded.get(version)
        if found is not None:
            return found
        return self._failed[version][0] if version in self._failed else None

    def _start(self, version: ServedVersion) -> None:
        if len(self._threads) >= MAX_THREADS:
            if not self._full:
                names = ", ".join(v.version for v in self._threads)
                _log.warning(
                    "version %s waits, because %d versions are loading: %s", version.version, MAX_THREADS, names
                )
            self._full = True
            return
        self._full = False
        self._threads[version] = threading.Thread(
            target=self._run, args=(version,), name=f"load-{version.version}", daemon=True
        )
        self._threads[version].start()

    def _run(self, version: ServedVersion) -> None:
        try:
            result: Result = self._load(version)
        except StreamScorerError as error:
            result = error
        except BaseException as error:  # a library reports a bad file with an exception of its own
            result = ArtifactError(f"{version.version} cannot be loaded: {type(error).__name__}: {error}")
            result.__cause__ = error
        self._results.put((version, result))
