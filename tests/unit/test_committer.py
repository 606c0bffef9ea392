"""The committer: what a batch whose records do not reach the broker in time means for the batches behind it."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from stream_scorer.clock import Deadline
from stream_scorer.errors import TransactionAborted
from stream_scorer.pipeline.batch import MicroBatch
from stream_scorer.pipeline.committer import Committer


class _Late:
    """A transaction whose records the broker does not take in time."""

    def flush(self) -> None:
        raise TransactionAborted("the broker did not take 3 records within 5 s")


class _Commit:
    name, scoring_only = "commit", False

    def __init__(self) -> None:
        self.batches: list[MicroBatch] = []

    def process(self, batch: MicroBatch) -> None:
        self.batches.append(batch)


def batch(transaction: Any) -> MicroBatch:
    made = MicroBatch.nothing("transactions")
    made.transaction = transaction
    return made


@pytest.mark.parametrize("attempt", range(20))
def test_no_batch_gets_its_turn_behind_records_that_the_broker_does_not_have(attempt: int) -> None:
    commit = _Commit()
    committer = Committer([commit])
    try:
        committer.submit(batch(_Late()))
        with pytest.raises(TransactionAborted, match="3 records"):
            committer.wait_for_turn()
        assert committer.drain(Deadline(10))
        assert (commit.batches, committer.finished) == ([], 0)
        committer.reset()
        committer.wait_for_turn()
    finally:
        committer.close()


class _Slow:
    """A transaction whose records the broker takes when `taken` is set."""

    def __init__(self) -> None:
        self.taken = threading.Event()

    def flush(self) -> None:
        assert self.taken.wait(10)


def test_a_flush_is_waited_for_until_it_ends_or_the_deadline_passes() -> None:
    slow = _Slow()
    committer = Committer([_Commit()])
    try:
        committer.wait_for_flush(Deadline(10))  # nothing was handed over
        committer.submit(batch(slow))
        committer.wait_for_flush(Deadline(0.05))
        assert not committer.idle
        waiting = threading.Thread(target=committer.wait_for_flush, args=(Deadline(10),))
        waiting.start()
        waiting.join(0.05)
        assert waiting.is_alive()
        slow.taken.set()
        waiting.join(10)
        assert not waiting.is_alive()
        assert committer.drain(Deadline(10))
    finally:
        slow.taken.set()
        committer.close()
