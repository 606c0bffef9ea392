"""Model quality: the figures of scikit-learn where they are defined, and None where they are not."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from sklearn import metrics

from stream_scorer import quality
from stream_scorer.arrays import Bools, Floats
from stream_scorer.errors import SettingsError

NONE = np.zeros(3, dtype=np.bool_)
SOME = np.array([0.1, 0.2, 0.3])


def drawn(seed: int) -> tuple[Floats, Bools]:
    rng = np.random.default_rng(seed)
    label = rng.random(400) < 0.1
    return np.round(rng.random(400) * 0.7 + 0.3 * label, 2 if seed % 2 else 6), label  # with ties, and without


@pytest.mark.parametrize("seed", range(4))
def test_rows_without_a_score_are_left_out(seed: int) -> None:
    score, label = drawn(seed)
    holes = np.random.default_rng(seed + 99).random(400) < 0.2
    holed, kept = np.where(holes, np.nan, score), (label[~holes], score[~holes])
    assert quality.average_precision(holed, label) == pytest.approx(metrics.average_precision_score(*kept))
    assert quality.roc_auc(holed, label) == pytest.approx(metrics.roc_auc_score(*kept))
    assert quality.log_loss(holed, label) == pytest.approx(metrics.log_loss(*kept))
    assert quality.calibration_error(holed, label) == quality.calibration_error(score[~holes], label[~holes])


def test_undefined_figures_are_none() -> None:
    assert quality.average_precision(SOME, NONE) is None
    assert quality.roc_auc(SOME, NONE) is None
    assert quality.roc_auc(SOME, ~NONE) is None
    assert quality.log_loss(SOME * np.nan, NONE) is None
    assert quality.calibration_error(SOME * np.nan, NONE) is None
    assert [len(part) for part in quality.precision_recall_curve(SOME, NONE)] == [0, 0]
    nothing = quality.alert_quality(NONE, NONE)
    assert (nothing.precision, nothing.recall, nothing.alert_rate) == (None, None, 0.0)


def test_calibration_error_is_the_gap_between_score_and_fraud_rate() -> None:
    label = np.arange(1_000) % 4 == 0
    assert quality.calibration_error(np.full(1_000, 0.25), label) == pytest.approx(0.0, abs=0.02)
    assert quality.calibration_error(np.full(1_000, 0.75), label) == pytest.approx(0.5, abs=0.02)


def test_equal_scores_are_one_point_of_the_curve() -> None:
    score = np.array([0.9, 0.5, 0.5, 0.1, np.nan])
    precision, recall = quality.precision_recall_curve(score, np.array([True, True, False, False, True]))
    assert recall.tolist() == [0.5, 1.0, 1.0]
    assert precision.tolist() == [1.0, 2 / 3, 0.5]


def test_alert_quality_counts_rows() -> None:
    alert, label = np.array([True, True, True, False, False]), np.array([True, False, False, True, False])
    found = quality.alert_quality(alert, label)
    assert (found.alerts, found.caught, found.frauds, found.genuine) == (3, 1, 2, 3)
    assert (found.alert_rate, found.precision, found.recall) == (0.6, 1 / 3, 0.5)
    assert found.false_positive_rate == 2 / 3


def test_a_missing_scikit_learn_is_an_error_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(SettingsError, match="scikit-learn") as raised:
        quality.require_sklearn("replay")
    assert ".[replay]" in str(raised.value.hint)
