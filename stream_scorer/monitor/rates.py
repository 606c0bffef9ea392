"""Rates of a window from its counts and labels: false positives, precision and recall, each with valid bounds.

A window has N transactions (without duplicates). Positive means that the decision is in the policy's positive set. A
silent transaction has no label. A silent *positive* may be fraud or genuine, as a blocked transaction never gets a
chargeback. A silent *negative* is genuine unless its fraud was never reported.

Bounds of the false-positive rate
---------------------------------
Write FP and TP for positives labelled genuine and fraud, FN and TN for negatives labelled fraud and genuine, U and S
for silent positives and negatives, F = TP + FN. At face value (labels are right, silent approvals are genuine) the rate
lies between ``FP / (N - F)`` and ``(FP + U) / (N - F)``. Both can miss the truth: the upper one as soon as every
positive is labelled and one approved fraud is never reported, both if reviewers err. So let x of the U be genuine and y
of the S be fraud, and let a of the FP and c of the TN be fraud, b of the TP and d of the FN be genuine. The truth is

    rate = P / (P + Q),   P = FP - a + b + x,   Q = TN - c + d + S - y

which rises with P and falls with Q. So, whatever the eight numbers are,

    (FP - a) / (N - F + d)  <=  rate  <=  (FP + b + U) / (FP + b + U + TN - c + S - y)

with each of a, b, c, d, y at its largest: on the left P >= FP - a, and ``P + Q`` at x = 0 is at most ``N - F + d``.
The monitor reports both, and the face values too. The five bounds are:

* y: a silent approved transaction is fraud with probability at most `unreported_cap`: prevalence times the unreported
  share at label ages beyond the horizon, prevalence before. The bound is the number exceeded in one window of a
  thousand. Silent transactions that were alerted but are no positives (held for review, under the positive set {block})
  get no chargeback either, so all of them may be in y.
  Evidence replaces the assumption: the random review sample of approved transactions, which the scorer draws (ADR
  0032). If its exact lower limit is above the cap, its upper limit is used. Drawn transactions without a label count as
  genuine in the lower limit and as fraud in the upper one.
* a and c: reviewers call fraud genuine with probability at most `reviewer_miss`; a is the largest number of misses
  among ``TP + a`` that is not rarer than one window in a thousand. b and d likewise with `reviewer_false`.
* Duplicates count in the decisions but have no outcome, so the right side excludes them from Q.

With cap and error rates 0, no transactions held for review and no fraud in the review sample, the bounds equal the face
values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from scipy import special

# One window in a thousand may fall outside an allowance: the level of each, and the normal quantile that belongs to it.
LEVEL = 0.001
LEVEL_Z = 3.0902

Statistics = dict[str, float | int | None]


@dataclass(frozen=True)
class Assumptions:
    """Probabilities that the data do not contain. Every figure that depends on them reports them.

    Attributes:
        unreported_cap: that a silent approved transaction is fraud; by default several times the prevalence of fraud.
        reviewer_miss: that a reviewer calls fraud genuine.
        reviewer_false: that a reviewer calls a genuine transaction fraud.
    """

    unreported_cap: float = 0.02
    reviewer_miss: float = 0.05
    reviewer_false: float = 0.01


DEFAULT_ASSUMPTIONS = Assumptions()


@dataclass(frozen=True)
class Labelled:
    """Counts of one window under one positive set. `n_*` count transactions, the others labels."""

    n_positive: int
    n_negative: int
    duplicates: int = 0
    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0
    # Silent negatives that were alerted all the same: under the positive set {block}, those held for review.
    held_silent: int = 0
    # Labelled genuine positives by the probability with which they were picked for review.
    fp_by_probability: Mapping[float, int] = field(default_factory=dict)
    # Approved transactions drawn at random for review and labelled, how many of them were fraud, and all drawn ones.
    reviewed_negative: int = 0
    reviewed_negative_fraud: int = 0
    sampled: int = 0

    @property
    def total(self) -> int:
        """Transactions N. Labels may run ahead of summaries by a moment: then there are at least as many as labels."""
        return max(self.n_positive, self.tp + self.fp) + max(self.n_negative, self.fn + self.tn)

    @property
    def fraud(self) -> int:
        """Transactions labelled fraud, F."""
        return self.tp + self.fn

    @property
    def unknown(self) -> int:
        """Silent positives, U."""
        return max(self.n_positive - self.tp - self.fp, 0)

    @property
    def silent(self) -> int:
        """Silent negatives, S."""
        return max(self.n_negative - self.fn - self.tn, 0)


@dataclass(frozen=True)
class Rate:
    """A point estimate (None where only bounds exist), its bounds, and the counts of the lower one."""

    value: float | None
    low: float | None
    high: float | None
    numerator: int
    denominator: int
    statistics: Statistics


def ratio(numerator: float, denominator: float) -> float | None:
    """The quotient, or None where there is nothing to divide by."""
    return numerator / denominator if denominator > 0 else None


def unreported_fraud(counts: Labelled, cap: float) -> tuple[int, bool]:
    """Largest number of silent negatives that may be fraud, and whether evidence overruled the assumption."""
    held = min(counts.held_silent, counts.silent)
    approved = counts.silent - held
    fraud, sampled = counts.reviewed_negative_fraud, max(counts.sampled, counts.reviewed_negative)
    overruled = fraud > 0 and binomial_limits(fraud, sampled)[0] > cap
    if overruled:
        open_ = sampled - counts.reviewed_negative
        return held + math.ceil(binomial_limits(fraud + open_, sampled)[1] * approved), True
    return held + at_most(approved, cap), False


def at_most(trials: int, share: float) -> int:
    """A number of successes that is exceeded less than once in a thousand: mean, 3.09 deviations, and one."""
    if share <= 0.0:
        return 0
    return min(trials, math.ceil(trials * share + LEVEL_Z * math.sqrt(trials * share * (1 - share)) + 1))


def errors_at_most(seen: int, doubtful: int, share: float) -> int:
    """How many of `doubtful` verdicts may be wrong, where each could go wrong with probability `share`, `seen` did not.

    The largest k such that k or more errors in ``seen + k`` verdicts are not rarer than `LEVEL`.
    """
    if share <= 0.0:
        return 0
    low, high = 0, doubtful
    while low < high:
        middle = (low + high + 1) // 2
        # bdtrc: the probability of more than so many successes.
        if special.bdtrc(middle - 1, seen + middle, share) >= LEVEL:
            low = middle
        else:
            high = middle - 1
    return low


def false_positive_rate(counts: Labelled, assumed: Assumptions) -> Rate:
    """False positives among genuine transactions: bounds as argued above.

    The point estimate weighs each verified false positive by 1 / review probability (Horvitz and Thompson, JASA 1952);
    the other positives count as fraud. It exists if every positive is labelled, or if every verified false positive
    carries its probability and there is one.
    """
    y, overruled = unreported_fraud(counts, assumed.unreported_cap)
    a = errors_at_most(counts.tp, counts.fp, assumed.reviewer_miss)
    b = errors_at_most(counts.fp, counts.tp, assumed.reviewer_false)
    c = errors_at_most(counts.fn, counts.tn, assumed.reviewer_miss)
    d = errors_at_most(counts.tn, counts.fn, assumed.reviewer_false)
    genuine = counts.total - counts.fraud
    positive = counts.fp + b + counts.unknown
    negative = counts.tn - c + counts.silent - y - counts.duplicates
    low = ratio(counts.fp - a, genuine + d)
    # Without a possible genuine negative, every rate is possible.
    high = ratio(positive, positive + negative) if negative > 0 else (1.0 if counts.total else None)
    return Rate(
        value=_within(_false_positive_share(counts), low, high),
        low=low,
        high=high,
        numerator=counts.fp,
        denominator=genuine,
        statistics={
            "face_low": ratio(counts.fp, genuine),
            "face_high": ratio(counts.fp + counts.unknown, genuine),
            "unknown": counts.unknown,
            "fraud": counts.fraud,
            "unreported_at_most": y,
            "cap_overruled": int(overruled),
            "reviewed": counts.reviewed_negative,
            "reviewed_fraud": counts.reviewed_negative_fraud,
            "sampled": counts.sampled,
            "unreported_cap": assumed.unreported_cap,
            "reviewer_miss": assumed.reviewer_miss,
            "reviewer_false": assumed.reviewer_false,
        },
    )


def estimated_false_positives(counts: Labelled) -> float | None:
    """The false positives, labelled or not, estimated from the labelled ones and their review probabilities."""
    if counts.unknown == 0:
        return float(counts.fp)
    weighed = sum(counts.fp_by_probability.values())
    if counts.fp == 0 or weighed != counts.fp or any(not 0.0 < p <= 1.0 for p in counts.fp_by_probability):
        return None
    return min(sum(number / p for p, number in counts.fp_by_probability.items()), float(counts.fp + counts.unknown))


def _false_positive_share(counts: Labelled) -> float | None:
    positive = estimated_false_positives(counts)
    if positive is None:
        return None
    alerted = counts.tp + counts.fp + counts.unknown
    return ratio(positive, counts.total - counts.fn - (alerted - positive))


def _within(value: float | None, low: float | None, high: float | None) -> float | None:
    return None if value is None or low is None or high is None else min(max(value, low), high)


def precision(counts: Labelled) -> Rate:
    """Fraud among positives, labels at face value; the silent ones decide between the bounds."""
    alerted = counts.tp + counts.fp + counts.unknown
    low, high = ratio(counts.tp, alerted), ratio(counts.tp + counts.unknown, alerted)
    wrong = estimated_false_positives(counts)
    value = None if wrong is None else _within(ratio(alerted - wrong, alerted), low, high)
    return Rate(value, low, high, counts.tp, alerted, {"unknown": counts.unknown})


def false_discovery_rate(counts: Labelled) -> Rate:
    """Genuine transactions among positives: one minus precision, with its own counts."""
    alerted = counts.tp + counts.fp + counts.unknown
    low, high = ratio(counts.fp, alerted), ratio(counts.fp + counts.unknown, alerted)
    wrong = estimated_false_positives(counts)
    value = None if wrong is None else _within(ratio(wrong, alerted), low, high)
    return Rate(value, low, high, counts.fp, alerted, {"unknown": counts.unknown})


def recall(counts: Labelled, assumed: Assumptions) -> Rate:
    """Positives among fraud. Least if no silent positive and as many silent negatives as may be are fraud."""
    unreported, _ = unreported_fraud(counts, assumed.unreported_cap)
    low = ratio(counts.tp, counts.fraud + unreported)
    high = ratio(counts.tp + counts.unknown, counts.fraud + counts.unknown)
    return Rate(
        low if low == high else None,
        low,
        high,
        counts.tp,
        counts.fraud,
        {"unknown": counts.unknown, "unreported_at_most": unreported},
    )


def false_positives_per_fraud(counts: Labelled) -> Rate:
    """Genuine transactions alerted for each fraud caught; no bound above without a caught fraud."""
    low = ratio(counts.fp, counts.tp + counts.unknown)
    high = ratio(counts.fp + counts.unknown, counts.tp)
    return Rate(low if low == high else None, low, high, counts.fp, counts.tp, {"unknown": counts.unknown})


def binomial_limits(successes: int, trials: int, level: float = LEVEL) -> tuple[float, float]:
    """Exact (Clopper-Pearson) limits of a share, each side at `level`.

    Source: Clopper and Pearson, Biometrika 26 (1934).
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} of {trials}")
    low = 0.0 if successes == 0 else float(special.betaincinv(successes, trials - successes + 1, level))
    high = 1.0 if successes == trials else float(special.betainccinv(successes + 1, trials - successes, level))
    return low, high
