"""Counters in Redis that end the same after any crash: counts and the input mark change in one script.

Keys, all under one hash tag so that they share a slot::

    {ns}:head               epoch, `m:<source>` next offset to count, `x:<name>` maxima (watermarks and the like)
    {ns}:<epoch>:c:<cell>   one hash of integer counts; a cell is `<window>|<label>`
    {ns}:<epoch>:p:<window> the labels seen in a window
    {ns}:<epoch>:dirty      windows changed since they were last settled, with a change counter
    {ns}:<epoch>:due:<kind> windows that something will happen to once time passes them
    {ns}:<epoch>:r:<window> revision of what was said about a window
    {ns}:lead               who speaks

Epoch and marks live in one hash, so Redis loses both or neither. When they are lost, the next `open` gives a new epoch
and everything is counted again from the beginning of the topics, in keys that no residue can mix into.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, cast

import redis

from stream_scorer.errors import StateGap
from stream_scorer.state.client import mapped_errors

# (window start, label); the label says whose counts these are.
Cell = tuple[int, str]
Status = Literal["applied", "done", "trim", "gap"]

# ARGV: epoch | source, from, to | ttl seconds | n maxima, (name, value)* | n due, (kind)* |
#       n cells, (window, label, n fields, (field, delta)*)*
# The answer comes before the first write: a script that fails half way is not rolled back.
_APPLY = """
local head, base = KEYS[1], KEYS[2]
if redis.call('HGET', head, 'epoch') ~= ARGV[1] then return {'lost', '-1'} end
local mark = redis.call('HGET', head, 'm:' .. ARGV[2])
if not mark then return {'lost', '-1'} end
local at, from, to = tonumber(mark), tonumber(ARGV[3]), tonumber(ARGV[4])
if at < from then return {'gap', mark} end
if at >= to then return {'done', mark} end
if at > from then return {'trim', mark} end
local ttl, i = ARGV[5], 6
local n = tonumber(ARGV[i]); i = i + 1
for _ = 1, n do
  local had = redis.call('HGET', head, 'x:' .. ARGV[i])
  if not had or tonumber(had) < tonumber(ARGV[i + 1]) then redis.call('HSET', head, 'x:' .. ARGV[i], ARGV[i + 1]) end
  i = i + 2
end
n = tonumber(ARGV[i]); i = i + 1
local kinds = {}
for k = 1, n do kinds[k] = ARGV[i]; i = i + 1 end
n = tonumber(ARGV[i]); i = i + 1
for _ = 1, n do
  local window, label, fields = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  i = i + 3
  local cell, labels = base .. 'c:' .. window .. '|' .. label, base .. 'p:' .. window
  for _ = 1, fields do
    redis.call('HINCRBY', cell, ARGV[i], ARGV[i + 1])
    i = i + 2
  end
  redis.call('SADD', labels, label)
  redis.call('EXPIRE', cell, ttl)
  redis.call('EXPIRE', labels, ttl)
  redis.call('HINCRBY', base .. 'dirty', window, 1)
  for _, kind in ipairs(kinds) do redis.call('ZADD', base .. 'due:' .. kind, window, window) end
end
redis.call('HSET', head, 'm:' .. ARGV[2], ARGV[4])
return {'applied', ARGV[4]}
"""

# ARGV: epoch to use if there is none | (source, first offset)*. Existing marks stay.
_OPEN = """
redis.call('HSETNX', KEYS[1], 'epoch', ARGV[1])
for i = 2, #ARGV, 2 do redis.call('HSETNX', KEYS[1], 'm:' .. ARGV[i], ARGV[i + 1]) end
return redis.call('HGET', KEYS[1], 'epoch')
"""

# Forget that a window changed, unless it changed again since. ARGV: window, change counter seen
_SETTLE = (
    "if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then return redis.call('HDEL', KEYS[1], ARGV[1]) end return 0"
)

# Windows that became due count as changed. KEYS: due set, dirty. ARGV: up to
_COME_DUE = """
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])
for _, window in ipairs(due) do
  redis.call('ZREM', KEYS[1], window)
  redis.call('HINCRBY', KEYS[2], window, 1)
end
return #due
"""

# ARGV: name, value
_RAISE = """
local had = redis.call('HGET', KEYS[1], 'x:' .. ARGV[1])
if not had or tonumber(had) < tonumber(ARGV[2]) then redis.call('HSET', KEYS[1], 'x:' .. ARGV[1], ARGV[2]) end
return 1
"""

# Take or keep the lead. ARGV: who, milliseconds
_LEAD = """
local who = redis.call('GET', KEYS[1])
if who and who ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""


@dataclass(frozen=True, slots=True)
class Batch:
    """What the records ``[start, end)`` of one source add. `maxima` only ever rise."""

    source: str
    start: int
    end: int
    cells: Mapping[Cell, Mapping[str, int]]
    maxima: Mapping[str, int]
    due: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CounterReply:
    """What became of a batch.

    ``applied``: counted. ``done``: all of it was counted before. ``trim``: its records below `mark` were counted
    before; send the rest. ``gap``: records between `mark` and its start are missing; nothing changed.
    """

    status: Status
    mark: int


@dataclass(frozen=True, slots=True)
class Head:
    """Epoch, marks and maxima at one moment."""

    epoch: str
    marks: Mapping[str, int]
    maxima: Mapping[str, int]


class CounterStore:
    """Marked counters under one namespace. Methods block on Redis and raise `StateUnavailable`.

    Safe to call from several threads once `open` returned.
    """

    def __init__(self, client: redis.Redis, namespace: str, *, ttl_s: int) -> None:
        self._client = client
        self._root = f"{{{namespace}}}:"
        self._ttl = str(ttl_s)
        self._epoch = ""
        self._apply = client.register_script(_APPLY)
        self._open = client.register_script(_OPEN)
        self._settle = client.register_script(_SETTLE)
        self._come_due = client.register_script(_COME_DUE)
        self._raise = client.register_script(_RAISE)
        self._lead = client.register_script(_LEAD)

    @property
    def _head(self) -> str:
        return f"{self._root}head"

    @property
    def _base(self) -> str:
        return f"{self._root}{self._epoch}:"

    def open(self, new_epoch: str, first: Mapping[str, int]) -> Head:
        """INIT: begin `new_epoch` if nothing is there, and set the marks that are missing to `first`."""
        pairs = [str(x) for pair in first.items() for x in pair]
        with mapped_errors():
            self._epoch = cast(bytes, self._open(keys=[self._head], args=[new_epoch, *pairs])).decode()
        return self.head()

    def skip_to(self, source: str, mark: int) -> None:
        """Raise a mark over records that no longer exist. What they counted is lost, and the caller says so."""
        with mapped_errors():
            self._client.hset(self._head, f"m:{source}", str(mark))

    def head(self) -> Head:
        """Epoch, marks and maxima now."""
        with mapped_errors():
            raw = cast(dict[bytes, bytes], self._client.hgetall(self._head))
        named = {key.decode(): value.decode() for key, value in raw.items()}
        return Head(
            named.get("epoch", ""),
            {key[2:]: int(value) for key, value in named.items() if key.startswith("m:")},
            {key[2:]: int(value) for key, value in named.items() if key.startswith("x:")},
        )

    def apply(self, batch: Batch) -> CounterReply:
        """Add the counts of `batch` and advance its source's mark, or change nothing and say why.

        Raises:
            StateGap: epoch or mark are gone: Redis lost its data.
        """
        args: list[str | int] = [self._epoch, batch.source, batch.start, batch.end, self._ttl, len(batch.maxima)]
        for name, value in batch.maxima.items():
            args += (name, value)
        args.append(len(batch.due))
        args += batch.due
        args.append(len(batch.cells))
        for (window, label), counts in batch.cells.items():
            args += (window, label, len(counts))
            for field, delta in counts.items():
                args += (field, delta)
        with mapped_errors():
            status, mark = cast(list[bytes], self._apply(keys=[self._head, self._base], args=args))
        if status == b"lost":
            raise StateGap(
                f"Redis no longer holds the monitor's mark of {batch.source}",
                hint="Restart the monitor: it counts again from the beginning of its topics.",
            )
        return CounterReply(cast(Status, status.decode()), int(mark))

    def changed(self) -> dict[int, int]:
        """Windows changed since they were settled, each with its change counter."""
        with mapped_errors():
            raw = cast(dict[bytes, bytes], self._client.hgetall(f"{self._base}dirty"))
        return {int(window): int(count) for window, count in raw.items()}

    def settle(self, window: int, seen: int) -> None:
        """Forget that `window` changed, unless it changed again after `seen`."""
        with mapped_errors():
            self._settle(keys=[f"{self._base}dirty"], args=[window, seen])

    def come_due(self, kind: str, up_to: int) -> int:
        """Mark windows with a start at or below `up_to` as changed, once. Returns how many."""
        with mapped_errors():
            return cast(int, self._come_due(keys=[f"{self._base}due:{kind}", f"{self._base}dirty"], args=[up_to]))

    def read(self, windows: Iterable[int]) -> dict[Cell, dict[str, int]]:
        """Every cell of these windows."""
        wanted = list(windows)
        with mapped_errors():
            pipe = self._client.pipeline(transaction=False)
            for window in wanted:
                pipe.smembers(f"{self._base}p:{window}")
            cells = [
                (window, label.decode())
                for window, labels in zip(wanted, pipe.execute(), strict=True)
                for label in sorted(labels)
            ]
            for window, label in cells:
                pipe.hgetall(f"{self._base}c:{window}|{label}")
            found = pipe.execute()
        return {
            cell: {field.decode(): int(value) for field, value in raw.items()}
            for cell, raw in zip(cells, found, strict=True)
        }

    def next_revision(self, window: str) -> int:
        """1, 2, 3… for each window, across restarts."""
        key = f"{self._base}r:{window}"
        with mapped_errors():
            pipe = self._client.pipeline(transaction=False)
            pipe.incr(key)
            pipe.expire(key, int(self._ttl))
            return int(pipe.execute()[0])

    def raise_maximum(self, name: str, value: int) -> None:
        """Raise one maximum outside a batch."""
        with mapped_errors():
            self._raise(keys=[self._head], args=[name, value])

    def lead(self, who: str, for_ms: int) -> bool:
        """Take or keep the lead for a while; False while somebody else has it."""
        with mapped_errors():
            return bool(self._lead(keys=[f"{self._root}lead"], args=[who, for_ms]) == 1)
