"""The judgement of the proof `soak`: what may grow between the second and the last quarter of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from proofs.kit import Result
from proofs.soak import MIB, Latencies, Sample, _judge

SECONDS = 7_200.0


def sample(at: float) -> Sample:
    processes = ("scorer", "monitor")
    return Sample(
        at, int(2_000 * at), dict.fromkeys(processes, 300 * MIB), dict.fromkeys(processes, 60),
        dict.fromkeys(processes, 20), 100_000 * 2_000, 100_000, 1_900.0, int(2_000 * at * 100),
    )  # fmt: skip


def failed(change: Callable[[Sample], Sample] = lambda s: s, slower: float = 1.0) -> list[str]:
    """The checks that fail if the last quarter has `change`, and latencies that are `slower` times as long."""
    late = 3 * SECONDS / 4
    times = np.arange(10.0, SECONDS, 10.0)
    samples = [change(sample(at)) if at >= late else sample(at) for at in times]
    ms = np.where(times >= late, 100 * slower, 100).astype(np.int64)
    result = Result()
    _judge(result, samples, Latencies([times], [ms]), SECONDS)
    return [name for name, holds in result.checks.items() if not holds]


def test_what_does_not_grow_holds() -> None:
    assert failed() == []


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda s: replace(s, memory=s.memory | {"scorer": 400 * MIB}), "scorer: memory grows"),
        (lambda s: replace(s, descriptors=s.descriptors | {"monitor": 69}), "monitor: at most 8 descriptors"),
        (lambda s: replace(s, threads=s.threads | {"scorer": 25}), "scorer: at most 4 threads"),
        (lambda s: replace(s, redis=s.rows * 13_000, per_key=12_900.0), "Redis: at most"),
        (lambda s: replace(s, redis=s.rows * 2_600), "Redis: at most"),
        (lambda s: replace(s, redis=s.rows * 5_000, per_key=4_900.0), None),
        (lambda s: replace(s, disk=s.disk * 4), "disk: at most"),
    ],
)
def test_each_thing_that_grows_fails_alone(change: Callable[[Sample], Sample], names: str | None) -> None:
    found = failed(change)
    assert [name for name in found if names and name.startswith(names)] == found
    assert len(found) == (1 if names else 0)


def test_latency_that_grows_fails() -> None:
    assert [name.startswith("p99 of the last quarter") for name in failed(slower=1.3)] == [True]
    assert failed(slower=1.1) == []
