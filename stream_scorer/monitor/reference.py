"""Where drift references come from."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Protocol

from stream_scorer.clock import Clock
from stream_scorer.errors import ArtifactError, UnavailableError
from stream_scorer.monitor.windows import Profile

# A version that cannot be had is asked for again after this long: it may be registered, or the registry come back.
RETRY_S = 30.0

_log = logging.getLogger("stream_scorer.monitor.reference")


class ReferenceSource(Protocol):
    """Gives the reference profile of an ensemble version."""

    def profile(self, ensemble: str, version: str) -> Profile | None:
        """Edges and counts by series name; None if this version is not known (its drift is then not reported)."""
        ...


class FixedReferences:
    """Profiles given at the start, by (ensemble, version)."""

    def __init__(self, profiles: dict[tuple[str, str], Profile]) -> None:
        self._profiles = profiles

    def profile(self, ensemble: str, version: str) -> Profile | None:
        """The profile given for this version."""
        return self._profiles.get((ensemble, version))


class EnsembleReferences:
    """Profiles from the manifests of ensembles: a folder, or any version in the registry, fetched when first seen."""

    def __init__(self, tracking_uri: str | None, cache_dir: Path, clock: Clock) -> None:
        self._tracking_uri = tracking_uri
        self._cache_dir = cache_dir
        self._clock = clock
        self._profiles: dict[tuple[str, str], Profile] = {}
        self._failed_at: dict[tuple[str, str], float] = {}

    def add(self, reference: str) -> tuple[str, str]:
        """Load ``name@alias``, ``name:version`` or a folder; return its ensemble's name and version.

        Raises:
            ArtifactError: there is no such ensemble, or it is damaged.
            UnavailableError: the registry does not answer and the cache does not hold it.
        """
        name, version, profile = self._load(reference)
        self._profiles[name, version] = profile
        return name, version

    def profile(self, ensemble: str, version: str) -> Profile | None:
        """The profile in the version's manifest. Blocks on the registry when a version is first seen."""
        key = (ensemble, version)
        if key not in self._profiles and self._worth_asking(key):
            try:
                self._profiles[key] = self._load(f"{ensemble}:{version}")[2]
            except (ArtifactError, UnavailableError) as error:
                self._failed_at[key] = self._clock.monotonic()
                _log.warning("no drift for %s %s, its manifest cannot be had: %s", ensemble, version, error.message)
        return self._profiles.get(key)

    def _worth_asking(self, key: tuple[str, str]) -> bool:
        # A folder's version is not in any registry: it is known from `add` or not at all.
        if not self._tracking_uri or not key[1].isdigit():
            return False
        return key not in self._failed_at or self._clock.monotonic() - self._failed_at[key] > RETRY_S

    def _load(self, reference: str) -> tuple[str, str, Profile]:
        # The registry module brings the whole ensemble with it, numba and the model libraries: a second of start-up.
        from stream_scorer.ensemble.manifest import read_manifest
        from stream_scorer.ensemble.registry import resolve

        directory, version = resolve(reference, self._tracking_uri, self._cache_dir)
        manifest = read_manifest(directory)
        profile = {name: (series.edges, series.counts) for name, series in manifest.reference_profile.items()}
        return manifest.name, version, profile
