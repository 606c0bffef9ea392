"""`RowStore` on Redis: one script applies the entries of a batch and advances the applied offsets, atomically.

`stream_scorer.state.keys` defines the keys. No row has a time to live, because Redis would look it up at every access
(ADR 0020). Redis must run with ``maxmemory-policy noeviction``: an evicted row looks like an entity without history.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from stream_scorer.errors import StateGap, StateUnavailable, UsageError
from stream_scorer.positions import SourcePartition
from stream_scorer.state import scripts
from stream_scorer.state.client import mapped_errors, repeat_once, require_no_eviction
from stream_scorer.state.expire import expire, unlink_unused
from stream_scorer.state.keys import BUILDING_MS, UNUSED_MS, EpochKeys, NamespaceKeys, key_hash, starting_with
from stream_scorer.state.row_format import APPLIED, ENTRY_BYTES, TIME
from stream_scorer.state.rows import (
    BEGINS,
    MAX_EXPIRED_SHARE,
    WITNESS_PERIOD_MS,
    AppliedOffsets,
    Beginning,
    RowUpdate,
    Sharding,
)
from stream_scorer.state.shards import ShardedRows

# A script blocks Redis for about 5 us per entry: 2,000 entries take 10 ms, the longest pause other readers should see.
MAX_ENTRIES_PER_CALL = 2_000
PROBE_MS = 60_000
# Keys that Redis looks at per step of a scan.
_SCAN_STEP = 10_000


class RedisRowStore:
    """The rows of one namespace.

    Args:
        client: from `stream_scorer.state.client.connect`. namespace: see `stream_scorer.state.keys.rows_namespace`.
        sources: every partition of the input topics; each has applied offsets. labels_topic: that of the labels.
        horizon_ms: how far back readers look, lateness included.
        beside: use the epoch that is being built, not the current one. about: whose rows these are, for people who look
            into Redis.
    """

    def __init__(
        self,
        client: Any,
        namespace: str,
        sources: Sequence[SourcePartition],
        *,
        labels_topic: str,
        horizon_ms: int,
        beside: bool = False,
        about: str = "",
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._sources = list(sources)
        self._labels_topic = labels_topic
        self._horizon_ms = horizon_ms
        self._about = about
        self._beside = beside
        self._common = NamespaceKeys(namespace)
        self._epoch_pointer = self._common.building if beside else self._common.epoch
        self._acknowledged: dict[SourcePartition, int] = {}
        self._trim_before = -1
        self._first_period = 0
        self._apply_script = client.register_script(scripts.load("apply_rows"))
        self._init_script = client.register_script(scripts.load("init_rows"))
        self._take_over_script = client.register_script(scripts.load("take_over"))
        self._keep_building_script = client.register_script(scripts.load("keep_building"))
        self._give_up_script = client.register_script(scripts.load("give_up"))
        self._witnesses_script = client.register_script(scripts.load("find_witnesses"))
        self._probe_script = client.register_script(scripts.load("probe_write"))
        self._use_epoch(b"")

    @property
    def epoch(self) -> str:
        """The epoch in use; empty before `open`."""
        return self._keys.epoch.decode()

    @property
    def horizon_ms(self) -> int:
        """How far back readers look, lateness included."""
        return self._horizon_ms

    @property
    def row_prefix(self) -> bytes:
        """What the keys of the rows in use begin with."""
        return self._keys.rows

    @property
    def expired_key(self) -> bytes:
        """The key of the set of rows that expired a short time ago."""
        return self._keys.expired

    def open(self) -> AppliedOffsets | None:
        """See `AppliedRowStore.open`."""
        with mapped_errors():
            epoch = self._client.get(self._epoch_pointer)
            self._use_epoch(epoch or b"")
            self._acknowledged.clear()
            if not epoch:
                return None
            beginning, passed, *packed = self._client.mget(
                [self._keys.beginning, self._keys.passed, *self._keys.applied.values()]
            )
        if any(value is None for value in packed):
            return None
        if beginning:
            self._beginning = Beginning(*map(int, beginning.split(b":")))
        applied = self._unpack_applied(packed, passed)
        self._acknowledged = dict(applied.next_offset)
        return applied

    def init(
        self,
        next_offset: dict[SourcePartition, int],
        target: dict[SourcePartition, int],
        beginning: Beginning = Beginning(),
    ) -> bool:
        """See `AppliedRowStore.init`."""
        # First, so that another scorer's `expire` never sees the new epoch in a namespace that looks unused.
        self.keep()
        old, new = self._keys.epoch, uuid.uuid4().hex[:12].encode()
        self._use_epoch(new)
        self._acknowledged.clear()
        keys = [self._epoch_pointer, self._keys.beginning, *self._keys.applied.values()]
        applied = [APPLIED.pack(next_offset[source], -1, target.get(source, 0)) for source in self._sources]
        self._beginning = beginning
        with mapped_errors():
            text = b"%d:%d" % beginning if any(beginning) else b""
            kept_ms = BUILDING_MS if self._beside else 0
            return bool(self._init_script(keys=keys, args=[old, new, text, *applied, kept_ms]))

    def read(self, keys: Sequence[bytes]) -> tuple[list[bytes | None], AppliedOffsets]:
        """See `RowStore.read`: one MGET, and a look-up of witnesses for the rows that are missing.

        Raises:
            StateGap: Redis has lost acknowledged data, or a row; a lost row gives the epoch up.
        """
        prefix = self._keys.rows
        # A copy from before the read: another thread may have an apply acknowledged during the read.
        acknowledged = dict(self._acknowledged)
        state = [self._epoch_pointer, self._keys.passed, *self._keys.applied.values()]
        wanted = [*state, *[prefix + key for key in keys]]
        with mapped_errors():
            values = repeat_once(lambda: self._client.mget(wanted))
        epoch, passed, *packed = values[: len(state)]
        self._require_epoch(epoch)
        if any(value is None for value in packed):
            raise StateGap("Redis has lost the applied offset of a partition")
        applied = self._unpack_applied(packed, passed)
        for source, offset in acknowledged.items():
            if applied.next_offset[source] < offset:
                raise StateGap(f"Redis has lost updates of {source.topic}[{source.partition}]")
        self._trim_before = applied.slowest_watermark() - self._horizon_ms
        self._first_period = self._first_witness_period(applied.newest_watermark())
        rows = values[len(state) :]
        self._require_no_witness([key for key, row in zip(keys, rows, strict=True) if row is None], applied)
        return rows, applied

    def _require_no_witness(self, missing: list[bytes], applied: AppliedOffsets) -> None:
        """Raise `StateGap`, and give the epoch up, if one of the `missing` rows existed within the horizon."""
        newest, last = applied.newest_watermark(), applied.newest_of_all() // WITNESS_PERIOD_MS
        # Before the first transaction, the rows hold labels only: look as far back from these.
        first = self._first_witness_period(newest if newest >= 0 else applied.newest_of_all())
        for low in range(0, len(missing), MAX_ENTRIES_PER_CALL):
            part = missing[low : low + MAX_ENTRIES_PER_CALL]
            hashes = [key_hash(key) for key in part]
            sets = [self._keys.witness(period, h) for h in hashes for period in range(last, first - 1, -1)]
            if not sets:
                continue
            with mapped_errors():
                found = repeat_once(partial(self._witnesses_script, keys=sets, args=[last - first + 1, *hashes]))
                if not found:
                    continue
                # Another scorer may have written some of them for the first time between the two calls. If it gave the
                # epoch up instead, because such a row was lost, then a row that is there now is a part of the lost one.
                epoch, *now = self._client.mget([self._epoch_pointer, *[self._keys.rows + part[i] for i in found]])
            self._require_epoch(epoch)
            if None in now:
                self.give_up()
                raise StateGap("Redis has lost a row")

    def _require_epoch(self, current: bytes | None) -> None:
        if current != self._keys.epoch:
            raise StateGap("Redis holds another epoch than the one in use")

    def _first_witness_period(self, newest: int) -> int:
        """The first period in which a row that is missing would have existed within the horizon of `newest`."""
        return max(newest - self._horizon_ms, 0) // WITNESS_PERIOD_MS

    def apply(self, update: RowUpdate) -> None:
        """See `RowStore.apply`: one script call per `MAX_ENTRIES_PER_CALL` entries, each of them atomic."""
        for part in update.split(MAX_ENTRIES_PER_CALL):
            self._apply_part(part)

    def _apply_part(self, update: RowUpdate) -> None:
        """Apply what the rows do not hold yet. Another scorer at the same offsets may be ahead, once or repeatedly."""
        while update.spans:
            ahead = self._call_apply(update)
            if ahead is None:
                return
            update = update.after(ahead)

    def _call_apply(self, update: RowUpdate) -> list[int] | None:
        """Call the script; return None if it applied `update`, or the applied offset per span if one is ahead of it."""
        keys, args = self._apply_arguments(update)
        with mapped_errors():
            # The applied offsets guard it: what already took effect is not applied again.
            reply = repeat_once(lambda: self._apply_script(keys=keys, args=args))
        if isinstance(reply, list):
            for span, at in zip(update.spans, reply, strict=True):
                self._acknowledged[span.source] = max(self._acknowledged.get(span.source, 0), at)
            return reply
        if reply == b"LOST":
            raise StateGap("Redis has lost a row")
        if reply != b"OK":
            raise StateGap(f"Redis refused an update: {reply.decode()}")
        for span in update.spans:
            self._acknowledged[span.source] = max(self._acknowledged.get(span.source, 0), span.stop)
        return None

    def _apply_arguments(self, update: RowUpdate) -> tuple[list[bytes], list[bytes]]:
        """KEYS and ARGV of ``apply_rows.lua``, which describes them."""
        spans, layout = update.spans, self._keys
        keys = [
            self._epoch_pointer,
            *[layout.applied[s.source] for s in spans],
            *[layout.rows + k for k in update.keys],
        ]
        opens = np.flatnonzero(update.opens).tolist()
        numbers = [len(spans)]
        for span in spans:
            numbers += [span.start, span.stop, span.watermark]
        numbers += [len(update.keys), len(opens), self._trim_before]
        args = [layout.epoch, *[b"%d" % number for number in numbers]]
        args += update.payloads
        owners = (np.searchsorted(update.bounds, opens, side="right") - 1).tolist()
        for place, owner in zip(opens, owners, strict=True):
            hashed, period = key_hash(update.keys[owner]), int(update.entries[place, TIME]) // WITNESS_PERIOD_MS
            keys.append(layout.witness(period, hashed))
            if period < self._first_period:
                # Rows of this period may have expired, some before their witnesses: these prove no loss any more.
                source = spans[update.span_of[place]].source
                hashed = key_hash(
                    f"{source.topic}:{source.partition}:{update.offset[place]}:".encode() + update.keys[owner]
                )
            row = -(owner + 1) if update.opens[place] == BEGINS else owner + 1
            args += [b"%d" % hashed, b"%d" % row]
        for key, compaction in update.compactions.items():
            keys.append(layout.rows + key)
            args += [compaction.before[:ENTRY_BYTES], b"%d" % len(compaction.before), compaction.after]
        keys.append(layout.expired)
        return keys, args

    def twin(self, *, beside: bool = False) -> RedisRowStore:
        """See `FeatureRows.twin`."""
        return self._like(self._namespace, beside)

    def shard(self, name: str) -> RedisRowStore:
        """Rows in a namespace of their own within this one."""
        return self._like(f"{self._namespace}/{name}", False)

    def _like(self, namespace: str, beside: bool) -> RedisRowStore:
        return RedisRowStore(
            self._client,
            namespace,
            self._sources,
            labels_topic=self._labels_topic,
            horizon_ms=self._horizon_ms,
            beside=beside,
            about=self._about,
        )

    def give_up(self) -> None:
        """See `FeatureRows.give_up`."""
        with mapped_errors():
            self._give_up_script(keys=[self._epoch_pointer], args=[self._keys.epoch])

    def take_over(self) -> bool:
        """See `FeatureRows.take_over`."""
        keys = [self._common.epoch, self._common.building]
        with mapped_errors():
            return bool(self._take_over_script(keys=keys, args=[self._keys.epoch]))

    def keep(self) -> None:
        """See `FeatureRows.keep`."""
        with mapped_errors():
            self._client.set(self._common.used, self._about, px=UNUSED_MS)
            if self._beside:
                self._keep_building_script(keys=[self._epoch_pointer], args=[self._keys.epoch, BUILDING_MS])

    def probe_write(self) -> None:
        """See `AppliedRowStore.probe_write`. A script, like `apply`: Redis may refuse one and accept the other."""
        try:
            self.check_eviction_policy()
        except UsageError as error:
            raise StateUnavailable(error.message, hint=error.hint) from error
        self.write_probe()

    def write_probe(self) -> None:
        """`probe_write` without the check that Redis evicts nothing."""
        with mapped_errors():
            self._probe_script(keys=[self._common.probe], args=[PROBE_MS])

    def take_turn(self, every_ms: int) -> bool:
        """See `FeatureRows.take_turn`."""
        self.keep()
        with mapped_errors():
            return bool(self._client.set(self._common.turn, b"", nx=True, px=every_ms))

    def record_expiry(self, *, refused: bool) -> None:
        """See `FeatureRows.record_expiry`."""
        with mapped_errors():
            self._client.set(self._common.expiry, b"refused" if refused else b"done")

    def expiry_refused(self) -> bool:
        """See `FeatureRows.expiry_refused`."""
        with mapped_errors():
            return bool(self._client.get(self._common.expiry) == b"refused")

    def expire(
        self,
        ends: Mapping[SourcePartition, int],
        stop: threading.Event,
        *,
        now_ms: int,
        max_share: float = MAX_EXPIRED_SHARE,
    ) -> int:
        """See `FeatureRows.expire`."""
        return self.expire_all([self], ends, stop, now_ms, max_share)

    @staticmethod
    def expire_all(
        shards: Sequence[RedisRowStore],
        ends: Mapping[SourcePartition, int],
        stop: threading.Event,
        now_ms: int,
        max_share: float,
    ) -> int:
        """`expire` for `shards`, each by its own applied offsets. Does nothing while one of them is being rebuilt."""
        before = [time for shard in shards if (time := shard.unread_before(ends, now_ms)) is not None]
        if len(before) < len(shards):
            return 0
        keys, horizon_ms = [shard._keys for shard in shards], shards[0].horizon_ms
        return expire(shards[0]._client, keys, before, horizon_ms, stop, max_share)

    def unread_before(self, ends: Mapping[SourcePartition, int], now_ms: int) -> int | None:
        """Open, and return the event time (ms) before which no reader looks; None while the rows are being rebuilt.

        Records what all partitions but idle ones have passed, so that no idle partition keeps the panes of rows.
        """
        applied = self.open()
        if applied is None or not applied.complete:
            return None
        passed = min(applied.passed_by(ends), now_ms)
        if passed > applied.passed:
            with mapped_errors():
                self._client.set(self._keys.passed, passed)
        return min(applied.settled(ends), now_ms) - self._horizon_ms

    def keys(self) -> Iterator[bytes]:
        """See `FeatureRows.keys`."""
        prefix = self._keys.rows
        with mapped_errors():
            for key in self._client.scan_iter(match=starting_with(prefix), count=_SCAN_STEP):
                yield key[len(prefix) :]

    def delete_old_epochs(self) -> int:
        """See `AppliedRowStore.delete_old_epochs`: it counts keys."""
        common = self._common
        deleted = 0
        with mapped_errors():
            found = []
            for key in self._client.scan_iter(match=starting_with(common.tag), count=_SCAN_STEP):
                found.append(key)
                if len(found) == MAX_ENTRIES_PER_CALL:
                    deleted += unlink_unused(self._client, common, found)
                    found.clear()
            return deleted + unlink_unused(self._client, common, found)

    def check_eviction_policy(self) -> bool:
        """See `FeatureRows.check_eviction_policy`."""
        return require_no_eviction(self._client)

    def _use_epoch(self, epoch: bytes) -> None:
        self._keys = EpochKeys(self._common, epoch, self._sources)
        self._beginning = Beginning()

    def _unpack_applied(self, packed: Sequence[bytes], passed: bytes | None) -> AppliedOffsets:
        unpacked = [APPLIED.unpack(value) for value in packed]
        offsets, watermarks, targets = (
            {s: fields[i] for s, fields in zip(self._sources, unpacked, strict=True)} for i in range(3)
        )
        return AppliedOffsets(
            offsets,
            watermarks,
            targets,
            beginning=self._beginning,
            passed=-1 if passed is None else int(passed),
            labels_topic=self._labels_topic,
        )


class ShardedRedisRows(ShardedRows[RedisRowStore]):
    """`FeatureRows` in several shards; on a Redis Cluster each shard is in the slot of its namespace."""

    @classmethod
    def over(cls, store: RedisRowStore, sharding: Sharding) -> ShardedRedisRows:
        """Shards of the namespace of `store`, which itself stays unused."""
        return cls([store.shard(f"{sharding.count}.{index}") for index in range(len(sharding))], sharding)

    @property
    def horizon_ms(self) -> int:
        """See `FeatureRows.horizon_ms`."""
        return self._shards[0].horizon_ms

    def probe_write(self) -> None:
        """See `AppliedRowStore.probe_write`: every shard."""
        self._shards[0].probe_write()
        for shard in self._shards[1:]:
            shard.write_probe()

    def keys(self) -> Iterator[bytes]:
        """See `FeatureRows.keys`."""
        for shard in self._shards:
            yield from shard.keys()

    def twin(self, *, beside: bool = False) -> ShardedRedisRows:
        """See `FeatureRows.twin`."""
        return ShardedRedisRows([shard.twin(beside=beside) for shard in self._shards], self._sharding)

    def take_over(self) -> bool:
        """See `FeatureRows.take_over`. A crash in the middle leaves the shards in an order that `open` accepts."""
        # New rows may lag behind those they replace, so the shards that are applied last change first.
        taken = [shard.take_over() for shard in reversed(self._shards)]
        return all(taken)

    def give_up(self) -> None:
        """See `FeatureRows.give_up`."""
        for shard in self._shards:
            shard.give_up()

    def keep(self) -> None:
        """See `FeatureRows.keep`."""
        for shard in self._shards:
            shard.keep()

    def take_turn(self, every_ms: int) -> bool:
        """See `FeatureRows.take_turn`."""
        self.keep()
        return self._shards[0].take_turn(every_ms)

    def record_expiry(self, *, refused: bool) -> None:
        """See `FeatureRows.record_expiry`."""
        self._shards[0].record_expiry(refused=refused)

    def expiry_refused(self) -> bool:
        """See `FeatureRows.expiry_refused`."""
        return self._shards[0].expiry_refused()

    def expire(
        self,
        ends: Mapping[SourcePartition, int],
        stop: threading.Event,
        *,
        now_ms: int,
        max_share: float = MAX_EXPIRED_SHARE,
    ) -> int:
        """See `FeatureRows.expire`."""
        return RedisRowStore.expire_all(self._shards, ends, stop, now_ms, max_share)

    def check_eviction_policy(self) -> bool:
        """See `FeatureRows.check_eviction_policy`."""
        return self._shards[0].check_eviction_policy()
