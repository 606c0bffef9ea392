"""The watch on a real Kafka: a bad version is rolled back with member and input named, and labels clear another one."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import msgspec
import pytest
from confluent_kafka import Producer

from stream_scorer.app import watch_run
from stream_scorer.control.commands import catch_up, submit
from stream_scorer.control.incidents import Incidents
from stream_scorer.control.state import History
from stream_scorer.control.verdicts import read_verdicts
from stream_scorer.control.watch import WATCH_METRICS
from stream_scorer.errors import Stopped
from stream_scorer.kafka.config import producer_config
from stream_scorer.kafka.control_log import ControlLog
from stream_scorer.kafka.topics import TopicAdmin, Topics
from stream_scorer.observability.metrics import Metrics
from stream_scorer.records import (
    CardAlerts,
    Command,
    MemberPair,
    Outcome,
    PairDifferences,
    PaneSummary,
    PreparedInput,
    ScoreSummary,
    ServedVersion,
)
from stream_scorer.settings import load_settings
from stream_scorer.stack import StackAddresses

pytestmark = pytest.mark.integration
ONE, TWO = (ServedVersion(str(i), str(i) * 64) for i in (1, 2))
BOTH, NEW, OLD, ROWS = 150, 200, 60, 10_000
HORIZON, LATER = 1_000, 10**9
WAIT_S = 60.0


def summary() -> ScoreSummary:
    """Alerts on cards of their own; gbdt reads `amount` at another scale."""
    square = [BOTH, NEW, OLD, ROWS - BOTH - NEW - OLD]
    sides = [(0, 0)] * BOTH + [(0, None), (None, 0)] * OLD + [(0, None)] * (NEW - OLD)
    alone = [None in side for side in sides]
    cards = CardAlerts(
        ROWS, 0, [f"{k:016x}" for k in range(len(sides))], [s for s, _ in sides], [o for _, o in sides],
        [f"e{k}" if one else "" for k, one in enumerate(alone)], [100 * one for one in alone], square,
    )  # fmt: skip
    counts = [ROWS, 5_000, 9_000, 0, 0, 0, 0, 0, 0]
    prepared = PreparedInput([None, None, None, 0.0, 0.5], [None, None, None, 0.0, 1.0], counts, counts)
    member = MemberPair((0.5, 0.5), output=[BOTH + OLD, NEW, 0, ROWS - BOTH - NEW - OLD], inputs={"amount": prepared})
    pane = PaneSummary(0, ROWS, 0, 0, 0, {}, {}, {}, {}, {}, [], {}, {"1": square})
    return ScoreSummary(
        "cards", "2", "champion", 3_600_000, "transactions", 0, 0, ROWS, 0, [pane], 1, {"1": cards}, LATER,
        {"1": PairDifferences(ROWS, {"gbdt": member})},
    )  # fmt: skip


def outcomes() -> list[Outcome]:
    """Half of the cards are fraud, on both sides. The last label shows that all are known."""
    events = [(f"e{k}", "fraud" if k % 4 < 2 else "genuine") for k in range(BOTH, BOTH + NEW + OLD)]
    return [
        Outcome(event, 0, 0, "2", "champion", "p", "review", 0, 1, label, None, "analyst", None, at, 0)  # type: ignore[arg-type]
        for at, (event, label) in [*enumerate(events), (LATER, ("another", "genuine"))]
    ]


def test_a_bad_version_is_rolled_back_and_labels_may_clear_it(
    shared_stack: StackAddresses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream_scorer.control.label_watch.JUDGE_EVERY_MS", 200)
    bootstrap, topics = str(shared_stack.kafka), Topics("watch.")
    TopicAdmin(bootstrap).create_all(topics, 2)
    log, history = ControlLog(bootstrap, topics.control), History()
    for version in (ONE, TWO):
        catch_up(log, history, log.end())
        entry = submit(log, history, lambda offset, version=version: promotion(version, offset))  # type: ignore[misc]
        assert not entry.refused
    settings = load_settings(
        {"kafka.bootstrap": bootstrap, "topics.prefix": "watch.", "monitor.mode": "auto"}, environment={}
    )
    run = watch_run(settings, Metrics(WATCH_METRICS), "monitor", HORIZON)
    assert run is not None
    stop = threading.Event()

    def watch() -> None:
        with suppress(Stopped):  # the monitor expects it from a part that it stops
            run(stop, lambda: None)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    producer = Producer(producer_config(bootstrap, "writer"))
    try:
        producer.produce(topics.score_summaries, msgspec.json.encode(summary()), partition=0)
        producer.flush(15)
        wait_for(lambda: catch_up(log, history, log.end()) or history.states["cards"].champion == ONE)
        command = history.entries[-1].command
        assert command is not None and command.author == "monitor"
        assert "member gbdt causes 20.0 more alerts" in command.why
        assert command.why.endswith("reads amount 2 times as large")
        for outcome in outcomes():
            producer.produce(topics.outcomes, msgspec.json.encode(outcome), partition=0)
        producer.flush(15)
        incidents = Incidents(ControlLog(bootstrap, topics.incidents))
        wait_for(lambda: any(each.id == "cards-1-labels" for each in incidents.open()))
        found = incidents.log.read().newest
        incidents.close()
    finally:
        stop.set()
        thread.join(20)
        log.close()
    assert not thread.is_alive()
    assert (found["cards-1"].member, found["cards-1"].input) == ("gbdt", "amount")
    assert found["cards-1"].closed is not None and found["cards-1-labels"].due == "promote"
    verdicts = ControlLog(bootstrap, topics.verdicts)
    labels = read_verdicts(verdicts)["cards-1"].labels
    verdicts.close()
    assert labels is not None and (labels.finding, labels.waiting) == ("cleared", 0)
    assert (
        labels.candidate_only.fraud + labels.candidate_only.genuine == NEW
        and labels.baseline_only.fraud + labels.baseline_only.genuine == OLD
    )


def promotion(version: ServedVersion, offset: int) -> Command:
    return Command(
        ensemble="cards", action="promote", who="ann", why="so", at=int(time.time() * 1_000), expected_offset=offset,
        version=version,
    )  # fmt: skip


def wait_for(holds: object) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.1)
