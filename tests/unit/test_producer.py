"""The producer without transactions: every failure is raised, every wait has a bound. No broker answers here."""

from __future__ import annotations

import pytest

from stream_scorer.clock import Deadline
from stream_scorer.errors import BrokerUnavailable
from stream_scorer.kafka.control_log import RecordWriter
from stream_scorer.kafka.producer import DELIVERY_TIMEOUT_S, PlainProducer

NOBODY = "127.0.0.1:1"
ONE_PLACE = {"queue.buffering.max.messages": 1}


class Ticking:
    """A clock that passes `step_s` at every look."""

    def __init__(self, step_s: float) -> None:
        self.now, self.step_s = 0.0, step_s

    def __call__(self) -> float:
        self.now += self.step_s
        return self.now


def records(n: int) -> list[dict[str, bytes]]:
    return [{"key": b"k", "value": b"v"} for _ in range(n)]


def test_a_queue_that_stays_full_is_an_error_and_not_a_recursion() -> None:
    producer = PlainProducer(NOBODY, "test", settings=ONE_PLACE, monotonic=Ticking(DELIVERY_TIMEOUT_S / 20))
    try:
        with pytest.raises(BrokerUnavailable, match="queue stays full"):
            producer.produce_batch("t", 0, records(3))
        assert producer.sent == 1
    finally:
        producer.close()


def test_a_flush_is_bounded() -> None:
    producer = PlainProducer(NOBODY, "test")
    try:
        producer.produce_batch("t", 0, records(2))
        with pytest.raises(BrokerUnavailable, match=r"did not confirm \d+ records"):
            producer.flush(0.05)
        assert producer.acked == 0
    finally:
        producer.close()


def test_a_record_given_up_is_raised_and_the_producer_is_closed() -> None:
    with (
        pytest.raises(BrokerUnavailable, match="did not take 1 records"),
        PlainProducer(NOBODY, "test", settings={"message.timeout.ms": 50}) as producer,
    ):
        producer.produce_batch("t", 0, records(1))
    deadline = Deadline(5.0)
    while len(producer.client) and deadline.remaining_s:  # librdkafka counts events, such as a lost connection, too
        producer.client.poll(0.01)
    assert len(producer.client) == 0


def test_an_error_on_its_way_out_is_not_replaced_by_that_of_a_flush() -> None:
    def fail() -> None:
        with PlainProducer(NOBODY, "test") as producer:
            producer.produce_batch("t", 0, records(1))
            raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        fail()


def test_a_record_that_nobody_confirms_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream_scorer.kafka.control_log.TIMEOUT_S", 0.1)
    writer = RecordWriter(NOBODY)
    try:
        with pytest.raises(BrokerUnavailable):
            writer.write("t", "key", b"value")
    finally:
        writer.close()
