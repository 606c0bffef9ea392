"""Splits ordered records into pieces that pass the stages together, without an effect on the results.

In a micro-batch, all transactions see all labels. A piece therefore ends before a label that shares an entity with an
earlier transaction of the piece. All other boundaries are arbitrary, so the size of pieces does not matter. Feature
rows are trimmed at boundaries that do not depend on it either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from stream_scorer.arrays import Bools, Ints
from stream_scorer.positions import SourcePartition
from stream_scorer.replay.order import Run
from stream_scorer.serde.raw import RawRecords
from stream_scorer.state.rows import MemoryRowStore

# Feature rows are trimmed after every so many transactions, wherever batches end, so that their size has no effect.
TRIM_EVERY = 65_536


@dataclass(slots=True)
class Piece:
    """Records that pass the stages together.

    Attributes:
        before: per label, the number of the piece's transactions before it.
        scoring: whether its transactions are scored; otherwise its records only update features.
        batch_start: whether it starts (True) or continues (False) a served micro-batch. None if the pieces are not
            served micro-batches: then the applied offsets of each transaction are its own position in the log.
        served_offsets: the applied offsets that the live scorer recorded for the micro-batch that it starts.
    """

    transactions: RawRecords
    labels: RawRecords
    before: Ints
    scoring: bool
    batch_start: bool | None = None
    served_offsets: dict[SourcePartition, int] | None = None

    def __len__(self) -> int:
        return len(self.transactions) + len(self.labels)

    def split(self, at: int) -> tuple[Piece, Piece | None]:
        """The first `at` transactions and the labels before the last one of them, and the rest if there is any."""
        label_at = int(np.searchsorted(self.before, at))
        if at == len(self.transactions) and label_at == len(self.labels):
            return self, None
        rows, labels = np.arange(len(self.transactions)), np.arange(len(self.labels))
        first = replace(
            self,
            transactions=self.transactions.take(rows[:at]),
            labels=self.labels.take(labels[:label_at]),
            before=self.before[:label_at],
        )
        rest = Piece(
            self.transactions.take(rows[at:]),
            self.labels.take(labels[label_at:]),
            self.before[label_at:] - at,
            self.scoring,
            None if self.batch_start is None else False,
        )
        return first, rest


@dataclass(frozen=True, slots=True)
class Range:
    """The transactions that are scored: by event time ``[start, end)`` (ms), or by offset, None for no bound.

    `time_start` and `time_end` are compared with the running maximum that orders the replay, so that a contiguous
    range of each partition is scored. A partition missing in `offset_start` or `offset_end` has no bound.
    """

    time_start: int | None = None
    time_end: int | None = None
    offset_start: dict[int, int] | None = None
    offset_end: dict[int, int] | None = None

    def begun(self, run: Run) -> Bools:
        """(n,) bool: whether each transaction of `run` is not before the range."""
        inside = np.ones(len(run.transactions), dtype=np.bool_)
        if self.time_start is not None:
            inside &= run.transaction_time >= self.time_start
        for partition, offset in (self.offset_start or {}).items():
            inside &= (run.transactions.partition != partition) | (run.transactions.offset >= offset)
        return inside

    def up_to_end(self, run: Run) -> Run:
        """`run` without the records after the range."""
        rows = np.ones(len(run.transactions), dtype=np.bool_)
        labels = np.ones(len(run.labels), dtype=np.bool_)
        if self.time_end is not None:
            rows &= run.transaction_time < self.time_end
            labels &= run.label_time < self.time_end
        for partition, offset in (self.offset_end or {}).items():
            rows &= (run.transactions.partition != partition) | (run.transactions.offset < offset)
        return run if rows.all() and labels.all() else _subset(run, rows, labels)

    def over(self, run: Run) -> bool:
        """Whether `run` and all later runs are after the range."""
        if self.time_end is None:
            return False
        times = np.concatenate([run.transaction_time[:1], run.label_time[:1]])
        return bool(len(times)) and int(times.min()) >= self.time_end


def cut(runs: Iterable[Run], scored: Range, max_records: int, *, warm: bool) -> Iterator[Piece]:
    """Pieces of at most `max_records` records.

    With `warm`, records before the range update features; otherwise they are skipped, including labels, so that
    features depend on the range only. Records after the range are always skipped.
    """
    begun = warm
    for run in runs:
        if scored.over(run):
            return
        run = scored.up_to_end(run)
        flags = scored.begun(run)
        if not begun:
            if not flags.any():
                continue
            begun = True
            first = int(np.argmax(flags))
            run = _subset(run, np.arange(len(flags)) >= first, run.before > first)
            flags = flags[first:]
        yield from _pieces(run, flags, max_records)


def _subset(run: Run, rows: Bools, labels: Bools) -> Run:
    """The transactions and labels that two masks select, in the same order."""
    index, label_index = np.flatnonzero(rows), np.flatnonzero(labels)
    kept_before = np.concatenate(([0], np.cumsum(rows)))
    return Run(
        run.transactions.take(index),
        run.transaction_time[index],
        [run.transaction_owners[i] for i in index.tolist()],
        run.labels.take(label_index),
        run.label_time[label_index],
        [run.label_owners[i] for i in label_index.tolist()],
        kept_before[run.before[label_index]],
    )


def _pieces(run: Run, flags: Bools, max_records: int) -> Iterator[Piece]:
    total, label_total = len(run.transactions), len(run.labels)
    before = run.before.tolist()
    changes = (np.flatnonzero(np.diff(flags)) + 1).tolist()
    at = label_at = 0
    while at < total or label_at < label_total:
        first, first_label = at, label_at
        changes = [c for c in changes if c > first]
        stop = changes[0] if changes else total
        seen: set[str] = set()
        scanned = first
        while (room := max_records - (at - first) - (label_at - first_label)) > 0:
            if label_at < label_total and before[label_at] == at:
                for owners in run.transaction_owners[scanned:at]:
                    seen.update(owners)
                scanned = at
                if not seen.isdisjoint(run.label_owners[label_at]):
                    break
                label_at += 1
                continue
            until = min(before[label_at] if label_at < label_total else total, stop, at + room)
            if until == at:
                break
            at = until
        rows, label_rows = np.arange(first, at), np.arange(first_label, label_at)
        yield Piece(
            run.transactions.take(rows),
            run.labels.take(label_rows),
            run.before[label_rows] - first,
            bool(flags[first]) if first < total else False,
        )


def with_trims(pieces: Iterable[Piece]) -> Iterator[tuple[Piece, bool]]:
    """`pieces`, split after every `TRIM_EVERY` transactions, and whether feature rows are to be trimmed after each."""
    left = TRIM_EVERY
    for piece in pieces:
        rest: Piece | None = piece
        while rest is not None and len(rest.transactions) >= left:
            first, rest = rest.split(left)
            yield first, True
            left = TRIM_EVERY
        if rest is not None:
            yield rest, False
            left -= len(rest.transactions)


def trim(rows: MemoryRowStore, reach_ms: int) -> None:
    """Remove entries that no later transaction looks back to (`features.plan.reach_ms`), unless it is late.

    The scorer removes them from Redis by the same rule.
    """
    _, applied = rows.read([])
    rows.trim(applied.slowest_watermark() - reach_ms)


class Positions:
    """Tracks the next offset of every input partition; `start` contains the first offsets."""

    def __init__(self, start: dict[SourcePartition, int]) -> None:
        self.next_offset = dict(start)

    def advance(self, records: RawRecords) -> dict[SourcePartition, tuple[int, int]]:
        """Advance past `records`. Returns the covered offsets ``[start, stop)`` per partition."""
        spans = {}
        for partition in np.unique(records.partition).tolist():
            source = SourcePartition(records.topic, partition)
            stop = int(records.offset[records.partition == partition].max()) + 1
            spans[source] = (self.next_offset.get(source, 0), stop)
            self.next_offset[source] = stop
        return spans
