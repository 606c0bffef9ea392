"""A broker that loads its offsets again reports old ones, or none: everything is scored once all the same."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from proofs.kit import CARDS_SPEC
from proofs.memory_run import make_parts, make_world, run_until_done, verify
from stream_scorer.errors import TransactionAborted
from stream_scorer.pipeline import starting_points as module
from stream_scorer.positions import SourcePartition
from tests.support.broker import MemoryReader, MemoryTransaction
from tests.support.failpoints import Failpoints


def test_each_input_is_scored_once_although_resyncs_find_old_offsets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(5)
    read_committed, commit = MemoryReader.committed, MemoryTransaction.commit
    old = {"answers": 0}

    def aborting(self: MemoryTransaction, *arguments: Any) -> None:
        if rng.random() < 0.2:
            self.abort()
            raise TransactionAborted("the coordinator has moved")
        commit(self, *arguments)

    def loading(self: MemoryReader, sources: list[SourcePartition]) -> dict[SourcePartition, int | None]:
        found = read_committed(self, sources)
        if not self.owned or rng.random() < 0.3:  # a rejoin makes the broker load them
            return found
        old["answers"] += 1
        some = rng.random() < 0.5
        return {source: offset and offset // 2 if some else None for source, offset in found.items()}

    monkeypatch.setattr(module, "BEHIND_S", 0.0)
    monkeypatch.setattr(MemoryTransaction, "commit", aborting)
    monkeypatch.setattr(MemoryReader, "committed", loading)
    world = make_world(make_parts(tmp_path, CARDS_SPEC), 5, 400)
    run_until_done(world, "one", rng, Failpoints)
    verdict = verify(world)
    assert (verdict.lost, verdict.doubled, verdict.rows_different, verdict.features_different) == (0, 0, 0, 0)
    assert old["answers"] > 10
