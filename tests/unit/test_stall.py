"""Partitions that stand still: only those, only when the broker has had more for a whole look."""

from __future__ import annotations

from stream_scorer.kafka.stall import LOOK_S, MAX_ASKED, StallWatch
from stream_scorer.positions import SourcePartition

A, B = SourcePartition("transactions", 0), SourcePartition("transactions", 1)


class Broker:
    def __init__(self, watched: int = 2) -> None:
        self.now = 0.0
        self.known = {SourcePartition("transactions", p): 5 for p in range(watched)}
        self.ends: dict[SourcePartition, int | None] = dict(self.known)
        self.asked: list[SourcePartition] = []
        self.watch = StallWatch(self.known.__getitem__, self.ask, lambda: self.now)

    def ask(self, source: SourcePartition) -> int | None:
        self.asked.append(source)
        return self.ends[source]

    def look(self, **fetched: int) -> list[SourcePartition]:
        self.now += LOOK_S
        return self.watch.stalled({source: fetched.get(f"p{source.partition}", 5) for source in self.known})


def test_a_partition_that_has_had_more_for_a_whole_look_is_stalled() -> None:
    broker = Broker()
    broker.ends[B] = 9
    assert broker.look() == []
    assert broker.look() == []
    assert broker.look() == [B]
    assert set(broker.asked) == {A, B}


def test_between_looks_nobody_is_asked() -> None:
    broker = Broker()
    broker.look()
    broker.now += LOOK_S / 2
    assert broker.watch.stalled({A: 5, B: 5}) == []
    assert broker.asked == []


def test_who_moves_or_hears_of_an_end_is_not_stalled() -> None:
    broker = Broker()
    broker.ends = {A: 90, B: 90}
    for step in range(6):
        broker.known[B] += 1  # a fetch came back, with markers only
        assert broker.look(p0=5 + step) == []
    assert broker.asked == []


def test_records_that_have_only_just_come_are_waited_for() -> None:
    broker = Broker()
    for _ in range(3):
        assert broker.look() == []
    broker.ends[A] = 6
    assert broker.look() == []
    broker.known[A] = 6
    assert broker.look(p0=6) == []


def test_a_broker_that_does_not_answer_says_nothing() -> None:
    broker = Broker()
    broker.ends = {A: None, B: None}
    assert [broker.look() for _ in range(5)] == [[]] * 5


def test_of_many_partitions_some_are_asked_in_turn() -> None:
    broker = Broker(3 * MAX_ASKED)
    late = SourcePartition("transactions", 3 * MAX_ASKED - 1)
    broker.ends[late] = 9
    looks = 0
    while not broker.look():
        looks += 1
        assert looks < 10
        assert len(broker.asked) <= looks * MAX_ASKED
