"""The figures of labels of one window computed again from rows, without the monitor's code.

The definitions are those of `stream_scorer.monitor.rates` and `clustered` in words; scipy's distributions take the
place of the product's own loops. The settings of the bounds are the defaults of the monitor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from stream_scorer.arrays import Bools, Floats, Ints

LABELLED = ("fpr", "precision", "false_discovery_rate", "recall", "false_positives_per_fraud")
POSITIVE = {"review+block": ("review", "block"), "block": ("block",)}
UNREPORTED, MISSED, FALSE = 0.02, 0.05, 0.01
RARE, RARE_DEVIATIONS = 0.001, 3.0902
GROUPS = 32
# Fewer verified false positives, or frauds in the review sample, have no interval.
FEW = 5
# Points of the curve of label maturity: bins of which 24 make the label horizon.
POINTS = {"1/24": 1, "1/8": 3, "1/4": 6, "1/2": 12, "3/4": 18}
HORIZON_BINS = 24


class Recomputed(NamedTuple):
    """One figure. A field that is None must be absent, except `closed` and `final`, for which None allows both.

    Attributes:
        value: None if the monitor gives bounds only. statistics: those that are compared.
        labelled: whether it is a figure of labels; only these have `final`, an age and sources.
        newest: the newest time that can count for the age of labels, ms.
        between: smallest and largest numerator and denominator, if the order of two topics decides.
    """

    value: float | None
    numerator: int | None = None
    denominator: int | None = None
    low: float | None = None
    high: float | None = None
    interval: tuple[float, float] | None = None
    statistics: Mapping[str, float | None] = {}
    labelled: bool = False
    sources: Mapping[str, int] = {}
    closed: bool | None = None
    final: bool | None = None
    newest: int = 0
    between: tuple[int, int, int, int] | None = None


@dataclass
class Rows:
    """What the figures of labels need of each scored record ``(n,)``.

    Attributes:
        verdict: 1 fraud, 0 genuine, -1 silent; a duplicate is always silent.
        stated: review probability of the label, or NaN. drawn: that of the score, or NaN.
        group: random group of the card, -1 for none. rule: that of the policy, "" for none.
        source: that of the label. alone: by member, whether it alone would have alerted.
    """

    decision: NDArray[Any]
    value: Ints
    duplicate: Bools
    verdict: Ints
    stated: Floats
    drawn: Floats
    group: Ints
    rule: NDArray[Any]
    source: NDArray[Any]
    alone: dict[str, Bools]

    def take(self, rows: Ints) -> Rows:
        """These rows only."""
        columns = {name: getattr(self, name)[rows] for name in Rows.__annotations__ if name != "alone"}
        return replace(self, **columns, alone={name: flags[rows] for name, flags in self.alone.items()})

    def probability(self) -> Floats:
        """The probability that each transaction was picked for review, rounded as it is counted; NaN if unknown."""
        exact = np.maximum(np.where(self.decision == "approve", self.drawn, self.stated), 1e-6)
        return np.array([float(f"{p:.3g}") for p in exact.tolist()])


class _Counts(NamedTuple):
    """Counts of one positive set. `held`: silent negatives that were alerted. `wrong`: estimated false positives."""

    n: int
    duplicates: int
    tp: int
    fp: int
    fn: int
    tn: int
    unknown: int
    silent: int
    held: int
    wrong: float | None
    sampled: int = 0
    reviewed: int = 0
    reviewed_fraud: int = 0


def labelled_figures(rows: Rows, *, members: bool = True) -> dict[tuple[str, str], Recomputed]:
    """Every figure of labels of one window by metric and dimension, except those of maturity."""
    if not (rows.verdict >= 0).any():
        none = Recomputed(None, statistics={"no_labels": 1}, labelled=True)
        return {(metric, name): none for metric in LABELLED for name in POSITIVE}
    found: dict[tuple[str, str], Recomputed] = {}
    first = ~rows.duplicate
    overruled = False
    for name, decisions in POSITIVE.items():
        positive = np.isin(rows.decision, decisions)
        counts = _count(rows, positive, sample=True)
        overruled = _unreported(counts)[1]
        limits = _intervals(rows, decisions)
        for metric, figure in _rates(counts).items():
            value, interval = limits.get(metric, (None, None))
            value = figure.value if figure.value is not None else value
            found[metric, name] = figure._replace(value=value, interval=interval)
        found["fpr_money", name] = _money(rows, positive)
        for rule in sorted(set(rows.rule[first].tolist()) - {""}):
            part = rows.take(np.flatnonzero(first & (rows.rule == rule)))
            counts = _count(part, np.isin(part.decision, decisions), sample=False)
            found["segment_fpr", f"{name}/{rule}"] = _of_a_part(_false_positives(counts), overruled)
    for name, alerts in rows.alone.items() if members else ():
        counts = _count(rows, alerts, sample=False)
        # Silent ones that the ensemble alerted. The counts do not show which of them the member alerts.
        silent_alerts = int(((rows.decision != "approve") & (rows.verdict < 0)).sum())
        counts = counts._replace(held=min(silent_alerts, counts.silent))
        found["member_fpr", name] = _of_a_part(_false_positives(counts), overruled)
    return found


def maturity_figures(youngest: Ints, oldest: Ints, horizon_ms: int) -> dict[tuple[str, str], Recomputed]:
    """Points of the curve, from the least and greatest age of the labels of each labelled row, ms.

    The first label of a transaction counts; which one is first can depend on when its score came.
    """
    least, most = (
        np.minimum(np.maximum(ages, 0) * HORIZON_BINS // horizon_ms, 2 * HORIZON_BINS) for ages in (youngest, oldest)
    )

    def arrived(bins: int) -> tuple[int, int]:
        return int((most < bins).sum()), int((least < bins).sum())

    total = arrived(HORIZON_BINS)
    if not total[1]:
        return {}
    return {
        ("label_maturity", point): Recomputed(None, labelled=True, between=(*arrived(bins), *total))
        for point, bins in POINTS.items()
    }


def _count(rows: Rows, positive: Bools, *, sample: bool) -> _Counts:
    silent, fraud, genuine = rows.verdict < 0, rows.verdict == 1, rows.verdict == 0
    tp, fp, fn, tn = (
        int((side & kind).sum()) for side in (positive, ~positive) for kind in (fraud, genuine)
    )  # fmt: skip
    unknown = int((positive & silent).sum())
    wrong: float | None = float(fp)
    if unknown:
        weights = 1 / rows.probability()[positive & genuine] if sample else np.full(fp, np.nan)
        known = fp > 0 and not np.isnan(weights).any()
        wrong = min(float(weights.sum()), float(fp + unknown)) if known else None
    drawn = (rows.decision == "approve") & ~np.isnan(rows.drawn) & sample
    return _Counts(
        len(positive), int(rows.duplicate.sum()), tp, fp, fn, tn, unknown,
        int((~positive & silent).sum()), int((~positive & silent & (rows.decision != "approve")).sum()), wrong,
        int((drawn & ~rows.duplicate).sum()), int((drawn & ~silent).sum()), int((drawn & fraud).sum()),
    )  # fmt: skip


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator > 0 else None


def _clipped(value: float | None, low: float | None, high: float | None) -> float | None:
    return None if value is None or low is None or high is None else min(max(value, low), high)


@cache
def _errors(seen: int, doubtful: int, share: float) -> int:
    """How many `doubtful` verdicts may be wrong at most if `seen` verdicts were right."""
    errors = 0
    while errors < doubtful and stats.binom.sf(errors, seen + errors + 1, share) >= RARE:
        errors += 1
    return errors


def _unreported(c: _Counts) -> tuple[int, bool]:
    """The most silent negatives that may be fraud, and whether the review sample contradicts the assumption."""
    approved, sampled = c.silent - c.held, max(c.sampled, c.reviewed)
    if c.reviewed_fraud:
        least = stats.beta.ppf(RARE, c.reviewed_fraud, sampled - c.reviewed_fraud + 1)
        if least > UNREPORTED:
            most = c.reviewed_fraud + sampled - c.reviewed
            share = 1.0 if most == sampled else float(stats.beta.ppf(1 - RARE, most + 1, sampled - most))
            return c.held + math.ceil(share * approved), True
    mean = approved * UNREPORTED
    return c.held + min(approved, math.ceil(mean + RARE_DEVIATIONS * math.sqrt(mean * (1 - UNREPORTED)) + 1)), False


def _false_positives(c: _Counts) -> Recomputed:
    y, overruled = _unreported(c)
    genuine = c.n - c.tp - c.fn
    low = _ratio(c.fp - _errors(c.tp, c.fp, MISSED), genuine + _errors(c.tn, c.fn, FALSE))
    positive = c.fp + _errors(c.fp, c.tp, FALSE) + c.unknown
    negative = c.tn - _errors(c.fn, c.tn, MISSED) + c.silent - y - c.duplicates
    high = _ratio(positive, positive + negative) if negative > 0 else 1.0
    value = None
    if c.wrong is not None:
        value = _ratio(c.wrong, c.n - c.fn - (c.tp + c.fp + c.unknown - c.wrong))
    statistics = {
        "face_low": _ratio(c.fp, genuine), "face_high": _ratio(c.fp + c.unknown, genuine), "unknown": c.unknown,
        "fraud": c.tp + c.fn, "unreported_at_most": y, "cap_overruled": int(overruled), "reviewed": c.reviewed,
        "reviewed_fraud": c.reviewed_fraud, "sampled": c.sampled, "unreported_cap": UNREPORTED,
    }  # fmt: skip
    return Recomputed(
        _clipped(value, low, high), c.fp, genuine, low, high, statistics=statistics, labelled=True
    )  # fmt: skip


def _of_a_part(rate: Recomputed, overruled: bool) -> Recomputed:
    """The rate of a part of a window: without the allowances of the whole window it has no bounds."""
    if not overruled:
        return rate
    return rate._replace(value=None, low=None, high=None, statistics={"cap_overruled": 1})


def _rates(c: _Counts) -> dict[str, Recomputed]:
    alerted, fraud = c.tp + c.fp + c.unknown, c.tp + c.fn
    y, _ = _unreported(c)

    def rate(
        numerator: int, denominator: int, low: float | None, high: float | None, value: float | None
    ) -> Recomputed:
        statistics = {"unknown": c.unknown}
        return Recomputed(value, numerator, denominator, low, high, statistics=statistics, labelled=True)

    def share(part: int, estimate: float | None) -> Recomputed:
        low, high = _ratio(part, alerted), _ratio(part + c.unknown, alerted)
        value = None if estimate is None else _clipped(_ratio(estimate, alerted), low, high)
        return rate(part, alerted, low, high, value)

    def bounded(part: int, whole: int, low: float | None, high: float | None) -> Recomputed:
        return rate(part, whole, low, high, low if low == high else None)

    return {
        "fpr": _false_positives(c),
        "precision": share(c.tp, None if c.wrong is None else alerted - c.wrong),
        "false_discovery_rate": share(c.fp, c.wrong),
        "recall": bounded(c.tp, fraud, _ratio(c.tp, fraud + y), _ratio(c.tp + c.unknown, fraud + c.unknown)),
        "false_positives_per_fraud": bounded(
            c.fp, c.tp, _ratio(c.fp, c.tp + c.unknown), _ratio(c.fp + c.unknown, c.tp)
        ),
    }


def _money(rows: Rows, positive: Bools) -> Recomputed:
    wrong = int(rows.value[positive & (rows.verdict == 0)].sum())
    caught = int(rows.value[positive & (rows.verdict == 1)].sum())
    genuine = int(rows.value.sum() - rows.value[rows.verdict == 1].sum())
    unknown = max(int(rows.value[positive].sum()) - wrong - caught, 0)
    low, high = _ratio(wrong, genuine), _ratio(wrong + unknown, genuine)
    value = low if low == high else None
    return Recomputed(value, wrong, genuine, low, high, statistics={"unknown": unknown}, labelled=True)


def _weights(rows: Rows, first: Bools, decision: str) -> Floats | None:
    """How many each verified false positive of one decision stands for; None if that is unknown."""
    chosen = first & (rows.decision == decision)
    genuine = chosen & (rows.verdict == 0)
    weights = np.zeros(len(first))
    if not (chosen & (rows.verdict < 0)).any():
        weights[genuine] = 1.0
        return weights
    probability = rows.probability()
    if np.isnan(probability[genuine]).any():
        return None
    weights[genuine] = np.round(1_000 / probability[genuine]) / 1_000
    return weights


def _intervals(rows: Rows, decisions: tuple[str, ...]) -> dict[str, tuple[float, tuple[float, float]]]:
    """Value and interval by metric: the jackknife over the random groups of cards."""
    first = ~rows.duplicate & (rows.group >= 0)
    positive = np.isin(rows.decision, decisions)
    weights = {d: _weights(rows, first, d) for d in ("review", "block")}
    mine = [weights[d] for d in decisions]
    if int((positive & (rows.verdict == 0)).sum()) < FEW or not first.any() or any(w is None for w in mine):
        return {}
    wrong = np.sum([w for w in mine if w is not None], axis=0)

    def without_each(values: Any) -> Floats:
        """The sums without each group, and the sum of all."""
        by_group = np.bincount(rows.group[first], np.asarray(values, dtype=np.float64)[first], GROUPS)
        return np.append(by_group.sum() - by_group, by_group.sum())

    alerted, fp = without_each(positive), without_each(wrong)
    approved_fraud = without_each(~positive & (rows.verdict == 1))
    ratios = {
        "fpr": (fp, without_each(first) - approved_fraud - (alerted - fp)),
        "precision": (alerted - fp, alerted),
        "false_discovery_rate": (fp, alerted),
    }
    drawn = first & (rows.decision == "approve") & ~np.isnan(rows.drawn)
    caught = drawn & (rows.verdict == 1)
    every = [w for w in weights.values() if w is not None]
    if len(every) == len(weights) and caught.sum() >= FEW and (rows.verdict[drawn] >= 0).all():
        missed = np.zeros(len(first))
        missed[caught] = np.round(1_000 / rows.probability()[caught]) / 1_000
        all_fraud = without_each((rows.decision != "approve") - np.sum(every, axis=0)) + without_each(missed)
        ratios["recall"] = (alerted - fp, all_fraud)
    found = {metric: _jackknife(*ratio) for metric, ratio in ratios.items()}
    return {metric: limits for metric, limits in found.items() if limits is not None}


def _jackknife(numerator: Floats, denominator: Floats) -> tuple[float, tuple[float, float]] | None:
    if (denominator <= 0).any():
        return None
    rate = numerator / denominator
    value = float(rate[-1])
    error = math.sqrt((GROUPS - 1) / GROUPS * float(((rate[:-1] - value) ** 2).sum()))
    if not 0 < value < 1 or error == 0:
        return None
    half = float(stats.t.ppf(0.975, GROUPS - 1)) * error / (value * (1 - value))
    centre = float(special.logit(value))
    return value, (float(special.expit(centre - half)), float(special.expit(centre + half)))
