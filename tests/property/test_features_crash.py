"""The features-crash proof, in memory and scaled down: after crashes and suspensions rows are as the log says."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from proofs import features_crash
from proofs.kit import CARDS_SPEC, Context
from proofs.memory_run import Parts, make_parts, make_world, run_until_done, verify
from tests.support.failpoints import Failpoints


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return make_parts(tmp_path_factory.mktemp("parts"), CARDS_SPEC)


def context(folder: Path) -> Context:
    return Context(7, None, False, folder, print)


def test_one_scorer_that_dies_again_and_again(parts: Parts, tmp_path: Path) -> None:
    verdict, counts = features_crash.crash_one_scorer(context(tmp_path), parts, 40)
    assert verdict.holds, verdict
    assert counts["crashes_with_lag"] == 40
    assert verdict.duplicates > 50


def test_two_scorers_that_take_over_from_each_other(parts: Parts, tmp_path: Path) -> None:
    verdict, counts = features_crash.disturb_two_scorers(context(tmp_path), parts, 2)
    assert verdict.holds, verdict
    assert counts["fenced"] > 0, counts


def test_rows_that_are_lost_are_built_again(parts: Parts) -> None:
    rng, lives = random.Random(5), Counter[str]()
    world = make_world(parts, 5, 400)

    def next_life() -> Failpoints:
        lives["begun"] += 1
        if lives["begun"] in (2, 3):
            world.servers[0].flush()
        return Failpoints(("rows", 9) if lives["begun"] < 4 else None)

    run_until_done(world, "scorer", rng, next_life)
    verdict = verify(world)
    assert lives["begun"] == 4
    assert verdict.lost == verdict.doubled == verdict.rows_different == 0, verdict


def test_the_recomputation_sees_a_wrong_row(parts: Parts) -> None:
    world = make_world(parts, 6, 200)
    run_until_done(world, "scorer", random.Random(6), Failpoints)
    assert verify(world).holds
    key = next(iter(world.rows))
    rows = world.server_of(key).rows
    rows[key] = rows[key][32:]
    assert not verify(world).holds
