"""Cutting ordered records into pieces that pass the stages together, so that the cuts do not show in the result.

A micro-batch shows its labels to all of its transactions. A piece is therefore cut before a label that has an entity
in common with an earlier transaction of the piece; any other cut is free, so the size of pieces changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_scorer.positions import SourcePartition
from stream_scorer.replay.order import I64, Run
from stream_scorer.serde.raw import RawRecords


@dataclass(slots=True)
class Piece:
    """Records that pass the stages together.

    Attributes:
        before: per label, how many of the piece's transactions come before it.
        scoring: whether scores come of it; otherwise its records only bring features.
        batch_start: whether it begins a micro-batch as it was served (True), goes on with one (False), or was not cut
            by what was served: then each transaction states its own place in the log (None).
        served_offsets: what the micro-batch that it begins saw, as the live scorer recorded it.
    """

    transactions: RawRecords
    labels: RawRecords
    before: I64
    scoring: bool
    batch_start: bool | None = None
    served_offsets: dict[SourcePartition, int] | None = None

    def __len__(self) -> int:
        return len(self.transactions) + len(self.labels)


@dataclass(frozen=True, slots=True)
class Range:
    """Which transactions are scored: by event time ``[start, end)`` (ms), or by offset, None for no bound.

    `time_start` and `time_end` are compared with the running maximum that orders the replay, so that what is scored is
    one stretch of each partition. Of `offset_start` and `offset_end`, a partition that is not named has no bound.
    """

    time_start: int | None = None
    time_end: int | None = None
    offset_start: dict[int, int] | None = None
    offset_end: dict[int, int] | None = None

    def begun(self, run: Run) -> NDArray[np.bool_]:
        """(n,) bool: which transactions of `run` are not before the range."""
        inside = np.ones(len(run.transactions), dtype=np.bool_)
        if self.time_start is not None:
            inside &= run.transaction_time >= self.time_start
        for partition, offset in (self.offset_start or {}).items():
            inside &= (run.transactions.partition != partition) | (run.transactions.offset >= offset)
        return inside

    def up_to_end(self, run: Run) -> Run:
        """`run` without what comes after the range."""
        rows = np.ones(len(run.transactions), dtype=np.bool_)
        labels = np.ones(len(run.labels), dtype=np.bool_)
        if self.time_end is not None:
            rows &= run.transaction_time < self.time_end
            labels &= run.label_time < self.time_end
        for partition, offset in (self.offset_end or {}).items():
            rows &= (run.transactions.partition != partition) | (run.transactions.offset < offset)
        return run if rows.all() and labels.all() else _subset(run, rows, labels)

    def over(self, run: Run) -> bool:
        """Whether nothing from `run` on can be scored."""
        if self.time_end is None:
            return False
        times = np.concatenate([run.transaction_time[:1], run.label_time[:1]])
        return bool(len(times)) and int(times.min()) >= self.time_end


def cut(runs: Iterable[Run], scored: Range, most: int, *, warm: bool) -> Iterator[Piece]:
    """Pieces of at most `most` records.

    With `warm`, what comes before the range brings features; without, it is left out, labels included: features then
    know the range alone. What comes after the range is left out either way.
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
        yield from _pieces(run, flags, most)


def _subset(run: Run, rows: NDArray[np.bool_], labels: NDArray[np.bool_]) -> Run:
    """The transactions and labels that two masks pick, in the same order."""
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


def _pieces(run: Run, flags: NDArray[np.bool_], most: int) -> Iterator[Piece]:
    total, label_total = len(run.transactions), len(run.labels)
    before = run.before.tolist()
    changes = (np.flatnonzero(np.diff(flags)) + 1).tolist()
    at = label_at = 0
    while at < total or label_at < label_total:
        first, first_label = at, label_at
        changes = [c for c in changes if c > first]
        stop = changes[0] if changes else total
        seen: set[str] = set()
        looked = first
        while (room := most - (at - first) - (label_at - first_label)) > 0:
            if label_at < label_total and before[label_at] == at:
                for owners in run.transaction_owners[looked:at]:
                    seen.update(owners)
                looked = at
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


class Positions:
    """The next offset of every input partition, as records go by; `start` is where reading begins."""

    def __init__(self, start: dict[SourcePartition, int]) -> None:
        self.next_offset = dict(start)

    def pass_by(self, records: RawRecords) -> dict[SourcePartition, tuple[int, int]]:
        """Move past `records`; answers the ``[start, stop)`` that this covers, per partition."""
        spans = {}
        for partition in np.unique(records.partition).tolist():
            source = SourcePartition(records.topic, partition)
            stop = int(records.offset[records.partition == partition].max()) + 1
            spans[source] = (self.next_offset.get(source, 0), stop)
            self.next_offset[source] = stop
        return spans
