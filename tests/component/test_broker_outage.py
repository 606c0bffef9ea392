"""Kafka answers neither producers nor lookups for a while, also during an assignment: everything is scored once."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from proofs.kit import CARDS_SPEC
from proofs.memory_run import make_parts, make_world, run_until_done, verify
from stream_scorer.errors import BrokerUnavailable, TransactionAborted
from stream_scorer.pipeline import processor
from stream_scorer.positions import SourcePartition
from tests.support.broker import MemoryProducers, MemoryReader, MemoryTransaction
from tests.support.failpoints import Failpoints


def test_each_input_is_scored_once_through_outages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(5)
    read_committed, begin, commit = MemoryReader.committed, MemoryTransaction.begin, MemoryTransaction.commit
    failed = {"assignments": 0, "lookups": 0, "begins": 0, "starts": 0}

    def fail(what: str, share: float) -> None:
        if rng.random() < share:
            failed[what] += 1
            raise BrokerUnavailable("no Kafka broker answers")

    def look_up(self: MemoryReader, sources: list[SourcePartition]) -> dict[SourcePartition, int | None]:
        if self.owned:
            fail("lookups", 0.5)
        elif not failed["assignments"]:
            fail("assignments", 1.0)
        return read_committed(self, sources)

    def beginning(self: MemoryTransaction) -> None:
        fail("begins", 0.1)
        begin(self)

    def committing(self: MemoryTransaction, *arguments: Any) -> None:
        if rng.random() < 0.1:
            self.abort()
            raise TransactionAborted("the broker did not take 16 records within 5 s")
        commit(self, *arguments)

    monkeypatch.setattr(processor, "OUTAGE_PAUSE_S", 0.001, raising=False)
    monkeypatch.setattr(MemoryReader, "committed", look_up)
    monkeypatch.setattr(MemoryTransaction, "begin", beginning)
    monkeypatch.setattr(MemoryTransaction, "commit", committing)
    monkeypatch.setattr(MemoryProducers, "restore", lambda _self: fail("starts", 0.3), raising=False)
    world = make_world(make_parts(tmp_path, CARDS_SPEC), 5, 400)
    run_until_done(world, "one", rng, Failpoints)
    verdict = verify(world)
    assert (verdict.lost, verdict.doubled, verdict.rows_different, verdict.features_different) == (0, 0, 0, 0)
    assert all(failed.values()), failed
