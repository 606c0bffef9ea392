"""Ranges of a partition, and topics, are read to their end, also where a fetch sees an earlier end for a moment."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from confluent_kafka import KafkaError, KafkaException

from stream_scorer.cli import topic_io
from stream_scorer.cli.topic_io import TopicReader
from stream_scorer.errors import (
    BrokerUnavailable,
    LogTruncated,
    ReaderLost,
    RecordsDeleted,
    StreamScorerError,
    UsageError,
)
from stream_scorer.kafka import control_log, range_reader, reader
from stream_scorer.kafka.control_log import ControlLog
from stream_scorer.kafka.follower import LAST_OFFSETS, STALL_LOOK_S, BacklogFollower, RecordFollower, last_record
from stream_scorer.kafka.messages import records_of
from stream_scorer.kafka.range_reader import RangeReader
from stream_scorer.kafka.stall import StallWatch
from stream_scorer.positions import SourcePartition
from stream_scorer.serde.raw import RawRecords

SOURCE = SourcePartition("transactions", 0)


class Message:
    """A record, or the end of the partition, at an offset."""

    def __init__(self, offset: int, *, end: bool = False, partition: int = 0) -> None:
        self._offset, self._end, self._partition = offset, end, partition

    def offset(self) -> int:
        return self._offset

    def error(self) -> KafkaError | None:
        return KafkaError(KafkaError._PARTITION_EOF) if self._end else None

    def timestamp(self) -> tuple[int, int]:
        return 1, 0

    def key(self) -> None:
        return None

    value = headers = key

    def topic(self) -> str:
        return SOURCE.topic

    def partition(self) -> int:
        return self._partition


class Unreadable(Message):
    """A record with a header name that is not UTF-8, as confluent_kafka returns it."""

    def headers(self) -> None:  # type: ignore[override]
        raise SystemError("<method 'headers'> returned a result with an exception set")


class Fetches:
    """A consumer whose calls of `consume` return these messages in turn, and whose leader has records below `high`."""

    def __init__(self, turns: list[list[Message]], high: list[int | KafkaError]) -> None:
        self._turns, self._high = turns, high

    def consume(self, limit: int, _timeout: float) -> list[Message]:
        if limit == 1:
            return self._turns.pop(0)
        return []

    def get_watermark_offsets(self, *_: Any, timeout: float = 5.0, cached: bool = False) -> tuple[int, int]:
        if cached:
            return -1001, -1001
        high = self._high.pop(0)
        if isinstance(high, KafkaError):
            raise KafkaException(high)
        return 0, high

    def assign(self, _partitions: Any) -> None:
        pass

    def close(self) -> None:
        pass


def read(monkeypatch: pytest.MonkeyPatch, consumer: Fetches, stop: int) -> list[int]:
    monkeypatch.setattr(range_reader, "open_consumer", lambda _config: consumer)
    ranges = RangeReader("nowhere:1", client_id="test")
    return [offset for records in ranges.read(SOURCE, 0, stop) for offset in records.offset.tolist()]


def test_a_range_prefetches_little_because_a_rebuild_reads_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[dict[str, Any]] = []

    def open_consumer(config: dict[str, Any]) -> Fetches:
        opened.append(config)
        return Fetches([[Message(0)]], [])

    monkeypatch.setattr(range_reader, "open_consumer", open_consumer)
    assert len(list(RangeReader("nowhere:1", client_id="test").read(SOURCE, 0, 1))) == 1
    config = opened[-1]
    assert 1_024 * config["queued.max.messages.kbytes"] + config["fetch.message.max.bytes"] < 2_000_000
    # By default, librdkafka fetches nothing for a second after the queue was full.
    assert config["fetch.queue.backoff.ms"] <= 10


def records(low: int, high: int) -> list[Message]:
    return [Message(offset) for offset in range(low, high)]


@pytest.mark.parametrize("answer", [10, KafkaError(KafkaError.LEADER_NOT_AVAILABLE)])
def test_an_end_that_only_a_fetch_sees_does_not_end_the_range(
    monkeypatch: pytest.MonkeyPatch, answer: int | KafkaError
) -> None:
    late = [[*records(0, 6), Message(6, end=True)], [], [*records(6, 8), Message(8, end=True)], records(8, 10)]
    assert read(monkeypatch, Fetches(late, [answer] * 3), 10) == list(range(10))


def test_records_behind_an_end_in_the_same_fetch_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, Fetches([[*records(0, 6), Message(6, end=True), *records(6, 10)]], []), 10) == list(
        range(10)
    )


def test_markers_at_the_end_and_an_open_transaction_end_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, Fetches([[*records(0, 9), Message(10, end=True)]], []), 10) == list(range(9))
    assert read(monkeypatch, Fetches([[*records(0, 6), Message(6, end=True)]], [6]), 10) == list(range(6))


def test_a_header_name_that_is_not_utf_8_ends_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(monkeypatch, Fetches([[Unreadable(0), Message(1)]], []), 2) == [0, 1]
    found = records_of("transactions", [Unreadable(0), Message(1)])  # type: ignore[list-item]
    assert found.headers == [None, None]


class Failed(Message):
    """An error between records."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(-1001)
        self._error = KafkaError(code, reason) if reason else KafkaError(code)

    def error(self) -> KafkaError:
        return self._error


class Topic(Fetches):
    """`Fetches` of a topic with one partition. When nothing is left to fetch, nothing comes."""

    def consume(self, limit: int, _timeout: float) -> list[Message]:
        return self._turns.pop(0) if limit == 1 and self._turns else []

    def list_topics(self, topic: str, *_: Any) -> Any:
        return SimpleNamespace(topics={topic: SimpleNamespace(error=None, partitions={0: None})})


def opened(monkeypatch: pytest.MonkeyPatch, kind: str, turns: list[list[Message]]) -> Callable[[], list[int]]:
    """A reader of these messages: each call returns the offsets that it reads next."""
    for name in ("follower", "control_log"):
        monkeypatch.setattr(f"stream_scorer.kafka.{name}.open_consumer", lambda _config: Topic(turns, [9]))
    monkeypatch.setattr(control_log, "RecordWriter", lambda *_: None)
    if kind == "follower":
        follower = RecordFollower("nowhere:1", "outcomes", client_id="test")
        return lambda: [record.offset for record in follower.poll()]
    log = ControlLog("nowhere:1", "control")
    return lambda: [record.offset for record in log.read(0.0)]


@pytest.mark.parametrize("kind", ["follower", "control"])
def test_records_around_an_error_are_read(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    denied, passing = Failed(KafkaError._AUTHENTICATION), Failed(KafkaError._TRANSPORT)
    next_offsets = opened(monkeypatch, kind, [[*records(0, 2), denied, passing, *records(2, 4)], records(4, 5)])
    assert next_offsets() == [0, 1]
    with pytest.raises(StreamScorerError):
        next_offsets()
    assert [next_offsets(), next_offsets()] == [[2, 3], [4]]


def test_a_log_that_is_cut_returns_what_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    next_offsets = opened(monkeypatch, "control", [[Message(0), Failed(KafkaError.OFFSET_OUT_OF_RANGE)]])
    assert next_offsets() == [0]
    for _ in range(2):
        with pytest.raises(StreamScorerError, match="no offset 1"):
            next_offsets()


@pytest.mark.parametrize(
    ("end", "reason", "error", "says"),
    [
        (900, "Offset out of range", RecordsDeleted, r"transactions\[0\] no longer has the offset 100"),
        (9, "Offset out of range", LogTruncated, r"transactions\[0\] no longer has the records before the offset 100"),
        (900, "Partition log truncation detected", LogTruncated, "Kafka has lost records"),
    ],
)
def test_an_input_without_the_next_offset_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch, end: int, reason: str, error: type[UsageError], says: str
) -> None:
    failed = Failed(KafkaError._AUTO_OFFSET_RESET, reason)
    monkeypatch.setattr(reader, "open_consumer", lambda _config: Topic([[failed]], [end]))
    monkeypatch.setattr(reader, "EndQuery", lambda *_: None)
    inputs = reader.InputReader(
        "nowhere:1", reader.GroupMember("group", "i", static=False), ["transactions"],
        on_assigned=lambda _: {}, on_revoked=lambda _: None,
        stopping=lambda: False, times_of={},
    )  # fmt: skip
    inputs._subscriptions = 1
    inputs._set_positions({SOURCE: 100})
    with pytest.raises(error, match=says):
        inputs._consume(1, 0.0)


def backlog(
    monkeypatch: pytest.MonkeyPatch, turns: list[list[Message]], high: list[Any], answers: list[Any]
) -> BacklogFollower:
    """A follower of these messages, whose brokers give these `answers` for ends."""

    def ask() -> dict[tuple[str, int], int]:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, StreamScorerError):
            raise answer
        return dict(answer)

    monkeypatch.setattr("stream_scorer.kafka.follower.TopicEnds", lambda *_, **__: ask)
    monkeypatch.setattr("stream_scorer.kafka.follower.open_consumer", lambda _config: Topic(turns, high))
    return BacklogFollower("nowhere:1", "outcomes", client_id="test", start="beginning")


@pytest.mark.parametrize(
    ("turns", "end", "present", "reached"),
    [
        # Few records, or none, do not show that nothing waits.
        ([records(0, 2), [], records(2, 9), records(9, 11)], 10, 10, [False, False, False, True]),
        # Markers and aborted records at the end are passed when the broker reports the end.
        ([records(0, 7), [Message(10, end=True)]], 10, 10, [False, True]),
        # A fetch that knows the end late, and an end that the partition has lost or that an open transaction covers.
        ([[*records(0, 6), Message(6, end=True)], records(6, 10)], 10, 10, [False, True]),
        ([[*records(0, 6), Message(6, end=True)]], 10, 6, [True]),
        ([records(0, 6)], 10, 6, [False]),
        ([[]], 0, 0, [True]),
    ],
)
def test_a_backlog_is_read_when_the_position_has_passed_its_end(
    monkeypatch: pytest.MonkeyPatch, turns: list[list[Message]], end: int, present: int, reached: list[bool]
) -> None:
    follower = backlog(monkeypatch, turns, [end], [{("outcomes", 0): present}])
    assert [(follower.poll(), follower.caught_up())[1] for _ in reached] == reached


def test_a_question_for_ends_loses_nothing_and_waits_for_no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    away, leaderless, known = BrokerUnavailable("nobody answers"), dict[tuple[str, int], int](), {("outcomes", 0): 10}
    turns = [[*records(0, 6), Message(6, end=True)], records(6, 10)]
    follower = backlog(monkeypatch, turns, [10], [away, leaderless, leaderless, known])
    assert len(follower.poll()) == 6
    assert not follower.caught_up()
    assert not follower.caught_up()
    assert follower.caught_up(leaderless=True)
    assert not follower.caught_up()
    assert [record.offset for record in follower.poll()] == [6, 7, 8, 9]
    assert follower.caught_up()


class Ends:
    """The answers of the broker for the end of a partition, from the next look on."""

    def __init__(self, *answers: int) -> None:
        self._answers, self._asked = list(answers), list[SourcePartition]()

    def ask(self, sources: Collection[SourcePartition]) -> None:
        self._asked = list(sources)

    def answers(self) -> dict[SourcePartition, int]:
        return {source: self._answers.pop(0) for source in self._asked} if self._answers else {}


@pytest.mark.parametrize(
    ("late", "ends", "lost"),
    [
        # Partition 0 has more, whatever others bring; or only a marker, of which the client has reported the end.
        ([[], [Message(70, partition=1)], [Message(71, partition=1)]], [10, 10], True),
        ([[Message(10, end=True)], [], []], [10, 10], False),
        # The broker does not answer; or the records come, be it late.
        ([[], [], []], [], False),
        ([[], [], records(6, 10)], [10, 10], False),
    ],
)
def test_a_follower_whose_client_has_stopped_to_fetch_a_partition_is_lost(
    late: list[list[Message]], ends: list[int], lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    follower = backlog(monkeypatch, [records(0, 6), *late, []], [10], [{("outcomes", 0): 10}])
    follower._stalls = StallWatch(follower._stalls._known, Ends(*ends), lambda: now, look_s=STALL_LOOK_S)
    read = 0
    for _ in range(4):
        read += len(follower.poll())
        now += STALL_LOOK_S
    assert read == sum(message.error() is None for turn in [records(0, 6), *late] for message in turn)
    with pytest.raises(ReaderLost, match=r"from outcomes\[0\]") if lost else contextlib.nullcontext():
        follower.poll()


@pytest.mark.parametrize("code", [KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE])
def test_a_follower_of_a_topic_that_was_created_again_is_lost(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    follower = backlog(monkeypatch, [[Message(0), Failed(code)]], [10], [{}])
    assert len(follower.poll()) == 1
    with pytest.raises(ReaderLost, match="outcomes has no offset 1: it was created again or has lost records"):
        follower.poll()


def test_ends_are_asked_on_another_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    follower = backlog(monkeypatch, [], [9], [{("outcomes", 0): 12}, {}])
    assert (follower.known_ends(), follower.ends()) == ({0: 9}, {0: 12})
    with pytest.raises(BrokerUnavailable, match="no leader"):
        follower.ends()


def read_topic(monkeypatch: pytest.MonkeyPatch, turns: list[list[Message]], high: list[Any]) -> list[int]:
    monkeypatch.setattr("stream_scorer.kafka.follower.open_consumer", lambda _config: Topic(turns, high))
    with TopicReader("nowhere:1", "transactions.dlq", client_id="test", start="beginning") as reader:
        return [record.offset for record in reader.read_to_end()]


def test_a_pause_is_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    late = [records(0, 6), [], [], records(6, 9), [], [Message(10, end=True)]]
    assert read_topic(monkeypatch, late, [10, 10]) == list(range(9))


def test_an_end_that_only_a_fetch_sees_is_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    late = [[*records(0, 6), Message(6, end=True)], records(6, 12)]
    assert read_topic(monkeypatch, late, [10] * 3) == list(range(10))
    lost = [[*records(0, 6), Message(6, end=True)]]
    assert read_topic(monkeypatch, lost, [10, 10, 6]) == list(range(6))


def test_a_broker_that_is_gone_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topic_io, "SILENCE_S", 0.0)
    with pytest.raises(BrokerUnavailable, match="does not answer"):
        read_topic(monkeypatch, [records(0, 6)], [10, 10])


class Range:
    """A partition with records at these offsets; at others there are markers and aborted records."""

    def __init__(self, offsets: list[int]) -> None:
        self.offsets = np.array(offsets)
        self.reads: list[tuple[int, int]] = []

    def read(self, source: SourcePartition, start: int, stop: int) -> Iterator[RawRecords]:
        self.reads.append((start, stop))
        inside = self.offsets[(self.offsets >= start) & (self.offsets < stop)]
        for part in np.split(inside, range(3, len(inside), 3)):
            if len(part):
                values: list[bytes | None] = [str(offset).encode() for offset in part]
                partition, nothing = np.zeros(len(part), np.int32), [None] * len(part)
                yield RawRecords(source.topic, partition, part, 10 * part, list(nothing), values, list(nothing))


@pytest.mark.parametrize(
    ("offsets", "last", "reads"), [([*range(90)], 89, 1), ([5, 7], 7, 2), ([], None, 2), ([40, 41, 42, 43], 43, 1)]
)
def test_the_last_record_is_found_before_markers(offsets: list[int], last: int | None, reads: int) -> None:
    reader = Range(offsets)
    found = last_record(reader, SourcePartition("score-summaries", 3), 2, LAST_OFFSETS + 30)  # type: ignore[arg-type]
    assert [(r.partition, r.offset, r.value, r.timestamp_ms) for r in found] == (
        [] if last is None else [(3, last, str(last).encode(), 10 * last)]
    )
    assert len(reader.reads) == reads
