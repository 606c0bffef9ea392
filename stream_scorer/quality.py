"""Model quality: scores and alerts against labels. The only home of these figures, on `sklearn.metrics`.

scikit-learn belongs to the extras `replay`, `report` and `train`; this module imports without it. Rows whose score is
NaN are left out. A figure that the rows do not define (such as the ROC AUC of one class) is None.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from stream_scorer.arrays import Bools, Floats, Ints
from stream_scorer.errors import SettingsError, install_hint

# Quantile bins: with equal widths nearly every score of a rare class would share the first.
_CALIBRATION_BINS = 20


@dataclass(frozen=True, slots=True)
class AlertQuality:
    """Alerts against labels. `caught` alerts are fraud; `frauds` and `genuine` count all rows, alerted or not."""

    alerts: int
    caught: int
    frauds: int
    genuine: int

    @property
    def alert_rate(self) -> float | None:
        """Alerts among all rows."""
        return _ratio(self.alerts, self.frauds + self.genuine)

    @property
    def precision(self) -> float | None:
        """Fraud among alerts."""
        return _ratio(self.caught, self.alerts)

    @property
    def recall(self) -> float | None:
        """Alerts among fraud."""
        return _ratio(self.caught, self.frauds)

    @property
    def false_positive_rate(self) -> float | None:
        """Alerts among genuine rows."""
        return _ratio(self.alerts - self.caught, self.genuine)


def require_sklearn(extra: str) -> None:
    """Raise `SettingsError`, which names the extra to install, if scikit-learn is missing."""
    _metrics(extra)


def average_precision(score: Floats, label: Bools) -> float | None:
    """Area under the precision-recall steps of ``(n,)`` scores, ties as one threshold; None without a fraud."""
    score, label = _scored(score, label)
    return float(_metrics().average_precision_score(label, score)) if label.any() else None


def roc_auc(score: Floats, label: Bools) -> float | None:
    """Probability that a fraud scores above a genuine row, ties half; None unless there are both."""
    score, label = _scored(score, label)
    return float(_metrics().roc_auc_score(label, score)) if label.any() and not label.all() else None


def log_loss(score: Floats, label: Bools) -> float | None:
    """Mean negative log-likelihood of the labels ``(n,)`` under the scores ``(n,)``, in nats; None without rows."""
    score, label = _scored(score, label)
    return float(_metrics().log_loss(label, score, labels=[False, True])) if len(label) else None


def calibration_error(score: Floats, label: Bools) -> float | None:
    """Mean over quantile bins of ``|mean score - fraud rate|``, weighted by rows; None without rows."""
    score, label = _scored(score, label)
    if not len(label):
        return None
    total = 0.0
    for rows in np.array_split(np.argsort(score, kind="stable"), _CALIBRATION_BINS):
        if len(rows):
            total += len(rows) * abs(float(score[rows].mean()) - float(label[rows].mean()))
    return total / len(score)


def precision_recall_curve(score: Floats, label: Bools) -> tuple[Floats, Floats]:
    """Precision and recall ``(k,)`` at every distinct score, strictest threshold first; empty without a fraud."""
    score, label = _scored(score, label)
    if not label.any():
        return np.zeros(0), np.zeros(0)
    precision, recall, _ = _metrics().precision_recall_curve(label, score)
    # scikit-learn puts the loosest threshold first, and the point (1, 0) of no threshold last.
    return precision[-2::-1], recall[-2::-1]


def ranking_of_counts(frauds: Ints, genuine: Ints) -> tuple[float | None, float | None]:
    """Average precision and ROC AUC of scores that are given as counts per distinct score, lowest score first.

    For many rows, `frauds` and `genuine` ``(k,)`` need much less memory than a score per row and give the same figures.
    """
    place = np.arange(len(frauds))
    used, hits = frauds > 0, genuine > 0
    score = np.concatenate([place[used], place[hits]])
    label = np.repeat([True, False], [int(used.sum()), int(hits.sum())])
    weight = np.concatenate([frauds[used], genuine[hits]])
    if not used.any():
        return None, None
    metrics = _metrics()
    precision = float(metrics.average_precision_score(label, score, sample_weight=weight))
    return precision, float(metrics.roc_auc_score(label, score, sample_weight=weight)) if hits.any() else None


def brier_score(score: Floats, label: Bools) -> float | None:
    """Mean squared difference of scores ``(n,)`` and labels ``(n,)``; None without rows."""
    score, label = _scored(score, label)
    return float(_metrics().brier_score_loss(label, score, pos_label=True)) if len(label) else None


def alert_quality(alert: Bools, label: Bools) -> AlertQuality:
    """`AlertQuality` of the alerts ``(n,)`` against the labels ``(n,)``."""
    frauds = int(label.sum())
    return AlertQuality(int(alert.sum()), int((alert & label).sum()), frauds, len(label) - frauds)


def _scored(score: Floats, label: Bools) -> tuple[Floats, Bools]:
    scored = ~np.isnan(score)
    return score[scored], label[scored]


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _metrics(extra: str = "train") -> Any:
    try:
        from sklearn import metrics
    except ImportError:
        raise SettingsError("model quality needs scikit-learn", hint=install_hint(extra)) from None
    return metrics
