"""The arithmetic of the benchmark: order of runs, percentiles, medians and ratios. No processes, no clock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

import numpy as np
from numpy.typing import NDArray

from stream_scorer.bench.results import (
    KINDS,
    Cpu,
    Drain,
    DrainRun,
    Kind,
    Latency,
    LatencyDifference,
    Loop,
    Percentiles,
    Ratios,
    Window,
)
from stream_scorer.reports.latency import percentiles as nearest_rank

_PERCENTS = (50.0, 90.0, 99.0, 99.9, 100.0)


def turns(rounds: int) -> Iterator[Kind]:
    """A B, B A, A B...: a machine that becomes steadily faster or slower favours neither."""
    for number in range(rounds):
        yield from KINDS if number % 2 == 0 else KINDS[::-1]


def percentiles(latency_ms: NDArray[np.float64]) -> Percentiles:
    """Percentiles by nearest rank; inf, for records that never arrived, sorts last."""
    if not len(latency_ms):
        raise ValueError("no latencies")
    return Percentiles(*(round(value, 3) for value in nearest_rank(latency_ms, _PERCENTS).values()))


def latencies(due_ns: NDArray[np.int64], arrived_ns: NDArray[np.int64]) -> NDArray[np.float64]:
    """Milliseconds from due time to arrival per record; inf where `arrived_ns` is negative."""
    late = (arrived_ns - due_ns) / 1e6
    return np.where(arrived_ns < 0, np.inf, late)


def median_cpu(costs: Sequence[Cpu]) -> Cpu:
    """The median of each part."""
    return Cpu(*(median(getattr(cost, part) for cost in costs) for part in Cpu.__struct_fields__))


def median_percentiles(found: Sequence[Percentiles]) -> Percentiles:
    """The median of each percentile."""
    return Percentiles(*(median(getattr(p, name) for p in found) for name in Percentiles.__struct_fields__))


def summarise_drains(runs: Sequence[DrainRun]) -> Drain:
    """The medians of the drains of one kind."""
    return Drain(median(run.per_second for run in runs), median_cpu([run.cpu for run in runs]), list(runs))


def typical_run(drain: Drain) -> DrainRun:
    """The median run (of two middle runs, the slower one)."""
    ordered = sorted(drain.runs, key=lambda run: run.per_second)
    return ordered[(len(ordered) - 1) // 2]


def summarise_windows(windows: Sequence[Window]) -> list[Latency]:
    """The medians by rate and kind, in the order in which they first appear."""
    groups: dict[tuple[int, Kind], list[Window]] = {}
    for window in windows:
        groups.setdefault((window.rate, window.kind), []).append(window)
    return [
        Latency(
            kind,
            rate,
            median_percentiles([window.latency for window in group]),
            sum(window.missing for window in group),
            median_cpu([window.cpu for window in group]),
            group,
        )
        for (rate, kind), group in groups.items()
    ]


def ratios(scorer: Drain, passthrough: Drain, loop: Loop, latency: Sequence[Latency]) -> Ratios:
    """The scorer compared with the passthrough and the per-event loop."""
    found = {(entry.rate, entry.kind): entry.latency for entry in latency}
    rates = list(dict.fromkeys(entry.rate for entry in latency))
    differences = []
    for rate in rates:
        ours, limit = found[rate, "scorer"], found[rate, "passthrough"]
        differences.append(
            LatencyDifference(
                rate,
                round(ours.p50 - limit.p50, 3),
                round(ours.p99 - limit.p99, 3),
                round(ours.p50 / limit.p50, 2),
                round(ours.p99 / limit.p99, 2),
            )
        )
    return Ratios(
        round(scorer.per_second / loop.per_second, 1),
        round(scorer.per_second / passthrough.per_second, 4),
        differences,
    )
