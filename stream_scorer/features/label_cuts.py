"""Which labels must not pass the feature kernel together with earlier transactions.

In a batch, labels come before all transactions. The kernel compares the time of a label with that of a transaction, so
a label in the middle of a batch needs no cut. There are three exceptions, in which a batch ends before a label that
shares an entity with an earlier transaction of the batch:

- The label comes late in its log: it was given before a transaction that it follows.
- Its entity has more labels than a row keeps exactly (`limits.row_entries`): then the number of labels matters. Only
  labels count that may add an entry to a row: frauds, and labels of an event that was labelled fraud before.
- It is of the partition entity, whose rows also detect duplicates.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from stream_scorer.arrays import Ints
from stream_scorer.serde.decoder import Labels, Transactions
from stream_scorer.spec.model import CheckedSpec


class LabelCuts:
    """See the module. It counts the labels of each entity, so all labels must pass it once, in order."""

    def __init__(self, checked: CheckedSpec) -> None:
        self._entities = checked.label_entities
        self._partition_entity = checked.spec.partition_entity
        self._limit = checked.spec.limits.row_entries
        self._frauds: set[int] = set()
        self._given: dict[str, Counter[str]] = {name: Counter() for name in self._entities}

    def risky(self, labels: Labels, before: Ints, time: Ints) -> Ints:
        """Indices of the `labels` (k,) that earlier transactions of the same entity must not share a batch with.

        Args:
            before: (k,) the number of transactions before each label. time: (n,) the times of these transactions.
        """
        k = len(before)
        if not k or not self._entities:
            return np.zeros(0, np.int64)
        behind = np.concatenate([time, time[-1:]]) if len(time) else np.zeros(1, np.int64)
        previous = behind[np.maximum(before - 1, 0)]
        late = (before > 0) & (labels.labelled_at <= previous)
        changing = self._changing(labels)
        for name in self._entities:
            given = self._given[name]
            ids = labels.entity_ids[name]
            if name == self._partition_entity:
                late |= np.array([i is not None for i in ids], np.bool_)
                continue
            for place in changing:
                identifier = ids[place]
                if identifier is not None:
                    given[identifier] += 1
                    late[place] |= given[identifier] > self._limit
        return np.flatnonzero(late)

    def first_conflict(
        self, transactions: Transactions, labels: Labels, before: Ints, low: int, risky: Ints
    ) -> int | None:
        """The first of the `risky` labels that shares an entity with a transaction between `low` and it."""
        seen: dict[str, set[str | None]] = {name: set() for name in self._entities}
        at = low
        order: list[int] = risky.tolist()
        for label in order:
            stop = int(before[label])
            for name in self._entities:
                seen[name].update(transactions.entity_ids[name][at:stop])
            at = max(at, stop)
            for name in self._entities:
                identifier = labels.entity_ids[name][label]
                if identifier is not None and identifier in seen[name]:
                    return label
        return None

    def _changing(self, labels: Labels) -> list[int]:
        """Indices of the labels that may change a fraud count. Labels of genuine events, which are most, do not."""
        changing = []
        for place, (event, fraud) in enumerate(zip(labels.id_hash.tolist(), labels.fraud.tolist(), strict=True)):
            if fraud:
                self._frauds.add(event)
            if event in self._frauds:
                changing.append(place)
        return changing
