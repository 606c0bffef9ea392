"""Figures of a score against labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Quantile bins: with equal widths nearly every score of a rare class would share the first.
_CALIBRATION_BINS = 20


def judge(score: NDArray[np.float64], label: NDArray[np.bool_]) -> dict[str, float]:
    """Average precision, ROC AUC, log loss and calibration error of ``(n,)`` scores; rows without a score are left out.

    Calibration error is the mean over quantile bins of ``|mean score - fraud rate|``, weighted by rows.
    """
    from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

    scored = ~np.isnan(score)
    score, label = score[scored], label[scored]
    return {
        "average_precision": float(average_precision_score(label, score)),
        "roc_auc": float(roc_auc_score(label, score)),
        "log_loss": float(log_loss(label, score, labels=[False, True])),
        "calibration_error": _calibration_error(score, label),
    }


def judge_decisions(
    score: NDArray[np.float64], label: NDArray[np.bool_], review: float, block: float
) -> dict[str, float]:
    """Alert rate, precision, recall and false-positive rate at the thresholds `review` and `block`."""
    out = {}
    for name, threshold in (("review", review), ("block", block)):
        alert = score >= threshold
        caught = float((alert & label).sum())
        out[f"{name}_alert_rate"] = float(alert.mean())
        out[f"{name}_precision"] = caught / max(float(alert.sum()), 1.0)
        out[f"{name}_recall"] = caught / max(float(label.sum()), 1.0)
        out[f"{name}_false_positive_rate"] = float((alert & ~label).sum()) / max(float((~label).sum()), 1.0)
    return out


def _calibration_error(score: NDArray[np.float64], label: NDArray[np.bool_]) -> float:
    order = np.argsort(score, kind="stable")
    total = 0.0
    for rows in np.array_split(order, _CALIBRATION_BINS):
        if len(rows):
            total += len(rows) * abs(float(score[rows].mean()) - float(label[rows].mean()))
    return total / len(score)
