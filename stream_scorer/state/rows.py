"""Rows and their applied offsets: append-only packed rows that advance together with one offset per source partition.

The applied offset of a partition is the next offset whose entries are not yet in the rows. An update carries the span
``[start, stop)`` of input offsets that it covers, per source partition. The store refuses it (`StateGap`) when an
applied offset is missing or below `start`, skips the entries below the applied offset one by one, and changes rows and
applied offsets in one step. So an update may be sent twice, late, or by a former owner. Only `init` creates offsets.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice, repeat
from typing import NamedTuple, Protocol, overload

import numpy as np
import xxhash

from stream_scorer.arrays import Bools, Int8s, Ints
from stream_scorer.clock import SystemClock
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.state.arena import Arena
from stream_scorer.state.row_format import ENTRY_BYTES, FIELDS, KIND, TIME, TRANSACTION, to_bytes, unpack

# The store records a witness of a row once per period of event time in which the row gains an entry; see
# `RowUpdate.opens`. A longer period costs less, but rows stay up to one period beyond their horizon. 14 days.
WITNESS_PERIOD_MS = 14 * 24 * 3_600_000
# A partition without unread records is idle if its newest event is this much older than the newest transaction: a day.
IDLE_MS = 24 * 3_600_000
# How far a watermark beyond the wall clock counts when lost rows are looked for. One day.
AHEAD_MS = 24 * 3_600_000
# The largest share of the rows that one pass of `FeatureRows.expire` deletes. More suggests a wrong watermark.
MAX_EXPIRED_SHARE = 0.5
_UINT16 = 1 << 16
# An entry continues a period of its row, opens a period, or begins the row, as far as the reader of the row could see.
CONTINUES, OPENS, BEGINS = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Sharding:
    """Assigns rows to shards by the hash of their owner. Rows of the partition key's entity have shards of their own.

    Attributes:
        count: number of shards for the rows of the partition key's entity, and again for all other rows.
        own: what the keys of that entity's rows begin with, before the colon.
    """

    count: int
    own: frozenset[bytes]

    def __len__(self) -> int:
        return 2 * self.count if self.own else self.count

    def of(self, key: bytes) -> int:
        """The shard of the row at `key`; the shards of the partition key's entity have the highest numbers."""
        kind, _, owner = key.partition(b":")
        return xxhash.xxh3_64_intdigest(owner) % self.count + (self.count if kind in self.own else 0)


class Beginning(NamedTuple):
    """The event times (ms) before which the rows lack transactions and labels, because the log lacked them; 0: none.

    A window that reaches further back is partial.
    """

    transactions: int = 0
    labels: int = 0


@dataclass(slots=True)
class AppliedOffsets:
    """Per source partition, the next offset that is not yet in the rows, and the event-time watermark (ms; -1: none).

    Attributes:
        target: the committed offset of each partition when a rebuild after a loss began; 0 without a loss.
        by_shard: the applied offsets of each shard, in the order of `sharding`. The other attributes then hold the
            minimum of all shards.
        beginning: from where on the rows are complete.
        passed: an event time (ms) that all partitions had passed, except idle ones; see `passed_by`. -1: not known.
        labels_topic: the topic whose partitions hold labels; empty: none do. Labels may be far ahead of transactions.
            They hold back what is dropped as old, and never advance it.
        now_ms: the wall clock when this was read. One event from a clock that is ahead makes a watermark for good, so
            what is dropped as old, or looked for, must not depend on a watermark beyond it.
    """

    next_offset: dict[SourcePartition, int]
    watermark: dict[SourcePartition, int]
    target: dict[SourcePartition, int] = field(default_factory=dict)
    by_shard: tuple[AppliedOffsets, ...] = ()
    sharding: Sharding | None = None
    beginning: Beginning = field(default_factory=Beginning)
    passed: int = -1
    labels_topic: str = ""
    now_ms: int = field(default_factory=SystemClock().now_ms, compare=False)

    def slowest_active_watermark(self) -> int:
        """The event time (ms) that every partition has passed, except those without events and idle ones.

        At most `now_ms`; -1 before the first transaction.
        """
        slowest = min((w for w in self.watermark.values() if w >= 0), default=-1)
        return min(max(min(slowest, self._newest_transaction()), self.passed), self.now_ms)

    def newest_watermark(self) -> int:
        """The time (ms) of the newest transaction; -1 for none. At most a day beyond `now_ms`: clocks differ."""
        return min(self._newest_transaction(), self.now_ms + AHEAD_MS)

    def newest_of_all(self) -> int:
        """As `newest_watermark`, of transactions and labels: a label may come before its transaction."""
        return min(max(self.watermark.values(), default=-1), self.now_ms + AHEAD_MS)

    def _newest_transaction(self) -> int:
        return max((w for s, w in self.watermark.items() if s.topic != self.labels_topic), default=-1)

    def passed_by(self, ends: Mapping[SourcePartition, int]) -> int:
        """The event time (ms) that all partitions have passed, except those without events and idle ones.

        A partition is idle if no record below `ends` is left and its newest event is `IDLE_MS` older than the newest
        transaction. -1 before the first transaction.
        """
        newest = self._newest_transaction()
        active = [
            w
            for source, w in self.watermark.items()
            if w >= 0 and (self.next_offset[source] < ends[source] or w >= newest - IDLE_MS)
        ]
        return min(active, default=-1) if newest >= 0 else -1

    @property
    def complete(self) -> bool:
        """Whether the rows hold everything again that they held before the loss."""
        return all(self.next_offset[source] >= target for source, target in self.target.items())

    def settled(self, ends: Mapping[SourcePartition, int]) -> int:
        """The event time (ms) that all partitions with unread records, below `ends`, have passed; -1 for none.

        A partition that is read to its end holds nothing back. The result is at most the time of the newest
        transaction, because the next one may be as old.
        """
        behind = [w for source, w in self.watermark.items() if self.next_offset[source] < ends[source]]
        return min([*behind, self._newest_transaction()])

    def slowest_watermark(self) -> int:
        """The lowest watermark of all partitions, at most `now_ms`. Except for late events, no event will be older."""
        return min(min(self.watermark.values(), default=-1), self.now_ms)


class Compaction(NamedTuple):
    """The stored beginning of a row, and its replacement; see ADR 0011."""

    before: bytes
    after: bytes

    def apply(self, row: bytes) -> bytes:
        """`row` with its beginning replaced; unchanged if it no longer begins as it did when it was read."""
        if len(row) < len(self.before) or row[:ENTRY_BYTES] != self.before[:ENTRY_BYTES]:
            return row
        return self.after + row[len(self.before) :]


@dataclass
class RowUpdate:
    """Entries to append, grouped by row, with the spans they came from.

    Attributes:
        spans: one per source partition of the batch; entries refer to them by index.
        keys: k row keys. bounds: (k + 1,) int64; the entries of key i are ``bounds[i]:bounds[i + 1]``.
        entries: (u, 4) int64, in log order within each key. span_of, offset: (u,) int64, the source of each entry.
        opens: (u,) int8, per entry. `BEGINS`: the row was empty when it was read. `OPENS`: the row had no entry of the
            same `WITNESS_PERIOD_MS`. `CONTINUES`: it had one. `BEGINS` and `OPENS` make the store record a witness
            apart from the row, so that a lost row is not mistaken for one that never existed. If a row is missing for
            an entry that does not begin it, the row was lost after it was read.
        compactions: rows to shorten, by key; what they count stays the same.
    """

    spans: list[Span]
    keys: list[bytes]
    bounds: Ints
    entries: Ints
    span_of: Ints
    offset: Ints
    opens: Int8s
    compactions: dict[bytes, Compaction] = field(default_factory=dict)

    @classmethod
    def group(
        cls,
        spans: list[Span],
        keys: list[bytes],
        key_of: Ints,
        entries: Ints,
        span_of: Ints,
        offset: Ints,
        opens: Int8s,
    ) -> RowUpdate:
        """Group entries, given in log order, by key. `key_of` (u,) indexes `keys`; keys without entries are dropped."""
        # numpy sorts 16-bit integers by radix, three times as fast as wider ones.
        order = np.argsort(key_of.astype(np.uint16) if len(keys) <= _UINT16 else key_of, kind="stable")
        counts = np.bincount(key_of, minlength=len(keys))
        used = np.flatnonzero(counts)
        bounds = np.zeros(len(used) + 1, dtype=np.int64)
        np.cumsum(counts[used], out=bounds[1:])
        kept = keys if len(used) == len(keys) else [keys[i] for i in used.tolist()]
        entries = entries.take(order, axis=0)
        return cls(spans, kept, bounds, entries, span_of.take(order), offset.take(order), opens.take(order))

    @classmethod
    def nothing(cls) -> RowUpdate:
        """An update that covers no offsets."""
        none = np.zeros(0, dtype=np.int64)
        return cls([], [], np.zeros(1, dtype=np.int64), none.reshape(0, FIELDS), none, none, none.astype(np.int8))

    def __len__(self) -> int:
        return len(self.offset)

    @cached_property
    def payloads(self) -> list[bytes]:
        """The packed entries of each key."""
        return _cut(self.entries, self.bounds)

    def payload_by_key(self, mask: Bools | bool = True) -> dict[bytes, bytes]:
        """The packed entries of each key: all of them, or those of a `mask` (u,)."""
        if isinstance(mask, bool):
            return self._all_by_key if mask else {}
        kept = np.concatenate(([0], np.cumsum(mask)))
        return dict(zip(self.keys, _cut(self.entries[mask], kept[self.bounds]), strict=True))

    @cached_property
    def _all_by_key(self) -> dict[bytes, bytes]:
        return dict(zip(self.keys, self.payloads, strict=True))

    @property
    def key_of(self) -> Ints:
        """(u,) int64: the index of each entry's key in `keys`."""
        return np.repeat(np.arange(len(self.keys)), np.diff(self.bounds))

    def pending(self, applied: AppliedOffsets) -> Bools | bool:
        """Which entries are missing in rows that were read together with `applied`: all, none, or a mask (u,)."""
        if applied.sharding is not None:
            return self._pending_by_shard(applied, applied.sharding)
        ahead = [applied.next_offset.get(s.source, -1) for s in self.spans]
        if all(offset <= span.start for offset, span in zip(ahead, self.spans, strict=True)):
            return True
        if all(offset >= span.stop for offset, span in zip(ahead, self.spans, strict=True)):
            return False
        return self.offset >= np.array(ahead, dtype=np.int64)[self.span_of]

    def _pending_by_shard(self, applied: AppliedOffsets, sharding: Sharding) -> Bools | bool:
        ahead = np.array([[m.next_offset.get(s.source, -1) for s in self.spans] for m in applied.by_shard], np.int64)
        if (ahead <= [span.start for span in self.spans]).all():
            return True
        if (ahead >= [span.stop for span in self.spans]).all():
            return False
        shard_of = np.repeat(self.shards(sharding), np.diff(self.bounds))
        return np.asarray(self.offset >= ahead[shard_of, self.span_of], np.bool_)

    def shards(self, sharding: Sharding) -> Ints:
        """(k,) int64: the shard of each key."""
        return np.fromiter(map(sharding.of, self.keys), np.int64, len(self.keys))

    def after(self, ahead: Sequence[int]) -> RowUpdate:
        """The rest of the update if the rows hold everything below `ahead`, one offset per span."""
        at = np.array(ahead, dtype=np.int64)
        left = [index for index, span in enumerate(self.spans) if at[index] < span.stop]
        place = np.full(len(self.spans), -1, dtype=np.int64)
        place[left] = np.arange(len(left))
        mine = (self.offset >= at[self.span_of]) & (place[self.span_of] >= 0)
        key_of = self.key_of
        spans = [self.spans[index]._replace(start=max(self.spans[index].start, ahead[index])) for index in left]
        out = RowUpdate.group(
            spans,
            self.keys,
            key_of[mine],
            self.entries[mine],
            place[self.span_of[mine]],
            self.offset[mine],
            _not_begun(self.opens, key_of, key_of[~mine])[mine],
        )
        out.compactions = self.compactions
        return out

    def split(self, max_entries: int) -> list[RowUpdate]:
        """Updates of about `max_entries` entries each, contiguous in every partition, to be applied in order.

        Labels come before all transactions, as they do in the whole update: a row must read the same whether an update
        is still in flight or was applied in parts.
        """
        if len(self) <= max_entries:
            return [self]
        key_of, opens = self.key_of, self.opens
        out = []
        for spans in self._split_spans(max_entries):
            low = np.array([s.start for s in spans], dtype=np.int64)[self.span_of]
            high = np.array([s.stop for s in spans], dtype=np.int64)[self.span_of]
            mine = (self.offset >= low) & (self.offset < high)
            out.append(
                RowUpdate.group(
                    self._with_watermarks(spans, mine),
                    self.keys,
                    key_of[mine],
                    self.entries[mine],
                    self.span_of[mine],
                    self.offset[mine],
                    opens[mine],
                )
            )
            opens = _not_begun(opens, key_of, key_of[mine])
        out[0].compactions = self.compactions
        return out

    def _split_spans(self, max_entries: int) -> list[list[Span]]:
        """The spans of each part of `split`."""
        label_spans = set(np.unique(self.span_of[self.entries[:, KIND] != TRANSACTION]).tolist())
        label_entries = int(np.isin(self.span_of, list(label_spans)).sum())
        label_parts, other_parts = (
            -(-label_entries // max_entries),
            max(-(-(len(self) - label_entries) // max_entries), 1),
        )
        # The last labels and the first transactions share a part, because there are usually few labels.
        parts = max(label_parts + other_parts - 1, other_parts)
        edges = []
        for index, span in enumerate(self.spans):
            steps = label_parts if index in label_spans else other_parts
            even = np.linspace(span.start, span.stop, steps + 1).round().astype(np.int64).tolist()
            waiting = [] if index in label_spans else [span.start] * (parts - other_parts)
            edges.append(waiting + even + [span.stop] * (parts + 1 - len(waiting) - len(even)))
        return [
            [Span(s.source, edges[i][part], edges[i][part + 1], s.watermark) for i, s in enumerate(self.spans)]
            for part in range(parts)
        ]

    def _with_watermarks(self, spans: list[Span], mine: Bools) -> list[Span]:
        """`spans` of one part, whose entries are `mine` (u,), with the watermarks that this part reaches.

        A watermark must not run ahead of its applied offset. Only the part that ends a span has the watermark of the
        span; before it, the watermark is the newest event time of the part.
        """
        reached = np.full(len(spans), -1, dtype=np.int64)
        transactions = mine & (self.entries[:, KIND] == TRANSACTION)
        np.maximum.at(reached, self.span_of[transactions], self.entries[transactions, TIME])
        return [
            part if part.stop >= whole.stop else part._replace(watermark=time)
            for part, whole, time in zip(spans, self.spans, reached.tolist(), strict=True)
        ]


def _cut(entries: Ints, bounds: Ints) -> list[bytes]:
    """The packed `entries` (u, 4) between each two of `bounds` (k + 1,)."""
    packed = to_bytes(entries)
    edges = (bounds * ENTRY_BYTES).tolist()
    return [packed[low:high] for low, high in zip(edges, edges[1:], strict=False)]


def _not_begun(opens: Int8s, key_of: Ints, held: Ints) -> Int8s:
    """`opens` for entries of the keys `key_of`, once the rows of the keys `held` exist."""
    begun = np.zeros(key_of.max(initial=-1) + 1, dtype=np.bool_)
    begun[held] = True
    return np.where(begun[key_of] & (opens == BEGINS), np.int8(OPENS), opens)


class RowStore(Protocol):
    """Stores rows. Implementations: Redis for serving, memory for replay and training."""

    def read(self, keys: Sequence[bytes]) -> tuple[list[bytes | None], AppliedOffsets]:
        """The rows at `keys` (None for a missing row) and the applied offsets, both from the same moment."""
        ...

    def apply(self, update: RowUpdate) -> None:
        """Append the entries of `update` and advance the applied offsets.

        Raises:
            StateGap: updates before this one are missing. Nothing has changed.
        """
        ...


class AppliedRowStore(RowStore, Protocol):
    """Rows that outlive a process and may lose data. Implementations: Redis, and in memory for tests.

    The *epoch* is the generation of rows in use. A loss of data ends it, and the next one is built from the log.
    """

    @property
    def epoch(self) -> str:
        """The epoch in use; empty before `open`."""
        ...

    def open(self) -> AppliedOffsets | None:
        """Use the current epoch and return its applied offsets; None if some are missing (not initialized, or lost)."""
        ...

    def init(
        self,
        next_offset: dict[SourcePartition, int],
        target: dict[SourcePartition, int],
        beginning: Beginning = Beginning(),
    ) -> bool:
        """Begin a new epoch with these applied offsets. False if another process began one since `open`."""
        ...

    def delete_old_epochs(self) -> int:
        """Delete what earlier epochs left behind, and return how much that was."""
        ...

    def probe_write(self) -> None:
        """Make a small write that changes no row.

        Raises:
            StateUnavailable: writes are refused or not answered, or the server may evict rows.
        """
        ...


class FeatureRows(AppliedRowStore, Protocol):
    """Rows as the commands that maintain them use them. Implementations: Redis, in one shard or several."""

    @property
    def horizon_ms(self) -> int:
        """How far back readers look, lateness included."""
        ...

    def keys(self) -> Iterator[bytes]:
        """The key of every row of the epoch in use, in no particular order."""
        ...

    def twin(self, *, beside: bool = False) -> FeatureRows:
        """A store of the same rows, or of the epoch being built (`beside`), for another thread; not yet opened."""
        ...

    def take_over(self) -> bool:
        """Make the epoch built here the current one; return false if another process builds by now."""
        ...

    def give_up(self) -> None:
        """End this epoch for all processes that use it."""
        ...

    def keep(self) -> None:
        """Record that the rows are in use, or that the epoch being built still is."""
        ...

    def take_turn(self, every_ms: int) -> bool:
        """`keep`, and return true to one caller per `every_ms`; that caller must call `expire`."""
        ...

    def expire(
        self,
        ends: Mapping[SourcePartition, int],
        stop: threading.Event,
        *,
        now_ms: int,
        max_share: float = MAX_EXPIRED_SHARE,
    ) -> int:
        """Delete the rows that no reader will look at again, and unused epochs and namespaces.

        Returns the number of deleted keys.

        Args:
            ends: the offset after the last record of every input partition, looked up before this call. stop: ends the
                pass early. now_ms: the wall clock; no watermark counts beyond it. max_share: see `ExpireRefused`.

        Raises:
            ExpireRefused: of the rows that the pass looks at first, more than `max_share` would go.
        """
        ...

    def record_expiry(self, *, refused: bool) -> None:
        """Record the result of a call of `expire`."""
        ...

    def expiry_refused(self) -> bool:
        """Whether the last recorded call of `expire` was refused, in whichever process."""
        ...

    def check_eviction_policy(self) -> bool:
        """Whether the server reveals its policy. Raises `UsageError` if it may evict rows."""
        ...


class ResidentRows(Sequence[bytes | None]):
    """Rows of this process at k keys, where they are: until the store changes, without a copy.

    As a sequence, their stored form, None for an empty row.
    """

    def __init__(self, arena: Arena, numbers: Ints) -> None:
        self._arena, self._numbers = arena, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> bytes | None: ...

    @overload
    def __getitem__(self, place: slice) -> ResidentRows: ...

    def __getitem__(self, place: int | slice) -> bytes | ResidentRows | None:
        if isinstance(place, slice):
            return ResidentRows(self._arena, self._numbers[place])
        return to_bytes(self._arena.row(int(self._numbers[place]))) or None

    def entries(self) -> tuple[Ints, Ints, Ints]:
        """All entries (total, 4), read-only, and where each row starts and ends in them (k,)."""
        return self._arena.entries, *self._arena.bounds(self._numbers)

    def entries_with(self, key_of: Ints, more: Ints) -> tuple[Ints, Ints, Ints]:
        """`entries`, with the entries `more` (c, 4) at the end of the rows `key_of` (c,). The store does not change."""
        counts = np.bincount(key_of, minlength=len(self))
        gaining = np.flatnonzero(counts)
        self._arena.put_after(self._numbers[gaining], counts[gaining], more[np.argsort(key_of, kind="stable")])
        entries, start, end = self.entries()
        return entries, start, end + counts


class MemoryRowStore:
    """Rows in this process, for a single writer that feeds it in order: replay, evaluation and training."""

    def __init__(self, applied: AppliedOffsets | None = None) -> None:
        self._number: dict[bytes, int] = {}
        self._arena = Arena()
        self._applied = applied or AppliedOffsets({}, {})

    def read(self, keys: Sequence[bytes]) -> tuple[list[bytes | None], AppliedOffsets]:
        """See `RowStore.read`."""
        numbers = map(self._number.get, keys)
        return [None if i is None else to_bytes(self._arena.row(i)) or None for i in numbers], self._applied

    def read_in_place(self, keys: Sequence[bytes]) -> tuple[ResidentRows, AppliedOffsets]:
        """As `read`, for the batch whose update is applied next."""
        return ResidentRows(self._arena, self._numbers(keys)), self._applied

    def rows(self) -> dict[bytes, bytes]:
        """All rows by key."""
        return next(self.parts(len(self._number)), {})

    def parts(self, size: int) -> Iterator[dict[bytes, bytes]]:
        """All rows by key, `size` at a time."""
        found = ((key, to_bytes(self._arena.row(number))) for key, number in self._number.items())
        filled = ((key, row) for key, row in found if row)
        while part := dict(islice(filled, size)):
            yield part

    def restore(self, rows: Mapping[bytes, bytes]) -> None:
        """Replace all rows by `rows`, as `rows()` returned them."""
        self._number, self._arena = {}, Arena()
        bounds = np.cumsum([0, *(len(row) // ENTRY_BYTES for row in rows.values())])
        self._append(list(rows), bounds, unpack(b"".join(rows.values())).copy())

    def apply(self, update: RowUpdate) -> None:
        """See `RowStore.apply`. A single writer cannot leave a gap, so this does not check for one."""
        for key, compaction in update.compactions.items():
            number = self._number[key]
            self._arena.replace(number, unpack(compaction.apply(to_bytes(self._arena.row(number)))))
        self._append(update.keys, update.bounds, update.entries)
        for span in update.spans:
            self._applied.next_offset[span.source] = span.stop
            self._applied.watermark[span.source] = max(span.watermark, self._applied.watermark.get(span.source, -1))

    def trim(self, before: int) -> None:
        """Remove entries of before `before` (event time, ms) from the beginning of each row, and rows without others.

        Redis does the same while it applies updates (``apply_rows.lua``) and deletes expired rows. A compacted row
        stays, because its header is never old.
        """
        kept = self._arena.trim(before)
        if not kept.all():
            numbers = np.cumsum(kept) - 1
            self._arena.keep(np.flatnonzero(kept))
            self._number = {key: int(numbers[n]) for key, n in self._number.items() if kept[n]}

    def _append(self, keys: Sequence[bytes], bounds: Ints, entries: Ints) -> None:
        """Append the entries ``bounds[i]:bounds[i + 1]`` to the row of each key i."""
        numbers, counts = self._numbers(keys), np.diff(bounds)
        self._arena.put_after(numbers, counts, entries)
        self._arena.extend(numbers, counts)

    def _numbers(self, keys: Sequence[bytes]) -> Ints:
        """(k,) int64: the number of each key's row, which is new if it has none."""
        numbers = np.fromiter(map(self._number.get, keys, repeat(-1)), np.int64, len(keys))
        missing = np.flatnonzero(numbers < 0)
        if len(missing):
            numbers[missing] = np.arange(self._arena.count, self._arena.count + len(missing))
            self._arena.add(len(missing))
            self._number.update(zip((keys[i] for i in missing.tolist()), numbers[missing].tolist(), strict=True))
        return numbers
