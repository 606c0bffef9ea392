"""Cross-validation in order of time: the search over grids, and the holdout that is opened once."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from stream_scorer.arrays import Floats, Ints
from stream_scorer.errors import SpecError, UsageError
from stream_scorer.quality import average_precision, roc_auc
from stream_scorer.spec.model import CheckedSpec, duration_ms
from stream_scorer.spec.training import CheckedTraining, MemberTraining, Parameter, TrainingSpec, check_training
from stream_scorer.train.algorithms import MemberRecipe, make_recipe, resolve_members
from stream_scorer.train.dense import one_thread
from stream_scorer.train.folds import (
    DAY_MS,
    Fold,
    compromised,
    end_of_day,
    known_label,
    label_delay_ms,
    make_folds,
    make_windows,
)
from stream_scorer.train.from_spec import Options, fit_ensemble
from stream_scorer.train.metrics import card_precision
from stream_scorer.train.out_of_fold import OutOfFold, score_out_of_fold
from stream_scorer.train.recipe import TrainingSet
from stream_scorer.train.stack import fit_stack


class Quality(msgspec.Struct, frozen=True):
    """Figures of one score on one fold, or their means; `card_precision` is None without a partition entity."""

    average_precision: float
    roc_auc: float
    card_precision: float | None = None


class FoldReport(msgspec.Struct, frozen=True):
    """A fold: the times of its windows in epoch ms, and its counts; of the test window, what counts."""

    train_start: int
    train_end: int
    test_start: int
    test_end: int
    train_rows: int
    train_frauds: int
    test_rows: int
    test_frauds: int


class Candidate(msgspec.Struct, frozen=True):
    """One combination of a grid: its hyperparameters, and its quality on each fold, the oldest first."""

    parameters: dict[str, Parameter]
    folds: list[Quality]
    mean: Quality


class MemberSearch(msgspec.Struct, frozen=True):
    """The candidates of a member in the order of the grid; `best` is the place of the selected one."""

    name: str
    candidates: list[Candidate]
    best: int


class CrossValidation(msgspec.Struct, frozen=True):
    """The result of `cross_validate`.

    `ensemble` has the quality on each fold but the oldest, of the best candidates with calibrators and weights that
    were fitted on the folds before it; `ensemble_members` that of each member on the same folds.
    """

    objective: str
    folds: list[FoldReport]
    members: list[MemberSearch]
    ensemble: list[Quality]
    ensemble_members: dict[str, Quality]
    ensemble_mean: Quality


class HoldoutReport(msgspec.Struct, frozen=True):
    """Figures on the holdout ``[start, end)``, by member and for `ensemble`."""

    start: int
    end: int
    rows: int
    frauds: int
    metrics: dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Holdout:
    """The newest part of the history: event times ``[start, end)`` in epoch ms, its row numbers and their digest."""

    start: int
    end: int
    rows: Ints
    sha256: str


def find_holdout(data: TrainingSet, training: TrainingSpec) -> Holdout | None:
    """The holdout that `training` declares. Raises `UsageError` if it leaves nothing or has no fraud."""
    if training.holdout is None:
        return None
    end = int(data.event_time.max()) + 1
    length = duration_ms(training.holdout)
    start = (end_of_day(end) if length % DAY_MS == 0 else end) - length
    rows = np.flatnonzero(data.event_time >= start)
    if len(rows) == len(data.label) or not data.label[rows].any():
        raise UsageError(
            f"the holdout of {training.holdout} has {int(data.label[rows].sum())} frauds in {len(rows)} of "
            f"{len(data.label)} rows",
            hint="A holdout needs frauds, and history before it.",
        )
    digest = hashlib.sha256(np.ascontiguousarray(data.event_time[rows]).tobytes())
    digest.update(np.ascontiguousarray(data.label[rows]).tobytes())
    return Holdout(start, end, rows, digest.hexdigest())


def cross_validate(
    data: TrainingSet, spec: CheckedSpec, training: CheckedTraining, options: Options
) -> tuple[CrossValidation, TrainingSpec]:
    """Evaluate every candidate of every member on the folds; also returns the training spec of the best ones.

    The folds end before the holdout, by the label delay, so the holdout has no effect on the selection.

    Raises:
        UsageError: the history is too short, or has too few frauds.
        SpecError: the training spec does not fit the pipeline spec.
    """
    data.check(spec)
    holdout, delay = find_holdout(data, training.spec), label_delay_ms(training.spec.folds, spec)
    end = int(data.event_time.max()) + 1 if holdout is None else holdout.start - delay
    first = int(data.event_time.min())
    if holdout is not None:
        # The selection does not use labels either that were given after the holdout began.
        data = replace(data, label=known_label(data, np.arange(len(data.label)), holdout.start, delay))
    windows = make_windows(training.spec.folds, first, end, delay, rows_follow=holdout is not None)
    folds = make_folds(windows, data, training.spec.folds, delay)
    if training.spec.objective == "card_precision" and data.entity is None:
        raise SpecError("card_precision needs a partition entity", path="objective", hint="Choose average_precision.")
    candidates = [
        [
            make_recipe(_with_parameters(recipe.member, parameters), spec, recipe.inputs, recipe.seed)
            for parameters in _combinations(recipe.member)
        ]
        for recipe in resolve_members(training, spec)
    ]
    flat = [recipe for each in candidates for recipe in each]
    oof = score_out_of_fold(flat, folds, data, options.jobs, options.progress)
    searches, chosen, place = [], [], 0
    for member, recipes in zip(training.spec.members, candidates, strict=True):
        search = _search(member.name, recipes, oof, place, data, training.spec.objective)
        searches.append(search)
        chosen.append(place + search.best)
        place += len(recipes)
    members = [flat[index].member for index in chosen]
    selected = msgspec.structs.replace(training.spec, members=members)
    with one_thread():
        ensemble, alone = _ensemble(oof.take(chosen), selected, spec, data)
    means = {name: _mean(figures) for name, figures in alone.items()}
    reports = [_report(fold, data) for fold in folds]
    result = CrossValidation(training.spec.objective, reports, searches, ensemble, means, _mean(ensemble))
    return result, check_training(selected).spec


def evaluate_holdout(
    data: TrainingSet,
    spec: CheckedSpec,
    training: CheckedTraining,
    options: Options,
    record: Callable[[Holdout], None],
) -> HoldoutReport:
    """Train on the rows whose labels are known when the holdout begins, and evaluate on the holdout.

    `record` is called before the holdout is scored; if it raises, the holdout stays unopened.

    Raises:
        UsageError, SpecError: see `fit_ensemble`; or the training spec has no holdout.
    """
    holdout, rows, scores, metrics = _open(data, spec, training, options, record)
    if data.entity is not None:
        for name, column in scores.items():
            metrics[name]["card_precision"] = _card_precision(column, rows, data)
    return HoldoutReport(holdout.start, holdout.end, len(rows), int(data.label[rows].sum()), metrics)


def score_holdout(
    data: TrainingSet,
    spec: CheckedSpec,
    training: CheckedTraining,
    options: Options,
    record: Callable[[Holdout], None],
) -> tuple[Holdout, Ints, dict[str, Floats]]:
    """As `evaluate_holdout`: the row numbers ``(k,)``, and the scores ``(k,)`` by member and for `ensemble`."""
    return _open(data, spec, training, options, record)[:3]


def _open(
    data: TrainingSet,
    spec: CheckedSpec,
    training: CheckedTraining,
    options: Options,
    record: Callable[[Holdout], None],
) -> tuple[Holdout, Ints, dict[str, Floats], dict[str, dict[str, float]]]:
    holdout = find_holdout(data, training.spec)
    if holdout is None:
        raise SpecError("no holdout is declared", path="holdout", hint="Declare its length, such as holdout: 14d.")
    folds = training.spec.folds
    delay = label_delay_ms(folds, spec)
    end = holdout.start - delay
    trained = fit_ensemble(data, spec, training, options, before=end)
    rows = holdout.rows
    if folds.exclude_compromised:
        since = end - duration_ms(folds.train) if folds.train else int(data.event_time.min())
        rows = rows[~compromised(data, rows, since, delay)]
    frauds = int(data.label[rows].sum())
    if not 0 < frauds < len(rows):
        raise UsageError(
            f"the holdout has {frauds} frauds in the {len(rows)} rows that count; figures need both classes",
            hint="Declare a longer holdout, or set folds.exclude_compromised: false. This holdout was not opened.",
        )
    record(holdout)
    options.progress("scoring the holdout", 0, 1)
    raw = trained.predict(data.features, rows)
    with one_thread():
        metrics = trained.stack.metrics(raw, data.label[rows])
        member_scores = trained.stack.member_scores(raw)
        scores = {name: np.ascontiguousarray(member_scores[:, index]) for index, name in enumerate(trained.stack.names)}
        scores["ensemble"] = trained.stack.score(member_scores)
    return holdout, rows, scores, metrics


def _combinations(member: MemberTraining) -> list[dict[str, Parameter]]:
    return [dict(zip(member.grid, values, strict=True)) for values in itertools.product(*member.grid.values())]


def _with_parameters(member: MemberTraining, parameters: dict[str, Parameter]) -> MemberTraining:
    return msgspec.structs.replace(member, parameters=member.parameters | parameters, grid={})


def _search(
    name: str, recipes: Sequence[MemberRecipe], oof: OutOfFold, place: int, data: TrainingSet, objective: str
) -> MemberSearch:
    found = []
    for index, recipe in enumerate(recipes):
        figures = _by_fold(oof.member(place + index), oof, data)
        found.append(Candidate(recipe.member.parameters, figures, _mean(figures)))
    values = [getattr(candidate.mean, objective) for candidate in found]
    return MemberSearch(name, found, int(np.argmax(values)))


def _ensemble(
    oof: OutOfFold, selected: TrainingSpec, spec: CheckedSpec, data: TrainingSet
) -> tuple[list[Quality], dict[str, list[Quality]]]:
    """Quality on each fold but the oldest: of the ensemble with a stack of earlier folds, and of each member alone."""
    whole: list[Quality] = []
    alone: dict[str, list[Quality]] = {member.name: [] for member in selected.members}
    for number in range(1, int(oof.fold.max()) + 1):
        before, here = oof.fold < number, (oof.fold == number) & oof.counted
        stack = fit_stack(oof.raw[before], oof.label[before], selected, spec)
        rows = oof.rows[here]
        whole.append(_quality(stack.score(stack.member_scores(oof.raw[here])), rows, data))
        for index, member in enumerate(selected.members):
            alone[member.name].append(_quality(oof.member(index)[here], rows, data))
    return whole, alone


def _by_fold(score: Floats, oof: OutOfFold, data: TrainingSet) -> list[Quality]:
    out = []
    for number in range(int(oof.fold.max()) + 1):
        here = (oof.fold == number) & oof.counted
        out.append(_quality(score[here], oof.rows[here], data))
    return out


def _quality(score: Floats, rows: Ints, data: TrainingSet) -> Quality:
    label = data.label[rows]
    cards = None if data.entity is None else _card_precision(score, rows, data)
    return Quality(average_precision(score, label) or 0.0, roc_auc(score, label) or 0.0, cards)


def _card_precision(score: Floats, rows: Ints, data: TrainingSet) -> float:
    assert data.entity is not None
    return card_precision(score, data.label[rows], data.entity[rows], data.event_time[rows] // DAY_MS)


def _mean(figures: Sequence[Quality]) -> Quality:
    def mean(name: str) -> float:
        return float(np.mean([getattr(each, name) for each in figures]))

    cards = None if any(each.card_precision is None for each in figures) else mean("card_precision")
    return Quality(mean("average_precision"), mean("roc_auc"), cards)


def _report(fold: Fold, data: TrainingSet) -> FoldReport:
    window = fold.window
    times = (window.train_start, window.train_end, window.test_start, window.test_end)
    counted = fold.test[fold.counted]
    frauds = int(data.label[counted].sum())
    return FoldReport(*times, len(fold.train), int(fold.label.sum()), len(counted), frauds)
