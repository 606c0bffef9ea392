"""Enrichment of one micro-batch: read the rows, run the kernel, make the matrix and the rows' next update.

The order is what keeps it exact (rule 3 of ARCHITECTURE.md): the overlay of batches in flight is taken first, then rows
and marks are read in one call, then the overlay entries that the marks do not cover yet are put on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from stream_scorer.features import kernel, panes
from stream_scorer.features.derived import FUNCTIONS
from stream_scorer.features.freshness import Ages, labels_age, partitions_age, watermarks
from stream_scorer.features.plan import EntityPlan, FeaturePlan, make_plan
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.records import DEFAULT, FRESH, MISSING, STALE
from stream_scorer.serde.decoder import Labels, Transactions, hash_ids
from stream_scorer.spec.conditions import unmet
from stream_scorer.spec.model import LABELLED, CheckedSpec, ViewFeature, duration_ms
from stream_scorer.state.row_format import ENTRY_BYTES, TIME, VALUE, pack, unpack
from stream_scorer.state.rows import (
    BEGINS,
    CONTINUES,
    OPENS,
    WITNESS_PERIOD_MS,
    AppliedOffsets,
    Compaction,
    RowStore,
    RowUpdate,
    Sharding,
)

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]


@dataclass(slots=True)
class EventBatch:
    """The decoded events of one micro-batch.

    Attributes:
        transactions, labels: columns. Labels come first: every transaction of the batch sees them.
        spans: the offsets the batch covers, one per source partition, bad records included.
        transaction_span, transaction_offset: (n,) int64; label_span, label_offset: (k,) int64; spans by index.
    """

    transactions: Transactions
    labels: Labels
    spans: list[Span]
    transaction_span: I64
    transaction_offset: I64
    label_span: I64
    label_offset: I64


@dataclass(slots=True)
class Enriched:
    """What enrichment adds to a micro-batch.

    Attributes:
        matrix: (n, n_features) float64, NaN where there is no value. status: (n, n_features) int8, see `records`.
        duplicate: (n,) bool. marks: input positions the features saw, see `Contribution.applied`.
        update: what the rows gain once the batch is committed. ages: of the features, see `Ages`.
        stale: (n,) bool, whether a feature of the transaction is stale.
        degraded: reasons that hold for the whole batch, empty when all went well.
    """

    matrix: F64
    status: NDArray[np.int8]
    duplicate: NDArray[np.bool_]
    applied: AppliedOffsets
    update: RowUpdate
    ages: Ages
    degraded: list[str] = field(default_factory=list)
    stale: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        """Several stages ask which rows are stale: find them once."""
        self.stale = (self.status == STALE).any(axis=1)


@dataclass(slots=True)
class _Rows:
    """One entity's rows of the batch, laid end to end: entries (total, 4), start and end (k,)."""

    entries: I64
    start: I64
    end: I64


@dataclass(slots=True)
class _Scanned:
    """What the kernel found for one entity; see `kernel.scan_windows` and, where asked for, its two sisters."""

    count: I64
    total: I64
    fraud: I64
    last: I64
    spread: tuple[I64, I64, I64, F64] | None
    distinct: I64 | None


class FeatureEngine:
    """Computes the feature vector that a spec declares."""

    def __init__(self, checked: CheckedSpec) -> None:
        self.plan: FeaturePlan = make_plan(checked)
        self.feature_names = checked.features
        self._derived = checked.spec.derived
        # A field's name means the field, also where a derived column bears the same.
        fields = checked.spec.transaction.fields
        self._column = {name: index for index, name in enumerate(checked.features) if name not in fields}
        self._lateness_ms = duration_ms(checked.spec.time.allowed_lateness)
        self._stale_ms = duration_ms(checked.spec.time.stale_after), duration_ms(checked.spec.time.labels_stale_after)
        # The features that lag when other partitions do, and those that lag when labels do.
        own = checked.spec.partition_entity
        self._shared = _columns_where([feature.view.entity != own for feature, _, _ in self.plan.view_columns])
        self._labelled = _columns_where([feature.aggregate in LABELLED for feature, _, _ in self.plan.view_columns])
        self._entity_of_field = {entity.field: name for name, entity in checked.spec.entities.items()}
        self._prefix = [str(index) + ":" for index in range(len(self.plan.entities))]

    def warm(self) -> None:
        """Compile the kernel (or load it from its cache) before the first transaction waits for it."""
        none, entries = np.zeros(0, dtype=np.int64), np.zeros((0, 4), dtype=np.int64)
        no_flags = np.zeros(0, dtype=np.bool_)
        kernel.find_duplicates(entries, none, none, none, none, 1)
        arguments = (entries, none, none, none, none, none, no_flags, none, none, no_flags, 1, 1)
        kernel.scan_windows(*arguments, none, none, 0)
        kernel.scan_spread(*arguments)
        kernel.scan_distinct(*arguments)
        kernel.label_changes(entries, none, none, none, none, no_flags, none, 1)
        panes.warm()

    def enrich(self, events: EventBatch, store: RowStore, in_flight: Sequence[RowUpdate] = ()) -> Enriched:
        """Features of every transaction of `events`.

        `in_flight` must be taken before this call reads `store`. Raises `StateUnavailable` when the store does not
        answer; `without_state` is what then remains possible.
        """
        transactions, labels = events.transactions, events.labels
        keys: list[bytes] = []
        bounds = [0]
        key_of: list[I64] = []
        label_key_of: list[I64] = []
        for index, entity in enumerate(self.plan.entities):
            known: dict[str, int] = {}
            key_of.append(_intern(transactions.entity_ids[entity.name], known))
            label_ids: Sequence[str | None] = labels.entity_ids[entity.name] if entity.takes_labels else []
            label_key_of.append(_intern(label_ids, known))
            prefix = self._prefix[index]
            keys += [(prefix + i).encode() for i in known]
            bounds.append(len(keys))
        rows, applied = store.read(keys)
        pending = [(update, update.pending(applied)) for update in in_flight]
        pending = [(update, mask) for update, mask in pending if mask is not False]

        key_list: list[I64] = []
        entry_list: list[I64] = []
        span_list: list[I64] = []
        offset_list: list[I64] = []
        opens_list: list[NDArray[np.int8]] = []
        stacked: list[_Rows] = []
        newest: list[I64] = []
        compactions: dict[bytes, Compaction] = {}
        for index, entity in enumerate(self.plan.entities):
            low, high = bounds[index], bounds[index + 1]
            mine = _stack(keys[low:high], rows[low:high], pending)
            newest.append(_newest_period(mine))
            past_ms = applied.slowest_started_watermark() - self._lateness_ms
            compactions |= _folds(entity, keys[low:high], rows[low:high], mine, self.plan.row_entries, past_ms, pending)
            if entity.takes_labels and len(labels):
                changes, change_of = self._label_entries(mine, label_key_of[index], labels)
                mine = _append(mine, label_key_of[index][change_of], changes)
                key_list.append(label_key_of[index][change_of] + low)
                entry_list.append(changes)
                span_list.append(events.label_span[change_of])
                offset_list.append(events.label_offset[change_of])
                opens_list.append(_opens(changes[:, TIME], newest[index][label_key_of[index][change_of]]))
            stacked.append(mine)

        n = len(transactions)
        duplicate = np.zeros(n, dtype=np.bool_)
        limit = self.plan.row_entries
        if self.plan.partition_entity >= 0:
            own = stacked[self.plan.partition_entity]
            duplicate = kernel.find_duplicates(
                own.entries, own.start, own.end, key_of[self.plan.partition_entity], transactions.id_hash, limit
            )
        silent = [_silent(entity, transactions, duplicate) for entity in self.plan.entities]
        values = [self._values(entity, transactions, silent[i]) for i, entity in enumerate(self.plan.entities)]
        scanned = [
            _scan(entity, mine, key_of[index], transactions.event_time, values[index], silent[index], limit)
            for index, (entity, mine) in enumerate(zip(self.plan.entities, stacked, strict=True))
        ]
        ages = self._ages(events, applied, in_flight)
        matrix, status = self._assemble(transactions, scanned, key_of, ages)

        entries = pack(transactions.event_time, transactions.value, transactions.id_hash)
        for index in range(len(self.plan.entities)):
            counted = np.flatnonzero((key_of[index] >= 0) & ~silent[index])
            key_list.append(key_of[index][counted] + bounds[index])
            gained = entries[counted]
            gained[:, VALUE] = values[index][counted]
            entry_list.append(gained)
            span_list.append(events.transaction_span[counted])
            offset_list.append(events.transaction_offset[counted])
            opens_list.append(_opens(transactions.event_time[counted], newest[index][key_of[index][counted]]))
        update = RowUpdate.group(
            events.spans,
            keys,
            _concatenate(key_list),
            np.concatenate(entry_list) if entry_list else np.zeros((0, 4), dtype=np.int64),
            _concatenate(span_list),
            _concatenate(offset_list),
            np.concatenate(opens_list) if opens_list else np.zeros(0, dtype=np.int8),
        )
        update.compactions = compactions
        return Enriched(matrix, status, duplicate, self._seen(applied, events, in_flight), update, ages)

    def without_state(self, events: EventBatch, reason: str) -> Enriched:
        """What remains while the rows cannot be read: the transaction's own columns; everything else is missing.

        Its update covers no offsets: the marks must not pass what the rows will not hold.
        """
        n = len(events.transactions)
        nobody = np.full(n, -1, dtype=np.int64)
        none = np.zeros(0, dtype=np.int64)
        empty = _Rows(np.zeros((0, 4), dtype=np.int64), none, none)
        duplicate = np.zeros(n, dtype=np.bool_)
        time = events.transactions.event_time
        scanned = [_scan(entity, empty, nobody, time, time, duplicate, 1) for entity in self.plan.entities]
        ages = Ages.unknown(n)
        matrix, status = self._assemble(events.transactions, scanned, [nobody] * len(scanned), ages)
        status[status == DEFAULT] = MISSING
        return Enriched(matrix, status, duplicate, AppliedOffsets({}, {}), RowUpdate.nothing(), ages, [reason])

    def as_of(self, entity: str, stored: Sequence[bytes | None], time: int) -> dict[str, float]:
        """The view features of one entity, for an event at `time` (epoch ms) that does not count itself.

        `stored` are its rows, at the keys that `row_keys` gives.
        """
        zero, now = np.zeros(1, dtype=np.int64), np.array([time], dtype=np.int64)
        scanned: dict[int, _Scanned] = {}
        for index, row in zip(self._places(entity), stored, strict=True):
            entries = unpack(row or b"")
            rows = _Rows(entries, zero, np.array([len(entries)], dtype=np.int64))
            # Flagged as a duplicate, so that it counts nowhere.
            nowhere = np.ones(1, dtype=np.bool_)
            scanned[index] = _scan(self.plan.entities[index], rows, zero, now, zero, nowhere, self.plan.row_entries)
        return {
            feature.name: float(_aggregate(feature, scanned[of], window, now)[0])
            for feature, of, window in self.plan.view_columns
            if of in scanned
        }

    def ages_as_of(
        self, applied: AppliedOffsets, transactions_topic: str, time: int
    ) -> dict[str, tuple[int | None, bool]]:
        """How old each view feature is for an event at `time` (epoch ms): ms, None if not known, and whether stale.

        For an event of a partition of its own: all those that `applied` tell of count as others.
        """
        apart = [Span(SourcePartition(transactions_topic, -1), 0, 0, -1)]
        now, none = np.array([time], dtype=np.int64), np.zeros(0, dtype=np.int64)
        of = now, np.zeros(1, dtype=np.int64), apart, applied.watermark
        others, labels = int(partitions_age(*of)[0]), int(labels_age(*of, none, none)[0])
        told: dict[str, tuple[int | None, bool]] = {}
        for column, (feature, _, _) in enumerate(self.plan.view_columns):
            lags = [others if column in self._shared else 0, labels if column in self._labelled else 0]
            stale = any(lag > most for lag, most in zip(lags, self._stale_ms, strict=True))
            told[feature.name] = None if min(lags) < 0 else max(lags), stale
        return told

    def row_keys(self, entity: str, owner: str) -> list[bytes]:
        """The row keys of `owner` (a customer's id, say), first that of all transactions; none for no such entity."""
        return [(self._prefix[index] + owner).encode() for index in self._places(entity)]

    def sharding(self, count: int) -> Sharding:
        """How the rows lie in `count` shards (and as many for the entity of the partition key)."""
        own = self.plan.entities[self.plan.partition_entity].name if self.plan.partition_entity >= 0 else None
        return Sharding(count, frozenset(b"%d" % place for place in (self._places(own) if own is not None else [])))

    def _places(self, entity: str) -> list[int]:
        return [index for index, plan in enumerate(self.plan.entities) if plan.name == entity]

    def _values(self, entity: EntityPlan, transactions: Transactions, silent: NDArray[np.bool_]) -> I64:
        """(n,) int64: what stands as value in the rows of `entity`; transactions without one become `silent`."""
        if entity.of is None:
            return transactions.value
        owner = self._entity_of_field.get(entity.of)
        if owner is None:
            column = transactions.columns[entity.of]
            absent = np.isnan(column)
            values = np.where(absent, 0, column).astype(np.int64)
        else:
            ids = transactions.entity_ids[owner]
            absent = np.array([i is None for i in ids], dtype=np.bool_)
            values = hash_ids([i or "" for i in ids])
        silent |= absent
        return values

    def _label_entries(self, rows: _Rows, key_of: I64, labels: Labels) -> tuple[I64, I64]:
        """Entries (c, 4) of the labels that change a fraud count, and which labels (c,) they are."""
        change, since = kernel.label_changes(
            rows.entries,
            rows.start,
            rows.end,
            key_of,
            labels.id_hash,
            labels.fraud,
            labels.labelled_at,
            self.plan.row_entries,
        )
        which = np.flatnonzero(change)
        entries = pack(labels.event_time[which], change[which], labels.id_hash[which])
        entries[:, 3] = since[which]
        return entries, which

    def _seen(self, applied: AppliedOffsets, events: EventBatch, in_flight: Sequence[RowUpdate]) -> AppliedOffsets:
        """The marks as the features saw them: rows, batches in flight, and this batch's own labels."""
        seen = dict(applied.next_offset)
        for update in in_flight:
            for span in update.spans:
                seen[span.source] = max(seen.get(span.source, span.start), span.stop)
        for index in np.unique(events.label_span).tolist():
            span = events.spans[index]
            seen[span.source] = max(seen.get(span.source, span.start), span.stop)
        # A shard may have been ahead: of what others bring, it saw more.
        by_shard = tuple(
            AppliedOffsets({source: max(offset, seen[source]) for source, offset in m.next_offset.items()}, m.watermark)
            for m in applied.by_shard
        )
        return AppliedOffsets(seen, applied.watermark, by_shard=by_shard, sharding=applied.sharding)

    def _ages(self, events: EventBatch, applied: AppliedOffsets, in_flight: Sequence[RowUpdate]) -> Ages:
        ages = Ages.unknown(len(events.transactions))
        seen = watermarks(applied, in_flight)
        of = events.transactions.event_time, events.transaction_span, events.spans
        if len(self._shared):
            ages = replace(ages, partitions=partitions_age(*of, seen))
        if len(self._labelled):
            ages = replace(ages, labels=labels_age(*of, seen, events.labels.labelled_at, events.label_span))
        return ages

    def _assemble(
        self, transactions: Transactions, scanned: list[_Scanned], key_of: list[I64], ages: Ages
    ) -> tuple[F64, NDArray[np.int8]]:
        n = len(transactions)
        matrix = np.empty((n, len(self.feature_names)))
        status = np.full((n, len(self.feature_names)), FRESH, dtype=np.int8)
        old_partitions, old_labels = ages.partitions > self._stale_ms[0], ages.labels > self._stale_ms[1]
        for columns, old in ((self._shared, old_partitions), (self._labelled, old_labels)):
            if old.any():
                status[np.ix_(old, columns)] = STALE
        for column, (feature, entity, window) in enumerate(self.plan.view_columns):
            absent = key_of[entity] < 0
            values = _aggregate(feature, scanned[entity], window, transactions.event_time)
            values[absent] = np.nan
            matrix[:, column] = values
            status[absent, column] = DEFAULT
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
        return matrix, status


def _silent(entity: EntityPlan, transactions: Transactions, duplicate: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(n,) bool: what counts nowhere in the rows of `entity`: duplicates, and what does not meet its conditions."""
    return duplicate | unmet(entity.where, transactions.columns, len(transactions))


def _scan(
    entity: EntityPlan, rows: _Rows, key_of: I64, time: I64, value: I64, duplicate: NDArray[np.bool_], limit: int
) -> _Scanned:
    arguments = (
        rows.entries,
        rows.start,
        rows.end,
        key_of,
        time,
        value,
        duplicate,
        entity.window_ms,
        entity.delay_ms,
        entity.include_current,
        entity.horizon_ms,
        limit,
    )
    count, total, fraud, last = kernel.scan_windows(*arguments, entity.level_of, entity.pane_ms, entity.last_level)
    spread = kernel.scan_spread(*arguments) if entity.spread else None
    distinct = kernel.scan_distinct(*arguments) if entity.of is not None else None
    return _Scanned(count, total, fraud, last, spread, distinct)


def _aggregate(feature: ViewFeature, scanned: _Scanned, window: int, time: I64) -> F64:
    kind = feature.aggregate
    if kind == "since_last":
        return np.where(scanned.last >= 0, (time - scanned.last) / 1_000.0, np.nan)
    if kind == "is_new":
        return (scanned.last < 0).astype(np.float64)
    seen = scanned.count[:, window].astype(np.float64)
    if kind == "count":
        return seen
    if kind == "sum":
        return scanned.total[:, window].astype(np.float64)
    if kind == "label_count":
        return scanned.fraud[:, window].astype(np.float64)
    if kind == "distinct":
        assert scanned.distinct is not None
        return scanned.distinct[:, window].astype(np.float64)
    if kind in ("min", "max", "std"):
        assert scanned.spread is not None
        number, least, greatest, squares = scanned.spread
        if kind == "std":
            return np.sqrt(_over(squares[:, window], number[:, window].astype(np.float64), np.nan))
        return np.where(number[:, window] > 0, (least if kind == "min" else greatest)[:, window], np.nan)
    # A mean of nothing has no value; a fraud rate of nothing is 0: no fraud is known of that entity.
    if kind == "mean":
        return _over(scanned.total[:, window], seen, np.nan)
    return _over(scanned.fraud[:, window], seen, 0.0)


def _over(numerator: I64 | F64, count: F64, empty: float) -> F64:
    quotient: F64 = np.divide(numerator, count, out=np.full(len(count), empty), where=count > 0)
    return quotient


def _intern(ids: Sequence[str | None], known: dict[str, int]) -> I64:
    """(n,) int64: the place of each id in `known`, which grows; -1 for none."""
    out = [-1 if i is None else known.setdefault(i, len(known)) for i in ids]
    return np.array(out, dtype=np.int64)


def _stack(
    keys: list[bytes], rows: list[bytes | None], pending: list[tuple[RowUpdate, NDArray[np.bool_] | bool]]
) -> _Rows:
    """Stored rows with the updates in flight on top, end to end."""
    parts = [row or b"" for row in rows]
    for update, mask in pending:
        place_of = update.position.get
        for index, key in enumerate(keys):
            place = place_of(key)
            if place is None:
                continue
            if mask is True:
                parts[index] += update.payloads[place]
            else:
                assert isinstance(mask, np.ndarray)
                low, high = int(update.bounds[place]), int(update.bounds[place + 1])
                parts[index] += update.entries[low:high][mask[low:high]].tobytes()
    lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts)) // ENTRY_BYTES
    ends = np.cumsum(lengths)
    return _Rows(unpack(b"".join(parts)), ends - lengths, ends)


def _folds(
    entity: EntityPlan,
    keys: list[bytes],
    rows: list[bytes | None],
    stacked: _Rows,
    limit: int,
    past_ms: int,
    pending: list[tuple[RowUpdate, NDArray[np.bool_] | bool]],
) -> dict[bytes, Compaction]:
    """The rows that have grown too long, unless a batch in flight already shortens them."""
    out = {}
    for place in panes.too_long(stacked.entries, stacked.start, stacked.end, limit).tolist():
        key, row = keys[place], rows[place]
        if row is not None and not any(key in update.compactions for update, _ in pending):
            out[key] = panes.fold(row, entity, limit, past_ms)
    return out


def _period(time: I64) -> I64:
    return time // WITNESS_PERIOD_MS


def _newest_period(rows: _Rows) -> I64:
    """(k,) int64: the period of each row's last entry, -1 for an empty row."""
    last = np.full(len(rows.start), -1, dtype=np.int64)
    filled = rows.end > rows.start
    last[filled] = _period(rows.entries[rows.end[filled] - 1, TIME])
    return last


def _opens(time: I64, newest: I64) -> NDArray[np.int8]:
    """(u,) int8 for entries at `time` in rows whose last entry is of the period `newest`: see `RowUpdate.opens`."""
    return np.where(newest < 0, BEGINS, np.where(_period(time) != newest, OPENS, CONTINUES)).astype(np.int8)


def _append(rows: _Rows, key_of: I64, entries: I64) -> _Rows:
    """`rows` with `entries` (c, 4) at the end of the rows `key_of` (c,)."""
    if not len(entries):
        return rows
    owner = np.concatenate([np.repeat(np.arange(len(rows.start)), rows.end - rows.start), key_of])
    order = np.argsort(owner, kind="stable")
    lengths = np.bincount(owner, minlength=len(rows.start))
    ends = np.cumsum(lengths)
    return _Rows(np.concatenate([rows.entries, entries])[order], ends - lengths, ends)


def _columns_where(flags: list[bool]) -> I64:
    return np.flatnonzero(np.array(flags, dtype=np.bool_))


def _concatenate(parts: list[I64]) -> I64:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
