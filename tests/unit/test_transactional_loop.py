"""The loop of the label joiner: a Kafka call that never returns must not stop it for good."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from stream_scorer.clock import SystemClock
from stream_scorer.errors import TransactionAborted
from stream_scorer.kafka import transactional_loop
from stream_scorer.kafka.transactional_loop import OutputRecord, TransactionalLoop

OUTPUT = OutputRecord("outcomes", b"key", b"value")


class Consumer:
    """Nothing is committed yet."""

    def committed(self, wanted: list[Any], timeout: float) -> list[Any]:
        return []

    def consumer_group_metadata(self) -> object:
        return object()

    def close(self) -> None: ...


class Producer:
    """`send_offsets_to_transaction` ignores its timeout until `released` is set, for the first producer only."""

    made = 0

    def __init__(self, released: threading.Event) -> None:
        Producer.made += 1
        self._released, self._hangs = released, Producer.made == 1
        self.committed = False

    def init_transactions(self, timeout: float) -> None: ...

    def begin_transaction(self) -> None: ...

    def produce(self, topic: str, *, key: bytes, value: bytes) -> None: ...

    def send_offsets_to_transaction(self, offsets: list[Any], metadata: object, timeout: float) -> None:
        if self._hangs:
            self._released.wait(30)

    def commit_transaction(self, timeout: float) -> None:
        self.committed = True


@pytest.fixture
def producers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Producer]]:
    made: list[Producer] = []
    released = threading.Event()

    def make(_config: Any) -> Producer:
        made.append(Producer(released))
        return made[-1]

    Producer.made = 0
    monkeypatch.setattr(transactional_loop, "open_producer", make)
    monkeypatch.setattr(transactional_loop, "open_consumer", lambda _config: Consumer())
    monkeypatch.setattr(transactional_loop, "CALL_TIMEOUT_S", 0.1)
    yield made
    released.set()


@pytest.mark.timeout(20)
def test_a_call_that_does_not_return_aborts_the_transaction_and_the_next_one_commits(producers: list[Producer]) -> None:
    with TransactionalLoop("nowhere:9092", SystemClock(), group="g", transactional_id="t", client_id="c") as loop:
        loop.begin([])
        with pytest.raises(TransactionAborted, match="did not return in time"):
            loop.publish([OUTPUT], {("scores", 0): 1})
        assert not producers[0].committed
        loop.begin([])
        loop.publish([OUTPUT], {("scores", 0): 1})
    assert producers[1].committed
