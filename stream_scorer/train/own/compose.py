"""Composes an ensemble of models that were trained elsewhere: check, fit what is not given, write.

file = read_compose_file(path)
models = load_models(file, spec)             # before the history is read: wrong files fail at once
report = compose_models(file, models, data, spec, out, limits=…)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from stream_scorer.arrays import Bools, Floats, Ints
from stream_scorer.clock import Clock
from stream_scorer.ensemble.calibrate import calibrate
from stream_scorer.ensemble.combine import Combiner
from stream_scorer.ensemble.compose import Draft, Outline, compose_ensemble
from stream_scorer.ensemble.links import logit
from stream_scorer.ensemble.manifest import (
    Calibrator,
    CombinerSpec,
    IncompleteCalibrator,
    Manifest,
    NoCalibrator,
    Platt,
    Thresholds,
    Training,
)
from stream_scorer.ensemble.members.fixed_batch import ROWS
from stream_scorer.ensemble.preprocess import Preprocess
from stream_scorer.ensemble.probabilities import keep_probabilities
from stream_scorer.errors import UsageError, install_hint
from stream_scorer.features.derived import without_views
from stream_scorer.quality import roc_auc
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.spec.training import CalibratorName
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
from stream_scorer.train.own.check import (
    Agreement,
    compare_with_expected,
    compare_with_library,
    measure_batch_ms,
)
from stream_scorer.train.own.document import ComposeFile, read_compose_file
from stream_scorer.train.own.models import OwnModel, load_model
from stream_scorer.train.own.report import ComposeReport, MemberReport
from stream_scorer.train.provenance import describe_training
from stream_scorer.train.recipe import AlertRates, Progress, TrainingSet
from stream_scorer.train.split import cut_by_time

__all__ = ["Limits", "compose_models", "load_models", "read_compose_file"]


# Of the transactions after `trained_until`, by time: the shares of `train` without its first slice.
SHARES = {"calibration": 0.30, "weights": 0.35, "holdout": 0.35}


@dataclass(frozen=True, slots=True)
class Limits:
    """The rows of a micro-batch, and the longest time in ms that a member may take for one."""

    batch: int
    batch_ms: float


@dataclass(frozen=True, slots=True)
class _Slices:
    """Row numbers of the history ``(k,)``, as in `train.split.Split`; without a fit all three are the same rows."""

    calibration: Ints
    weights: Ints
    holdout: Ints


@dataclass(frozen=True, slots=True)
class _Checked:
    """The comparisons of a member, its milliseconds per batch, and what is suspicious, as sentences."""

    agreements: list[Agreement]
    took: float
    doubts: list[str]


@dataclass(frozen=True, slots=True)
class _Fit:
    """What is fitted or given, with calibrated scores ``(n, m)`` and final scores ``(n,)`` of the whole history."""

    calibrators: list[Calibrator]
    weights: Floats
    how: CombinerSpec
    final: NoCalibrator | Platt
    incomplete: IncompleteCalibrator
    thresholds: Thresholds
    member_scores: Floats
    score: Floats


def load_models(file: ComposeFile, spec: CheckedSpec) -> list[OwnModel]:
    """Load every model and match its columns with the spec. Raises as `load_model` does."""
    return [load_model(file, index, spec.features) for index in range(len(file.document.members))]


def compose_models(
    file: ComposeFile,
    models: Sequence[OwnModel],
    data: TrainingSet,
    spec: CheckedSpec,
    out: Path,
    *,
    limits: Limits,
    clock: Clock,
    on_progress: Progress,
) -> ComposeReport:
    """Check the members on the history `data`, fit what the file does not give, and write the ensemble to `out`.

    Raises:
        UsageError: a member fails a check, or the history has too few frauds; the message names the node of the file.
        ArtifactError: the composed ensemble does not load.
    """
    data.check(spec)
    features = np.ascontiguousarray(data.features, np.float64)
    slices = _slices(file, data)
    steps = len(models) + 2
    raw, checked = [], []
    for index, model in enumerate(models):
        on_progress(f"checking {model.node.name}", index, steps)
        prepare = _preparer(spec, model, features)
        raw.append(_predict(file, index, model, prepare, features))
        _check_without_views(file, index, model, spec, features[:ROWS])
        agreements, took = _check(file, index, model, prepare, data, slices.weights, limits)
        checked.append(_Checked(agreements, took, _doubts(raw[-1], data.label, slices)))
    on_progress("fitting", len(models), steps)
    fit = _fit(file, models, np.column_stack(raw), data, spec, slices)
    metrics = _metrics(file, models, fit, data, slices)
    on_progress("writing and self-testing", len(models) + 1, steps)
    outline = Outline(
        name=file.document.name,
        created_at=clock.now_ms(),
        spec_name=spec.spec.name,
        spec_hash=spec.sha256,
        feature_hash=spec.feature_hash,
        features=data.names,
        final_calibrator=fit.final,
        thresholds=fit.thresholds,
        quorum=_quorum(file, spec),
        training=_training(file, models, data, spec, slices, metrics),
        combiner=fit.how,
        link=file.document.link,
        incomplete_calibrator=fit.incomplete,
    )
    drafts = [
        Draft(m.node.name, m.format, m.data, m.inputs, m.preprocess, calibrator, float(weight))
        for m, calibrator, weight in zip(models, fit.calibrators, fit.weights, strict=True)
    ]
    manifest = compose_ensemble(out, outline, drafts, features[slices.weights])
    on_progress("done", steps, steps)
    return _report(file, models, checked, manifest, data, slices, out)


def _slices(file: ComposeFile, data: TrainingSet) -> _Slices:
    until = file.trained_until_ms
    later = np.flatnonzero(data.event_time >= until) if until is not None else np.arange(len(data.event_time))
    later = later.astype(np.int64)
    if len(later) == 0:
        raise file.wrong("trained_until", "the history has no mature transaction after it", "Use a longer history.")
    if not file.fitted:
        return _Slices(later, later, later)
    try:
        parts = cut_by_time(data.event_time[later], data.label[later], SHARES)
    except UsageError as error:
        hint = "Use a longer history, or an earlier `trained_until` with members trained until then."
        raise file.wrong("trained_until", f"after it, {error.message}", hint) from None
    return _Slices(**{name: later[rows] for name, rows in parts.items()})


def _preparer(spec: CheckedSpec, model: OwnModel, features: Floats) -> Callable[[Ints], Floats]:
    steps = Preprocess(spec.features, model.inputs, model.preprocess)
    return lambda rows: steps.apply(np.ascontiguousarray(features[rows]))


def _predict(
    file: ComposeFile, index: int, model: OwnModel, prepare: Callable[[Ints], Floats], features: Floats
) -> Floats:
    """The member's probabilities of the whole history ``(n,)``. Raises `UsageError` if one is missing."""
    where = f"members[{index}]"
    rows = np.arange(len(features))
    try:
        probability = np.array(model.member.predict(prepare(rows)), np.float64)
    except Exception as error:  # any error of the library of a format; a scorer would leave the member out
        raise file.wrong(
            f"{where}.model",
            f"fails on the history: {type(error).__name__}: {error}",
            _missing_hint(model, prepare(rows)),
        ) from None
    wrong = keep_probabilities(probability)
    if wrong:
        raise file.wrong(
            f"{where}.model",
            f"gives no probability in [0, 1] for {wrong} of {len(rows)} transactions of the history",
            _missing_hint(model, prepare(rows)[np.isnan(probability)]),
        )
    return probability


def _check_without_views(file: ComposeFile, index: int, model: OwnModel, spec: CheckedSpec, features: Floats) -> None:
    """Raise `UsageError` if the member has no probability for rows ``(n, k)`` whose view features are missing.

    This is what a scorer reads at its start and while Redis does not answer, and no history contains it.
    """
    inputs = _preparer(spec, model, without_views(spec, features))(np.arange(len(features)))
    try:
        wrong = keep_probabilities(np.array(model.member.predict(inputs), np.float64))
    except Exception:  # as in `_predict`
        wrong = len(inputs)
    if wrong:
        raise file.wrong(
            f"members[{index}].model",
            "gives no probability while features are not available: at each start of a scorer, and during an outage of "
            "Redis, all features of views are missing",
            _missing_hint(model, inputs),
        )


def _missing_hint(model: OwnModel, inputs: Floats) -> str:
    missing = [name for name, column in zip(model.inputs, inputs.T, strict=True) if np.isnan(column).any()]
    if not missing:
        return "The model must be a classifier that returns the probability of fraud."
    return f"Missing values reach the model in {', '.join(missing[:5])}: add `impute` to `preprocess`, or to the model."


def _check(
    file: ComposeFile,
    index: int,
    model: OwnModel,
    prepare: Callable[[Ints], Floats],
    data: TrainingSet,
    rows: Ints,
    limits: Limits,
) -> tuple[list[Agreement], float]:
    """The comparisons of a member, and its milliseconds per batch. Raises `UsageError`."""
    found = [
        compare_with_library(file, index, model, prepare(rows)),
        compare_with_expected(file, index, model, data.event_id, prepare),
    ]
    agreements = [agreement for agreement in found if agreement is not None]
    if not agreements:
        raise file.wrong(
            f"members[{index}].expected",
            f"required, because the library of {model.file_format} is not installed here",
            "Give a file with the model's own predictions, or install the library. "
            + install_hint("train", "onnx", "skops"),
        )
    took = measure_batch_ms(model.member, prepare, len(data.features), limits.batch)
    limit = file.document.limits.batch_ms or limits.batch_ms
    if took > limit:
        raise file.wrong(
            f"members[{index}].model",
            f"takes {took:.1f} ms for a batch of {limits.batch} transactions, above the limit of {limit:g} ms",
            "Use fewer or smaller trees, or raise limits.batch_ms and the setting scorer.member_timeout_ms.",
        )
    return agreements, took


def _doubts(probability: Floats, label: Bools, slices: _Slices) -> list[str]:
    """A warning if the uncalibrated member ranks worse than chance; a calibrator could hide that."""
    rows = np.unique(np.concatenate([slices.calibration, slices.weights, slices.holdout]))
    found = roc_auc(probability[rows], label[rows])
    if found is None or found >= 0.5:
        return []
    return [
        f"warning: its ROC AUC is {found:.3f}: it ranks frauds below genuine transactions. Is its output the "
        "probability of fraud?"
    ]


def _fit(
    file: ComposeFile, models: Sequence[OwnModel], raw: Floats, data: TrainingSet, spec: CheckedSpec, slices: _Slices
) -> _Fit:
    document, label, rows = file.document, data.label, slices.weights
    calibrators = [_calibrator(m.node.calibrator, raw[:, i], label, slices.calibration) for i, m in enumerate(models)]
    scores = np.column_stack([calibrate(raw[:, i], calibrator) for i, calibrator in enumerate(calibrators)])
    logits = np.column_stack([logit(np.ascontiguousarray(column)) for column in scores.T])
    if document.members[0].weight == "fit":
        most = 1.0 - _quorum(file, spec) - QUORUM_MARGIN
        weights = fit_weights(logits[rows], label[rows], most) if len(models) > 1 else np.ones(1)
    else:
        weights = np.array([member.weight for member in document.members], np.float64)
    chosen = document.combiner
    how: CombinerSpec = make_combiner(chosen, logits[rows], label[rows]) if isinstance(chosen, str) else chosen
    combined = combine(how, document.link, scores, weights, rows)
    final: NoCalibrator | Platt
    if document.final_calibrator == "platt":
        final = fit_platt(logit(np.ascontiguousarray(combined[rows])), label[rows])
    elif isinstance(document.final_calibrator, str):
        final = NoCalibrator()
    else:
        final = document.final_calibrator
    incomplete: IncompleteCalibrator = msgspec.UNSET
    if chosen == "stacking" or document.final_calibrator == "platt":
        incomplete = fit_incomplete_calibrator(how, scores[rows], weights, label[rows])
    score = calibrate(combined, final)
    return _Fit(calibrators, weights, how, final, incomplete, _thresholds(file, spec, score[rows]), scores, score)


def _calibrator(
    chosen: CalibratorName | Literal["none"] | Calibrator, probability: Floats, label: Bools, rows: Ints
) -> Calibrator:
    if not isinstance(chosen, str):
        return chosen
    if chosen == "none":
        return NoCalibrator()
    return fit_calibrator(chosen, probability[rows], label[rows])


def _thresholds(file: ComposeFile, spec: CheckedSpec, score: Floats) -> Thresholds:
    given, rates = file.document.thresholds, file.document.alert_rates
    if given is not None:
        return Thresholds(given.policy_version or f"{spec.spec.policy.version}-given", given.review, given.block)
    targets = AlertRates(rates.review, rates.block) if rates else None
    fitted = choose_thresholds(spec, score, targets)
    check_alert_rates(score, fitted, targets)
    return fitted


def _quorum(file: ComposeFile, spec: CheckedSpec) -> float:
    return file.document.quorum if file.document.quorum is not None else spec.spec.policy.quorum


def _metrics(
    file: ComposeFile, models: Sequence[OwnModel], fit: _Fit, data: TrainingSet, slices: _Slices
) -> dict[str, dict[str, float]]:
    """Metrics on the holdout, by the names that `train` uses; none if the holdout has no frauds."""
    held = slices.holdout
    label = data.label[held]
    if not label.any() or label.all():
        return {}
    votes = votes_of(file.document.link, fit.member_scores, fit.weights, slices.weights)
    combiner = Combiner(votes, fit.how, file.document.link, fit.final, 0.0, fit.incomplete)
    names = [model.node.name for model in models]
    return metrics_of(names, fit.member_scores[held], fit.score[held], label, combiner, fit.thresholds)


def _training(
    file: ComposeFile,
    models: Sequence[OwnModel],
    data: TrainingSet,
    spec: CheckedSpec,
    slices: _Slices,
    metrics: dict[str, dict[str, float]],
) -> Training:
    """The history that the composition used: all rows after `trained_until`, which ends that of the members."""
    used = np.unique(np.concatenate([slices.calibration, slices.weights, slices.holdout]))
    rows = replace(
        data, features=data.features[used], label=data.label[used], event_time=data.event_time[used], event_id=[],
        entity=None, labelled_at=None,
    )  # fmt: skip
    document = msgspec.json.encode(file.document, order="deterministic").decode()
    identity = " ".join([spec.sha256, *(model.sha256 for model in models), document])
    return msgspec.structs.replace(describe_training(rows, identity, metrics), trained_until=file.trained_until_ms)


def _report(
    file: ComposeFile,
    models: Sequence[OwnModel],
    checked: Sequence[_Checked],
    manifest: Manifest,
    data: TrainingSet,
    slices: _Slices,
    out: Path,
) -> ComposeReport:
    members = []
    for model, found, spec in zip(models, checked, manifest.members, strict=True):
        figures = manifest.training.metrics.get(spec.name, {})
        members.append(
            MemberReport(
                name=spec.name,
                file=str(file.find(model.node.model)),
                file_format=model.file_format,
                format=spec.format,
                sha256=model.sha256,
                size=model.size,
                inputs=len(spec.inputs),
                calibrator=type(spec.calibrator).__name__.lower(),
                weight=spec.weight / sum(member.weight for member in manifest.members),
                average_precision=figures.get("average_precision"),
                roc_auc=figures.get("roc_auc"),
                log_loss=figures.get("log_loss"),
                batch_ms=round(found.took, 3),
                agreements=found.agreements,
                notes=[*model.notes, *found.doubts],
            )
        )
    return ComposeReport(
        out=str(out),
        name=manifest.name,
        run_id=manifest.training.run_id,
        rows=manifest.training.rows,
        positives=manifest.training.positives,
        immature=data.immature,
        holdout=len(slices.holdout),
        fitted=file.fitted,
        formula=manifest.formula,
        thresholds=manifest.thresholds,
        metrics=manifest.training.metrics.get("ensemble", {}),
        members=members,
    )
