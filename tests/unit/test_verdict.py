"""The verdict keeps its level at any number of looks, is powerful, and needs evidence for every decision."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from proofs.false_alarms import Traffic, by_card, by_transaction, false_alarms, power, simulate
from stream_scorer.control.cards import CardCounts
from stream_scorer.control.evidence import log_evidence, log_evidence_below
from stream_scorer.control.verdict import ALPHA, Basis, Evidence, Tolerances, judge, log_evidences

BASIS = Basis(CardCounts(300, 4, 5), waiting=3, rows=100_000, excluded=10, unpaired=0)


def draws(rng: np.random.Generator, runs: int, looks: int, rise: float, disagree: float) -> list[np.ndarray]:
    """Cumulative counts ``(runs, looks)`` of cards where the new version alerts ``1 + rise`` times as many."""
    both = 1 - disagree
    cells = np.array([both, 1 + rise - both, disagree])
    counts = rng.multinomial(20, cells / cells.sum(), size=(runs, looks)).cumsum(axis=1)
    return [counts[..., k] for k in range(3)]


@pytest.mark.parametrize("disagree", [0.1, 0.4])
@pytest.mark.parametrize("rise", [0.05, -0.05])
def test_a_change_at_the_tolerance_is_hardly_ever_withdrawn_at_any_of_many_looks(rise: float, disagree: float) -> None:
    logs = log_evidences(*draws(np.random.default_rng(1), 400, 300, rise, disagree), Tolerances())
    # At 5 % instead of ALPHA, so few runs are enough: at most 20 of 400 are expected; 35 have odds of one in 1,500.
    assert (np.maximum(logs[0], logs[1]).max(axis=1) >= -math.log(0.05)).sum() <= 35


@pytest.mark.parametrize("rise", [0.15, -0.15])
def test_a_change_that_is_not_harmless_is_hardly_ever_confirmed(rise: float) -> None:
    logs = log_evidences(*draws(np.random.default_rng(2), 400, 300, rise, 0.3), Tolerances())
    assert (np.minimum(logs[2], logs[3]).max(axis=1) >= math.log(20)).sum() <= 35


def test_evidence_of_a_fall_mirrors_that_of_a_rise() -> None:
    both, candidate_only, baseline_only = (np.array([n]) for n in (50, 20, 5))
    assert log_evidence(both, candidate_only, baseline_only, 1.05) == log_evidence_below(
        both, baseline_only, candidate_only, 1 / 1.05
    )
    nothing = np.array([0])
    assert log_evidence(nothing, nothing, nothing, 1.05) == pytest.approx(0.0)
    # One card at a time gives the product that the counts give.
    bets, wealth = np.array([0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 0.95]) / 1.05, np.full(7, 1 / 7)
    for new, old in [(1, 1)] * 50 + [(1, 0)] * 20 + [(0, 1)] * 5:
        wealth = wealth * (1 + bets * (new - 1.05 * old))
    assert log_evidence(both, candidate_only, baseline_only, 1.05)[0] == pytest.approx(math.log(wealth.sum()))


@pytest.mark.parametrize(
    ("cards", "finding"),
    [
        (CardCounts(0, 0, 0), "undecided"),
        (CardCounts(0, 0, 60), "fall"),
        (CardCounts(0, 60, 0), "rise"),
        (CardCounts(300, 4, 5), "harmless"),
        (CardCounts(10, 0, 0), "undecided"),
        (CardCounts(200, 40, 20), "undecided"),
    ],
)
def test_each_finding_needs_evidence(cards: CardCounts, finding: str) -> None:
    verdict = judge(replace(BASIS, cards=cards), Tolerances())
    assert verdict.finding == finding
    assert bool(verdict.missing) is (finding == "undecided")


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({"rows": 60_000}, "40,000 more transactions"),
        ({"unpaired": 5_000}, "both versions scored only 95% of the transactions"),
        ({"share_evidence": 7.0}, "the canary decides another share of the cards than requested"),
        ({"cards": CardCounts(20, 1, 1), "full": True}, "evidence from more alerted cards"),
    ],
)
def test_what_is_missing_is_stated_and_prevents_a_confirmation(change: dict[str, object], missing: str) -> None:
    assert judge(BASIS, Tolerances()).finding == "harmless"
    verdict = judge(replace(BASIS, **change), Tolerances())  # type: ignore[arg-type]
    assert verdict.finding == "undecided"
    assert verdict.missing[0] == missing
    assert (verdict.more_rows is None) is ("more transactions" not in missing)


def test_a_lack_of_transactions_does_not_delay_a_withdrawal_and_a_wrong_share_prevents_it() -> None:
    bad = replace(BASIS, cards=CardCounts(200, 150, 2), rows=5_000, unpaired=5_000)
    assert judge(bad, Tolerances()).finding == "rise"
    assert judge(replace(bad, share_evidence=7.0), Tolerances()).finding == "undecided"


def test_a_declared_change_shifts_all_bounds() -> None:
    declared = Tolerances(expected_rise=0.10)
    assert declared.limits == pytest.approx((1.045, 1.155))
    assert declared.harmless == pytest.approx((0.935, 1.265))
    as_promised = Evidence.of(CardCounts(3_000, 400, 100), declared)
    assert as_promised.finding == "harmless"
    assert Evidence.of(CardCounts(3_000, 30, 30), declared).finding == "fall"


def test_wide_tolerances_leave_a_range_in_which_a_version_is_harmless() -> None:
    wide = Tolerances(max_rise=0.5, max_fall=0.3)
    assert wide.harmless == pytest.approx((0.7, 1.5))


def test_bursts_on_cards_cause_no_false_alarms_and_a_test_by_transaction_has_many() -> None:
    withdrawn, naive = false_alarms(3, 60, Traffic(), by_card)
    assert withdrawn == 0
    assert naive > 5


def test_without_bursts_the_test_by_card_needs_about_as_many_transactions_as_a_naive_one() -> None:
    ours, theirs = power(3, 15, by_card)
    assert ours <= 1.5 * theirs


def test_in_a_simulation_the_cards_of_a_burst_count_once() -> None:
    alerts = simulate(np.random.default_rng(5), Traffic(bursts=4))
    cards, transactions = by_card(alerts, 100_000), by_transaction(alerts, 100_000)
    assert sum(int(c[-1]) for c in cards) < sum(int(c[-1]) for c in transactions)
    assert ALPHA == 0.001
