"""The order of a replay: offset order within a partition, across partitions by running maximum of event time.

Records of several partitions have no natural order. A replay orders them by (running maximum of event time, topic,
partition, offset), which depends on the logs only, not on how or when they are read. The time of a label is its
`labelled_at`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from stream_scorer.arrays import Ints
from stream_scorer.positions import SourcePartition
from stream_scorer.serde.decoder import LabelDecoder, TransactionDecoder
from stream_scorer.serde.raw import RawRecords
from stream_scorer.spec.model import CheckedSpec

# Per record, its entities that use labels (``terminal:17``); empty if there are none.
Owners = list[tuple[str, ...]]


class Extract(Protocol):
    """Returns the (n,) times in ms (-1 for a record that cannot be decoded) and the owners of `records`."""

    def __call__(self, records: RawRecords) -> tuple[Ints, Owners]: ...


class Extractors:
    """Extracts time and owners of a spec's transactions and labels; records that the stages reject have neither."""

    def __init__(self, checked: CheckedSpec) -> None:
        self._transactions = TransactionDecoder(checked)
        self._labels = LabelDecoder(checked)
        self._entities = checked.label_entities

    def transactions(self, records: RawRecords) -> tuple[Ints, Owners]:
        """Event times and owners of transactions."""
        good, _ = self._transactions.decode(records.value, records.timestamp)
        return self._aligned(len(records), good.row, good.event_time, good.entity_ids)

    def labels(self, records: RawRecords) -> tuple[Ints, Owners]:
        """Times of labelling, and owners, of labels."""
        good, _ = self._labels.decode(records.value, records.timestamp)
        return self._aligned(len(records), good.row, good.labelled_at, good.entity_ids)

    def _aligned(self, n: int, row: Ints, time: Ints, ids: dict[str, list[str | None]]) -> tuple[Ints, Owners]:
        times = np.full(n, -1, dtype=np.int64)
        times[row] = time
        owners: Owners = [()] * n
        columns = [[None if i is None else f"{name}:{i}" for i in ids[name]] for name in self._entities]
        for place, values in zip(row.tolist(), zip(*columns, strict=True) if columns else (), strict=bool(columns)):
            owners[place] = tuple(owner for owner in values if owner is not None)
        return times, owners


@dataclass(slots=True)
class Stream:
    """One partition's records, in offset order. `is_label` selects its input topic."""

    source: SourcePartition
    chunks: Iterator[RawRecords]
    extract: Extract
    is_label: bool


@dataclass(slots=True)
class Run:
    """Records in order: transactions, labels, and their interleaving.

    Attributes:
        transaction_time, label_time: running maximum of event time, the sort key.
        before: per label, the number of transactions before it. Owners as in `Extract`.
    """

    transactions: RawRecords
    transaction_time: Ints
    transaction_owners: Owners
    labels: RawRecords
    label_time: Ints
    label_owners: Owners
    before: Ints


@dataclass(slots=True)
class _Part:
    records: RawRecords
    time: Ints
    owners: Owners

    def split(self, at: int) -> tuple[_Part, _Part]:
        low, high = np.arange(at), np.arange(at, len(self.records))
        return (
            _Part(self.records.take(low), self.time[:at], self.owners[:at]),
            _Part(self.records.take(high), self.time[at:], self.owners[at:]),
        )


class _Buffer:
    """The records of a stream that have been read but not yet returned."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.ended = False
        self._newest = -1
        self._part = _Part(RawRecords.empty(stream.source.topic), np.zeros(0, dtype=np.int64), [])

    def fill(self) -> None:
        """Read the next chunk, or set `ended`."""
        chunk = next(self.stream.chunks, None)
        if chunk is None:
            self.ended = True
            return
        time, owners = self.stream.extract(chunk)
        running = np.maximum.accumulate(np.maximum(time, self._newest))
        self._newest = int(running[-1])
        have = self._part
        self._part = _Part(have.records.concatenate(chunk), np.concatenate([have.time, running]), have.owners + owners)

    @property
    def last(self) -> int:
        """The newest time in the buffer, -1 if it is empty."""
        return int(self._part.time[-1]) if len(self._part.time) else -1

    def __len__(self) -> int:
        return len(self._part.time)

    def take_before(self, time: int | None) -> _Part:
        """Remove and return the records older than `time`, or all."""
        at = len(self) if time is None else int(np.searchsorted(self._part.time, time, side="left"))
        taken, self._part = self._part.split(at)
        return taken


def in_order(streams: Sequence[Stream], transactions_topic: str, labels_topic: str) -> Iterator[Run]:
    """The records of `streams` in the order of a replay, in runs; memory contains one or two chunks per stream."""
    buffers = [_Buffer(stream) for stream in streams]
    while True:
        for buffer in buffers:
            while not buffer.ended and not len(buffer):
                buffer.fill()
        reading = [buffer for buffer in buffers if not buffer.ended]
        if not reading:
            break
        # Later records of a stream are not older than its newest one: all before the smallest of these is complete.
        edge = min(buffer.last for buffer in reading)
        parts = [(buffer.stream, buffer.take_before(edge)) for buffer in buffers]
        run = _merge(parts, transactions_topic, labels_topic)
        if run is not None:
            yield run
        for buffer in reading:
            if buffer.last == edge:
                buffer.fill()
    run = _merge([(buffer.stream, buffer.take_before(None)) for buffer in buffers], transactions_topic, labels_topic)
    if run is not None:
        yield run


def _merge(parts: list[tuple[Stream, _Part]], transactions_topic: str, labels_topic: str) -> Run | None:
    parts = [(stream, part) for stream, part in parts if len(part.time)]
    if not parts:
        return None
    streams, buffered = [s for s, _ in parts], [p for _, p in parts]
    topics = sorted({s.source.topic for s in streams})
    lengths = [len(p.time) for p in buffered]
    topic = np.repeat([topics.index(s.source.topic) for s in streams], lengths)
    partition = np.repeat([s.source.partition for s in streams], lengths)
    is_label = np.repeat([s.is_label for s in streams], lengths)
    time = np.concatenate([p.time for p in buffered])
    offset = np.concatenate([p.records.offset for p in buffered])
    order = np.lexsort((offset, partition, topic, time))
    labelled = is_label[order]
    before = np.cumsum(~labelled)[labelled]
    transactions = _collect(parts, order[~labelled], False, transactions_topic)
    labels = _collect(parts, order[labelled], True, labels_topic)
    return Run(
        transactions.records, transactions.time, transactions.owners,
        labels.records, labels.time, labels.owners, before.astype(np.int64),
    )  # fmt: skip


def _collect(parts: list[tuple[Stream, _Part]], order: Ints, is_label: bool, topic: str) -> _Part:
    """The records of one input topic; `order` contains their indices among the records of all `parts`."""
    records = RawRecords.empty(topic)
    owners: Owners = []
    times, places, at = [], [], 0
    for stream, part in parts:
        if stream.is_label == is_label:
            records = records.concatenate(part.records)
            owners = owners + part.owners
            times.append(part.time)
            places.append(np.arange(at, at + len(part.time)))
        at += len(part.time)
    if not places:
        return _Part(records, np.zeros(0, dtype=np.int64), [])
    index = np.searchsorted(np.concatenate(places), order).astype(np.int64)
    return _Part(records.take(index), np.concatenate(times)[index], [owners[i] for i in index.tolist()])
