"""The control topic and what is derived from it: topics of one partition, read whole, and written record by record."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from stream_scorer.errors import BrokerUnavailable
from stream_scorer.kafka.config import consumer_config, producer_config
from stream_scorer.kafka.errors import as_domain_error, kafka_error

TIMEOUT_S = 10.0
_MOST = 1_000
_PAUSE_S = 0.1
# Passing troubles of a broker: reading goes on by itself.
_PASSING = (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE, KafkaError._TIMED_OUT)


class LogRecord(NamedTuple):
    """One record of a log."""

    offset: int
    key: str
    value: bytes | None


class ControlLog:
    """Reads a topic of one partition from its start, and appends to it. Reading is for one thread at a time."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._place = TopicPartition(topic, 0, 0)
        self._consumer = Consumer(consumer_config(bootstrap, "stream-scorer-control", "stream-scorer-control-reader"))
        self._consumer.assign([self._place])
        self._notes = Notes(bootstrap)

    def end(self) -> int:
        """The offset after the last record. Raises `BrokerUnavailable`."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                return self._consumer.get_watermark_offsets(self._place, TIMEOUT_S)[1]
            except KafkaException as failure:
                error = kafka_error(failure)
                # A topic made a moment ago has no leader yet, and after a broker's restart none for a while.
                passing = error.retriable() or error.code() in (*_PASSING, KafkaError.NOT_LEADER_FOR_PARTITION)
                if not passing or time.monotonic() > deadline:
                    raise as_domain_error(error, f"look up topic {self._topic}", self._bootstrap) from failure
                time.sleep(_PAUSE_S)

    def read(self, wait_s: float) -> list[LogRecord]:
        """The next records, after at most `wait_s`; none if there are none."""
        messages = self._consumer.consume(1, wait_s)
        if messages:
            messages += self._consumer.consume(_MOST - 1, 0)
        out = []
        for message in messages:
            error = message.error()
            if error is None:
                key = message.key()
                out.append(
                    LogRecord(cast(int, message.offset()), (key or b"").decode(errors="replace"), message.value())
                )
            elif error.code() not in _PASSING and not error.retriable():
                raise as_domain_error(error, f"read {self._topic}", self._bootstrap)
        return out

    def append(self, key: str, value: bytes) -> int:
        """Append a record and answer its offset. Raises `BrokerUnavailable`: then nobody knows whether it is there."""
        return self._notes.put(self._topic, key, value)

    def close(self) -> None:
        """Let go of the broker."""
        self._consumer.close()
        self._notes.close()


class Notes:
    """Records put one by one, each waited for, each on partition 0."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._producer = Producer(
            producer_config(bootstrap, "stream-scorer-control")
            | {"linger.ms": 0, "message.timeout.ms": int(TIMEOUT_S * 1_000)}
        )

    def put(self, topic: str, key: str, value: bytes | None) -> int:
        """Put one record and answer its offset. Raises `BrokerUnavailable`."""
        done, told = threading.Event(), []

        def delivered(error: KafkaError | None, message: Message) -> None:
            told.append((error, message.offset()))
            done.set()

        self._producer.produce(topic, key=key.encode(), value=value, partition=0, on_delivery=delivered)
        self._producer.flush(TIMEOUT_S + 1)
        if not done.is_set():
            raise BrokerUnavailable(f"the broker at {self._bootstrap} does not confirm a record on {topic}")
        error, offset = told[0]
        if error is not None:
            raise as_domain_error(error, f"write to {topic}", self._bootstrap)
        return cast(int, offset)

    def close(self) -> None:
        """Nothing is left to send: every record was waited for."""
        self._producer.flush(0)
