"""Lineage records: what goes in comes out, each partition by itself, found by its headers, whatever the size."""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from stream_scorer.kafka.config import MAX_MESSAGE_BYTES
from stream_scorer.positions import SourcePartition
from stream_scorer.records import AppliedOffset, SegmentThresholds, ShardOffset
from stream_scorer.serde import lineage
from stream_scorer.serde.lineage import (
    LineageBatch,
    LineageColumns,
    LineageHeader,
    LineageVersion,
    applied_by_topic,
    encode_lineage,
    offsets_in,
)

NAMES = ["a", "b", "c"]
VERSIONS = [
    LineageVersion("cards", "7", "champion", "logit", "m7", "p", 0.3, 0.8),
    LineageVersion("cards", "8", "canary", "logit", "m8", "p", 0.2, 0.7),
]


def header(names: list[str] = NAMES) -> LineageHeader:
    applied = applied_by_topic({SourcePartition("t", 0): 5, SourcePartition("t", 2): 9, SourcePartition("l", 1): 3})
    return LineageHeader("t", "f", "s", "0.1.0", VERSIONS, 4, applied, [ShardOffset(1, "t", 0, 6)], names)


def columns(n: int, partitions: int = 3, width: int = 3) -> LineageColumns:
    rng = np.random.default_rng(n)
    features = rng.normal(size=(n, width))
    features[rng.random((n, width)) < 0.2] = np.nan
    review = np.where(rng.random(n) < 0.3, 0.25, np.nan)
    return LineageColumns(
        (np.arange(n) % partitions).astype(np.int32), np.arange(n) // partitions + 100, [f"e{i}" for i in range(n)],
        (np.arange(n) % 5 == 0).astype(np.int8), features, rng.integers(0, 4, (n, width)).astype(np.int8),
        rng.integers(-1, 3, n), np.full(n, -1, np.int64), review, review * 2,
    )  # fmt: skip


def test_what_goes_in_comes_out() -> None:
    given = columns(40)
    records = list(encode_lineage(header(), given))
    assert [record.partition for record in records] == [0, 1, 2]
    rows = [row for record in records for row in LineageBatch(record.value).rows()]
    assert sorted(row.place for row in rows) == list(range(40))
    for row in rows:
        i = row.place
        version = VERSIONS[int(given.version[i])]
        assert (row.event_id, row.source.topic, row.source.partition) == (f"e{i}", "t", i % 3)
        assert row.source.offset == given.offset[i]
        assert (row.version, row.arm, row.link) == (version.version, version.arm, "logit")
        assert row.features == [None if np.isnan(v) else v for v in given.features[i]]
        assert row.feature_status == given.status[i].tolist()
        age = int(given.partitions_age[i])
        assert (row.partitions_age, row.labels_age) == (None if age < 0 else age, None)
        own = None if np.isnan(given.review[i]) else SegmentThresholds(given.review[i], given.block[i])
        assert row.thresholds == own
        assert (row.feature_hash, row.spec_hash, row.code_version, row.control_offset) == ("f", "s", "0.1.0", 4)
        assert row.applied_offsets_ahead == [ShardOffset(1, "t", 0, 6)]
        assert row.applied_offsets == [AppliedOffset("l", 1, 3), AppliedOffset("t", 0, 5), AppliedOffset("t", 2, 9)]


def test_event_ids_may_be_of_any_script() -> None:
    ids = ["é", "", "日本", "a\0b", "🂡"]
    given = dataclasses.replace(columns(5, partitions=1), event_id=ids)
    assert [
        row.event_id for record in encode_lineage(header(), given) for row in LineageBatch(record.value).rows()
    ] == ids


@pytest.mark.parametrize(("n", "width"), [(1, 3), (40, 3), (65, 34), (9, 0)])
def test_rows_are_the_bytes_that_pyarrow_writes(n: int, width: int) -> None:
    given = columns(n, width=width)
    given.event_id = [f"{i:x}é" * (i % 4) for i in range(n)]
    given.labels_age = given.offset - 101
    for record in encode_lineage(header([f"f{i}" for i in range(width)]), given):
        mine = np.flatnonzero(given.partition == record.partition)
        schema = lineage._schema(width)
        arrays = [
            pa.array(given.partition[mine]), pa.array(given.offset[mine]), pa.array([given.event_id[i] for i in mine]),
            pa.array(mine.astype(np.int32)), pa.array(given.version[mine]),
            *(
                pa.FixedSizeListArray.from_arrays(pa.array(each[mine].reshape(-1)), type=schema.field(name).type)
                if width
                else pa.FixedSizeListArray.from_buffers(
                    schema.field(name).type, len(mine), [None], children=[pa.array(each[:0].reshape(-1))]
                )
                for name, each in (("features", given.features), ("feature_status", given.status))
            ),
            *(_ages(age[mine]) for age in (given.partitions_age, given.labels_age)),
            pa.array(given.review[mine]), pa.array(given.block[mine]),
        ]  # fmt: skip
        whole = pa.input_stream(pa.py_buffer(record.value), compression="zstd").read()
        own = pa.RecordBatch.from_arrays(arrays, schema=schema).serialize().to_pybytes()
        assert whole.endswith(own + b"\xff\xff\xff\xff\0\0\0\0")


def _ages(age: np.ndarray) -> pa.Array:
    valid = np.packbits(age >= 0, bitorder="little")
    return pa.Array.from_buffers(pa.int64(), len(age), [pa.py_buffer(valid), pa.py_buffer(age)])


def test_headers_locate_a_row() -> None:
    for record in encode_lineage(header(), columns(40)):
        batch = LineageBatch(record.value)
        assert offsets_in(record.headers) == (batch.offset[0], batch.offset[-1] + 1)
        assert batch.find(int(batch.offset[3])) == 3
        assert batch.find(record.next_offset) is None
    assert offsets_in(None) is None
    assert offsets_in([("source.first_offset", b"x"), ("source.next_offset", b"2")]) is None


def test_any_arrow_reader_reads_it() -> None:
    given = columns(7, partitions=1)
    (record,) = encode_lineage(header(), given)
    table = pa.ipc.open_stream(pa.input_stream(pa.py_buffer(record.value), compression="zstd")).read_all()
    assert table.column_names == [name for name, _, _ in lineage.SCHEMA_FIELDS]
    assert table["offset"].to_pylist() == given.offset.tolist()
    assert msgspec.json.decode(table.schema.metadata[b"lineage"])["features"] == NAMES


def test_a_large_batch_becomes_records_that_the_topic_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "MAX_ROW_BYTES", 2_000)
    records = list(encode_lineage(header(), columns(300, partitions=2)))
    assert len(records) > 4
    places = [row.place for record in records for row in LineageBatch(record.value).rows()]
    assert sorted(places) == list(range(300))
    assert lineage.MAX_ROW_BYTES < lineage._MAX_UNPACKED
    assert MAX_MESSAGE_BYTES > 6_000_000


def test_nothing_scored_gives_no_record() -> None:
    assert list(encode_lineage(header(), columns(0))) == []


@pytest.mark.parametrize("bad", ["empty", "json", "cut", "other"])
def test_what_is_no_lineage_record_is_refused(bad: str) -> None:
    (record,) = encode_lineage(header(), columns(7, partitions=1))
    table = pa.table({"x": [1]})
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed, pa.ipc.new_stream(packed, table.schema) as writer:
        writer.write_table(table)
    value = {
        "empty": b"",
        "json": b'{"event_id": "e"}',
        "cut": record.value[:-40],
        "other": sink.getvalue().to_pybytes(),
    }[bad]
    with pytest.raises(msgspec.DecodeError):
        LineageBatch(value)


def test_a_record_that_unpacks_to_too_much_is_refused() -> None:
    value = pa.Codec("zstd").compress(b"\0" * (lineage._MAX_UNPACKED + 2), asbytes=True)
    assert len(value) < 100_000
    with pytest.raises(msgspec.DecodeError, match="64 MB"):
        LineageBatch(value)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("version", [0, 0, 2], "other versions than its 2"),
        ("version", [0, -1, 0], "other versions than its 2"),
        ("offset", [100, 102, 101], "do not ascend"),
        ("partition", [0, 0, 1], "several partitions"),
    ],
)
def test_rows_that_contradict_their_record_are_refused(column: str, values: list[int], message: str) -> None:
    (record,) = encode_lineage(header(), columns(3, partitions=1))
    table = pa.ipc.open_stream(pa.input_stream(pa.py_buffer(record.value), compression="zstd")).read_all()
    place = table.column_names.index(column)
    table = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed, pa.ipc.new_stream(packed, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(msgspec.DecodeError, match=message):
        LineageBatch(sink.getvalue().to_pybytes())


def test_a_record_of_another_format_is_refused_by_name() -> None:
    (record,) = encode_lineage(msgspec.structs.replace(header(), format=2), columns(3, partitions=1))
    with pytest.raises(msgspec.DecodeError, match="of format 2, not 1"):
        LineageBatch(record.value)
