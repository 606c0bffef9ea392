"""The monitor on a real Kafka and Redis: what it says equals a recomputation from the topics, whatever is killed."""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy as np
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from numpy.typing import NDArray

from proofs.storm_proxy import Proxy
from stream_scorer.clock import SystemClock
from stream_scorer.control.commands import catch_up
from stream_scorer.control.state import History
from stream_scorer.kafka.config import consumer_config, producer_config
from stream_scorer.kafka.control_log import ControlLog
from stream_scorer.kafka.topics import TopicAdmin, Topics
from stream_scorer.kafka.transactional_loop import TransactionalLoop
from stream_scorer.monitor.joiner import Joiner, JoinerService, JoinRules
from stream_scorer.monitor.joiner_store import JoinerStore
from stream_scorer.records import (
    CARD_GROUPS,
    DECISIONS,
    CardAlerts,
    Command,
    MonitorMetric,
    Outcome,
    PaneSummary,
    Score,
    ScoreSummary,
    ServedVersion,
)
from stream_scorer.stack import StackAddresses
from stream_scorer.stack.ports import free_port

pytestmark = pytest.mark.integration

SPEC = Path(__file__).parents[2] / "stream_scorer" / "simulate" / "cards.yaml"
HOUR = 3_600_000
# A day about a month ago: a label much older than its record is refused.
T0 = (int(time.time()) // 86_400 - 30) * 24 * HOUR
PARTITIONS = 3
EDGES = [0.1, 0.2, 0.4, 0.6, 0.8]
# Two versions, one of which drifts; the last bin of a reference is for the missing.
REFERENCE = [4_000, 2_500, 2_000, 1_000, 300, 200, 0]
VERSIONS = ("1", "2")
# Share of the approved transactions that is drawn for review.
SAMPLE = 0.01
RANK = {"random_review": 1, "analyst": 2, "chargeback": 3}


@dataclass
class Topping:
    """What was sent, and what is hidden."""

    truth: dict[str, bool] = field(default_factory=dict)
    sent: int = 0
    aborted: int = 0


class Feed:
    """Sends what a scorer and people would: scores and a summary in one transaction, labels in theirs."""

    def __init__(self, bootstrap: str, topics: Topics, seed: int) -> None:
        self.topics = topics
        self.rng = np.random.default_rng(seed)
        self.producer = Producer(
            producer_config(bootstrap, "feed") | {"transactional.id": f"feed-{topics.prefix}", "partitioner": "murmur2"}
        )
        self.producer.init_transactions(15)
        self.book = Topping()
        self.offsets = [0] * PARTITIONS
        self.waiting: list[tuple[float, dict[str, Any]]] = []

    def batch(self, number: int, hour: float) -> None:
        """Score one micro-batch around event hour `hour`; every seventh is aborted first, with other content."""
        if number % 7 == 3:
            self._send(number, hour, commit=False)
            self.book.aborted += 1
        self._send(number, hour, commit=True)
        if number % 5 == 0:
            self.labels(hour)

    def _send(self, number: int, hour: float, *, commit: bool) -> None:
        partition = number % PARTITIONS
        rows = int(self.rng.integers(20, 60))
        version = VERSIONS[int(hour > 40)]
        times = (T0 + (hour + self.rng.uniform(-1.5, 0.0, rows)) * HOUR).astype(int)
        fraud = self.rng.random(rows) < 0.02
        values = np.clip(self.rng.beta(1.2, 6, rows) + fraud * 0.5 * self.rng.random(rows), 0, 0.999)
        if version == "2":
            values = np.sqrt(values)
        self.producer.begin_transaction()
        scores = []
        for row in range(rows):
            value = float(values[row])
            decision = DECISIONS[int(value >= 0.3) + int(value >= 0.8)]
            event_id = f"e{number}-{row}" if commit else f"aborted-{number}-{row}"
            drawn = decision == "approve" and self.rng.random() < SAMPLE
            score = Score(
                event_id, int(times[row]), int(times[row]), value, decision, "model", "cards", version,
                "champion", "p1", 1.0, False, [], int(value > 0.5), int(self.rng.integers(100, 90_000)),
                card_group=row % CARD_GROUPS, review_propensity=SAMPLE if drawn else msgspec.UNSET,
            )  # fmt: skip
            scores.append(score)
            self.producer.produce(
                self.topics.scores, key=event_id, value=msgspec.json.encode(score), partition=partition
            )
            if commit:
                self.book.truth[event_id] = bool(fraud[row])
                self._plan_labels(score, bool(fraud[row]), hour)
        summary = self._summary(scores, partition, version)
        self.producer.produce(
            self.topics.score_summaries, key=str(partition), value=msgspec.json.encode(summary), partition=partition
        )
        if commit:
            self.producer.commit_transaction(15)
            self.offsets[partition] += rows
            self.book.sent += rows
        else:
            self.producer.flush(10)  # aborted records that are in the log, not only in a buffer
            self.producer.abort_transaction(15)

    def _summary(self, scores: list[Score], partition: int, version: str) -> ScoreSummary:
        panes = defaultdict(list)
        for score in scores:
            panes[score.event_time - score.event_time % HOUR].append(score)
        found = []
        for pane, members in sorted(panes.items()):
            bins = binned(members)
            sparse = [int(x) for b in np.flatnonzero(bins) for x in (b, bins[b])]
            found.append(
                PaneSummary(
                    pane, len(members), 0, 0, 0,
                    {d: sum(s.decision == d for s in members) for d in DECISIONS},
                    {d: sum(s.value for s in members if s.decision == d) for d in DECISIONS},
                    {"amount_log": sparse}, {"gbm": sparse}, {"gbm": sum(s.member_alerts for s in members)},
                    sparse, {"gbm": [1, 0, 0, len(members) - 1]},
                    sampled=sum(s.review_propensity is not msgspec.UNSET for s in members),
                )
            )  # fmt: skip
        first = self.offsets[partition]
        return ScoreSummary(
            "cards",
            version,
            "champion",
            HOUR,
            self.topics.transactions,
            partition,
            first,
            first + len(scores),
            0,
            found,
        )

    def _plan_labels(self, score: Score, fraud: bool, hour: float) -> None:
        draw = self.rng.random(4)
        plan: list[tuple[float, str, bool, float | None]] = []
        if score.decision != "approve" and draw[0] < 0.5:
            errs = draw[3] < (0.05 if fraud else 0.01)
            plan.append((hour + 3, "analyst", fraud != errs, 0.5))
        if score.review_propensity is not msgspec.UNSET:
            plan.append((hour + 5, "random_review", fraud, SAMPLE))
        if score.decision != "block" and fraud and draw[2] < 0.8:
            plan.append((hour - 2 if draw[3] < 0.2 else hour + 20 * draw[2], "chargeback", True, None))
        if draw[3] < 0.01:
            plan.append((hour + 1, "neighbour", fraud, None))  # a source without a rank loses to all others
        for when, source, is_fraud, probability in plan:
            label = {
                "event_id": score.event_id,
                "event_time": score.event_time,
                "label": "fraud" if is_fraud else "genuine",
                "labelled_at": max(score.event_time + 1, int(T0 + when * HOUR)),
                "source": source,
                "customer_id": "c",
            }
            if probability is not None:
                label["review_probability"] = probability
            self.waiting.append((when, label))
            if draw[0] < 0.05:
                self.waiting.append((when + 1, label))  # the same label twice

    def labels(self, hour: float) -> None:
        """Send the labels due by `hour`, a few of them in a transaction that is aborted and then sent again."""
        due = [label for when, label in self.waiting if when <= hour]
        self.waiting = [(when, label) for when, label in self.waiting if when > hour]
        for commit in (False, True):
            self.producer.begin_transaction()
            for label in due if commit else due[:3]:
                sent = label if commit else label | {"label": "fraud", "source": "chargeback"}
                self.producer.produce(self.topics.labels, key=label["event_id"], value=json.dumps(sent))
            self.producer.flush(10)
            if commit:
                self.producer.commit_transaction(15)
            else:
                self.producer.abort_transaction(15)


def binned(scores: list[Score]) -> NDArray[np.int64]:
    """Counts of final scores on the reference's bins."""
    values = np.array([score.score for score in scores], dtype=np.float64)
    return np.bincount(np.searchsorted(EDGES, values, side="right"), minlength=len(REFERENCE))


def read_all(bootstrap: str, topic: str) -> list[bytes]:
    """Every committed value of a topic, partition by partition."""
    consumer = Consumer(consumer_config(bootstrap, "reader", "reader") | {"enable.partition.eof": True})
    count = len(consumer.list_topics(topic, timeout=10).topics[topic].partitions)
    consumer.assign([TopicPartition(topic, p, 0) for p in range(count)])
    values, open_partitions = [], set(range(count))
    while open_partitions:
        for message in consumer.consume(500, 0.2):
            if message.error():
                open_partitions.discard(message.partition())
            else:
                values.append(message.value() or b"")
    consumer.close()
    return values


def recompute(bootstrap: str, topics: Topics) -> dict[tuple[int, str, str, str], tuple[Any, ...]]:
    """Numerators, denominators and drift by pane, from `scores` and `labels` alone, one event at a time."""
    scores = {s.event_id: s for s in (msgspec.json.decode(v, type=Score) for v in read_all(bootstrap, topics.scores))}
    holds: dict[str, tuple[int, int, dict[str, Any]]] = {}
    for value in read_all(bootstrap, topics.labels):
        label = json.loads(value)
        order = (RANK.get(label["source"], -1), label["labelled_at"])
        if label["event_id"] not in holds or order > holds[label["event_id"]][:2]:
            holds[label["event_id"]] = (*order, label)
    panes = defaultdict(list)
    for score in scores.values():
        panes[score.event_time - score.event_time % HOUR, score.version].append(score)
    expected: dict[tuple[int, str, str, str], tuple[Any, ...]] = {}
    for (pane, version), members in panes.items():
        n = len(members)
        expected[pane, version, "transactions", ""] = (n, None)
        bins = binned(members) + 0.5
        p, q = bins / bins.sum(), (np.array(REFERENCE) + 0.5) / (sum(REFERENCE) + 3.5)
        m = (p + q) / 2
        distance = float(np.sqrt((np.sum(p * np.log(p / m)) + np.sum(q * np.log(q / m))) / 2))
        expected[pane, version, "drift_score", "score"] = (round(distance, 9), n)
        for name, positive in (("review+block", {"review", "block"}), ("block", {"block"})):
            alerted = [s for s in members if s.decision in positive]
            expected[pane, version, "alert_rate", name] = (len(alerted), n)
            verdicts = [(s, holds[s.event_id][2]["label"]) for s in members if s.event_id in holds]
            frauds = sum(label == "fraud" for _, label in verdicts)
            fp = sum(label == "genuine" and s.decision in positive for s, label in verdicts)
            if not verdicts:  # no label and no false positive look alike
                expected[pane, version, "fpr", name] = expected[pane, version, "precision", name] = (None, None)
                continue
            expected[pane, version, "fpr", name] = (fp, n - frauds)
            tp = sum(label == "fraud" and s.decision in positive for s, label in verdicts)
            expected[pane, version, "precision", name] = (tp, len(alerted))
    return expected


def latest(bootstrap: str, topics: Topics) -> dict[tuple[int, int, str, str, str], MonitorMetric]:
    """The last revision of every figure."""
    found: dict[tuple[int, int, str, str, str], MonitorMetric] = {}
    for value in read_all(bootstrap, topics.monitor_metrics):
        m = msgspec.json.decode(value, type=MonitorMetric)
        key = (m.window_start, m.window_end - m.window_start, m.version, m.metric, m.dimension)
        if key not in found or m.revision > found[key].revision:
            found[key] = m
    return found


def shown(metrics: dict[tuple[int, int, str, str, str], MonitorMetric], expected: Any) -> dict[Any, tuple[Any, ...]]:
    """The figures of single panes, in the form of `recompute`."""
    out: dict[Any, tuple[Any, ...]] = {}
    for (start, length, version, metric, dimension), m in metrics.items():
        key = (start, version, metric, dimension)
        if length == HOUR and key in expected:
            first = round(m.value, 9) if metric == "drift_score" and m.value is not None else m.numerator
            out[key] = (first, m.denominator)
    return out


@dataclass
class Monitor:
    """A monitor as a process of its own."""

    process: subprocess.Popen[str]

    @classmethod
    def start(
        cls, stack: Any, topics: Topics, state: Path, *more: str, before: Callable[[], None] | None = None
    ) -> Monitor:
        command = [
            sys.executable, __file__, "--bootstrap", stack.addresses.kafka, "--redis", stack.addresses.redis,
            "--topic-prefix", topics.prefix, "--monitor-group", "stream-scorer-monitor", "--spec", str(SPEC),
            "--state-dir", str(state), "--metrics-port", "0",
            "--idle-after", "3", "--emit-every", "0.5", *more,
        ]  # fmt: skip
        return cls(
            subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, preexec_fn=before)
        )

    def wait_ready(self) -> float:
        """Seconds from now until it logs that it monitors."""
        began = time.monotonic()
        assert self.process.stderr is not None
        lines = []
        for line in self.process.stderr:
            lines.append(line)
            if line.startswith("monitoring"):
                os.set_blocking(self.process.stderr.fileno(), False)
                return time.monotonic() - began
        raise AssertionError("the monitor ended: " + "".join(lines))

    def end(self) -> tuple[int, float, str]:
        """Exit code after SIGTERM, the seconds it took, and what it logged."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(15)
        assert self.process.stderr is not None
        return code, time.monotonic() - began, self.process.stderr.read() or ""

    def kill(self) -> None:
        """SIGKILL, or nothing if it has ended."""
        self.process.kill()
        self.process.wait(10)
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.fixture
def stack(shared_stack: StackAddresses) -> Any:
    return SimpleNamespace(addresses=shared_stack)


@pytest.fixture
def topics(stack: Any, request: pytest.FixtureRequest) -> Topics:
    named = Topics(f"{request.node.name.replace('_', '-')[:40]}.")
    TopicAdmin(stack.addresses.kafka).create_all(named, PARTITIONS)
    return named


def converge(stack: Any, topics: Topics, seconds: float) -> tuple[dict[Any, Any], dict[Any, Any], Any]:
    """Recompute, and read what the monitor publishes until both are equal or the time is up."""
    expected = recompute(stack.addresses.kafka, topics)
    deadline = time.monotonic() + seconds
    while True:
        metrics = latest(stack.addresses.kafka, topics)
        found = shown(metrics, expected)
        if found == expected or time.monotonic() > deadline:
            return expected, found, metrics
        time.sleep(0.5)


def test_windows_equal_a_recomputation_after_kills(stack: Any, topics: Topics, tmp_path: Path) -> None:
    """One worker is killed twice, a second one joins and is killed too; every seventh batch was aborted before.

    The last worker loses records that it has fetched.
    """
    feed = Feed(stack.addresses.kafka, topics, seed=11)
    worker = Monitor.start(stack, topics, tmp_path)
    second: Monitor | None = None
    kills = 0
    try:
        worker.wait_ready()
        for number, hour in enumerate(np.linspace(2, 78, 270)):
            feed.batch(number, float(hour))
            if number == 60:
                second = Monitor.start(stack, topics, tmp_path, "--monitor-instance", "monitor-2", "--no-joiner")
                second.wait_ready()
            if number in (100, 190):
                worker.kill()
                kills += 1
                worker = Monitor.start(stack, topics, tmp_path, *(["--lose-records"] if number == 190 else []))
            if number == 140 and second is not None:
                second.kill()
                kills += 1
        feed.labels(1e9)
        expected, found, metrics = converge(stack, topics, 40)
        assert found == expected
        code, seconds, words = worker.end()
    finally:
        worker.kill()
        if second is not None:
            second.kill()
    assert (code, "Traceback" in words) == (0, False), words
    assert "were fetched, and those after" in words
    assert seconds < 10
    assert kills == 3
    assert feed.book.aborted > 30
    assert feed.book.sent > 7_000
    _check_bounds(feed, stack, topics, metrics)
    _check_outcomes(stack, topics)
    assert sum(m.closed for m in metrics.values() if m.metric == "transactions" and m.window_end < T0 + 70 * HOUR) > 60
    assert any(m.label_age and m.statistics.get("reviewed") for m in metrics.values() if m.metric == "fpr")


def _check_bounds(feed: Feed, stack: Any, topics: Topics, metrics: dict[Any, MonitorMetric]) -> None:
    """The hidden false-positive rate of every window lies within the bounds."""
    scores = [msgspec.json.decode(v, type=Score) for v in read_all(stack.addresses.kafka, topics.scores)]
    inside = 0
    for (start, length, version, metric, dimension), m in metrics.items():
        if metric != "fpr" or m.low is None or m.high is None:
            continue
        members = [s for s in scores if start <= s.event_time < start + length and s.version == version]
        genuine = [s for s in members if not feed.book.truth[s.event_id]]
        positive = dimension.split("+")
        truth = sum(s.decision in positive for s in genuine) / len(genuine)
        assert m.low - 1e-12 <= truth <= m.high + 1e-12, (m, truth)
        assert m.low <= (m.value if m.value is not None else m.low) <= m.high
        inside += 1
    assert inside > 100


def _check_outcomes(stack: Any, topics: Topics) -> None:
    """Outcomes come once each: the last one of an event says the label that holds, and each names the one before.

    How many labels change on the way depends on which topic is read first.
    """
    chains = defaultdict(list)
    for value in read_all(stack.addresses.kafka, topics.outcomes):
        outcome = msgspec.json.decode(value, type=Outcome)
        chains[outcome.event_id].append(outcome)
    assert len(chains) > 10
    for chain in chains.values():
        assert chain[0].previous_label is None
        for before, after in itertools.pairwise(chain):
            assert (after.previous_label, after.previous_source) == (before.label, before.source)
    assert not any(event_id.startswith("aborted") for event_id in chains)


def ready(port: int) -> tuple[int, dict[str, Any]]:
    """Status and parts of `/readyz`; status 0 while nothing listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return answer.status, json.loads(answer.read())["parts"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())["parts"]
    except urllib.error.URLError:
        return 0, {}


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)
    return found


def promote_a_version_that_alerts_more(bootstrap: str, topics: Topics) -> ControlLog:
    """Version 2 replaces version 1, and the summaries show that it alerts 50 % more cards. Returns the log."""
    log, now = ControlLog(bootstrap, topics.control), int(time.time() * 1_000)
    for offset, version in enumerate(VERSIONS):
        command = Command(
            ensemble="cards", action="promote", who="ann", why="test", at=now, expected_offset=offset,
            version=ServedVersion(version, version * 64),
        )  # fmt: skip
        assert log.append("cards", msgspec.json.encode(command)) == offset
    square = [2_000, 1_100, 100, 90_000]
    pane = PaneSummary(T0, 0, 0, 0, 0, {}, {}, {}, {}, {}, [], {}, {"1": square})
    alerts = [(T0, T0)] * 2_000 + [(T0, None)] * 1_100 + [(None, T0)] * 100
    names = [f"{i:016x}" for i in range(len(alerts))]
    listed = CardAlerts(93_200, 0, names, [a for a, _ in alerts], [a for _, a in alerts], against=square)
    summary = ScoreSummary(
        "cards", "2", "champion", HOUR, topics.transactions, 0, 0, 0, 0, [pane], 1, {"1": listed}, T0 + HOUR
    )
    producer = Producer(producer_config(bootstrap, "summaries"))
    producer.produce(topics.score_summaries, key="0", value=msgspec.json.encode(summary), partition=0)
    producer.flush(10)
    return log


def _fill_the_disk() -> None:
    """No file of this process may grow beyond some bytes, as on a full disk."""
    # Python 3.11 would leave cut bytecode files, on which later imports fail.
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, resource.RLIM_INFINITY))


def test_the_watch_rolls_back_without_redis_and_disk_and_the_other_parts_recover(
    stack: Any, topics: Topics, tmp_path: Path
) -> None:
    bootstrap, port, nothing = stack.addresses.kafka, free_port(), free_port()
    redis, proxy = urlsplit(str(stack.addresses.redis)).port, Proxy(nothing)
    assert redis
    log, history = promote_a_version_that_alerts_more(bootstrap, topics), History()
    worker = Monitor.start(
        SimpleNamespace(addresses=SimpleNamespace(kafka=bootstrap, redis=f"redis://127.0.0.1:{proxy.port}/0")),
        topics, tmp_path, "--mode", "auto", "--metrics-port", str(port),
        before=_fill_the_disk,
    )  # fmt: skip
    try:

        def serves() -> str:
            catch_up(log, history, log.end())
            return history.states["cards"].champion.version

        until(lambda: serves() == "1")
        until(lambda: (parts := ready(port)[1])["joiner"]["failures"] > 1 and parts["watch"]["state"] == "running")
        status, parts = ready(port)
        assert status == 503
        assert parts["watch"] == {"state": "running", "reason": "", "failures": 0}
        assert parts["windows"]["failures"] > 0 and "Redis" in parts["windows"]["reason"]
        assert "the joiner's store" in parts["joiner"]["reason"]
        proxy.target = redis
        resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        until(lambda: ready(port)[0] == 200)
        feed = Feed(bootstrap, topics, seed=5)
        for number, hour in enumerate(np.linspace(2, 30, 60)):
            feed.batch(number, float(hour))
            if number == 30:
                proxy.target = nothing
                proxy.reset()
                until(lambda: ready(port)[1]["windows"]["state"] != "running")
            if number == 45:
                proxy.target = redis
        feed.labels(1e9)
        expected, found, _ = converge(stack, topics, 40)
        assert found == expected
        assert ready(port)[1]["watch"]["failures"] == 0
        code, seconds, words = worker.end()
    finally:
        worker.kill()
        proxy.close()
        log.close()
    assert (code, "Traceback" in words) == (0, False), words
    assert seconds < 10


class Crash(Exception):
    """A process that dies at this point."""


class DyingStore(JoinerStore):
    """Dies at the nth commit, when Kafka has committed the batch and SQLite has not."""

    def __init__(self, path: Path, dies_at: int) -> None:
        super().__init__(path)
        self.left = dies_at

    def commit(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Crash
        super().commit()


def test_joiner_that_dies_between_the_two_commits(stack: Any, topics: Topics, tmp_path: Path) -> None:
    """Kafka has the batch, the store has not: the next start replays it without publishing it again."""
    feed = Feed(stack.addresses.kafka, topics, seed=3)
    for number, hour in enumerate(np.linspace(2, 40, 60)):
        feed.batch(number, float(hour))
    feed.labels(1e9)
    inputs = [(topic, p) for topic in (topics.scores, topics.labels) for p in range(PARTITIONS)]
    rules = JoinRules(HOUR, 48 * HOUR, HOUR, RANK, 400 * 24 * HOUR, 5 * 60_000)
    deaths = replayed = 0
    for dies_at in (1, 2, 3, 1, 0):
        store = DyingStore(tmp_path / "joiner.sqlite", dies_at)
        joiner = Joiner(store, rules, SystemClock(), scores=topics.scores, labels=topics.labels)
        with TransactionalLoop(
            stack.addresses.kafka, SystemClock(), group="joiner", transactional_id=topics.prefix, client_id="joiner"
        ) as loop:
            service = JoinerService(
                loop, store, joiner, SystemClock(), inputs=inputs, outcomes=topics.outcomes, batch=200
            )
            try:
                service.run(_Quiet(loop, joiner), lambda: None)  # type: ignore[arg-type]
            except Crash:
                deaths += 1
            else:
                # The last offsets hold aborted records and transaction markers.
                ends = {at: end for at, (_, end) in loop.ends(inputs).items()}
                assert {at: loop.position(at) for at in inputs} == ends
        replayed += joiner.counts.replayed
        store.close()
    assert deaths == 4
    assert replayed > 200
    _check_outcomes(stack, topics)
    scores = {
        s.event_id for s in (msgspec.json.decode(v, type=Score) for v in read_all(stack.addresses.kafka, topics.scores))
    }
    labelled = {json.loads(v)["event_id"] for v in read_all(stack.addresses.kafka, topics.labels)}
    published = {
        msgspec.json.decode(v, type=Outcome).event_id for v in read_all(stack.addresses.kafka, topics.outcomes)
    }
    assert published == labelled & scores


def test_joiner_whose_positions_and_store_retention_has_passed(stack: Any, topics: Topics, tmp_path: Path) -> None:
    """First all that it has read of a partition is deleted, then its store is lost too."""
    feed, numbers = Feed(stack.addresses.kafka, topics, seed=4), iter(range(100))
    inputs = [(topic, p) for topic in (topics.scores, topics.labels) for p in range(PARTITIONS)]
    rules = JoinRules(HOUR, 48 * HOUR, HOUR, RANK, 400 * 24 * HOUR, 5 * 60_000)

    def run(hour: float, store_name: str) -> tuple[Joiner, dict[tuple[str, int], tuple[int, int]]]:
        """Score six micro-batches and join them; also returns the bounds of the inputs."""
        for _ in range(6):
            feed.batch(next(numbers), hour)
        store = JoinerStore(tmp_path / store_name)
        joiner = Joiner(store, rules, SystemClock(), scores=topics.scores, labels=topics.labels)
        with TransactionalLoop(
            stack.addresses.kafka, SystemClock(), group="joiner", transactional_id=topics.prefix, client_id="joiner"
        ) as loop:
            service = JoinerService(loop, store, joiner, SystemClock(), inputs=inputs, outcomes=topics.outcomes)
            service.run(_Quiet(loop, joiner), lambda: None)  # type: ignore[arg-type]
            bounds = loop.ends(inputs)
        store.close()
        return joiner, bounds

    def delete(bounds: dict[tuple[str, int], tuple[int, int]]) -> None:
        """Delete all scores of partition 1."""
        at = topics.scores, 1
        admin = AdminClient({"bootstrap.servers": stack.addresses.kafka})
        for future in admin.delete_records([TopicPartition(*at, bounds[at][1])]).values():
            future.result()

    _, bounds = run(5, "first")
    delete(bounds)
    joiner, bounds = run(10, "first")
    assert joiner.counts.scores > 0 and joiner.counts.labels_lost_before is None  # only a marker was not read
    delete(bounds)
    joiner, bounds = run(15, "second")
    assert joiner.counts.replayed > 0 and joiner.counts.labels_lost_before is not None
    assert T0 + 13 * HOUR < joiner.counts.labels_lost_before <= T0 + 15 * HOUR


class _Quiet:
    """A stop that comes when nothing has arrived for a while."""

    def __init__(self, loop: TransactionalLoop, joiner: Joiner) -> None:
        self._joiner = joiner
        self._seen = (0, 0.0)

    def is_set(self) -> bool:
        counts = self._joiner.counts
        done = counts.scores + counts.labels + counts.replayed
        if done != self._seen[0]:
            self._seen = (done, time.monotonic())
        return done > 0 and time.monotonic() - self._seen[1] > 1.0


def test_errors_are_printed(stack: Any, tmp_path: Path) -> None:
    missing = Monitor.start(stack, Topics("nowhere."), tmp_path)
    assert missing.process.wait(20) == 2
    assert missing.process.stderr is not None
    words = missing.process.stderr.read()
    missing.kill()
    assert "nowhere.scores" in words
    assert "Traceback" not in words


def lose_records() -> None:
    """Let every topic lose one record, the 20th, after it was fetched."""
    from stream_scorer.monitor import app
    from stream_scorer.monitor.transport import ReadCommittedThread

    fetch, app.STUCK_S = ReadCommittedThread._fetch_records, 1.0
    seen: dict[str, int] = defaultdict(int)

    def wanted(record: Any) -> bool:
        seen[record.topic] += 1
        return seen[record.topic] != 20

    async def lossy(*arguments: Any, **more: Any) -> dict[Any, list[Any]]:
        found = {tp: [r for r in records if wanted(r)] for tp, records in (await fetch(*arguments, **more)).items()}
        return {tp: records for tp, records in found.items() if records}

    ReadCommittedThread._fetch_records = lossy  # type: ignore[method-assign]


if __name__ == "__main__":
    # The command itself, with the reference profile given instead of read from a registry.
    from stream_scorer.cli.main import main
    from stream_scorer.monitor import reference

    profile = dict.fromkeys(("score", "member:gbm", "amount_log"), (EDGES, REFERENCE))
    profiles = {("cards", version): profile for version in VERSIONS}
    reference.EnsembleReferences.profile = lambda self, ensemble, version: profiles.get((ensemble, version))  # type: ignore[method-assign]
    if "--lose-records" in sys.argv:
        sys.argv.remove("--lose-records")
        lose_records()
    sys.argv = ["stream-scorer", "monitor", *sys.argv[1:]]
    main()
