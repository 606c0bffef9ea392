"""Deleting the rows that nobody will read again: what a time to live would do, by event time and at no cost a read.

A pass goes through all keys once. It deletes the rows whose newest entry lies in a witness period that ended before
anybody still looks, the witnesses of such periods, and whole namespaces that no scorer has used for `UNUSED_MS`, as an
earlier spec leaves them behind. ADR 0020.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import redis

from stream_scorer.state.client import mapped_errors
from stream_scorer.state.rows import WITNESS_PERIOD_MS

if TYPE_CHECKING:
    from stream_scorer.state.redis_rows import RedisRowStore

_log = logging.getLogger(__name__)
# What scorers' namespaces begin with, within the braces of their hash tag.
NAMESPACES = "stream-scorer:rows:"
UNUSED_MS = 30 * 86_400_000
# Keys looked at in one step: Redis is busy with it for one to two milliseconds.
STEP = 500
# Between two steps, so that a pass takes a small part of one core.
PAUSE_S = 0.005
# Deleted rows are remembered for longer than any micro-batch lies between its read and its apply, and no more of them
# at once than Redis forgets in a few milliseconds.
REMEMBER_S = 120.0
MAX_REMEMBERED = 50_000

# A row is deleted if all of its entries and panes are older; the last entry is looked at first.
_RETIRE = """
-- KEYS: retired, rows...   ARGV: event time before which nobody looks, how long to remember (ms).
local before, gone = tonumber(ARGV[1]), 0
for k = 2, #KEYS do
  local last = redis.call('GETRANGE', KEYS[k], -32, -25)
  if #last == 8 and struct.unpack('<i8', last) < before then
    local row, old = redis.call('GET', KEYS[k]), true
    for at = 1, #row - 31, 32 do
      local time, _, _, kind = struct.unpack('<i8i8i8i8', row, at)
      -- A header holds no time; of a pane, the latest counts.
      if kind < -1 then time = time + math.floor((-2 - kind) / 256) end
      if kind ~= -1 and time >= before then
        old = false
        break
      end
    end
    if old then
      redis.call('UNLINK', KEYS[k])
      redis.call('SADD', KEYS[1], KEYS[k])
      gone = gone + 1
    end
  end
end
if gone > 0 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return gone
"""

# KEYS: used, others... of a namespace.
_DROP_UNUSED = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local gone = 0
for k = 2, #KEYS do gone = gone + redis.call('UNLINK', KEYS[k]) end
return gone
"""


def retire(client: Any, shards: Sequence[RedisRowStore], before: Sequence[int], stop: threading.Event) -> int:
    """One pass over all keys; answers how many were deleted. Ends early when `stop` is set.

    Args:
        shards: opened stores, each with what it reads in use. before: for each, the event time (ms) before which nobody
            will look again.

    Raises:
        StateUnavailable: Redis does not answer.
    """
    retire_rows, drop_unused = client.register_script(_RETIRE), client.register_script(_DROP_UNUSED)
    # Readers look for witnesses of whole periods: a row goes when its last period does.
    edges = [time // WITNESS_PERIOD_MS * WITNESS_PERIOD_MS for time in before]
    used = {shard.tag for shard in shards}
    gone = remembered = 0
    with mapped_errors():
        for keys in _steps(client.scan_iter(match="{*", count=STEP)):
            for shard, edge in zip(shards, edges, strict=True):
                rows = [key for key in keys if key.startswith(shard.row_prefix)]
                if rows:
                    remembered += int(retire_rows(keys=[shard.retired_key, *rows], args=[edge, int(5e3 * REMEMBER_S)]))
                last = edge // WITNESS_PERIOD_MS - 1
                witnesses = [key for key in keys if (period := shard.period_of(key)) is not None and period <= last]
                if witnesses:
                    gone += client.unlink(*witnesses)
            for tag, others in _of_namespaces(keys).items():
                if tag not in used and _in_use(client, tag):
                    used.add(tag)
                if tag not in used:
                    gone += int(drop_unused(keys=[tag + b"used", *others]))
            if remembered >= MAX_REMEMBERED:
                _log.info("%d features deleted that nobody will read again; going on in %d s", remembered, REMEMBER_S)
                if stop.wait(REMEMBER_S):
                    break
                gone, remembered = gone + remembered, 0
                for shard in shards:
                    client.unlink(shard.retired_key)
            if stop.wait(PAUSE_S):
                break
    return gone + remembered


def _in_use(client: Any, tag: bytes) -> bool:
    """Whether somebody looks after the namespace of `tag`, or it is not ours to touch."""
    try:
        return bool(client.exists(tag + b"used"))
    except redis.exceptions.NoPermissionError:
        return True


def _steps(keys: Iterator[bytes]) -> Iterator[list[bytes]]:
    step = []
    for key in keys:
        step.append(key)
        if len(step) == STEP:
            yield step
            step = []
    yield step


_NAMESPACE = re.compile(rb"\{" + re.escape(NAMESPACES.encode()) + rb"[0-9a-f]{16}(/[0-9.]+)?\}:")


def _of_namespaces(keys: Sequence[bytes]) -> dict[bytes, list[bytes]]:
    """The keys of scorers' namespaces, by hash tag and colon."""
    found: dict[bytes, list[bytes]] = {}
    for key in keys:
        tag = _NAMESPACE.match(key)
        if tag:
            found.setdefault(tag[0], []).append(key)
    return found
