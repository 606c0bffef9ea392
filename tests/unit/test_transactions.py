"""Transactional producers: what is tried again when one starts."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from stream_scorer.errors import StreamScorerError
from stream_scorer.kafka import transactions
from stream_scorer.kafka.transactions import TransactionPair


class Producer:
    """A producer that cannot start as long as `failures` holds errors."""

    failures: list[int]
    made = 0

    def __init__(self, _config: Any) -> None:
        Producer.made += 1

    def init_transactions(self, timeout: float) -> None:
        if self.failures:
            raise KafkaException(KafkaError(self.failures.pop(0)))


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
