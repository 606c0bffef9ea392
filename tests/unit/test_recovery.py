"""Where a scorer starts reading, while another one is still at work on its partitions."""

from __future__ import annotations

import pytest

from stream_scorer.errors import UsageError
from stream_scorer.pipeline.recovery import starting_points
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.state.rows import RowUpdate
from tests.support.failpoints import Failpoints
from tests.support.rows import MemoryMarkedRows, MemoryServer

SOURCE = SourcePartition("transactions", 0)


class _Group:
    """A reader whose group has another member: it commits and applies two records after every call."""

    def __init__(self, server: MemoryServer, offset: int) -> None:
        self.offset = offset
        self._other = MemoryMarkedRows(server, [SOURCE], Failpoints(), per_call=10)
        assert self._other.open() is not None

    def committed(self, partitions: list[SourcePartition]) -> dict[SourcePartition, int | None]:
        answer = self.offset
        self.score_two()
        return dict.fromkeys(partitions, answer)

    def score_two(self) -> None:
        self.offset += 2
        update = RowUpdate.nothing()
        update.spans = [Span(SOURCE, self.offset - 2, self.offset, 0)]
        self._other.apply(update)

    def offset_bounds(self, source: SourcePartition) -> tuple[int, int]:
        return 0, 100


class _Store(MemoryMarkedRows):
    group: _Group

    def open(self):  # type: ignore[no-untyped-def]
        applied = super().open()
        self.group.score_two()
        return applied


def _begun(mark: int) -> MemoryServer:
    server = MemoryServer()
    store = MemoryMarkedRows(server, [SOURCE], Failpoints(), per_call=10)
    store.open()
    store.init({SOURCE: mark}, {})
    return server


def test_what_another_scorer_does_meanwhile_is_caught_up_and_not_taken_for_a_rewound_group() -> None:
    server = _begun(10)
    store = _Store(server, [SOURCE], Failpoints(), per_call=10)
    store.group = _Group(server, 10)
    points = starting_points(store.group, store, [SOURCE], [SOURCE], "earliest")  # type: ignore[arg-type]
    assert (points.read_from, points.score_from) == ({SOURCE: 10}, {SOURCE: 12})


def test_a_rewound_group_is_refused() -> None:
    server = _begun(10)
    group = _Group(server, 10)
    group.offset = 3
    with pytest.raises(UsageError, match="ahead of the group's offset"):
        starting_points(
            group, MemoryMarkedRows(server, [SOURCE], Failpoints(), per_call=10), [SOURCE], [SOURCE], "earliest"
        )
