"""A scorer through outages of the real parts: the broker killed, Redis gone and back empty, SIGTERM in mid-backlog."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from click.testing import CliRunner

from proofs.kill_once import check_features
from proofs.kit import (
    CARDS_SPEC,
    Context,
    Ends,
    Result,
    Scorer,
    empty,
    publish,
    read_topic,
    wait_drained,
    wait_until,
)
from stream_scorer.app import passthrough
from stream_scorer.cli.main import cli
from stream_scorer.clock import SystemClock
from stream_scorer.errors import CheckFailed
from stream_scorer.kafka import reader, transactions
from stream_scorer.kafka.topics import TopicAdmin, Topics
from stream_scorer.observability.liveness import Health
from stream_scorer.observability.metrics import Metrics
from stream_scorer.pipeline.processor import Processor
from stream_scorer.records import Contribution, Score
from stream_scorer.settings import load_settings
from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.simulate.encode import encode_keys, encode_values
from stream_scorer.simulate.generate import generate
from stream_scorer.stack import LocalStack, StackAddresses
from stream_scorer.state.client import connect
from stream_scorer.state.row_format import ENTRY_BYTES

pytestmark = pytest.mark.integration
N = 5_000
CUSTOMERS = ("customer.", "customer_rhythm.")
Parts = tuple[LocalStack, StackAddresses]
Start = Callable[[Context, StackAddresses], Scorer]


@pytest.fixture(scope="module")
def stack() -> Iterator[LocalStack]:
    with LocalStack(services=("kafka", "redis")) as started:
        yield started


@pytest.fixture
def parts(stack: LocalStack) -> Parts:
    empty(stack.addresses)
    TopicAdmin(str(stack.addresses.kafka)).create_all(Topics(), 2)
    return stack, stack.addresses


def records(n: int, seed: int = 5) -> tuple[list[bytes], list[bytes]]:
    config = SimulationConfig(seed=seed, customers=300, days=None, transactions=n)
    transactions = generate(config.starting(config.start_to_end_by(SystemClock().now_ms())))
    return encode_keys(transactions.customer_id), encode_values(transactions)


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts scorers that end with the test, however it ends."""
    started: list[Scorer] = []

    def begin(context: Context, at: StackAddresses) -> Scorer:
        slow = ["--batch", "64", "--pace-ms", "10"]
        scorer = Scorer(context.folder, at, instance="scorer", ensemble=context.folder / "ensemble", arguments=slow)
        started.append(scorer)
        scorer.start()
        return scorer

    yield begin
    for scorer in started:
        scorer.close()


def wait_for_progress(at: StackAddresses, share: float, n: int) -> None:
    ends = Ends(str(at.kafka), Topics().scores)
    wait_until(f"{share:.0%} is scored", lambda: ends.committed() > share * n, 60, 0.02)
    ends.close()


def assert_each_scored_once(at: StackAddresses) -> None:
    inputs = read_topic(str(at.kafka), Topics().transactions)
    outputs = Counter(
        (c.source.partition, c.source.offset)
        for c in read_topic(str(at.kafka), Topics().contributions).decode(Contribution)
    )
    assert outputs == Counter(dict.fromkeys(zip(inputs.partition, inputs.offset, strict=True), 1))


def test_a_broker_that_is_killed_and_comes_back_costs_no_record(
    parts: Parts, context: Callable[..., Context], start: Start
) -> None:
    stack, at = parts
    asked = context(N)
    publish(str(at.kafka), Topics().transactions, *records(N))
    scorer = start(asked, at)
    wait_for_progress(at, 0.2, N)
    stack.restart("kafka", kill=True)
    wait_drained(str(at.kafka), [scorer], timeout_s=120)
    assert scorer.stop() == 0
    assert_each_scored_once(at)
    result = Result()
    assert check_features(result, str(at.kafka), str(at.redis), CUSTOMERS) == 0
    assert result.ok, result.checks


@contextmanager
def copying(at: StackAddresses, instance: str) -> Iterator[tuple[Processor, threading.Event, threading.Thread]]:
    """A scorer of this process that copies records, what ends it, and its thread."""
    flags = {"kafka.bootstrap": str(at.kafka), "scorer.instance": instance, "scorer.batch": 32, "scorer.pace_ms": 100}
    stop = threading.Event()
    with passthrough(load_settings(flags, environment={}), Metrics(), Health(SystemClock())) as processor:
        thread = threading.Thread(target=processor.run, args=(stop,), kwargs={"beat": lambda: None}, daemon=True)
        thread.start()
        try:
            yield processor, stop, thread
        finally:
            stop.set()
            thread.join(30.0)


def test_scorers_wait_for_a_broker_that_is_away_for_longer_than_any_call_waits(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack, at = parts
    monkeypatch.setattr(transactions, "CALL_TIMEOUT_S", 0.5)
    monkeypatch.setattr(reader, "SESSION_TIMEOUT_MS", 6_000)
    publish(str(at.kafka), Topics().transactions, *records(N))
    with copying(at, "one") as (one, _, thread), copying(at, "two") as (two, stop_two, thread_two):
        wait_for_progress(at, 0.1, N)
        wait_until("both have partitions", lambda: all(each._reader.owned for each in (one, two)), 30)
        monkeypatch.setattr(transactions, "INIT_DEADLINE_S", 1.0)
        monkeypatch.setattr(reader, "COMMITTED_DEADLINE_S", 1.0)
        stack.stop_service("kafka", kill=True)
        # By a call that fails, or by the loss of the partitions if everything is scored already.
        wait_until("the outage is reported", lambda: not one.ready()[0], 30)
        time.sleep(8.0)  # partitions are lost meanwhile
        stop_two.set()
        began = time.monotonic()
        thread_two.join(30.0)
        assert time.monotonic() - began < 10.0
        assert thread.is_alive() and not one.ready()[0]
        stack.start_service("kafka")
        wait_until("everything is scored", lambda: len(read_topic(str(at.kafka), Topics().scores).value) >= N, 60)
        wait_until("it is ready again", lambda: one.ready()[0], 30)
        assert thread.is_alive()
    inputs, outputs = (read_topic(str(at.kafka), topic) for topic in (Topics().transactions, Topics().scores))
    for partition in range(2):  # each once, in order
        expected, found = (
            [value for at, value in zip(topic.partition, topic.value, strict=True) if at == partition]
            for topic in (inputs, outputs)
        )
        assert found == expected


def test_redis_gone_degrades_and_says_so_and_its_return_brings_features_back(
    parts: Parts, context: Callable[..., Context], start: Start
) -> None:
    stack, at = parts
    asked = context(N)
    keys, values = records(N + 1_000)
    publish(str(at.kafka), Topics().transactions, keys[:N], values[:N])
    scorer = start(asked, at)
    wait_for_progress(at, 0.2, N)
    stack.stop_service("redis", kill=True)
    wait_for_progress(at, 0.6, N)
    stack.start_service("redis")  # empty: it keeps nothing on disk
    wait_until("features are rebuilt", lambda: "features are rebuilt" in scorer.log.read_text(), 60)
    wait_drained(str(at.kafka), [scorer], timeout_s=120)
    publish(str(at.kafka), Topics().transactions, keys[N:], values[N:])
    wait_drained(str(at.kafka), [scorer], timeout_s=60)
    assert scorer.stop() == 0
    assert_each_scored_once(at)
    scores = read_topic(str(at.kafka), Topics().scores).decode(Score)
    degraded = [s for s in scores if s.degraded]
    assert {reason for s in degraded for reason in s.degraded} >= {"features_unavailable"}
    assert all(s.score is not None for s in degraded)
    late = {s.event_id for s in scores[-200:]}
    assert not late & {s.event_id for s in degraded}
    # Rows are whole again, and what was scored after the return saw them.
    result = Result()
    assert check_features(result, str(at.kafka), str(at.redis), CUSTOMERS) == len(degraded)
    assert result.ok, result.checks


def test_sigterm_in_mid_backlog_ends_in_order_and_the_next_start_goes_on(
    parts: Parts, context: Callable[..., Context], start: Start
) -> None:
    _, at = parts
    asked = context(N)
    publish(str(at.kafka), Topics().transactions, *records(N))
    scorer = start(asked, at)
    wait_for_progress(at, 0.2, N)
    began = time.monotonic()
    assert scorer.stop(10) == 0
    assert time.monotonic() - began < 10
    scorer.start()
    wait_drained(str(at.kafka), [scorer], timeout_s=60)
    assert scorer.stop() == 0
    assert_each_scored_once(at)
    # An orderly stop leaves nothing to abort.
    assert len(read_topic(str(at.kafka), Topics().scores, uncommitted=True)) == N
    look_at_features(at)


def look_at_features(at: StackAddresses) -> None:
    """`features check` finds what is missing and what is too much, `features show` shows an entity."""
    there = ["--bootstrap", str(at.kafka), "--redis", str(at.redis), "--spec", str(CARDS_SPEC)]
    result = CliRunner().invoke(cli, ["features", "check", "--json", *there])
    assert result.exit_code == 0, result.output
    report = json.loads(result.output.splitlines()[-1])
    assert report["records"] == N
    assert report["rows"] > 1_000
    client = connect(str(at.redis))
    customer = next(k for k in client.scan_iter(match="*:r:0:*") if client.strlen(k) > 3 * ENTRY_BYTES)
    row = client.get(customer)
    assert row is not None
    owner = customer.decode().rsplit(":", 1)[1]
    result = CliRunner().invoke(cli, ["features", "show", "customer", owner, "--json", *there])
    assert result.exit_code == 0, result.output
    shown = json.loads(result.output.splitlines()[-1])
    assert shown["entries"] == len(row) // ENTRY_BYTES
    assert shown["features"]["customer.count_30d"] == shown["entries"]
    assert shown["age_ms"]["customer.count_30d"] == 0
    assert shown["age_ms"].keys() == shown["features"].keys()
    assert "age" in CliRunner().invoke(cli, ["features", "show", "customer", owner, *there]).output
    assert CliRunner().invoke(cli, ["features", "show", "customer", "nobody", *there]).exit_code != 0
    for broken in (row[ENTRY_BYTES:], row + row[:ENTRY_BYTES]):
        client.set(customer, broken)
        result = CliRunner().invoke(cli, ["features", "check", *there])
        assert isinstance(result.exception, CheckFailed)
        assert f"customer {owner}" in result.output
    client.set(customer, row)
    result = CliRunner().invoke(cli, ["features", "expire", *there])
    assert result.exit_code == 0, result.output
    assert "keys deleted" in result.output
    assert CliRunner().invoke(cli, ["features", "check", *there]).exit_code == 0
    assert client.get(customer) == row  # somebody will read it again
