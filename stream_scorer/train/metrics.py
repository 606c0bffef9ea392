"""The metrics of a trained score, by their names in the manifest."""

from __future__ import annotations

import numpy as np

from stream_scorer import quality
from stream_scorer.arrays import Bools, Floats, Ints

# Cards that investigators can check per day, as in the Fraud Detection Handbook.
CARDS_PER_DAY = 100


def score_figures(score: Floats, label: Bools) -> dict[str, float]:
    """Average precision, ROC AUC, log loss and calibration error of ``(n,)`` scores; undefined ones are omitted."""
    figures = {
        "average_precision": quality.average_precision(score, label),
        "roc_auc": quality.roc_auc(score, label),
        "log_loss": quality.log_loss(score, label),
        "calibration_error": quality.calibration_error(score, label),
    }
    return {name: value for name, value in figures.items() if value is not None}


def alert_figures(score: Floats, label: Bools, review: float, block: float) -> dict[str, float]:
    """Alert rate, precision, recall and false-positive rate at the thresholds; 0 where a rate is undefined."""
    out = {}
    for name, threshold in (("review", review), ("block", block)):
        alerts = quality.alert_quality(score >= threshold, label)
        out[f"{name}_alert_rate"] = alerts.alert_rate or 0.0
        out[f"{name}_precision"] = alerts.precision or 0.0
        out[f"{name}_recall"] = alerts.recall or 0.0
        out[f"{name}_false_positive_rate"] = alerts.false_positive_rate or 0.0
    return out


def card_precision(score: Floats, label: Bools, entity: Ints, day: Ints, k: int = CARDS_PER_DAY) -> float:
    """Mean over days of the share of cards with a fraud among the `k` cards with the highest score of the day.

    A card that was found does not count on later days, because it is blocked then. All arguments are ``(n,)``; `entity`
    has the number of the card from 0. Source: the Fraud Detection Handbook, chapter 4, `card_precision_top_k`.
    """
    if not len(score):
        return 0.0
    found = np.zeros(int(entity.max()) + 1, np.bool_)
    shares = []
    for each in np.unique(day):
        rows = np.flatnonzero((day == each) & ~found[entity])
        # By card, its highest score first; ties keep the number of the card.
        rows = rows[np.lexsort((-score[rows], entity[rows]))]
        cards, first = np.unique(entity[rows], return_index=True)
        fraud = np.zeros(len(found), np.bool_)
        fraud[entity[rows[label[rows]]]] = True
        top = cards[np.argsort(-score[rows[first]], kind="stable")[:k]]
        caught = top[fraud[top]]
        found[caught] = True
        shares.append(len(caught) / k)
    return float(np.mean(shares))
