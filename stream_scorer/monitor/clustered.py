"""Intervals of rates, clustered by card: the jackknife over random groups of cards (ADR 0032).

A keyed hash puts every card into one of 32 groups, in every pane and version (`Score.card_group`). Cells count
transactions, labels and weights by group, so groups add up over panes like all counts, and all alerts of a card are in
one group however long the window is. Leaving out one group at a time gives 32 values of a rate. Their spread is the
variance between cards: a burst of 25 alerts on one card changes one of the values, as one observation does.

What an interval covers: the rate that other cards of the same traffic, and another draw of the reviewed alerts, would
have given. Use it to compare windows and versions. It does not cover unreported fraud or wrong verdicts of
reviewers; the bounds do (`rates`), for the window itself.

Sources: Wolter, Introduction to Variance Estimation (2007), chapters 2 and 4; Kott, "Delete-a-group jackknife", J.
Official Statistics 17 (2001). The interval is symmetric in log-odds, so it stays within 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import special

from stream_scorer.arrays import Floats
from stream_scorer.monitor.tally import WEIGHT_UNIT
from stream_scorer.records import CARD_GROUPS, DECISIONS, Decision

# Share of the intervals that cover what they are meant to.
COVERAGE = 0.95
# Fewer verified false positives give no interval: most groups have none, and the spread between groups says little.
MIN_FALSE_POSITIVES = 5
# Fewer frauds in the review sample give no point estimate of the recall.
MIN_SAMPLED_FRAUD = 5


class Interval(NamedTuple):
    """A rate and the limits of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Groups:
    """Sums of one positive set by card group; the last entry of each array ``(groups + 1,)`` is 0, for "none".

    Attributes:
        total: transactions. positive: those in the set. fp: estimated false positives. fn: labelled frauds outside.
        alerted_fraud: estimated frauds among all alerted transactions. missed: frauds of the review sample, weighed.
    """

    total: Floats
    positive: Floats
    fp: Floats
    fn: Floats
    alerted_fraud: Floats
    missed: Floats


def group_sums(counts: Mapping[str, int], positive: Collection[Decision]) -> Groups | None:
    """The sums of `counts` by group; None without groups, or if false positives have no review probability."""
    table = _table(counts)
    by_decision = {d: table("gd", d) for d in DECISIONS}
    if not any(column.any() for column in by_decision.values()):
        return None
    genuine = {d: _genuine(counts, table, d, by_decision[d]) for d in DECISIONS if d != "approve"}
    wrong = [genuine[d] for d in positive if d in genuine]
    if any(column is None for column in wrong):
        return None
    fp = np.sum([column for column in wrong if column is not None], axis=0)
    every = [by_decision[d] - column for d, column in genuine.items() if column is not None]
    complete = len(every) == len(genuine)
    return Groups(
        total=np.sum(list(by_decision.values()), axis=0),
        positive=np.sum([by_decision[d] for d in positive], axis=0),
        fp=fp,
        fn=np.sum([table("go", f"{d}:fraud") for d in DECISIONS if d not in positive], axis=0),
        alerted_fraud=np.sum(every, axis=0) if complete else np.full(CARD_GROUPS + 1, np.nan),
        missed=table("gw", "approve:fraud") / WEIGHT_UNIT,
    )


def _table(counts: Mapping[str, int]) -> Callable[[str, str], Floats]:
    def column(kind: str, what: str) -> Floats:
        values = [counts.get(f"{kind}:{what}:{group}", 0) for group in range(CARD_GROUPS)]
        return np.array([*values, 0], dtype=np.float64)

    return column


def _genuine(
    counts: Mapping[str, int], table: Callable[[str, str], Floats], decision: str, decided: Floats
) -> Floats | None:
    """Estimated genuine transactions of one decision by group: all if they are labelled, otherwise weighed."""
    fraud, genuine = table("go", f"{decision}:fraud"), table("go", f"{decision}:genuine")
    if decided.sum() == fraud.sum() + genuine.sum():
        return genuine
    prefix = f"op:{decision}:genuine:"
    weighed = sum(number for name, number in counts.items() if name.startswith(prefix))
    return table("gw", f"{decision}:genuine") / WEIGHT_UNIT if weighed == genuine.sum() else None


def intervals(counts: Mapping[str, int], positive: Collection[Decision]) -> dict[str, Interval]:
    """The intervals of the rates of one window and positive set; a rate without one is absent."""
    groups = group_sums(counts, positive)
    verified = sum(counts.get(f"o:{d}:genuine", 0) for d in positive)
    if groups is None or verified < MIN_FALSE_POSITIVES:
        return {}
    # Row g is the window without group g; the last row is the window.
    total, alerted, fp, fn, fraud, missed = (
        column.sum() - column
        for column in (groups.total, groups.positive, groups.fp, groups.fn, groups.alerted_fraud, groups.missed)
    )
    found = {
        "fpr": _interval(fp, total - fn - (alerted - fp)),
        "precision": _interval(alerted - fp, alerted),
        "false_discovery_rate": _interval(fp, alerted),
    }
    if _sample_complete(counts):
        found["recall"] = _interval(alerted - fp, fraud + missed)
    return {name: interval for name, interval in found.items() if interval is not None}


def _sample_complete(counts: Mapping[str, int]) -> bool:
    """Whether every transaction of the review sample is labelled, and enough of them are fraud."""
    sums = {
        label: sum(n for name, n in counts.items() if name.startswith(f"op:approve:{label}:"))
        for label in ("fraud", "genuine")
    }
    return sums["fraud"] >= MIN_SAMPLED_FRAUD and sum(sums.values()) >= counts.get("rs", 0)


def _interval(numerator: Floats, denominator: Floats) -> Interval | None:
    """The interval of a ratio whose rows are: without each group, and the whole."""
    if not np.isfinite(denominator).all() or (denominator <= 0).any():
        return None
    rate = numerator / denominator
    value, left_out = float(rate[-1]), rate[:-1]
    variance = (CARD_GROUPS - 1) / CARD_GROUPS * float(((left_out - value) ** 2).sum())
    if not 0.0 < value < 1.0 or variance <= 0.0:
        return None
    quantile = float(special.stdtrit(CARD_GROUPS - 1, 0.5 + COVERAGE / 2))
    centre = math.log(value / (1 - value))
    half = quantile * math.sqrt(variance) / (value * (1 - value))
    return Interval(value, float(special.expit(centre - half)), float(special.expit(centre + half)))
