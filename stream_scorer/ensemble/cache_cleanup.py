"""Bounds the disk cache of ensembles.

The cache keeps the `MAX_ENSEMBLES` ensembles that were used last, and every ensemble used within `KEEP_S`. A scorer
marks the ensembles that it serves, or must be able to serve, as used more often than that. Several processes may share
a cache and clean it at the same time: a folder is renamed before it is removed, and a file that another process misses
is fetched again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from stream_scorer.clock import Clock
from stream_scorer.compiled import mark_used
from stream_scorer.ensemble.cache import Resolution
from stream_scorer.ensemble.manifest import manifest_digest, read_manifest
from stream_scorer.errors import ArtifactError

_log = logging.getLogger(__name__)
MAX_ENSEMBLES = 32
KEEP_S = 3_600.0
# A sixth of `KEEP_S`, so that a scorer that is busy or suspended for a while still keeps its ensembles.
INTERVAL_S = 600.0


def clean_cache(root: Path, clock: Clock) -> None:
    """Clean the cache in the folder `root` once, as a short process does at its end. Never raises."""
    try:
        CacheCleanup(root, list, clock).step()
    except Exception:  # the command has done its work
        _log.exception("the cache %s is not cleaned", root)


class CacheCleanup:
    """Cleans the cache in the folder `root` while it runs.

    Args:
        in_use: digests of the manifests that this process needs.
    """

    def __init__(self, root: Path, in_use: Callable[[], Iterable[str]], clock: Clock) -> None:
        self._root, self._in_use, self._clock = root, in_use, clock

    def run(self, stop: threading.Event) -> None:
        """Clean every `INTERVAL_S` until `stop`."""
        while not stop.is_set():
            try:
                self.step()
            except Exception:  # a cache that cannot be cleaned must not end the thread: the next attempt may succeed
                _log.exception("the cache %s is not cleaned", self._root)
            stop.wait(INTERVAL_S)

    def step(self) -> None:
        """Mark the ensembles and the compiled code in use, then remove ensembles that exceed the bounds."""
        mark_used()
        now_s = self._clock.now_ms() / 1_000
        for digest in self._in_use():
            with contextlib.suppress(OSError):  # not cached, or of another user
                os.utime(self._root / "ensembles" / digest, (now_s, now_s))
        removed = self._remove_ensembles(now_s)
        self._remove_manifests(now_s)
        self._remove_files(now_s)
        if removed:
            _log.info("removed %d ensembles from the cache %s", removed, self._root)

    def _remove_ensembles(self, now_s: float) -> int:
        folder = self._root / "ensembles"
        old = self._oldest("ensembles", now_s)
        leftovers = [p for p in _entries(folder) if p.name.startswith(".") and _modified(p) < now_s - KEEP_S]
        for path in old:
            with contextlib.suppress(OSError):  # another process has removed it
                aside = Path(tempfile.mkdtemp(dir=folder, prefix=".old-"))
                path.replace(aside / "removed")
                shutil.rmtree(aside, ignore_errors=True)
        for path in leftovers:
            shutil.rmtree(path, ignore_errors=True)
        return len(old)

    def _remove_manifests(self, now_s: float) -> None:
        """Keep as many manifests without members as ensembles."""
        for path in self._oldest("manifests", now_s):
            with contextlib.suppress(OSError):
                path.unlink()

    def _oldest(self, folder: str, now_s: float) -> list[Path]:
        """What exceeds `MAX_ENSEMBLES` in `folder` and was not used within `KEEP_S`."""
        found = [(_modified(path), path) for path in _entries(self._root / folder) if not path.name.startswith(".")]
        oldest_first = sorted(found)[: max(len(found) - MAX_ENSEMBLES, 0)]
        return [path for modified, path in oldest_first if modified < now_s - KEEP_S]

    def _remove_files(self, now_s: float) -> None:
        """Remove the files and resolutions that belong to no ensemble of the cache."""
        used = {path.name for path in _entries(self._root / "manifests")}
        for path in _entries(self._root / "ensembles"):
            with contextlib.suppress(ArtifactError):  # incomplete, or damaged: its files are fetched again
                manifest = read_manifest(path)
                used |= {manifest_digest(manifest), *(member.sha256 for member in manifest.members)}
        for path in [*_entries(self._root / "sha256"), *_entries(self._root / "resolved")]:
            known = path.name in used or (path.suffix == ".json" and _resolves_to(path) in used)
            if not known and _modified(path) < now_s - KEEP_S:
                with contextlib.suppress(OSError):
                    path.unlink()


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _modified(path: Path) -> float:
    """Time of the last use, s; 0 if it is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _resolves_to(path: Path) -> str:
    """The digest in a resolution; empty if it cannot be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Resolution).manifest_sha256
    except (OSError, msgspec.DecodeError):
        return ""
