"""Drift indices: golden values, symmetry, bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import jensenshannon

from stream_scorer.monitor.drift import (
    SUFFICIENT_ROWS,
    ProfileMismatch,
    compare,
    compare_all,
    jensen_shannon_distance,
    kolmogorov_smirnov,
    population_stability_index,
    shares,
)

COUNTS = st.lists(st.integers(0, 10**9), min_size=1, max_size=32)
PAIRS = st.integers(1, 32).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 10**9), min_size=n, max_size=n) for _ in range(2)])
)


def test_golden_values() -> None:
    # Numbers from scipy.spatial.distance.jensenshannon; the first also by hand, with m = (3/8, 5/8).
    p, q = np.array([0.25, 0.75]), np.array([0.5, 0.5])
    divergence = (0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5) + 0.5 * math.log(4 / 3) + 0.5 * math.log(4 / 5)) / 2
    assert jensen_shannon_distance(p, q) == pytest.approx(math.sqrt(divergence), abs=1e-15)
    assert jensen_shannon_distance(p, q) == pytest.approx(0.18390779094047432, abs=1e-12)
    assert population_stability_index(p, q) == pytest.approx(0.25 * math.log(3), abs=1e-15)
    assert kolmogorov_smirnov(p, q) == pytest.approx(0.25)
    drift = compare([10, 20, 30, 40, 0], [40, 30, 20, 10, 5])
    assert drift.score == pytest.approx(0.3324529289534206, abs=1e-12)
    assert drift.psi == pytest.approx(0.9585296590439819, abs=1e-12)
    assert drift.ks == pytest.approx(0.3580260918888259, abs=1e-12)


def test_indices_agree_with_scipy() -> None:
    rng = np.random.default_rng(9)
    a, b = rng.integers(1, 200, 12), rng.integers(1, 200, 12)
    p, q = a / a.sum(), b / b.sum()
    assert jensen_shannon_distance(p, q) == pytest.approx(jensenshannon(p, q), abs=1e-12)
    assert population_stability_index(p, q) == pytest.approx(stats.entropy(p, q) + stats.entropy(q, p), abs=1e-12)
    values = np.arange(12)
    expected = stats.ks_2samp(np.repeat(values, a), np.repeat(values, b)).statistic
    assert kolmogorov_smirnov(p, q) == pytest.approx(expected, abs=1e-12)


def test_all_series_together_give_what_each_gives_alone() -> None:
    rng = np.random.default_rng(7)
    sizes = {f"s{i}": bins for i, bins in enumerate((3, 20, 21, 20, 3, 64, 1))}
    live, reference = ({name: rng.integers(0, 500, bins) for name, bins in sizes.items()} for _ in range(2))
    found = compare_all(live, reference)
    assert list(found) == list(sizes)
    assert found == {name: compare(live[name], reference[name]) for name in sizes}
    with pytest.raises(ProfileMismatch, match="s1"):
        compare_all(live | {"s1": live["s2"]}, reference)


def test_smoothing_is_the_stated_one() -> None:
    assert shares([0, 1, 2]).tolist() == pytest.approx([0.5 / 4.5, 1.5 / 4.5, 2.5 / 4.5])


@given(PAIRS)
def test_symmetric_and_bounded(pair: tuple[list[int], list[int]]) -> None:
    p, q = shares(pair[0]), shares(pair[1])
    forward = jensen_shannon_distance(p, q)
    assert forward == pytest.approx(jensen_shannon_distance(q, p), abs=1e-9)
    assert population_stability_index(p, q) == pytest.approx(population_stability_index(q, p), rel=1e-9)
    assert 0.0 <= forward <= math.sqrt(math.log(2))
    assert 0.0 <= kolmogorov_smirnov(p, q) <= 1.0


@given(COUNTS)
def test_zero_for_equal(counts: list[int]) -> None:
    drift = compare(counts, counts)
    assert (drift.score, drift.psi, drift.ks) == (0.0, 0.0, 0.0)


def test_no_change_at_sufficient_rows_stays_small() -> None:
    rng = np.random.default_rng(5)
    reference = rng.multinomial(100_000, np.full(20, 0.05))
    found = [compare(rng.multinomial(SUFFICIENT_ROWS, np.full(20, 0.05)), reference) for _ in range(300)]
    # Under no change the mean of PSI is (bins - 1) (1/n + 1/m).
    assert np.mean([d.psi for d in found]) == pytest.approx(19 * (1 / 2_000 + 1 / 100_000), rel=0.1)
    assert max(d.score for d in found) < 0.1
    assert all(d.sufficient for d in found)


def test_other_bins_are_refused() -> None:
    with pytest.raises(ValueError, match="3 bins, the reference 2"):
        compare([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="non-empty vector"):
        shares([-1, 2])
