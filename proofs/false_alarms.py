"""false-alarms: versions that change nothing are hardly ever withdrawn, although alerts come in bursts.

`N` null promotions are simulated: both versions alert 1 % of the transactions and disagree on a fifth of the alerts,
and each version alone alerts four bursts of 25 transactions on one card per 100,000 transactions. The product counts
the cards (`control/cards.py`) and judges after every 500 transactions (`control/verdict.py`). At most 1 in 1,000
promotions may be withdrawn, rises and falls together. The same test by transaction, on the same data, withdraws many.

Half as many promotions again have a change that is exactly at the tolerance, up or down, which is the hardest case that
must not be withdrawn. A tenth as many have alerts on 500 cards only, so that most cards alert several times.

Power: without bursts, a rise of 17 % takes at most 1.5 times the transactions of the naive test (one-sided, by
transaction). A version that stops alerting is withdrawn, and never confirmed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from proofs.kit import Context, Result
from stream_scorer.arrays import Bools, Ints
from stream_scorer.control.cards import AlertedCards
from stream_scorer.control.evidence import log_evidence
from stream_scorer.control.verdict import ALPHA, CONFIRM_EVIDENCE, Tolerances, log_evidences
from stream_scorer.records import CardAlerts

N = 10_000
ROWS, LOOK = 100_000, 500
ALERT_RATE, DISAGREE = 0.01, 0.2
BURSTS, BURST_ALERTS = 4, 25
# One transaction per 100 ms: 100,000 transactions take 2.8 hours, and the grace period is 6,000 transactions.
ROW_MS, GRACE_MS = 100, 600_000
CARDS, FEW_CARDS = 1_000_000, 500
POWER_RUNS, POWER_ROWS, POWER_RISE = 300, 400_000, 0.17
MAX_POWER_RATIO = 1.5
# A promotion at the tolerance is withdrawn with probability ALPHA at most; 5,000 with more than 13 withdrawals have a
# probability of less than 0.001.
MAX_AT_TOLERANCE = 13
Counts = tuple[Ints, Ints, Ints]


@dataclass(frozen=True)
class Traffic:
    """What one promotion looks like: `rise` of alerts and bursts, over `rows` transactions of `cards` cards."""

    rise: float = 0.0
    bursts: int = BURSTS
    rows: int = ROWS
    cards: int = CARDS


@dataclass(frozen=True)
class Alerts:
    """The alerts of one promotion in order of event time ``(n,)``: place of the transaction, card, by which version."""

    row: Ints
    card: Ints
    candidate: Bools
    baseline: Bools


def run(context: Context) -> Result:
    """See the module."""
    n, result = context.n or N, Result()
    counts = by_transaction if context.broken else by_card
    withdrawn, naive = false_alarms(context.seed, n, Traffic(), counts)
    allowed = n * ALPHA
    result.figures |= {"promotions": n, "withdrawn": withdrawn, "withdrawn_by_transaction": naive, "allowed": allowed}
    context.say(f"{withdrawn} of {n:,} null promotions are withdrawn by card, {naive} by transaction")
    result.check("at most 1 in 1,000 null promotions is withdrawn", withdrawn <= max(allowed, 1))
    result.check("the same test by transaction fails on the same data", naive > 10 * max(allowed, 1))
    few = n // 10
    repeated, _ = false_alarms(context.seed + 2, few, Traffic(cards=FEW_CARDS), counts)
    result.figures["withdrawn_with_few_cards"] = repeated
    result.check("nor where most cards alert several times", repeated <= max(few * ALPHA * 3, 1))
    edge = 0
    for rise in (Tolerances().max_rise, -Tolerances().max_fall):
        edge += false_alarms(context.seed + 1, n // 4, Traffic(rise=rise), counts)[0]
    result.figures["withdrawn_at_the_tolerance"] = edge
    result.check("a change at the tolerance is hardly ever withdrawn", edge <= max(MAX_AT_TOLERANCE * n / N, 2))
    ours, theirs = power(context.seed, max(min(POWER_RUNS, n // 10), 30), counts)
    result.figures |= {
        "transactions_to_detect_17_percent": round(ours),
        "naive_transactions": round(theirs),
        "ratio": round(ours / theirs, 2),
    }
    result.check(
        f"a rise of 17 % takes at most {MAX_POWER_RATIO} times the naive test", ours <= MAX_POWER_RATIO * theirs
    )
    silent = simulate(np.random.default_rng(context.seed), Traffic(rise=-1.0))
    logs = np.stack(log_evidences(*counts(silent, ROWS), Tolerances()))
    result.check("a version that stops alerting is withdrawn", bool((logs[1] >= -np.log(ALPHA)).any()))
    result.check("and never confirmed", bool((logs[2:].min(axis=0) < np.log(CONFIRM_EVIDENCE)).all()))
    return result


def simulate(rng: np.random.Generator, traffic: Traffic) -> Alerts:
    """The alerts of both versions. Bursts come in addition, from each version alone."""
    rate = ALERT_RATE
    both = rate * (1 - DISAGREE) if traffic.rise > -DISAGREE else rate * (1 + traffic.rise)
    cells = np.array([both, rate * (1 + traffic.rise) - both, rate - both])
    numbers = rng.binomial(traffic.rows, cells)
    candidate = np.repeat([True, True, False], numbers)
    baseline = np.repeat([True, False, True], numbers)
    row = rng.integers(0, traffic.rows, len(candidate))
    card = rng.integers(0, traffic.cards, len(candidate))
    for mine in (True, False):
        for _ in range(rng.poisson(traffic.bursts * traffic.rows / ROWS)):
            start = int(rng.integers(0, traffic.rows))
            row = np.concatenate([row, start + np.arange(BURST_ALERTS) * 4])
            card = np.concatenate([card, np.full(BURST_ALERTS, rng.integers(0, traffic.cards))])
            candidate = np.concatenate([candidate, np.full(BURST_ALERTS, mine)])
            baseline = np.concatenate([baseline, np.full(BURST_ALERTS, not mine)])
    order = np.argsort(row, kind="stable")
    return Alerts(row[order], card[order], candidate[order], baseline[order])


def by_card(alerts: Alerts, rows: int) -> Counts:
    """Cumulative counts of cards at every look, by the product's classes."""
    cards, looks = AlertedCards(GRACE_MS), np.arange(LOOK, rows + LOOK, LOOK)
    ends = np.searchsorted(alerts.row, looks)
    at = (alerts.row * ROW_MS).tolist()
    candidate = [time if alert else None for time, alert in zip(at, alerts.candidate.tolist(), strict=True)]
    baseline = [time if alert else None for time, alert in zip(at, alerts.baseline.tolist(), strict=True)]
    names = [f"{card:x}" for card in alerts.card.tolist()]
    found, start = [], 0
    for look, end in zip(looks.tolist(), ends.tolist(), strict=True):
        part = CardAlerts(LOOK, 0, names[start:end], candidate[start:end], baseline[start:end])
        cards.add(0, part, look * ROW_MS)
        found.append((cards.counts.both, cards.counts.candidate_only, cards.counts.baseline_only))
        start = end
    table = np.array(found, dtype=np.int64)
    return table[:, 0], table[:, 1], table[:, 2]


def by_transaction(alerts: Alerts, rows: int) -> Counts:
    """Cumulative counts of transactions at every look."""
    ends = np.searchsorted(alerts.row, np.arange(LOOK, rows + LOOK, LOOK))
    cells = (
        alerts.candidate & alerts.baseline,
        alerts.candidate & ~alerts.baseline,
        ~alerts.candidate & alerts.baseline,
    )
    both, candidate_only, baseline_only = (np.concatenate([[0], np.cumsum(cell)])[ends] for cell in cells)
    return both, candidate_only, baseline_only


def withdrawn_at(counts: Counts, tolerances: Tolerances) -> int | None:
    """The number of transactions at the first look with a withdrawal, by the product's evidence; None without one."""
    rise, fall, _, _ = log_evidences(*counts, tolerances)
    hits = np.flatnonzero(np.maximum(rise, fall) >= -np.log(ALPHA))
    return None if not len(hits) else (int(hits[0]) + 1) * LOOK


def false_alarms(seed: int, n: int, traffic: Traffic, counts: Callable[[Alerts, int], Counts]) -> tuple[int, int]:
    """Of `n` promotions, how many are withdrawn with `counts`, and how many by transaction."""
    found = naive = 0
    for number in range(n):
        alerts = simulate(np.random.default_rng((seed, number, round(1_000 * traffic.rise) % 10_000)), traffic)
        found += withdrawn_at(counts(alerts, traffic.rows), Tolerances()) is not None
        naive += withdrawn_at(by_transaction(alerts, traffic.rows), Tolerances()) is not None
    return found, naive


def power(seed: int, runs: int, counts: Callable[[Alerts, int], Counts]) -> tuple[float, float]:
    """Median transactions until a rise is detected, without bursts: by `counts`, and by the naive one-sided test."""
    traffic = Traffic(rise=POWER_RISE, bursts=0, rows=POWER_ROWS)
    ours, theirs = [], []
    for number in range(runs):
        alerts = simulate(np.random.default_rng((seed, number, 7)), traffic)
        ours.append(withdrawn_at(counts(alerts, traffic.rows), Tolerances()) or traffic.rows)
        logs = log_evidence(*by_transaction(alerts, traffic.rows), 1 + Tolerances().max_rise)
        hits = np.flatnonzero(logs >= -np.log(ALPHA))
        theirs.append((int(hits[0]) + 1) * LOOK if len(hits) else traffic.rows)
    return float(np.median(ours)), float(np.median(theirs))
