"""The label joiner against its store: which label holds, what is said about it, and what a restart finds."""

from __future__ import annotations

import json
import resource
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stream_scorer.errors import SettingsError, StreamScorerError
from stream_scorer.kafka.transactional_loop import InputRecord
from stream_scorer.monitor.joiner import Joiner, JoinRules
from stream_scorer.monitor.joiner_store import JoinerStore
from stream_scorer.records import Outcome

HOUR = 3_600_000
DAY = 24 * HOUR
T = 100 * DAY
RULES = JoinRules(HOUR, 2 * DAY, HOUR, {"random_review": 1, "analyst": 2, "chargeback": 3})


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
        return InputRecord(topic, partition, offset, json.dumps(value).encode())


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JoinerStore]:
    opened = JoinerStore(tmp_path / "joiner.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def joiner(store: JoinerStore) -> Joiner:
    return Joiner(store, RULES, scores="scores", labels="labels")


def said(outcomes: list[Outcome]) -> list[tuple[str, str, str | None]]:
    return [(o.event_id, o.label, o.previous_label) for o in outcomes]


def test_outcome_tells_what_was_decided(joiner: Joiner, log: Log) -> None:
    joiner.join([log.score("a", decision="block")])
    (outcome,) = joiner.join([log.label("a", "genuine", "analyst", T + 3 * HOUR, review_probability=0.25)])
    assert outcome == Outcome(
        event_id="a", event_time=T + 10, pane=T, version="1", arm="champion", policy_version="p", decision="block",
        member_alerts=5, value=1234, label="genuine", previous_label=None, source="analyst", review_probability=0.25,
        labelled_at=T + 3 * HOUR, age=3 * HOUR - 10, ensemble="cards",
    )  # fmt: skip


def test_label_before_score_waits(joiner: Joiner, log: Log) -> None:
    assert joiner.join([log.label("a", "fraud", "analyst"), log.label("a", "genuine", "random_review")]) == []
    assert joiner.counts.waiting == 1
    assert said(joiner.join([log.score("a")])) == [("a", "fraud", None)]
    assert joiner.counts.waiting == 0


def test_the_label_that_holds(joiner: Joiner, log: Log) -> None:
    joiner.join([log.score("a")])
    assert said(joiner.join([log.label("a", "genuine", "analyst", T + 5)])) == [("a", "genuine", None)]
    # A lower rank loses however late it is; the same rank wins by time, then by offset.
    assert joiner.join([log.label("a", "fraud", "random_review", T + 9_000)]) == []
    assert joiner.join([log.label("a", "fraud", "unheard_of", T + 9_000)]) == []
    assert joiner.join([log.label("a", "fraud", "analyst", T + 4)]) == []
    assert said(joiner.join([log.label("a", "fraud", "analyst", T + 5)])) == [("a", "fraud", "genuine")]
    assert said(joiner.join([log.label("a", "genuine", "chargeback", T + 1)])) == [("a", "genuine", "fraud")]


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
    assert said(outcomes) == [("a", "genuine", None), ("a", "fraud", "genuine"), ("a", "genuine", "fraud")]


def test_the_first_score_counts(joiner: Joiner, log: Log) -> None:
    joiner.join([log.score("a", version="1")])
    joiner.join([log.score("a", version="2"), log.score("b", duplicate=True)])
    outcomes = joiner.join([log.label("a", "fraud", "analyst"), log.label("b", "fraud", "analyst")])
    assert [(o.event_id, o.version) for o in outcomes] == [("a", "1")]


def test_unreadable_records_are_counted_and_passed(joiner: Joiner, log: Log) -> None:
    values = (b"{", b'{"event_id": "a", "label": "maybe"}', b'{"event_id": "\xff"}', b'{"x": ' + b"[" * 100_000)
    bad = [InputRecord("labels", 0, 90 + number, value) for number, value in enumerate(values)]
    assert said(joiner.join([*bad, log.score("a"), log.label("a", "fraud", "analyst")])) == [("a", "fraud", None)]
    assert joiner.counts.unreadable == 4


def test_a_label_beyond_twice_the_horizon_is_too_late(joiner: Joiner, log: Log) -> None:
    joiner.join([log.score("a"), log.score("b")])
    outcomes = joiner.join(
        [
            log.label("a", "fraud", "chargeback", T + 10 + 4 * DAY),
            log.label("b", "fraud", "chargeback", T + 11 + 4 * DAY),
        ]
    )
    assert said(outcomes) == [("a", "fraud", None)]
    assert joiner.counts.too_late == 1


def test_old_rows_are_deleted_by_the_slowest_partition(joiner: Joiner, store: JoinerStore, log: Log) -> None:
    joiner.join([log.score("old"), log.score("far", event_time=T + 30 * DAY), log.label("never", "fraud", "analyst")])
    joiner.join([log.score("slow", event_time=T + 10, partition=1)])
    joiner.trim()
    assert store.row_count() == 3
    joiner.join([log.score("on", event_time=T + 29 * DAY, partition=1)])
    joiner.trim()
    assert store.row_count() == joiner.counts.rows == 2
    assert store.waiting_count() == joiner.counts.waiting == 0


def test_rollback_forgets_everything_of_a_batch(tmp_path: Path, log: Log) -> None:
    store = JoinerStore(tmp_path / "s")
    joiner = Joiner(store, RULES, scores="scores", labels="labels")
    joiner.join([log.score("a", version="7")])
    joiner.rollback()
    assert joiner.counts.rows == 0
    joiner.join([log.score("b", version="8")])
    store.set_positions({("scores", 0): 2})
    store.commit()
    assert said(joiner.join([log.label("a", "fraud", "analyst"), log.label("b", "fraud", "analyst")])) == [
        ("b", "fraud", None)
    ]
    store.close()
    again = JoinerStore(tmp_path / "s")
    assert again.positions() == {("scores", 0): 2}
    (outcome,) = Joiner(again, RULES, scores="scores", labels="labels").join([log.label("b", "fraud", "analyst")])
    assert outcome.version == "8"
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
    joiner = Joiner(store, RULES, scores="scores", labels="labels")
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
