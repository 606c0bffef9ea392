"""Bounds of what a scorer keeps of former versions, in memory and on disk."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from stream_scorer.cli.main import cli
from stream_scorer.ensemble.bulkhead import MAX_STATES, Bulkhead
from stream_scorer.ensemble.cache import EnsembleCache, Resolution
from stream_scorer.ensemble.cache_cleanup import KEEP_S, MAX_ENSEMBLES, CacheCleanup
from stream_scorer.ensemble.lineup import Lineup
from stream_scorer.ensemble.reweigh import reweigh
from stream_scorer.kafka.topics import Topics
from stream_scorer.pipeline.publish import OutputWriter
from tests.support.ensembles import compose


class StepClock:
    now = 0.0

    def now_ms(self) -> int:
        return int(self.now * 1_000)

    def monotonic(self) -> float:
        return self.now


def test_the_writer_keeps_no_former_version_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Summariser:
        def __init__(self, ensemble: Any, _checked: object, *, encoded: bool) -> None:
            self.ensemble, self.encoded = ensemble, encoded

        def summarise(self, _batch: object, _version: int) -> Iterator[Any]:
            return iter(())

    class Version:
        def __init__(self, version: str) -> None:
            self.version, self.digest = version, version * 64

    monkeypatch.setattr("stream_scorer.pipeline.publish.Summariser", Summariser)
    writer = OutputWriter(Topics(), SimpleNamespace(), StepClock())  # type: ignore[arg-type]
    seen: list[weakref.ref[Version]] = []
    for i in range(20):
        versions: Any = (Version(str(i)), Version(str(100 + i)))
        seen += map(weakref.ref, versions)
        batch: Any = SimpleNamespace(dead=[], events=None, decided=SimpleNamespace(lineup=Lineup(versions)))
        writer.write(batch, SimpleNamespace())  # type: ignore[arg-type]
        del versions, batch
    gc.collect()
    assert sum(ref() is not None for ref in seen) <= 2


def test_the_bulkhead_keeps_the_state_of_a_bounded_number_of_members() -> None:
    class Pool:
        def __init__(self, number: int) -> None:
            self.keys, self.names = [f"{number:064x}"], ["one"]

        def __len__(self) -> int:
            return 1

        def checked(self, features: Any) -> Any:
            return features

    bulkhead = Bulkhead(StepClock(), budget_s=1, threads=0)
    for i in range(MAX_STATES + 50):
        bulkhead.predict(Pool(i), [], frozenset([f"{i:064x}"]))  # type: ignore[arg-type]
    assert len(bulkhead._breakers) <= MAX_STATES + 1


def test_the_disk_cache_stores_no_password_of_the_registry(tmp_path: Path) -> None:
    cache, address = EnsembleCache(tmp_path), "http://ann:s3cret@registry:5000/?token=t0ken"
    cache.save_resolution(Resolution("cards@champion", address, "7", "d" * 64))
    (file,) = (tmp_path / "resolved").iterdir()
    assert b"s3cret" not in file.read_bytes()
    assert b"t0ken" not in file.read_bytes()
    found = cache.load_resolution("cards@champion", "http://bob:other@registry:5000/")
    assert found is not None
    assert (found.version, found.tracking_uri) == ("7", "http://registry:5000")
    assert cache.load_resolution("cards@champion", "http://registry:5001/") is None


def stored(cache: EnsembleCache, folder: Path) -> str:
    def read(name: str) -> bytes:
        return (folder / name).read_bytes()

    return cache.store(read, None)[1]


@pytest.fixture
def digests(tmp_path: Path) -> list[str]:
    """Digests of more ensembles than the cache keeps, the oldest first, last used one minute apart."""
    cache, out = EnsembleCache(tmp_path / "cache"), []
    compose(tmp_path / "e")
    for i in range(MAX_ENSEMBLES + 8):
        reweigh(tmp_path / "e", {"one": 0.1 + i / 100}, tmp_path / f"e{i}", 5)
        digest = stored(cache, tmp_path / f"e{i}")
        for path in (tmp_path / "cache" / "ensembles" / digest, tmp_path / "cache" / "sha256" / digest):
            os.utime(path, (60.0 * i, 60.0 * i))
        cache.save_resolution(Resolution(f"cards:{i}", "http://r", str(i), digest))
        out.append(digest)
    for path in (tmp_path / "cache" / "resolved").iterdir():
        os.utime(path, (0, 0))
    return out


def test_the_disk_cache_keeps_what_is_in_use_and_what_was_used_last(tmp_path: Path, digests: list[str]) -> None:
    clock, root = StepClock(), tmp_path / "cache"
    cleanup = CacheCleanup(root, lambda: [digests[0], "f" * 64], clock)
    clock.now = 60.0 * len(digests)  # all but the oldest ones were used within the last hour
    cleanup.step()
    recent = {digest for i, digest in enumerate(digests) if 60.0 * i >= clock.now - KEEP_S}
    assert {path.name for path in (root / "ensembles").iterdir()} >= recent | {digests[0]}
    clock.now += 2 * KEEP_S
    (root / "ensembles" / ".new-crashed").mkdir()
    os.utime(root / "ensembles" / ".new-crashed", (0, 0))
    cleanup.step()
    left = {path.name for path in (root / "ensembles").iterdir()}
    assert left == {digests[0], *digests[1 - MAX_ENSEMBLES :]}
    cache = EnsembleCache(root)
    assert cache.find(digests[0]) is not None
    manifests = left & {path.name for path in (root / "sha256").iterdir()}
    assert manifests == left
    assert len(list((root / "sha256").iterdir())) == MAX_ENSEMBLES + 3  # the manifests and three shared members
    assert len(list((root / "resolved").iterdir())) == MAX_ENSEMBLES
    # The command line cleans up too, at the end of a command.
    for i in range(MAX_ENSEMBLES + 2):
        (root / "manifests").mkdir(exist_ok=True)
        (root / "manifests" / f"{i:064x}").write_bytes(b"{}")
        os.utime(root / "manifests" / f"{i:064x}", (i, i))
    CliRunner().invoke(cli, ["ensemble", "show", str(tmp_path / "e"), "--cache", str(root)])
    assert sorted(path.name for path in (root / "manifests").iterdir())[0] == f"{2:064x}"
    # What was removed can be stored again.
    assert stored(cache, tmp_path / "e1") == digests[1]
    assert cache.find(digests[1]) is not None
