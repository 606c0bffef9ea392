"""Prequential folds: training window, label delay, test window, each fold one test window before the next.

Source: chapter 5 of the Fraud Detection Handbook (Le Borgne, Siblini, Lebichot, Bontempi), `prequentialSplit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stream_scorer.arrays import Bools, Ints
from stream_scorer.errors import UsageError
from stream_scorer.spec.model import CheckedSpec, duration_ms
from stream_scorer.spec.training import Folds
from stream_scorer.train.recipe import TrainingSet
from stream_scorer.train.split import MIN_POSITIVES

DAY_MS = 86_400_000
# Without a declared length, the test windows divide this share of the time range.
_TESTED_SHARE = 0.4


@dataclass(frozen=True, slots=True)
class Window:
    """One fold's times in epoch ms: training ``[train_start, train_end)``, test ``[test_start, test_end)``.

    The delay is between `train_end` and `test_start`: it purges the rows whose labels are not complete when the test
    window begins.
    """

    train_start: int
    train_end: int
    test_start: int
    test_end: int


@dataclass(frozen=True, slots=True)
class Fold:
    """Row numbers of a fold, ``(k,) int64`` each, ascending.

    Attributes:
        window: the times.
        train: training rows. label: ``(len(train),) bool``, their labels as known at the beginning of the test window.
        test: rows of the test window.
        counted: ``(len(test),) bool``, those that figures of `cv` count: `Folds.exclude_compromised` leaves some out.
    """

    window: Window
    train: Ints
    label: Bools
    test: Ints
    counted: Bools


def label_delay_ms(folds: Folds, spec: CheckedSpec) -> int:
    """The label delay of the folds: declared, or the label horizon of the pipeline spec."""
    return duration_ms(folds.delay or spec.spec.labels.horizon)


def make_windows(folds: Folds, first: int, end: int, delay: int, *, rows_follow: bool = False) -> list[Window]:
    """The windows of `folds` over the times ``[first, end)``, oldest first; all times in epoch ms.

    Test windows of whole days begin at midnight UTC. The last day may be incomplete, unless `rows_follow`: rows at or
    after `end` must not be in a window, so it ends at the midnight before.

    Raises:
        UsageError: the history is too short.
    """
    test = duration_ms(folds.test) if folds.test else max(int((end - first) * _TESTED_SHARE) // folds.count, 1)
    train = duration_ms(folds.train) if folds.train else None
    if folds.test and test % DAY_MS == 0:
        end = end - end % DAY_MS if rows_follow else end_of_day(end)
    windows = []
    for number in range(folds.count):
        test_end = end - number * test
        train_end = test_end - test - delay
        train_start = first if train is None else train_end - train
        windows.append(Window(train_start, train_end, test_end - test, test_end))
    oldest = windows[-1]
    if oldest.train_end <= first or oldest.train_start < first - DAY_MS:
        needed = (end - oldest.train_end + (train or test)) / DAY_MS
        raise UsageError(
            f"{folds.count} folds need {needed:.1f} days of labelled history, there are {(end - first) / DAY_MS:.1f}",
            hint="Train on a longer history, or lower folds.count, folds.train, folds.test or folds.delay.",
        )
    return windows[::-1]


def end_of_day(end: int) -> int:
    """The end of the UTC day that contains the last millisecond before `end`."""
    return -(-end // DAY_MS) * DAY_MS


def make_folds(windows: Sequence[Window], data: TrainingSet, folds: Folds, delay: int) -> list[Fold]:
    """The rows of each window.

    Raises:
        UsageError: a training window, or what counts of a test window, has fewer than `MIN_POSITIVES` frauds or no
            genuine transaction, or compromised entities are to be excluded and `data` has no entities.
    """
    out = []
    for number, window in enumerate(windows):
        train = np.flatnonzero((data.event_time >= window.train_start) & (data.event_time < window.train_end))
        label = known_label(data, train, window.test_start, delay)
        test = np.flatnonzero((data.event_time >= window.test_start) & (data.event_time < window.test_end))
        counted = np.ones(len(test), np.bool_)
        if folds.exclude_compromised:
            counted = ~compromised(data, test, window.train_start, delay)
        for part, labels in (("training", label), ("test", data.label[test[counted]])):
            positives = int(labels.sum())
            if positives < MIN_POSITIVES or positives == len(labels):
                raise UsageError(
                    f"the {part} window of fold {number + 1} has {positives} frauds in {len(labels)} rows; at least "
                    f"{MIN_POSITIVES} frauds and one genuine transaction are needed",
                    hint="Declare longer windows (folds.train, folds.test), or fewer folds.",
                )
        out.append(Fold(window, train, label, test, counted))
    return out


def known_label(data: TrainingSet, rows: Ints, at: int, delay: int) -> Bools:
    """Labels ``(k,)`` of `rows` as known at time `at`: a fraud that is reported later counts as genuine."""
    return data.label[rows] & (_labelled_at(data, delay)[rows] <= at)


def compromised(data: TrainingSet, rows: Ints, since: int, delay: int) -> Bools:
    """``(k,) bool``: rows whose entity had a fraud since `since` that was known at the beginning of the row's day.

    Raises:
        UsageError: `data` has no entities.
    """
    if data.entity is None:
        raise UsageError(
            "exclude_compromised needs entities, but the pipeline spec has none",
            hint="Declare `partition_entity` in the pipeline spec, or set exclude_compromised: false.",
        )
    frauds = np.flatnonzero(data.label & (data.event_time >= since))
    # The earliest time at which a fraud of the entity is known.
    known = np.full(int(data.entity.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(known, data.entity[frauds], _labelled_at(data, delay)[frauds])
    day = data.event_time[rows] - data.event_time[rows] % DAY_MS
    return np.asarray(known[data.entity[rows]] < day, np.bool_)


def _labelled_at(data: TrainingSet, delay: int) -> Ints:
    return data.event_time + delay if data.labelled_at is None else data.labelled_at
