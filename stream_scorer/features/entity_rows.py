"""The rows of one entity in a micro-batch: stored entries, updates in flight, and what the batch adds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count, repeat
from typing import NamedTuple

import numpy as np

from stream_scorer.arrays import Bools, Int8s, Ints
from stream_scorer.compiled import njit
from stream_scorer.features import kernel, panes
from stream_scorer.features.arguments import Events, LabelEvents, Rows
from stream_scorer.features.plan import EntityPlan
from stream_scorer.positions import Span
from stream_scorer.serde.decoder import Labels
from stream_scorer.state.row_format import ENTRY_BYTES, FIELDS, KIND, TIME, VALUE, pack, unpack
from stream_scorer.state.rows import BEGINS, CONTINUES, OPENS, WITNESS_PERIOD_MS, Compaction, ResidentRows, RowUpdate

# An update in flight, and which of its entries the stored rows lack: all (True), or a mask.
Pending = tuple[RowUpdate, Bools | bool]


@dataclass(slots=True)
class EntityRows:
    """The rows of one entity in a micro-batch.

    Attributes:
        plan: the entity's plan. keys: k row keys. first: the index of the first of them among all keys of the batch.
        key_of: (n,) int64, the row of each transaction, -1 for none. label_key_of: likewise of each label.
        rows: stored rows with the updates in flight, and with the batch's labels. resident: the stored rows, if they
            are read where they are.
        newest: (k,) int64, the witness period of each row's last entry before this batch, -1 for an empty row.
    """

    plan: EntityPlan
    keys: list[bytes]
    first: int
    key_of: Ints
    label_key_of: Ints
    rows: Rows = field(init=False)
    resident: ResidentRows | None = field(init=False)
    newest: Ints = field(init=False)

    def of(self, column: Ints) -> Ints:
        """The part of a `column` of all keys of the batch that belongs to this entity's keys."""
        return column[self.first : self.first + len(self.keys)]

    def add_labels(self, labels: Labels, limit: int) -> tuple[Ints, Ints]:
        """Append the labels that change a fraud count; return their entries (c, 4), and which labels (c,) they are."""
        given = LabelEvents(self.label_key_of, labels.id_hash, labels.event_time, labels.fraud, labels.labelled_at)
        change, time, since = kernel.label_changes(self.rows, given, limit)
        which = np.flatnonzero(change)
        entries = pack(time[which], change[which], labels.id_hash[which])
        entries[:, KIND] = since[which]
        if self.resident is None:
            self.rows = _append(self.rows, self.label_key_of[which], entries)
        else:
            self.rows = Rows(*self.resident.entries_with(self.label_key_of[which], entries))
        return entries, which


class _Added(NamedTuple):
    """Entries that are added to rows, as in `RowUpdate`; `key_of` is the place of the row's key in the batch."""

    key_of: Ints
    entries: Ints
    span_of: Ints
    offset: Ints
    opens: Int8s


class UpdateBuilder:
    """Collects the entries that a micro-batch adds, per entity, into one update."""

    def __init__(self, most: int) -> None:
        """`most` is the largest possible number of entries."""
        numbers, entries = np.empty((3, most), dtype=np.int64), np.empty((most, FIELDS), dtype=np.int64)
        self._added = _Added(numbers[0], entries, numbers[1], numbers[2], np.empty(most, dtype=np.int8))
        self._count = 0

    def add(self, entity: EntityRows, events: Events, entries: Ints, span_of: Ints, offset: Ints) -> None:
        """Add the `entries` (n, 4) of those `events` that count in the rows of `entity`, with their values there.

        `span_of` and `offset` (n,) are their source.
        """
        self._count = _add(self._added, self._count, entity.first, entity.newest, events, entries, span_of, offset)

    def build(self, spans: list[Span], keys: list[bytes], compactions: dict[bytes, Compaction]) -> RowUpdate:
        """The update that covers `spans`; `keys` are all keys of the batch."""
        key_of, entries, span_of, offset, opens = self._added
        n = self._count
        update = RowUpdate.group(spans, keys, key_of[:n], entries[:n], span_of[:n], offset[:n], opens[:n])
        update.compactions = compactions
        return update


@njit(cache=True, nogil=True)
def _add(
    added: _Added, count: int, first: int, newest: Ints, events: Events, entries: Ints, span_of: Ints, offset: Ints
) -> int:
    """Append to `added`, which has `count` entries; return how many it has then. See `UpdateBuilder` for the others."""
    for i in range(entries.shape[0]):
        key = events.key_of[i]
        if key < 0 or events.duplicate[i]:
            continue
        added.key_of[count], added.span_of[count], added.offset[count] = first + key, span_of[i], offset[i]
        for column in range(FIELDS):
            added.entries[count, column] = entries[i, column]
        added.entries[count, VALUE] = events.value[i]
        opens = OPENS if entries[i, TIME] // WITNESS_PERIOD_MS != newest[key] else CONTINUES
        added.opens[count] = BEGINS if newest[key] < 0 else opens
        count += 1
    return count


def warm() -> None:
    """Compile, or load from the cache."""
    none, flags = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.bool_)
    events = Events(none, none, none, flags)
    _add(UpdateBuilder(0)._added, 0, 0, none, events, pack(none, none, none), none, none)


def take_rows(
    entities: Sequence[EntityRows], keys: Sequence[bytes], stored: Sequence[bytes | None], pending: Sequence[Pending]
) -> Rows:
    """Set the rows of each of `entities` from what is `stored` at all `keys` of the batch; return the rows of all keys.

    The updates in flight come on top; resident rows have none.
    """
    rows = Rows(*stored.entries()) if isinstance(stored, ResidentRows) else stack(keys, stored, pending)
    newest = _newest_period(rows)
    for entity in entities:
        entity.rows = Rows(rows.entries, entity.of(rows.start), entity.of(rows.end))
        entity.newest = entity.of(newest)
        own = stored[entity.first : entity.first + len(entity.keys)] if isinstance(stored, ResidentRows) else None
        entity.resident = own
    return rows


def compactions(
    entities: Sequence[EntityRows],
    rows: Rows,
    stored: Sequence[bytes | None],
    pending: Sequence[Pending],
    limit: int,
    past_ms: int,
) -> dict[bytes, Compaction]:
    """The `rows` of all keys that have become too long, unless an update in flight already shortens them."""
    out = {}
    for place in panes.too_long(rows, limit).tolist():
        entity = next(each for each in entities if place < each.first + len(each.keys))
        key, row = entity.keys[place - entity.first], stored[place]
        if row is not None and not any(key in update.compactions for update, _ in pending):
            out[key] = panes.fold(row, entity.plan, limit, past_ms)
    return out


@dataclass(frozen=True, slots=True)
class Owners:
    """The owners of one entity's rows in a micro-batch: several kinds of rows share them.

    Attributes:
        ids: the different ids, encoded. transactions: how many of them transactions have; these come first.
        key_of: (n,) int64, the owner of each transaction, -1 for none. label_key_of: likewise of each label.
    """

    ids: list[bytes]
    transactions: int
    key_of: Ints
    label_key_of: Ints

    @classmethod
    def of(cls, ids: Sequence[str | None], label_ids: Sequence[str | None]) -> Owners:
        """The owners of transactions with `ids` (n,), and of labels with `label_ids`."""
        # No Python code per id: the n-th different id gets n. None stands first, apart from them.
        known: defaultdict[str | None, int] = defaultdict(count().__next__, {None: -1})
        key_of = np.fromiter(map(known.__getitem__, ids), np.int64, len(ids))
        transactions = len(known) - 1
        label_key_of = np.fromiter(map(known.__getitem__, label_ids), np.int64, len(label_ids))
        del known[None]
        return cls(list(map(str.encode, known)), transactions, key_of, label_key_of)  # type: ignore[arg-type]

    def rows_of(self, plan: EntityPlan, prefix: bytes, first: int) -> EntityRows:
        """The rows of `plan`, whose keys begin with `prefix`; see `EntityRows` for `first`."""
        ids = self.ids if plan.takes_labels else self.ids[: self.transactions]
        label_key_of = self.label_key_of if plan.takes_labels else self.label_key_of[:0]
        return EntityRows(plan, [prefix + i for i in ids], first, self.key_of, label_key_of)


def stack(keys: Sequence[bytes], stored: Sequence[bytes | None], pending: Sequence[Pending]) -> Rows:
    """The `stored` rows at `keys`, each followed by its entries in flight."""
    # Row, first update in flight, second one, and so on, for each key: one copy, without Python code per key.
    width = 1 + len(pending)
    parts = [b""] * (width * len(keys))
    parts[::width] = [row or b"" for row in stored]
    for place, (update, mask) in enumerate(pending, start=1):
        parts[place::width] = map(update.payload_by_key(mask).get, keys, repeat(b""))
    lengths = np.fromiter(map(len, parts), dtype=np.int64, count=len(parts)).reshape(-1, width).sum(axis=1)
    ends = np.cumsum(lengths) // ENTRY_BYTES
    return Rows(unpack(b"".join(parts)), ends - lengths // ENTRY_BYTES, ends)


def _append(rows: Rows, key_of: Ints, entries: Ints) -> Rows:
    """`rows`, which follow each other without a gap, with `entries` (c, 4) at the end of the rows `key_of` (c,)."""
    if not len(entries):
        return rows
    owner = np.concatenate([np.repeat(np.arange(len(rows.start)), rows.end - rows.start), key_of])
    order = np.argsort(owner, kind="stable")
    lengths = np.bincount(owner, minlength=len(rows.start))
    ends = np.cumsum(lengths)
    together = np.concatenate([rows.entries[rows.start[0] : rows.end[-1]], entries])[order]
    # As from `unpack`: numba compiles a kernel again for arrays that are writable.
    together.flags.writeable = False
    return Rows(together, ends - lengths, ends)


def _newest_period(rows: Rows) -> Ints:
    """(k,) int64: the witness period of each row's last entry, -1 for an empty row."""
    last = np.full(len(rows.start), -1, dtype=np.int64)
    filled = rows.end > rows.start
    last[filled] = rows.entries[rows.end[filled] - 1, TIME] // WITNESS_PERIOD_MS
    return last
