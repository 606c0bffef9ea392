"""Ranges of a partition are read to their end, also where a fetch sees an earlier end of the partition for a moment."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from stream_scorer.kafka import range_reader, reader
from stream_scorer.kafka.range_reader import RangeReader
from stream_scorer.positions import SourcePartition

SOURCE = SourcePartition("transactions", 0)


class Message:
    """A record, or the end of the partition, at an offset."""

    def __init__(self, offset: int, *, end: bool = False) -> None:
        self._offset, self._end = offset, end

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
        return SOURCE.partition


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

    def get_watermark_offsets(self, *_: Any) -> tuple[int, int]:
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
    found = reader._columns("transactions", [Unreadable(0), Message(1)])  # type: ignore[list-item]
    assert found.headers == [None, None]
