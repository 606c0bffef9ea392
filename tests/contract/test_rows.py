"""What every store of marked rows does: in memory and in Redis, in one shard and in several."""

from __future__ import annotations

import numpy as np
import pytest

from stream_scorer.errors import StateGap
from stream_scorer.positions import Span
from stream_scorer.state.redis_rows import MAX_ENTRIES_PER_CALL
from stream_scorer.state.rows import CONTINUES, OPENS, AppliedRowStore, Beginning, Compaction, MemoryRowStore, RowUpdate
from tests.support.row_parts import KEYS, A, B, MemoryRowParts, RedisRowParts, RowParts, both, update

ONE = KEYS[:1]
REAL = pytest.mark.integration


@pytest.fixture(
    params=[
        "memory",
        "memory in shards",
        pytest.param("redis", marks=REAL),
        pytest.param("redis in shards", marks=REAL),
    ]
)
def parts(request: pytest.FixtureRequest) -> RowParts:
    sharded = "shards" in request.param
    if "memory" in request.param:
        return MemoryRowParts(sharded=sharded)
    return RedisRowParts(request.getfixturevalue("redis_client"), sharded=sharded)


@pytest.fixture
def store(parts: RowParts) -> AppliedRowStore:
    return opened(parts)


def opened(parts: RowParts) -> AppliedRowStore:
    store = parts.store()
    if store.open() is None:
        assert store.init({A: 0, B: 0}, {})
    assert store.open() is not None
    return store


def rows(store: AppliedRowStore) -> list[bytes | None]:
    return store.read(KEYS)[0]


def expected(*updates: RowUpdate) -> list[bytes | None]:
    memory = MemoryRowStore()
    for one in updates:
        memory.apply(one)
    return memory.read(KEYS)[0]


class TestOpening:
    def test_rows_that_were_never_begun_do_not_open(self, parts: RowParts) -> None:
        store = parts.store()
        assert store.open() is None
        assert store.epoch == ""

    def test_rows_open_at_the_offsets_they_were_begun_with(self, parts: RowParts) -> None:
        assert (begun := parts.store()).open() is None
        assert begun.init({A: 7, B: 0}, {})
        store = parts.store()
        applied = store.open()
        assert applied is not None
        assert applied.next_offset == {A: 7, B: 0}
        assert applied.watermark == {A: -1, B: -1}
        assert {store.read([])[1].labels_topic, applied.labels_topic} == {"labels"}
        assert applied.complete
        assert store.epoch == begun.epoch != ""

    def test_another_process_opens_at_what_was_applied(self, parts: RowParts, store: AppliedRowStore) -> None:
        store.apply(update(A, 0, 10))
        applied = parts.store().open()
        assert applied is not None
        assert applied.next_offset == {A: 10, B: 0}

    def test_rows_that_nobody_wrote_are_none(self, store: AppliedRowStore) -> None:
        assert rows(store) == [None] * 4

    def test_a_new_epoch_has_another_name_and_no_rows(self, store: AppliedRowStore) -> None:
        before = store.epoch
        store.apply(update(A, 0, 10))
        assert store.open() is not None
        assert store.init({A: 3, B: 0}, {A: 10})
        assert store.epoch not in ("", before)
        found, applied = store.read(KEYS)
        assert found == [None] * 4
        assert applied.next_offset == {A: 3, B: 0}

    def test_a_new_epoch_may_begin_without_opening_again(self, store: AppliedRowStore) -> None:
        store.apply(update(A, 0, 10))
        assert store.init({A: 0, B: 0}, {A: 10})
        assert rows(store) == [None] * 4

    def test_where_the_rows_begin_is_kept_with_the_epoch(self, parts: RowParts) -> None:
        store, later = parts.store(), parts.store()
        store.open()
        assert store.init({A: 3, B: 0}, {}, Beginning(1_000, 50))
        for applied in (store.read([])[1], later.open(), later.read([])[1]):
            assert applied is not None
            assert applied.beginning == Beginning(1_000, 50)
        assert later.init({A: 0, B: 0}, {})
        assert later.read([])[1].beginning == Beginning()
        opened = store.open()
        assert opened is not None
        assert opened.beginning == Beginning()

    def test_a_new_epoch_is_complete_once_it_reaches_where_the_last_one_was(self, store: AppliedRowStore) -> None:
        assert store.init({A: 0, B: 0}, {A: 10})
        store.apply(update(A, 0, 9))
        assert not store.read([])[1].complete
        store.apply(update(A, 9, 10))
        assert store.read([])[1].complete

    def test_of_two_that_begin_an_epoch_one_does(self, parts: RowParts) -> None:
        one, other = parts.store(), parts.store()
        assert one.open() is None and other.open() is None
        assert [one.init({A: 0, B: 0}, {}), other.init({A: 5, B: 5}, {})] == [True, False]
        with pytest.raises(StateGap):
            rows(other)
        applied = other.open()
        assert applied is not None
        assert applied.next_offset == {A: 0, B: 0}
        assert other.epoch == one.epoch

    @pytest.mark.parametrize("doing", ["read", "apply", "init"])
    def test_a_new_epoch_shuts_out_who_still_uses_the_old_one(
        self, parts: RowParts, store: AppliedRowStore, doing: str
    ) -> None:
        store.apply(update(A, 0, 10))
        newer = opened(parts)
        assert newer.init({A: 0, B: 0}, {})
        if doing == "init":
            assert not store.init({A: 0, B: 0}, {})
        else:
            with pytest.raises(StateGap):
                rows(store) if doing == "read" else store.apply(update(A, 10, 20))
        assert rows(newer) == [None] * 4
        assert store.open() is not None

    def test_deleting_old_epochs_leaves_what_is_in_use(self, store: AppliedRowStore) -> None:
        store.apply(update(A, 0, 10))
        assert store.open() is not None
        assert store.init({A: 0, B: 0}, {})
        store.apply(update(A, 0, 6))
        store.delete_old_epochs()
        assert rows(store) == expected(update(A, 0, 6))
        assert store.open() is not None


class TestApplying:
    def test_entries_are_appended_in_order(self, store: AppliedRowStore) -> None:
        parts = [update(A, 0, 10), update(B, 0, 4), update(A, 10, 31)]
        for part in parts:
            store.apply(part)
        assert rows(store) == expected(*parts)

    def test_offsets_and_watermarks_move_with_the_rows(self, store: AppliedRowStore) -> None:
        store.apply(update(A, 0, 10))
        store.apply(update(B, 0, 4, at=7_000))
        applied = store.read(KEYS)[1]
        assert applied.next_offset == {A: 10, B: 4}
        assert applied.watermark == {A: 1_010, B: 7_004}

    def test_a_watermark_never_goes_back(self, store: AppliedRowStore) -> None:
        store.apply(update(A, 0, 10, at=5_000))
        store.apply(update(A, 10, 20, at=1_000))
        assert store.read([])[1].watermark[A] == 5_010

    def test_an_update_without_entries_moves_the_offsets(self, store: AppliedRowStore) -> None:
        nothing = RowUpdate.nothing()
        nothing.spans = [Span(A, 0, 5, 2_000)]
        store.apply(nothing)
        assert rows(store) == [None] * 4
        assert store.read([])[1].next_offset[A] == 5

    def test_rows_come_in_the_order_of_the_keys_asked_for(self, store: AppliedRowStore) -> None:
        store.apply(update(A, 0, 8))
        one, two, three, four = expected(update(A, 0, 8))
        assert store.read([KEYS[3], KEYS[0], b"1:never", KEYS[2]])[0] == [four, one, None, three]
        assert store.read([KEYS[1]])[0] == [two]

    def test_an_update_sent_twice_counts_once(self, store: AppliedRowStore) -> None:
        store.apply(update(A, 0, 10))
        store.apply(update(A, 0, 10))
        assert rows(store) == expected(update(A, 0, 10))
        assert store.read([])[1].next_offset[A] == 10

    def test_of_an_update_that_overlaps_only_the_rest_counts(self, store: AppliedRowStore) -> None:
        store.apply(update(A, 0, 10))
        store.apply(update(A, 4, 17))
        assert rows(store) == expected(update(A, 0, 17))

    def test_an_update_below_the_offsets_changes_nothing(self, store: AppliedRowStore) -> None:
        store.apply(update(A, 0, 10))
        store.apply(update(A, 2, 5))
        assert rows(store) == expected(update(A, 0, 10))
        assert store.read([])[1].next_offset[A] == 10

    def test_two_partitions_overlap_each_by_its_own_offsets(self, store: AppliedRowStore) -> None:
        store.apply(update(A, 0, 10))
        store.apply(update(B, 0, 3))
        store.apply(both(update(A, 6, 14), update(B, 1, 9)))
        assert rows(store) == expected(update(A, 0, 10), update(B, 0, 3), both(update(A, 10, 14), update(B, 3, 9)))
        assert store.read([])[1].next_offset == {A: 14, B: 9}

    def test_a_gap_is_refused_and_changes_nothing(self, store: AppliedRowStore) -> None:
        store.apply(update(A, 0, 10))
        with pytest.raises(StateGap):
            store.apply(update(A, 11, 20))
        assert rows(store) == expected(update(A, 0, 10))
        assert store.read([])[1].next_offset[A] == 10
        store.apply(update(A, 10, 20))  # what was missing may still come

    def test_a_gap_in_one_of_two_partitions_changes_neither(self, store: AppliedRowStore) -> None:
        store.apply(update(A, 0, 10))
        with pytest.raises(StateGap):
            store.apply(both(update(A, 10, 14), update(B, 1, 9)))
        assert rows(store) == expected(update(A, 0, 10))
        assert store.read([])[1].next_offset == {A: 10, B: 0}

    def test_a_large_update_is_applied_whole(self, store: AppliedRowStore) -> None:
        stop = 2 * MAX_ENTRIES_PER_CALL + 7
        store.apply(update(A, 0, stop))
        assert rows(store) == expected(update(A, 0, stop))
        applied = store.read([])[1]
        assert (applied.next_offset[A], applied.watermark[A]) == (stop, 1_000 + stop)

    def test_a_compaction_replaces_the_beginning_of_a_row(self, store: AppliedRowStore) -> None:
        store.apply(update(A, 0, 30, keys=ONE))
        (row,) = store.read(ONE)[0]
        assert row is not None
        part = update(A, 30, 34, keys=ONE)
        part.compactions = {ONE[0]: Compaction(row[: 20 * 32], _header())}
        store.apply(part)
        assert store.read(ONE)[0] == [_header() + row[20 * 32 :] + part.payloads[0]]

    def test_a_compaction_of_a_row_that_has_changed_is_left_out(self, store: AppliedRowStore) -> None:
        store.apply(update(A, 0, 30, keys=ONE))
        (row,) = store.read(ONE)[0]
        assert row is not None
        for start in (30, 34):
            part = update(A, start, start + 4, keys=ONE)
            part.compactions = {ONE[0]: Compaction(row[: 20 * 32], _header())}
            store.apply(part)
        (shorter,) = store.read(ONE)[0]
        assert shorter == _header() + row[20 * 32 :] + update(A, 30, 38, keys=ONE).payloads[0]


def _header() -> bytes:
    """What a compaction puts in place of entries."""
    return np.array([1 << 62, 0, 20, -1], dtype="<i8").tobytes()


class TestLosses:
    @pytest.mark.parametrize("doing", ["read", "apply"])
    @pytest.mark.parametrize("loss", ["everything", "epoch", "applied offset"])
    def test_a_loss_is_noticed(self, parts: RowParts, store: AppliedRowStore, loss: str, doing: str) -> None:
        store.apply(update(A, 0, 10))
        {
            "everything": parts.lose_everything,
            "epoch": parts.lose_epoch,
            "applied offset": lambda: parts.lose_applied_offset(A),
        }[loss]()
        with pytest.raises(StateGap):
            rows(store) if doing == "read" else store.apply(update(A, 10, 20))
        assert store.open() is None

    def test_offsets_that_went_back_are_noticed(self, parts: RowParts, store: AppliedRowStore) -> None:
        store.apply(update(A, 0, 10))
        parts.set_back(A, 3)
        with pytest.raises(StateGap):
            rows(store)

    def test_a_lost_row_is_not_taken_for_one_never_seen(self, parts: RowParts, store: AppliedRowStore) -> None:
        store.apply(update(A, 0, 10))
        assert store.read([b"0:never"])[0] == [None]
        parts.lose_row(KEYS[1])
        assert store.read(KEYS[2:])[0] == expected(update(A, 0, 10))[2:]  # others read as before
        with pytest.raises(StateGap):
            rows(store)
        assert store.open() is None  # the next one to open it starts a new generation
        assert store.init({A: 0, B: 0}, {A: 10})
        store.apply(update(A, 0, 10))
        assert rows(store) == expected(update(A, 0, 10))

    @pytest.mark.parametrize("opens", [CONTINUES, OPENS])
    def test_a_row_lost_between_read_and_update_is_not_begun_anew(
        self, parts: RowParts, store: AppliedRowStore, opens: int
    ) -> None:
        store.apply(update(A, 0, 10))
        parts.lose_row(KEYS[1])
        with pytest.raises(StateGap):
            store.apply(update(A, 10, 20, opens=opens))
        assert store.open() is None

    def test_of_two_that_begin_a_row_the_second_notices_its_loss(self, parts: RowParts, store: AppliedRowStore) -> None:
        store.apply(update(A, 0, 10))
        store.apply(update(B, 0, 10))
        parts.lose_row(KEYS[1])
        with pytest.raises(StateGap):
            store.apply(update(B, 10, 20))
        assert store.open() is None
