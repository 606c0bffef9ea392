"""The reference profile for drift, and the counting of live batches on its bins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stream_scorer.compiled import njit
from stream_scorer.ensemble.manifest import MAX_BINS, Manifest, Series, series_names

# One bin of MAX_BINS counts missing values.
_VALUE_BINS = MAX_BINS - 1
# Edges are padded with infinity to the power of two that the binary search in `_count` needs.
_PADDED = 32
_NOTHING = np.zeros((0, 0), dtype=np.bool_)


class Binner:
    """Counts values in the bins of a reference profile.

    Attributes:
        series: names of the expected columns, in order.
        bins: ``(k,) int64``, number of bins per series; the last bin counts missing values.
        max_bins: the largest number of bins.
    """

    def __init__(self, profile: Mapping[str, Series], series: Sequence[str]) -> None:
        self.series = list(series)
        self._edges = np.full((len(self.series), _PADDED), np.inf)
        for index, name in enumerate(self.series):
            edges = profile[name].edges
            self._edges[index, : len(edges)] = edges
        self._n_edges = np.array([len(profile[name].edges) for name in self.series], np.int64)
        self.bins = self._n_edges + 2
        self.max_bins = int(self.bins.max(initial=2))

    @classmethod
    def of(cls, manifest: Manifest) -> Binner:
        """Every series of `manifest`: its features, ``member:<name>`` and ``score``, in this order."""
        return cls(manifest.reference_profile, series_names(manifest))

    def count(
        self,
        values: NDArray[np.float64],
        groups: NDArray[np.int64],
        n_groups: int,
        skip: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.int64]:
        """Counts ``(n_groups, k, max_bins) int64`` of the rows of `values` ``(n, k)``; row i counts for ``groups[i]``.

        NaN counts in the last bin of the series, ``bins[k] - 1``; entries from ``bins[k]`` on stay 0. `skip` (n, k)
        marks values that do not count; None for none.

        Raises:
            ValueError: shapes do not fit, or a group is outside ``[0, n_groups)``.
        """
        values = np.ascontiguousarray(values, np.float64)
        groups = np.ascontiguousarray(groups, np.int64)
        if values.ndim != 2 or values.shape[1] != len(self.series) or groups.shape != values.shape[:1]:
            raise ValueError(f"values {values.shape} and groups {groups.shape} for {len(self.series)} series")
        if len(groups) and (groups.min() < 0 or groups.max() >= n_groups):
            raise ValueError(f"a group is outside [0, {n_groups})")
        skip = _NOTHING if skip is None else np.ascontiguousarray(skip, np.bool_)
        return _count(values, groups, n_groups, skip, self._edges, self._n_edges, self.max_bins)  # type: ignore[no-any-return]


def profile_matrix(
    features: NDArray[np.float64], member_scores: NDArray[np.float64], score: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Columns in the order of `series_names`: ``(n, n_features + m + 1)``."""
    return np.concatenate([features, member_scores, score[:, None]], axis=1)


def build_profile(names: Sequence[str], values: NDArray[np.float64]) -> dict[str, Series]:
    """The reference profile of the columns of `values` ``(n, k)``: edges by quantile, then counts."""
    empty = {name: Series(edges_of(values[:, index]), []) for index, name in enumerate(names)}
    binner = Binner(empty, names)
    counts = binner.count(values, np.zeros(len(values), np.int64), 1)[0]
    return {
        name: Series(empty[name].edges, counts[index, : binner.bins[index]].tolist())
        for index, name in enumerate(names)
    }


def edges_of(values: NDArray[np.float64]) -> list[float]:
    """At most ``MAX_BINS - 2`` ascending edges that cut `values` ``(n,)`` into bins of about equal mass.

    Equal values stay in one bin, and a value with more than its share gets its own bin, so that counts and flags keep
    their resolution (plain quantiles of a flag that is 0 in 99 % of rows give no bins at all). A column with one value
    gets a bin for it and one on either side, because drift there means other values.
    """
    finite = values[np.isfinite(values)]
    distinct, counts = np.unique(finite, return_counts=True)
    if len(distinct) == 0:
        return []
    if len(distinct) == 1:
        return [float(distinct[0]), float(np.nextafter(distinct[0], np.inf))]
    cumulated = np.cumsum(counts)
    edges: list[float] = []
    done = 0
    start = 0
    for left in range(_VALUE_BINS, 1, -1):
        if left >= len(distinct) - start:
            edges.extend(float(value) for value in distinct[start + 1 :])
            break
        target = done + (len(finite) - done) / left
        last = int(np.searchsorted(cumulated, target))
        if last > start and target - cumulated[last - 1] < cumulated[last] - target:
            last -= 1
        done = int(cumulated[last])
        start = last + 1
        if start >= len(distinct):
            break
        edges.append(float(distinct[start]))
    return edges


@njit(cache=True, nogil=True, fastmath=False)
def _count(values, groups, n_groups, skip, edges, n_edges, max_bins):  # type: ignore[no-untyped-def]  # pragma: no cover
    rows, width = values.shape
    out = np.zeros((n_groups, width, max_bins), np.int64)
    for row in range(rows):
        group = groups[row]
        for k in range(width):
            if len(skip) and skip[row, k]:
                continue
            x = values[row, k]
            # The number of edges at or below x, by binary search. Unrolled and without branches: 4 times as fast as a
            # loop with an `if`, which the processor cannot predict.
            low = 16 * (edges[k, 15] <= x)
            low += 8 * (edges[k, low + 7] <= x)
            low += 4 * (edges[k, low + 3] <= x)
            low += 2 * (edges[k, low + 1] <= x)
            low += 1 * (edges[k, low] <= x)
            if math.isnan(x):
                low = n_edges[k] + 1
            elif low > n_edges[k]:
                # Infinity also reaches the padding.
                low = n_edges[k]
            out[group, k, low] += 1
    return out
