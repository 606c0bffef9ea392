"""What every store of marked counters does: in memory and in Redis."""

from __future__ import annotations

import time
from typing import Any

import pytest

from stream_scorer.errors import StateGap
from stream_scorer.state.counters import Batch, CounterReply, CounterStore
from tests.support.counters import MemoryCounterServer, MemoryCounterStore

Store = CounterStore | MemoryCounterStore


class MemoryParts:
    """Counters in memory."""

    def __init__(self) -> None:
        self._now = 0
        self._server = MemoryCounterServer(lambda: self._now)

    def store(self) -> Store:
        return MemoryCounterStore(self._server)

    def lose_head(self) -> None:
        self._server.lose_head()

    def wait(self, ms: int) -> None:
        self._now += ms


class RedisParts:
    """Counters in Redis, whose data is deleted first."""

    def __init__(self, client: Any) -> None:
        self._client = client
        client.flushdb()

    def store(self) -> Store:
        return CounterStore(self._client, "test", ttl_s=60)

    def lose_head(self) -> None:
        self._client.delete("{test}:head")

    def wait(self, ms: int) -> None:
        time.sleep(ms / 1_000)


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.integration)])
def parts(request: pytest.FixtureRequest) -> MemoryParts | RedisParts:
    return MemoryParts() if request.param == "memory" else RedisParts(request.getfixturevalue("redis_client"))


@pytest.fixture
def store(parts: MemoryParts | RedisParts) -> Store:
    store = parts.store()
    store.open("e1", {"t:0": 10})
    return store


def batch(start: int, end: int, amount: int = 1, *, window: int = 7, label: str = "x", source: str = "t:0") -> Batch:
    cells = {(window, label): {"n": amount, "d": -amount}}
    return Batch(source, start, end, cells, {"pane:0": end}, ("close",))


def test_a_new_namespace_begins_an_epoch_at_the_first_offsets(parts: MemoryParts | RedisParts) -> None:
    head = parts.store().open("e1", {"t:0": 10, "t:1": 0})
    assert (head.epoch, head.applied, head.maxima) == ("e1", {"t:0": 10, "t:1": 0}, {})


def test_an_epoch_that_is_there_stays_and_unknown_sources_are_added(
    parts: MemoryParts | RedisParts, store: Store
) -> None:
    store.apply(batch(10, 20))
    head = parts.store().open("e2", {"t:0": 0, "t:1": 4})
    assert (head.epoch, head.applied) == ("e1", {"t:0": 20, "t:1": 4})


def test_counts_offset_and_maxima_move_together(store: Store) -> None:
    assert store.apply(batch(10, 15, 3)) == CounterReply("applied", 15)
    head = store.head()
    assert (head.applied, head.maxima) == ({"t:0": 15}, {"pane:0": 15})
    assert store.read([7]) == {(7, "x"): {"n": 3, "d": -3}}


def test_a_batch_sent_twice_counts_once(store: Store) -> None:
    store.apply(batch(10, 15))
    assert store.apply(batch(10, 15)) == CounterReply("done", 15)
    assert store.apply(batch(11, 13)) == CounterReply("done", 15)
    assert store.read([7]) == {(7, "x"): {"n": 1, "d": -1}}
    assert store.changed() == {7: 1}


@pytest.mark.parametrize(("start", "status"), [(16, "gap"), (12, "trim")])
def test_a_batch_that_does_not_follow_changes_nothing(store: Store, start: int, status: str) -> None:
    store.apply(batch(10, 15))
    before = store.head(), store.read([7]), store.changed()
    assert store.apply(batch(start, 20, 9)) == CounterReply(status, 15)  # type: ignore[arg-type]
    assert (store.head(), store.read([7]), store.changed()) == before


def test_counts_add_up_over_batches_and_sources(parts: MemoryParts | RedisParts, store: Store) -> None:
    other = parts.store()
    other.open("e2", {"t:1": 0})
    store.apply(batch(10, 15, 2))
    other.apply(batch(0, 5, 3, source="t:1"))
    store.apply(batch(15, 16, 4))
    assert store.read([7]) == other.read([7]) == {(7, "x"): {"n": 9, "d": -9}}


def test_cells_are_apart_by_window_and_label(store: Store) -> None:
    store.apply(batch(10, 11, 1))
    store.apply(batch(11, 12, 2, window=8))
    store.apply(batch(12, 13, 3, label="y"))
    assert store.read([7]) == {(7, "x"): {"n": 1, "d": -1}, (7, "y"): {"n": 3, "d": -3}}
    assert store.read([8, 9]) == {(8, "x"): {"n": 2, "d": -2}}
    assert store.read([]) == {}


def test_maxima_only_rise(store: Store) -> None:
    store.raise_maximum("clock", 50)
    store.raise_maximum("clock", 40)
    store.raise_maximum("pane:0", 30)
    store.apply(batch(10, 15))
    assert store.head().maxima == {"clock": 50, "pane:0": 30}
    store.apply(batch(15, 60))
    assert store.head().maxima == {"clock": 50, "pane:0": 60}


def test_a_window_stays_changed_until_its_last_change_is_settled(store: Store) -> None:
    store.apply(batch(10, 11))
    store.apply(batch(11, 12))
    assert store.changed() == {7: 2}
    store.settle(7, 1)
    assert store.changed() == {7: 2}
    store.settle(7, 2)
    assert store.changed() == {}
    store.apply(batch(12, 13))
    assert store.changed() == {7: 1}


def test_a_window_comes_due_once(store: Store) -> None:
    store.apply(batch(10, 11))
    store.settle(7, 1)
    assert [store.come_due("close", 6), store.changed()] == [0, {}]
    assert [store.come_due("other", 7), store.changed()] == [0, {}]
    assert [store.come_due("close", 7), store.changed()] == [1, {7: 1}]
    assert [store.come_due("close", 7), store.changed()] == [0, {7: 1}]


def test_a_window_without_counts_can_come_due(store: Store) -> None:
    store.apply(batch(10, 11))
    for window in (7, 8, 8):
        store.add_due("close", window)
    assert store.changed() == {7: 1}
    assert [store.come_due("close", 7), store.changed()] == [1, {7: 2}]
    assert [store.come_due("close", 8), store.changed()] == [1, {7: 2, 8: 1}]
    assert store.read([8]) == {}


def test_several_windows_come_due_together(store: Store) -> None:
    for place, window in enumerate((3, 5, 9)):
        store.apply(batch(10 + place, 11 + place, window=window))
    assert store.come_due("close", 5) == 2
    assert store.changed() == {3: 2, 5: 2, 9: 1}


def test_revisions_count_for_each_window(parts: MemoryParts | RedisParts, store: Store) -> None:
    again = parts.store()
    again.open("e2", {})
    assert [store.next_revision("7+1"), again.next_revision("7+1"), store.next_revision("8+1")] == [1, 2, 1]
    now_ms = 1_700_000_000_000
    assert [store.next_revision("7+1", above) for above in (2, now_ms, now_ms, 9)] == [
        3,
        *range(now_ms + 1, now_ms + 4),
    ]


def test_a_window_whose_counts_are_lost_gets_no_revision(parts: MemoryParts | RedisParts, store: Store) -> None:
    """It would be below those that were published."""
    assert store.next_revision("7+1", 100) == 101
    parts.lose_head()
    with pytest.raises(StateGap):
        store.next_revision("7+1", 100)
    parts.store().open("e2", {})
    with pytest.raises(StateGap):
        store.next_revision("7+1", 100)


def test_one_leads_until_its_time_is_over(parts: MemoryParts | RedisParts, store: Store) -> None:
    assert [store.lead("a", 50), store.lead("b", 50), store.lead("a", 50)] == [True, False, True]
    parts.wait(60)
    assert [store.lead("b", 5_000), store.lead("a", 50)] == [True, False]


def test_offsets_can_be_skipped(store: Store) -> None:
    assert store.skip_to("t:0", 30) == 30
    assert store.skip_to("t:0", 20) == 30  # another worker has counted up to 30 since the caller read the offset
    assert store.apply(batch(10, 20)) == CounterReply("done", 30)
    assert store.apply(batch(30, 31)) == CounterReply("applied", 31)


def test_counts_of_a_topic_that_was_recreated_are_lost(parts: MemoryParts | RedisParts, store: Store) -> None:
    assert store.bind({"t": "id", "u": "id"})  # as after an upgrade: the ids were not stored before
    assert store.bind({"t": "id", "u": "id"})
    store.apply(batch(10, 20))
    again = parts.store()
    assert not again.bind({"t": "id", "u": "other"})
    head = again.open("e2", {"t:0": 3})
    assert (head.epoch, head.applied, head.maxima) == ("e2", {"t:0": 3}, {})
    assert again.bind({"t": "id", "u": "other"})
    assert again.head() == head


def test_a_store_does_not_open_the_counts_of_others(parts: MemoryParts | RedisParts, store: Store) -> None:
    """Of two monitors with different settings, the one that was bound first counts nothing into those of the other."""
    other = parts.store()
    store.bind({"t": "id", "monitor.pane": "60000"})
    store.open("e1", {"t:0": 0})
    assert not other.bind({"t": "id", "monitor.pane": "3600000"})
    other.open("e2", {"t:0": 0})
    with pytest.raises(StateGap):
        store.apply(batch(0, 5))
    with pytest.raises(StateGap, match=r"monitor\.pane"):
        store.open("e3", {"t:0": 0})
    assert not store.bind({"t": "id", "monitor.pane": "60000"})
    assert store.open("e3", {"t:0": 0}).epoch == "e3"


@pytest.mark.parametrize("source", ["t:0", "t:9"])
def test_nothing_counts_without_an_offset(parts: MemoryParts | RedisParts, store: Store, source: str) -> None:
    if source == "t:0":
        parts.lose_head()
    with pytest.raises(StateGap):
        store.apply(batch(10, 11, source=source))
    assert store.read([7]) == {}


def test_kept_bytes_are_of_their_epoch(parts: MemoryParts | RedisParts, store: Store) -> None:
    assert store.kept("a") is None
    store.keep("a", b"\x00first")
    store.keep("a", b"\x00second")
    assert parts.store().kept("a") is None  # before it opens an epoch
    other = parts.store()
    other.open("e2", {"t:0": 0})
    assert other.kept("a") == b"\x00second"
    parts.lose_head()
    other.open("e3", {"t:0": 0})
    assert other.kept("a") is None


def test_after_a_loss_nothing_that_is_left_mixes_in(parts: MemoryParts | RedisParts, store: Store) -> None:
    store.apply(batch(10, 20, 5))
    parts.lose_head()
    again = parts.store()
    assert again.open("e2", {"t:0": 0}).epoch == "e2"
    with pytest.raises(StateGap):
        store.apply(batch(20, 25))  # this one still writes to the epoch before
    assert again.read([7]) == {}
    assert again.changed() == {}
    assert again.apply(batch(0, 5)) == CounterReply("applied", 5)
    assert again.read([7]) == {(7, "x"): {"n": 1, "d": -1}}
