"""From distances to evidence: divergences of many series at once, p-values with a fitted tail, and e-values.

Pure functions on arrays. S is the number of series, B the largest number of bins, N a number of past windows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stream_scorer.arrays import Bools, Floats, Ints
from stream_scorer.monitor.drift import PSEUDO_COUNT

# Share of the past windows that the fitted tail replaces.
TAIL_SHARE = 0.05
MIN_TAIL = 8
# Prior of the tail: its index (a Pareto index of 3, as of Student's t with 3 degrees of
# freedom) and its weight in windows.
PRIOR_INDEX, PRIOR_WEIGHT = 1 / 3, 8
# A histogram ratio has at least the tail of a Pareto distribution with this index.
MIN_INDEX = 0.2


def divergences(counts: Ints, references: Ints | Floats, used: Bools) -> Floats:
    """Jensen-Shannon divergences (nats) of `counts` (S, B) from each of `references` (R, S, B), as (R, S).

    `used` (S, B) marks the bins that a series has. Both histograms are smoothed as in `drift.shares`.
    """
    p = _shares(counts, used)
    q = _shares(references, used)
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = p * np.log(p / middle) + q * np.log(q / middle)
    total: Floats = np.where(used, parts, 0.0).sum(axis=-1) / 2
    return np.maximum(total, 0.0)


def _shares(counts: Ints | Floats, used: Bools) -> Floats:
    smooth = np.where(used, counts + PSEUDO_COUNT, 0.0)
    shares: Floats = smooth / np.maximum(smooth.sum(axis=-1, keepdims=True), 1e-300)
    return shares


def sampling_noise(counts: Ints, references: Ints) -> Floats:
    """Expected divergence (R, S) of two samples of one distribution: ``(bins - 1) (1/n + 1/m) / 8``.

    Twice the divergence times the harmonic size is asymptotically a chi-squared variable; see Lin, "Divergence measures
    based on the Shannon entropy", 1991. `bins` are those that occur in either sample.
    """
    n, m = counts.sum(axis=-1), references.sum(axis=-1)
    bins = ((counts + references) > 0).sum(axis=-1)
    with np.errstate(divide="ignore"):
        noise: Floats = np.maximum(bins - 1, 1) * (1 / n + 1 / m) / 8
    return noise


def moved_by_scale(counts: Floats, edges: Sequence[float], log_scale: float, *, logarithmic: bool) -> Floats:
    """The histogram `counts` (B,) of values that all grow by the factor ``exp(log_scale)``, at least 1.

    Within a bin, values are spread evenly on a logarithmic scale (of values that are logarithms already, on their own),
    so the share of a bin that moves on is `log_scale` over its width. Open bins and bins with values that are not
    positive keep their rows, as does the last one, which counts missing values.
    """
    at = np.asarray(edges, dtype=np.float64)
    if not logarithmic:
        at = np.log(np.where(at > 0, at, np.nan))
    width = np.diff(at)
    with np.errstate(invalid="ignore"):
        share = np.where(np.isfinite(width), np.minimum(log_scale / width, 1.0), 0.0)
    moved: Floats = counts.astype(np.float64)
    rows = moved[1 : len(at)] * share
    moved[1 : len(at)] -= rows
    moved[2 : len(at) + 1] += rows
    return moved


@dataclass(frozen=True, slots=True)
class Tail:
    """The distribution of past ratios (N, S): their ranks, and a Pareto tail beyond the largest `TAIL_SHARE`.

    Attributes:
        size: (S,) past windows with a ratio.
        ranked: (N, S) ratios in ascending order, infinity last.
        start: (S,) where the tail begins; `index` its Pareto index; `share` the share of windows beyond it.
    """

    size: Ints
    ranked: Floats
    start: Floats
    index: Floats
    share: Floats

    @classmethod
    def fit(cls, ratios: Floats) -> Tail:
        """Fit to `ratios` (N, S); NaN where a window had none. Hill's estimator, shrunk towards the prior."""
        size = np.isfinite(ratios).sum(axis=0)
        ranked = np.sort(np.where(np.isfinite(ratios), ratios, np.inf), axis=0)
        k = np.minimum(np.maximum((size * TAIL_SHARE).astype(np.int64), MIN_TAIL), np.maximum(size - 1, 0))
        columns = np.arange(ratios.shape[1])
        start = np.where(size > 0, ranked[np.maximum(size - k - 1, 0), columns], np.inf)
        place = np.arange(len(ratios))[:, None]
        beyond = (place >= size - k) & (place < size)
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.where(beyond, np.log(ranked / start), 0.0)
        hill = np.nan_to_num(logs).sum(axis=0)
        index = np.maximum((hill + PRIOR_INDEX * PRIOR_WEIGHT) / (k + PRIOR_WEIGHT), MIN_INDEX)
        return cls(size, ranked, start, index, (k + 1) / (size + 1))

    def log_p(self, ratios: Floats) -> Floats:
        """Logarithms of the p-values of `ratios` (..., S); 0 where there is no ratio or no history."""
        flat = ratios.reshape(-1, ratios.shape[-1])
        below = np.empty(flat.shape)
        for column in range(flat.shape[1]):
            below[:, column] = np.searchsorted(self.ranked[: self.size[column], column], flat[:, column])
        with np.errstate(divide="ignore", invalid="ignore"):
            by_rank = np.log((1 + self.size - below) / (1 + self.size))
            by_tail = np.log(self.share) - np.log(flat / self.start) / self.index
        found = np.where(flat > self.start, by_tail, by_rank)
        found = np.where(np.isfinite(flat) & (self.size > 0), np.minimum(found, 0.0), 0.0)
        return found.reshape(ratios.shape)


@dataclass(frozen=True, slots=True)
class Extremes:
    """The distribution of the largest ``-log(p)`` of past windows: ranks, and an exponential tail beyond."""

    ranked: Floats
    start: float
    scale: float
    share: float

    @classmethod
    def fit(cls, values: Floats) -> Extremes:
        """Fit to `values` (N,), N at least 2. The mean excess is at least 1, that of a single valid p-value."""
        ranked = np.sort(values)
        size = len(ranked)
        k = min(max(int(size * TAIL_SHARE), MIN_TAIL), size - 1)
        start = float(ranked[size - k - 1])
        excess = float((ranked[size - k :] - start).sum())
        scale = max((excess + PRIOR_WEIGHT) / (k + PRIOR_WEIGHT), 1.0)
        return cls(ranked, start, scale, (k + 1) / (size + 1))

    def log_p(self, values: Floats) -> Floats:
        """Logarithms of the p-values of windows."""
        size = len(self.ranked)
        below = np.searchsorted(self.ranked, values)
        by_rank = np.log((1 + size - below) / (1 + size))
        by_tail = np.log(self.share) - (values - self.start) / self.scale
        return np.where(values > self.start, by_tail, by_rank)


def log_e_values(log_p: Floats) -> Floats:
    """Logarithms of the e-values of p-values: the calibrators ``k p^(k-1)``, mixed over k in (0, 1).

    ``(1 - p + p log p) / (p log(p)^2)``; see Vovk and Wang, "E-values: calibration, combination and applications",
    2021.
    """
    at = np.minimum(log_p, -1e-3)
    p = np.exp(at)
    return np.asarray(np.log1p(-p + p * at) - at - 2 * np.log(-at))


def cusum_maxima(log_e: Floats, day: Ints) -> Floats:
    """The maximum on each day of ``W = max(W, 0) + log_e``; both arguments (N,), in order of time."""
    found: dict[int, float] = {}
    level = 0.0
    for number, step in zip(day.tolist(), log_e.tolist(), strict=True):
        level = max(level, 0.0) + step
        found[number] = max(found.get(number, 0.0), level)
    return np.array(list(found.values()))


def return_level(maxima: Floats, probability: float) -> float:
    """The level that the maximum of a day exceeds with `probability`: a Gumbel distribution, by its moments.

    The scale is at least 1, that of an e-detector with independent windows, and larger with few days, because
    it is estimated from them.
    """
    days = len(maxima)
    scale = max(float(np.std(maxima)) * math.sqrt(6) / math.pi, 1.0) * (1 + 1 / math.sqrt(days))
    location = float(np.mean(maxima)) - float(np.euler_gamma) * scale
    return location - scale * math.log(-math.log1p(-probability))
