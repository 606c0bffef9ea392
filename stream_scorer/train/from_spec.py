"""Train an ensemble by a training spec.

Members are fitted in prequential folds. Calibrators, weights and thresholds are fitted on the scores of the test
windows, which the members that produced them never saw. Then every member is fitted again on all labelled rows, and
serves with these calibrators and weights (stacked generalisation, Wolpert 1992, with folds in order of time).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from stream_scorer.arrays import Floats, Ints
from stream_scorer.clock import Clock, SystemClock
from stream_scorer.ensemble.compose import Draft, Outline, compose_ensemble
from stream_scorer.ensemble.manifest import Manifest
from stream_scorer.errors import SpecError
from stream_scorer.spec.model import CheckedSpec, duration_ms
from stream_scorer.spec.training import CheckedTraining
from stream_scorer.train.algorithms import FittedMember, MemberRecipe, fit_member, predict, resolve_members
from stream_scorer.train.combination import check_alert_rates
from stream_scorer.train.dense import one_thread, warn_without_values
from stream_scorer.train.folds import known_label, label_delay_ms, make_folds, make_windows
from stream_scorer.train.out_of_fold import OutOfFold, score_out_of_fold
from stream_scorer.train.parallel import run_parallel
from stream_scorer.train.provenance import describe_training, find_trained
from stream_scorer.train.recipe import Progress, TrainingSet
from stream_scorer.train.stack import Stack, alert_rates, fit_stack


@dataclass(frozen=True, slots=True)
class Options:
    """How to train, without an effect on the result: fits at a time, progress, the clock of `created_at`."""

    jobs: int
    progress: Progress = lambda _stage, _done, _total: None
    clock: Clock = field(default_factory=SystemClock)


@dataclass(frozen=True, slots=True)
class Trained:
    """Serving members with their stack.

    Attributes:
        metrics: on the newest test window, with a stack that was fitted on the windows before it.
    """

    recipes: list[MemberRecipe]
    members: list[FittedMember]
    stack: Stack
    out_of_fold: OutOfFold
    metrics: dict[str, dict[str, float]]

    def predict(self, features: Floats, at: Ints) -> Floats:
        """Uncalibrated probabilities ``(k, m)`` of the serving members for the rows `at` of ``(n, n_features)``."""
        pairs = zip(self.recipes, self.members, strict=True)
        return np.column_stack([predict(recipe, fitted, features, at) for recipe, fitted in pairs])


def train_from_spec(
    data: TrainingSet, spec: CheckedSpec, training: CheckedTraining, out_dir: Path, options: Options
) -> Manifest:
    """Train the members of `training` on `data` and write the ensemble to `out_dir`.

    The same rows, specs and clock give the same bytes, for any `Options.jobs`.

    Raises:
        UsageError: the history is too short for the folds, or has too few frauds.
        SpecError: the training spec does not fit the pipeline spec, or has a grid.
    """
    trained = fit_ensemble(data, spec, training, options)
    options.progress("writing and self-testing", 0, 1)
    drafts = [
        Draft(
            recipe.member.name, recipe.format, fitted.data, recipe.inputs, fitted.preprocess, calibrator, float(weight)
        )
        for recipe, fitted, calibrator, weight in zip(
            trained.recipes, trained.members, trained.stack.calibrators, trained.stack.weights, strict=True
        )
    ]
    stack, oof = trained.stack, trained.out_of_fold
    outline = Outline(
        name=training.spec.name or spec.spec.name,
        created_at=options.clock.now_ms(),
        spec_name=spec.spec.name,
        spec_hash=spec.sha256,
        feature_hash=spec.feature_hash,
        features=data.names,
        final_calibrator=stack.final,
        thresholds=stack.thresholds,
        quorum=spec.spec.policy.quorum,
        training=describe_training(data, _identity(spec, training), trained.metrics),
        combiner=stack.how,
        link=stack.link,
        incomplete_calibrator=stack.incomplete,
    )
    manifest = compose_ensemble(out_dir, outline, drafts, data.features[oof.rows], oof.raw)
    options.progress("done", 1, 1)
    return manifest


def _identity(spec: CheckedSpec, training: CheckedTraining) -> str:
    return f"{spec.sha256} {training.sha256}"


def find_equal(data: TrainingSet, spec: CheckedSpec, training: CheckedTraining, folder: Path) -> Manifest | None:
    """The manifest in `folder` if `train_from_spec` wrote it from the same rows and specs, else None."""
    return find_trained(folder, data, _identity(spec, training))


def fit_ensemble(
    data: TrainingSet, spec: CheckedSpec, training: CheckedTraining, options: Options, before: int | None = None
) -> Trained:
    """Fit everything on all rows; or on those before `before` (epoch ms), with labels known a label delay later.

    Raises:
        UsageError, SpecError: see `train_from_spec`.
    """
    data.check(spec)
    data = replace(data, features=np.ascontiguousarray(data.features, np.float64))
    recipes = resolve_members(training, spec)
    for index, member in enumerate(training.spec.members):
        if member.grid:
            raise SpecError(
                "a grid has no single result to train",
                path=f"members[{index}].grid",
                hint="`stream-scorer cv --select FILE` writes the training spec of the best candidates.",
            )
    folds = training.spec.folds
    delay, first = label_delay_ms(folds, spec), int(data.event_time.min())
    end = int(data.event_time.max()) + 1 if before is None else before
    windows = make_windows(folds, first, end, delay, rows_follow=before is not None)
    oof = score_out_of_fold(recipes, make_folds(windows, data, folds, delay), data, options.jobs, options.progress)
    if before is not None:
        # Calibrators, weights and thresholds do not use later labels either.
        oof = replace(oof, label=known_label(data, oof.rows, end + delay, delay))
    options.progress("fitting calibrators and weights", 0, 1)
    with one_thread():
        stack = fit_stack(oof.raw, oof.label, training.spec, spec)
        check_alert_rates(stack.score(stack.member_scores(oof.raw)), stack.thresholds, alert_rates(training.spec))
        metrics = _newest_window_metrics(oof, training, spec)
    since = end - duration_ms(folds.train) if training.spec.refit == "window" and folds.train else first
    rows = np.flatnonzero((data.event_time >= since) & (data.event_time < end))
    label = data.label[rows] if before is None else known_label(data, rows, end + delay, delay)
    warn_without_values(data.names, data.features, rows)
    members = run_parallel(
        lambda recipe: fit_member(recipe, data.features, rows, label),
        recipes,
        options.jobs,
        lambda done: options.progress("fitting members on all rows", done, len(recipes)),
    )
    return Trained(recipes, members, stack, oof, metrics)


def _newest_window_metrics(oof: OutOfFold, training: CheckedTraining, spec: CheckedSpec) -> dict[str, dict[str, float]]:
    newest = oof.fold == oof.fold.max()
    stack = fit_stack(oof.raw[~newest], oof.label[~newest], training.spec, spec)
    return stack.metrics(oof.raw[newest], oof.label[newest])
