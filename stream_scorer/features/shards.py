"""Features by shards: the rows of each entity are divided by the hash of their owner (ADR 0045).

A feature of a view depends on the rows of one entity only, so each shard computes it apart from all others, with the
serving kernel. Three things are common to all shards, and are given to each of them:

- The micro-batches. Between them, long rows are compacted and old entries are removed, which matters to events later
  than ``allowed_lateness``.
- The newest event time of each micro-batch, also of those without a transaction of the shard: compaction drops the
  panes that lie behind it.
- Which transactions are duplicates. The shards of the partition entity find them; all other shards wait for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from stream_scorer.arrays import Bools, Floats, Ints
from stream_scorer.features.engine import EventBatch, FeatureEngine
from stream_scorer.features.plan import make_plan, of_entity, reach_ms
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.serde.columns import slice_labels, slice_transactions, take_labels, take_transactions
from stream_scorer.serde.decoder import Labels, Transactions, hash_ids
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.state.rows import MemoryRowStore, RowUpdate

_TRANSACTIONS, _LABELS = SourcePartition("transactions", 0), SourcePartition("labels", 0)


@dataclass(frozen=True, slots=True)
class Batching:
    """The b micro-batches of a block of transactions and of its labels, in order.

    Attributes:
        low, high: (b,) int64, the transactions ``[low, high)`` of each. label_high: (b,) int64, the end of its labels,
            which begin where those of the batch before end.
        newest, newest_label: (b,) int64 ms, the newest event time and time of labelling; -1 for none.
        trims: (b,) bool, whether rows are trimmed after it.
    """

    low: Ints
    high: Ints
    label_high: Ints
    newest: Ints
    newest_label: Ints
    trims: Bools


@dataclass(frozen=True, slots=True)
class Part:
    """The transactions of a block that belong to one shard. `rows` (m,) int64, ascending, are their places in it."""

    rows: Ints
    transactions: Transactions


@dataclass(frozen=True, slots=True)
class Values:
    """What a shard computes of a `Part`: `values` (m, columns of the entity) float64, and `duplicate` (m,) bool."""

    entity: str
    rows: Ints
    values: Floats
    duplicate: Bools


def shard_of(ids: Sequence[str | None], count: int) -> Ints:
    """(n,) int64: the shard of each id, of `count`; -1 for None."""
    shard = (hash_ids([i or "" for i in ids]).view(np.uint64) % np.uint64(count)).astype(np.int64)
    shard[np.fromiter((i is None for i in ids), np.bool_, len(ids))] = -1
    return shard


class Splitter:
    """Splits a block by the shards of an entity, with only those columns that its rows need."""

    def __init__(self, checked: CheckedSpec, entity: str, count: int) -> None:
        plan = of_entity(make_plan(checked), entity)
        fields = {name for kind in plan.entities for name, *_ in kind.where}
        values = {kind.of for kind in plan.entities if kind.of is not None}
        owners = {name for name, owner in checked.spec.entities.items() if owner.field in values}
        self._columns, self._owners = fields | values, owners | {entity}
        self._entity, self._count = entity, count

    def split(self, transactions: Transactions) -> list[Part]:
        """The part of each shard. Transactions without an id of the entity are in none."""
        shard = shard_of(transactions.entity_ids[self._entity], self._count)
        needed = replace(
            transactions,
            event_id=[""] * len(transactions),  # features depend on the hash only
            entity_ids={name: transactions.entity_ids[name] for name in sorted(self._owners)},
            columns={name: column for name, column in transactions.columns.items() if name in self._columns},
        )
        parts = []
        for number in range(self._count):
            rows = np.flatnonzero(shard == number)
            parts.append(Part(rows, take_transactions(needed, rows)))
        return parts


class EntityShard:
    """The rows of one entity in one shard. Blocks must come in order, all of them."""

    def __init__(self, checked: CheckedSpec, entity: str, number: int, count: int) -> None:
        self._engine = FeatureEngine(checked, entity)
        self._engine.warm()
        self._entity, self._number, self._count = entity, number, count
        self._takes_labels = any(kind.takes_labels for kind in self._engine.plan.entities)
        self._store, self._reach_ms = MemoryRowStore(), reach_ms(checked)

    def features(self, batching: Batching, labels: Labels, part: Part, duplicate: Bools | None = None) -> Values:
        """The view features of the transactions in `part`, and which of them are duplicates.

        Args:
            labels: all labels of the block. duplicate: (m,) bool, for all entities but the partition entity.
        """
        mine = np.zeros(0, np.int64)
        if self._takes_labels:
            mine = np.flatnonzero(shard_of(labels.entity_ids[self._entity], self._count) == self._number)
        given = take_labels(labels, mine)
        m, transactions = len(part.rows), _writable(part.transactions)
        values, found = np.full((m, len(self._engine.feature_names)), np.nan), np.zeros(m, np.bool_)
        low, high = np.searchsorted(part.rows, batching.low), np.searchsorted(part.rows, batching.high)
        label_high = np.searchsorted(mine, batching.label_high)
        label_low = np.concatenate([label_high[:1] * 0, label_high[:-1]])
        bounds = zip(low.tolist(), high.tolist(), label_low.tolist(), label_high.tolist(), strict=True)
        for place, (first, last, label_first, label_last) in enumerate(bounds):
            spans = [
                Span(_TRANSACTIONS, int(batching.low[place]), int(batching.high[place]), int(batching.newest[place])),
                Span(_LABELS, 0, int(batching.label_high[place]), int(batching.newest_label[place])),
            ]
            if first == last and label_first == label_last:
                self._store.apply(replace(RowUpdate.nothing(), spans=spans))
                self._trim(batching, place)
                continue
            events = EventBatch(
                transactions=slice_transactions(transactions, first, last),
                labels=slice_labels(given, label_first, label_last),
                spans=spans,
                transaction_span=np.zeros(last - first, np.int64),
                transaction_offset=part.rows[first:last],
                label_span=np.ones(label_last - label_first, np.int64),
                label_offset=mine[label_first:label_last],
            )
            enriched = self._engine.enrich(
                events, self._store, duplicate=None if duplicate is None else duplicate[first:last]
            )
            self._store.apply(enriched.update)
            self._trim(batching, place)
            values[first:last], found[first:last] = enriched.matrix, enriched.duplicate
        return Values(self._entity, part.rows, values, found)

    def _trim(self, batching: Batching, place: int) -> None:
        if batching.trims[place]:
            self._store.trim(trim_time(self._store, self._reach_ms))


def trim_time(rows: MemoryRowStore, reach_ms: int) -> int:
    """The event time (ms) before which no feature of a later transaction looks, as long as it is not later than
    ``allowed_lateness``; see `MemoryRowStore.trim`."""
    _, applied = rows.read([])
    return applied.watermark[_TRANSACTIONS] - reach_ms


def _writable(transactions: Transactions) -> Transactions:
    """A copy of the arrays: those of another process cannot be written to, and numba would compile kernels again."""
    return replace(
        transactions,
        id_hash=transactions.id_hash.copy(),
        event_time=transactions.event_time.copy(),
        value=transactions.value.copy(),
        columns={name: column.copy() for name, column in transactions.columns.items()},
    )


class Joiner:
    """Puts the columns of all entities and shards together, and adds the derived ones."""

    def __init__(self, checked: CheckedSpec) -> None:
        self._engine = FeatureEngine(checked)
        plan = self._engine.plan
        self._columns: dict[str, Ints] = {
            name: np.array(
                [column for column, (_, of, _) in enumerate(plan.view_columns) if plan.entities[of].name == name],
                np.int64,
            )
            for name in checked.spec.entities
        }

    def join(self, transactions: Transactions, parts: Iterable[Values]) -> tuple[Floats, Bools]:
        """The feature matrix (n, n_features) of a block, and which of its `transactions` are duplicates (n,)."""
        n = len(transactions)
        matrix, duplicate = np.full((n, len(self._engine.feature_names)), np.nan), np.zeros(n, np.bool_)
        for part in parts:
            matrix[np.ix_(part.rows, self._columns[part.entity])] = part.values
            duplicate[part.rows] |= part.duplicate
        self._engine.add_derived(matrix, np.zeros(matrix.shape, np.int8), transactions)
        return matrix, duplicate


def entities_with_features(checked: CheckedSpec) -> tuple[str | None, list[str]]:
    """The partition entity, and the other entities that have view features."""
    own = checked.spec.partition_entity if checked.spec.entities else None
    used = {view.entity for view in checked.spec.views}
    return own, [name for name in checked.spec.entities if name in used and name != own]
