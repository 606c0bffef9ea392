"""Intervals by card: replicates agree with scikit-learn on the weighted transactions, also where scores are equal."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from stream_scorer.evaluation.bootstrap import CardWeights, Replicates


@pytest.mark.parametrize("digits", [1, 2, 16])
def test_replicates_are_the_figures_of_the_weighted_transactions(digits: int) -> None:
    rng = np.random.default_rng(1)
    n, count = 2_000, 8
    card, fraud = rng.integers(0, 400, n), rng.random(n) < 0.05
    score = np.round(1.0 / (1.0 + np.exp(-rng.normal(size=n) - 1.5 * fraud)), digits)
    cards, replicates = CardWeights(card, count, 1), Replicates(score[fraud], count, 0)
    replicates.add(cards, score, fraud, (score > 0.9).astype(np.int8), np.ones(n, np.int64), [])
    found, weights = replicates.figures(), cards.weights[cards.place].astype(np.float64)
    for b in range(count):
        expected = metrics.roc_auc_score(fraud, score, sample_weight=weights[:, b])
        assert found["roc_auc"][b] == pytest.approx(expected, abs=1e-12)
        expected = metrics.average_precision_score(fraud, score, sample_weight=weights[:, b])
        assert found["average_precision"][b] == pytest.approx(expected, abs=1e-12)


def test_a_transaction_without_a_score_is_in_the_rates_of_alerts() -> None:
    """Its decision is the fallback of the policy, as in the figures themselves."""
    rng = np.random.default_rng(2)
    n, count = 2_000, 8
    card, fraud, score = rng.integers(0, 400, n), rng.random(n) < 0.05, rng.random(n)
    score[rng.random(n) < 0.3] = np.nan
    alert, block = ~(score < 0.7), score >= 0.8
    decision = alert.astype(np.int8) + block
    cards, replicates = CardWeights(card, count, 1), Replicates(score[fraud], count, 1)
    replicates.add(cards, score, fraud, decision, np.ones(n, np.int64), [score >= 0.9])
    found, weights = replicates.figures(), cards.weights[cards.place].astype(np.float64)
    for name, hits, of in (
        ("recall", alert, fraud),
        ("false_positive_rate", alert, ~fraud),
        ("alert_rate", alert, np.ones(n, np.bool_)),
        ("block_rate", block, np.ones(n, np.bool_)),
        ("blocked_genuine_rate", block, ~fraud),
        ("budget_recall_0", score >= 0.9, fraud),
    ):
        expected = [np.average(hits[of], weights=weights[of, b]) for b in range(count)]
        np.testing.assert_allclose(found[name], expected, err_msg=name)
