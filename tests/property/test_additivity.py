"""Contributions add up to z, whatever the members return, whichever are missing, whatever the weights."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from proofs import additivity
from stream_scorer.ensemble.combine import Combiner
from stream_scorer.ensemble.manifest import (
    Input,
    Isotonic,
    Manifest,
    MemberSpec,
    NoCalibrator,
    Platt,
    SelfTest,
    Thresholds,
    Training,
)

probability = st.one_of(st.floats(0.0, 1.0), st.sampled_from([0.0, 1.0, 1e-300, 1 - 1e-16, 0.5]), st.just(math.nan))
calibrators = st.one_of(
    st.just(NoCalibrator()),
    st.builds(Platt, slope=st.floats(0.01, 10.0), intercept=st.floats(-10.0, 10.0)),
    st.just(Isotonic([0.1, 0.5, 0.9], [0.0, 0.2, 1.0])),
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Manifest, np.ndarray]:
    m = draw(st.integers(1, 7))
    weights = draw(
        st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 1e3)), min_size=m, max_size=m).filter(lambda w: sum(w) > 0)
    )
    members = [
        MemberSpec(
            name=f"m{index}",
            format="dense-json",
            path=f"m{index}.json",
            sha256="0" * 64,
            size=1,
            inputs=["a"],
            preprocess=[Input()],
            preprocess_sha256="0" * 64,
            calibrator=draw(calibrators),
            weight=weight,
            baseline=draw(st.floats(-14.0, 14.0)),
        )
        for index, weight in enumerate(weights)
    ]
    manifest = Manifest(
        name="n",
        created_at=0,
        spec_name="n",
        spec_hash="0" * 64,
        feature_hash="0" * 64,
        features=["a"],
        members=members,
        final_calibrator=draw(st.sampled_from([NoCalibrator(), Platt(1.3, 0.4)])),
        thresholds=Thresholds("p", 0.3, 0.8),
        quorum=draw(st.sampled_from([0.0, 0.5, 1.0])),
        reference_profile={},
        self_test=SelfTest([], [], []),
        training=Training(0, 0, 0, 0, "", "0" * 64, {}),
    )
    rows = draw(st.lists(st.lists(probability, min_size=m, max_size=m), min_size=1, max_size=8))
    return manifest, np.array(rows)


@settings(max_examples=300, deadline=None)
@given(cases())
def test_base_and_contributions_add_up_to_z(case: tuple[Manifest, np.ndarray]) -> None:
    manifest, raw = case
    scores, weights, contributions, base, z, score, coverage = Combiner.of(manifest).combine(raw)
    original = np.array([member.weight for member in manifest.members])
    missing = np.isnan(raw)
    assert np.array_equal(np.isnan(scores), missing)
    assert (contributions[missing] == 0.0).all()
    assert (weights[missing] == 0.0).all()
    assert (weights[:, original == 0.0] == 0.0).all()
    expected = np.where(missing, 0.0, original).sum(axis=1) / original.sum()
    assert np.allclose(coverage, expected, rtol=0, atol=1e-12)
    stands = (expected >= manifest.quorum - 1e-12) & (expected > 0.0)
    for values in (base, z, score):
        assert np.array_equal(np.isnan(values), ~stands)
    assert np.abs(base[stands] + contributions[stands].sum(axis=1) - z[stands]).max(initial=0.0) <= 1e-9
    assert np.abs(weights[stands].sum(axis=1) - 1.0).max(initial=0.0) <= 1e-12
    assert ((score[stands] >= 0.0) & (score[stands] <= 1.0)).all()


@settings(max_examples=100, deadline=None)
@given(cases())
def test_leaving_out_is_scoring_with_that_member_missing(case: tuple[Manifest, np.ndarray]) -> None:
    manifest, raw = case
    combiner = Combiner.of(manifest)
    scores, _, _, _, _, score, _ = combiner.combine(raw)
    left_out = combiner.left_out(scores, score)
    import msgspec

    unbounded = Combiner.of(msgspec.structs.replace(manifest, quorum=0.0))
    for index in range(len(manifest.members)):
        without = raw.copy()
        without[:, index] = np.nan
        expected = np.where(np.isnan(score), np.nan, unbounded.combine(without)[5])
        expected = np.where(np.isnan(raw[:, index]), score, expected)
        assert np.allclose(left_out[:, index], expected, rtol=0, atol=1e-12, equal_nan=True)


def test_every_combiner_equals_its_definition() -> None:
    """The proof `additivity`, scaled down."""
    rng = np.random.default_rng(3)
    for _ in range(150):
        case = additivity.make_case(rng)
        wrong = {name: gap for name, gap in additivity.errors(case, rng).items() if not gap <= additivity.TOLERANCE}
        assert not wrong, (wrong, case)
