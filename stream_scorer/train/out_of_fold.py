"""Out-of-fold scores: each test window is scored by members that were fitted on the training window before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from stream_scorer.arrays import Bools, Floats, Ints
from stream_scorer.train.algorithms import MemberRecipe, fit_member, predict
from stream_scorer.train.folds import Fold
from stream_scorer.train.parallel import run_parallel
from stream_scorer.train.recipe import Progress, TrainingSet


@dataclass(frozen=True, slots=True)
class OutOfFold:
    """The rows of all test windows in order of time, and the predictions of members that were not fitted on them.

    Attributes:
        rows: ``(n,)`` row numbers of the training set. label: ``(n,) bool``.
        counted: ``(n,) bool``, the rows that figures of `cv` count.
        fold: ``(n,)`` number of the fold of each row, from 0 for the oldest.
        raw: ``(n, m)`` uncalibrated probabilities.
    """

    rows: Ints
    label: Bools
    counted: Bools
    fold: Ints
    raw: Floats

    def member(self, index: int) -> Floats:
        """``(n,)``: the probabilities of one member."""
        return np.ascontiguousarray(self.raw[:, index])

    def take(self, members: Sequence[int]) -> OutOfFold:
        """The same rows with some of the members, in the given order."""
        return replace(self, raw=np.ascontiguousarray(self.raw[:, members]))


def score_out_of_fold(
    recipes: Sequence[MemberRecipe], folds: Sequence[Fold], data: TrainingSet, jobs: int, progress: Progress
) -> OutOfFold:
    """Fit every member on the training window of every fold, `jobs` at a time, and score the test windows."""
    tasks = [(recipe, fold) for fold in folds for recipe in recipes]

    def work(task: tuple[MemberRecipe, Fold]) -> Floats:
        recipe, fold = task
        fitted = fit_member(recipe, data.features, fold.train, fold.label)
        return predict(recipe, fitted, data.features, fold.test)

    parts = run_parallel(work, tasks, jobs, lambda done: progress("fitting members out of fold", done, len(tasks)))
    width = len(recipes)
    rows = np.concatenate([fold.test for fold in folds])
    return OutOfFold(
        rows,
        data.label[rows],
        np.concatenate([fold.counted for fold in folds]),
        np.concatenate([np.full(len(fold.test), number) for number, fold in enumerate(folds)]),
        np.concatenate([np.column_stack(parts[n * width : (n + 1) * width]) for n in range(len(folds))]),
    )
