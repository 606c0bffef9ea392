"""Partitions that stand still: only those, and only when the broker has had more since the last look.

The client has room to fetch more, unless a test says otherwise.
"""

from __future__ import annotations

from collections.abc import Collection

import pytest

from stream_scorer.kafka.stall import LOOK_S, StallWatch
from stream_scorer.positions import SourcePartition

A, B = SourcePartition("transactions", 0), SourcePartition("transactions", 1)


class Broker:
    """Answers questions about ends at the next look."""

    def __init__(self) -> None:
        self.now = 0.0
        self.known = {A: 5, B: 5}
        self.ends = {A: 5, B: 5}
        self.asked: list[SourcePartition] = []
        self._answers: dict[SourcePartition, int] = {}
        self.watch = StallWatch(self.known.__getitem__, self, lambda: self.now)

    def ask(self, sources: Collection[SourcePartition]) -> None:
        self.asked += sources
        self._answers = {source: self.ends[source] for source in sources if source in self.ends}

    def answers(self) -> dict[SourcePartition, int]:
        return self._answers

    def look(self, *, drained: bool = True, **fetched: int) -> list[SourcePartition]:
        self.now += LOOK_S
        if drained:
            self.watch.note_drained()
        return self.watch.stalled({source: fetched.get(f"p{source.partition}", 5) for source in self.known})


def test_a_partition_that_has_had_more_since_the_last_look_is_stalled() -> None:
    broker = Broker()
    broker.ends[B] = 9
    assert broker.look() == []
    assert broker.look() == []
    assert broker.look() == [B]
    assert set(broker.asked) == {A, B}


def test_what_stands_still_before_markers_is_read_up_to_its_end() -> None:
    broker = Broker()
    broker.known.update({A: 8, B: 8})  # with markers or aborted records; the broker does not say where B ends
    broker.ends = {A: 8}
    assert [broker.look(), broker.watch.at_end(A, 5), broker.look(), broker.watch.at_end(A, 5)] == [
        [],
        False,
        [],
        False,
    ]
    assert broker.look() == []
    assert [broker.watch.at_end(source, 5) for source in (A, B)] == [True, False]
    broker.look(drained=False)
    assert (broker.watch.at_end(A, 5), broker.watch.at_end(A, 4)) == (True, False)
    broker.known[A] = 9  # more has come
    assert not broker.watch.at_end(A, 5)
    broker.look()
    broker.known[A] = 8
    assert not broker.watch.at_end(A, 5)


def test_between_looks_the_broker_is_not_asked() -> None:
    broker = Broker()
    broker.look()
    broker.now += LOOK_S / 2
    assert broker.watch.stalled({A: 5, B: 5}) == []
    assert broker.asked == []


def test_a_partition_that_moves_or_learns_of_a_new_end_is_not_stalled() -> None:
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


def test_a_broker_that_does_not_answer_stalls_nothing() -> None:
    broker = Broker()
    broker.ends = {}
    assert [broker.look() for _ in range(5)] == [[]] * 5


@pytest.mark.parametrize("full", [1, 2])
def test_a_client_whose_queue_was_full_between_two_looks_fetches_nothing_and_is_not_stalled(full: int) -> None:
    broker = Broker()
    broker.ends = {A: 90, B: 90}
    assert broker.look() == []
    for look in range(1, 8):
        assert broker.look(drained=look % 2 != full % 2) == []
    assert [broker.look(), broker.look(), broker.look()][-1] == [A, B]
