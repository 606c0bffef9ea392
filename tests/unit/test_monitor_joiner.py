"""The label joiner against its store: which label holds, its outcomes, and what a restart finds."""

from __future__ import annotations

import json
import logging
import random
import resource
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from confluent_kafka import Producer

from stream_scorer.clock import SystemClock
from stream_scorer.errors import SettingsError, StreamScorerError, TransactionAborted
from stream_scorer.kafka.transactional_loop import InputRecord, OutputRecord, TransactionalLoop
from stream_scorer.monitor.joiner import (
    OFFSETS_KEPT_MS,
    TRIM_EVERY_S,
    WAITING_KEPT_MS,
    Joiner,
    JoinerService,
    JoinRules,
    Label,
)
from stream_scorer.monitor.joiner_store import JoinerStore, LabelRecord
from stream_scorer.records import Outcome
from stream_scorer.serde.decoder import LabelDecoder
from stream_scorer.spec import load_spec
from stream_scorer.spec.model import duration_ms

CARDS = Path(__file__).parents[2] / "stream_scorer" / "simulate" / "cards.yaml"
HOUR = 3_600_000
DAY = 24 * HOUR
T = 20_000 * DAY
MINUTE = 60_000
RANK = {"random_review": 1, "analyst": 2, "chargeback": 3}
RULES = JoinRules(HOUR, 2 * DAY, HOUR, RANK, max_age_ms=400 * DAY, max_ahead_ms=5 * MINUTE)


class Log:
    """Makes input records, each at the next offset of its partition."""

    def __init__(self) -> None:
        self.next: dict[tuple[str, int], int] = {}

    def score(self, event_id: str, *, decision: str = "approve", partition: int = 0, **more: Any) -> InputRecord:
        value = {
            "event_id": event_id, "event_time": T + 10, "scored_at": T + 11, "score": 0.5, "decision": decision,
            "decision_source": "model", "ensemble": "cards", "version": "1", "arm": "champion",
            "policy_version": "p", "coverage": 1.0, "duplicate": False, "degraded": [], "member_alerts": 5,
            "value": 1234,
        } | more  # fmt: skip
        return self._record("scores", partition, value)

    def label(
        self, event_id: str, label: str, source: str, at: int = T + HOUR, partition: int = 0, **more: Any
    ) -> InputRecord:
        value = {"event_id": event_id, "event_time": T + 10, "label": label, "labelled_at": at, "source": source}
        return self._record("labels", partition, value | {"customer_id": "c1"} | more)

    def _record(self, topic: str, partition: int, value: dict[str, Any]) -> InputRecord:
        offset = self.next.get((topic, partition), 0)
        self.next[topic, partition] = offset + 1
        return InputRecord(topic, partition, offset, json.dumps(value).encode(), T + 6 * DAY)


class Steps:
    """A stop after so many steps of the service, and a clock on which each step takes `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now, self.left = seconds, 0.0, 0
        self.wall_ms = 0

    def is_set(self) -> bool:
        self.left -= 1
        self.now += self.seconds
        return self.left < 0

    def monotonic(self) -> float:
        return self.now

    def now_ms(self) -> int:
        return self.wall_ms


CLOCK = Steps(0.0)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JoinerStore]:
    opened = JoinerStore(tmp_path / "joiner.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def clock() -> Steps:
    return Steps(0.0)


@pytest.fixture
def joiner(store: JoinerStore, clock: Steps) -> Joiner:
    return Joiner(store, RULES, clock, scores="scores", labels="labels")


def changes_of(outcomes: list[Outcome]) -> list[tuple[str, str, str | None]]:
    return [(o.event_id, o.label, o.previous_label) for o in outcomes]


def test_outcome_states_what_was_decided(joiner: Joiner, log: Log) -> None:
    joiner.join([log.score("a", decision="block")])
    label = log.label("a", "genuine", "analyst", T + 3 * HOUR, partition=4, review_probability=0.25)
    (outcome,) = joiner.join([label])
    assert outcome == Outcome(
        event_id="a", event_time=T + 10, pane=T, version="1", arm="champion", policy_version="p", decision="block",
        member_alerts=5, value=1234, label="genuine", previous_label=None, source="analyst", review_probability=0.25,
        labelled_at=T + 3 * HOUR, age=3 * HOUR - 10, ensemble="cards", label_partition=4,
    )  # fmt: skip


def test_an_outcome_repeats_what_the_score_states(joiner: Joiner, log: Log) -> None:
    joiner.join([log.score("a", review_propensity=0.001, card_group=17, rule="web")])
    (outcome,) = joiner.join([log.label("a", "fraud", "random_review", review_probability=0.5)])
    assert (outcome.review_propensity, outcome.card_group, outcome.rule) == (0.001, 17, "web")
    assert outcome.review_probability == 0.5


def test_a_store_of_a_former_version_gets_the_new_columns(tmp_path: Path, log: Log) -> None:
    path = tmp_path / "old.sqlite"
    with closing(sqlite3.connect(path)) as old:
        old.executescript(
            "CREATE TABLE decided (event_id TEXT PRIMARY KEY, event_time INTEGER, context INTEGER, decision INTEGER,"
            " member_alerts INTEGER, value INTEGER, label INTEGER, source TEXT, probability REAL, rank INTEGER,"
            " labelled_at INTEGER, log_offset INTEGER, log_partition INTEGER) WITHOUT ROWID;"
            "CREATE TABLE context (id INTEGER PRIMARY KEY, ensemble TEXT, version TEXT, arm TEXT, policy_version TEXT);"
            "INSERT INTO context VALUES (1, 'cards', '1', 'champion', 'p');"
            f"INSERT INTO decided (event_id, event_time, context, decision, member_alerts, value)"
            f" VALUES ('a', {T}, 1, 2, 0, 5)"
        )
    with closing(JoinerStore(path)) as store:
        joiner = Joiner(store, RULES, CLOCK, scores="scores", labels="labels")
        joiner.join([log.score("b", card_group=3)])
        found = joiner.join([log.label("a", "fraud", "analyst"), log.label("b", "fraud", "analyst")])
    assert [(o.event_id, o.decision, o.card_group) for o in found] == [("a", "block", None), ("b", "approve", 3)]


def test_label_before_score_waits(joiner: Joiner, log: Log) -> None:
    assert joiner.join([log.label("a", "fraud", "analyst"), log.label("a", "genuine", "random_review")]) == []
    assert joiner.counts.waiting == 1
    assert changes_of(joiner.join([log.score("a")])) == [("a", "fraud", None)]
    assert joiner.counts.waiting == 0


def test_the_label_that_holds(joiner: Joiner, log: Log) -> None:
    joiner.join([log.score("a")])
    assert changes_of(joiner.join([log.label("a", "genuine", "analyst", T + 5)])) == [("a", "genuine", None)]
    # A lower rank loses however late it is; the same rank wins by time, then by offset.
    assert joiner.join([log.label("a", "fraud", "random_review", T + 9_000)]) == []
    assert joiner.join([log.label("a", "fraud", "unheard_of", T + 9_000)]) == []
    assert joiner.join([log.label("a", "fraud", "analyst", T + 4)]) == []
    assert changes_of(joiner.join([log.label("a", "fraud", "analyst", T + 5)])) == [("a", "fraud", "genuine")]
    assert changes_of(joiner.join([log.label("a", "genuine", "chargeback", T + 1)])) == [("a", "genuine", "fraud")]


def test_label_twice_says_nothing(joiner: Joiner, log: Log) -> None:
    joiner.join([log.score("a"), log.label("a", "fraud", "analyst")])
    assert joiner.join([log.label("a", "fraud", "analyst"), log.label("a", "fraud", "analyst", T + 2 * HOUR)]) == []


def test_a_change_of_source_carries_what_it_replaces(joiner: Joiner, log: Log) -> None:
    joiner.join([log.score("a"), log.label("a", "fraud", "random_review", review_probability=0.001)])
    (outcome,) = joiner.join([log.label("a", "fraud", "chargeback")])
    assert (outcome.previous_label, outcome.previous_source, outcome.previous_review_probability) == (
        "fraud", "random_review", 0.001,
    )  # fmt: skip
    assert outcome.review_probability is None


def test_several_changes_in_one_batch_form_a_chain(joiner: Joiner, log: Log) -> None:
    outcomes = joiner.join(
        [
            log.label("a", "genuine", "random_review"),
            log.score("a"),
            log.label("a", "fraud", "analyst"),
            log.label("a", "genuine", "chargeback"),
        ]
    )
    assert changes_of(outcomes) == [("a", "genuine", None), ("a", "fraud", "genuine"), ("a", "genuine", "fraud")]


def test_the_first_score_counts(joiner: Joiner, log: Log) -> None:
    joiner.join([log.score("a", version="1")])
    joiner.join([log.score("a", version="2"), log.score("b", duplicate=True)])
    outcomes = joiner.join([log.label("a", "fraud", "analyst"), log.label("b", "fraud", "analyst")])
    assert [(o.event_id, o.version) for o in outcomes] == [("a", "1")]


def test_unreadable_records_are_counted_and_passed_and_not_logged(
    joiner: Joiner, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    values = (b"{", b'{"event_id": "a", "label": "maybe"}', b'{"event_id": "\xff"}', b'{"x": ' + b"[" * 100_000)
    bad = [InputRecord("labels", 0, 90 + number, value, T) for number, value in enumerate(values)]
    assert changes_of(joiner.join([*bad, log.score("a"), log.label("a", "fraud", "analyst")])) == [("a", "fraud", None)]
    assert joiner.counts.unreadable == 4
    assert "the value is not one of the declared values - at $.label" in caplog.text
    assert "maybe" not in caplog.text


def test_a_label_beyond_twice_the_horizon_is_too_late(joiner: Joiner, log: Log) -> None:
    joiner.join([log.score("a"), log.score("b"), log.score("c")])
    late = T + 11 + 4 * DAY
    outcomes = joiner.join(
        [
            log.label("a", "fraud", "chargeback", late - 1),
            log.label("b", "fraud", "chargeback", late),
            log.label("c", "fraud", "chargeback", late, event_time=T + DAY),  # its score has an earlier event time
        ]
    )
    assert changes_of(outcomes) == [("a", "fraud", None)]
    assert joiner.counts.too_late == 2


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("score_at", [0, 1, 2])
def test_a_label_that_is_too_late_replaces_none_whenever_the_score_comes(
    joiner: Joiner, log: Log, score_at: int, together: bool
) -> None:
    records = [log.label("a", "genuine", "analyst", T + DAY), log.label("a", "fraud", "chargeback", T + 5 * DAY)]
    records.insert(score_at, log.score("a"))
    outcomes = joiner.join(records) if together else [o for record in records for o in joiner.join([record])]
    assert changes_of(outcomes) == [("a", "genuine", None)]
    assert (joiner.counts.too_late, joiner.counts.waiting) == (1, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"labelled_at": (T + HOUR) // 1_000},  # seconds
        {"labelled_at": (T + HOUR) * 1_000},  # microseconds
        {"labelled_at": (T + HOUR) * 1_000_000},  # nanoseconds
        {"labelled_at": 10**30},
        {"labelled_at": -1},
        {"labelled_at": T + 6 * DAY + 5 * MINUTE + 1},
        {"labelled_at": T + 6 * DAY - 400 * DAY - 1},
        {"event_time": T + HOUR + 5 * MINUTE + 1},
        {"event_time": T + HOUR - 400 * DAY - 1},
        {"event_time": (T + HOUR) * 1_000},
    ],
)
def test_a_label_with_an_implausible_time_becomes_no_outcome_and_does_not_wait(
    joiner: Joiner, store: JoinerStore, log: Log, change: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    joiner.join([log.score("known")])
    late = {"at": T + HOUR} if "event_time" in change else {}
    bad = [log.label(event_id, "fraud", "chargeback", **late, **change) for event_id in ("known", "unknown")]  # type: ignore[arg-type]
    assert joiner.join([*bad, log.label("known", "genuine", "analyst")])[0].label == "genuine"
    assert store.waiting_count() == joiner.counts.waiting == 0
    assert joiner.counts.implausible + joiner.counts.unreadable == 2
    assert "labels[0]@0" in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        {"labelled_at": T + 6 * DAY + 5 * MINUTE, "event_time": T + 6 * DAY},
        {"labelled_at": T + 6 * DAY - 400 * DAY, "event_time": T - 398 * DAY},
        {"event_time": T + HOUR + 5 * MINUTE},
    ],
)
def test_a_label_at_the_bound_counts(joiner: Joiner, log: Log, change: dict[str, int]) -> None:
    joiner.join([log.label("later", "fraud", "chargeback", **change)])
    assert (joiner.counts.waiting, joiner.counts.implausible) == (1, 0)


def test_times_are_judged_by_the_rule_of_the_scorer() -> None:
    """The same labels are refused as by `serde.decoder.LabelDecoder`, which writes the dead letters."""
    checked = load_spec(CARDS)
    decoder = LabelDecoder(checked)
    time = checked.spec.time
    rules = JoinRules(HOUR, 2 * DAY, HOUR, {}, duration_ms(time.max_age), duration_ms(time.max_ahead))
    now, rng = 20_000 * DAY, random.Random(1)
    ages = [0, rules.max_age_ms, -rules.max_ahead_ms, 10 * DAY]
    refused = 0
    for _ in range(300):
        labelled_at = now - rng.choice(ages) + rng.choice([-1, 0, 1])
        event_time = labelled_at - rng.choice(ages) + rng.choice([-1, 0, 1])
        value = {"event_id": "e", "event_time": event_time, "label": "fraud", "labelled_at": labelled_at, "source": "s"}
        label = msgspec.convert(value, Label)
        rejected = decoder.decode([json.dumps(value).encode()], np.array([now]))[1]
        assert rules.plausible(label, now) == (not rejected), value
        refused += bool(rejected)
    assert 50 < refused < 250


def delete_old(joiner: Joiner, *behind: tuple[str, int]) -> None:
    joiner.mark_old(set(behind))
    while joiner.delete_old():
        pass


def test_old_rows_are_deleted_by_the_slowest_active_partition(
    joiner: Joiner, store: JoinerStore, log: Log, clock: Steps
) -> None:
    joiner.join([log.score("old"), log.score("far", event_time=T + 30 * DAY), log.label("never", "fraud", "analyst")])
    joiner.join([log.score("slow", event_time=T + 10, partition=1)])
    delete_old(joiner)
    assert store.row_count() == 3
    joiner.join([log.score("on", event_time=T + 29 * DAY, partition=1), log.score("too", event_time=T + 30 * DAY)])
    clock.wall_ms += WAITING_KEPT_MS + 1
    delete_old(joiner)
    assert store.row_count() == joiner.counts.rows == 3
    assert store.waiting_count() == joiner.counts.waiting == 0


def test_a_silent_partition_does_not_keep_rows(joiner: Joiner, store: JoinerStore, log: Log) -> None:
    """Sixty days of traffic in one partition, while the other one had a single score at the start."""
    joiner.join([log.score("silent", partition=1)])
    keep = RULES.keep_ms + RULES.allowed_lateness_ms
    for hour in range(60 * 24):
        joiner.join([log.score(f"e{hour}", event_time=T + hour * HOUR)])
        delete_old(joiner)
        if hour > 1:
            assert store.row_count() == joiner.counts.rows <= keep // HOUR + 2
    assert store.row_count() > keep // HOUR - 2


def test_a_partition_that_is_behind_keeps_rows_until_it_is_read(joiner: Joiner, store: JoinerStore, log: Log) -> None:
    joiner.join([log.score("behind", partition=1), log.score("old"), log.score("new", event_time=T + 30 * DAY)])
    for behind in (("scores", 1), ("scores", 2), ("labels", 0)):
        joiner.join([log.score("again", event_time=T + 30 * DAY)])
        delete_old(joiner, behind)
        assert store.row_count() == 4
    joiner.join([log.score("again", event_time=T + 30 * DAY)])
    delete_old(joiner)
    assert store.row_count() == 2


def test_a_label_waits_for_a_scorer_that_is_behind_on_one_partition(
    joiner: Joiner, store: JoinerStore, log: Log, clock: Steps
) -> None:
    """The scorer of partition 1 is weeks of event time behind, and what it has scored is read."""
    joiner.join([log.score("first", partition=1), log.score("new", event_time=T + 30 * DAY)])
    joiner.join([log.label("a", "fraud", "analyst")])
    clock.wall_ms += WAITING_KEPT_MS
    joiner.mark_old(set())
    joiner.join([log.score("newer", event_time=T + 31 * DAY)])
    delete_old(joiner)
    assert store.row_count() == 2 and store.waiting_count() == 1
    assert changes_of(joiner.join([log.score("a", partition=1)])) == [("a", "fraud", None)]


def test_old_rows_are_deleted_in_small_parts(
    joiner: Joiner, store: JoinerStore, log: Log, clock: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream_scorer.monitor.joiner.MAX_DELETED", 10)
    joiner.join([log.score(f"old-{row}") for row in range(25)])
    joiner.join([log.label(f"never-{row}", "fraud", "analyst") for row in range(15)])
    joiner.join([log.score("new", event_time=T + 30 * DAY)])
    clock.wall_ms += WAITING_KEPT_MS + 1
    joiner.mark_old(set())
    counts = []
    while joiner.delete_old():
        counts.append((store.row_count(), store.waiting_count()))
    assert counts == [(16, 5), (6, 0), (1, 0)]
    assert (joiner.counts.rows, joiner.counts.waiting) == (1, 0)


def test_rollback_forgets_everything_of_a_batch(tmp_path: Path, log: Log) -> None:
    store = JoinerStore(tmp_path / "s")
    joiner = Joiner(store, RULES, CLOCK, scores="scores", labels="labels")
    joiner.join([log.score("a", version="7")])
    joiner.rollback()
    assert joiner.counts.rows == 0
    joiner.join([log.score("b", version="8")])
    store.set_positions({("scores", 0): 2}, 5)
    store.commit()
    assert changes_of(joiner.join([log.label("a", "fraud", "analyst"), log.label("b", "fraud", "analyst")])) == [
        ("b", "fraud", None)
    ]
    store.close()
    again = JoinerStore(tmp_path / "s")
    assert again.positions() == {("scores", 0): 2}
    assert again.written_at() == 5
    (outcome,) = Joiner(again, RULES, CLOCK, scores="scores", labels="labels").join(
        [log.label("b", "fraud", "analyst")]
    )
    assert outcome.version == "8"
    again.close()


def test_labels_in_another_unit_that_a_former_version_kept_are_deleted(tmp_path: Path) -> None:
    store = JoinerStore(tmp_path / "s")
    times = {"micro": (T + HOUR) * 1_000, "milli": T + HOUR}
    store.wait({unit: LabelRecord(0, "analyst", None, 2, time, 0, 0) for unit, time in times.items()}, 0)
    store.commit()
    store.close()
    again = JoinerStore(tmp_path / "s")
    assert list(again.waiting(times)) == ["milli"]
    assert again.waiting_count() == 1
    again.close()


def test_one_monitor_a_store(tmp_path: Path) -> None:
    first = JoinerStore(tmp_path / "s")
    with pytest.raises(SettingsError, match="another monitor"):
        JoinerStore(tmp_path / "s")
    first.close()


def test_a_store_that_cannot_be_written_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "s"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow beyond this, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, hard))
    try:
        for _ in range(2):
            with pytest.raises(StreamScorerError, match="disk I/O error|full"):
                JoinerStore(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    JoinerStore(path).close()


def _join_batches(joiner: Joiner, store: JoinerStore, log: Log, count: int) -> None:
    for number in range(count):
        joiner.join([log.score(f"{number}-{row}" + "x" * 1_000) for row in range(500)])
        store.commit()


def test_a_disk_that_fills_up_ends_the_batch_and_not_the_store(tmp_path: Path, log: Log) -> None:
    path = tmp_path / "s"
    store = JoinerStore(path)
    joiner = Joiner(store, RULES, CLOCK, scores="scores", labels="labels")
    joiner.join([log.score("before")])
    store.commit()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.with_name("s-wal").stat().st_size, hard))
    try:
        with pytest.raises(sqlite3.OperationalError):
            _join_batches(joiner, store, log, 50)
        store.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    again = JoinerStore(path)
    assert again.find({"before"})
    again.close()


class Loop:
    """The loop of a joiner without Kafka: `waiting` are the records that come with the next reads."""

    def __init__(self, ends: dict[tuple[str, int], int]) -> None:
        self.bounds = ends
        self.first = dict.fromkeys(ends, 0)
        self.assigned: dict[tuple[str, int], int | None] = {}
        self.markers = False
        self.reached = dict.fromkeys(ends, 0)
        self.waiting: list[InputRecord] = []
        self.committed: dict[tuple[str, int], int] = {}
        self.published: list[OutputRecord] = []
        self.aborts = 0
        self.last: list[InputRecord] = []

    def begin(self, partitions: list[tuple[str, int]]) -> dict[tuple[str, int], int]:
        return dict(self.committed)

    def ends(self, partitions: list[tuple[str, int]]) -> dict[tuple[str, int], tuple[int, int]]:
        return {at: (self.first[at], end) for at, end in self.bounds.items()}

    def assign(self, positions: dict[tuple[str, int], int | None]) -> None:
        self.assigned = positions
        for at, offset in positions.items():
            self.reached[at] = max(self.reached[at], self.first[at] if offset is None else offset)

    def position(self, at: tuple[str, int]) -> int:
        return self.bounds[at] if self.markers else self.reached[at]

    def publish(self, records: list[OutputRecord], positions: dict[tuple[str, int], int]) -> None:
        if self.aborts:
            self.aborts, self.waiting = self.aborts - 1, self.last
            raise TransactionAborted("a transaction failed")
        self.published += records
        self.committed = dict(positions)

    def read(self, max_records: int, timeout_s: float) -> list[InputRecord]:
        for at, offset in self.assigned.items():
            if offset is not None and offset < self.first[at]:
                raise StreamScorerError(f"{at}: the position to read from is no longer in the topic")
        self.assigned = {}
        self.last = found = self.waiting
        self.waiting = []
        for record in found:
            self.reached[record.topic, record.partition] = record.offset + 1
        return found


def test_rows_are_old_once_the_inputs_are_read_to_the_ends_of_half_a_minute_ago(
    joiner: Joiner, store: JoinerStore, log: Log
) -> None:
    inputs = [("scores", 0), ("scores", 1), ("labels", 0)]
    loop, steps = Loop({("scores", 0): 3, ("scores", 1): 0, ("labels", 0): 2}), Steps(TRIM_EVERY_S + 1)
    service = JoinerService(loop, store, joiner, steps, inputs=inputs, outcomes="outcomes")  # type: ignore[arg-type]

    def run(*records: InputRecord) -> int:
        loop.waiting, steps.left = list(records), 1
        service.run(steps)  # type: ignore[arg-type]
        return store.row_count()

    assert run(log.score("old"), log.score("new", event_time=T + 30 * DAY)) == 2  # no ends are known yet
    assert run(log.score("a", event_time=T + 30 * DAY)) == 3  # two labels are not read
    loop.reached["labels", 0] = 2  # a record and a marker, which is never returned
    loop.bounds["scores", 0] = 99  # records that arrived since do not matter
    assert run(log.score("b", event_time=T + 30 * DAY)) == 3


@pytest.mark.parametrize("reported", [{}, {("scores", 0): 1, ("labels", 0): 0}])
def test_a_batch_is_not_published_again_while_the_broker_reports_old_positions_or_none(
    joiner: Joiner, store: JoinerStore, log: Log, reported: dict[tuple[str, int], int]
) -> None:
    """A broker that was killed may forget the positions for a while, and the store lacks the last batch (ADR 0051)."""
    inputs = [("scores", 0), ("labels", 0)]
    loop, steps = Loop({("scores", 0): 2, ("labels", 0): 2}), Steps(0.0)
    service = JoinerService(loop, store, joiner, steps, inputs=inputs, outcomes="outcomes")  # type: ignore[arg-type]

    def run(*records: InputRecord) -> None:
        loop.waiting, steps.left = list(records), 1
        service.run(steps)  # type: ignore[arg-type]

    run(log.score("a"), log.score("b"), log.label("a", "fraud", "analyst"))
    assert len(loop.published) == 1
    committed, loop.committed = loop.committed, dict(reported)
    last = log.label("b", "fraud", "analyst")
    with pytest.raises(StreamScorerError, match="ahead of"):
        run(last)
    steps.wall_ms = OFFSETS_KEPT_MS
    with pytest.raises(StreamScorerError, match="ahead of"):
        run(last)
    assert len(loop.published) == 1
    steps.wall_ms += 1  # Kafka has deleted the offsets of a group that was down for so long
    if reported:
        with pytest.raises(StreamScorerError, match="ahead of"):
            run(last)
        loop.committed = committed
    run(last)
    assert len(loop.published) == 2


INPUTS = [("scores", 0), ("scores", 1), ("labels", 0)]


def run_once(service: JoinerService, loop: Loop, steps: Steps, *records: InputRecord, count: int = 1) -> None:
    """Start the service, and end it after `count` steps, of which the first reads `records`."""
    loop.waiting, steps.left = list(records), count
    service.run(steps)  # type: ignore[arg-type]


@pytest.mark.parametrize(("deleted", "level"), [(1, logging.WARNING), (2, logging.ERROR)])
def test_a_joiner_goes_on_after_retention_has_passed_its_position(
    joiner: Joiner, store: JoinerStore, log: Log, caplog: pytest.LogCaptureFixture, deleted: int, level: int
) -> None:
    """One deleted offset may be the transaction marker at the end of a silent partition, more are records."""
    loop, steps = Loop(dict.fromkeys(INPUTS, 0)), Steps(0.0)
    service = JoinerService(loop, store, joiner, steps, inputs=INPUTS, outcomes="outcomes")  # type: ignore[arg-type]
    loop.bounds = {("scores", 0): 1, ("scores", 1): 1, ("labels", 0): 0}
    run_once(service, loop, steps, log.score("a"), log.score("b", partition=1))
    loop.first["scores", 1] = loop.bounds["scores", 1] = log.next["scores", 1] = 1 + deleted
    loop.bounds |= {("scores", 0): 2, ("labels", 0): 1}
    for _ in range(2):  # and once more, although nothing was read since
        caplog.clear()
        run_once(service, loop, steps)
        (found,) = caplog.records
        assert (found.levelno, "scores[1]" in found.message) == (level, True)
    run_once(service, loop, steps, log.label("b", "fraud", "analyst"), log.score("c"), log.score("d", partition=1))
    assert len(loop.published) == 1
    assert store.positions() == loop.committed
    assert store.positions()["scores", 1] == loop.bounds["scores", 1] + 1
    loop.bounds["scores", 1] += 1
    caplog.clear()
    run_once(service, loop, steps)
    assert not caplog.records


def test_a_replay_goes_on_after_retention_has_passed_its_start(joiner: Joiner, store: JoinerStore, log: Log) -> None:
    """The store lacks the last batch, and retention has deleted a part of it."""
    loop, steps = Loop(dict.fromkeys(INPUTS, 9)), Steps(0.0)
    service = JoinerService(loop, store, joiner, steps, inputs=INPUTS, outcomes="outcomes")  # type: ignore[arg-type]
    run_once(service, loop, steps, log.score("a"))
    loop.committed = {("scores", 0): 5}
    loop.first["scores", 0] = log.next["scores", 0] = 4
    run_once(service, loop, steps, log.score("e"), count=2)
    assert store.row_count() == 2 and joiner.counts.replayed == 1
    assert store.positions()["scores", 0] == 5
    loop.first["scores", 0] = 7  # beyond all that is to be read again
    loop.committed = {("scores", 0): 6}
    run_once(service, loop, steps)


def test_positions_pass_the_markers_at_the_end_of_a_silent_partition(
    joiner: Joiner, store: JoinerStore, log: Log
) -> None:
    """Then retention does not pass them, and deleted offsets are records that were not joined."""
    loop, steps = Loop({("scores", 0): 3, ("scores", 1): 2, ("labels", 0): 0}), Steps(0.0)
    service = JoinerService(loop, store, joiner, steps, inputs=INPUTS, outcomes="outcomes")  # type: ignore[arg-type]
    run_once(service, loop, steps, log.score("a"), log.score("b", partition=1))
    assert store.positions() == {("scores", 0): 1, ("scores", 1): 1}
    loop.reached["scores", 1] = 2
    loop.waiting, steps.left, steps.seconds = [], 1, TRIM_EVERY_S + 1
    service._marked_at = steps.now
    service._step()
    assert loop.committed == store.positions() == {("scores", 0): 1, ("scores", 1): 1}  # not in every idle step
    steps.now += TRIM_EVERY_S + 1
    service._step()
    assert loop.committed == store.positions() == {("scores", 0): 1, ("scores", 1): 2}
    assert not loop.published


def service_of(loop: Loop, store: JoinerStore, joiner: Joiner, steps: Steps, **more: Any) -> JoinerService:
    """A service of the partitions of `loop`."""
    return JoinerService(loop, store, joiner, steps, inputs=[*loop.bounds], outcomes="outcomes", **more)  # type: ignore[arg-type]


def test_a_lost_store_marks_transactions_whose_scores_retention_has_deleted(tmp_path: Path, log: Log) -> None:
    """Of each partition, the first score that is left ends what may be missing: the last one of these counts."""
    loop, steps = Loop(dict.fromkeys(INPUTS, 20)), Steps(0.0)
    loop.committed = {("scores", 0): 9, ("scores", 1): 9, ("labels", 0): 0}
    loop.first |= {("scores", 0): 7, ("scores", 1): 8}
    log.next = {("scores", 0): 7, ("scores", 1): 8}
    records = [log.score("a", event_time=T + HOUR), log.score("b", event_time=T + 3 * HOUR, partition=1)]
    records += [log.score("c", event_time=T + 9 * HOUR), InputRecord("scores", 1, 9, b"{", T)]
    with closing(JoinerStore(tmp_path / "s")) as store:
        joiner = Joiner(store, RULES, steps, scores="scores", labels="labels")
        assert joiner.counts.labels_lost_before is None
        run_once(service_of(loop, store, joiner, steps), loop, steps, *records, count=2)
        assert joiner.counts.labels_lost_before == T + 3 * HOUR
    with closing(JoinerStore(tmp_path / "s")) as store:
        joiner = Joiner(store, RULES, steps, scores="scores", labels="labels")
        assert joiner.counts.labels_lost_before == T + 3 * HOUR
        run_once(service_of(loop, store, joiner, steps), loop, steps, log.score("d", event_time=T + 10 * HOUR))
        assert joiner.counts.labels_lost_before == T + 3 * HOUR


def test_a_store_that_has_read_everything_marks_nothing(joiner: Joiner, store: JoinerStore, log: Log) -> None:
    loop, steps = Loop(dict.fromkeys(INPUTS, 20)), Steps(0.0)
    loop.committed = {("scores", 0): 1}
    service = service_of(loop, store, joiner, steps)
    run_once(service, loop, steps, log.score("a"), count=2)
    # Of a partition without a position, nothing was joined before, and all others were.
    loop.first["scores", 1] = log.next["scores", 1] = 5
    run_once(service, loop, steps, log.score("b", partition=1))
    # The marker at the end of a silent partition.
    loop.first["scores", 0] = log.next["scores", 0] = 2
    run_once(service, loop, steps, log.score("c"))
    assert joiner.counts.labels_lost_before is store.labels_lost_before() is None


def test_unread_records_that_retention_has_deleted_mark_what_lacks_labels(
    joiner: Joiner, store: JoinerStore, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    loop, steps = Loop(dict.fromkeys(INPUTS, 20)), Steps(0.0)
    service = service_of(loop, store, joiner, steps)
    run_once(service, loop, steps, log.score("a"), log.label("a", "fraud", "analyst"))
    loop.first |= {("scores", 0): 4, ("labels", 0): 4}
    log.next |= {("scores", 0): 4, ("labels", 0): 4}
    run_once(service, loop, steps, log.score("b", event_time=T + HOUR))
    assert joiner.counts.labels_lost_before == T + HOUR
    unreadable = InputRecord("labels", 0, 4, b"{", T)
    log.next["labels", 0] = 5
    loop.aborts = 1  # the batch is rolled back and read again
    run_once(service, loop, steps, unreadable, log.label("b", "fraud", "analyst", T + 7 * HOUR), count=2)
    assert joiner.counts.labels_lost_before == store.labels_lost_before() == T + 7 * HOUR
    run_once(service, loop, steps, log.label("b", "genuine", "analyst", T + 9 * HOUR))
    assert joiner.counts.labels_lost_before == T + 7 * HOUR
    assert "labels of transactions up to 2024-10-04T07:00:00+00:00" in caplog.text


def test_a_partition_of_which_nothing_is_left_marks_only_if_all_are_empty(
    joiner: Joiner, store: JoinerStore, log: Log
) -> None:
    """The first record that it ever brings again may come days later, and says nothing about the deleted ones."""
    loop, steps = Loop(dict.fromkeys(INPUTS, 20)), Steps(0.0)
    loop.committed = dict.fromkeys(INPUTS, 9)
    loop.first = {("scores", 0): 7, ("scores", 1): 20, ("labels", 0): 20}
    log.next = dict(loop.first)
    service = service_of(loop, store, joiner, steps)
    run_once(service, loop, steps, log.score("a", event_time=T), log.score("b", event_time=T + HOUR), count=2)
    assert joiner.counts.labels_lost_before == T
    for _ in range(2):  # after a restart
        run_once(service, loop, steps, log.score("c", event_time=T + 30 * DAY, partition=1))
        assert joiner.counts.labels_lost_before == T
        loop.bounds |= {("scores", 0): 40, ("scores", 1): 40}
    # No label has come yet.
    assert store.positions().keys() == {("scores", 0), ("scores", 1)}
    run_once(service, loop, steps, log.label("x", "fraud", "analyst", T + 6 * HOUR))
    assert joiner.counts.labels_lost_before == T + 6 * HOUR


def test_a_joiner_goes_on_after_the_broker_has_deleted_its_position(tmp_path: Path) -> None:
    """librdkafka's broker in memory deletes the oldest records of a partition beyond 5 MB."""
    producer = Producer({"bootstrap.servers": "memory", "test.mock.num.brokers": 1, "log_level": 0})
    (broker,) = producer.list_topics(timeout=10).brokers.values()
    writer = Producer({"bootstrap.servers": f"{broker.host}:{broker.port}", "log_level": 0})
    inputs = [("scores", 0), ("labels", 0)]
    for topic, value in [("labels", b"{}"), ("outcomes", b"{}"), *[("scores", b"x" * 500_000)] * 12]:
        writer.produce(topic, value, partition=0)
        assert writer.flush(10) == 0
    store, clock = JoinerStore(tmp_path / "s"), SystemClock()
    store.set_positions({("scores", 0): 1, ("labels", 0): 1}, clock.now_ms() - 8 * DAY)
    store.commit()
    joiner, stop = Joiner(store, RULES, clock, scores="scores", labels="labels"), threading.Event()
    with TransactionalLoop(
        f"{broker.host}:{broker.port}", clock, group="g", transactional_id="t", client_id="c"
    ) as loop:
        service = JoinerService(loop, store, joiner, clock, inputs=inputs, outcomes="outcomes")
        step = service._step

        def step_until_all_are_read() -> None:
            step()
            if loop.position(("scores", 0)) == 12:
                stop.set()

        service._step = step_until_all_are_read  # type: ignore[method-assign]
        service.run(stop)
    assert 0 < joiner.counts.unreadable < 11  # the first record was read before, others were deleted
    assert store.positions()["scores", 0] == 12
    store.close()


def test_a_committed_position_above_the_end_ends_a_run(joiner: Joiner, store: JoinerStore) -> None:
    """It would be awaited for ever."""
    inputs = [("scores", 0), ("labels", 0)]
    loop, steps = Loop({("scores", 0): 2, ("labels", 0): 2}), Steps(0.0)
    loop.committed, steps.left = {("scores", 0): 0, ("labels", 0): 9}, 3
    service = JoinerService(loop, store, joiner, steps, inputs=inputs, outcomes="outcomes")  # type: ignore[arg-type]
    with pytest.raises(StreamScorerError, match=r"labels\[0\] \(9\) is above the end of the topic \(2\)"):
        service.run(steps)  # type: ignore[arg-type]


def test_a_replay_ends_behind_a_marker(joiner: Joiner, store: JoinerStore) -> None:
    """The last offset below the committed position holds a marker, which is never returned."""
    inputs = [("scores", 0), ("labels", 0)]
    loop, steps, ready = Loop({("scores", 0): 2, ("labels", 0): 0}), Steps(0.0), list[bool]()
    loop.committed = {("scores", 0): 2, ("labels", 0): 0}
    loop.markers = True
    steps.left = 3
    service = JoinerService(loop, store, joiner, steps, inputs=inputs, outcomes="outcomes")  # type: ignore[arg-type]
    service.run(steps, lambda: ready.append(True))  # type: ignore[arg-type]
    assert ready and store.positions()["scores", 0] == 2


def test_labels_that_never_get_a_score_are_counted_when_they_are_deleted(
    joiner: Joiner, log: Log, clock: Steps, caplog: pytest.LogCaptureFixture
) -> None:
    joiner.join([log.label("never", "fraud", "analyst"), log.score("new", event_time=T + 30 * DAY)])
    clock.wall_ms += WAITING_KEPT_MS + 1
    delete_old(joiner)
    assert (joiner.counts.waiting, joiner.counts.expired) == (0, 1)
    assert "1 labels without a score" in caplog.text


def test_labels_that_a_former_version_kept_wait_from_now_on(tmp_path: Path) -> None:
    store = JoinerStore(tmp_path / "s")
    store.wait({"a": LabelRecord(0, "analyst", None, 2, T, 0, 0)}, 0)
    store.commit()
    store.close()
    with closing(sqlite3.connect(tmp_path / "s", isolation_level=None)) as old:
        old.execute("UPDATE waiting SET since = NULL")
    again = JoinerStore(tmp_path / "s")
    assert again.delete_waiting(T + DAY, 1, 10) == 0
    assert again.delete_waiting(T + DAY, 2**43, 10) == 1
    again.close()
