"""Enrichment of one micro-batch: read the rows, run the kernel, fill the feature matrix, and build the rows' update.

The order keeps it exact (rule 3 of ARCHITECTURE.md): take the updates in flight, then read rows and applied offsets in
one call, then put the entries on top that the applied offsets do not cover yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from stream_scorer.arrays import Bools, Floats, Int8s, Ints
from stream_scorer.features import aggregates, entity_rows, freshness, kernel, panes
from stream_scorer.features.aggregates import Scanned, columns_of, fill, scan
from stream_scorer.features.arguments import Events, LabelEvents, PaneLevels, Rows, Windows
from stream_scorer.features.derived import FUNCTIONS
from stream_scorer.features.entity_rows import EntityRows, Owners, UpdateBuilder, compactions, take_rows
from stream_scorer.features.freshness import Ages, Lateness, labels_age, progress, watermarks
from stream_scorer.features.plan import FeaturePlan, make_plan, of_entity, reaches_ms
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.records import DEFAULT, FRESH, MISSING, PARTIAL, STALE
from stream_scorer.serde.decoder import Labels, Transactions, hash_ids
from stream_scorer.spec.conditions import unmet
from stream_scorer.spec.model import LABELLED, CheckedSpec, duration_ms
from stream_scorer.state.row_format import TIME, VALUE, pack, unpack
from stream_scorer.state.rows import AppliedOffsets, Beginning, MemoryRowStore, RowStore, RowUpdate, Sharding


@dataclass(slots=True)
class EventBatch:
    """The decoded events of one micro-batch.

    Attributes:
        transactions, labels: columns. Labels come first: every transaction of the batch sees them.
        spans: the offsets that the batch covers, one span per source partition, bad records included.
        transaction_span, transaction_offset: (n,) int64; label_span, label_offset: (k,) int64; spans by index.
        scattered_from: the first transaction from which on the partition entity's events are known to be in several
            partitions, because record keys were not its ids; None if they are in one, as they should be.
    """

    transactions: Transactions
    labels: Labels
    spans: list[Span]
    transaction_span: Ints
    transaction_offset: Ints
    label_span: Ints
    label_offset: Ints
    scattered_from: int | None = None


@dataclass(slots=True)
class Enriched:
    """What enrichment adds to a micro-batch.

    Attributes:
        matrix: (n, n_features) float64, NaN without a value. status: (n, n_features) int8, see `records`.
        duplicate: (n,) bool. applied: the input positions that the features saw, see `LineageRow.applied_offsets`.
        update: what the rows gain once the batch is committed. ages: how old the features are, see `Ages`.
        degraded: reasons that hold for the whole batch; empty without a problem.
        stale, partial: (n,) bool, whether a feature of the transaction is.
    """

    matrix: Floats
    status: Int8s
    duplicate: Bools
    applied: AppliedOffsets
    update: RowUpdate
    ages: Ages
    degraded: list[str] = field(default_factory=list)
    stale: Bools = field(init=False)
    partial: Bools = field(init=False)

    def __post_init__(self) -> None:
        """Compute `stale` and `partial` once, for all stages that use them."""
        self.stale = (self.status == STALE).any(axis=1)
        self.partial = (self.status == PARTIAL).any(axis=1)


class FeatureEngine:
    """Computes the feature vector that a spec declares."""

    def __init__(self, checked: CheckedSpec, entity: str | None = None) -> None:
        """With `entity`, only its view features, without those of other entities and derived ones."""
        self.plan: FeaturePlan = make_plan(checked)
        self.feature_names = checked.features
        self._derived = checked.spec.derived
        if entity is not None:
            self.plan = of_entity(self.plan, entity)
            self.feature_names = [feature.name for feature, _, _ in self.plan.view_columns]
            self._derived = []
        self._columns_of = [columns_of(self.plan.view_columns, index) for index in range(len(self.plan.entities))]
        # A name that a field and a derived column share means the field.
        fields = checked.spec.transaction.fields
        self._column = {name: index for index, name in enumerate(checked.features) if name not in fields}
        self._lateness_ms = duration_ms(checked.spec.time.allowed_lateness)
        self._stale_ms = duration_ms(checked.spec.time.stale_after), duration_ms(checked.spec.time.labels_stale_after)
        # The features that lag when other partitions lag, those that do so if the partition entity's events are
        # scattered, and those that lag when labels lag.
        own = checked.spec.partition_entity
        self._own = _columns_where([feature.view.entity == own for feature, _, _ in self.plan.view_columns])
        self._shared = _columns_where([feature.view.entity != own for feature, _, _ in self.plan.view_columns])
        self._labelled = _columns_where([feature.aggregate in LABELLED for feature, _, _ in self.plan.view_columns])
        # How far back each view feature looks, and whether labels are what it looks at.
        self._reach_ms = reaches_ms(self.plan)
        self._entity_of_field = {entity.field: name for name, entity in checked.spec.entities.items()}
        self._pseudonyms = checked.pseudonyms
        self._label_entities = {plan.name for plan in self.plan.entities if plan.takes_labels}
        self._prefix = [b"%d:" % index for index in range(len(self.plan.entities))]

    def warm(self) -> None:
        """Compile the kernel, or load it from its cache, before the first transaction has to wait for it."""
        none, flags = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.bool_)
        rows = _no_rows()
        kernel.find_duplicates(rows, none, none, 1)
        events, windows = Events(none, none, none, flags), Windows(none, none, flags, 1)
        kernel.scan_windows(rows, events, windows, PaneLevels(none, np.ones(1, dtype=np.int64), 0), 1)
        kernel.scan_spread(rows, events, windows, 1)
        kernel.scan_distinct(rows, events, windows, 1)
        kernel.label_changes(rows, LabelEvents(none, none, none, flags, none), 1)
        panes.warm()
        aggregates.warm()
        entity_rows.warm()
        freshness.warm()

    def enrich(
        self,
        events: EventBatch,
        store: RowStore,
        in_flight: Sequence[RowUpdate] = (),
        *,
        duplicate: Bools | None = None,
    ) -> Enriched:
        """Features of every transaction of `events`.

        `in_flight` must be taken before this call reads `store`. `duplicate` (n,) bool, if given, replaces the search
        for duplicates, for which the rows of the partition entity are necessary.

        Raises:
            StateUnavailable: the store does not answer; `without_state` then gives the features that need no rows.
        """
        entities, keys = self._entities(events)
        stored, applied = _read(store, keys, in_flight)
        pending = [(update, update.pending(applied)) for update in in_flight]
        pending = [(update, mask) for update, mask in pending if mask is not False]
        builder = UpdateBuilder(len(entities) * (len(events.transactions) + len(events.labels)))
        rows = take_rows(entities, keys, stored, pending)
        past_ms = applied.slowest_active_watermark() - self._lateness_ms
        shortened = compactions(entities, rows, stored, pending, self.plan.row_entries, past_ms)
        if len(events.labels):
            self._add_labels(entities, events, builder)
        if duplicate is None:
            duplicate = self._duplicates(entities, events.transactions)
        seen = [self._seen_by(entity, events.transactions, duplicate) for entity in entities]
        scanned = [
            scan(entity.plan, entity.rows, each, self.plan.row_entries)
            for entity, each in zip(entities, seen, strict=True)
        ]
        reached = watermarks(applied, in_flight)
        of = events.transactions.event_time, events.transaction_span, events.spans
        lag, late = progress(*of, reached, self._lateness(applied))
        ages = self._ages(events, reached, lag)
        status = self._statuses(events, ages, late, applied.beginning)
        matrix = self._assemble(events.transactions, scanned, seen, status)
        _add_transactions(entities, seen, events, builder)
        update = builder.build(events.spans, keys, shortened)
        return Enriched(matrix, status, duplicate, _positions_seen(applied, events, in_flight), update, ages)

    def without_state(self, events: EventBatch, reason: str) -> Enriched:
        """The features that need no rows: the transaction's own columns. All other features are missing.

        The update covers no offsets: the applied offsets must not pass entries that the rows will not hold.
        """
        n = len(events.transactions)
        no_key = np.full(n, -1, dtype=np.int64)
        time = events.transactions.event_time
        no_events = Events(no_key, time, time, np.zeros(n, dtype=np.bool_))
        scanned = [scan(entity, _no_rows(), no_events, 1) for entity in self.plan.entities]
        ages, nothing = Ages.unknown(n), AppliedOffsets({}, {})
        status = self._statuses(events, ages, no_events.duplicate, nothing.beginning)
        matrix = self._assemble(events.transactions, scanned, [no_events] * len(scanned), status)
        status[status == DEFAULT] = MISSING
        return Enriched(matrix, status, no_events.duplicate, nothing, RowUpdate.nothing(), ages, [reason])

    def as_of(self, entity: str, stored: Sequence[bytes | None], time: int) -> dict[str, float]:
        """The view features of one entity, for an event at `time` (epoch ms) that does not count itself.

        `stored` are its rows, at the keys that `row_keys` returns.
        """
        zero, now = np.zeros(1, dtype=np.int64), np.array([time], dtype=np.int64)
        # As a duplicate, the event counts nowhere.
        event = Events(zero, now, zero, np.ones(1, dtype=np.bool_))
        places = self._places(entity)
        matrix, status = np.empty((1, len(self.plan.view_columns))), np.zeros((1, len(self.plan.view_columns)), np.int8)
        for index, row in zip(places, stored, strict=True):
            entries = unpack(row or b"")
            rows = Rows(entries, zero, np.array([len(entries)], dtype=np.int64))
            scanned = scan(self.plan.entities[index], rows, event, self.plan.row_entries)
            fill(matrix, status, self._columns_of[index], scanned, event)
        return {
            feature.name: float(value)
            for value, (feature, of, _window) in zip(matrix[0], self.plan.view_columns, strict=True)
            if of in places
        }

    def ages_as_of(
        self, applied: AppliedOffsets, transactions_topic: str, time: int
    ) -> dict[str, tuple[int | None, bool]]:
        """Per view feature, its age in ms for an event at `time` (epoch ms), None if unknown, and whether it is stale.

        The event counts as one of a partition of its own, so all partitions in `applied` are other partitions.
        """
        apart = [Span(SourcePartition(transactions_topic, -1), 0, 0, -1)]
        now, none = np.array([time], dtype=np.int64), np.zeros(0, dtype=np.int64)
        of = now, np.zeros(1, dtype=np.int64), apart, applied.watermark
        others = int(progress(*of, self._lateness(applied)).lag[0])
        labels = int(labels_age(*of, none, none)[0])
        ages: dict[str, tuple[int | None, bool]] = {}
        for column, (feature, _, _) in enumerate(self.plan.view_columns):
            lags = [others if column in self._shared else 0, labels if column in self._labelled else 0]
            stale = any(lag > max_lag for lag, max_lag in zip(lags, self._stale_ms, strict=True))
            ages[feature.name] = None if min(lags) < 0 else max(lags), stale
        return ages

    def row_keys(self, entity: str, owner: str) -> list[bytes]:
        """The row keys of `owner` (a customer id, for example); the first one is the row of all transactions."""
        identifier = self._pseudonyms.of(entity, owner)
        return [self._prefix[index] + identifier.encode() for index in self._places(entity)]

    def sharding(self, count: int) -> Sharding:
        """The assignment of rows to `count` shards (and as many for the entity of the partition key)."""
        own = self.plan.entities[self.plan.partition_entity].name if self.plan.partition_entity >= 0 else None
        return Sharding(count, frozenset(b"%d" % place for place in (self._places(own) if own is not None else [])))

    def _places(self, entity: str) -> list[int]:
        return [index for index, plan in enumerate(self.plan.entities) if plan.name == entity]

    def _entities(self, events: EventBatch) -> tuple[list[EntityRows], list[bytes]]:
        """The rows that the batch needs, by entity, and all of their keys."""
        entities: list[EntityRows] = []
        keys: list[bytes] = []
        owners: dict[str, Owners] = {}
        for plan, prefix in zip(self.plan.entities, self._prefix, strict=True):
            mine = owners.get(plan.name)
            if mine is None:
                labels = events.labels.entity_ids[plan.name] if plan.name in self._label_entities else []
                mine = owners[plan.name] = Owners.of(events.transactions.entity_ids[plan.name], labels)
            entities.append(mine.rows_of(plan, prefix, len(keys)))
            keys += entities[-1].keys
        return entities, keys

    def _add_labels(self, entities: list[EntityRows], events: EventBatch, builder: UpdateBuilder) -> None:
        for entity in entities:
            if entity.plan.takes_labels:
                entries, which = entity.add_labels(events.labels, self.plan.row_entries)
                time, value = (np.ascontiguousarray(entries[:, field]) for field in (TIME, VALUE))
                of = Events(entity.label_key_of[which], time, value, np.zeros(len(which), dtype=np.bool_))
                builder.add(entity, of, entries, events.label_span[which], events.label_offset[which])

    def _duplicates(self, entities: list[EntityRows], transactions: Transactions) -> Bools:
        if self.plan.partition_entity < 0:
            return np.zeros(len(transactions), dtype=np.bool_)
        own = entities[self.plan.partition_entity]
        return kernel.find_duplicates(own.rows, own.key_of, transactions.id_hash, self.plan.row_entries)

    def _seen_by(self, entity: EntityRows, transactions: Transactions, duplicate: Bools) -> Events:
        """The transactions as the rows of `entity` see them.

        Duplicates, and transactions without a value or that do not meet the entity's conditions, count nowhere.
        """
        skipped = duplicate | unmet(entity.plan.where, transactions.columns, len(transactions))
        values = transactions.value
        if entity.plan.of is not None:
            values, absent = self._values(entity.plan.of, transactions)
            skipped |= absent
        # The times of a Parquet file are read-only, and numba would compile the kernel once more for such arrays: 10 s.
        return Events(entity.key_of, np.require(transactions.event_time, requirements="W"), values, skipped)

    def _values(self, name: str, transactions: Transactions) -> tuple[Ints, Bools]:
        """(n,) int64, the field `name` as values to count distinct ones; (n,) bool, where it has none."""
        owner = self._entity_of_field.get(name)
        if owner is None:
            column = transactions.columns[name]
            absent = np.isnan(column)
            return np.where(absent, 0, column).astype(np.int64), absent
        ids = transactions.entity_ids[owner]
        return hash_ids([i or "" for i in ids]), np.array([i is None for i in ids], dtype=np.bool_)

    def _lateness(self, applied: AppliedOffsets) -> Lateness:
        return Lateness(self._lateness_ms, applied.passed, applied.now_ms)

    def _ages(self, events: EventBatch, reached: dict[SourcePartition, int], lag: Ints) -> Ages:
        """The ages of the features: `lag` (n,) is that of other partitions, `reached` from `watermarks`."""
        ages = Ages.unknown(len(events.transactions))
        of = events.transactions.event_time, events.transaction_span, events.spans
        # The first row with a feature that other partitions change: each row, if features of other entities exist.
        first = 0 if len(self._shared) else events.scattered_from if len(self._own) else None
        if first is not None:
            ages = replace(ages, partitions=np.where(np.arange(len(lag)) < first, -1, lag) if first else lag)
        if len(self._labelled):
            ages = replace(ages, labels=labels_age(*of, reached, events.labels.labelled_at, events.label_span))
        return ages

    def _statuses(self, events: EventBatch, ages: Ages, late: Bools, beginning: Beginning) -> Int8s:
        """The status of every feature (n, n_features), int8, as far as it does not depend on rows or other features."""
        time, first = events.transactions.event_time, events.scattered_from
        status = np.full((len(time), len(self.feature_names)), FRESH, dtype=np.int8)
        old_partitions, old_labels = ages.partitions > self._stale_ms[0], ages.labels > self._stale_ms[1]
        lagging = [(self._shared, old_partitions), (self._labelled, old_labels)]
        if first is not None:
            lagging.append((self._own, old_partitions & (np.arange(len(time)) >= first)))
        for columns, old in lagging:
            if old.any():
                status[np.ix_(old, columns)] = STALE
        self._mark_partial(status, time, late, beginning)
        return status

    def _mark_partial(self, status: Int8s, time: Ints, late: Bools, beginning: Beginning) -> None:
        """Set the status of view features whose windows the rows may not hold completely.

        Either the transaction is `late` (n,), so entries or panes in its windows may be gone. Which rows are cut
        depends on batches, so all rows count as cut (ADR 0052). Or the log did not hold the beginning of the window.
        `time` (n,) is event time.
        """
        if late.any():
            status[late, : len(self._reach_ms)] = PARTIAL
        if not any(beginning):
            return
        known_from = np.full(len(self._reach_ms), beginning.transactions, dtype=np.int64)
        known_from[self._labelled] = max(beginning)
        columns = status[:, : len(known_from)]
        columns[time[:, None] - self._reach_ms < known_from] = PARTIAL

    def _assemble(
        self, transactions: Transactions, scanned: list[Scanned], seen: list[Events], status: Int8s
    ) -> Floats:
        """The feature matrix (n, n_features) float64; sets the `status` of values without a row and of derived ones."""
        matrix = np.empty((len(transactions), len(self.feature_names)))
        for mine, of, each in zip(self._columns_of, scanned, seen, strict=True):
            fill(matrix, status, mine, of, each)
        self.add_derived(matrix, status, transactions)
        return matrix

    def add_derived(self, matrix: Floats, status: Int8s, transactions: Transactions) -> None:
        """Compute the derived columns of `matrix` and `status`, both (n, n_features), from the others."""
        for offset, derived in enumerate(self._derived):
            column = len(self.plan.view_columns) + offset
            arguments = []
            for name in derived.of:
                source = self._column.get(name)
                if source is None:
                    arguments.append(transactions.columns[name])
                else:
                    arguments.append(matrix[:, source])
                    np.maximum(status[:, column], status[:, source], out=status[:, column])
            matrix[:, column] = FUNCTIONS[derived.function](*arguments)


def _read(
    store: RowStore, keys: Sequence[bytes], in_flight: Sequence[RowUpdate]
) -> tuple[Sequence[bytes | None], AppliedOffsets]:
    """Rows in memory stay where they are, unless updates in flight follow them."""
    if isinstance(store, MemoryRowStore) and not in_flight:
        return store.read_in_place(keys)
    return store.read(keys)


def _add_transactions(
    entities: list[EntityRows], seen: list[Events], events: EventBatch, builder: UpdateBuilder
) -> None:
    """Add the transactions that count to the rows of their entities."""
    transactions = events.transactions
    entries = pack(transactions.event_time, transactions.value, transactions.id_hash)
    for entity, each in zip(entities, seen, strict=True):
        builder.add(entity, each, entries, events.transaction_span, events.transaction_offset)


def _positions_seen(applied: AppliedOffsets, events: EventBatch, in_flight: Sequence[RowUpdate]) -> AppliedOffsets:
    """The positions that the features saw: rows, updates in flight, and the labels of this batch."""
    seen = dict(applied.next_offset)
    for update in in_flight:
        for span in update.spans:
            seen[span.source] = max(seen.get(span.source, span.start), span.stop)
    for index in np.unique(events.label_span).tolist():
        span = events.spans[index]
        seen[span.source] = max(seen.get(span.source, span.start), span.stop)
    # A shard that was ahead contributed more.
    by_shard = tuple(
        AppliedOffsets({source: max(offset, seen[source]) for source, offset in m.next_offset.items()}, m.watermark)
        for m in applied.by_shard
    )
    return AppliedOffsets(seen, applied.watermark, by_shard=by_shard, sharding=applied.sharding)


def _no_rows() -> Rows:
    none = np.zeros(0, dtype=np.int64)
    return Rows(unpack(b""), none, none)


def _columns_where(flags: list[bool]) -> Ints:
    return np.flatnonzero(np.array(flags, dtype=np.bool_))
