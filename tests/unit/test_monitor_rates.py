"""Bounds of rates: they contain the truth over every labelling the assumptions allow."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_scorer.monitor.rates import (
    Assumptions,
    Labelled,
    at_most,
    binomial_limits,
    errors_at_most,
    false_discovery_rate,
    false_positive_rate,
    false_positives_per_fraud,
    precision,
    recall,
)
from tests.support.assumptions import FACE_VALUE

NUMBER = st.integers(0, 2_000)


def test_face_value_is_the_definition() -> None:
    counts = Labelled(n_positive=100, n_negative=900, tp=30, fp=20, fn=10, tn=5)
    rate = false_positive_rate(counts, FACE_VALUE)
    assert (rate.low, rate.high) == (20 / 960, 70 / 960)
    assert rate.value is None
    assert (rate.numerator, rate.denominator) == (20, 960)
    assert false_positive_rate(counts, Assumptions()).statistics["face_high"] == 70 / 960


def test_face_value_misses_an_unreported_fraud() -> None:
    """Every alert labelled, one approved fraud never reported: the reason for the allowance."""
    counts = Labelled(n_positive=10, n_negative=90, tp=5, fp=5, fn=0, tn=0)
    truth = 5 / (5 + 89)
    face = false_positive_rate(counts, FACE_VALUE).high
    allowed = false_positive_rate(counts, Assumptions()).high
    assert face is not None
    assert allowed is not None
    assert face < truth < allowed


def test_point_estimate_weighs_by_review_probability() -> None:
    counts = Labelled(100, 900, tp=10, fp=12, fp_by_probability={0.5: 10, 0.1: 2})
    # Of the 100 positives, 10 / 0.5 + 2 / 0.1 = 40 are estimated to be genuine, so the other 60 count as fraud.
    assert false_positive_rate(counts, FACE_VALUE).value == pytest.approx(40 / 940)
    assert precision(counts).value == pytest.approx(0.6)
    assert false_discovery_rate(counts).value == pytest.approx(0.4)
    partly = Labelled(100, 900, tp=10, fp=12, fp_by_probability={0.5: 10})
    assert false_positive_rate(partly, FACE_VALUE).value is None
    complete = Labelled(22, 900, tp=10, fp=12)
    assert false_positive_rate(complete, FACE_VALUE).value == 12 / 912


def test_evidence_overrules_the_cap() -> None:
    quiet = Labelled(10, 10_000, tn=95, fn=5, reviewed_negative=100, reviewed_negative_fraud=5)
    loud = Labelled(10, 10_000, tn=80, fn=20, reviewed_negative=100, reviewed_negative_fraud=20)
    assert false_positive_rate(quiet, Assumptions()).statistics["cap_overruled"] == 0
    rate = false_positive_rate(loud, Assumptions())
    assert rate.statistics["cap_overruled"] == 1
    assert rate.statistics["unreported_at_most"] == math.ceil(binomial_limits(20, 100)[1] * 9_900)


def test_held_for_review_is_unknown_when_only_blocks_are_positive() -> None:
    counts = Labelled(n_positive=10, n_negative=100, fp=10, held_silent=60)
    high = false_positive_rate(counts, FACE_VALUE).high
    assert high == 10 / 50  # all sixty may be fraud


@given(tp=NUMBER, fp=NUMBER, fn=NUMBER, tn=NUMBER, x=NUMBER, not_x=NUMBER, silent=NUMBER, share=st.floats(0, 1))
def test_bounds_contain_the_truth_whatever_is_silent(
    tp: int, fp: int, fn: int, tn: int, x: int, not_x: int, silent: int, share: float
) -> None:
    """Any split of the silent positives, any selective silence among approvals up to the cap; labels are right."""
    assumed = Assumptions(unreported_cap=0.02, reviewer_miss=0.0, reviewer_false=0.0)
    y = int(share * 0.02 * silent)
    counts = Labelled(tp + fp + x + not_x, fn + tn + silent, tp=tp, fp=fp, fn=fn, tn=tn)
    genuine = fp + x + tn + silent - y
    rate = false_positive_rate(counts, assumed)
    if genuine:
        truth = (fp + x) / genuine
        assert rate.low is not None
        assert rate.high is not None
        assert rate.low <= truth <= rate.high <= 1.0
        assert rate.low <= (rate.value if rate.value is not None else rate.low) <= rate.high
    alerted = tp + fp + x + not_x
    if alerted:
        bounds = precision(counts)
        assert bounds.low is not None
        assert bounds.high is not None
        assert bounds.low <= (tp + not_x) / alerted <= bounds.high
        wrong = false_discovery_rate(counts)
        assert wrong.low == pytest.approx(1 - bounds.high)
        assert wrong.high == pytest.approx(1 - bounds.low)
    frauds = tp + not_x + fn + y
    if frauds and tp + fn:
        caught = recall(counts, assumed)
        assert caught.low is not None
        assert caught.high is not None
        assert caught.low <= (tp + not_x) / frauds <= caught.high
    if tp:
        price = false_positives_per_fraud(counts)
        assert price.low is not None
        assert price.high is not None
        assert price.low <= (fp + x) / (tp + not_x) <= price.high


@given(
    n=st.tuples(NUMBER, NUMBER, NUMBER, NUMBER),
    u=NUMBER,
    silent=NUMBER,
    duplicates=st.integers(0, 50),
    cut=st.tuples(*[st.floats(0, 1)] * 6),
)
def test_bounds_contain_the_truth_when_reviewers_err(
    n: tuple[int, int, int, int], u: int, silent: int, duplicates: int, cut: tuple[float, ...]
) -> None:
    """Each of the five unknowns anywhere up to its allowance, in any combination."""
    tp, fp, fn, tn = n
    assumed = Assumptions()
    a = int(cut[0] * errors_at_most(tp, fp, assumed.reviewer_miss))
    b = int(cut[1] * errors_at_most(fp, tp, assumed.reviewer_false))
    c = int(cut[2] * errors_at_most(fn, tn, assumed.reviewer_miss))
    d = int(cut[3] * errors_at_most(tn, fn, assumed.reviewer_false))
    y = int(cut[4] * at_most(silent, assumed.unreported_cap))
    x = int(cut[5] * u)
    duplicates = min(duplicates, silent - y)
    counts = Labelled(tp + fp + u, fn + tn + silent, duplicates, tp, fp, fn, tn)
    positive = fp - a + b + x
    genuine = positive + tn - c + d + silent - y - duplicates
    rate = false_positive_rate(counts, assumed)
    if genuine and rate.low is not None:
        assert rate.high is not None
        assert rate.low - 1e-12 <= positive / genuine <= rate.high + 1e-12


def test_coverage_over_simulated_labelling() -> None:
    """Windows labelled as life labels them: reviewers with limits and errors, late and missing chargebacks."""
    rng = np.random.default_rng(17)
    missed = widths = missed_at_face = 0
    windows = 2_000
    for _ in range(windows):
        rows = int(rng.integers(200, 5_000))
        fraud = rng.random(rows) < 0.007
        alerted = rng.random(rows) < np.where(fraud, 0.7, 0.01)
        reviewed = alerted & (rng.random(rows) < rng.choice([0.3, 1.0]))
        sampled = ~alerted & (rng.random(rows) < 0.001)
        looked = reviewed | sampled
        error = rng.random(rows) < np.where(fraud, 0.05, 0.01)
        says_fraud = np.where(looked, fraud ^ error, False)
        complained = ~alerted & fraud & (rng.random(rows) > 0.2)
        says_fraud |= complained
        labelled = looked | complained
        counts = Labelled(
            n_positive=int(alerted.sum()),
            n_negative=int((~alerted).sum()),
            tp=int((alerted & labelled & says_fraud).sum()),
            fp=int((alerted & labelled & ~says_fraud).sum()),
            fn=int((~alerted & labelled & says_fraud).sum()),
            tn=int((~alerted & labelled & ~says_fraud).sum()),
            reviewed_negative=int((sampled & ~complained).sum()),
            reviewed_negative_fraud=int((sampled & ~complained & says_fraud).sum()),
        )
        truth = (alerted & ~fraud).sum() / (~fraud).sum()
        rate = false_positive_rate(counts, Assumptions())
        face = rate.statistics
        assert rate.low is not None
        assert rate.high is not None
        assert face["face_low"] is not None
        assert face["face_high"] is not None
        missed += not rate.low <= truth <= rate.high
        missed_at_face += not face["face_low"] <= truth <= face["face_high"]
        widths += (rate.high - rate.low) / truth if truth else 0
    assert missed <= 0.005 * windows
    assert missed_at_face > 0.1 * windows  # the allowances are not idle
    assert widths / windows < 2  # and the bounds still say something


def test_binomial_limits_golden() -> None:
    # Clopper-Pearson at 0.025 each side: R's binom.test(7, 20) and (0, 10).
    assert binomial_limits(7, 20, 0.025) == pytest.approx((0.1539092, 0.5921885), abs=1e-6)
    assert binomial_limits(0, 10, 0.025) == pytest.approx((0.0, 0.3084971), abs=1e-6)
    assert binomial_limits(10, 10, 0.025) == pytest.approx((0.6915029, 1.0), abs=1e-6)


def test_labels_ahead_of_summaries_do_no_harm() -> None:
    rate = false_positive_rate(Labelled(n_positive=0, n_negative=0, tp=1, fp=2), Assumptions())
    assert rate.denominator == 2
    assert rate.high == 1.0
