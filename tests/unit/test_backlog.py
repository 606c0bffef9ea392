"""A backlog: everything at once when it is little, by event time across partitions when it is much."""

from __future__ import annotations

from typing import Any

import numpy as np

from stream_scorer.kafka.backlog import Backlog
from stream_scorer.positions import SourcePartition
from stream_scorer.serde.peek import times_of

A, B, LABELS = SourcePartition("t", 0), SourcePartition("t", 1), SourcePartition("l", 0)


class Message:
    def __init__(self, source: SourcePartition, value: bytes | None) -> None:
        self.source, self._value = source, value

    def value(self) -> bytes | None:
        return self._value


def filled(**times: list[int | None]) -> Backlog:
    backlog = Backlog({"t": times_of("at"), "l": times_of("labelled_at")})
    for name, each in times.items():
        source = {"a": A, "b": B, "labels": LABELS}[name]
        for time in each:
            field = b"labelled_at" if source is LABELS else b"at"
            value: Any = Message(source, None if time is None else b'{"%s":%d}' % (field, time))
            backlog.keep(source, [value])
    return backlog


def taken(backlog: Backlog, most: int, *lagging: SourcePartition) -> list[tuple[str, int, bytes | None]]:
    found: list[Any] = backlog.take(most, lagging)
    return [(m.source.topic, m.source.partition, m.value()) for m in found]


def test_little_is_handed_on_whole() -> None:
    backlog = filled(a=[5, 6], b=[1])
    assert len(taken(backlog, 3)) == 3
    assert not len(backlog)


def test_much_is_handed_on_by_event_time_and_each_partition_in_its_order() -> None:
    backlog = filled(a=[10, 30, 20, 40], b=[11, 12, 35], labels=[25, 60])
    got = [taken(backlog, 2) for _ in range(5)]
    # 20 stands behind 30 in its log, and a broken record where the last whole one stands.
    assert [v for part in got for *_, v in part] == [
        b'{"at":10}', b'{"at":11}', b'{"at":12}', b'{"labelled_at":25}', b'{"at":30}', b'{"at":20}', b'{"at":35}',
        b'{"at":40}', b'{"labelled_at":60}',
    ]  # fmt: skip


def test_nothing_later_than_what_is_here_of_a_lagging_partition() -> None:
    backlog = filled(a=[1, 2, 3, 9, 9], b=[1, 3])
    assert [v for *_, v in taken(backlog, 6, B)] == [b'{"at":1}', b'{"at":1}', b'{"at":2}', b'{"at":3}', b'{"at":3}']
    assert [v for *_, v in taken(backlog, 1)] == [b'{"at":9}']
    assert len(backlog) == 1
    backlog.clear()
    assert not len(backlog)
    assert not backlog.holds(A)


def test_values_that_tell_no_time() -> None:
    times = times_of("at")([b'{"at":7,"x":[1]}', None, b"", b"{", b'{"at":"7"}', b'{"x":1}', b'{"at":1.5}', b"\xff"])
    assert times.dtype == np.int64
    assert times.tolist() == [7, -1, -1, -1, -1, -1, -1, -1]
    assert times_of("at")([b'{"at":%d}' % 2**70])[0] in (-1, (1 << 62) - 1)


def test_a_time_of_any_number_of_digits_ends_nobody() -> None:
    assert times_of("at")([b'{"at":%d}' % -(2**70), b'{"at":-5}']).tolist() == [-1, -1]


def test_a_time_that_is_ahead_of_the_clock_does_not_hold_its_partition_back() -> None:
    backlog = filled(a=[10, 10**15, 11, 13], b=[12, 14, 15, 16])
    assert [v for *_, v in taken(backlog, 5)][3:] == [b'{"at":12}', b'{"at":13}']
