"""`RowStore` on Redis: one script applies a batch's entries and advances its marks, atomically.

Keys, under a namespace ``{ns}`` (a hash tag, so that a namespace lives in one cluster slot):

- ``{ns}:epoch``: which generation of rows is current. A loss of data raises it, so nothing old can mix in.
- ``{ns}:building``: a generation that somebody builds beside the current one, to take its place.
- ``{ns}:<epoch>:mark:<topic>:<partition>``: next offset, event-time watermark, target; packed int64.
- ``{ns}:<epoch>:r<layout>:<row key>``: a row.
- ``{ns}:<epoch>:seen:<period>:<bucket>``: a set of hashes of row keys, the witnesses. A row that is absent although a
  period within the horizon has its hash was lost; one that was never seen has none.
- ``{ns}:<epoch>:retired``: keys of rows that were deleted a moment ago because nobody will read them again.
- ``{ns}:used``: says whose rows these are, and is there for as long as they are looked after; ``{ns}:turn``: somebody
  has looked through them lately. See `stream_scorer.state.retire`.

No row has a time to live: Redis would look it up at every access (ADR 0020). Redis must run with ``maxmemory-policy
noeviction``: an evicted row would read as an entity never seen.
"""

from __future__ import annotations

import hashlib
import re
import struct
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import redis
import xxhash

from stream_scorer.errors import StateGap, StateUnavailable
from stream_scorer.positions import SourcePartition
from stream_scorer.state.client import mapped_errors
from stream_scorer.state.retire import NAMESPACES, UNUSED_MS, retire
from stream_scorer.state.rows import BEGINS, ENTRY_BYTES, WITNESS_PERIOD_MS, AppliedOffsets, RowUpdate, Sharding
from stream_scorer.state.shards import ShardedRows

# A script blocks Redis for about 5 us an entry: 2,000 entries are 10 ms, the longest pause other readers should see.
MAX_ENTRIES_PER_CALL = 2_000
# Sets of at most 512 integers are packed: enough for four million rows a period.
WITNESS_BUCKETS = 8_192

_MARK = struct.Struct("<qqq")

_APPLY = """
-- KEYS: epoch, marks..., rows..., witnesses..., folded rows..., retired
-- ARGV: epoch, marks n, then (start, stop, watermark) a mark, rows r, witnesses w, trim before, then a payload a row,
-- then a witness (hash, number of its row, negative if it begins), then a folded row (its first entry before, its
-- length before, what is to stand there).
-- Answers OK, EPOCH, GAP, or the marks if some are ahead; with any of these but OK nothing has changed. LOST: a row is
-- not there that was when the batch was read. The epoch is then given up.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'EPOCH' end
local n = tonumber(ARGV[2])
local at, ahead, target, late = {}, {}, {}, false
for i = 1, n do
  local packed = redis.call('GET', KEYS[1 + i])
  if not packed then return 'GAP' end
  local mark, watermark, wanted = struct.unpack('<i8i8i8', packed)
  local start = tonumber(ARGV[3 * i])
  if mark < start then return 'GAP' end
  if mark > start then late = true end
  at[i] = mark
  ahead[i] = watermark
  target[i] = wanted
end
if late then return at end
local a = 3 * n + 3
local r, w, before = tonumber(ARGV[a]), tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2])
for k = n + 2 + r + w, #KEYS - 1 do
  local j = a + 3 + r + 2 * w + 3 * (k - n - 2 - r - w)
  local length = tonumber(ARGV[j + 1])
  if redis.call('STRLEN', KEYS[k]) >= length and redis.call('GETRANGE', KEYS[k], 0, 31) == ARGV[j] then
    redis.call('SET', KEYS[k], ARGV[j + 2] .. redis.call('GETRANGE', KEYS[k], length, -1))
  end
end
local function lost()
  redis.call('DEL', KEYS[1])
  return 'LOST'
end
local begins = {}
for j = a + 4 + r, a + 2 + r + 2 * w, 2 do
  local row = tonumber(ARGV[j])
  if row < 0 then begins[-row] = true end
end
for k = n + 2, n + 1 + r do
  local key, payload = KEYS[k], ARGV[a + 1 + k - n]
  local size = redis.call('APPEND', key, payload)
  if size == #payload then
    if not begins[k - n - 1] and redis.call('SISMEMBER', KEYS[#KEYS], key) == 0 then return lost() end
  else
    begins[k - n - 1] = nil
  end
  if size >= 512 and size % 512 < #payload then
    local head = struct.unpack('<i8', redis.call('GETRANGE', key, 0, 7))
    if head < before then
      local row, from = redis.call('GET', key), 1
      while from < size - 31 and struct.unpack('<i8', row, from) < before do from = from + 32 end
      redis.call('SET', key, string.sub(row, from))
    end
  end
end
for k = 0, w - 1 do
  local j = a + 3 + r + 2 * k
  local row = math.abs(tonumber(ARGV[j + 1]))
  -- Two that read it when it was not there may both begin it; but the second finds it.
  if redis.call('SADD', KEYS[n + 2 + r + k], ARGV[j]) == 0 and begins[row]
    and redis.call('SISMEMBER', KEYS[#KEYS], KEYS[n + 1 + row]) == 0 then return lost() end
  begins[row] = nil
end
for i = 1, n do
  local stop, watermark = tonumber(ARGV[3 * i + 1]), tonumber(ARGV[3 * i + 2])
  redis.call('SET', KEYS[1 + i],
    struct.pack('<i8i8i8', stop, math.max(watermark, ahead[i]), target[i]))
end
return 'OK'
"""

# Which of some rows a witness has seen in any of some periods. A period costs a key one look-up.
_SEEN = """
-- KEYS: a set for each row and period, row by row.   ARGV: how many periods, then a hash a row.
local periods, seen = tonumber(ARGV[1]), {}
for i = 2, #ARGV do
  for p = 1, periods do
    if redis.call('SISMEMBER', KEYS[(i - 2) * periods + p], ARGV[i]) == 1 then
      seen[#seen + 1] = i - 2
      break
    end
  end
end
return seen
"""

# What was built takes the place of the current epoch.
_TAKE_OVER = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2])
return 1
"""

# An epoch that has lost a row is given up by all who use it.
_GIVE_UP = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""

_INIT = """
-- KEYS: epoch, marks...   ARGV: epoch to replace ('' for none), new epoch, then a packed mark each.
local current = redis.call('GET', KEYS[1]) or ''
if current ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
for i = 2, #KEYS do redis.call('SET', KEYS[i], ARGV[i + 1]) end
return 1
"""


def rows_namespace(group: str, feature_hash: str, topic_id: str) -> str:
    """The namespace of what `group` keeps for a spec and topic. Short: every key begins with it, two a transaction."""
    told = "\n".join((group, feature_hash, topic_id))
    return NAMESPACES + hashlib.sha256(told.encode()).hexdigest()[:16]


class RedisRowStore:
    """Marked rows of one namespace.

    Args:
        client: from `stream_scorer.state.client.connect`. namespace: names input topics, group and feature hash.
        sources: every partition of the input topics; each has a mark.
        layout: version of the row layout. horizon_ms: how far back readers look, lateness included.
        beside: whether this is the generation being built, not the current one. about: whose rows these are, for people
            who look into Redis.
    """

    def __init__(
        self,
        client: Any,
        namespace: str,
        sources: Sequence[SourcePartition],
        *,
        layout: int,
        horizon_ms: int,
        beside: bool = False,
        about: str = "",
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._sources = list(sources)
        self._layout = layout
        self._horizon_ms = horizon_ms
        self._about = about
        self._pointer = b"building" if beside else b"epoch"
        self._epoch = b""
        self._prefix = b""
        self._mark_keys: dict[SourcePartition, bytes] = {}
        self._acknowledged: dict[SourcePartition, int] = {}
        self._trim_before = -1
        self._apply_script = client.register_script(_APPLY)
        self._init_script = client.register_script(_INIT)
        self._take_over_script = client.register_script(_TAKE_OVER)
        self._give_up_script = client.register_script(_GIVE_UP)
        self._seen_script = client.register_script(_SEEN)
        self._use_epoch(b"")

    @property
    def epoch(self) -> str:
        """The generation of rows in use; empty before `open`."""
        return self._epoch.decode()

    def open(self) -> AppliedOffsets | None:
        """Take up the current epoch and answer its marks; None if it is not complete (never initialized, or lost)."""
        with mapped_errors():
            epoch = self._client.get(self._epoch_key)
            self._use_epoch(epoch or b"")
            self._acknowledged.clear()
            if not epoch:
                return None
            packed = self._client.mget(list(self._mark_keys.values()))
        if any(value is None for value in packed):
            return None
        applied = self._unpack_marks(packed)
        self._acknowledged = dict(applied.next_offset)
        return applied

    def init(self, next_offset: dict[SourcePartition, int], target: dict[SourcePartition, int]) -> bool:
        """See `MarkedRowStore.init`."""
        self.keep()  # before there is anything that could look left behind
        old, new = self._epoch, uuid.uuid4().hex[:12].encode()
        self._use_epoch(new)
        self._acknowledged.clear()
        keys = [self._epoch_key, *self._mark_keys.values()]
        applied = [_MARK.pack(next_offset[source], -1, target.get(source, 0)) for source in self._sources]
        with mapped_errors():
            return bool(self._init_script(keys=keys, args=[old, new, *applied]))

    def read(self, keys: Sequence[bytes]) -> tuple[list[bytes | None], AppliedOffsets]:
        """See `RowStore.read`: one MGET, and a look for witnesses of the rows that are absent.

        Raises `StateGap` when Redis has lost what it had acknowledged, or a single row; the epoch is then given up.
        """
        prefix = self._prefix
        # Taken before the read: an apply may be acknowledged while the read is under way.
        acknowledged = dict(self._acknowledged)
        wanted = [self._epoch_key, *self._mark_keys.values(), *[prefix + key for key in keys]]
        with mapped_errors():
            values = self._client.mget(wanted)
        if values[0] != self._epoch:
            raise StateGap("Redis holds another epoch than the one in use")
        count = len(self._sources)
        if any(value is None for value in values[1 : count + 1]):
            raise StateGap("Redis has lost a mark")
        applied = self._unpack_marks(values[1 : count + 1])
        for source, offset in acknowledged.items():
            if applied.next_offset[source] < offset:
                raise StateGap(f"Redis has lost updates of {source.topic}[{source.partition}]")
        self._trim_before = applied.slowest_watermark() - self._horizon_ms
        rows = values[count + 1 :]
        self._require_never_seen([key for key, row in zip(keys, rows, strict=True) if row is None], applied)
        return rows, applied

    def _require_never_seen(self, absent: list[bytes], applied: AppliedOffsets) -> None:
        newest = max(applied.watermark.values(), default=-1)
        first, last = max(newest - self._horizon_ms, 0) // WITNESS_PERIOD_MS, newest // WITNESS_PERIOD_MS
        for low in range(0, len(absent), MAX_ENTRIES_PER_CALL):
            part = absent[low : low + MAX_ENTRIES_PER_CALL]
            hashes = [_hash(key) for key in part]
            sets = [self._witness_key(period, h) for h in hashes for period in range(last, first - 1, -1)]
            if not sets:
                continue
            with mapped_errors():
                seen = self._seen_script(keys=sets, args=[last - first + 1, *hashes])
                # Some may have been written for the first time between the two calls.
                now = self._client.mget([self._prefix + part[i] for i in seen]) if seen else []
            if any(row is None for row in now):
                self.give_up()
                raise StateGap("Redis has lost a row")

    def _witness_key(self, period: int, key_hash: int) -> bytes:
        return self._witness_prefix + b"%d:%d" % (period, key_hash % WITNESS_BUCKETS)

    def apply(self, update: RowUpdate) -> None:
        """See `RowStore.apply`: one script call per `MAX_ENTRIES_PER_CALL` entries, each of them atomic."""
        for part in update.split(MAX_ENTRIES_PER_CALL):
            self._apply_part(part)

    def _apply_part(self, update: RowUpdate) -> None:
        """Apply what is not in the rows yet; who else is at the same offsets may be ahead, once or more."""
        while update.spans:
            ahead = self._call_apply(update)
            if ahead is None:
                return
            update = update.after(ahead)

    def _call_apply(self, update: RowUpdate) -> list[int] | None:
        """None once it is applied, or the marks that are ahead of it, a span each."""
        spans = update.spans
        keys = [self._epoch_key, *[self._mark_keys[s.source] for s in spans], *[self._prefix + k for k in update.keys]]
        args: list[bytes | int] = [self._epoch, len(spans)]
        for span in spans:
            args += [span.start, span.stop, span.watermark]
        opens = np.flatnonzero(update.opens).tolist()
        args += [len(update.keys), len(opens), self._trim_before]
        args += update.payloads
        owners = (np.searchsorted(update.bounds, opens, side="right") - 1).tolist()
        for place, owner in zip(opens, owners, strict=True):
            key_hash = _hash(update.keys[owner])
            keys.append(self._witness_key(int(update.entries[place, 0]) // WITNESS_PERIOD_MS, key_hash))
            args += [key_hash, -(owner + 1) if update.opens[place] == BEGINS else owner + 1]
        for key, fold in update.compactions.items():
            keys.append(self._prefix + key)
            args += [fold.before[:ENTRY_BYTES], len(fold.before), fold.after]
        keys.append(self._retired_key)
        with mapped_errors():
            answer = self._apply_script(keys=keys, args=args)
        if isinstance(answer, list):
            return answer
        if answer == b"LOST":
            raise StateGap("Redis has lost a row")
        if answer != b"OK":
            raise StateGap(f"Redis refused an update: {answer.decode()}")
        for span in spans:
            self._acknowledged[span.source] = max(self._acknowledged.get(span.source, 0), span.stop)
        return None

    def twin(self, *, beside: bool = False) -> RedisRowStore:
        """The same rows, or those being built beside them, not yet opened: for another thread."""
        return self._like(self._namespace, beside)

    def shard(self, name: str) -> RedisRowStore:
        """Rows under a namespace of their own within this one."""
        return self._like(f"{self._namespace}/{name}", False)

    def _like(self, namespace: str, beside: bool) -> RedisRowStore:
        return RedisRowStore(
            self._client,
            namespace,
            self._sources,
            layout=self._layout,
            horizon_ms=self._horizon_ms,
            beside=beside,
            about=self._about,
        )

    def give_up(self) -> None:
        """Nobody is to use this generation any more."""
        with mapped_errors():
            self._give_up_script(keys=[self._epoch_key], args=[self._epoch])

    def take_over(self) -> bool:
        """Make the generation built here the current one; false if somebody else builds by now."""
        keys = [self._tag + b"epoch", self._tag + b"building"]
        with mapped_errors():
            return bool(self._take_over_script(keys=keys, args=[self._epoch]))

    @property
    def horizon_ms(self) -> int:
        """How far back readers look, lateness included."""
        return self._horizon_ms

    @property
    def tag(self) -> bytes:
        """What every key of the namespace begins with."""
        return self._tag

    @property
    def row_prefix(self) -> bytes:
        """What the keys of rows in use begin with."""
        return self._prefix

    @property
    def retired_key(self) -> bytes:
        """Where keys of rows that were deleted a moment ago are kept."""
        return self._retired_key

    def keep(self) -> None:
        """Say that the rows are in use."""
        with mapped_errors():
            self._client.set(self._tag + b"used", self._about, px=UNUSED_MS)

    def take_turn(self, every_ms: int) -> bool:
        """See `FeatureRows.take_turn`."""
        self.keep()
        with mapped_errors():
            return bool(self._client.set(self._tag + b"turn", b"", nx=True, px=every_ms))

    def retire(self, ends: Mapping[SourcePartition, int], stop: threading.Event) -> int:
        """See `FeatureRows.retire`."""
        return self.retire_all([self], ends, stop)

    @staticmethod
    def retire_all(shards: Sequence[RedisRowStore], ends: Mapping[SourcePartition, int], stop: threading.Event) -> int:
        """`retire` for `shards`, each by marks of its own; nothing while one of them is being rebuilt."""
        before = [time for shard in shards if (time := shard.unread_before(ends)) is not None]
        return retire(shards[0]._client, shards, before, stop) if len(before) == len(shards) else 0

    def unread_before(self, ends: Mapping[SourcePartition, int]) -> int | None:
        """Open, and answer the event time (ms) before which nobody looks; None while rows are being rebuilt."""
        applied = self.open()
        return applied.settled(ends) - self._horizon_ms if applied is not None and applied.complete else None

    def period_of(self, key: bytes) -> int | None:
        """The period that a set of witnesses is of, in `WITNESS_PERIOD_MS` since 1970; None for any other key."""
        if not key.startswith(self._witness_prefix):
            return None
        return int(key[len(self._witness_prefix) :].partition(b":")[0])

    def keys(self) -> Iterator[bytes]:
        """The key of every row of the epoch in use, in no order."""
        with mapped_errors():
            for key in self._client.scan_iter(match=_literal(self._prefix) + b"*", count=10_000):
                yield key[len(self._prefix) :]

    def sweep(self) -> int:
        """Delete what earlier epochs left behind, and say how many keys that were."""
        pointers = (self._tag + b"epoch", self._tag + b"building")
        kept = (*pointers, self._tag + b"used", self._tag + b"turn")
        gone = 0
        with mapped_errors():
            in_use = tuple(self._tag + epoch + b":" for epoch in self._client.mget(pointers) if epoch)
            old = []
            for key in self._client.scan_iter(match=_literal(self._tag) + b"*", count=10_000):
                if key not in kept and not key.startswith(in_use):
                    old.append(key)
                if len(old) == MAX_ENTRIES_PER_CALL:
                    gone += self._client.unlink(*old)
                    old.clear()
            return gone + (self._client.unlink(*old) if old else 0)

    def check_eviction_policy(self) -> None:
        """Raise `StateUnavailable` if Redis may evict rows. A server that hides its settings is taken at its word."""
        try:
            policy = self._client.config_get("maxmemory-policy").get("maxmemory-policy", "noeviction")
        except redis.ResponseError:
            return
        except redis.RedisError as error:
            raise StateUnavailable(f"Redis: {error}") from error
        if policy != "noeviction":
            raise StateUnavailable(
                f"Redis runs with maxmemory-policy {policy}: it may silently drop features",
                hint="Set maxmemory-policy noeviction.",
            )

    def _use_epoch(self, epoch: bytes) -> None:
        tag = self._tag = b"{" + self._namespace.encode() + b"}:"
        self._epoch = epoch
        self._epoch_key = tag + self._pointer
        self._witness_prefix = tag + epoch + b":seen:"
        self._retired_key = tag + epoch + b":retired"
        self._prefix = tag + epoch + b":r" + str(self._layout).encode() + b":"
        self._mark_keys = {
            s: tag + epoch + b":mark:" + s.topic.encode() + b":" + str(s.partition).encode() for s in self._sources
        }

    def _unpack_marks(self, packed: Sequence[bytes]) -> AppliedOffsets:
        applied = [_MARK.unpack(value) for value in packed]
        offsets, watermarks, targets = (
            {s: mark[i] for s, mark in zip(self._sources, applied, strict=True)} for i in range(3)
        )
        return AppliedOffsets(offsets, watermarks, targets)


class ShardedRedisRows(ShardedRows[RedisRowStore]):
    """`FeatureRows` in several shards; on a Redis Cluster each lies in the slot of its namespace."""

    @classmethod
    def over(cls, store: RedisRowStore, sharding: Sharding) -> ShardedRedisRows:
        """Shards of the namespace of `store`, which itself stays unused."""
        return cls([store.shard(f"{sharding.count}.{index}") for index in range(len(sharding))], sharding)

    @property
    def horizon_ms(self) -> int:
        """See `FeatureRows.horizon_ms`."""
        return self._shards[0].horizon_ms

    def keys(self) -> Iterator[bytes]:
        """See `FeatureRows.keys`."""
        for shard in self._shards:
            yield from shard.keys()

    def twin(self, *, beside: bool = False) -> ShardedRedisRows:
        """See `FeatureRows.twin`."""
        return ShardedRedisRows([shard.twin(beside=beside) for shard in self._shards], self._sharding)

    def take_over(self) -> bool:
        """See `FeatureRows.take_over`. A crash in the middle leaves shards in the order that `open` asks for."""
        # What was built may lag behind what it replaces: first the shards that are applied last.
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

    def retire(self, ends: Mapping[SourcePartition, int], stop: threading.Event) -> int:
        """See `FeatureRows.retire`."""
        return RedisRowStore.retire_all(self._shards, ends, stop)

    def check_eviction_policy(self) -> None:
        """See `FeatureRows.check_eviction_policy`."""
        self._shards[0].check_eviction_policy()


def _literal(text: bytes) -> bytes:
    """`text` as a pattern of Redis that matches only itself."""
    return re.sub(rb"([\\*?\[\]^-])", rb"\\\1", text)


def _hash(key: bytes) -> int:
    """63 bits: Redis keeps sets of such integers in 8 bytes each."""
    return xxhash.xxh3_64_intdigest(key) >> 1
