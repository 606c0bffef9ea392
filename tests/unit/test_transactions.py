"""Transactional producers: what is tried again when one starts, and how they pass an outage."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from stream_scorer.errors import BrokerUnavailable, StreamScorerError, TransactionAborted
from stream_scorer.kafka import transactions
from stream_scorer.kafka.transactions import TransactionPair
from stream_scorer.positions import SourcePartition


class Producer:
    """A producer that cannot start as long as `failures` holds errors."""

    failures: list[int]
    ends: KafkaError | None = None
    made = 0

    def __init__(self, _config: Any) -> None:
        Producer.made += 1

    def init_transactions(self, timeout: float) -> None:
        if self.failures:
            raise KafkaException(KafkaError(self.failures.pop(0)))

    def poll(self, timeout: float) -> int:
        return 0

    def begin_transaction(self) -> None:
        """Nothing fails here."""

    def flush(self, timeout: float) -> int:
        return 3 if self.ends else 0

    def send_offsets_to_transaction(self, offsets: Any, metadata: Any, timeout: float) -> None:
        """Nothing fails here."""

    def commit_transaction(self, timeout: float) -> None:
        """Nothing fails here."""

    def abort_transaction(self, timeout: float) -> None:
        if self.ends:
            raise KafkaException(self.ends)


@pytest.fixture(autouse=True)
def producers(monkeypatch: pytest.MonkeyPatch) -> None:
    Producer.made = 0
    monkeypatch.setattr(transactions, "open_producer", Producer)
    monkeypatch.setattr(transactions, "BUSY_PAUSE_S", 0.0)


def test_a_coordinator_that_still_ends_the_last_transaction_is_asked_again_by_a_new_producer() -> None:
    Producer.failures = [KafkaError.CONCURRENT_TRANSACTIONS] * 2
    TransactionPair("127.0.0.1:1", "scorer")
    assert Producer.made == 4  # two slots, and two producers that could not start


def test_another_error_ends_the_start() -> None:
    Producer.failures = [KafkaError.INVALID_PRODUCER_EPOCH]
    with pytest.raises(StreamScorerError, match="INVALID_PRODUCER_EPOCH"):
        TransactionPair("127.0.0.1:1", "scorer")
    assert Producer.made == 1


def end_transactions(pair: TransactionPair, count: int) -> None:
    for _ in range(count):
        transaction = pair.next()
        transaction.begin()
        with pytest.raises(TransactionAborted):
            transaction.flush()


@pytest.mark.parametrize("unreachable", [KafkaError._TIMED_OUT, KafkaError.COORDINATOR_NOT_AVAILABLE])
def test_producers_wait_for_the_broker_at_their_next_use_and_never_give_up(
    monkeypatch: pytest.MonkeyPatch, unreachable: int
) -> None:
    Producer.failures = []
    pair = TransactionPair("127.0.0.1:1", "scorer")
    monkeypatch.setattr(Producer, "ends", KafkaError(unreachable))
    end_transactions(pair, 2 * (transactions.MAX_REBUILDS_IN_A_ROW + 2))  # the abort waits for no new producer
    Producer.failures = [unreachable] * 3
    with pytest.raises(BrokerUnavailable):
        pair.restore()
    for _ in range(2):
        with pytest.raises(BrokerUnavailable):
            pair.next().begin()
    assert Producer.failures == []  # each attempt was one call
    monkeypatch.setattr(Producer, "ends", None)
    pair.restore()
    transaction = pair.next()
    transaction.begin()
    transaction.flush()
    transaction.commit({}, None)


def test_producers_that_are_fenced_again_and_again_end_the_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    Producer.failures = []
    pair = TransactionPair("127.0.0.1:1", "scorer")
    monkeypatch.setattr(Producer, "ends", KafkaError(KafkaError._FENCED))
    end_transactions(pair, 2 * transactions.MAX_REBUILDS_IN_A_ROW)
    with pytest.raises(StreamScorerError, match="fenced or broken 6 times in a row"):
        end_transactions(pair, 1)


@pytest.mark.parametrize("call", ["commit_transaction", "send_offsets_to_transaction"])
def test_a_clock_that_is_ahead_of_kafka_ends_the_scorer(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Every other batch would be refused too, while this scorer keeps its partitions."""
    ended: list[float] = []

    def refuse(*_arguments: Any) -> None:
        raise KafkaException(KafkaError(KafkaError.INVALID_TIMESTAMP, txn_requires_abort=True))

    Producer.failures = []
    transaction = TransactionPair("127.0.0.1:1", "scorer").next()
    transaction.begin()
    monkeypatch.setattr(Producer, call, refuse, raising=False)
    monkeypatch.setattr(Producer, "abort_transaction", lambda _self, timeout: ended.append(timeout))
    with pytest.raises(StreamScorerError, match="clock is ahead of Kafka's") as raised:
        transaction.commit({SourcePartition("transactions", 0): 1}, None)
    assert not isinstance(raised.value, TransactionAborted)
    assert ended
