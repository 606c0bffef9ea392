"""Finds where two topics that are written together have the same events, if retention shortened one of them more.

An event id may occur twice, even a whole file of transactions. So a place counts if the next `WINDOW` ids are the same,
and if both records were written at about the same time. Only this window is kept in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from contextlib import closing
from itertools import islice
from typing import NamedTuple

import msgspec

from stream_scorer.positions import SourcePartition
from stream_scorer.records import NOT_A_RECORD
from stream_scorer.replay.recorded import CLOCK_SKEW_MS, TopicRanges, not_written_by_a_scorer

WINDOW = 64


class Range(NamedTuple):
    """The offsets ``[start, stop)`` of one partition."""

    source: SourcePartition
    start: int
    stop: int


class _WithId(msgspec.Struct):
    event_id: str


class _Event(NamedTuple):
    offset: int
    timestamp: int
    event_id: str


def common_start(reader: TopicRanges, one: Range, other: Range) -> tuple[int, int] | None:
    """The offsets of both from which on they have the same events; their ends if one is empty.

    None if they have different events. The timestamps of their records show which reaches further back. Raises
    `CheckFailed` for a record that no scorer wrote.
    """
    ranges = one, other
    heads = [_head(reader, each) for each in ranges]
    if not heads[0] or not heads[1]:
        return one.stop, other.stop
    order = (0, 1) if heads[0][0].timestamp <= heads[1][0].timestamp else (1, 0)
    # A tool that copied one of the topics may have changed its timestamps. Then the ids have to suffice.
    for timed in (True, False):
        for longer in order:
            found = _find(reader, ranges[longer], heads[1 - longer], timed=timed)
            if found is not None:
                return (found, heads[1][0].offset) if longer == 0 else (heads[0][0].offset, found)
    return None


def _head(reader: TopicRanges, where: Range) -> list[_Event]:
    with closing(_events(reader, where)) as events:
        return list(islice(events, WINDOW))


def _find(reader: TopicRanges, where: Range, head: list[_Event], *, timed: bool) -> int | None:
    """The first offset in `where` at which the events of `head` begin."""
    first = head[0]
    with closing(_events(reader, where)) as events:
        window = deque(islice(events, len(head)))
        while window:
            apart = window[0].timestamp - first.timestamp
            if timed and apart > CLOCK_SKEW_MS:
                return None
            if (apart >= -CLOCK_SKEW_MS or not timed) and _same(window, head):
                return window[0].offset
            window.popleft()
            window.extend(islice(events, 1))
    return None


def _same(window: Iterable[_Event], head: Iterable[_Event]) -> bool:
    """Whether both have the same ids, up to the end of the shorter one: its topic may end before the window does."""
    return all(ours.event_id == wanted.event_id for ours, wanted in zip(window, head, strict=False))


def _events(reader: TopicRanges, where: Range) -> Generator[_Event]:
    decode = msgspec.json.Decoder(_WithId).decode
    for chunk in reader.read(where.source, where.start, where.stop):
        for offset, timestamp, value in zip(chunk.offset.tolist(), chunk.timestamp.tolist(), chunk.value, strict=True):
            try:
                event_id = decode(value or b"").event_id
            except NOT_A_RECORD as error:
                raise not_written_by_a_scorer(where.source, offset, error) from None
            yield _Event(offset, timestamp, event_id)
