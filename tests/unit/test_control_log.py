"""The control log against librdkafka's own broker in memory."""

from __future__ import annotations

import time

import pytest
from confluent_kafka import Producer, TopicPartition

from stream_scorer.errors import StreamScorerError
from stream_scorer.kafka.control_log import ControlLog


def read_for(log: ControlLog, seconds: float) -> None:
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        log.read(0.1)


def test_a_reader_whose_topic_was_created_again_never_seems_to_be_up_to_date() -> None:
    producer = Producer({"bootstrap.servers": "memory", "test.mock.num.brokers": 1, "log_level": 0})
    (broker,) = producer.list_topics(timeout=10).brokers.values()
    producer.produce("control", b"{}", partition=0)
    assert producer.flush(10) == 0
    log = ControlLog(f"{broker.host}:{broker.port}", "control")
    try:
        # The new topic ends below the position that was read.
        log._consumer.assign([TopicPartition("control", 0, 57)])
        with pytest.raises(StreamScorerError, match="created again"):
            read_for(log, 20.0)
        producer.produce("control", b"{}", partition=0)
        assert producer.flush(10) == 0
        for _ in range(3):
            with pytest.raises(StreamScorerError, match="created again"):
                log.read(0.1)
    finally:
        log.close()
