"""Distances of a histogram from its reference: Jensen-Shannon distance, PSI and KS. Pure functions on counts.

The drift score is the Jensen-Shannon distance with the natural logarithm, so it lies in [0, sqrt(ln 2) = 0.8326].
PSI and KS are reported too and have their own thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from stream_scorer.arrays import Floats, Ints

# Smoothing: added to every bin of both histograms (Jeffreys' prior of a multinomial), so that the logarithm of an empty
# bin is finite. At 2,000 rows and 20 bins it changes no share by more than 0.005.
PSEUDO_COUNT = 0.5
# With fewer rows, sampling noise exceeds every useful threshold: without a change, the mean of PSI is about (bins -
# 1)/n.
SUFFICIENT_ROWS = 2_000


class ProfileMismatch(ValueError):
    """The counts have other bins than the reference profile, so the scorer used another profile."""


@dataclass(frozen=True, slots=True)
class Drift:
    """Three distances of one histogram from its reference, and the rows behind them."""

    score: float
    psi: float
    ks: float
    rows: int
    reference_rows: int

    @property
    def sufficient(self) -> bool:
        """Whether there are enough rows for a comparison with thresholds."""
        return self.rows >= SUFFICIENT_ROWS


def shares(counts: ArrayLike) -> Floats:
    """Smoothed shares of non-negative counts ``(n_bins,)``; they sum to one."""
    array = np.asarray(counts, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or (array < 0).any():
        raise ValueError(f"a histogram must be a non-empty vector of counts, not {array!r}")
    return _shares(array)


def _shares(counts: Floats) -> Floats:
    """The same for histograms ``(..., n_bins)``, unchecked."""
    smooth: Floats = counts + PSEUDO_COUNT
    normalised: Floats = smooth / smooth.sum(axis=-1, keepdims=True)
    return normalised


def jensen_shannon_distance(p: Floats, q: Floats) -> float:
    """Square root of the Jensen-Shannon divergence (nats) of two share vectors without zeros.

    Source: Endres and Schindelin, "A new metric for probability distributions", IEEE Trans. Inf. Theory 49 (2003).
    """
    return float(_jensen_shannon(p, q))


def _jensen_shannon(p: Floats, q: Floats) -> Floats:
    middle = (p + q) / 2
    divergence = (np.sum(p * np.log(p / middle), axis=-1) + np.sum(q * np.log(q / middle), axis=-1)) / 2
    return np.asarray(np.sqrt(np.maximum(divergence, 0.0)))  # rounding may leave -1e-17 for equal vectors


def population_stability_index(p: Floats, q: Floats) -> float:
    """Sum of ``(p - q) ln(p / q)`` over two share vectors without zeros."""
    return float(_psi(p, q))


def _psi(p: Floats, q: Floats) -> Floats:
    return np.asarray(np.sum((p - q) * np.log(p / q), axis=-1))


def kolmogorov_smirnov(p: Floats, q: Floats) -> float:
    """Maximum difference of the cumulated shares at the bin edges: a lower bound of the statistic on raw values."""
    return float(_ks(p, q))


def _ks(p: Floats, q: Floats) -> Floats:
    return np.asarray(np.max(np.abs(np.cumsum(p, axis=-1) - np.cumsum(q, axis=-1)), axis=-1))


def compare(counts: ArrayLike, reference: ArrayLike) -> Drift:
    """Distances of `counts` from `reference`, both ``(n_bins,)`` on the same bins.

    Raises:
        ProfileMismatch: the two have different bins.
    """
    current, expected = np.asarray(counts), np.asarray(reference)
    if current.shape != expected.shape:
        raise ProfileMismatch(f"the histogram has {current.size} bins, the reference {expected.size}")
    p, q = shares(current), shares(expected)
    return Drift(
        score=jensen_shannon_distance(p, q),
        psi=population_stability_index(p, q),
        ks=kolmogorov_smirnov(p, q),
        rows=int(current.sum()),
        reference_rows=int(expected.sum()),
    )


def compare_all(counts: Mapping[str, Ints], references: Mapping[str, Ints]) -> dict[str, Drift]:
    """`compare` for each series of `counts`, with the reference of the same name.

    Series with the same number of bins are compared in one step, as a call per series takes three times as long.

    Raises:
        ProfileMismatch: a series and its reference have different bins.
    """
    by_bins: dict[int, list[str]] = {}
    for name, current in counts.items():
        if current.shape != references[name].shape:
            raise ProfileMismatch(f"{name} has {current.size} bins, its reference {references[name].size}")
        by_bins.setdefault(current.size, []).append(name)
    found: dict[str, Drift] = {}
    for names in by_bins.values():
        live = np.stack([counts[name] for name in names]).astype(np.float64)
        expected = np.stack([references[name] for name in names]).astype(np.float64)
        p, q = _shares(live), _shares(expected)
        columns = (_jensen_shannon(p, q), _psi(p, q), _ks(p, q), live.sum(axis=1), expected.sum(axis=1))
        for name, score, psi, ks, rows, reference_rows in zip(names, *(c.tolist() for c in columns), strict=True):
            found[name] = Drift(score, psi, ks, int(rows), int(reference_rows))
    return {name: found[name] for name in counts}
