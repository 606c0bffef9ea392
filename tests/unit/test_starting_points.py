"""Where a scorer starts reading, while another one is still at work on its partitions."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from stream_scorer.errors import LogTruncated, OffsetsBehind, StartPending, StateUnavailable, UsageError
from stream_scorer.pipeline import starting_points as module
from stream_scorer.pipeline.availability import State
from stream_scorer.pipeline.starting_points import StartPolicy, find_beginning, starting_points
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.serde.raw import RawRecords
from stream_scorer.spec import parse_spec
from stream_scorer.state.rows import Beginning, RowUpdate
from tests.support.failpoints import Failpoints
from tests.support.rows import MemoryAppliedRows, MemoryServer

SOURCE = SourcePartition("transactions", 0)
NOW, DAY_MS = 1_736_157_600_000, 86_400_000
CHECKED = parse_spec("""
name: small
version: 1
transaction:
  id: id
  time: at
  value: amount
  fields: {id: {type: string}, at: {type: time}, amount: {type: integer}, who: {type: string}}
entities: {who: {field: who}}
partition_entity: who
views: [{name: who, entity: who, windows: [10ms], aggregates: [count]}]
policy: {version: p, review: 0.5, block: 0.9}
""")


class _Group:
    """A reader whose group has another member: it commits and applies two records after every call."""

    def __init__(self, server: MemoryServer, offset: int) -> None:
        self.offset = offset
        self._other = MemoryAppliedRows(server, [SOURCE], Failpoints(), per_call=10)
        assert self._other.open() is not None

    def committed(self, partitions: list[SourcePartition]) -> dict[SourcePartition, int | None]:
        answer = self.offset
        self.score_two()
        return dict.fromkeys(partitions, answer)

    def score_two(self) -> None:
        self.offset += 2
        update = RowUpdate.nothing()
        update.spans = [Span(SOURCE, self.offset - 2, self.offset, 0)]
        self._other.apply(update)

    def offset_bounds(self, source: SourcePartition) -> tuple[int, int]:
        return 0, 100


class _Store(MemoryAppliedRows):
    group: _Group

    def open(self):  # type: ignore[no-untyped-def]
        applied = super().open()
        self.group.score_two()
        return applied


def _begun(applied: int) -> MemoryServer:
    server = MemoryServer()
    store = MemoryAppliedRows(server, [SOURCE], Failpoints(), per_call=10)
    store.open()
    store.init({SOURCE: applied}, {})
    return server


def test_what_another_scorer_does_meanwhile_is_caught_up_and_not_taken_for_a_rewound_group() -> None:
    server = _begun(10)
    store = _Store(server, [SOURCE], Failpoints(), per_call=10)
    store.group = _Group(server, 10)
    points = starting_points(store.group, store, [SOURCE], [SOURCE], "earliest")  # type: ignore[arg-type]
    assert (points.read_from, points.score_from) == ({SOURCE: 10}, {SOURCE: 12})


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEHIND_S", 0.05)
    monkeypatch.setattr(module, "LOOK_UP_EVERY_S", 0.001)


def _with_records() -> MemoryAppliedRows:
    """Rows that have the records up to offset 10."""
    store = MemoryAppliedRows(_begun(8), [SOURCE], Failpoints(), per_call=10)
    assert store.open() is not None
    update = RowUpdate.nothing()
    update.spans = [Span(SOURCE, 8, 10, NOW)]
    store.apply(update)
    return store


class _Loading:
    """A reader whose broker has just started: it reports these offsets in turn, and the last one from then on."""

    def __init__(self, *answers: int | None) -> None:
        self._answers = list(answers)
        self.commits: list[dict[SourcePartition, int]] = []

    def committed(self, partitions: list[SourcePartition]) -> dict[SourcePartition, int | None]:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return dict.fromkeys(partitions, answer)

    def offset_bounds(self, source: SourcePartition) -> tuple[int, int]:
        return 0, 100

    def commit(self, offsets: dict[SourcePartition, int]) -> None:
        self.commits.append(offsets)


@pytest.mark.parametrize("start", ["earliest", "latest"])
@pytest.mark.parametrize("answers", [(3, 7, 12), (None, None, 12)])
def test_a_broker_that_loads_its_offsets_is_asked_again(answers: tuple[int | None, ...], start: StartPolicy) -> None:
    store = _with_records()
    reader = _Loading(*answers)
    points = starting_points(reader, store, [SOURCE], [SOURCE], start)  # type: ignore[arg-type]
    assert (points.read_from, points.score_from, reader.commits) == ({SOURCE: 10}, {SOURCE: 12}, [])
    # Without features, only the commits of this process show it.
    reader = _Loading(*answers)
    points = starting_points(reader, None, [SOURCE], [SOURCE], start, scored={SOURCE: 11})  # type: ignore[arg-type]
    assert (points.score_from, reader.commits) == ({SOURCE: 12}, [])


@pytest.mark.parametrize("start", ["earliest", "latest"])
@pytest.mark.parametrize("answer", [3, None])
def test_nothing_is_scored_or_committed_from_old_offsets(answer: int | None, start: StartPolicy) -> None:
    for store in (None, _with_records()):
        reader = _Loading(answer)
        with pytest.raises(OffsetsBehind, match=r"transactions\[0\] than before"):
            starting_points(reader, store, [SOURCE], [SOURCE], start, scored={SOURCE: 11})  # type: ignore[arg-type]
        assert not reader.commits
    reader = _Loading(answer)
    store = _with_records()
    with pytest.raises(UsageError, match="features"):
        starting_points(reader, store, [SOURCE], [SOURCE], start)  # type: ignore[arg-type]
    assert not reader.commits


def test_a_new_group_begins_at_once_although_another_scorer_has_begun_its_rows() -> None:
    store = MemoryAppliedRows(_begun(0), [SOURCE], Failpoints(), per_call=10)
    reader = _Loading(None)
    points = starting_points(reader, store, [SOURCE], [SOURCE], "latest")  # type: ignore[arg-type]
    assert (points.score_from, reader.commits) == ({SOURCE: 100}, [{SOURCE: 100}])


class _Alone:
    """A reader whose group has committed nothing else."""

    def committed(self, partitions: list[SourcePartition]) -> dict[SourcePartition, int | None]:
        return dict.fromkeys(partitions, 5)

    def offset_bounds(self, source: SourcePartition) -> tuple[int, int]:
        return 2, 100


def test_a_partition_added_at_run_time_is_refused() -> None:
    added = SourcePartition("transactions", 1)
    store = MemoryAppliedRows(_begun(5), [SOURCE], Failpoints(), per_call=10)
    with pytest.raises(UsageError, match=r"transactions\[1\] was added"):
        starting_points(_Alone(), store, [SOURCE, added], [SOURCE], "earliest")  # type: ignore[arg-type]


class _Log:
    """Each topic has two partitions; their first records were deleted below `low`. `written`: Kafka's timestamps."""

    def __init__(
        self, low: dict[SourcePartition, int], high: int = 4, written: int = NOW, keeps_ms: int | None = None
    ) -> None:
        self._low, self._high, self._written, self._keeps_ms = low, high, written, keeps_ms

    def retention_ms(self, topic: str) -> int | None:
        return self._keeps_ms

    def bounds(self, topic: str) -> dict[SourcePartition, tuple[int, int]]:
        return {SourcePartition(topic, p): (self._low.get(SourcePartition(topic, p), 0), self._high) for p in range(2)}

    def read(self, source: SourcePartition, start: int, stop: int) -> Iterator[RawRecords]:
        for offset in range(start, stop):
            at = NOW + 1_000 * source.partition + offset
            label = {"event_id": "e", "event_time": NOW, "label": "fraud", "labelled_at": at, "source": "analyst"}
            value = {"id": "e", "at": at, "amount": 1, "who": "x"} if source.topic == "t" else label
            yield RawRecords(
                source.topic, np.zeros(1, np.int32), np.array([offset]), np.array([self._written]), [b""],
                [b"{" if offset == start else json.dumps(value).encode()], [None],
            )  # fmt: skip

    def close(self) -> None: ...


def test_a_log_that_still_has_everything_has_no_beginning() -> None:
    assert find_beginning(_Log({}), "t", "l", CHECKED) == Beginning()


def test_a_log_that_lost_records_begins_with_the_latest_first_record_that_can_be_decoded() -> None:
    low = {SourcePartition("t", 0): 2, SourcePartition("t", 1): 1, SourcePartition("l", 0): 1}
    assert find_beginning(_Log(low), "t", "l", CHECKED) == Beginning(NOW + 1_002, NOW + 2)


def test_what_was_uploaded_late_does_not_tell_when_the_deleted_records_were_written() -> None:
    log = _Log({SourcePartition("t", 0): 2, SourcePartition("l", 0): 1}, written=NOW + 300 * DAY_MS)
    assert find_beginning(log, "t", "l", CHECKED) == Beginning(NOW + 300 * DAY_MS, NOW + 300 * DAY_MS)


@pytest.mark.parametrize(("keeps_ms", "back_ms"), [(None, 0), (30 * DAY_MS, 30 * DAY_MS - 300_000), (1, 0)])
def test_a_partition_of_which_nothing_is_left_begins_where_retention_may_have_deleted(
    keeps_ms: int | None, back_ms: int
) -> None:
    beginning = find_beginning(_Log({SourcePartition("t", 0): 4}, keeps_ms=keeps_ms), "t", "l", CHECKED)
    assert abs(time.time() * 1e3 - back_ms - beginning.transactions) < 60_000


def test_rows_that_are_begun_anew_keep_where_the_log_begins() -> None:
    server = MemoryServer()
    store = MemoryAppliedRows(server, [SOURCE], Failpoints(), per_call=10)
    starting_points(_Alone(), store, [SOURCE], [SOURCE], "earliest", find_beginning=lambda: Beginning(7, 0))  # type: ignore[arg-type]
    applied = store.open()
    assert applied is not None
    assert applied.beginning == Beginning(7, 0)


@pytest.mark.parametrize("target", [0, 5])
def test_rows_that_lack_deleted_records_are_begun_anew_from_what_is_left(target: int) -> None:
    server = MemoryServer()
    store = MemoryAppliedRows(server, [SOURCE], Failpoints(), per_call=10)
    store.open()
    store.init({SOURCE: 0}, {SOURCE: target})  # behind, or being rebuilt; by now the log begins at 2
    log: dict[str, Any] = {"reader": _Alone(), "find_beginning": lambda: Beginning(7, 0)}
    points = starting_points(store=store, sources=[SOURCE], inputs=[SOURCE], start="earliest", **log)
    assert (points.state, points.score_from) == (State.REBUILDING, {SOURCE: 5})
    applied = store.open()
    assert applied is not None
    assert (applied.next_offset, applied.target, applied.beginning) == ({SOURCE: 2}, {SOURCE: 5}, Beginning(7, 0))


OTHER, THIRD = SourcePartition("transactions", 1), SourcePartition("transactions", 2)
ALL = [SOURCE, OTHER, THIRD]


class _Group3(_Alone):
    """A reader of three partitions that owns the first one. It reports these offsets of the others in turn."""

    def __init__(self, *answers: tuple[int | None, int | None]) -> None:
        self._answers = list(answers)

    def committed(self, partitions: list[SourcePartition]) -> dict[SourcePartition, int | None]:
        if len(partitions) == 1:
            return {SOURCE: 5}
        others = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return dict(zip(ALL, (5, *others), strict=True))


@pytest.mark.parametrize(
    ("answers", "applied", "wanted"),
    [
        ([(3, 1), (8, 20)], None, 20),  # an old offset of the one, and so of the other
        ([(8, None), (8, 20)], None, 20),
        ([(8, None)], None, 0),  # no scorer has begun it
        ([(8, 1)], 7, 7),  # the rows before reached further
        ([(8, None)], 7, 7),
    ],
)
def test_a_rebuild_is_not_complete_before_it_holds_what_other_scorers_had_committed(
    answers: list[tuple[int | None, int | None]], applied: int | None, wanted: int
) -> None:
    server = MemoryServer()
    store = MemoryAppliedRows(server, ALL, Failpoints(), per_call=10)
    if applied is not None:  # the rows lack a record that is deleted
        store.open()
        store.init({SOURCE: 0, OTHER: 8, THIRD: applied}, {})
    log: dict[str, Any] = {"sources": [SOURCE], "inputs": ALL, "start": "earliest", "scored": {OTHER: 8}}
    starting_points(_Group3(*answers), store, **log)  # type: ignore[arg-type]
    begun = store.open()
    assert begun is not None
    assert begun.target == {SOURCE: 5, OTHER: 8, THIRD: wanted}


def test_no_rebuild_begins_while_the_broker_reports_an_offset_that_was_higher_before() -> None:
    store = MemoryAppliedRows(MemoryServer(), ALL, Failpoints(), per_call=10)
    with pytest.raises(OffsetsBehind, match=r"transactions\[1\] than before"):
        starting_points(_Group3((3, 1)), store, [SOURCE], ALL, "earliest", scored={OTHER: 8})  # type: ignore[arg-type]
    assert store.open() is None


class _Truncated(_Loading):
    """A reader whose group has committed offset 12 of a partition that ends at these offsets in turn."""

    def __init__(self, *ends: int) -> None:
        super().__init__(12)
        self._ends = list(ends)

    def offset_bounds(self, source: SourcePartition) -> tuple[int, int]:
        return 0, self._ends.pop(0) if len(self._ends) > 1 else self._ends[0]


@pytest.mark.parametrize("with_rows", [True, False])
def test_a_group_that_has_read_beyond_the_end_of_the_log_is_not_scored(with_rows: bool) -> None:
    log: dict[str, Any] = {"sources": [SOURCE], "inputs": [SOURCE], "start": "earliest"}
    with pytest.raises(LogTruncated, match=r"transactions\[0\] ends at the offset 9, and the group had read up to 12"):
        starting_points(_Truncated(9), _with_records() if with_rows else None, **log)  # type: ignore[arg-type]
    # A leader that has just been elected may report an end that is too low.
    points = starting_points(_Truncated(9, 9, 12), _with_records() if with_rows else None, **log)  # type: ignore[arg-type]
    assert points.score_from == {SOURCE: 12}


class _Expired(_Alone):
    """A reader of a group whose offsets the broker has deleted."""

    def committed(self, partitions: list[SourcePartition]) -> dict[SourcePartition, int | None]:
        return dict.fromkeys(partitions)

    def commit(self, offsets: dict[SourcePartition, int]) -> None:
        self.begun = offsets


@pytest.mark.parametrize("start", ["earliest", "latest"])
def test_a_group_whose_offsets_have_expired_neither_skips_records_nor_scores_them_again(start: StartPolicy) -> None:
    server = _begun(0)
    store, group = MemoryAppliedRows(server, [SOURCE], Failpoints(), per_call=10), _Expired()
    log: dict[str, Any] = {"reader": group, "sources": [SOURCE], "inputs": [SOURCE], "start": start}
    starting_points(store=store, **log)  # another scorer has begun the rows, but none has scored this partition
    assert group.begun == {SOURCE: 2 if start == "earliest" else 100}
    update = RowUpdate.nothing()
    update.spans = [Span(SOURCE, 0, 5, NOW)]
    store.apply(update)
    with pytest.raises(UsageError, match=r"no longer has an offset of transactions\[0\], and features reach 5"):
        starting_points(store=store, **log)


class _Cut(_Loading):
    """A reader whose log has only the offsets from 20 on. The group returns the last commit."""

    def committed(self, partitions: list[SourcePartition]) -> dict[SourcePartition, int | None]:
        return self.commits[-1] if self.commits else super().committed(partitions)  # type: ignore[return-value]

    def offset_bounds(self, source: SourcePartition) -> tuple[int, int]:
        return 20, 20


def test_a_group_goes_on_from_the_first_offset_that_retention_has_left(caplog: pytest.LogCaptureFixture) -> None:
    reader, store = _Cut(10), _with_records()
    log: dict[str, Any] = {"sources": [SOURCE], "inputs": [SOURCE], "start": "earliest"}
    # Offset 10 may have been a marker, or a record that features lack, so the features start again.
    points = starting_points(reader, store, find_beginning=lambda: Beginning(7, 0), **log)  # type: ignore[arg-type]
    assert (points.read_from, points.score_from, reader.commits) == ({SOURCE: 20}, {SOURCE: 20}, [{SOURCE: 20}])
    applied = store.open()
    assert applied is not None
    assert (applied.next_offset, applied.beginning) == ({SOURCE: 20}, Beginning(7, 0))
    assert "transactions[0] no longer has the offset 10, which the group reads next; its first one is 20" in caplog.text
    # It is repaired for good, and without features nothing else is compared.
    caplog.clear()
    assert starting_points(reader, store, **log).read_from == {SOURCE: 20}  # type: ignore[arg-type]
    assert not caplog.text
    assert starting_points(_Cut(10), None, **log).score_from == {SOURCE: 20}  # type: ignore[arg-type]


class _Recreated(_Loading):
    """A reader of a group whose topic of labels was created again: the broker has deleted its offset with the topic."""

    def committed(self, partitions: list[SourcePartition]) -> dict[SourcePartition, int | None]:
        known = {SOURCE: 60} | (self.commits[-1] if self.commits else {})
        return {source: known.get(source) for source in partitions}


def test_a_redis_that_cannot_be_used_leaves_the_scorer_without_features() -> None:
    server = _begun(10)

    def refuse() -> None:
        raise StateUnavailable("Redis runs with maxmemory-policy allkeys-lru")

    server.on_probe = refuse
    store = MemoryAppliedRows(server, [SOURCE], Failpoints(), per_call=10)
    points = starting_points(_Loading(12), store, [SOURCE], [SOURCE], "earliest")  # type: ignore[arg-type]
    assert (points.state, points.score_from) == (State.DEGRADED, {SOURCE: 12})
    assert "allkeys-lru" in points.why


LABELS, NEW, NEW_LABELS = SourcePartition("labels", 0), SourcePartition("transactions", 1), SourcePartition("labels", 1)
KNOWN, ADDED = [SOURCE, LABELS], [NEW, NEW_LABELS]


class _SharedGroup:
    """A reader of a group that several scorers of a test share. `commits` are their calls."""

    def __init__(self, offsets: dict[SourcePartition, int], ends: dict[SourcePartition, int]) -> None:
        self.offsets, self.ends = dict(offsets), dict(ends)
        self.commits: list[dict[SourcePartition, int]] = []

    def committed(self, partitions: list[SourcePartition]) -> dict[SourcePartition, int | None]:
        return {source: self.offsets.get(source) for source in partitions}

    def offset_bounds(self, source: SourcePartition) -> tuple[int, int]:
        return 0, self.ends[source]

    def commit(self, offsets: dict[SourcePartition, int]) -> None:
        self.commits.append(dict(offsets))
        self.offsets |= offsets


def _scored_group(server: MemoryServer) -> _SharedGroup:
    """A group that has scored 60 transactions and 5 labels of one partition each; each topic has another one by now."""
    store = MemoryAppliedRows(server, KNOWN, Failpoints(), per_call=10)
    store.open()
    store.init(dict.fromkeys(KNOWN, 0), {})
    update = RowUpdate.nothing()
    update.spans = [Span(SOURCE, 0, 60, NOW), Span(LABELS, 0, 5, -1)]
    store.apply(update)
    return _SharedGroup({SOURCE: 60, LABELS: 5}, {SOURCE: 60, LABELS: 5, NEW: 500, NEW_LABELS: 7})


@pytest.mark.parametrize("start", ["earliest", "latest"])
@pytest.mark.parametrize("owned", [KNOWN + ADDED, ADDED])
@pytest.mark.parametrize("with_rows", [True, False])
def test_partitions_that_were_added_are_scored_from_their_beginning(
    start: StartPolicy, owned: list[SourcePartition], with_rows: bool
) -> None:
    server = MemoryServer()
    group = _scored_group(server)
    store = MemoryAppliedRows(server, KNOWN + ADDED, Failpoints(), per_call=10) if with_rows else None
    points = starting_points(group, store, owned, KNOWN + ADDED, start)  # type: ignore[arg-type]
    assert {points.score_from[source] for source in ADDED} == {0}
    assert group.commits == [dict.fromkeys(ADDED, 0)]
    if store is not None:  # features are rebuilt, also if this scorer owns nothing that was scored before
        applied = store.open()
        assert points.state is State.REBUILDING
        assert applied is not None
        assert applied.target == {SOURCE: 60, LABELS: 5, NEW: 0, NEW_LABELS: 0}


def test_an_added_partition_whose_rows_another_scorer_has_begun_is_scored_from_its_beginning() -> None:
    server = MemoryServer()
    group = _scored_group(server)
    for owned in (KNOWN, ADDED):
        store = MemoryAppliedRows(server, KNOWN + ADDED, Failpoints(), per_call=10)
        starting_points(group, store, owned, KNOWN + ADDED, "latest")  # type: ignore[arg-type]
    assert group.commits == [dict.fromkeys(ADDED, 0)]


@pytest.mark.parametrize("start", ["earliest", "latest"])
def test_a_partition_that_is_refused_gets_no_offset(start: StartPolicy) -> None:
    server = MemoryServer()
    group = _scored_group(server)
    store = MemoryAppliedRows(server, KNOWN, Failpoints(), per_call=10)
    with pytest.raises(UsageError, match=r"transactions\[1\] was added"):
        starting_points(group, store, KNOWN + ADDED, KNOWN, start)  # type: ignore[arg-type]
    assert not group.commits


@pytest.mark.parametrize("with_rows", [True, False])
def test_one_scorer_commits_where_a_new_group_begins_and_the_others_wait_for_it(with_rows: bool) -> None:
    """With "latest", the offset of one scorer must not make the partitions of another one look added."""
    server, every = MemoryServer(), KNOWN + ADDED
    group = _SharedGroup({}, {SOURCE: 100, LABELS: 3, NEW: 200, NEW_LABELS: 4})

    def begin(owned: list[SourcePartition]) -> Any:
        store = MemoryAppliedRows(server, every, Failpoints(), per_call=10) if with_rows else None
        return starting_points(group, store, owned, every, "latest")  # type: ignore[arg-type]

    with pytest.raises(StartPending, match=r"labels\[0\]"):
        begin(ADDED)
    assert not group.commits
    assert begin(KNOWN).score_from == {SOURCE: 100, LABELS: 3}
    assert group.commits == [{SOURCE: 100, LABELS: 3, NEW: 200, NEW_LABELS: 4}]
    group.ends = dict.fromkeys(every, 1_000)
    points = begin(ADDED)
    assert (points.score_from, len(group.commits)) == ({NEW: 200, NEW_LABELS: 4}, 1)
    assert points.state is State.READY  # nothing was lost


class _CommitsBetween(_SharedGroup):
    """Another scorer begins the rows and commits between our look at the rows and our look-up of offsets."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__({}, dict.fromkeys(KNOWN + ADDED, 50))
        self.server = server

    def committed(self, partitions: list[SourcePartition]) -> dict[SourcePartition, int | None]:
        if not self.offsets:
            other = MemoryAppliedRows(self.server, KNOWN + ADDED, Failpoints(), per_call=10)
            other.open()
            other.init(self.ends, {})
            self.commit(self.ends)
        return super().committed(partitions)


class _CommitsDuringLookUp(_SharedGroup):
    """Another scorer commits after our look-up of our own partitions, and before that of the others."""

    def offset_bounds(self, source: SourcePartition) -> tuple[int, int]:
        if not self.offsets:
            self.commit(dict.fromkeys(KNOWN + ADDED, 50))
            self.ends = dict.fromkeys(KNOWN + ADDED, 70)
        return super().offset_bounds(source)


@pytest.mark.parametrize("rows", ["begun", "away", "none"])
def test_an_answer_from_before_the_commit_of_another_scorer_is_not_trusted(
    rows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, every = MemoryServer(), KNOWN + ADDED
    store = None if rows == "none" else MemoryAppliedRows(server, every, Failpoints(), per_call=10)
    if store is not None:
        store.open()
        store.init(dict.fromkeys(every, 50), {})
    if rows == "away":
        monkeypatch.setattr(store, "open", lambda: (_ for _ in ()).throw(StateUnavailable("away")))
    group = _CommitsDuringLookUp({}, dict.fromkeys(every, 50))
    points = starting_points(group, store, ADDED, every, "latest")  # type: ignore[arg-type]
    assert points.score_from == dict.fromkeys(ADDED, 50)
    assert len(group.commits) == 1


def test_rows_that_another_scorer_begins_meanwhile_are_not_taken_for_lost(caplog: pytest.LogCaptureFixture) -> None:
    server = MemoryServer()
    store = MemoryAppliedRows(server, KNOWN + ADDED, Failpoints(), per_call=10)
    points = starting_points(_CommitsBetween(server), store, ADDED, KNOWN + ADDED, "latest")  # type: ignore[arg-type]
    assert (points.score_from, points.state) == (dict.fromkeys(ADDED, 50), State.READY)
    assert "lost" not in caplog.text


@pytest.mark.parametrize("start", ["earliest", "latest"])
def test_a_scorer_whose_partitions_have_brought_nothing_notices_that_the_offsets_of_the_group_expired(
    start: StartPolicy,
) -> None:
    server = MemoryServer()
    group = _scored_group(server)
    group.offsets.clear()
    store = MemoryAppliedRows(server, KNOWN, Failpoints(), per_call=10)
    with pytest.raises(UsageError, match=r"no longer has an offset of transactions\[0\], and features reach 60"):
        starting_points(group, store, [LABELS], KNOWN, start)  # type: ignore[arg-type]
    assert not group.commits


@pytest.mark.parametrize("start", ["earliest", "latest"])
def test_after_labels_were_created_again_rows_are_rebuilt_and_transactions_go_on(start: StartPolicy) -> None:
    labels, reader = SourcePartition("labels", 0), _Recreated(None)
    both = [SOURCE, labels]
    store = MemoryAppliedRows(MemoryServer(), both, Failpoints(), per_call=10)  # the namespace of the new topic
    points = starting_points(reader, store, both, both, start)  # type: ignore[arg-type]
    assert (points.score_from, reader.commits) == ({SOURCE: 60, labels: 0}, [{labels: 0}])
    # No feature is used before the rows have the transactions of all scorers, and every label of the new topic.
    applied = store.open()
    assert applied is not None
    assert (points.state, applied.next_offset, applied.target) == (
        State.REBUILDING,
        {SOURCE: 0, labels: 0},
        {SOURCE: 60, labels: 0},
    )
