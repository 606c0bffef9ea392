"""Sources of the reference profiles for drift."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Protocol

from stream_scorer.clock import Clock
from stream_scorer.ensemble.manifest import Manifest
from stream_scorer.errors import StreamScorerError
from stream_scorer.monitor.windows import Profile

# Time until a version that failed to load is requested again: it may be registered by then, or the registry available.
RETRY_S = 30.0
# Versions whose manifests, of about 100 kB each, stay in memory. Windows need those that served a short time ago.
KEPT_VERSIONS = 32

_log = logging.getLogger("stream_scorer.monitor.reference")


class ReferenceSource(Protocol):
    """Returns the reference profile of an ensemble version."""

    def profile(self, ensemble: str, version: str) -> Profile | None:
        """Edges and counts by series name; None if the version is unknown (then no drift is reported)."""
        ...

    def members(self, ensemble: str, version: str) -> list[str]:
        """The members' names in the order of the bits of `member_alerts`; empty if the version is unknown."""
        ...


class EnsembleReferences:
    """Profiles from the manifests of ensembles: a folder, or any registered version, loaded on first use."""

    def __init__(self, tracking_uri: str | None, cache_dir: Path, clock: Clock, *, initial: str = "") -> None:
        """`initial` is the ensemble that `load_initial` loads; empty for none."""
        self._tracking_uri = tracking_uri
        self._cache_dir = cache_dir
        self._clock = clock
        self._initial = initial
        # The one that was used last is last.
        self._known: dict[tuple[str, str], tuple[Manifest, Profile]] = {}
        self._failed_at: dict[tuple[str, str], float] = {}

    def load_initial(self) -> None:
        """Load the initial ensemble, a folder, ``name@alias`` or ``name:version``, unless that is done.

        Raises:
            ArtifactError: the ensemble does not exist or is damaged.
            AccessDenied: the registry refuses the credentials.
            UnavailableError: the registry does not answer, and the cache does not contain the ensemble.
        """
        if self._initial:
            name, version = self._load(self._initial)
            self._initial = ""
            _log.info("reference profile of %s %s", name, version)

    def profile(self, ensemble: str, version: str) -> Profile | None:
        """The profile in the version's manifest. The first call per version blocks on the registry."""
        known = self._find(ensemble, version)
        return None if known is None else known[1]

    def members(self, ensemble: str, version: str) -> list[str]:
        """The members' names in the order of the manifest, under the same conditions as the profile."""
        manifest = self.manifest(ensemble, version)
        return [] if manifest is None else manifest.member_names

    def manifest(self, ensemble: str, version: str) -> Manifest | None:
        """The version's manifest, under the same conditions as its profile."""
        known = self._find(ensemble, version)
        return None if known is None else known[0]

    def _find(self, ensemble: str, version: str) -> tuple[Manifest, Profile] | None:
        key = (ensemble, version)
        if key not in self._known and self._may_load(key):
            try:
                self._load(f"{ensemble}:{version}")
            except StreamScorerError as error:
                self._failed_at[key] = self._clock.monotonic()
                _log.warning(
                    "drift of %s %s is not computed, as its manifest cannot be loaded: %s",
                    ensemble,
                    version,
                    error.message,
                )
        known = self._known.pop(key, None)
        if known is not None:
            self._known[key] = known
        return known

    def _may_load(self, key: tuple[str, str]) -> bool:
        # No registry has the version of a folder: only `add` provides its profile.
        if not self._tracking_uri or not key[1].isdigit():
            return False
        return key not in self._failed_at or self._clock.monotonic() - self._failed_at[key] > RETRY_S

    def _load(self, reference: str) -> tuple[str, str]:
        """Load a manifest; returns the name and version of its ensemble."""
        # Imported late: the registry module imports numba and the model libraries, which takes a second.
        from stream_scorer.ensemble.registry import resolve_manifest

        return self._keep(*resolve_manifest(reference, self._tracking_uri, self._cache_dir))

    def _keep(self, manifest: Manifest, version: str) -> tuple[str, str]:
        key = (manifest.name, version)
        profile = {n: (series.edges, series.counts) for n, series in manifest.reference_profile.items()}
        self._known[key] = manifest, profile
        # A version of a folder cannot be loaded again.
        loadable = [each for each in self._known if each[1].isdigit()]
        for each in loadable[: max(len(loadable) - KEPT_VERSIONS, 0)]:
            del self._known[each]
        return key
