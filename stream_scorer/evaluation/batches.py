"""Cuts ordered columns into batches that pass the feature kernel together, without an effect on the results.

A batch ends before some labels (`features.label_cuts`), as in a replay (`replay.pieces`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from stream_scorer.arrays import Ints
from stream_scorer.evaluation.sources import ColumnRun
from stream_scorer.features.engine import EventBatch
from stream_scorer.features.label_cuts import LabelCuts
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.replay.pieces import TRIM_EVERY
from stream_scorer.serde.columns import slice_labels, slice_transactions
from stream_scorer.spec.model import CheckedSpec

_TRANSACTIONS, _LABELS = SourcePartition("transactions", 0), SourcePartition("labels", 0)


@dataclass(slots=True)
class Batch:
    """Transactions and labels that pass the kernel together.

    Attributes:
        events: as the feature engine takes them. time: (n,) int64, see `ColumnRun`.
        scored: whether its transactions are in the range. ends_piece: whether the last one completes a piece.
        trims: whether feature rows are trimmed after it.
        records: input records since the last batch. refused: of these, rejected transactions in the range.
        stop: the number of transactions, and of labels, up to the end of the batch.
    """

    events: EventBatch
    time: Ints
    scored: bool
    ends_piece: bool
    trims: bool
    records: int
    refused: int
    stop: tuple[int, int]

    def __len__(self) -> int:
        return len(self.time)


class Batches:
    """Batches of at most `rows` transactions. A piece ends after every `piece_rows` transactions in the range.

    The position of the end of a piece does not depend on `rows`. `skip` transactions, and the labels before them, are
    left out: those that an earlier run has completed.
    """

    def __init__(self, checked: CheckedSpec, rows: int, piece_rows: int, *, skip: int = 0) -> None:
        self._label_cuts = LabelCuts(checked)
        self._rows, self._piece_rows, self._skip = rows, piece_rows, skip
        self._transactions = self._labels = self._scored = 0
        # Records, and refused ones, that no batch has counted yet.
        self.uncounted = (0, 0)

    def of(self, runs: Iterable[ColumnRun]) -> Iterator[Batch]:
        """The batches of `runs`, in order. The first batch of a run counts its records."""
        for run in runs:
            if self._transactions >= self._skip:
                records, refused = self.uncounted
                self.uncounted = records + run.records, refused + run.refused
            for low, high, first, last in self._cuts(run):
                batch = self._batch(run, (low, high), (first, last))
                if batch is not None:
                    batch.records, batch.refused = self.uncounted
                    self.uncounted = 0, 0
                    yield batch

    def _batch(self, run: ColumnRun, rows: tuple[int, int], labels: tuple[int, int]) -> Batch | None:
        """The transactions `rows` and the `labels` of `run`, each ``[low, high)``; None if they are to be skipped."""
        (low, high), (first, last) = rows, labels
        start, label_start = self._transactions, self._labels
        scored = high > low and bool(run.scored[low])
        self._transactions += high - low
        self._labels += last - first
        self._scored += (high - low) * scored
        if self._transactions < self._skip or (high > low and self._transactions == self._skip):
            return None
        transactions, given = slice_transactions(run.transactions, low, high), slice_labels(run.labels, first, last)
        n, k = high - low, last - first
        newest = int(transactions.event_time.max(initial=-1))
        events = EventBatch(
            transactions=transactions,
            labels=given,
            spans=[
                Span(_TRANSACTIONS, start, start + n, newest),
                Span(_LABELS, label_start, label_start + k, int(given.labelled_at.max(initial=-1))),
            ],
            transaction_span=np.zeros(n, np.int64),
            transaction_offset=np.arange(start, start + n),
            label_span=np.ones(k, np.int64),
            label_offset=np.arange(label_start, label_start + k),
        )
        ends = scored and self._scored % self._piece_rows == 0
        trims = n > 0 and self._transactions % TRIM_EVERY == 0
        return Batch(events, run.time[low:high], scored, ends, trims, 0, 0, (self._transactions, self._labels))

    def _cuts(self, run: ColumnRun) -> Iterator[tuple[int, int, int, int]]:
        """The bounds of each batch: its transactions ``[low, high)`` and its labels ``[first, last)``.

        A label belongs to the batch of the transaction that follows it; labels at the end of a run are a batch.
        """
        n = len(run.time)
        changes = [*(np.flatnonzero(np.diff(run.scored)) + 1).tolist(), n]
        risky = self._label_cuts.risky(run.labels, run.before, run.time)
        low = first = 0
        while low < n:
            while changes[0] <= low:
                changes.pop(0)
            high = min(low + self._rows, changes[0], low + TRIM_EVERY - self._transactions % TRIM_EVERY)
            if self._transactions < self._skip:  # what is skipped ends where a piece ended
                high = min(high, low + self._skip - self._transactions)
            if run.scored[low]:
                high = min(high, low + self._piece_rows - self._scored % self._piece_rows)
            last = int(np.searchsorted(run.before, high, side="left"))
            between = risky[(risky >= first) & (risky < last)]
            cut = self._label_cuts.first_conflict(run.transactions, run.labels, run.before, low, between)
            if cut is not None:
                high = int(run.before[cut])
                last = int(np.searchsorted(run.before, high, side="left"))
            yield low, high, first, last
            low, first = high, last
        if first < len(run.before):
            yield n, n, first, len(run.before)
