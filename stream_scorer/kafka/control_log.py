"""The control topic and the topics derived from it: one partition each, read whole, written record by record."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import NamedTuple, cast

from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, Message, TopicPartition

from stream_scorer.errors import BrokerUnavailable, ReaderLost, Stopped, StreamScorerError
from stream_scorer.kafka.clients import open_consumer
from stream_scorer.kafka.config import consumer_config
from stream_scorer.kafka.errors import NO_ANSWER, NO_LEADER, NO_OFFSET, as_domain_error, kafka_error
from stream_scorer.kafka.producer import PlainProducer

TIMEOUT_S = 10.0
_MAX_RECORDS = 1_000
_PAUSE_S = 0.1
# Longest single wait for the broker, so that a stop takes effect soon.
_SLICE_S = 1.0


class LogRecord(NamedTuple):
    """One record of a log; `timestamp` (ms) is the broker's if the topic has LogAppendTime."""

    offset: int
    key: str
    value: bytes | None
    timestamp: int


class ControlLog:
    """Reads a topic of one partition from its start, and appends to it. One thread at a time may read.

    Once `stop` is set, every call raises `Stopped` within seconds. So a reader that waits for the end of the topic
    while the broker is away ends too.
    """

    def __init__(self, bootstrap: str, topic: str, stop: threading.Event | None = None) -> None:
        self._bootstrap = bootstrap
        self._stop = stop
        self._topic = topic
        # The log may have lost its first records: then it begins above offset 0.
        self._source = TopicPartition(topic, 0, OFFSET_BEGINNING)
        self._position = 0
        self._cut = False
        # The client has passed these, so it never returns them again: an error before them must not lose them.
        self._waiting: deque[Message] = deque()
        # The end of the partition is an event, because its last offsets may hold no record: see `position`.
        settings = {"enable.partition.eof": True}
        self._consumer = open_consumer(
            consumer_config(bootstrap, "stream-scorer-control", "stream-scorer-control-reader") | settings
        )
        self._consumer.assign([self._source])
        self._writer = RecordWriter(bootstrap, stop)

    def end(self) -> int:
        """The offset after the last record. Raises `BrokerUnavailable`, or `Stopped`."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            raise_if_stopped(self._stop)
            try:
                return self._consumer.get_watermark_offsets(self._source, _SLICE_S)[1]
            except KafkaException as failure:
                error = kafka_error(failure)
                # A new topic has no leader for a moment, and after a restart of the broker for longer. While a broker
                # starts, it may not know its partitions yet.
                passing = NO_ANSWER | NO_LEADER | {KafkaError._UNKNOWN_PARTITION}
                transient = error.retriable() or error.code() in passing
                if not transient or time.monotonic() > deadline:
                    raise as_domain_error(error, f"look up topic {self._topic}", self._bootstrap) from failure
                time.sleep(_PAUSE_S)

    def read(self, wait_s: float) -> list[LogRecord]:
        """The next records; waits at most `wait_s` for the first one and returns an empty list if none arrives.

        Raises:
            ReaderLost: the topic was created again or has lost records. StreamScorerError: the broker refuses.
                Records before the error are returned first, and those behind it by the next call. Stopped: see the
                class. An unavailable broker is not an error.
        """
        raise_if_stopped(self._stop)
        if self._cut:
            raise self._cut_error()
        if not self._waiting:
            self._waiting.extend(self._consumer.consume(1, wait_s))
            if self._waiting:
                self._waiting.extend(self._consumer.consume(_MAX_RECORDS - 1, 0))
        out: list[LogRecord] = []
        while self._waiting:
            error, offset = self._waiting[0].error(), cast(int, self._waiting[0].offset())
            refused = self._refusal(error)
            if refused is not None and out:
                break  # the next call raises it
            message = self._waiting.popleft()
            if refused is not None:
                raise refused
            if error is None:
                key = (message.key() or b"").decode(errors="replace")
                out.append(LogRecord(offset, key, message.value(), message.timestamp()[1]))
                self._position = offset + 1
            elif error.code() == KafkaError._PARTITION_EOF:
                self._position = max(self._position, offset)
        return out

    def _refusal(self, error: KafkaError | None) -> StreamScorerError | None:
        """The error to raise; None if it passes by itself."""
        if error is None or error.code() == KafkaError._PARTITION_EOF:
            return None
        if error.code() in NO_OFFSET:
            self._cut = True
            return self._cut_error()
        if error.code() in NO_ANSWER or error.retriable():
            return None
        return as_domain_error(error, f"read {self._topic}", self._bootstrap)

    def _cut_error(self) -> ReaderLost:
        return ReaderLost(
            f"the topic {self._topic} has no offset {self._position}: it was created again or has lost records",
            hint="Restart this process, so that it reads the topic from its start.",
        )

    def position(self) -> int:
        """The offset up to which `read` has passed the log, including transaction markers and aborted records.

        These take offsets but are never returned, so the last record does not show that the end is reached.
        """
        return self._position

    def append(self, key: str, value: bytes) -> int:
        """Append a record and return its offset.

        Raises:
            BrokerUnavailable, Stopped: the broker does not confirm the record. It may or may not be in the log.
        """
        return self._writer.write(self._topic, key, value)

    def close(self) -> None:
        """Close the connections to the broker."""
        self._consumer.close()
        self._writer.close()


class RecordWriter(PlainProducer):
    """Writes records one by one to partition 0 and waits for the confirmation of each."""

    def __init__(self, bootstrap: str, stop: threading.Event | None = None) -> None:
        """Once `stop` is set, a write whose confirmation is missing raises `Stopped` within seconds."""
        self._stop = stop
        settings = {"linger.ms": 0, "message.timeout.ms": int(TIMEOUT_S * 1_000)}
        super().__init__(bootstrap, "stream-scorer-control", settings=settings)

    def write(self, topic: str, key: str, value: bytes | None) -> int:
        """Write one record and return its offset.

        Raises:
            BrokerUnavailable: the broker does not confirm the record within `TIMEOUT_S`. Stopped: see `__init__`.
            StreamScorerError: the broker or the client refuses the record.
        """
        results: list[tuple[KafkaError | None, int | None]] = []
        give_up = self.monotonic() + TIMEOUT_S + 1

        def delivered(error: KafkaError | None, message: Message) -> None:
            results.append((error, message.offset()))

        while True:
            try:
                self.client.produce(topic, key=key.encode(), value=value, partition=0, on_delivery=delivered)
                break
            except BufferError:
                self.wait_for_room(give_up)
            except KafkaException as failure:  # for example, a record that is too large
                raise as_domain_error(kafka_error(failure), f"write to {topic}", self.bootstrap) from failure
        while not results and (left_s := give_up - self.monotonic()) > 0:
            self.client.flush(min(left_s, _SLICE_S))
            if not results:
                raise_if_stopped(self._stop)
        error, offset = results[0] if results else (None, None)
        if not results or (error is not None and error.code() == KafkaError._MSG_TIMED_OUT):
            raise BrokerUnavailable(f"the broker at {self.bootstrap} does not confirm a record on {topic}")
        if error is not None:
            raise as_domain_error(error, f"write to {topic}", self.bootstrap)
        return cast(int, offset)


def raise_if_stopped(stop: threading.Event | None) -> None:
    """Raise `Stopped` if `stop` is set."""
    if stop is not None and stop.is_set():
        raise Stopped("a stop was requested")
