"""Live traffic on a real broker: what arrives, where, when, and what is known about it afterwards."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from pathlib import Path

import msgspec
import numpy as np
import pytest

from stream_scorer.clock import SystemClock
from stream_scorer.errors import BrokerUnavailable, UsageError
from stream_scorer.kafka.follower import FollowedRecord, RecordFollower
from stream_scorer.kafka.open_loop import OpenLoopProducer
from stream_scorer.kafka.partitioner import partitions_of
from stream_scorer.kafka.topics import TopicAdmin, Topics
from stream_scorer.simulate import (
    Labeller,
    LabellerConfig,
    SimulationConfig,
    Transactions,
    encode_values,
    generate,
    generate_days,
)
from stream_scorer.simulate.config import DAY_MS
from stream_scorer.simulate.files import read_truth
from stream_scorer.simulate.garbage import GARBAGE_KINDS
from stream_scorer.simulate.live import LiveConfig, LiveTraffic
from stream_scorer.stack import StackAddresses

pytestmark = pytest.mark.integration

PARTITIONS = 4
CONFIG = SimulationConfig(seed=31, customers=1_000, terminals=200, days=None, transactions=6_000, fraud_rate=0.02)


@pytest.fixture
def bootstrap(shared_stack: StackAddresses) -> str:
    return str(shared_stack.kafka)


@pytest.fixture(scope="module")
def history() -> Transactions:
    return generate(CONFIG)


def make_topics(bootstrap: str, prefix: str) -> None:
    names = ("transactions", "labels", "alerts", "review-sample")
    TopicAdmin(bootstrap).create([f"{prefix}{name}" for name in names], PARTITIONS)


def read_all(bootstrap: str, topic: str, count: int) -> list[FollowedRecord]:
    """The first `count` records of `topic`, and whatever else comes within the second after them."""
    records: list[FollowedRecord] = []
    give_up = time.monotonic() + 30
    with RecordFollower(bootstrap, topic, client_id="test", start="beginning") as follower:
        while len(records) < count and time.monotonic() < give_up:
            records += follower.poll(timeout_s=0.2)
        records += follower.poll(timeout_s=1.0)
    return records


def test_traffic_with_duplicates_and_garbage(bootstrap: str, history: Transactions, tmp_path: Path) -> None:
    make_topics(bootstrap, "mixed-")
    config = LiveConfig(
        bootstrap, topics=Topics("mixed-"), duplicates=0.02, garbage=0.01, truth=tmp_path / "truth.parquet"
    )
    report = LiveTraffic(config, generate_days(CONFIG), None, clock=SystemClock()).run()
    assert report.transactions == len(history)
    assert report.duplicates > 50
    assert {bad.kind for bad in report.garbage} == set(GARBAGE_KINDS)
    assert report.acked == report.records == len(history) + report.duplicates + len(report.garbage)

    records = read_all(bootstrap, "mixed-transactions", report.records)
    assert len(records) == report.records
    assert max(len(record.value or b"") for record in records) > 5_000_000

    # Each key is where Java would put it.
    keys = [record.key or b"" for record in records]
    assert [record.partition for record in records] == partitions_of(keys, PARTITIONS).tolist()

    # The list of bad input names exactly the records that are not good ones.
    good = set(encode_values(history))
    bad = {(record.partition, record.offset) for record in records if record.value not in good}
    assert bad == {(b.partition, report.starts[b.partition] + b.ordinal) for b in report.garbage}

    # Every good one is there, in the order of its partition.
    arrived: dict[int, list[bytes]] = defaultdict(list)
    for record in records:
        if (record.partition, record.offset) not in bad and record.value not in arrived[record.partition]:
            arrived[record.partition].append(record.value or b"")
    expected: dict[int, list[bytes]] = defaultdict(list)
    places = partitions_of([str(c).encode() for c in history.customer_id], PARTITIONS)
    for place, value in zip(places.tolist(), encode_values(history), strict=True):
        expected[place].append(value)
    assert dict(arrived) == dict(expected)

    truth = read_truth(tmp_path / "truth.parquet")
    np.testing.assert_array_equal(truth["event_id"], history.event_id)
    np.testing.assert_array_equal(truth["fraud_kind"], history.fraud_kind)


def test_the_loop_closes_over_the_topic_of_alerts(bootstrap: str, history: Transactions) -> None:
    """Somebody blocks every second fraud within a moment; analysts see those, chargebacks come for the others."""
    make_topics(bootstrap, "loop-")
    fraud = set(history.event_id[history.fraud_kind > 0].tolist()[::2])
    done = threading.Event()

    def answer() -> None:
        with (
            RecordFollower(bootstrap, "loop-transactions", client_id="blocker", start="beginning") as follower,
            OpenLoopProducer(bootstrap, client_id="blocker", clock=SystemClock(), sleep=time.sleep) as producer,
        ):
            while not done.is_set():
                for record in follower.poll(timeout_s=0.05):
                    event_id = msgspec.json.decode(record.value or b"")["event_id"]
                    if event_id in fraud:
                        value = msgspec.json.encode({"event_id": event_id, "decision": "block", "score": 0.99})
                        producer.publish("loop-alerts", [record.key or b""], [value])

    blocker = threading.Thread(target=answer)
    blocker.start()
    try:
        config = LiveConfig(bootstrap, topics=Topics("loop-"), rate=2_000.0, alerts_s=2.0, settle_ms=10 * DAY_MS)
        # Event time passes a day in about a second: give slow alerts time before the first chargeback.
        labeller = Labeller(LabellerConfig(seed=1, capacity_per_hour=4, chargeback_min_ms=3 * DAY_MS))
        report = LiveTraffic(config, [history], labeller, clock=SystemClock()).run()
    finally:
        done.set()
        blocker.join()
    assert report.alerts == {"block": len(fraud)}
    assert (report.late_alerts, report.unknown_alerts) == (0, 0)
    assert report.elapsed_s >= 0.9 * len(history) / 2_000

    records = read_all(bootstrap, "loop-labels", report.labels.total())
    labels = [msgspec.json.decode(record.value or b"") for record in records]
    assert len(labels) == report.labels.total() > 0
    charged = {label["event_id"] for label in labels if label["source"] == "chargeback"}
    analysed = {label["event_id"] for label in labels if label["source"] == "analyst"}
    assert charged
    assert analysed
    assert not charged & fraud
    assert analysed <= fraud
    assert [record.key for record in records] == [label["customer_id"].encode() for label in labels]


def test_a_run_is_never_ahead_of_its_rate_and_can_be_stopped(
    bootstrap: str, history: Transactions, tmp_path: Path
) -> None:
    make_topics(bootstrap, "stop-")
    seen: list[int] = []
    config = LiveConfig(bootstrap, topics=Topics("stop-"), rate=500.0, truth=tmp_path / "truth.parquet")
    live = LiveTraffic(
        config, [history], None, clock=SystemClock(), on_progress=lambda report: seen.append(report.transactions)
    )
    timer = threading.Timer(3.0, live.stop)
    timer.start()
    report = live.run()
    timer.join()
    assert report.stopped
    assert seen
    assert 0 < report.transactions <= 500 * report.elapsed_s + 1
    # What was sent is confirmed and in the file all the same.
    assert report.acked == report.transactions == len(read_truth(tmp_path / "truth.parquet")["event_id"])


def test_a_run_is_bounded_in_time(bootstrap: str, history: Transactions) -> None:
    make_topics(bootstrap, "timed-")
    config = LiveConfig(bootstrap, topics=Topics("timed-"), rate=200.0, seconds=1.5)
    report = LiveTraffic(config, [history], None, clock=SystemClock()).run()
    assert report.elapsed_s >= 1.5
    assert not report.stopped
    assert report.transactions < len(history)


def test_a_missing_topic_and_a_missing_broker_raise_different_errors(bootstrap: str, history: Transactions) -> None:
    with pytest.raises(UsageError, match="nowhere-transactions"):
        LiveTraffic(LiveConfig(bootstrap, topics=Topics("nowhere-")), [history], None, clock=SystemClock()).run()
    # Nobody listens on the port of the discard service.
    with pytest.raises(BrokerUnavailable, match="127.0.0.1:9"):
        LiveTraffic(LiveConfig("127.0.0.1:9"), [history], None, clock=SystemClock()).run()
