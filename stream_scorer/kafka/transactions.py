"""Two transactional producers that take turns, so that a batch is produced while the one before it commits.

Errors have librdkafka's three classes. Retriable: make the same call again. Abortable: abort, then read again from the
committed offsets. Fatal or unknown: replace the producer by another with the same id, then read again. A fenced
producer already raises in `produce()`, with code `_FATAL` and `fatal()` false, so the code decides.

The new producer is only created at first. Its start needs a broker, fences the former producer and ends that one's
transaction. It starts in `restore`, or at its next `begin`; until then the former transaction may still be open.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from stream_scorer.clock import Deadline
from stream_scorer.errors import BrokerUnavailable, StreamScorerError, TransactionAborted
from stream_scorer.kafka.call_timeout import GRACE_S, CallTimedOut, TimedCaller
from stream_scorer.kafka.clients import open_producer
from stream_scorer.kafka.config import producer_config
from stream_scorer.kafka.errors import as_domain_error, is_lasting, is_passing, kafka_error
from stream_scorer.positions import SourcePartition
from stream_scorer.serde.raw import Headers

# An open transaction of a dead scorer blocks read_committed readers until it times out.
TRANSACTION_TIMEOUT_MS = 10_000
# The outcome of a commit that takes longer is unknown.
CALL_TIMEOUT_S = 5.0
# How long a full queue may take to drain; a batch is a small part of it.
QUEUE_DEADLINE_S = 10.0
# How long a scorer that starts waits for a broker. One that restarts is usually back within half a minute.
INIT_DEADLINE_S = 40.0
# Pause before another attempt while the coordinator is busy with the same transactional id.
BUSY_PAUSE_S = 0.2
# Two scorers with the same instance name fence each other in turn. After so many rebuilds the scorer ends.
MAX_REBUILDS_IN_A_ROW = 5

_log = logging.getLogger(__name__)
_FENCED = {KafkaError._FENCED, KafkaError._FATAL, KafkaError.INVALID_PRODUCER_EPOCH}


class Transaction:
    """One Kafka transaction on one producer. Not thread-safe: one thread at a time, handed over between calls."""

    def __init__(self, slot: _Slot) -> None:
        self._slot = slot
        self._open = False

    def begin(self) -> None:
        """Begin.

        Raises:
            TransactionAborted: the producer had to be replaced. BrokerUnavailable: a new producer cannot start yet.
        """
        self._slot.start()
        self._call("begin a transaction", self._slot.producer.begin_transaction)
        self._open = True

    def produce(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Headers | None = None
    ) -> None:
        """Queue one record. Raises `TransactionAborted` when the producer cannot go on."""
        # Two calls per transaction of the input: positional arguments, and headers only if there are any.
        try:
            if headers:
                self._slot.producer.produce(topic, value, key, partition, headers=cast(Any, headers))
            else:
                self._slot.producer.produce(topic, value, key, partition)
        except BufferError:
            self._produce_into_full_queue(topic, partition, key, value, headers)
        except KafkaException as error:
            self._abandon(kafka_error(error), f"produce to {topic}")

    def _produce_into_full_queue(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Headers | None
    ) -> None:
        """Let librdkafka send some records until it takes this one."""
        producer, deadline = self._slot.producer, Deadline(QUEUE_DEADLINE_S)
        while deadline.remaining_s:
            producer.poll(0.05)
            try:
                producer.produce(topic, value, key, partition, headers=cast(Any, headers))
                return
            except BufferError:
                continue
            except KafkaException as error:
                self._abandon(kafka_error(error), f"produce to {topic}")
        self.abort()
        raise TransactionAborted(f"the broker accepts no records of {topic}: the queue is full")

    def flush(self) -> None:
        """Wait until the broker has every record, so that records of the next transaction come after them.

        A record that could not be delivered makes `commit` fail, so this method does not look for one.

        Raises:
            TransactionAborted: the broker did not take all records in time.
        """
        try:
            left = self._slot.producer.flush(CALL_TIMEOUT_S)
        except KafkaException as error:  # the producer was fenced meanwhile
            _log.warning("records could not be sent: %s", kafka_error(error).str())
            return
        if left:
            self.abort()
            raise TransactionAborted(f"the broker did not take {left} records within {CALL_TIMEOUT_S:.0f} s")

    def commit(self, offsets: Mapping[SourcePartition, int], group_metadata: Any) -> None:
        """Add the input offsets and commit, all or nothing.

        Raises:
            TransactionAborted: nothing was committed, or the outcome is unknown; the committed offsets show which.
        """
        producer = self._slot.producer
        if offsets:
            positions = [TopicPartition(s.topic, s.partition, offset) for s, offset in offsets.items()]
            self._call(
                "add offsets to the transaction",
                lambda: producer.send_offsets_to_transaction(positions, group_metadata, CALL_TIMEOUT_S),
            )
        self._call("commit the transaction", lambda: producer.commit_transaction(CALL_TIMEOUT_S))
        self._open = False
        self._slot.rebuilds = 0

    def abort(self) -> None:
        """Abort if begun. A producer that cannot abort is replaced. Does not wait for a broker that does not answer."""
        if not self._open:
            return
        self._open = False
        producer = self._slot.producer
        try:
            self._slot.caller.call(lambda: producer.abort_transaction(CALL_TIMEOUT_S), CALL_TIMEOUT_S + GRACE_S)
        except (KafkaException, CallTimedOut) as error:
            _log.warning("could not abort a transaction, the producer is replaced: %r", error)
            self._slot.replace(kafka_error(error) if isinstance(error, KafkaException) else None)

    def _call(self, doing: str, call: Callable[[], None]) -> None:
        deadline = time.monotonic() + CALL_TIMEOUT_S
        while True:
            try:
                self._slot.caller.call(call, CALL_TIMEOUT_S + GRACE_S)
                return
            except CallTimedOut:
                self._open = False
                self._slot.replace(None)
                raise TransactionAborted(f"could not {doing} in {CALL_TIMEOUT_S + GRACE_S:.0f} s") from None
            except KafkaException as exception:
                error = kafka_error(exception)
                if error.retriable() and time.monotonic() < deadline:
                    continue
                self._abandon(error, doing)

    def _abandon(self, error: KafkaError, doing: str) -> None:
        """End a transaction that cannot be committed, and raise `TransactionAborted`."""
        name = error.name()
        # librdkafka refuses a record that is too large without ending the transaction.
        abortable = error.txn_requires_abort() or error.code() == KafkaError.MSG_SIZE_TOO_LARGE
        if abortable and error.code() not in _FENCED:
            self.abort()
        else:
            self._open = False
            self._slot.replace(error)
        if is_lasting(error):  # this process ends, so that another one takes its partitions over
            raise as_domain_error(error, doing, self._slot.bootstrap)
        raise TransactionAborted(f"could not {doing}: {name}: {error.str()}")


class _Slot:
    """One transactional id and the producer that holds it now."""

    def __init__(self, bootstrap: str, transactional_id: str) -> None:
        self.bootstrap = bootstrap
        self._id = transactional_id
        self._config = producer_config(bootstrap, transactional_id) | {
            "transactional.id": transactional_id,
            "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
        }
        self.rebuilds = 0
        self.caller = TimedCaller(transactional_id)
        self.producer = open_producer(self._config)
        self._started = False
        self.start(INIT_DEADLINE_S)

    def replace(self, error: KafkaError | None) -> None:
        """Replace the producer by one that has not started yet.

        Args:
            error: what broke the producer; None if a call did not return. Only an error that does not pass counts
                towards `MAX_REBUILDS_IN_A_ROW`.
        """
        self.rebuilds += error is not None and not is_passing(error)
        if self.rebuilds > MAX_REBUILDS_IN_A_ROW:
            raise StreamScorerError(
                f"the producer {self._id!r} was fenced or broken {self.rebuilds} times in a row",
                hint="Does another scorer run with the same `scorer.instance`? Give each its own.",
            )
        self.caller.close()
        self.caller = TimedCaller(self._id)
        self.producer = open_producer(self._config)
        self._started = False
        _log.info("producer %s was replaced", self._id)

    def start(self, wait_s: float = 0.0) -> None:
        """Start the producer if it has not. It fences the one before and ends its transaction.

        Makes one attempt of at most `CALL_TIMEOUT_S`, and others until `wait_s` have passed.

        Raises:
            BrokerUnavailable: it cannot start yet. Call again.
        """
        deadline = Deadline(wait_s)
        while not self._started:
            try:
                self.producer.init_transactions(CALL_TIMEOUT_S)
                self._started = True
            except KafkaException as exception:
                error = kafka_error(exception)
                if error.retriable():
                    self.producer.poll(0)  # hands over its log, which would grow
                elif is_passing(error):
                    # For example, the coordinator still ends the last transaction. This producer cannot go on.
                    time.sleep(BUSY_PAUSE_S)
                    self.producer = open_producer(self._config)
                if not is_passing(error) or not deadline.remaining_s:
                    raise as_domain_error(error, "start a transactional producer", self.bootstrap) from exception


class TransactionPair:
    """Hands out transactions on two producers in turn.

    With one producer, a transaction begun right after the last one waits for the coordinator to finish it.
    """

    def __init__(self, bootstrap: str, transactional_id: str) -> None:
        self._slots = [_Slot(bootstrap, f"{transactional_id}-{turn}") for turn in range(2)]
        self._turn = 0

    def next(self) -> Transaction:
        """The next transaction, not yet begun. The transaction two before it must have ended."""
        slot = self._slots[self._turn]
        self._turn = 1 - self._turn
        return Transaction(slot)

    def restore(self) -> None:
        """Start replaced producers, so that no transaction of their predecessors is open.

        No transaction may be under way. Raises `BrokerUnavailable` if a producer cannot start yet.
        """
        for slot in self._slots:
            slot.start()

    def close(self) -> None:
        """Drop both producers. The coordinator aborts an open transaction after its timeout."""
        for slot in self._slots:
            slot.caller.close()
            try:
                slot.producer.purge()
            except KafkaException as error:
                raise BrokerUnavailable(f"closing the producers: {error}") from error
