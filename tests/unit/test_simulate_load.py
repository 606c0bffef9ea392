"""Partitions as Java has them, the schedule of an open loop, and the bad input that is mixed into traffic."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from stream_scorer.errors import UsageError
from stream_scorer.kafka.open_loop import TICK_S, Schedule
from stream_scorer.kafka.partitioner import murmur2_batch, partitions_of
from stream_scorer.serde.decoder import TransactionDecoder
from stream_scorer.simulate import SimulationConfig, encode_keys, encode_values, generate
from stream_scorer.simulate.disturb import DUPLICATE_GAP, Disturber
from stream_scorer.simulate.garbage import GARBAGE_KINDS, OVERSIZED_BYTES, garbage
from stream_scorer.spec import load_spec

CARDS = Path(__file__).parents[2] / "stream_scorer" / "simulate" / "cards.yaml"
# org.apache.kafka.common.utils.UtilsTest.testMurmur2
JAVA = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize(("key", "expected"), JAVA.items())
def test_murmur2_is_that_of_java(key: bytes, expected: int) -> None:
    assert murmur2_batch([key]).tolist() == [expected]
    assert partitions_of([key], 7).tolist() == [(expected & 0x7FFFFFFF) % 7]


def test_a_batch_of_mixed_lengths_keeps_its_order() -> None:
    keys = [*JAVA, b"", b"\xff\xfe\xfd", *JAVA]
    assert murmur2_batch(keys).tolist() == [murmur2_batch([key])[0] for key in keys]
    assert murmur2_batch(keys)[: len(JAVA)].tolist() == list(JAVA.values())
    assert murmur2_batch([]).tolist() == []


def test_partitions_are_evenly_used() -> None:
    counts = np.bincount(partitions_of([f"c{i:08d}".encode() for i in range(20_000)], 6))
    assert counts.min() > 0.9 * 20_000 / 6
    with pytest.raises(ValueError, match="at least 1 partition"):
        partitions_of([b"a"], 0)


class SetClock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def now_ms(self) -> int:
        return int(self.seconds * 1_000)

    def monotonic(self) -> float:
        return self.seconds


def test_a_schedule_makes_records_due_whatever_became_of_the_last_ones() -> None:
    clock = SetClock()
    schedule = Schedule(10.0, clock)
    assert schedule.due(0, 100) == 1
    assert schedule.due(1, 100) == 0
    assert TICK_S <= schedule.pause_s(1) <= 2 * TICK_S
    clock.seconds += 2.0
    assert schedule.due(1, 100) == 20
    assert schedule.due(1, 5) == 5
    assert schedule.behind_s == pytest.approx(1.9)
    assert Schedule(None, clock).due(10**9, 77) == 77
    with pytest.raises(UsageError):
        Schedule(0.0, clock)


@pytest.fixture(scope="module")
def good() -> tuple[list[bytes], list[bytes], NDArray[np.int64]]:
    history = generate(SimulationConfig(seed=4, customers=500, terminals=50, days=None, transactions=6_000))
    return encode_keys(history.customer_id), encode_values(history), history.event_time


@pytest.mark.parametrize("kind", GARBAGE_KINDS)
def test_a_decoder_refuses_every_kind_of_garbage(
    kind: str, good: tuple[list[bytes], list[bytes], NDArray[np.int64]]
) -> None:
    rng = np.random.default_rng(8)
    _, values, times = good
    count = 3 if kind == "oversized" else 150
    bad = [garbage(kind, value, rng) for value in values[:count]]
    decoded, rejected = TransactionDecoder(load_spec(CARDS)).decode(bad, times[:count])
    assert [index for index, _ in rejected] == list(range(count)), [bad[i][:200] for i in decoded.row[:3]]


def test_mixing_keeps_the_good_in_order_and_tells_the_bad(
    good: tuple[list[bytes], list[bytes], NDArray[np.int64]],
) -> None:
    keys, values, _ = good
    disturber = Disturber(np.random.default_rng(2), duplicates=0.05, garbage=0.02)
    all_keys: list[bytes] = []
    all_values: list[bytes] = []
    bad: dict[int, str] = {}
    duplicates = 0
    for start in range(0, len(values), 333):
        mixed = disturber.mix(keys[start : start + 333], values[start : start + 333])
        bad |= {len(all_values) + place: kind for place, kind in mixed.bad}
        all_keys += mixed.keys
        all_values += mixed.values
        duplicates += mixed.duplicates
    rest = disturber.rest()
    all_keys += rest.keys
    all_values += rest.values
    duplicates += rest.duplicates

    first: dict[bytes, int] = {}
    again: list[tuple[int, int]] = []
    for place, value in enumerate(all_values):
        if place in bad:
            continue
        if value in first:
            again.append((first[value], place))
        first.setdefault(value, place)
    assert list(first) == values
    assert len(again) == duplicates == pytest.approx(300, rel=0.25)
    assert len(bad) == pytest.approx(120, rel=0.3)
    assert len(all_values) == len(values) + len(bad) + len(again)
    # Extra records in between stretch the gap a little.
    assert max(later - earlier for earlier, later in again) <= 1.2 * DUPLICATE_GAP
    assert {all_keys[later] == all_keys[earlier] for earlier, later in again} == {True}
    kinds = Counter(bad.values())
    assert set(kinds) == set(GARBAGE_KINDS)
    assert sum(len(value) > OVERSIZED_BYTES for value in all_values) == kinds["oversized"] <= 5


def test_no_duplicate_is_lost_between_batches(good: tuple[list[bytes], list[bytes], NDArray[np.int64]]) -> None:
    keys, values, _ = good
    disturber = Disturber(np.random.default_rng(3), duplicates=1.0, garbage=0.0)
    sent: Counter[bytes] = Counter()
    for start in range(0, len(values), 100):
        sent.update(disturber.mix(keys[start : start + 100], values[start : start + 100]).values)
    sent.update(disturber.rest().values)
    assert sent == dict.fromkeys(values, 2)


def test_undisturbed_traffic_is_left_alone(good: tuple[list[bytes], list[bytes], NDArray[np.int64]]) -> None:
    keys, values, _ = good
    mixed = Disturber(np.random.default_rng(2), duplicates=0.0, garbage=0.0).mix(keys, values)
    assert (mixed.keys, mixed.values, mixed.bad, mixed.duplicates) == (keys, values, [], 0)
