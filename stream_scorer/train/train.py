"""Train an ensemble: members, calibrators, weights, thresholds, and the folder that a scorer loads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stream_scorer.clock import Clock, SystemClock
from stream_scorer.ensemble.calibrate import calibrate
from stream_scorer.ensemble.combine import Combiner
from stream_scorer.ensemble.compose import Draft, Outline, choose_ranks, compose_ensemble
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.links import logit
from stream_scorer.ensemble.manifest import (
    Calibrator,
    How,
    Input,
    Link,
    Manifest,
    Median,
    MemberFormat,
    NoCalibrator,
    Platt,
    Thresholds,
    Training,
    TrimmedMean,
    WeightedMean,
)
from stream_scorer.ensemble.members import load_member
from stream_scorer.ensemble.preprocess import Preprocess
from stream_scorer.errors import UsageError
from stream_scorer.quality import average_precision
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.train.calibration import fit_beta, fit_isotonic, fit_platt, fit_stacking, fit_weights
from stream_scorer.train.dense import standardise, train_logistic, train_neural
from stream_scorer.train.metrics import alert_figures, score_figures
from stream_scorer.train.plan import Kind, MemberPlan, plan_members
from stream_scorer.train.split import Split, split_by_time
from stream_scorer.train.trees import train_forest, train_gbdt, train_xgb

Matrix = NDArray[np.float64]
Bools = NDArray[np.bool_]
# What is being done, steps done, steps in all.
Progress = Callable[[str, int, int], None]

# The heaviest member may be lost and the quorum still holds, with room for weights shifted a little by hand.
_QUORUM_MARGIN = 0.05
# A trimmed mean of five members leaves out the highest and the lowest.
TRIM = 0.2
CalibratorName = Literal["platt", "isotonic", "beta"]
CombinerName = Literal["weighted-mean", "median", "trimmed-mean", "stacking"]

_FORMATS: dict[Kind, MemberFormat] = {
    "gbdt": "lightgbm-text",
    "xgb": "xgboost-ubj",
    "forest": "lightgbm-text",
    "logistic": "dense-json",
    "neural": "dense-json",
}


@dataclass(frozen=True, slots=True)
class AlertRates:
    """Shares of transactions to be decided review or block, and block alone; thresholds are fitted to them."""

    review: float
    block: float

    def __post_init__(self) -> None:
        """Raises `UsageError` unless ``0 < block <= review < 1``."""
        if not 0.0 < self.block <= self.review < 1.0:
            raise UsageError(
                f"alert rates: block {self.block} and review {self.review} are not 0 < block <= review < 1"
            )


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A trained member; `logit` ``(n,)`` are its calibrated logits over all rows, `score` its calibrated scores."""

    plan: MemberPlan
    data: bytes
    preprocess: list[Input]
    calibrator: Calibrator
    score: Matrix
    logit: Matrix


def train_ensemble(
    features: Matrix,
    feature_names: Sequence[str],
    label: Bools,
    event_time: NDArray[np.int64],
    spec: CheckedSpec,
    out_dir: Path,
    seed: int,
    on_progress: Progress | None = None,
    *,
    name: str | None = None,
    alert_rates: AlertRates | None = None,
    clock: Clock | None = None,
    combiner: CombinerName = "weighted-mean",
    link: Link = "logit",
    calibrator: CalibratorName = "platt",
) -> Manifest:
    """Train five members on `features` ``(n, n_features)`` and `label` ``(n,)`` and write the ensemble to `out_dir`.

    By time (`event_time` ``(n,)``, epoch ms): members on the first 60 % of rows, their calibrators on the next 12 %,
    weights, final calibrator, thresholds and reference profile on the next 14 %, figures on the rest. The same rows
    and seed give the same bytes, but for the time stamp `created_at` (from `clock`).

    `calibrator` is that of the members; `combiner` and `link` say how they are combined
    (`stream_scorer.ensemble.combine`), stacking only on the link logit.
    Thresholds are the spec's policy, or fitted to `alert_rates`. `name` is the spec's unless given.

    Raises:
        UsageError: too few frauds, a matrix of other columns than the spec's features, or stacking on another scale.
    """
    features = np.ascontiguousarray(features, np.float64)
    _check(features, feature_names, label, event_time, spec)
    if combiner == "stacking" and link != "logit":
        raise UsageError(f"stacking of {link}s may leave [0, 1]: its link is logit")
    split = split_by_time(event_time, label)
    plans = plan_members(spec)
    progress = on_progress or _silent
    steps = len(plans) + 2
    fitted = []
    for index, plan in enumerate(plans):
        progress(f"training {plan.kind} on {plan.feature_set}", index, steps)
        fitted.append(_fit_member(plan, features, list(feature_names), label, split, seed, calibrator))
    progress("fitting weights", len(plans), steps)
    rows, held = split.weights, split.holdout
    logits = np.column_stack([member.logit for member in fitted])
    weights = fit_weights(logits[rows], label[rows], 1.0 - spec.spec.policy.quorum - _QUORUM_MARGIN)
    how = _combiner(combiner, logits[rows], label[rows])
    combined = _combine(how, link, np.column_stack([member.score for member in fitted]), weights, rows)
    # What the scorer hands to g is the inverse link of z, clipped; the same is fitted here.
    final = fit_platt(logit(combined[rows]), label[rows])
    score = calibrate(combined, final)
    thresholds = _thresholds(spec, score[rows], alert_rates)
    metrics: dict[str, dict[str, float]] = {
        member.plan.kind: score_figures(member.score[held], label[held]) for member in fitted
    }
    metrics["ensemble"] = score_figures(score[held], label[held]) | alert_figures(
        score[held], label[held], thresholds.review, thresholds.block
    )
    left_out = _left_out(how, link, np.column_stack([member.score for member in fitted]), weights, rows, final, score)
    for member, without in zip(fitted, left_out.T, strict=True):
        metrics[member.plan.kind] |= _worth(without[held], label[held], thresholds.review)
    progress("writing and self-testing", len(plans) + 1, steps)
    drafts = [
        Draft(
            member.plan.kind,
            _FORMATS[member.plan.kind],
            member.data,
            member.plan.inputs,
            member.preprocess,
            member.calibrator,
            float(weight),
        )
        for member, weight in zip(fitted, weights, strict=True)
    ]
    outline = Outline(
        name=name or spec.spec.name,
        created_at=(clock or SystemClock()).now_ms(),
        spec_name=spec.spec.name,
        spec_hash=spec.sha256,
        feature_hash=spec.feature_hash,
        features=list(feature_names),
        final_calibrator=final,
        thresholds=thresholds,
        quorum=spec.spec.policy.quorum,
        training=_training(features, label, event_time, spec, seed, metrics),
        combiner=how,
        link=link,
    )
    manifest = compose_ensemble(out_dir, outline, drafts, features[rows])
    _check_serves_the_same(out_dir, features[held], score[held])
    progress("done", steps, steps)
    return manifest


def _fit_calibrator(name: CalibratorName, probability: Matrix, label: Bools) -> Calibrator:
    if name == "beta":
        return fit_beta(probability, label)
    if name == "isotonic":
        return fit_isotonic(probability, label)
    return fit_platt(logit(probability), label)


@dataclass(frozen=True, slots=True)
class _Vote:
    """A member whose score is calibrated already; no contribution is asked for, so no baseline."""

    weight: float
    ranks: list[float]
    calibrator: NoCalibrator = field(default_factory=NoCalibrator)
    baseline: float = 0.0


def _combiner(name: CombinerName, logits: Matrix, label: Bools) -> How:
    if name == "stacking":
        return fit_stacking(logits, label)
    plain: dict[CombinerName, How] = {
        "weighted-mean": WeightedMean(),
        "median": Median(),
        "trimmed-mean": TrimmedMean(TRIM),
    }
    return plain[name]


def _combine(how: How, link: Link, scores: Matrix, weights: Matrix, reference: NDArray[np.int64]) -> Matrix:
    """``(n,)``: what the members' calibrated scores ``(n, m)`` come to before the final calibrator."""
    votes = _votes(link, scores, weights, reference)
    combined: Matrix = Combiner(votes, how, link, NoCalibrator(), 0.0).combine(scores)[5]
    return combined


def _votes(link: Link, scores: Matrix, weights: Matrix, reference: NDArray[np.int64]) -> list[_Vote]:
    return [
        _Vote(float(weight), choose_ranks(scores[reference, index]) if link == "rank" else [])
        for index, weight in enumerate(weights)
    ]


def _left_out(
    how: How,
    link: Link,
    scores: Matrix,
    weights: Matrix,
    reference: NDArray[np.int64],
    final: Platt,
    score: Matrix,
) -> Matrix:
    """``(n, m)``: the final score with each member left out."""
    left_out: Matrix = Combiner(_votes(link, scores, weights, reference), how, link, final, 0.0).left_out(scores, score)
    return left_out


def _worth(without: Matrix, label: Bools, review: float) -> dict[str, float]:
    """What a member adds: how the ensemble does without it, at the same threshold; see `stream_scorer.quality`."""
    plain = alert_figures(without, label, review, 1.0)
    return {
        "ensemble_average_precision_without": average_precision(without, label) or 0.0,
        "ensemble_false_positive_rate_without": plain["review_false_positive_rate"],
        "ensemble_recall_without": plain["review_recall"],
    }


def _silent(_stage: str, _done: int, _total: int) -> None:
    """Nobody watches."""


def _check(
    features: Matrix, names: Sequence[str], label: Bools, event_time: NDArray[np.int64], spec: CheckedSpec
) -> None:
    if list(names) != spec.features:
        raise UsageError("the training matrix does not have the spec's features, in the spec's order")
    n = len(features)
    if features.shape != (n, len(names)) or label.shape != (n,) or event_time.shape != (n,):
        raise UsageError(f"features {features.shape}, labels {label.shape} and times {event_time.shape} do not fit")


def _fit_member(
    plan: MemberPlan,
    features: Matrix,
    names: list[str],
    label: Bools,
    split: Split,
    seed: int,
    calibrator_name: CalibratorName,
) -> _Fitted:
    columns = [names.index(name) for name in plan.inputs]
    raw = np.ascontiguousarray(features[split.train][:, columns])
    dense = _FORMATS[plan.kind] == "dense-json"
    preprocess = standardise(raw) if dense else [Input()] * len(columns)
    prepare = Preprocess(names, plan.inputs, preprocess)
    x = prepare.apply(features[split.train])
    data = _train(plan, x, label[split.train], seed)
    probability = load_member(_FORMATS[plan.kind], data, len(columns)).predict(prepare.apply(features))
    calibrator = _fit_calibrator(calibrator_name, probability[split.calibration], label[split.calibration])
    score = calibrate(probability, calibrator)
    return _Fitted(plan, data, preprocess, calibrator, score, logit(score))


def _train(plan: MemberPlan, x: Matrix, y: Bools, seed: int) -> bytes:
    if plan.kind == "gbdt":
        return train_gbdt(x, y, plan.inputs, seed)
    if plan.kind == "forest":
        return train_forest(x, y, plan.inputs, seed)
    if plan.kind == "xgb":
        return train_xgb(x, y, plan.inputs, seed)
    return train_logistic(x, y, seed) if plan.kind == "logistic" else train_neural(x, y, seed)


def _thresholds(spec: CheckedSpec, score: Matrix, rates: AlertRates | None) -> Thresholds:
    policy = spec.spec.policy
    if rates is None:
        return Thresholds(policy.version, policy.review, policy.block)
    return Thresholds(f"{policy.version}-fitted", _reached_by(score, rates.review), _reached_by(score, rates.block))


def _reached_by(score: Matrix, share: float) -> float:
    """A threshold that at most `share` of the scores reach: midway between the best left out and the next above it."""
    falling = np.sort(score)[::-1]
    left_out = falling[int(share * len(falling))]
    above = falling[falling > left_out]
    return float((left_out + (above[-1] if len(above) else 1.0)) / 2)


def _training(
    features: Matrix,
    label: Bools,
    event_time: NDArray[np.int64],
    spec: CheckedSpec,
    seed: int,
    metrics: dict[str, dict[str, float]],
) -> Training:
    digest = hashlib.sha256()
    for column in (features, np.ascontiguousarray(label), np.ascontiguousarray(event_time)):
        digest.update(column.tobytes())
    data_sha256 = digest.hexdigest()
    run_id = hashlib.sha256(f"{data_sha256} {spec.sha256} {seed}".encode()).hexdigest()[:16]
    return Training(
        first_event_time=int(event_time.min()),
        last_event_time=int(event_time.max()),
        rows=len(label),
        positives=int(label.sum()),
        run_id=run_id,
        data_sha256=data_sha256,
        metrics=metrics,
    )


def _check_serves_the_same(directory: Path, features: Matrix, expected: Matrix) -> None:
    """The figures above are of `expected`; they are worth nothing if the written ensemble scores otherwise."""
    got = Ensemble.load(directory, version="").score(features).score
    difference = float(np.abs(got - expected).max())
    if not difference <= 1e-9:
        raise RuntimeError(f"the written ensemble's scores differ from training's by {difference:.3g}")
