"""A Prometheus histogram that takes a whole micro-batch of observations at once."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Buckets:
    """The counts of one series. One lock per batch; the library's histogram takes two per observation.

    Args:
        bounds: (k,) inclusive upper bounds, rising, without infinity.
    """

    def __init__(self, bounds: NDArray[np.float64]) -> None:
        self._bounds = bounds
        self._listed = bounds.tolist()
        self._lock = threading.Lock()
        # Batches are counted in an array, single observations in a list, which is ten times as fast for them.
        self._counts = np.zeros(len(bounds) + 1, dtype=np.int64)
        self._singles = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Add one observation."""
        place = bisect_left(self._listed, value)
        with self._lock:
            self._singles[place] += 1
            self._sum += value

    def observe_all(self, values: NDArray[np.float64]) -> None:
        """Add the observations `values` (n,)."""
        places = np.searchsorted(self._bounds, values, side="left")
        counts, total = np.bincount(places, minlength=len(self._counts)), float(values.sum())
        with self._lock:
            self._counts += counts
            self._sum += total

    def read(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative counts by upper bound, as the text format has them, and the sum of all observations."""
        with self._lock:
            counts, total = (self._counts + self._singles).cumsum().tolist(), self._sum
        bounds = [*map(floatToGoString, self._listed), "+Inf"]
        return list(zip(bounds, map(float, counts), strict=True)), total


class Histogram(Collector):
    """A family of series, one per combination of label values. Without labels, its series exists from the start."""

    def __init__(
        self,
        name: str,
        help: str,
        labels: tuple[str, ...],
        buckets: tuple[float, ...],
        *,
        registry: CollectorRegistry,
    ) -> None:
        self._name, self._help, self._label_names = name, help, labels
        self._bounds = np.array(buckets, dtype=np.float64)
        self._series: dict[tuple[str, ...], Buckets] = {}
        if not labels:
            self.labels()
        registry.register(self)

    def labels(self, *values: str) -> Buckets:
        """The series with these label values. Call it from one thread; scrapes may run at the same time."""
        if len(values) != len(self._label_names):
            raise ValueError(f"{self._name} has the labels {self._label_names}, not {len(values)}")
        found = self._series.get(values)
        if found is None:
            found = self._series[values] = Buckets(self._bounds)
        return found

    def observe(self, value: float) -> None:
        """Add one observation to the series without labels."""
        self.labels().observe(value)

    def observe_all(self, values: NDArray[np.float64]) -> None:
        """Add observations to the series without labels."""
        self.labels().observe_all(values)

    def describe(self) -> Iterator[Metric]:
        """The family without series: the registry checks its names."""
        yield HistogramMetricFamily(self._name, self._help, labels=self._label_names)

    def collect(self) -> Iterator[Metric]:
        """The family with all series."""
        family = HistogramMetricFamily(self._name, self._help, labels=self._label_names)
        for values, series in list(self._series.items()):
            buckets, total = series.read()
            family.add_metric(values, buckets, total)
        yield family
