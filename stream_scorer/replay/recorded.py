"""Reads the records of live scorers: `contributions` joined with `lineage`, by partition."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import msgspec

from stream_scorer.errors import CheckFailed
from stream_scorer.kafka.topics import Topics
from stream_scorer.positions import SourcePartition
from stream_scorer.records import NOT_A_RECORD, Contribution, LineageRow, Score
from stream_scorer.serde.fat_contribution import decode_contribution
from stream_scorer.serde.lineage import LineageBatch, offsets_in
from stream_scorer.serde.raw import RawRecords

# Tolerated difference of the clocks of scorer and broker; beyond it, a search by time reads the whole partition.
CLOCK_SKEW_MS = 60_000
_FOREIGN_HINT = "Did another program write to this topic, or delete records of it?"


class TopicRanges(Protocol):
    """The part of `kafka.range_reader.RangeReader` that this module uses."""

    def bounds(self, topic: str) -> dict[SourcePartition, tuple[int, int]]: ...

    def read(self, source: SourcePartition, start: int, stop: int) -> Iterator[RawRecords]: ...


class TimedRanges(TopicRanges, Protocol):
    """`TopicRanges` with a lookup by time."""

    def offset_at(self, source: SourcePartition, timestamp_ms: int) -> int: ...


class Recorded(NamedTuple):
    """One contribution and its lineage; None if topic `lineage` does not contain it."""

    contribution: Contribution
    lineage: LineageRow | None


class StoredLineage(NamedTuple):
    """An undecoded lineage record and the source offsets ``[first, next)`` that it covers."""

    first_offset: int
    next_offset: int
    value: bytes

    def decode(self) -> LineageBatch:
        """Raises `CheckFailed` for a record that no scorer wrote."""
        try:
            return LineageBatch(self.value)
        except NOT_A_RECORD as error:
            raise CheckFailed(
                f"the lineage of offsets {self.first_offset} to {self.next_offset - 1} is no record of a scorer: "
                f"{error}",
                hint=_FOREIGN_HINT,
            ) from None


def stored_lineage(
    reader: TopicRanges, topics: Topics, partition: int, start: int | None = None
) -> Iterator[StoredLineage]:
    """The lineage records of one partition, from offset `start` of the topic (its beginning)."""
    source = SourcePartition(topics.lineage, partition)
    low, high = reader.bounds(topics.lineage).get(source, (0, 0))
    for chunk in reader.read(source, low if start is None else start, high):
        for place, value, headers in zip(chunk.offset, chunk.value, chunk.headers, strict=True):
            if value is None:
                continue
            covered = offsets_in(headers)
            if covered is None:  # copied by a tool that drops headers
                try:
                    batch = LineageBatch(value)
                except NOT_A_RECORD as error:
                    raise not_written_by_a_scorer(source, int(place), error) from None
                covered = int(batch.offset[0]), int(batch.offset[-1]) + 1
            yield StoredLineage(*covered, value)


def bounds_of(reader: TopicRanges, topic: str, partition: int) -> tuple[int, int]:
    """First offset and end offset of one partition; 0 and 0 if the topic does not have it."""
    return reader.bounds(topic).get(SourcePartition(topic, partition), (0, 0))


def served_scores(reader: TopicRanges, source: SourcePartition, bounds: tuple[int, int]) -> Iterator[Score]:
    """The scores of one partition within `bounds`. Raises `CheckFailed` for a record that no scorer wrote."""
    decode = msgspec.json.Decoder(Score).decode
    for chunk in reader.read(source, *bounds):
        for offset, value in zip(chunk.offset.tolist(), chunk.value, strict=True):
            try:
                yield decode(value or b"")
            except NOT_A_RECORD as error:
                raise not_written_by_a_scorer(source, offset, error) from None


def recorded(reader: TopicRanges, topics: Topics, partition: int, bounds: tuple[int, int]) -> Iterator[Recorded]:
    """The contributions of one partition within `bounds`, with their lineage; records in the old format contain theirs.

    On a system that is scoring, look up the bounds of topics that are read together before reading any of them. Raises
    `CheckFailed` for a record that no scorer wrote.
    """
    source = SourcePartition(topics.contributions, partition)
    lineage = _Cursor(lambda: stored_lineage(reader, topics, partition))
    for chunk in reader.read(source, *bounds):
        for offset, value in zip(chunk.offset.tolist(), chunk.value, strict=True):
            try:
                contribution, row = decode_contribution(value or b"")
            except NOT_A_RECORD as error:
                raise not_written_by_a_scorer(source, offset, error) from None
            yield Recorded(contribution, row or lineage.take(contribution.source.offset))


def not_written_by_a_scorer(source: SourcePartition, offset: int, error: Exception) -> CheckFailed:
    """The error for a record that cannot be decoded."""
    return CheckFailed(
        f"{source.topic}[{source.partition}]@{offset} is no record of a scorer: {error}",
        hint=_FOREIGN_HINT,
    )


def find_lineage(
    reader: TimedRanges, topics: Topics, partition: int, offset: int, event_id: str, scored_at: int
) -> LineageRow | None:
    """The lineage of one score: searched from the time of scoring, then from the beginning of the partition."""
    near = reader.offset_at(SourcePartition(topics.lineage, partition), scored_at - CLOCK_SKEW_MS)
    for start in (near, None):
        for record in stored_lineage(reader, topics, partition, start):
            if record.first_offset <= offset < record.next_offset:
                batch = record.decode()
                row = batch.find(offset)
                if row is not None and batch.event_id[row] == event_id:
                    return batch.rows()[row]
    return None


class ControlRecord(NamedTuple):
    """A record of topic `control`; `timestamp` is the broker's, ms."""

    offset: int
    value: bytes | None
    timestamp: int


def control_records(reader: TopicRanges, topics: Topics) -> Iterator[ControlRecord]:
    """The records of topic `control`, from its beginning. Raises `UsageError` if there is no such topic."""
    source = SourcePartition(topics.control, 0)
    for chunk in reader.read(source, *reader.bounds(topics.control)[source]):
        yield from map(ControlRecord, chunk.offset.tolist(), chunk.value, chunk.timestamp.tolist())


class _Cursor:
    """A forward cursor over the lineage of one partition, opened on first use."""

    def __init__(self, open_records: Callable[[], Iterator[StoredLineage]]) -> None:
        self._open = open_records
        self._records: Iterator[StoredLineage] | None = None
        self._ahead: StoredLineage | None = None
        self._rows: list[LineageRow] = []
        self._at = 0

    def take(self, offset: int) -> LineageRow | None:
        """The next row with source offset `offset`; None if there is none."""
        while True:
            if self._at < len(self._rows):
                row = self._rows[self._at]
                if row.source.offset > offset:
                    return None
                self._at += 1
                if row.source.offset == offset:
                    return row
                continue
            if self._records is None:
                self._records = self._open()
                self._ahead = next(self._records, None)
            if self._ahead is None or self._ahead.first_offset > offset:
                return None
            if self._ahead.next_offset > offset:
                self._rows, self._at = self._ahead.decode().rows(), 0
            self._ahead = next(self._records, None)
