"""Train an ensemble: members, calibrators, weights, thresholds, and the folder that a scorer loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stream_scorer.arrays import Bools, Floats
from stream_scorer.clock import Clock, SystemClock
from stream_scorer.ensemble.calibrate import calibrate
from stream_scorer.ensemble.combine import Combiner
from stream_scorer.ensemble.compose import Draft, Outline, compose_ensemble
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.links import logit
from stream_scorer.ensemble.manifest import (
    Calibrator,
    CombinerSpec,
    IncompleteCalibrator,
    Input,
    Manifest,
    MemberFormat,
    Platt,
    Thresholds,
)
from stream_scorer.ensemble.members import load_member
from stream_scorer.ensemble.preprocess import Preprocess
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.train.algorithms import require_probabilities
from stream_scorer.train.calibration import fit_platt, fit_weights
from stream_scorer.train.combination import (
    QUORUM_MARGIN,
    check_alert_rates,
    choose_thresholds,
    combine,
    fit_calibrator,
    fit_incomplete_calibrator,
    make_combiner,
    metrics_of,
    votes_of,
)
from stream_scorer.train.dense import one_thread, standardise, train_logistic, train_neural, warn_without_values
from stream_scorer.train.plan import Kind, MemberPlan, plan_members
from stream_scorer.train.provenance import describe_training
from stream_scorer.train.recipe import Progress, Recipe, TrainingSet
from stream_scorer.train.split import Split, split_by_time
from stream_scorer.train.trees import train_forest, train_gbdt, train_xgb

_FORMATS: dict[Kind, MemberFormat] = {
    "gbdt": "lightgbm-text",
    "xgb": "xgboost-ubj",
    "forest": "lightgbm-text",
    "logistic": "dense-json",
    "neural": "dense-json",
}


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A trained member; `logit` ``(n,)`` are its calibrated logits over all rows, `score` its calibrated scores."""

    plan: MemberPlan
    data: bytes
    preprocess: list[Input]
    calibrator: Calibrator
    score: Floats
    logit: Floats


@dataclass(frozen=True, slots=True)
class _Combined:
    """The combination of the members, and the resulting final score ``(n,)`` over all rows."""

    how: CombinerSpec
    weights: Floats
    final: Platt
    incomplete: IncompleteCalibrator
    score: Floats


def train_ensemble(
    data: TrainingSet,
    spec: CheckedSpec,
    out_dir: Path,
    recipe: Recipe,
    *,
    on_progress: Progress | None = None,
    clock: Clock | None = None,
) -> Manifest:
    """Train five members on `data` and write the ensemble to `out_dir`.

    By time: members on the first 60 % of rows, their calibrators on the next 12 %, weights, final calibrator,
    thresholds and reference profile on the next 14 %, metrics on the rest. The same rows and recipe give the same
    bytes, except for the timestamp `created_at` (from `clock`).

    Raises:
        UsageError: too few frauds, or the columns of the matrix are not the spec's features.
    """
    with one_thread():
        return _train_ensemble(data, spec, out_dir, recipe, on_progress or _ignore_progress, clock or SystemClock())


def _train_ensemble(
    data: TrainingSet, spec: CheckedSpec, out_dir: Path, recipe: Recipe, progress: Progress, clock: Clock
) -> Manifest:
    data.check(spec)
    data = replace(data, features=np.ascontiguousarray(data.features, np.float64))
    split = split_by_time(data.event_time, data.label)
    warn_without_values(data.names, data.features, split.train)
    plans = plan_members(spec)
    steps = len(plans) + 2
    fitted = []
    for index, plan in enumerate(plans):
        progress(f"training {plan.kind} on {plan.feature_set}", index, steps)
        fitted.append(_fit_member(plan, data, split, recipe))
    progress("fitting weights", len(plans), steps)
    combined = _fit_combination(fitted, data.label, split, spec, recipe)
    thresholds = choose_thresholds(spec, combined.score[split.weights], recipe.alert_rates)
    check_alert_rates(combined.score[split.weights], thresholds, recipe.alert_rates)
    metrics = _metrics(fitted, combined, data.label, split, recipe, thresholds)
    progress("writing and self-testing", len(plans) + 1, steps)
    outline = Outline(
        name=recipe.name or spec.spec.name,
        created_at=clock.now_ms(),
        spec_name=spec.spec.name,
        spec_hash=spec.sha256,
        feature_hash=spec.feature_hash,
        features=data.names,
        final_calibrator=combined.final,
        thresholds=thresholds,
        quorum=spec.spec.policy.quorum,
        training=describe_training(data, f"{spec.sha256} {recipe}", metrics),
        combiner=combined.how,
        link=recipe.link,
        incomplete_calibrator=combined.incomplete,
    )
    drafts = [_draft(member, float(weight)) for member, weight in zip(fitted, combined.weights, strict=True)]
    manifest = compose_ensemble(out_dir, outline, drafts, data.features[split.weights])
    _check_written_scores(out_dir, data.features[split.holdout], combined.score[split.holdout])
    progress("done", steps, steps)
    return manifest


def _fit_combination(
    fitted: Sequence[_Fitted], label: Bools, split: Split, spec: CheckedSpec, recipe: Recipe
) -> _Combined:
    """Fit weights, combiner and final calibrator on the slice `weights`."""
    rows = split.weights
    logits = np.column_stack([member.logit for member in fitted])
    weights = fit_weights(logits[rows], label[rows], 1.0 - spec.spec.policy.quorum - QUORUM_MARGIN)
    how = make_combiner(recipe.combiner, logits[rows], label[rows])
    combined = combine(how, recipe.link, _scores(fitted), weights, rows)
    # The scorer applies g to the clipped inverse link of z, so g is fitted to the same values.
    final = fit_platt(logit(combined[rows]), label[rows])
    incomplete = fit_incomplete_calibrator(how, _scores(fitted)[rows], weights, label[rows])
    return _Combined(how, weights, final, incomplete, calibrate(combined, final))


def _metrics(
    fitted: Sequence[_Fitted],
    combined: _Combined,
    label: Bools,
    split: Split,
    recipe: Recipe,
    thresholds: Thresholds,
) -> dict[str, dict[str, float]]:
    """Metrics on the holdout of each member, of the ensemble, and of the ensemble without each member."""
    held, scores = split.holdout, _scores(fitted)
    votes = votes_of(recipe.link, scores, combined.weights, split.weights)
    combiner = Combiner(votes, combined.how, recipe.link, combined.final, 0.0, combined.incomplete)
    names = [member.plan.kind for member in fitted]
    return metrics_of(names, scores[held], combined.score[held], label[held], combiner, thresholds)


def _scores(fitted: Sequence[_Fitted]) -> Floats:
    """``(n, m)``: the members' calibrated scores."""
    return np.column_stack([member.score for member in fitted])


def _draft(member: _Fitted, weight: float) -> Draft:
    return Draft(
        member.plan.kind,
        _FORMATS[member.plan.kind],
        member.data,
        member.plan.inputs,
        member.preprocess,
        member.calibrator,
        weight,
    )


def _ignore_progress(_stage: str, _done: int, _total: int) -> None:
    """Ignore progress."""


def _fit_member(plan: MemberPlan, data: TrainingSet, split: Split, recipe: Recipe) -> _Fitted:
    columns = [data.names.index(name) for name in plan.inputs]
    raw = np.ascontiguousarray(data.features[split.train][:, columns])
    dense = _FORMATS[plan.kind] == "dense-json"
    preprocess = standardise(raw) if dense else [Input()] * len(columns)
    prepare = Preprocess(data.names, plan.inputs, preprocess)
    member = _train(plan, prepare.apply(data.features[split.train]), data.label[split.train], recipe.seed)
    probability = load_member(_FORMATS[plan.kind], member, len(columns)).predict(prepare.apply(data.features))
    probability = require_probabilities(plan.kind, probability)
    rows = split.calibration
    calibrator = fit_calibrator(recipe.calibrator, probability[rows], data.label[rows])
    score = calibrate(probability, calibrator)
    return _Fitted(plan, member, preprocess, calibrator, score, logit(score))


def _train(plan: MemberPlan, x: Floats, y: Bools, seed: int) -> bytes:
    if plan.kind == "gbdt":
        return train_gbdt(x, y, plan.inputs, seed)
    if plan.kind == "forest":
        return train_forest(x, y, plan.inputs, seed)
    if plan.kind == "xgb":
        return train_xgb(x, y, plan.inputs, seed)
    return train_logistic(x, y, seed) if plan.kind == "logistic" else train_neural(x, y, seed)


def _check_written_scores(directory: Path, features: Floats, expected: Floats) -> None:
    """Raise unless the written ensemble gives the scores `expected`, on which the metrics were computed."""
    got = Ensemble.load(directory, version="").score(features).score
    difference = float(np.abs(got - expected).max())
    if not difference <= 1e-9:
        raise RuntimeError(f"the written ensemble's scores differ from training's by {difference:.3g}")
