"""Each alerted card is counted once, by its first alert, after a grace period; the counts depend only on the log."""

from __future__ import annotations

import numpy as np
import pytest

from stream_scorer.control.cards import AlertedCards, ArmShare
from stream_scorer.control.evidence import log_evidence_of_share
from stream_scorer.records import CardAlerts, CommonAlert, Disagreement

GRACE = 600_000
A, B, C = ("00000000000000aa", "00000000000000bb", "00000000000000cc")


def alerts(*rows: tuple[str, int | None, int | None]) -> CardAlerts:
    cards, this, other = ([row[i] for row in rows] for i in range(3))
    return CardAlerts(len(rows), 0, cards, this, other)  # type: ignore[arg-type]


def counts(found: AlertedCards) -> tuple[int, int, int]:
    return found.counts.both, found.counts.candidate_only, found.counts.baseline_only


def test_a_burst_on_one_card_is_one_observation() -> None:
    cards = AlertedCards(GRACE)
    for minute in range(25):
        cards.add(0, alerts((A, minute * 60_000, None)), minute * 60_000)
    assert counts(cards) == (0, 1, 0)
    cards.add(0, alerts((A, 90 * 60_000, None), (A, None, 95 * 60_000)), 100 * 60_000)
    cards.add(0, alerts(), 1_000 * 60_000)
    assert counts(cards) == (0, 1, 0)


def test_a_card_waits_for_its_grace_period_and_the_other_version_may_follow_within_it() -> None:
    cards = AlertedCards(GRACE)
    cards.add(0, alerts((A, 1_000, None), (B, None, 1_000), (C, 1_000, 1_000)), 1_000)
    assert (counts(cards), cards.waiting) == ((0, 0, 0), 3)
    cards.add(0, alerts((A, None, 1_000 + GRACE)), 1_000 + GRACE)
    cards.add(0, alerts((B, 1_001 + GRACE, None)), 1_001 + GRACE)
    assert (counts(cards), cards.waiting) == ((2, 0, 1), 0)


def test_an_alert_that_arrives_late_but_happened_first_moves_the_grace_period() -> None:
    cards = AlertedCards(GRACE)
    cards.add(0, alerts((A, 2_000, None)), 2_000)
    cards.add(0, alerts((A, None, 500)), 2_000)
    cards.add(0, alerts(), 501 + GRACE)
    assert counts(cards) == (1, 0, 0)


def test_partitions_have_their_own_event_time() -> None:
    cards = AlertedCards(GRACE)
    cards.add(0, alerts((A, 0, None)), 0)
    cards.add(1, alerts((B, 0, None)), 10 * GRACE)
    assert (counts(cards), cards.waiting) == ((0, 1, 0), 1)


def test_counts_do_not_depend_on_how_the_log_was_split_or_interleaved() -> None:
    rng = np.random.default_rng(1)
    n = 4_000
    at = np.sort(rng.integers(0, 50 * GRACE, n)).tolist()
    rows = [
        (int(rng.integers(4)), f"{rng.integers(900):016x}", time, bool(rng.random() < 0.7), bool(rng.random() < 0.7))
        for time in at
    ]
    found = []
    for size in (1, 7, 500):
        for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
            cards = AlertedCards(GRACE)
            for partition in order:
                mine = [row for row in rows if row[0] == partition]
                for low in range(0, len(mine), size):
                    part = mine[low : low + size]
                    listed = alerts(*((f"{partition}{c[1:]}", t if s else None, t if o else None)
                                      for _, c, t, s, o in part))  # fmt: skip
                    cards.add(partition, listed, max(row[2] for row in part))
            found.append((counts(cards), cards.waiting))
    assert len(set(found)) == 1
    assert min(found[0][0]) > 20


def test_cards_that_one_version_alerts_alone_keep_their_first_alert() -> None:
    cards = AlertedCards(GRACE)
    first = CardAlerts(3, 0, [A, B, C], [1_000, None, 2_000], [None, 1_500, None], ["a1", "b1", "c1"], [10, 20, 30])
    cards.add(0, first, 2_000)
    # An earlier alert that arrives later, and one of the baseline within the grace period.
    cards.add(0, CardAlerts(2, 0, [A, C], [500, None], [None, 2_100], ["a0", "c2"], [11, 31]), 2_100)
    cards.add(0, alerts(), 3_000 + GRACE)
    assert counts(cards) == (1, 1, 1)
    assert cards.disagreements == [Disagreement(500, "a0", 11, True), Disagreement(1_500, "b1", 20, False)]
    assert cards.common == [CommonAlert(2_000, "c1", 30)]


def test_memory_is_bounded_and_further_cards_are_not_counted() -> None:
    cards = AlertedCards(GRACE, max_cards=100)
    for i in range(500):
        cards.add(0, alerts((f"{i:016x}", i * GRACE, None)), i * GRACE)
    assert (counts(cards), cards.full, cards.waiting) == ((0, 100, 0), True, 0)
    waiting = AlertedCards(GRACE, max_cards=100)
    waiting.add(0, alerts(*((f"{i:016x}", 0, None) for i in range(500))), 0)
    assert (waiting.waiting, waiting.full) == (100, True)


@pytest.mark.parametrize(("canary", "expected"), [(0.1, False), (0.13, True), (0.05, True)])
def test_an_arm_with_another_share_than_requested_is_noticed(canary: float, expected: bool) -> None:
    share, rng = ArmShare(0.1, until=None), np.random.default_rng(3)
    arm = rng.random(5_000) < canary
    for i, inside in enumerate(arm.tolist()):
        share.add([f"{i:016x}"] * 2, [i, None], canary=inside)
    assert share.total == 5_000
    assert (log_evidence_of_share(share.inside, share.total, 0.1) > 6.9) is expected


def test_the_share_test_keeps_its_level_at_any_number_of_looks() -> None:
    rng = np.random.default_rng(4)
    alarms = 0
    for _ in range(300):
        inside = np.cumsum(rng.random(2_000) < 0.1)
        looks = [log_evidence_of_share(int(inside[n - 1]), n, 0.1) for n in range(20, 2_001, 20)]
        alarms += max(looks) > np.log(20)
    assert alarms <= 15 + 10
    assert log_evidence_of_share(99, 100, 1.0) == np.inf
    assert log_evidence_of_share(100, 100, 1.0) == 0.0


def test_cards_after_the_end_of_a_canary_say_nothing_about_its_share() -> None:
    share = ArmShare(0.5, until=1_000)
    share.add([A, B], [999, 1_000], canary=True)
    assert (share.inside, share.total) == (1, 1)
