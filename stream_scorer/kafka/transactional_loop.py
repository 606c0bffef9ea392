"""An exactly-once consume-process-produce loop for a stage that stores its own positions.

It has one consumer with manually assigned partitions (so there is no rebalance) and one transactional producer. Every
transaction contains the outputs and the input positions. After a crash, the caller reconciles its own positions with
the committed ones: see `stream_scorer.monitor.joiner`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_INVALID,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from stream_scorer.clock import Clock
from stream_scorer.errors import StreamScorerError, TransactionAborted
from stream_scorer.kafka.call_timeout import GRACE_S, CallTimedOut, TimedCaller
from stream_scorer.kafka.clients import open_consumer, open_producer
from stream_scorer.kafka.config import SHORT_FETCH_WAIT, consumer_config, producer_config
from stream_scorer.kafka.errors import COORDINATOR_MOVES, NO_OFFSET, as_domain_error, kafka_error

# (topic, partition)
Partition = tuple[str, int]

# A crashed owner blocks read_committed readers for this time. A batch commits in milliseconds.
TRANSACTION_TIMEOUT_MS = 10_000
# Longer than the transaction timeout: the coordinator decides within that, so a call can return the outcome.
CALL_TIMEOUT_S = 15.0
# A broker has its coordinators within seconds of its start; calls are retried at this interval until the deadline.
COORDINATOR_RETRY_S = 0.2
COORDINATOR_DEADLINE_S = 30.0
T = TypeVar("T")
METADATA_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class InputRecord:
    """One committed input record; `timestamp` is that of Kafka, in ms."""

    topic: str
    partition: int
    offset: int
    value: bytes
    timestamp: int


@dataclass(frozen=True, slots=True)
class OutputRecord:
    """One record to publish; the key selects the partition."""

    topic: str
    key: bytes
    value: bytes


class TransactionalLoop:
    """Reads given partitions from given positions, and publishes each batch in one transaction. Not thread-safe."""

    def __init__(self, bootstrap: str, clock: Clock, *, group: str, transactional_id: str, client_id: str) -> None:
        self._clock = clock
        self._bootstrap = bootstrap
        self._transactional_id = transactional_id
        self._client_id = client_id
        # The end of a partition is an event, because its last offsets may hold no record: see `position`.
        settings = SHORT_FETCH_WAIT | {"enable.partition.eof": True}
        self._consumer = open_consumer(consumer_config(bootstrap, client_id, group) | settings)
        self._position: dict[Partition, int] = {}
        self._producer: Producer | None = None
        self._caller = TimedCaller(transactional_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def begin(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """Take over the transactional id from a previous owner; return the committed positions.

        Fences the previous owner and waits until its pending transaction is decided, as the committed positions are
        final only then. Omits partitions without a committed position.

        Raises:
            BrokerUnavailable: the coordinator does not answer.
        """
        self._producer = open_producer(
            producer_config(self._bootstrap, self._client_id)
            | {"transactional.id": self._transactional_id, "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS}
        )
        wanted = [TopicPartition(topic, number) for topic, number in partitions]
        producer = self._producer
        self._retry(lambda: producer.init_transactions(CALL_TIMEOUT_S), "begin transactions")
        committed = self._retry(
            lambda: self._consumer.committed(wanted, timeout=CALL_TIMEOUT_S), "read the committed positions"
        )
        for partition in committed:
            if partition.error is not None:
                raise as_domain_error(partition.error, "read the committed positions", self._bootstrap)
        return {(p.topic, p.partition): p.offset for p in committed if p.offset >= 0}

    def ends(self, partitions: Iterable[Partition]) -> dict[Partition, tuple[int, int]]:
        """The present first offset and last stable offset of each partition."""
        found = {}
        for topic, number in partitions:
            try:
                low, high = self._consumer.get_watermark_offsets(
                    TopicPartition(topic, number), timeout=METADATA_TIMEOUT_S
                )
            except KafkaException as error:
                raise as_domain_error(kafka_error(error), "look up a topic's ends", self._bootstrap) from error
            found[topic, number] = (low, high)
        return found

    def assign(self, positions: Mapping[Partition, int | None]) -> None:
        """Read exactly these partitions from these offsets; None is the beginning. Discards buffered records."""
        self._position = {at: offset or 0 for at, offset in positions.items()}
        self._consumer.assign(
            [
                TopicPartition(topic, number, OFFSET_BEGINNING if offset is None else offset)
                for (topic, number), offset in positions.items()
            ]
        )

    def read(self, max_records: int, timeout_s: float) -> list[InputRecord]:
        """At most `max_records` records; waits up to `timeout_s` for the first one.

        Raises:
            BrokerUnavailable: the broker reports an error that is not transient.
            StreamScorerError: a position is outside the topic, because of retention or a recreated topic.
        """
        # consume(n, t) waits the whole t unless n records arrive: wait for one, then take the available ones.
        messages = self._consumer.consume(1, timeout_s)
        if messages:
            messages += self._consumer.consume(max_records - 1, 0)
        return [record for message in messages if (record := self._checked(message)) is not None]

    def position(self, partition: Partition) -> int:
        """The offset up to which `read` has passed a partition, including transaction markers and aborted records."""
        return self._position[partition]

    def publish(self, records: Iterable[OutputRecord], positions: Mapping[Partition, int]) -> None:
        """Publish `records` and commit `positions` in one transaction.

        Raises:
            TransactionAborted: the transaction failed or its outcome is unknown. Call `begin` and compare positions.
        """
        producer = self._producer
        if producer is None:
            raise RuntimeError("publish before begin")
        offsets = [TopicPartition(topic, number, offset) for (topic, number), offset in positions.items()]
        metadata = self._consumer.consumer_group_metadata()
        try:
            producer.begin_transaction()
            for record in records:
                producer.produce(record.topic, key=record.key, value=record.value)
            self._timed(lambda: producer.send_offsets_to_transaction(offsets, metadata, CALL_TIMEOUT_S))
            self._timed(lambda: producer.commit_transaction(CALL_TIMEOUT_S))
        except (KafkaException, BufferError, CallTimedOut) as error:
            # After every failure, `begin` fences this producer and reads the committed positions. So the producer is
            # not used again, and the kind of failure does not matter.
            self._producer = None
            reason = "a call did not return in time" if isinstance(error, CallTimedOut) else error
            raise TransactionAborted(f"a transaction of {self._transactional_id} failed: {reason}") from error

    def close(self) -> None:
        """Close at once. The coordinator or the next `begin` aborts an open transaction."""
        self._producer = None
        self._caller.close()
        self._consumer.close()

    def _timed(self, call: Callable[[], None]) -> None:
        """Make a call that may ignore its timeout. Raises `CallTimedOut`; the thread of the call is then abandoned."""
        try:
            self._caller.call(call, CALL_TIMEOUT_S + GRACE_S)
        except CallTimedOut:
            self._caller.close()
            self._caller = TimedCaller(self._transactional_id)
            raise

    def _retry(self, call: Callable[[], T], doing: str) -> T:
        """Retry a call while its coordinator moves or starts."""
        deadline = self._clock.monotonic() + COORDINATOR_DEADLINE_S
        while True:
            try:
                return call()
            except KafkaException as exception:
                error = kafka_error(exception)
                moving = error.retriable() or error.code() in COORDINATOR_MOVES
                if not moving or self._clock.monotonic() > deadline:
                    raise as_domain_error(error, doing, self._bootstrap) from exception
            time.sleep(COORDINATOR_RETRY_S)

    def _checked(self, message: Message) -> InputRecord | None:
        """The record of `message`; None for the end of a partition. Advances the position."""
        error = message.error()
        topic, number, offset = message.topic(), message.partition(), message.offset()
        if error is not None and error.code() == KafkaError._PARTITION_EOF:
            assert topic is not None and number is not None and offset is not None
            self._position[topic, number] = max(self._position.get((topic, number), 0), offset)
            return None
        if error is not None:
            if error.code() in NO_OFFSET:
                raise StreamScorerError(
                    f"{topic}[{number}]: the position to read from is no longer in the topic: {error.str()}",
                    hint="Retention deleted unread records, or the topic was recreated. At the next start, it reads on "
                    "from the first record that is left.",
                )
            raise as_domain_error(error, f"read {topic}", self._bootstrap)
        if topic is None or number is None or offset is None or offset == OFFSET_INVALID:
            raise RuntimeError("a Kafka message without coordinates")
        self._position[topic, number] = offset + 1
        return InputRecord(topic, number, offset, message.value() or b"", message.timestamp()[1])
