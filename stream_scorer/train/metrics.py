"""The metrics of a trained score, by their names in the manifest."""

from __future__ import annotations

from stream_scorer import quality
from stream_scorer.quality import F64, Bools


def score_figures(score: F64, label: Bools) -> dict[str, float]:
    """Average precision, ROC AUC, log loss and calibration error of ``(n,)`` scores; undefined ones are omitted."""
    figures = {
        "average_precision": quality.average_precision(score, label),
        "roc_auc": quality.roc_auc(score, label),
        "log_loss": quality.log_loss(score, label),
        "calibration_error": quality.calibration_error(score, label),
    }
    return {name: value for name, value in figures.items() if value is not None}


def alert_figures(score: F64, label: Bools, review: float, block: float) -> dict[str, float]:
    """Alert rate, precision, recall and false-positive rate at the thresholds; 0 where a rate is undefined."""
    out = {}
    for name, threshold in (("review", review), ("block", block)):
        alerts = quality.alert_quality(score >= threshold, label)
        out[f"{name}_alert_rate"] = alerts.alert_rate or 0.0
        out[f"{name}_precision"] = alerts.precision or 0.0
        out[f"{name}_recall"] = alerts.recall or 0.0
        out[f"{name}_false_positive_rate"] = alerts.false_positive_rate or 0.0
    return out
