"""Ways to alter an archive, each with what `audit verify` must find.

Some alter files only. Others seal the archive again as its author could: blocks, hash chain and digest are right, and
only the records, the models or the commands contradict each other.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stream_scorer.audit.archive import Archive
from stream_scorer.audit.files import file_digest
from stream_scorer.audit.findings import Difference
from stream_scorer.audit.parts import PartWriter, read_part
from stream_scorer.audit.seal import SEAL_FILE, Chain, Part, Seal, render
from stream_scorer.audit.verify import Expected, verify_archive
from stream_scorer.errors import CheckFailed
from stream_scorer.serde.raw import RawRecords

# Alters the records of a part.
Edit = Callable[[Part, RawRecords], RawRecords]


@dataclass(frozen=True, slots=True)
class Tampering:
    """One alteration of the archive in a folder. A difference must have `kind` and match `message`."""

    name: str
    alter: Callable[[Path], None]
    kind: str
    message: str


def missed(
    folder: Path, work: Path, expected: Expected, tamperings: Iterator[Tampering]
) -> tuple[dict[str, str], list[str]]:
    """Apply each to a copy of the archive in `folder`: the message that named it, and those that were not found."""
    found, wrong = {}, []
    for each in tamperings:
        copy = work / "altered"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        each.alter(copy)
        try:
            differences = verify_archive(copy, expected, 0.0).first
        except CheckFailed as error:  # the seal is malformed
            differences = [Difference("seal", error.message)]
        first = next((d.what for d in differences if d.kind == each.kind and re.search(each.message, d.what)), None)
        if first is None:
            wrong.append(f"{each.name}: {[f'{d.kind}: {d.what}' for d in differences[:3]]}")
        else:
            found[each.name] = first
    return found, wrong


def all_of(folder: Path) -> Iterator[Tampering]:
    """Every alteration of the archive in `folder`. Its digest must be expected."""
    seal = Archive(folder).seal
    for part in seal.parts:
        if part.file:
            yield Tampering(
                f"one byte of {part.title}", _flip(part.file), "file", rf"^{re.escape(part.title)}: the file .* altered"
            )
    yield Tampering("one byte of the seal", _flip(SEAL_FILE), "seal", "altered")
    yield from _unsealed()
    yield from _sealed_again(seal)
    version = seal.versions[0]
    model = version.files[1].path
    name = re.escape(f"{version.ensemble} {version.version}")
    yield Tampering("one byte of a model", _flip(model), "model", rf"^{name}: .* was exchanged")
    yield Tampering("a model of another version, sealed again", _exchange(seal), "model", "the manifest records")
    yield Tampering("another number of scores in the seal, sealed again", _miscount, "seal", "but blocks with")


def _unsealed() -> Iterator[Tampering]:
    """Files are written again, and the seal is not."""
    block = r"^{}\[\d+\]: block 2 .* {}"
    yield Tampering("one record removed", _rewrite("scores", _drop), "block", block.format("scores", "records"))
    missing = block.format("contributions", "is missing")
    yield Tampering("one block removed", _remove_block("contributions"), "block", missing)
    yield Tampering("records reordered", _rewrite("scores", _swap), "block", "were reordered")
    yield Tampering("one value altered", _rewrite("lineage", _touch), "block", "a record was altered")
    yield Tampering("a file added", lambda folder: _write(folder / "topics/more", b"x"), "file", "does not belong")


def _sealed_again(seal: Seal) -> Iterator[Tampering]:
    """The seal is computed again over altered records."""
    other = seal.versions[-1]
    cases: list[tuple[str, dict[str, Edit], str, str]] = [
        ("one score removed", {"scores": _drop}, "record", "contribution.* without score"),
        ("one contribution removed", {"contributions": _drop}, "record", "lineage.* without contribution"),
        ("values of scores exchanged", {"scores": _swap_values}, "record", "without"),
        ("a block of scores removed", {"scores": _half}, "record", "without score"),
        ("a dead letter twice", {"dead_letters": _twice}, "input", "was dead-lettered more than once"),
        ("one score altered", {"scores": _edit(score=0.123456)}, "score", "differ"),
        ("one decision altered", {"scores": _edit(decision="block")}, "score", "decision"),
        ("one score of another version", {"scores": _edit(version=other.version)}, "record", "different versions"),
        ("the author of a command altered", {"control": _author}, "seal", "is expected"),
        ("a promotion removed", {"control": _last_removed}, "control", "no command that counts"),
    ]
    for name, edits, kind, message in cases:
        yield Tampering(f"{name}, sealed again", _seal(edits), kind, message)
    unscored = "not scored and not dead-lettered"
    yield Tampering("a micro-batch removed everywhere, sealed again", _drop_batch, "input", unscored)
    foreign = _foreign_version(other.version, other.manifest_sha256)
    yield Tampering("a version that did not serve, sealed again", foreign, "control", "had put .* in play")
    late = _seal({"lineage": _an_hour_later})
    yield Tampering(
        "a version that decided after a command replaced it, sealed again", late, "control", "decides otherwise"
    )


def _flip(name: str) -> Callable[[Path], None]:
    def alter(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        _write(folder / name, bytes(data))

    return alter


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _rewrite(topic: str, edit: Edit) -> Callable[[Path], None]:
    """Write the second (or only) block of the largest part of `topic` again, edited, in a file of the same form."""

    def alter(folder: Path) -> None:
        part = _largest(folder, topic)
        blocks = list(read_part(folder, part))
        place = min(1, len(blocks) - 1)
        blocks[place] = edit(part, blocks[place])
        _write_blocks(folder / part.file, blocks)

    return alter


def _remove_block(topic: str) -> Callable[[Path], None]:
    def alter(folder: Path) -> None:
        part = _largest(folder, topic)
        blocks = list(read_part(folder, part))
        _write_blocks(folder / part.file, [blocks[0], *blocks[2:]])

    return alter


def _write_blocks(path: Path, blocks: list[RawRecords]) -> None:
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
    with pq.ParquetWriter(path, schema) as writer:
        for block in blocks:
            columns = [
                block.offset,
                block.timestamp,
                block.key,
                block.value,
                [list(h) if h else None for h in block.headers],
            ]
            table = pa.table([pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)
            writer.write_table(table, row_group_size=len(block))


def _largest(folder: Path, topic: str) -> Part:
    return max(Archive(folder).seal.of_topic(topic), key=lambda part: part.records)


def seal_again(folder: Path, edits: dict[str, Edit], partition: int | None = None, **changes: Any) -> None:
    """Write every part again, edited in one partition (the largest one of its topic), and a seal that fits."""
    archive = Archive(folder)
    seal, chain, parts = archive.seal, Chain(archive.seal.previous), []
    for part in seal.parts:
        records = list(read_part(folder, part))
        edit = edits.get(part.topic)
        wanted = _largest(folder, part.topic).partition if partition is None else partition
        if edit is not None and part.partition == wanted:
            whole = records[0]
            for more in records[1:]:
                whole = whole.concatenate(more)
            records = [edit(part, whole)]
        writer = PartWriter(folder, chain, part.topic, part.name, part.partition, part.content)
        for each in records:
            writer.add(each)
        parts.append(writer.close(part.start, part.stop))
    changed = msgspec.structs.replace(seal, parts=parts, chain=chain.value, **changes)
    _write(folder / SEAL_FILE, render(changed.closed()))


def _seal(edits: dict[str, Edit]) -> Callable[[Path], None]:
    return lambda folder: seal_again(folder, edits)


def _drop(_part: Part, records: RawRecords) -> RawRecords:
    return records.take(np.delete(np.arange(len(records)), len(records) // 2))


def _twice(_part: Part, records: RawRecords) -> RawRecords:
    """The first record again after it, at the offset of the transaction marker that follows."""
    again = records.take(np.array([0, *range(len(records))]))
    again.offset[1] += 1
    return again


def _half(_part: Part, records: RawRecords) -> RawRecords:
    n = len(records)
    return records.take(np.delete(np.arange(n), np.arange(n // 4, n // 2)))


def _swap(_part: Part, records: RawRecords) -> RawRecords:
    order = np.arange(len(records))
    order[[5, 6]] = order[[6, 5]]
    return records.take(order)


def _swap_values(_part: Part, records: RawRecords) -> RawRecords:
    values = list(records.value)
    values[5], values[6] = values[6], values[5]
    return _with_values(records, values)


def _touch(_part: Part, records: RawRecords) -> RawRecords:
    values = list(records.value)
    values[0] = (values[0] or b"")[:-1] + bytes([(values[0] or b"")[-1] ^ 1])
    return _with_values(records, values)


def _edit(**changes: Any) -> Edit:
    """Change fields of one record: one whose fields have other values and that the model decided."""

    def edit(_part: Part, records: RawRecords) -> RawRecords:
        values = list(records.value)
        for place in range(len(values) // 2, len(values)):
            document = msgspec.json.decode(values[place] or b"")
            if (
                all(document[name] != value for name, value in changes.items())
                and document["decision_source"] == "model"
            ):
                values[place] = msgspec.json.encode(document | changes)
                return _with_values(records, values)
        raise AssertionError("no record can be altered so")

    return edit


def _author(_part: Part, records: RawRecords) -> RawRecords:
    values = list(records.value)
    values[-1] = msgspec.json.encode(msgspec.json.decode(values[-1] or b"") | {"who": "somebody else"})
    return _with_values(records, values)


def _last_removed(_part: Part, records: RawRecords) -> RawRecords:
    """Without the last promotion and what follows."""
    actions = [msgspec.json.decode(value or b"")["action"] for value in records.value]
    return records.take(np.arange(len(actions) - 1 - actions[::-1].index("promote")))


def _an_hour_later(_part: Part, records: RawRecords) -> RawRecords:
    """The first micro-batch was scored an hour later, under the command that it states."""
    later = records.timestamp + np.where(np.arange(len(records)) == 0, 3_600_000, 0)
    return RawRecords(
        records.topic, records.partition, records.offset, later, records.key, records.value, records.headers
    )


def _with_values(records: RawRecords, values: list[bytes | None]) -> RawRecords:
    return RawRecords(
        records.topic, records.partition, records.offset, records.timestamp, records.key, values, records.headers
    )


def _drop_batch(folder: Path) -> None:
    """Remove the last micro-batch of a partition from lineage, contributions and scores, so that all records match."""
    from stream_scorer.serde.lineage import LineageBatch

    part = _largest(folder, "lineage")
    last = list(read_part(folder, part))[-1]
    n = len(LineageBatch(last.value[-1] or b""))

    def less(count: int) -> Edit:
        return lambda _part, records: records.take(np.arange(len(records) - count))

    edits = {"lineage": less(1), "contributions": less(n), "scores": less(n)}
    seal_again(folder, edits, part.partition)


def _foreign_version(version: str, manifest_sha256: str) -> Callable[[Path], None]:
    """The first micro-batch states that a later version decided, in score, contribution and lineage."""

    def alter(folder: Path) -> None:
        from stream_scorer.serde.lineage import LineageBatch

        part = _largest(folder, "lineage")
        first = next(iter(read_part(folder, part)))
        batch = LineageBatch(first.value[0] or b"")

        def lineage(_part: Part, records: RawRecords) -> RawRecords:
            values = list(records.value)
            values[0] = _relabelled(values[0] or b"", version, manifest_sha256)
            return _with_values(records, values)

        def documents(_part: Part, records: RawRecords) -> RawRecords:
            values = list(records.value)
            for place in range(len(batch)):
                values[place] = msgspec.json.encode(msgspec.json.decode(values[place] or b"") | {"version": version})
            return _with_values(records, values)

        edits = {"lineage": lineage, "contributions": documents, "scores": documents}
        seal_again(folder, edits, part.partition)

    return alter


def _relabelled(value: bytes, version: str, manifest_sha256: str) -> bytes:
    """A lineage record whose versions are replaced, by Arrow's own reader and writer."""
    with pa.input_stream(pa.py_buffer(value), compression="zstd") as stream:
        table = pa.ipc.open_stream(stream).read_all()
    header = msgspec.json.decode(table.schema.metadata[b"lineage"])
    for each in header["versions"]:
        each |= {"version": version, "manifest_sha256": manifest_sha256}
    table = table.replace_schema_metadata({b"lineage": msgspec.json.encode(header)})
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed, pa.ipc.new_stream(packed, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def _miscount(folder: Path) -> None:
    """The seal states more scores than its blocks have."""
    seal = Archive(folder).seal
    parts = [msgspec.structs.replace(p, records=p.records + (p.topic == "scores")) for p in seal.parts]
    _write(folder / SEAL_FILE, render(msgspec.structs.replace(seal, parts=parts).closed()))


def _exchange(seal: Seal) -> Callable[[Path], None]:
    """A model file is replaced by that of another version or member, and its digest in the seal too."""

    def alter(folder: Path) -> None:
        version = seal.versions[0]
        mine, other = version.files[1], version.files[2]
        _write(folder / mine.path, (folder / other.path).read_bytes())
        size, digest = file_digest(folder / mine.path)
        files = [version.files[0], msgspec.structs.replace(mine, bytes=size, sha256=digest), *version.files[2:]]
        changed = msgspec.structs.replace(version, files=files)
        seal_again(folder, {}, versions=[changed, *seal.versions[1:]])

    return alter
