"""Formatted storage of a broker is copied with new ids; what is incomplete is not copied."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream_scorer.stack.kafka_storage import CHECKPOINT, META, copy_storage, keep_storage, new_id

IDS = {"directory.id": "Aox0IJGNIe3gk8SWM9yc1A", "cluster.id": "AX-o4pOUSlCXrdt0r6J2GA"}


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    lines = ["#", "#Sun Nov 29 08:17:37 UTC 2026", "node.id=1", *(f"{k}={v}" for k, v in IDS.items()), "version=1"]
    (data / META).write_text("\n".join(lines) + "\n")
    (data / CHECKPOINT).write_bytes(b"\x00levels\xff")
    keep_storage(data, tmp_path / "kept")
    return tmp_path / "kept"


def properties(path: Path) -> dict[str, str]:
    return dict(line.split("=") for line in (path / META).read_text().splitlines() if not line.startswith("#"))


def test_each_copy_has_ids_of_its_own(kept: Path, tmp_path: Path) -> None:
    assert copy_storage(kept, tmp_path / "stack" / "one")
    assert copy_storage(kept, tmp_path / "stack" / "two")
    one, two = (properties(tmp_path / "stack" / name) for name in ("one", "two"))
    assert one.keys() == two.keys() == {"node.id", "version", *IDS}
    assert (one["node.id"], one["version"]) == ("1", "1")
    assert len({*IDS.values(), *(copy[name] for copy in (one, two) for name in IDS)}) == 6
    assert all(len(copy[name]) == 22 for copy in (one, two) for name in IDS)
    assert (tmp_path / "stack" / "two" / CHECKPOINT).read_bytes() == b"\x00levels\xff"


@pytest.mark.parametrize(
    ("name", "content"), [(META, None), (CHECKPOINT, None), (META, b"version=1\n"), (CHECKPOINT, b"")]
)
def test_what_is_incomplete_is_not_copied(kept: Path, tmp_path: Path, name: str, content: bytes | None) -> None:
    (kept / name).unlink()
    if content is not None:
        (kept / name).write_bytes(content)
    assert not copy_storage(kept, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_the_first_is_kept_and_storage_in_use_never(kept: Path, tmp_path: Path) -> None:
    before = (kept / META).read_text()
    (tmp_path / "data" / META).write_text("other")
    keep_storage(tmp_path / "data", kept)
    assert (kept / META).read_text() == before
    (tmp_path / "data" / "topic-0").mkdir()
    keep_storage(tmp_path / "data", tmp_path / "in use")
    assert not (tmp_path / "in use").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"data", "kept"}


def test_an_id_does_not_read_as_an_option() -> None:
    assert all(new_id()[0] == "A" for _ in range(20))
