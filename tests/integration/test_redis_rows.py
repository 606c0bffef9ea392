"""Rows in Redis: what they do beyond the suite that rows in memory pass too (`tests/contract/test_rows.py`)."""

from __future__ import annotations

import re
import socket
import threading
import uuid
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from stream_scorer.clock import SystemClock
from stream_scorer.errors import ExpireRefused, StateGap, StateUnavailable, UsageError
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.stack import StackAddresses
from stream_scorer.state import expire, scripts
from stream_scorer.state.client import connect
from stream_scorer.state.keys import BUILDING_MS, UNUSED_MS
from stream_scorer.state.redis_rows import RedisRowStore
from stream_scorer.state.rows import BEGINS, CONTINUES, OPENS, Beginning, MemoryRowStore, RowUpdate
from tests.support.services import services

pytestmark = pytest.mark.integration
A, B = SourcePartition("transactions", 0), SourcePartition("transactions", 1)
LABELS = SourcePartition("labels", 0)
HOUR = 3_600_000
# A wall clock that is ahead of all rows.
FAR = 10**15
Store = Callable[..., RedisRowStore]


@pytest.fixture
def url(shared_stack: StackAddresses) -> str:
    return str(shared_stack.redis)


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    client = connect(url)
    client.flushdb()

    def make(*, labels: bool = False) -> RedisRowStore:
        sources = [A, B, LABELS] if labels else [A, B]
        return RedisRowStore(client, "test", sources, labels_topic="labels", horizon_ms=24 * HOUR)

    yield make
    client.close()


def opened(make: Store) -> RedisRowStore:
    store = make()
    if store.open() is None:
        assert store.init({A: 0, B: 0}, {})
    assert store.open() is not None
    return store


def update(
    source: SourcePartition, start: int, stop: int, *, keys: int = 3, at: int = 1_000, opens: int = BEGINS
) -> RowUpdate:
    offsets = np.arange(start, stop)
    entries = np.column_stack([at + offsets, offsets * 10, offsets + 1_000_000, np.zeros(len(offsets), dtype=np.int64)])
    names = [b"0:%d" % key for key in range(keys)]
    zero = np.zeros(len(offsets), dtype=np.int64)
    spans, codes = [Span(source, start, stop, at + stop)], np.full(len(offsets), opens, dtype=np.int8)
    return RowUpdate.group(spans, names, offsets % keys, entries, zero, offsets, codes)


def rows(store: RedisRowStore | MemoryRowStore, keys: int = 3) -> list[bytes | None]:
    return store.read([b"0:%d" % key for key in range(keys)])[0]


def test_deleting_old_epochs_deletes_the_keys_of_earlier_epochs(store: Store, url: str) -> None:
    redis = opened(store)
    redis.apply(update(A, 0, 10))
    assert redis.open() is not None
    assert redis.init({A: 0, B: 0}, {A: 10})
    redis.apply(update(A, 0, 10))
    assert redis.delete_old_epochs() > 0
    assert all(redis.epoch.encode() in key or key.endswith((b":epoch", b":used")) for key in connect(url).keys("*"))
    assert None not in rows(redis)


def test_deleting_old_epochs_does_not_take_the_beginning_of_an_epoch_that_begins_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, redis = opened(store), store()
    assert redis.open() is not None
    begin = redis._init_script

    def delete_first(**arguments: list[bytes]) -> object:
        other.delete_old_epochs()
        return begin(**arguments)

    monkeypatch.setattr(redis, "_init_script", delete_first)
    assert redis.init({A: 0, B: 0}, {A: 10}, Beginning(transactions=5))
    applied = redis.open()
    assert applied is not None
    assert applied.beginning == Beginning(transactions=5)


DAY = 24 * HOUR
# Far enough from the rows that `update` makes by default for their witness period to have ended.
LATER = 60 * DAY


def test_rows_that_nobody_will_read_again_go(store: Store, url: str) -> None:
    redis = opened(store)
    redis.apply(update(A, 0, 3))
    assert redis.expire({A: 3, B: 0}, threading.Event(), now_ms=FAR, max_share=1.0) == 0  # none is newer
    redis.apply(update(A, 3, 5, keys=2, at=LATER, opens=OPENS))  # rows 0 and 1 are of today again
    client = connect(url)
    assert len(client.keys("*:seen:*")) > 2
    assert (
        redis.expire({A: 5, B: 0}, threading.Event(), now_ms=FAR, max_share=1.0) == 1 + 3
    )  # and the witnesses of that time
    assert [row is None for row in rows(redis)] == [False, False, True]
    redis.apply(update(A, 5, 8, at=LATER))  # row 2 starts again, and no row counts as lost
    assert None not in rows(redis)
    client.delete(*client.keys("*:0:2"))
    with pytest.raises(StateGap, match="row"):
        rows(redis)


def test_a_row_that_went_between_read_and_apply_is_not_taken_for_lost(store: Store) -> None:
    redis = opened(store)
    redis.apply(update(A, 0, 3))
    redis.apply(update(A, 3, 4, keys=1, at=LATER, opens=OPENS))
    assert rows(redis)[1] is not None  # a batch reads it
    redis.expire({A: 4, B: 0}, threading.Event(), now_ms=FAR, max_share=1.0)
    redis.apply(update(A, 4, 6, keys=3, at=LATER, opens=OPENS))  # that batch's entries
    assert rows(redis)[1] is not None


def expired_rows(store: Store, url: str) -> tuple[RedisRowStore, Callable[[], None]]:
    """Rows of which old ones went, with their witnesses; and what puts these witnesses back."""
    redis = opened(store)
    redis.apply(update(A, 0, 3))
    redis.apply(update(A, 3, 4, keys=1, at=LATER, opens=OPENS))
    client = connect(url)
    witnesses = {key: client.smembers(key) for key in client.keys("*:seen:0:*")}
    redis.expire({A: 4, B: 0}, threading.Event(), now_ms=FAR, max_share=1.0)

    def put_back() -> None:
        for key, members in witnesses.items():
            client.sadd(key, *members)

    return redis, put_back


def test_an_event_of_a_period_whose_witnesses_are_still_there_begins_a_row_that_went(store: Store, url: str) -> None:
    redis, put_back = expired_rows(store, url)
    put_back()  # a pass comes to a row before it comes to its witness
    redis.apply(update(A, 4, 6))
    assert rows(redis)[1] is not None


def test_an_event_older_than_the_horizon_begins_a_row_although_a_witness_was_left(store: Store, url: str) -> None:
    redis, put_back = expired_rows(store, url)
    connect(url).delete(redis.expired_key)  # a long pass drops its list of deleted rows
    put_back()
    redis.read([])
    redis.apply(update(A, 4, 6))
    redis.apply(update(A, 6, 9, opens=OPENS))
    assert rows(redis)[1] is not None


def test_a_pass_forgets_what_it_deleted_before_there_is_too_much_of_it(
    store: Store, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expire, "MAX_REMEMBERED", 500)
    monkeypatch.setattr(expire, "REMEMBER_S", 0.01)
    redis = opened(store)
    redis.apply(update(A, 0, 3_000, keys=3_000))
    redis.apply(update(A, 3_000, 3_001, keys=1, at=LATER, opens=OPENS))
    assert redis.expire({A: 3_001, B: 0}, threading.Event(), now_ms=FAR, max_share=1.0) > 2_999
    assert connect(url).scard(redis.expired_key) < 1_500
    assert len(list(redis.keys())) == 1


@pytest.mark.parametrize(("n", "others"), [(3_000, 0), (40, 0), (40, 5_000)])
def test_a_pass_that_would_delete_most_rows_deletes_none(store: Store, url: str, n: int, others: int) -> None:
    redis = opened(store)
    redis.apply(update(A, 0, n, keys=n))
    redis.apply(update(A, n, n + 1, keys=1, at=LATER, opens=OPENS))
    connect(url).mset({b"{other}:%d" % i: b"" for i in range(others)} or {b"other": b""})
    with pytest.raises(ExpireRefused, match="nothing was deleted"):
        redis.expire({A: n + 1, B: 0}, threading.Event(), now_ms=FAR)
    assert len(list(redis.keys())) == n
    assert redis.expire({A: n + 1, B: 0}, threading.Event(), now_ms=FAR, max_share=1.0) >= n - 1


@pytest.mark.parametrize(("recent", "refused"), [(20, True), (40, False)])
def test_most_rows_may_go_if_the_others_show_that_event_time_has_come_so_far(
    store: Store, recent: int, refused: bool
) -> None:
    redis = opened(store)
    redis.apply(update(A, 0, 300, keys=300))
    redis.apply(update(A, 300, 300 + recent, keys=recent, at=LATER, opens=OPENS))
    ends, never = {A: 300 + recent, B: 0}, threading.Event()
    if refused:
        with pytest.raises(ExpireRefused, match="20 have an event of the last day"):
            redis.expire(ends, never, now_ms=FAR)
    else:
        assert redis.expire(ends, never, now_ms=FAR) >= 300 - recent
    assert len(list(redis.keys())) == (300 if refused else recent)


def test_a_pass_deletes_a_handful_of_old_rows_and_nothing_once_it_is_stopped(store: Store) -> None:
    redis, stop = opened(store), threading.Event()
    redis.apply(update(A, 0, 10, keys=10))
    redis.apply(update(A, 10, 11, keys=1, at=LATER, opens=OPENS))
    stop.set()
    assert redis.expire({A: 11, B: 0}, stop, now_ms=FAR) == 0
    assert redis.expire({A: 11, B: 0}, threading.Event(), now_ms=FAR) >= 9
    assert list(redis.keys()) == [b"0:0"]


def test_no_watermark_counts_beyond_the_wall_clock(store: Store) -> None:
    redis = opened(store)
    redis.apply(update(A, 0, 3))
    redis.apply(update(A, 3, 4, keys=1, at=1_000 * LATER, opens=OPENS))
    assert redis.expire({A: 4, B: 0}, threading.Event(), now_ms=DAY, max_share=1.0) == 0


def test_a_partition_that_is_behind_holds_rows_back_and_an_empty_one_does_not(store: Store) -> None:
    redis = opened(store)
    redis.apply(update(A, 0, 3))
    redis.apply(update(A, 3, 4, keys=1, at=LATER, opens=OPENS))
    assert redis.expire({A: 4, B: 7}, threading.Event(), now_ms=FAR, max_share=1.0) == 0  # B has unread records
    assert redis.expire({A: 4, B: 0}, threading.Event(), now_ms=FAR, max_share=1.0) > 0


def test_a_pass_records_what_all_but_idle_partitions_have_passed(store: Store) -> None:
    redis = opened(store)
    redis.apply(update(B, 0, 1))
    redis.apply(update(A, 0, 1, at=LATER, opens=OPENS))
    redis.expire({A: 1, B: 5}, threading.Event(), now_ms=FAR)  # B has unread records
    assert redis.read([])[1].slowest_active_watermark() == 1_001
    redis.expire({A: 1, B: 1}, threading.Event(), now_ms=LATER)  # B is idle; the clock is behind
    assert redis.read([])[1].slowest_active_watermark() == LATER
    redis.expire({A: 1, B: 1}, threading.Event(), now_ms=FAR)
    assert redis.read([])[1].passed == LATER + 1
    applied = redis.open()
    assert applied is not None
    assert applied.passed == LATER + 1
    redis.expire({A: 1, B: 5}, threading.Event(), now_ms=FAR)
    assert redis.read([])[1].passed == LATER + 1  # what is cut stays cut


@pytest.mark.parametrize("lost", [b"0:0", b"0:2"])  # a row of labels only, and one of transactions only
def test_labels_that_are_ahead_expire_no_row_and_hide_no_loss(store: Store, url: str, lost: bytes) -> None:
    redis, ends, passed = store(labels=True), {A: 3, B: 0, LABELS: 1}, []
    assert redis.open() is None
    assert redis.init({A: 1, B: 0, LABELS: 0}, {})
    for each in (update(LABELS, 0, 1, at=LATER), update(A, 1, 3)):
        redis.apply(each)
        assert redis.expire(ends, threading.Event(), now_ms=FAR, max_share=1.0) == 0
        passed.append(redis.read([])[1].passed)
    assert passed == [-1, 1_003]
    connect(url).delete(redis.row_prefix + lost)
    with pytest.raises(StateGap, match="lost a row"):
        rows(redis)


def test_one_in_a_while_takes_the_turn(store: Store, url: str) -> None:
    one, other = opened(store), opened(store)
    assert [one.take_turn(60_000), other.take_turn(60_000), one.take_turn(60_000)] == [True, False, False]
    for refused in (True, False):
        one.record_expiry(refused=refused)
        one.delete_old_epochs()
        assert other.expiry_refused() == refused
    assert 0 < connect(url).pttl("{test}:used") <= UNUSED_MS


def test_an_hourly_pass_deletes_what_a_killed_rebuild_left_behind(store: Store, url: str) -> None:
    live, client, never = opened(store), connect(url), threading.Event()
    live.apply(update(A, 0, 10))
    built = live.twin(beside=True)
    assert built.open() is None
    assert built.init({A: 0, B: 0}, {A: 10})
    built.apply(update(A, 0, 8))
    assert 0 < client.pttl("{test}:building") <= BUILDING_MS
    client.pexpire("{test}:building", 60_000)
    built.keep()  # what the command does while it rebuilds
    assert client.pttl("{test}:building") > 60_000
    assert live.expire({A: 10, B: 0}, never, now_ms=FAR) == 0
    client.delete("{test}:building")  # the command was killed, and the key has expired
    built.keep()
    assert not client.exists("{test}:building")
    left = [key for key in client.keys("*") if built.epoch.encode() in key]
    assert live.expire({A: 10, B: 0}, never, now_ms=FAR) == len(left) > 3
    assert not any(built.epoch.encode() in key for key in client.keys("*"))
    assert None not in rows(live)
    with pytest.raises(StateGap):
        built.apply(update(A, 8, 10))
    assert not built.take_over()


def test_a_pass_deletes_nothing_of_an_epoch_that_begins_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, never = opened(store), threading.Event()
    live.apply(update(A, 0, 10))
    built = live.twin(beside=True)
    built.open()
    steps = expire._steps

    def begin_first(client: object) -> Iterator[list[bytes]]:
        assert built.init({A: 0, B: 0}, {A: 10})
        built.apply(update(A, 0, 8))
        yield from steps(client)

    monkeypatch.setattr(expire, "_steps", begin_first)
    assert live.expire({A: 10, B: 0}, never, now_ms=FAR, max_share=1.0) == 0
    assert built.take_over()


def test_rows_built_beside_take_the_place_of_the_current_ones(store: Store, url: str) -> None:
    live = opened(store)
    live.apply(update(A, 0, 10))
    built, other = live.twin(beside=True), live.twin(beside=True)
    assert built.open() is None
    assert built.init({A: 0, B: 0}, {A: 10})
    other.open()
    built.apply(update(A, 0, 8))
    live.apply(update(A, 10, 12))
    assert live.delete_old_epochs() == 0  # neither generation is a leftover
    assert built.take_over()
    assert not other.take_over()
    with pytest.raises(StateGap):
        rows(live)
    applied = live.open()
    assert applied is not None
    assert applied.next_offset == {A: 8, B: 0}
    live.apply(update(A, 8, 12))
    memory = MemoryRowStore()
    memory.apply(update(A, 0, 12))
    assert rows(live) == rows(memory)
    assert live.delete_old_epochs() > 0
    assert not any(b"building" in key for key in connect(url).keys("*"))


def test_what_every_partition_is_past_is_trimmed_and_nothing_younger(store: Store) -> None:
    redis = opened(store)
    for start in range(0, 200, 5):
        redis.apply(update(A, start, start + 5, keys=1, at=start * HOUR))
        redis.read([])
    (whole,) = rows(redis, 1)
    assert whole is not None
    assert len(whole) == 200 * 32  # partition 1 stands still: nothing may go
    redis.apply(update(B, 0, 1, keys=1, at=200 * HOUR))
    for start in range(200, 260, 5):
        redis.apply(update(A, start, start + 5, keys=1, at=start * HOUR))
        redis.read([])
    (row,) = rows(redis, 1)
    assert row is not None
    times = np.frombuffer(row, dtype="<i8").reshape(-1, 4)[:, 0]
    assert len(times) < 150
    assert times[0] >= (200 - 24) * HOUR - 5 * HOUR
    assert set(range(200, 260)) <= set((np.frombuffer(row, dtype="<i8").reshape(-1, 4)[:, 2] - 1_000_000).tolist())


def test_a_loss_that_another_scorer_finds_during_a_read_is_noticed(
    store: Store, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis, other = opened(store), opened(store)
    redis.apply(update(A, 0, 3))
    find = redis._witnesses_script

    def apply_first(**arguments: list[bytes]) -> object:
        with pytest.raises(StateGap, match="lost a row"):
            other.apply(update(A, 3, 4, opens=CONTINUES))  # it had read the row before the loss; now a part is there
        return find(**arguments)

    monkeypatch.setattr(redis, "_witnesses_script", apply_first)
    connect(url).delete(redis.row_prefix + b"0:0")
    with pytest.raises(StateGap, match="another epoch"):
        rows(redis)


def test_an_event_from_a_clock_that_is_ahead_trims_no_row_and_hides_no_loss(store: Store, url: str) -> None:
    redis, now = opened(store), SystemClock().now_ms()
    for source in (A, B):
        redis.apply(update(source, 0, 1, at=now + 365 * DAY))
    redis.read([])
    for start in range(1, 101, 20):
        redis.apply(update(A, start, start + 20, keys=2, at=now - HOUR, opens=BEGINS if start == 1 else OPENS))
        redis.read([])
    row = rows(redis)[1]
    assert row is not None
    assert len(row) == 50 * 32
    connect(url).delete(redis.row_prefix + b"0:1")
    with pytest.raises(StateGap, match="lost a row"):
        rows(redis)


def test_trimming_leaves_a_row_its_last_entry(store: Store) -> None:
    redis = opened(store)
    redis.apply(update(B, 0, 1, keys=1, at=200 * HOUR))
    redis.apply(update(A, 0, 1, keys=1, at=200 * HOUR))
    redis.read([])
    # All of them older than anybody looks back: an empty row would look like a lost one to who has read it before.
    redis.apply(update(A, 1, 40, keys=2, at=HOUR))
    redis.apply(update(A, 40, 42, keys=2, at=HOUR, opens=CONTINUES))
    assert [len(row or b"") // 32 for row in rows(redis, 2)][1] == 2


def test_a_user_who_lacks_a_command_of_an_update_is_not_ready_for_updates(store: Store, url: str) -> None:
    redis = opened(store)
    redis.apply(update(A, 0, 10, keys=1))
    admin = connect(url)
    commands = set(re.findall(r"call\('([A-Z]+)'", scripts.load("apply_rows")))
    assert len(commands) > 5
    password = uuid.uuid4().hex
    limited = connect(url.replace("redis://", f"redis://limited:{password}@"))
    twin = RedisRowStore(limited, "test", [A, B], labels_topic="labels", horizon_ms=24 * HOUR)
    try:
        admin.acl_setuser("limited", enabled=True, passwords=[f"+{password}"], keys=["*"], categories=["+@all"])
        twin.probe_write()
        for command in commands:
            admin.acl_setuser(
                "limited", enabled=True, keys=["*"], commands=[f"-{command.lower()}"], categories=["+@all"]
            )
            with pytest.raises(StateUnavailable):
                twin.probe_write()
    finally:
        admin.acl_deluser("limited")
        limited.close()


def test_an_evicting_redis_is_refused(store: Store, url: str) -> None:
    client = connect(url)
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(UsageError, match="maxmemory-policy allkeys-lru"):
            store().check_eviction_policy()
        # A running scorer does not end: it scores without features until the policy is right.
        with pytest.raises(StateUnavailable, match="maxmemory-policy allkeys-lru"):
            store().probe_write()
    finally:
        client.config_set("maxmemory-policy", "noeviction")
    store().check_eviction_policy()
    store().probe_write()


def test_a_redis_that_is_gone_is_unavailable_not_a_gap() -> None:
    gone = RedisRowStore(connect("redis://127.0.0.1:1/0"), "test", [A], labels_topic="labels", horizon_ms=HOUR)
    with pytest.raises(StateUnavailable):
        gone.open()


def test_after_a_failover_the_next_write_goes_where_the_name_points_by_then(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve, primary = socket.getaddrinfo, 0
    with services("redis") as one, services("redis") as other:
        servers = [connect(str(addresses.redis)) for addresses in (one, other)]
        ports = [server.connection_pool.connection_kwargs["port"] for server in servers]

        def resolved(host: str, port: int, *args: int) -> object:
            return resolve("127.0.0.1", ports[primary], *args) if host == "primary" else resolve(host, port, *args)

        monkeypatch.setattr(socket, "getaddrinfo", resolved)
        client = connect("redis://primary:1/0")
        store = RedisRowStore(client, "test", [A, B], labels_topic="labels", horizon_ms=24 * HOUR)
        # A script, whose error Redis 6 words otherwise, and a command.
        for write in (store.probe_write, store.keep):
            write()
            used, spare = (client.connection_pool.get_connection() for _ in range(2))  # of other threads
            client.connection_pool.release(spare)
            primary = 1 - primary
            servers[primary].replicaof("NO", "ONE")
            servers[1 - primary].replicaof("127.0.0.1", ports[primary])
            with pytest.raises(StateUnavailable, match="read only replica"):
                write()
            used.send_command("PING")  # it is not closed while its thread uses it
            assert used.read_response() == b"PONG"
            client.connection_pool.release(used)
            write()
        client.close()
