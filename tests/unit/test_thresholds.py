"""Thresholds that are fitted to alert rates, also where many rows have the same score."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from stream_scorer.errors import UsageError
from stream_scorer.spec.load import parse_spec
from stream_scorer.train.combination import check_alert_rates, choose_thresholds
from stream_scorer.train.recipe import AlertRates
from tests.support.specs import card_spec

SPEC = parse_spec(card_spec(""))


def scores(*, top: int) -> np.ndarray:
    """1,000 scores, of which `top` are 0.9 and the others all different and lower."""
    return np.append(np.full(top, 0.9), np.linspace(0.0, 0.5, 1_000 - top))


def shares(score: np.ndarray, review: float, block: float) -> tuple[float, float]:
    rates = AlertRates(review, block)
    fitted = choose_thresholds(SPEC, score, rates)
    check_alert_rates(score, fitted, rates)
    return float((score >= fitted.review).mean()), float((score >= fitted.block).mean())


def test_a_threshold_is_on_the_nearer_side_of_equal_scores(caplog: pytest.LogCaptureFixture) -> None:
    assert shares(scores(top=12), 0.1, 0.01) == (0.1, 0.012)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert shares(scores(top=18), 0.1, 0.01) == (0.1, 0.018)
    assert "the block threshold 0.7 gives 1.800 % of the 1000 rows instead of 1.000 %" in caplog.text


def test_distinct_scores_never_exceed_the_target() -> None:
    assert shares(scores(top=1), 0.0109, 0.0029) == (0.010, 0.002)
    # A rate of less than one row is one row.
    assert shares(scores(top=1), 0.0109, 0.0006) == (0.010, 0.001)


def test_a_target_that_no_row_would_reach_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"no threshold fits the block rate of 0.200%: 30 of 1,000 rows \(3.000%\)"
    ) as error:
        shares(scores(top=30), 0.05, 0.002)
    assert "platt" in error.value.hint
