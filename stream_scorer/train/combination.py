"""Fits the combination of members and its thresholds, for members that `train` fits and for members made elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from stream_scorer.arrays import Bools, Floats, Ints
from stream_scorer.ensemble.combine import Combiner
from stream_scorer.ensemble.compose import choose_ranks
from stream_scorer.ensemble.links import logit
from stream_scorer.ensemble.manifest import (
    Calibrator,
    CombinerSpec,
    IncompleteCalibrator,
    Link,
    Median,
    NoCalibrator,
    Stacking,
    Thresholds,
    TrimmedMean,
    WeightedMean,
)
from stream_scorer.errors import UsageError
from stream_scorer.quality import average_precision
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.spec.training import CalibratorName, CombinerName
from stream_scorer.train.calibration import fit_beta, fit_isotonic, fit_platt, fit_stacking
from stream_scorer.train.metrics import alert_figures, score_figures
from stream_scorer.train.recipe import AlertRates

# The quorum holds without the member of the largest weight, with a margin for small manual changes of weights.
QUORUM_MARGIN = 0.05
# A trimmed mean of five members drops the highest and the lowest.
TRIM = 0.2
# Fitted thresholds are reported if the share that reaches them differs from the target by more than this factor.
_TOLERATED = 1.5

_log = logging.getLogger(__name__)


def fit_calibrator(name: CalibratorName, probability: Floats, label: Bools) -> Calibrator:
    """Fit a member's calibrator on its probabilities ``(n,)`` and labels ``(n,)``."""
    if name == "beta":
        return fit_beta(probability, label)
    if name == "isotonic":
        return fit_isotonic(probability, label)
    return fit_platt(logit(probability), label)


@dataclass(frozen=True, slots=True)
class Vote:
    """A member with calibrated scores. The baseline is 0 because contributions are not used."""

    weight: float
    ranks: list[float]
    calibrator: NoCalibrator = field(default_factory=NoCalibrator)
    baseline: float = 0.0


def make_combiner(name: CombinerName, logits: Floats, label: Bools) -> CombinerSpec:
    """The combiner `name`; stacking is fitted on calibrated logits ``(n, m)`` and labels ``(n,)``."""
    if name == "stacking":
        return fit_stacking(logits, label)
    plain: dict[CombinerName, CombinerSpec] = {
        "weighted-mean": WeightedMean(),
        "median": Median(),
        "trimmed-mean": TrimmedMean(TRIM),
    }
    return plain[name]


def fit_incomplete_calibrator(how: CombinerSpec, scores: Floats, weights: Floats, label: Bools) -> IncompleteCalibrator:
    """The final calibrator of rows with missing members, where the weighted mean takes the place of stacking.

    It is fitted on the weighted mean of all calibrated scores ``(n, m)``. Unset for another combiner.
    """
    if not isinstance(how, Stacking):
        return msgspec.UNSET
    mean = combine(WeightedMean(), "logit", scores, weights, np.arange(len(scores)))
    return fit_platt(logit(mean), label)


def combine(how: CombinerSpec, link: Link, scores: Floats, weights: Floats, reference: Ints) -> Floats:
    """``(n,)``: the combination of the members' calibrated scores ``(n, m)``, before the final calibrator."""
    votes = votes_of(link, scores, weights, reference)
    combined: Floats = Combiner(votes, how, link, NoCalibrator(), 0.0).combine(scores)[5]
    return combined


def votes_of(link: Link, scores: Floats, weights: Floats, reference: Ints) -> list[Vote]:
    """Members with calibrated scores ``(n, m)``, for a `Combiner`; ranks come from the rows `reference`."""
    return [
        Vote(float(weight), choose_ranks(scores[reference, index]) if link == "rank" else [])
        for index, weight in enumerate(weights)
    ]


def metrics_of(
    names: Sequence[str],
    member_scores: Floats,
    score: Floats,
    label: Bools,
    combiner: Combiner,
    thresholds: Thresholds,
) -> dict[str, dict[str, float]]:
    """Metrics of each member, of the ensemble without each member, and of the ensemble; see `stream_scorer.quality`.

    Args:
        member_scores: calibrated scores ``(n, m)`` of the members `names`. score, label: ``(n,)``.
    """
    out = {name: score_figures(member_scores[:, index], label) for index, name in enumerate(names)}
    without = combiner.left_out(member_scores, score)
    for index, name in enumerate(names):
        if not np.isnan(without[:, index]).any():  # an ensemble of one member has no score without it
            out[name] |= _metrics_without(np.ascontiguousarray(without[:, index]), label, thresholds.review)
    whole = score_figures(score, label) | alert_figures(score, label, thresholds.review, thresholds.block)
    return {**out, "ensemble": whole}


def _metrics_without(without: Floats, label: Bools, review: float) -> dict[str, float]:
    plain = alert_figures(without, label, review, 1.0)
    return {
        "ensemble_average_precision_without": average_precision(without, label) or 0.0,
        "ensemble_false_positive_rate_without": plain["review_false_positive_rate"],
        "ensemble_recall_without": plain["review_recall"],
    }


def choose_thresholds(spec: CheckedSpec, score: Floats, rates: AlertRates | None) -> Thresholds:
    """Thresholds that give the alert rates on the scores ``(n,)``; without rates, those of the spec's policy."""
    policy = spec.spec.policy
    if rates is None:
        return Thresholds(policy.version, policy.review, policy.block)
    return Thresholds(f"{policy.version}-fitted", _threshold(score, rates.review), _threshold(score, rates.block))


def _threshold(score: Floats, share: float) -> float:
    """A threshold that about `share` of the scores reach: midway between the lowest score above it and the next.

    At most `share` of them do, unless several rows have the score at that place, or none would reach the threshold:
    then all of them do if that is nearer to `share`.
    """
    falling = np.sort(score)[::-1]
    target = share * len(falling)
    tie = falling[int(target)]
    above, with_tie = int((falling > tie).sum()), int((falling >= tie).sum())
    if (with_tie - above > 1 or above == 0) and with_tie - target <= target - above:
        return float((falling[with_tie - 1] + (falling[with_tie] if with_tie < len(falling) else 0.0)) / 2)
    return float((tie + (falling[above - 1] if above else 1.0)) / 2)


def check_alert_rates(score: Floats, thresholds: Thresholds, rates: AlertRates | None) -> None:
    """Warn if the shares of the scores ``(n,)`` that reach fitted thresholds differ much from the targets.

    Raises:
        UsageError: no score reaches a threshold.
    """
    if rates is None:
        return
    for name, threshold, target in (
        ("review", thresholds.review, rates.review),
        ("block", thresholds.block, rates.block),
    ):
        share = float((score >= threshold).mean())
        top = int((score == score.max()).sum())
        if share == 0.0:
            raise UsageError(
                f"no threshold fits the {name} rate of {target:.3%}: {top:,} of {len(score):,} rows "
                f"({top / len(score):.3%}) have the highest score",
                hint="Declare a higher rate, use the calibrator platt instead of isotonic, or train on more rows.",
            )
        if not 1 / _TOLERATED <= share / target <= _TOLERATED:
            _log.warning(
                "the %s threshold %.4g gives %.3f %% of the %d rows instead of %.3f %%: many rows have the same score, "
                "or there are few rows. Smoother scores need the calibrator platt instead of isotonic.",
                name, threshold, 100 * share, len(score), 100 * target,
            )  # fmt: skip
