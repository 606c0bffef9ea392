"""The judgement of the proof `soak`: what may grow between the second and the last quarter of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from proofs.kit import Result
from proofs.soak import MIB, Latencies, Sample, _judge, _judge_keys, keys_by_kind

SECONDS = 7_200.0


class Keys:
    """The part of a client that `keys_by_kind` uses; each key has 10 bytes."""

    def __init__(self, keys: list[bytes]) -> None:
        self._keys, self._asked = keys, 0

    def scan_iter(self, count: int) -> list[bytes]:
        return self._keys

    def pipeline(self, transaction: bool) -> Keys:
        return self

    def memory_usage(self, key: bytes) -> None:
        self._asked += 1

    def execute(self) -> list[int]:
        return [10] * self._asked


def sample(at: float) -> Sample:
    processes = ("scorer", "monitor")
    return Sample(
        at, int(2_000 * at), dict.fromkeys(processes, 300 * MIB), dict.fromkeys(processes, 60),
        dict.fromkeys(processes, 20), 100_000 * 2_000, 100_000, 92_000, 1_900.0, int(2_000 * at * 100),
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


def with_new(s: Sample, per_key: int) -> Sample:
    """With enough new entities to explain the growth of Redis."""
    keys = s.keys + 400_000
    return replace(s, keys=keys, entities=s.entities + 400_000, redis=keys * per_key, per_key=per_key - 100.0)


def leaking(s: Sample, per_second: int) -> Sample:
    keys = int(per_second * s.at)
    used = s.redis + 90 * keys
    return replace(s, keys=s.keys + keys, redis=used, per_key=used / (s.keys + keys))


def test_what_does_not_grow_holds() -> None:
    assert failed() == []


@pytest.mark.parametrize(
    ("kinds", "holds"),
    [
        ({"rows": (900, 0), "witnesses": (50, MIB), "others": (90, MIB)}, [True, True]),
        ({"rows": (901, 0), "witnesses": (50, MIB), "others": (90, MIB)}, [False, True]),
        ({"rows": (900, 0), "witnesses": (50, MIB), "others": (90, 64 * MIB)}, [True, False]),
    ],
)
def test_keys_are_counted_by_kind(kinds: dict[str, tuple[int, int]], holds: list[bool]) -> None:
    result = Result()
    _judge_keys(result, kinds, 900)
    assert list(result.checks.values()) == holds


def test_kinds_of_keys_follow_from_their_names() -> None:
    redis = Keys(
        [b"{stream-scorer:rows:0a}:e:r:0:c1", b"{stream-scorer:rows:0a}:e:seen:7:5", b"{stream-scorer:m}:e:r:17"]
    )
    assert keys_by_kind(redis) == {"rows": (1, 0), "witnesses": (1, 10), "others": (1, 10)}


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda s: replace(s, memory=s.memory | {"scorer": 400 * MIB}), "scorer: memory grows"),
        (lambda s: replace(s, descriptors=s.descriptors | {"monitor": 69}), "monitor: at most 8 descriptors"),
        (lambda s: replace(s, threads=s.threads | {"scorer": 25}), "scorer: at most 4 threads"),
        (lambda s: with_new(s, 13_000), "Redis: at most 12,000"),
        (lambda s: replace(s, redis=s.keys * 2_600), "Redis: at most 12,000"),
        (lambda s: with_new(s, 5_000), None),
        # A thousand keys of 90 bytes per second that nothing deletes.
        (lambda s: leaking(s, 1_000), "Redis:"),
        # One key that grows a little with each transaction.
        (lambda s: replace(s, redis=s.redis + 90 * MIB, per_key=s.per_key + 90 * MIB / s.keys), "Redis: grows"),
        (lambda s: replace(s, disk=s.disk * 4), "disk: at most"),
    ],
)
def test_each_thing_that_grows_fails_alone(change: Callable[[Sample], Sample], names: str | None) -> None:
    found = failed(change)
    assert [name for name in found if names and name.startswith(names)] == found
    assert len(found) == (0 if names is None else 2 if names == "Redis:" else 1)


def test_latency_that_grows_fails() -> None:
    assert [name.startswith("p99 of the last quarter") for name in failed(slower=1.3)] == [True]
    assert failed(slower=1.1) == []
