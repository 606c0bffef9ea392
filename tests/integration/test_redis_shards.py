"""Rows in shards: on one Redis, and on a Redis Cluster of one node, which refuses keys of two slots in one call."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from stream_scorer.errors import StateGap, StateUnavailable
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.stack.ports import LOOPBACK, free_port, is_free
from stream_scorer.stack.services import Redis
from stream_scorer.state.client import connect, connect_cluster, ping
from stream_scorer.state.redis_rows import RedisRowStore, ShardedRedisRows
from stream_scorer.state.rows import BEGINS, MemoryRowStore, RowUpdate, Sharding

pytestmark = pytest.mark.integration
A, B = SourcePartition("transactions", 0), SourcePartition("transactions", 1)
HOUR = 3_600_000
# A wall clock that is ahead of all rows.
FAR = 10**15
SHARDING = Sharding(3, frozenset({b"0"}))
KEYS = [b"%d:owner-%d" % (kind, owner) for kind in range(2) for owner in range(20)]


def _start(folder: Path, *, cluster: bool) -> tuple[subprocess.Popen[bytes], str]:
    part = Redis(folder)
    while not (0 < part.port < 50_000 and is_free(part.port + 10_000)):  # where the bus of a cluster listens
        part.port = free_port()
    launch = part.prepare(print)
    more = ["--cluster-enabled", "yes"] if cluster else []
    process = subprocess.Popen([*launch.command, *more], env=launch.env, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + part.ready_seconds
        while not part.answers():
            assert process.poll() is None, "redis-server has ended"
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.05)
        if cluster:
            with redis.Redis(host=LOOPBACK, port=part.port) as client:
                client.execute_command("CLUSTER", "ADDSLOTS", *range(16_384))
                while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
                    assert time.monotonic() < deadline, "the cluster does not form"
                    time.sleep(0.05)
    except BaseException:
        process.kill()
        raise
    return process, part.address


@pytest.fixture(scope="module", params=["one server", "cluster"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    cluster = request.param == "cluster"
    process, url = _start(tmp_path_factory.mktemp("redis"), cluster=cluster)
    try:
        client = connect_cluster(url) if cluster else connect(url)
        ping(client, url)
        yield client
        client.close()
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def live(client: Any) -> ShardedRedisRows:
    client.flushall()
    rows = made(client)
    assert rows.open() is None
    assert rows.init({A: 0, B: 0}, {})
    assert rows.open() is not None
    return rows


def made(client: Any) -> ShardedRedisRows:
    plain = RedisRowStore(client, "test", [A, B], labels_topic="labels", horizon_ms=24 * HOUR)
    return ShardedRedisRows.over(plain, SHARDING)


def update(start: int, stop: int, at: int = 1_000) -> RowUpdate:
    offsets = np.arange(start, stop)
    zero = np.zeros(len(offsets), dtype=np.int64)
    entries = np.column_stack([at + offsets, offsets * 10, offsets + 1_000_000, zero])
    spans, begins = [Span(A, start, stop, at + stop)], np.full(len(offsets), BEGINS, dtype=np.int8)
    return RowUpdate.group(spans, KEYS, offsets % len(KEYS), entries, zero, offsets, begins)


def in_memory(*updates: RowUpdate) -> list[bytes | None]:
    memory = MemoryRowStore()
    for one in updates:
        memory.apply(one)
    return memory.read(KEYS)[0]


def test_rows_equal_those_of_one_shard_and_every_shard_has_its_offsets(live: ShardedRedisRows, client: Any) -> None:
    live.check_eviction_policy()
    live.probe_write()
    live.apply(update(0, 100))
    live.apply(update(60, 170))
    rows, applied = live.read(KEYS)
    assert rows == in_memory(update(0, 170))
    assert [m.next_offset for m in applied.by_shard] == [{A: 170, B: 0}] * 6
    assert applied.watermark == {A: 1_170, B: -1}
    assert sorted(live.keys()) == sorted(KEYS)
    assert live.read([b"1:nobody"])[0] == [None]
    # Every shard lies under a hash tag of its own.
    assert len({key.split(b"}")[0] for key in client.scan_iter(match="*", count=1_000)}) == 6


def test_entries_of_a_shard_that_is_ahead_are_not_pending(live: ShardedRedisRows) -> None:
    live.apply(update(0, 100))
    behind = update(100, 140)
    first = RowUpdate(behind.spans, [], np.zeros(1, np.int64), *(a[:0] for a in _columns(behind)))
    live._shards[0].apply(first)
    _, applied = live.read(KEYS)
    assert applied.next_offset == {A: 100, B: 0}
    pending = behind.pending(applied)
    assert isinstance(pending, np.ndarray)
    owner = np.repeat(behind.shards(SHARDING), np.diff(behind.bounds))
    assert (pending == (owner != 0)).all()
    assert 0 < pending.sum() < len(pending)
    assert live.open() is not None  # a shard that is applied first may be ahead


def _columns(of: RowUpdate) -> tuple[Any, ...]:
    return of.entries, of.span_of, of.offset, of.opens


def test_a_shard_behind_one_that_is_applied_later_has_lost_data(live: ShardedRedisRows) -> None:
    live.apply(update(0, 100))
    behind = update(100, 140)
    live._shards[5].apply(RowUpdate(behind.spans, [], np.zeros(1, np.int64), *(a[:0] for a in _columns(behind))))
    assert live.open() is None


@pytest.mark.parametrize("shard", [0, 4])
def test_one_shard_that_is_lost_begins_all_anew(live: ShardedRedisRows, client: Any, shard: int) -> None:
    live.apply(update(0, 100))
    for key in list(client.scan_iter(match=f"{{test/3.{shard}}}*", count=1_000)):
        client.delete(key)
    with pytest.raises(StateGap):
        live.read(KEYS)
    assert live.open() is None
    assert live.epoch
    assert live.init({A: 0, B: 0}, {A: 100})
    other = made(client)
    applied = other.open()
    assert applied is not None
    assert not applied.complete
    live.apply(update(0, 100))
    rows, applied = live.read(KEYS)
    assert rows == in_memory(update(0, 100))
    assert applied.complete
    assert live.delete_old_epochs() > 0
    assert live.read(KEYS)[0] == rows


def test_rows_built_beside_take_over_in_every_shard(live: ShardedRedisRows) -> None:
    live.apply(update(0, 100))
    built = live.twin(beside=True)
    assert built.open() is None
    assert built.init({A: 0, B: 0}, {A: 100})
    built.apply(update(0, 80))
    assert built.take_over()
    with pytest.raises(StateGap):
        live.read(KEYS)
    applied = live.open()
    assert applied is not None
    assert applied.next_offset == {A: 80, B: 0}
    live.apply(update(80, 120))
    assert live.read(KEYS)[0] == in_memory(update(0, 120))


def test_a_server_that_is_no_cluster_is_refused(tmp_path: Path) -> None:
    process, url = _start(tmp_path, cluster=False)
    try:
        with pytest.raises(StateUnavailable):
            connect_cluster(url)
    finally:
        process.kill()
        process.wait()


def test_rows_that_nobody_will_read_again_go_from_every_shard(live: ShardedRedisRows) -> None:
    never = threading.Event()
    live.apply(update(0, 80))
    live.apply(update(80, 81, at=60 * 24 * HOUR))
    assert live.expire({A: 81, B: 1}, never, now_ms=FAR, max_share=1.0) == 0  # a partition is behind
    assert live.expire({A: 81, B: 0}, never, now_ms=FAR, max_share=1.0) >= len(KEYS) - 1
    assert [row is not None for row in live.read(KEYS)[0]].count(True) == 1
    assert live.take_turn(60_000)
    assert not live.take_turn(60_000)
    live.record_expiry(refused=True)
    assert live.expiry_refused()
