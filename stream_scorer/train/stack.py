"""From members to decision, fitted on out-of-fold scores: calibrators, weights, combiner, g, thresholds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream_scorer.arrays import Bools, Floats
from stream_scorer.ensemble.calibrate import calibrate
from stream_scorer.ensemble.combine import Combiner
from stream_scorer.ensemble.links import logit
from stream_scorer.ensemble.manifest import (
    Calibrator,
    CombinerSpec,
    IncompleteCalibrator,
    Link,
    NoCalibrator,
    Platt,
    Thresholds,
)
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.spec.training import TrainingSpec
from stream_scorer.train.calibration import fit_platt, fit_weights
from stream_scorer.train.combination import (
    QUORUM_MARGIN,
    Vote,
    choose_thresholds,
    fit_calibrator,
    fit_incomplete_calibrator,
    make_combiner,
    metrics_of,
    votes_of,
)
from stream_scorer.train.recipe import AlertRates


@dataclass(frozen=True, slots=True)
class Stack:
    """The fitted steps after the members, in the order of `names`.

    Attributes:
        weights: ``(m,)``. final: g, the calibrator of the combined score. incomplete: see `Manifest`.
    """

    names: list[str]
    calibrators: list[Calibrator]
    weights: Floats
    how: CombinerSpec
    link: Link
    final: Platt
    incomplete: IncompleteCalibrator
    thresholds: Thresholds
    votes: list[Vote]

    def member_scores(self, raw: Floats) -> Floats:
        """Calibrated scores ``(n, m)`` from the members' probabilities ``(n, m)``."""
        return _calibrated(raw, self.calibrators)

    def score(self, member_scores: Floats) -> Floats:
        """Final scores ``(n,)`` from calibrated scores ``(n, m)``."""
        return np.asarray(self._combiner().combine(member_scores)[5], np.float64)

    def metrics(self, raw: Floats, label: Bools) -> dict[str, dict[str, float]]:
        """Metrics of each member, of the ensemble, and of the ensemble without each member, by member name."""
        scores = self.member_scores(raw)
        return metrics_of(self.names, scores, self.score(scores), label, self._combiner(), self.thresholds)

    def _combiner(self) -> Combiner:
        return Combiner(self.votes, self.how, self.link, self.final, 0.0, self.incomplete)


def fit_stack(raw: Floats, label: Bools, training: TrainingSpec, spec: CheckedSpec) -> Stack:
    """Fit a `Stack` on out-of-fold probabilities ``(n, m)`` and labels ``(n,)``."""
    calibrators = [
        fit_calibrator(member.calibrator, np.ascontiguousarray(raw[:, index]), label)
        for index, member in enumerate(training.members)
    ]
    scores = _calibrated(raw, calibrators)
    logits = np.column_stack([logit(np.ascontiguousarray(column)) for column in scores.T])
    weights = fit_weights(logits, label, 1.0 - spec.spec.policy.quorum - QUORUM_MARGIN)
    how, link = make_combiner(training.combination.method, logits, label), training.combination.link
    votes = votes_of(link, scores, weights, np.arange(len(scores)))
    combined = np.asarray(Combiner(votes, how, link, NoCalibrator(), 0.0).combine(scores)[5], np.float64)
    # The scorer applies g to the clipped inverse link of z, so g is fitted to the same values.
    final = fit_platt(logit(combined), label)
    incomplete = fit_incomplete_calibrator(how, scores, weights, label)
    thresholds = choose_thresholds(spec, calibrate(combined, final), alert_rates(training))
    names = [member.name for member in training.members]
    return Stack(names, calibrators, weights, how, link, final, incomplete, thresholds, votes)


def alert_rates(training: TrainingSpec) -> AlertRates | None:
    """The targets of the thresholds; None if those of the pipeline spec's policy apply."""
    rates = training.thresholds
    return None if rates is None else AlertRates(rates.review_rate, rates.block_rate)


def _calibrated(raw: Floats, calibrators: list[Calibrator]) -> Floats:
    return np.column_stack(
        [calibrate(np.ascontiguousarray(raw[:, index]), each) for index, each in enumerate(calibrators)]
    )
