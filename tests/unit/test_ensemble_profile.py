"""The reference profile and counting on its bins."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_scorer.ensemble.manifest import MAX_BINS, Series
from stream_scorer.ensemble.profile import Binner, build_profile, edges_of


def expected_counts(values: np.ndarray, edges: list[float]) -> list[int]:
    """By numpy, for one column: below the first edge, between them, at or above the last, missing."""
    present = values[~np.isnan(values)]
    inner, _ = np.histogram(present, bins=[-np.inf, *edges, np.inf])
    # numpy closes the last bin on the right only, as ours: [edge, inf].
    return [*inner.tolist(), int(np.isnan(values).sum())]


numbers = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True, width=32),
    st.sampled_from([0.0, -0.0, 1.0, 2.0, 3.0, np.nan]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(numbers, min_size=1, max_size=60), st.lists(numbers, min_size=1, max_size=60))
def test_counts_are_those_of_a_histogram(reference: list[float], live: list[float]) -> None:
    profile = build_profile(["x"], np.array([reference]).T)
    series = profile["x"]
    assert series.counts == expected_counts(np.array(reference), series.edges)
    counts = Binner(profile, ["x"]).count(np.array([live]).T, np.zeros(len(live), np.int64), 1)
    assert counts[0, 0].tolist() == expected_counts(np.array(live), series.edges)


@settings(max_examples=100, deadline=None)
@given(st.lists(numbers, max_size=200))
def test_edges_are_few_finite_and_ascending(values: list[float]) -> None:
    edges = edges_of(np.array(values, float))
    assert len(edges) <= MAX_BINS - 2
    assert np.isfinite(edges).all()
    assert (np.diff(edges) > 0).all()


def test_groups_and_series_are_counted_apart() -> None:
    random = np.random.default_rng(4)
    reference = np.column_stack([random.normal(size=2_000), random.poisson(1, 2_000), np.full(2_000, np.nan)])
    profile = build_profile(["a", "b", "c"], reference)
    binner = Binner(profile, ["c", "a", "b"])
    live = reference[:700][:, [2, 0, 1]] + 0.5
    groups = random.integers(0, 3, 700)
    counts = binner.count(live, groups, 4)
    assert counts.shape == (4, 3, binner.max_bins)
    for group in range(4):
        for place, name in enumerate(binner.series):
            expected = expected_counts(live[groups == group, place], profile[name].edges)
            assert counts[group, place, : binner.bins[place]].tolist() == expected
            assert counts[group, place, binner.bins[place] :].sum() == 0


def test_a_rare_value_keeps_a_bin_of_its_own() -> None:
    flag = np.zeros(10_000)
    flag[:7] = 1.0
    assert build_profile(["flag"], flag[:, None])["flag"] == Series([1.0], [9_993, 7, 0])


def test_a_constant_sees_what_leaves_it() -> None:
    profile = build_profile(["x"], np.full((50, 1), 3.0))
    counts = Binner(profile, ["x"]).count(np.array([[2.0], [3.0], [3.5], [np.nan]]), np.zeros(4, np.int64), 1)
    assert counts[0, 0].tolist() == [1, 1, 1, 1]


def test_a_mass_at_one_value_leaves_the_rest_its_resolution() -> None:
    random = np.random.default_rng(5)
    values = np.where(random.random(20_000) < 0.95, 0.0, random.exponential(size=20_000))
    counts = build_profile(["x"], values[:, None])["x"].counts
    assert len(counts) == MAX_BINS
    rest = counts[1:-1]
    assert max(rest) < 2 * min(rest)


def test_smooth_values_share_the_bins_evenly() -> None:
    counts = build_profile(["x"], np.random.default_rng(6).normal(size=(19_000, 1)))["x"].counts
    assert counts[:-1] == pytest.approx([1_000] * (MAX_BINS - 1), abs=2)


def test_skipped_values_count_nowhere() -> None:
    binner = Binner(build_profile(["x", "y"], np.arange(100.0).reshape(50, 2)), ["x", "y"])
    values = np.array([[1.0, 1.0], [np.nan, 2.0], [3.0, np.nan]])
    skip = np.array([[True, False], [True, False], [False, True]])
    counts = binner.count(values, np.zeros(3, np.int64), 1, skip)[0]
    assert counts.sum(axis=1).tolist() == [1, 2]
    assert counts[:, -1].tolist() == [0, 0]


def test_what_does_not_fit_is_refused() -> None:
    binner = Binner(build_profile(["x"], np.arange(50.0)[:, None]), ["x"])
    with pytest.raises(ValueError, match="1 series"):
        binner.count(np.zeros((3, 2)), np.zeros(3, np.int64), 1)
    for group in (-1, 1):
        with pytest.raises(ValueError, match="outside"):
            binner.count(np.zeros((3, 1)), np.full(3, group), 1)
