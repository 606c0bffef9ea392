"""Row stores for the contract suites: in memory and in Redis, in one shard and in several. Each can lose data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from stream_scorer.positions import SourcePartition, Span
from stream_scorer.state.redis_rows import RedisRowStore, ShardedRedisRows
from stream_scorer.state.rows import BEGINS, AppliedRowStore, RowUpdate, Sharding
from stream_scorer.state.shards import ShardedRows
from tests.support.failpoints import Failpoints
from tests.support.rows import MemoryAppliedRows, MemoryServer

HOUR = 3_600_000
A, B = SourcePartition("transactions", 0), SourcePartition("transactions", 1)
SOURCES = [A, B]
# Rows of entity 0 show duplicates, those of entity 1 do not, so with shards they are in different shards.
KEYS = [b"0:one", b"0:two", b"1:one", b"1:two"]
SHARDING = Sharding(2, frozenset({b"0"}))


def update(
    source: SourcePartition,
    start: int,
    stop: int,
    *,
    keys: Sequence[bytes] = KEYS,
    at: int = 1_000,
    opens: int = BEGINS,
) -> RowUpdate:
    """An entry for each offset, the rows at `keys` in turn, one millisecond apart."""
    offsets = np.arange(start, stop)
    zero = np.zeros(len(offsets), dtype=np.int64)
    entries = np.column_stack([at + offsets, offsets * 10, offsets + 1_000_000, zero])
    codes = np.full(len(offsets), opens, dtype=np.int8)
    spans = [Span(source, start, stop, at + stop)]
    return RowUpdate.group(spans, list(keys), offsets % len(keys), entries, zero, offsets, codes)


def both(first: RowUpdate, second: RowUpdate) -> RowUpdate:
    """One update with the spans and entries of two, which have the same keys."""
    key_of = [np.repeat([KEYS.index(key) for key in one.keys], np.diff(one.bounds)) for one in (first, second)]
    return RowUpdate.group(
        first.spans + second.spans,
        KEYS,
        np.concatenate(key_of),
        np.concatenate([first.entries, second.entries]),
        np.concatenate([first.span_of, second.span_of + len(first.spans)]),
        np.concatenate([first.offset, second.offset]),
        np.concatenate([first.opens, second.opens]),
    )


class RowParts(Protocol):
    """One namespace of rows: `store` gives a process of its own access to it, the other methods lose data."""

    def store(self) -> AppliedRowStore: ...

    def lose_everything(self) -> None: ...

    def lose_epoch(self) -> None: ...

    def lose_applied_offset(self, source: SourcePartition) -> None: ...

    def set_back(self, source: SourcePartition, offset: int) -> None: ...

    def lose_row(self, key: bytes) -> None: ...


class MemoryRowParts:
    """Rows in memory."""

    def __init__(self, *, sharded: bool) -> None:
        self._sharded = sharded
        self._servers = [MemoryServer() for _ in range(len(SHARDING) if sharded else 1)]

    def store(self) -> AppliedRowStore:
        parts = [MemoryAppliedRows(server, SOURCES, Failpoints(), per_call=24) for server in self._servers]
        return ShardedRows(parts, SHARDING) if self._sharded else parts[0]

    def lose_everything(self) -> None:
        for server in self._servers:
            server.flush()

    def lose_epoch(self) -> None:
        self._servers[0].epoch = ""

    def lose_applied_offset(self, source: SourcePartition) -> None:
        del self._servers[0].applied[source]

    def set_back(self, source: SourcePartition, offset: int) -> None:
        self._servers[0].applied[source] = (offset, 0, 0)

    def lose_row(self, key: bytes) -> None:
        for server in self._servers:
            server.lose(key)


class RedisRowParts:
    """Rows in Redis, whose data is deleted first."""

    def __init__(self, client: Any, *, sharded: bool) -> None:
        self._client, self._sharded = client, sharded
        client.flushdb()

    def store(self) -> AppliedRowStore:
        rows = RedisRowStore(self._client, "test", SOURCES, labels_topic="labels", horizon_ms=24 * HOUR)
        return ShardedRedisRows.over(rows, SHARDING) if self._sharded else rows

    def lose_everything(self) -> None:
        self._client.flushdb()

    def lose_epoch(self) -> None:
        self._client.delete(self._keys("epoch")[0])

    def lose_applied_offset(self, source: SourcePartition) -> None:
        self._client.delete(self._keys(f"mark:{source.topic}:{source.partition}")[0])

    def set_back(self, source: SourcePartition, offset: int) -> None:
        key = self._keys(f"mark:{source.topic}:{source.partition}")[0]
        self._client.set(key, np.array([offset, 0, 0], dtype="<i8").tobytes())

    def lose_row(self, key: bytes) -> None:
        (found,) = self._keys(key.decode())
        self._client.delete(found)

    def _keys(self, ending: str) -> list[bytes]:
        return sorted(self._client.keys(f"*:{ending}"))
