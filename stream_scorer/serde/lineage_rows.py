"""The rows of lineage records as Arrow messages, written in one compiled pass over all records of a micro-batch.

pyarrow takes about 40 calls per micro-batch and 20 per record for the same bytes, which was a seventh of the CPU of the
scoring thread at 40 rows per batch. Messages of one schema differ in their bodies and in a few numbers of their
metadata, so the metadata comes from a message that pyarrow has made.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stream_scorer.arrays import Floats, Int8s, Ints, UInt8s
from stream_scorer.compiled import njit

# The fields of `lineage.SCHEMA_FIELDS` have 13 nodes, of which two are those of the values of lists, and 25 buffers.
_NODES, _LISTS, _AGES, _BUFFERS = 13, (6, 8), (9, 10), 25
# Places in the cursor of `write_messages`: the next byte of the body, where the body begins, and the word of the
# metadata that holds the start of the next buffer.
_AT, _BODY, _SLOT = range(3)
_WORD, _PREFIX = 8, 8


class RowColumns(NamedTuple):
    """The n rows of a micro-batch as in `lineage.LineageColumns`.

    `text` is all event ids, `text_end` (n + 1,) int32 where each ends in it, with a 0 before the first.
    """

    partition: NDArray[np.int32]
    offset: Ints
    text: UInt8s
    text_end: NDArray[np.int32]
    version: Int8s
    features: Floats
    status: Int8s
    partitions_age: Ints
    labels_age: Ints
    review: Floats
    block: Floats


class Metadata(NamedTuple):
    """The metadata of a message, its prefix included, and where its numbers stand: in words of 8 bytes."""

    content: UInt8s
    rows: int
    nodes: int
    buffers: int
    body_bytes: int


def metadata_of(schema: Any) -> Metadata:
    """The metadata of messages with `schema`."""
    # With one row, because numbers that are 0 are left out.
    message = pa.RecordBatch.from_arrays([pa.nulls(1, field.type) for field in schema], schema=schema).serialize()
    data = message.to_pybytes()
    _, size = struct.unpack_from("<iI", data)

    def followed(at: int) -> int:
        return at + int(struct.unpack_from("<I", data, at)[0])

    def of_table(table: int, number: int) -> int:
        """Where field `number` of the flatbuffers table at `table` is."""
        layout = table - struct.unpack_from("<i", data, table)[0]
        return table + int(struct.unpack_from("<H", data, layout + 4 + 2 * number)[0])

    whole = followed(_PREFIX)
    batch = followed(of_table(whole, 2))
    nodes, buffers = (followed(of_table(batch, number)) for number in (1, 2))
    counts = [struct.unpack_from("<I", data, at)[0] for at in (nodes, buffers)]
    places = [of_table(batch, 0), nodes + 4, buffers + 4, of_table(whole, 3)]
    assert counts == [_NODES, _BUFFERS] and not any(place % _WORD for place in places)
    return Metadata(np.frombuffer(data[: _PREFIX + size], np.uint8), *(place // _WORD for place in places))


@njit(cache=True, nogil=True)
def row_bytes(width: int) -> int:
    """Bytes of a row with `width` features, without its event id, at most."""
    return 56 + 9 * width


@njit(cache=True, nogil=True)
def write_messages(columns: RowColumns, order: Ints, edges: Ints, metadata: Metadata) -> tuple[UInt8s, Ints]:
    """The messages of r records, each with the end of its stream, one after another; and (r,) where each ends.

    Record i holds the rows ``order[edges[i]:edges[i + 1]]``.
    """
    width = columns.features.shape[1]
    # At most 7 bytes follow a buffer, so that the next one starts at a whole word.
    most = metadata.content.shape[0] + _WORD * (_BUFFERS + 1)
    words = np.zeros(
        (order.shape[0] * row_bytes(width) + columns.text.shape[0] + most * edges.shape[0]) // _WORD + 1, np.int64
    )
    out = words.view(np.uint8)
    ends = np.empty(edges.shape[0] - 1, np.int64)
    cursor = np.zeros(3, np.int64)
    for record in range(ends.shape[0]):
        rows = order[edges[record] : edges[record + 1]]
        first = cursor[_AT] // _WORD
        cursor[_BODY] = cursor[_AT] + metadata.content.shape[0]
        out[cursor[_AT] : cursor[_BODY]] = metadata.content
        cursor[_AT], cursor[_SLOT] = cursor[_BODY], first + metadata.buffers
        nulls = _write_body(out, words, cursor, columns, rows)
        words[first + metadata.rows] = rows.shape[0]
        words[first + metadata.body_bytes] = cursor[_AT] - cursor[_BODY]
        for node in range(_NODES):
            words[first + metadata.nodes + 2 * node] = rows.shape[0] * (width if node in _LISTS else 1)
            words[first + metadata.nodes + 2 * node + 1] = 0
        for age in range(len(_AGES)):
            words[first + metadata.nodes + 2 * _AGES[age] + 1] = nulls[age]
        words[cursor[_AT] // _WORD] = 0xFFFFFFFF
        cursor[_AT] += _WORD
        ends[record] = cursor[_AT]
    return out, ends


@njit(cache=True, nogil=True)
def _write_body(out, words, cursor, columns, rows):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Write the buffers of one record; return how many ages of partitions and of labels are null."""
    n = rows.shape[0]
    _put(out, words, cursor, columns.partition, rows)
    _put(out, words, cursor, columns.offset, rows)
    _put_text(out, words, cursor, columns, rows)
    _reserve(words, cursor, 0)
    place = out[_reserve(words, cursor, 4 * n) :][: 4 * n].view(np.int32)
    for i in range(n):
        place[i] = rows[i]
    _put(out, words, cursor, columns.version, rows)
    _reserve(words, cursor, 0)
    _put(out, words, cursor, columns.features, rows)
    _reserve(words, cursor, 0)
    _put(out, words, cursor, columns.status, rows)
    partitions = _put_ages(out, words, cursor, columns.partitions_age, rows)
    labels = _put_ages(out, words, cursor, columns.labels_age, rows)
    _put(out, words, cursor, columns.review, rows)
    _put(out, words, cursor, columns.block, rows)
    return partitions, labels


@njit(cache=True, nogil=True)
def _reserve(words, cursor, size):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Enter the next buffer, of `size` bytes, into the metadata; return where it starts."""
    at = cursor[_AT]
    words[cursor[_SLOT]], words[cursor[_SLOT] + 1] = at - cursor[_BODY], size
    cursor[_SLOT] += 2
    cursor[_AT] += (size + _WORD - 1) // _WORD * _WORD
    return at


@njit(cache=True, nogil=True)
def _put(out, words, cursor, column, rows):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Write the `rows` of a column ``(n, ...)`` without nulls: an empty bitmap, and the values."""
    _reserve(words, cursor, 0)
    values = column.reshape(-1)
    width = values.shape[0] // column.shape[0]
    size = rows.shape[0] * width * column.itemsize
    to = out[_reserve(words, cursor, size) :][:size].view(column.dtype)
    for i in range(rows.shape[0]):
        for j in range(width):
            to[i * width + j] = values[rows[i] * width + j]


@njit(cache=True, nogil=True)
def _put_text(out, words, cursor, columns, rows):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Write the event ids: an empty bitmap, where each begins and the last ends, and their bytes."""
    n, end = rows.shape[0], columns.text_end
    _reserve(words, cursor, 0)
    bounds = out[_reserve(words, cursor, 4 * (n + 1)) :][: 4 * (n + 1)].view(np.int32)
    for i in range(n):
        bounds[i + 1] = bounds[i] + end[rows[i] + 1] - end[rows[i]]
    at = _reserve(words, cursor, bounds[n])
    for i in range(n):
        for place in range(end[rows[i]], end[rows[i] + 1]):
            out[at] = columns.text[place]
            at += 1


@njit(cache=True, nogil=True)
def _put_ages(out, words, cursor, age, rows):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Write ages, of which negative ones are null: a bitmap, empty if none is, and the values. Return how many are."""
    nulls = 0
    for row in rows:
        nulls += age[row] < 0
    bitmap = _reserve(words, cursor, (rows.shape[0] + 7) // 8 if nulls else 0)
    if nulls:
        for i in range(rows.shape[0]):
            out[bitmap + i // 8] |= np.uint8((age[rows[i]] >= 0) << (i % 8))
    to = out[_reserve(words, cursor, 8 * rows.shape[0]) :][: 8 * rows.shape[0]].view(np.int64)
    for i in range(rows.shape[0]):
        to[i] = age[rows[i]]
    return nulls
