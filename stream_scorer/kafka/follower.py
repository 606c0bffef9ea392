"""Follows the records of a topic from a given position."""

from __future__ import annotations

import ctypes
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Literal, NamedTuple, Self, cast

import numpy as np
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from stream_scorer.errors import BrokerUnavailable, ReaderLost, RecordsDeleted, StreamScorerError
from stream_scorer.kafka.clients import open_consumer
from stream_scorer.kafka.config import SMALL_PREFETCH, consumer_config
from stream_scorer.kafka.ends import TopicEnds
from stream_scorer.kafka.errors import NO_LEADER, NO_OFFSET, as_domain_error, kafka_error
from stream_scorer.kafka.headers import headers_of
from stream_scorer.kafka.metadata import METADATA_TIMEOUT_S, RETRY_WAIT_S, partition_ids
from stream_scorer.kafka.range_reader import RangeReader
from stream_scorer.kafka.stall import EndQuery, StallWatch
from stream_scorer.positions import SourcePartition
from stream_scorer.serde.raw import Headers

# A new topic has no leader yet: 100 attempts at an interval of 0.1 s take as long as `METADATA_TIMEOUT_S`.
ELECTION_TRIES = 100
# How often a `BacklogFollower` looks for stalled partitions, see `kafka.stall`. Less often than a scorer, because the
# remedy is to read everything again.
STALL_LOOK_S = 30.0
# Offsets at the end of a partition that are read first for its last record.
LAST_OFFSETS = 64


class FollowedRecord(NamedTuple):
    """One record with its coordinates."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    headers: Headers | None = None


class RecordFollower:
    """Reads every committed record of a topic, without a consumer group and without commits. A context manager.

    Attributes:
        starts: by partition, the first offset to read. first_ends: its end when reading began.
        reached: by partition, the offset at which `poll` last found it at its end, if `NOTES_ENDS`. Transaction markers
            and aborted records before it take offsets, but are never returned.
    """

    NOTES_ENDS = False

    def __init__(
        self, bootstrap: str, topic: str, *, client_id: str, start: Literal["beginning", "end"] | int = "end"
    ) -> None:
        """Start at the beginning, at the present end, or at a record timestamp (ms).

        Raises:
            UsageError: the topic does not exist. BrokerUnavailable: the broker does not answer.
        """
        self._bootstrap = bootstrap
        self._topic = topic
        # librdkafka requires a group name. It has no effect, as no offsets are committed.
        config = consumer_config(bootstrap, client_id, f"{client_id}-follower") | SMALL_PREFETCH
        self._consumer = open_consumer(config | {"enable.partition.eof": self.NOTES_ENDS})
        self.reached: dict[int, int] = {}
        # The client has passed these, so it never returns them again: an error before them must not lose them.
        self._waiting: deque[Message] = deque()
        try:
            bounds = self._bounds()
            self.first_ends = {partition: high for partition, (_, high) in bounds.items()}
            self.starts = {partition: self._start(partition, start, *found) for partition, found in bounds.items()}
            # By partition, the offset after the last record that `poll` returned.
            self._next = dict(self.starts)
            self._consumer.assign([TopicPartition(topic, p, offset) for p, offset in self.starts.items()])
        except BaseException:
            self._consumer.close()
            raise

    def poll(self, max_records: int = 10_000, timeout_s: float = 0.0) -> list[FollowedRecord]:
        """Up to `max_records` records, waiting at most `timeout_s` for the first.

        Raises:
            ReaderLost: the topic was created again or has lost records. StreamScorerError: it was deleted, or the
                broker refuses. Records before the error come first, those behind it with the next call. An unavailable
                broker is not an error.
        """
        if not self._waiting:
            self._waiting.extend(self._consumer.consume(1, timeout_s))
            if self._waiting and max_records > 1:
                self._waiting.extend(self._consumer.consume(max_records - 1, 0))
        records: list[FollowedRecord] = []
        while self._waiting and len(records) < max_records:
            refused = self._refusal(self._waiting[0])
            if refused is not None and records:
                break  # the next call raises it
            message = self._waiting.popleft()
            if refused is not None:
                raise refused
            partition, offset = cast(int, message.partition()), cast(int, message.offset())
            error = message.error()
            if error is None:
                self._next[partition] = offset + 1
                key, value, timestamp = message.key(), message.value(), message.timestamp()[1]
                records.append(FollowedRecord(partition, offset, key, value, timestamp, headers_of(message)))
            elif error.code() == KafkaError._PARTITION_EOF:
                self.reached[partition] = offset
        return records

    def _refusal(self, message: Message) -> StreamScorerError | None:
        """The error to raise; None if librdkafka goes on by itself."""
        error = message.error()
        if error is not None and error.code() in NO_OFFSET:
            at = self._next.get(cast(int, message.partition()), "that is read next")
            return ReaderLost(
                f"the topic {self._topic} has no offset {at}: it was created again or has lost records",
                hint="Read the topic again, from what it has now.",
            )
        if error is None or error.code() == KafkaError._PARTITION_EOF or error.retriable():
            return None
        known = as_domain_error(error, f"read {self._topic}", self._bootstrap)
        return None if isinstance(known, BrokerUnavailable) else known

    def ends(self) -> dict[int, int]:
        """The present end of each partition. Raises `BrokerUnavailable`."""
        return {partition: high for partition, (_, high) in self._bounds().items()}

    def last_before_start(self) -> list[FollowedRecord]:
        """The last record of each partition that has none since the start. Raises `BrokerUnavailable`."""
        found = []
        with RangeReader(self._bootstrap, client_id="stream-scorer-last") as reader:
            for source, (low, high) in reader.bounds(self._topic).items():
                if low < high <= self.starts.get(source.partition, high):
                    found += last_record(reader, source, low, high)
        return found

    def close(self) -> None:
        """Stop reading, and return the memory of what was fetched."""
        self._consumer.close()
        _return_free_memory()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _bounds(self) -> dict[int, tuple[int, int]]:
        """The first offset and the end of each partition."""
        partitions = partition_ids(self._consumer, self._topic, self._bootstrap)
        return {partition: self._watermark(TopicPartition(self._topic, partition)) for partition in partitions}

    def _start(self, partition: int, start: Literal["beginning", "end"] | int, low: int, high: int) -> int:
        if isinstance(start, int):
            return self._first_since(partition, start, high)
        return low if start == "beginning" else high

    def _first_since(self, partition: int, timestamp_ms: int, end: int) -> int:
        try:
            (found,) = self._consumer.offsets_for_times(
                [TopicPartition(self._topic, partition, timestamp_ms)], METADATA_TIMEOUT_S
            )
        except KafkaException as error:
            raise as_domain_error(kafka_error(error), f"look up {self._topic} by time", self._bootstrap) from error
        return found.offset if found.offset >= 0 else end  # -1: all records are older

    def _watermark(self, place: TopicPartition) -> tuple[int, int]:
        for left in reversed(range(ELECTION_TRIES)):
            try:
                low, high = self._consumer.get_watermark_offsets(place, METADATA_TIMEOUT_S)
                return int(low), int(high)
            except KafkaException as error:
                if kafka_error(error).code() not in NO_LEADER or not left:
                    raise as_domain_error(
                        kafka_error(error), f"find the ends of {self._topic}", self._bootstrap
                    ) from error
                # Not `poll`, which could return a record.
                time.sleep(RETRY_WAIT_S)
        raise AssertionError("the last attempt returns or raises")


class BacklogFollower(RecordFollower):
    """A `RecordFollower` that knows when it has read what was on the topic at a given time."""

    NOTES_ENDS = True
    _topic_ends: TopicEnds | None = None

    def __init__(
        self, bootstrap: str, topic: str, *, client_id: str, start: Literal["beginning", "end"] | int = "end"
    ) -> None:
        """See `RecordFollower`."""
        super().__init__(bootstrap, topic, client_id=client_id, start=start)
        # An end that the client has reported counts as known, so markers and aborted records are no stall.
        ends = EndQuery(bootstrap, client_id)
        self._stalls = StallWatch(lambda source: self.reached.get(source.partition, -1), ends, look_s=STALL_LOOK_S)
        self._lost: ReaderLost | None = None

    def poll(self, max_records: int = 10_000, timeout_s: float = 0.0) -> list[FollowedRecord]:
        """As `RecordFollower.poll`. Raises `ReaderLost` also if the client has stopped fetching a partition."""
        if self._lost is not None:
            raise self._lost
        records = super().poll(max_records, timeout_s)
        # If the client has more, it may have fetched records of a partition that seems to stand still.
        if len(records) < max_records:
            fetched = {SourcePartition(self._topic, partition): offset for partition, offset in self._next.items()}
            self._stalls.note_drained()
            if stalled := self._stalls.stalled(fetched):
                names = ", ".join(f"{source.topic}[{source.partition}]" for source in stalled)
                # The next call raises it, as these records count.
                self._lost = ReaderLost(f"no records arrive from {names}, although the broker has more")
        return records

    def passed(self, ends: Mapping[int, int], *, ask: bool = True, leaderless: bool = False) -> bool:
        """Whether `poll` has come to the offset `ends` of every partition.

        Offsets without a record, such as transaction markers, count as read when the broker reports the end after them.
        An end that the partition has lost, or that an open transaction covers, is not waited for: the brokers are asked
        for it, if `ask`. While they do not answer, the answer is no. `leaderless`: whether a partition without a
        leader, of which nothing can be read at present, counts as read.
        """
        behind = {partition: end for partition, end in ends.items() if self._at(partition) < end}
        if not behind or not ask:
            return not behind
        try:
            present = self._present()
        except BrokerUnavailable:
            return False
        return all(
            leaderless if partition not in present else self._is_read(partition, min(end, present[partition]))
            for partition, end in behind.items()
        )

    def caught_up(self, *, leaderless: bool = False) -> bool:
        """Whether `poll` has come to the end that each partition had when reading began. See `passed`."""
        return self.passed(self.first_ends, leaderless=leaderless)

    def known_ends(self) -> dict[int, int]:
        """The end of each partition, as far as the start and the last fetches show it. Asks nobody."""
        found = {}
        for partition, end in self.first_ends.items():
            place = TopicPartition(self._topic, partition)
            # Negative before the first fetch.
            found[partition] = max(self._consumer.get_watermark_offsets(place, cached=True)[1], end)
        return found

    def ends(self) -> dict[int, int]:
        """The present end of each partition. Raises `BrokerUnavailable`."""
        found = self._present()
        if len(found) < len(self.starts):
            raise BrokerUnavailable(f"a partition of {self._topic} has no leader at present")
        return found

    def _present(self) -> dict[int, int]:
        """The present end of each partition that has a leader.

        One request per broker, by a connection of its own. On that of the consumer, the question for each partition
        would wait for the pending fetch: half a second on an idle topic.
        """
        if self._topic_ends is None:
            counts = {self._topic: len(self.starts)}
            self._topic_ends = TopicEnds(self._bootstrap, counts, client_id="stream-scorer", committed=True)
        return {partition: end for (_, partition), end in self._topic_ends().items()}

    def _at(self, partition: int) -> int:
        """The next offset of `partition`."""
        return max(self._next.get(partition, 0), self.reached.get(partition, 0))

    def _is_read(self, partition: int, end: int) -> bool:
        """Whether the last fetch of `partition` found its end, and `end` is not beyond it."""
        at = self._at(partition)
        return self.reached.get(partition) == at and at >= end


def last_record(reader: RangeReader, source: SourcePartition, low: int, high: int) -> list[FollowedRecord]:
    """The last record of `source` with an offset in ``[low, high)``; empty if there is none.

    Markers and aborted records take offsets too, so the range that is read grows until it contains a record.
    """
    size = LAST_OFFSETS
    while low < high:
        start = max(low, high - size)
        try:
            last = deque(reader.read(source, start, high), maxlen=1)
        except RecordsDeleted:
            return []
        if last:
            record = last[0].take(np.array([len(last[0]) - 1]))
            at, timestamp = int(record.offset[0]), int(record.timestamp[0])
            return [FollowedRecord(source.partition, at, record.key[0], record.value[0], timestamp)]
        high, size = start, 4 * size
    return []


def _return_free_memory() -> None:
    """Make the C library return freed memory to the system, if it can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
