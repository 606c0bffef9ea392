"""Cuts ordered columns into batches that pass the feature kernel together, without an effect on the results.

In a batch, labels come before all transactions. The kernel compares the time of a label with that of a transaction, so
a label in the middle of a batch needs no cut. There are three exceptions, in which a batch ends before a label that
shares an entity with an earlier transaction of the batch, as in a replay (`replay.pieces`):

- The label comes late in its log: it was given before a transaction that it follows.
- Its entity has more labels than a row keeps exactly (`limits.row_entries`): then the number of labels matters. Only
  labels count that may add an entry to a row: frauds, and labels of an event that was labelled fraud before.
- It is of the partition entity, whose rows also detect duplicates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_scorer.evaluation.sources import ColumnRun
from stream_scorer.features.engine import EventBatch
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.serde.columns import slice_labels, slice_transactions
from stream_scorer.serde.decoder import Labels
from stream_scorer.spec.model import LABELLED, CheckedSpec

I64 = NDArray[np.int64]
_TRANSACTIONS, _LABELS = SourcePartition("transactions", 0), SourcePartition("labels", 0)


@dataclass(slots=True)
class Batch:
    """Transactions and labels that pass the kernel together.

    Attributes:
        events: as the feature engine takes them. time: (n,) int64, see `ColumnRun`.
        scored: whether its transactions are in the range. ends_piece: whether the last one completes a piece.
        records: input records since the last batch. refused: of these, rejected transactions in the range.
        stop: the number of transactions, and of labels, up to the end of the batch.
    """

    events: EventBatch
    time: I64
    scored: bool
    ends_piece: bool
    records: int
    refused: int
    stop: tuple[int, int]

    def __len__(self) -> int:
        return len(self.time)


def label_entities(checked: CheckedSpec) -> list[str]:
    """The entities with features of labels, in declared order."""
    labelled = {v.entity for v in checked.spec.views if LABELLED & set(v.aggregates)}
    return [name for name in checked.spec.entities if name in labelled]


class Batches:
    """Batches of at most `rows` transactions. A piece ends after every `piece_rows` transactions in the range.

    The position of the end of a piece does not depend on `rows`. `skip` transactions, and the labels before them, are
    left out: those that an earlier run has completed.
    """

    def __init__(self, checked: CheckedSpec, rows: int, piece_rows: int, *, skip: int = 0) -> None:
        self._entities = label_entities(checked)
        self._partition_entity = checked.spec.partition_entity
        self._limit = checked.spec.limits.row_entries
        self._frauds: set[int] = set()
        self._given: dict[str, Counter[str]] = {name: Counter() for name in self._entities}
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
        return Batch(events, run.time[low:high], scored, ends, 0, 0, (self._transactions, self._labels))

    def _cuts(self, run: ColumnRun) -> Iterator[tuple[int, int, int, int]]:
        """The bounds of each batch: its transactions ``[low, high)`` and its labels ``[first, last)``.

        A label belongs to the batch of the transaction that follows it; labels at the end of a run are a batch.
        """
        n = len(run.time)
        changes = [*(np.flatnonzero(np.diff(run.scored)) + 1).tolist(), n]
        risky = self._risky(run)
        low = first = 0
        while low < n:
            while changes[0] <= low:
                changes.pop(0)
            high = min(low + self._rows, changes[0])
            if self._transactions < self._skip:  # what is skipped ends where a piece ended
                high = min(high, low + self._skip - self._transactions)
            if run.scored[low]:
                high = min(high, low + self._piece_rows - self._scored % self._piece_rows)
            last = int(np.searchsorted(run.before, high, side="left"))
            cut = self._first_conflict(run, low, risky[(risky >= first) & (risky < last)])
            if cut is not None:
                high = int(run.before[cut])
                last = int(np.searchsorted(run.before, high, side="left"))
            yield low, high, first, last
            low, first = high, last
        if first < len(run.before):
            yield n, n, first, len(run.before)

    def _risky(self, run: ColumnRun) -> I64:
        """Indices of the labels that earlier transactions of the same entity must not share a batch with."""
        k = len(run.before)
        if not k or not self._entities:
            return np.zeros(0, np.int64)
        behind = np.concatenate([run.time, run.time[-1:]]) if len(run.time) else np.zeros(1, np.int64)
        previous = behind[np.maximum(run.before - 1, 0)]
        late = (run.before > 0) & (run.labels.labelled_at <= previous)
        changing = self._changing(run.labels)
        for name in self._entities:
            given = self._given[name]
            ids = run.labels.entity_ids[name]
            if name == self._partition_entity:
                late |= np.array([i is not None for i in ids], np.bool_)
                continue
            for place in changing:
                identifier = ids[place]
                if identifier is not None:
                    given[identifier] += 1
                    late[place] |= given[identifier] > self._limit
        return np.flatnonzero(late)

    def _changing(self, labels: Labels) -> list[int]:
        """Indices of the labels that may change a fraud count. Labels of genuine events, which are most, do not."""
        changing = []
        for place, (event, fraud) in enumerate(zip(labels.id_hash.tolist(), labels.fraud.tolist(), strict=True)):
            if fraud:
                self._frauds.add(event)
            if event in self._frauds:
                changing.append(place)
        return changing

    def _first_conflict(self, run: ColumnRun, low: int, risky: I64) -> int | None:
        """The first of the `risky` labels that shares an entity with a transaction between `low` and it."""
        seen: dict[str, set[str | None]] = {name: set() for name in self._entities}
        at = low
        order: list[int] = risky.tolist()
        for label in order:
            stop = int(run.before[label])
            for name in self._entities:
                seen[name].update(run.transactions.entity_ids[name][at:stop])
            at = max(at, stop)
            for name in self._entities:
                identifier = run.labels.entity_ids[name][label]
                if identifier is not None and identifier in seen[name]:
                    return label
        return None
