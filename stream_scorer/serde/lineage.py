"""The format of topic `lineage`: the rows of one micro-batch and source partition as columns, and what they share.

A value is an Arrow IPC stream of one record batch, compressed as a whole by Zstandard in two frames (ADR 0023). Its
columns are those of `SCHEMA_FIELDS`; the key ``lineage`` of the schema's metadata holds a `LineageHeader` as JSON. NaN
in a float column and null in an integer column mean that there is no value. Any Arrow implementation reads it:

table = pyarrow.ipc.open_stream(pyarrow.input_stream(pyarrow.py_buffer(value), compression="zstd")).read_all()
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stream_scorer.arrays import Floats, Int8s, Ints
from stream_scorer.positions import SourcePartition
from stream_scorer.records import AppliedOffset, LineageRow, Record, SegmentThresholds, ShardOffset, Source
from stream_scorer.serde.lineage_rows import Metadata, RowColumns, metadata_of, row_bytes, write_messages
from stream_scorer.serde.raw import Headers
from stream_scorer.structs import prepare

# Headers of a record: the source offsets of its first row, and the one after its last row.
FIRST_OFFSET, NEXT_OFFSET = "source.first_offset", "source.next_offset"
# Larger batches are cut into several records, so that even a topic with Kafka's default limit of 1 MB takes each.
MAX_ROW_BYTES = 900_000
# No record of ours unpacks to more; a reader of a hostile topic stops here.
_MAX_UNPACKED = 64_000_000
_METADATA = b"lineage"
# A reader refuses other formats. A field that is added to the header does not change it.
FORMAT = 1
_CODEC = "zstd"
SCHEMA_FIELDS: tuple[tuple[str, str, str], ...] = (
    ("partition", "int32", "source partition"),
    ("offset", "int64", "source offset, ascending"),
    ("event_id", "string", "the transaction's id"),
    ("place", "int32", "row of the transaction in its micro-batch"),
    ("version", "int8", "index into `versions` of the header: the version that decided"),
    ("features", "fixed_size_list<float64>", "in the order of `features` of the header; NaN: no value"),
    ("feature_status", "fixed_size_list<int8>", "0 fresh, 1 stale, 2 missing, 3 default, 4 partial"),
    (
        "partitions_age",
        "int64, nullable",
        "ms by which the slowest other partition lagged; null: unknown",
    ),
    ("labels_age", "int64, nullable", "ms since the newest label was given; null: unknown"),
    ("review", "float64", "review threshold of the policy's segment; NaN: the version's own applies"),
    ("block", "float64", "block threshold of the policy's segment; NaN: the version's own applies"),
)


class LineageVersion(Record, frozen=True):
    """A version that decided transactions of the micro-batch, and its own thresholds."""

    ensemble: str
    version: str
    arm: str
    link: str
    manifest_sha256: str
    policy_version: str
    review: float
    block: float


class LineageHeader(Record, frozen=True):
    """What all rows of a record share. `applied_offsets` maps a topic to next offsets by partition, null for none."""

    topic: str
    feature_hash: str
    spec_hash: str
    code_version: str
    versions: list[LineageVersion]
    control_offset: int | None
    applied_offsets: dict[str, list[int | None]]
    applied_offsets_ahead: list[ShardOffset]
    features: list[str]
    format: int = FORMAT


@dataclass(slots=True)
class LineageColumns:
    """The n rows of a micro-batch, in its order; `features` and `status` are (n, k), the rest (n,).

    Ages of -1 are unknown; thresholds of NaN are the version's own.
    """

    partition: NDArray[np.int32]
    offset: Ints
    event_id: Sequence[str]
    version: Int8s
    features: Floats
    status: Int8s
    partitions_age: Ints
    labels_age: Ints
    review: Floats
    block: Floats


class EncodedLineage(NamedTuple):
    """One record: its source partition, the offset of its first row and the one after its last row, and its value."""

    partition: int
    first_offset: int
    next_offset: int
    value: bytes

    @property
    def headers(self) -> list[tuple[str, bytes | None]]:
        """Kafka headers by which a reader finds it without decoding its value."""
        return [(FIRST_OFFSET, b"%d" % self.first_offset), (NEXT_OFFSET, b"%d" % self.next_offset)]


def applied_by_topic(next_offset: dict[SourcePartition, int]) -> dict[str, list[int | None]]:
    """Next offsets as they stand in a `LineageHeader`."""
    out: dict[str, list[int | None]] = {}
    for source, offset in sorted(next_offset.items()):
        offsets = out.setdefault(source.topic, [])
        offsets += [None] * (source.partition - len(offsets))
        offsets.append(offset)
    return out


def encode_lineage(header: LineageHeader, columns: LineageColumns) -> Iterator[EncodedLineage]:
    """One record for each source partition (several where rows are too large for one), rows in order of offset."""
    if not len(columns.partition):
        return
    width = columns.features.shape[1]
    schema = _schema(width).with_metadata({_METADATA: msgspec.json.encode(header)})
    codec = pa.Codec(_CODEC)
    # What all records share is compressed once: Zstandard frames one after another decompress as one.
    head = codec.compress(schema.serialize(), asbytes=True)
    order = np.argsort(columns.partition, kind="stable")
    partition, offset = columns.partition[order], columns.offset[order]
    rows = _rows(columns)
    edges = _edges(partition, MAX_ROW_BYTES // (row_bytes(width) + len(rows.text) // len(order)))
    messages, ends = write_messages(rows, order, np.array(edges), _metadata(width))
    start = 0
    for low, high, stop in zip(edges[:-1], edges[1:], ends.tolist(), strict=True):
        value = head + codec.compress(messages[start:stop], asbytes=True)
        yield EncodedLineage(int(partition[low]), int(offset[low]), int(offset[high - 1]) + 1, value)
        start = stop


def _edges(partition: NDArray[np.int32], most: int) -> list[int]:
    """Where records begin, and the end: each has rows of one partition, and at most `most`, or one."""
    bounds = [0, *(np.flatnonzero(np.diff(partition)) + 1).tolist(), len(partition)]
    starts = [at for low, high in pairwise(bounds) for at in range(low, high, max(most, 1))]
    return [*starts, len(partition)]


def _rows(columns: LineageColumns) -> RowColumns:
    joined = "".join(columns.event_id)
    data = joined.encode()
    ascii_only = len(data) == len(joined)
    length = map(len, columns.event_id if ascii_only else map(str.encode, columns.event_id))
    ends = np.zeros(len(columns.event_id) + 1, np.int32)
    np.cumsum(np.fromiter(length, np.int32, len(columns.event_id)), out=ends[1:])
    return RowColumns(
        columns.partition, columns.offset, np.frombuffer(data, np.uint8), ends, columns.version, columns.features,
        columns.status, columns.partitions_age, columns.labels_age, columns.review, columns.block,
    )  # fmt: skip


def _values(array: Any, kind: Any) -> NDArray[Any]:
    """What `array`, which has no nulls, holds. Not `to_numpy`, which imports pandas too."""
    return np.frombuffer(array.buffers()[1], kind)[array.offset : array.offset + len(array)]


def _list_of(kind: Any, width: int) -> Any:
    return pa.list_(pa.field("item", kind, nullable=False), width)


@lru_cache(maxsize=8)
def _schema(width: int) -> Any:
    """The Arrow schema of rows with `width` features."""
    lists = {"features": _list_of(pa.float64(), width), "feature_status": _list_of(pa.int8(), width)}
    plain = {"string": pa.string(), "float64": pa.float64()}
    fields = []
    for name, kind, _ in SCHEMA_FIELDS:
        base = kind.partition(",")[0]
        arrow = lists.get(name) or plain.get(base) or getattr(pa, base)()
        fields.append(pa.field(name, arrow, nullable="nullable" in kind))
    return pa.schema(fields)


def warm() -> None:
    """Compile the loops, or load them from their cache, before the first batch has to wait for them."""
    one, feature = np.zeros(1, np.int64), np.zeros((1, 1))
    code, threshold = np.zeros(1, np.int8), np.zeros(1)
    columns = LineageColumns(
        np.zeros(1, np.int32), one, ["a"], code, feature, code[:, None], one, one, threshold, threshold
    )
    list(encode_lineage(LineageHeader("", "", "", "", [], None, {}, [], ["a"]), columns))


@lru_cache(maxsize=8)
def _metadata(width: int) -> Metadata:
    return metadata_of(_schema(width))


def _check_columns(columns: dict[str, Any], offset: Ints, versions: int) -> None:
    """Raise `msgspec.DecodeError` if rows contradict the header or each other.

    An offset that occurs twice is left to the reader: it is a transaction that was scored twice.
    """
    partition, version = _values(columns["partition"], np.int32), _values(columns["version"], np.int8)
    if (version < 0).any() or (version >= versions).any():
        raise msgspec.DecodeError(f"a lineage record with rows of other versions than its {versions}")
    if (partition != partition[0]).any():
        raise msgspec.DecodeError("a lineage record with rows of several partitions")
    if (np.diff(offset) < 0).any():
        raise msgspec.DecodeError("a lineage record whose offsets do not ascend")


class LineageBatch:
    """One decoded record.

    Attributes:
        header: what the rows share. partition: of the source. offset: (n,) int64, ascending. event_id: n of them.
        place: (n,) int32. features: (n, k) float64. status: (n, k) int8.
    """

    def __init__(self, value: bytes) -> None:
        """Raises `msgspec.DecodeError` for bytes that are not a lineage record."""
        try:
            with pa.CompressedInputStream(pa.BufferReader(value), _CODEC) as stream:
                data = stream.read(_MAX_UNPACKED + 1)
            if len(data) > _MAX_UNPACKED:
                raise msgspec.DecodeError("a lineage record that unpacks to more than 64 MB")
            table = pa.ipc.open_stream(data).read_all()
            self.header = msgspec.json.decode((table.schema.metadata or {})[_METADATA], type=LineageHeader)
            if (made := self.header.format) != FORMAT:
                raise msgspec.DecodeError(
                    f"a lineage record of format {made}, not {FORMAT}: use the release of its writer"
                )
            width = len(self.header.features)
            names = [name for name, _, _ in SCHEMA_FIELDS]
            if not table.select(names).schema.equals(_schema(width)):
                raise msgspec.DecodeError("a lineage record with columns of other types")
            columns = {name: table.column(name).combine_chunks() for name in names}
            self.features: Floats = _values(columns["features"].flatten(), np.float64).reshape(-1, width)
            self.status: Int8s = _values(columns["feature_status"].flatten(), np.int8).reshape(-1, width)
            self.partition: int = columns["partition"][0].as_py()
            self.offset: Ints = _values(columns["offset"], np.int64)
            self.place: NDArray[np.int32] = _values(columns["place"], np.int32)
            self.event_id: list[str] = columns["event_id"].to_pylist()
            _check_columns(columns, self.offset, len(self.header.versions))
        except (pa.ArrowException, OSError, KeyError, IndexError, ValueError, AttributeError) as error:
            if isinstance(error, msgspec.DecodeError):
                raise
            raise msgspec.DecodeError(f"not a lineage record: {error}") from None
        self._columns = columns
        self._applied: list[AppliedOffset] | None = None

    def __len__(self) -> int:
        return len(self.offset)

    @property
    def applied_offsets(self) -> list[AppliedOffset]:
        """The vector that the rows share, in order of topic and partition."""
        if self._applied is None:
            self._applied = [
                AppliedOffset(topic, partition, offset)
                for topic, offsets in self.header.applied_offsets.items()
                for partition, offset in enumerate(offsets)
                if offset is not None
            ]
        return self._applied

    def find(self, offset: int) -> int | None:
        """The row of source offset `offset`."""
        at = int(np.searchsorted(self.offset, offset))
        return at if at < len(self) and self.offset[at] == offset else None

    def document(self) -> dict[str, Any]:
        """All of it as plain values: the header's fields, then `columns` by name."""
        columns = {name: column.to_pylist() for name, column in self._columns.items()}
        return {**msgspec.to_builtins(self.header), "columns": columns}

    def rows(self) -> list[LineageRow]:
        """Every row."""
        header, n = self.header, len(self)
        version, partitions_age, labels_age, review, block = (
            self._columns[name].to_pylist() for name in ("version", "partitions_age", "labels_age", "review", "block")
        )
        features: list[list[float | None]] = self.features.tolist()
        status: list[list[int]] = self.status.tolist()
        lacking = np.atleast_1d(np.isnan(self.features).any(axis=1))
        offsets, places = self.offset.tolist(), self.place.tolist()
        out = []
        for i in range(n):
            mine = header.versions[version[i]]
            out.append(
                LineageRow(
                    self.event_id[i], mine.ensemble, mine.version, mine.arm, mine.link,
                    Source(header.topic, self.partition, offsets[i]), places[i],
                    [None if v != v else v for v in features[i]] if lacking[i] else features[i], status[i],
                    header.feature_hash, header.spec_hash, self.applied_offsets, header.code_version,
                    partitions_age[i], labels_age[i], header.applied_offsets_ahead, header.control_offset,
                    None if review[i] != review[i] else SegmentThresholds(review[i], block[i]),
                    mine.manifest_sha256,
                )
            )  # fmt: skip
        return out


def offsets_in(headers: Headers | None) -> tuple[int, int] | None:
    """First and next source offset by a record's headers; None if they are not there."""
    found = dict(headers or ())
    try:
        return int(found[FIRST_OFFSET] or b""), int(found[NEXT_OFFSET] or b"")
    except (KeyError, ValueError):
        return None


prepare(globals())
