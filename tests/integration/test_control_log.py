"""A control log on a real Kafka whose last offsets hold no record, as a transactional writer leaves them."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from stream_scorer.app import check_topic_settings
from stream_scorer.clock import SystemClock
from stream_scorer.control.commands import catch_up, submit
from stream_scorer.control.follower import Follower, ScorerIdentity
from stream_scorer.control.incidents import Incidents
from stream_scorer.control.state import History
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.errors import SettingsError
from stream_scorer.kafka.config import client_config, producer_config
from stream_scorer.kafka.control_log import ControlLog, RecordWriter
from stream_scorer.kafka.topic_config import find_problems
from stream_scorer.kafka.topics import BROKER_DEFAULT, TopicAdmin, Topics
from stream_scorer.observability.liveness import Health
from stream_scorer.observability.metrics import Metrics
from stream_scorer.records import Action, Command, ServedVersion
from stream_scorer.stack import StackAddresses
from tests.support.ensembles import compose

pytestmark = pytest.mark.integration


@pytest.fixture
def bootstrap(shared_stack: StackAddresses) -> str:
    return str(shared_stack.kafka)


@pytest.fixture
def topics(bootstrap: str, request: pytest.FixtureRequest) -> Topics:
    named = Topics(f"log-{zlib.crc32(request.node.name.encode())}.")
    TopicAdmin(bootstrap).create_all(named, 1)
    return named


@pytest.fixture
def writer(bootstrap: str, topics: Topics) -> Iterator[Producer]:
    producer = Producer(producer_config(bootstrap, "writer") | {"transactional.id": f"writer-{topics.prefix}"})
    producer.init_transactions(15)
    yield producer
    producer.flush(10)


def write(producer: Producer, topic: str, *, commit: bool) -> None:
    """One record in a transaction of its own."""
    producer.begin_transaction()
    producer.produce(topic, key=b"cards", value=b"{}", partition=0)
    producer.flush(10)
    if commit:
        producer.commit_transaction(15)
    else:
        producer.abort_transaction(15)


def settled_end(log: ControlLog, offset: int) -> int:
    """The end of the log, once it has reached `offset`: a marker is written after the commit is confirmed."""
    deadline = time.monotonic() + 15
    while log.end() < offset and time.monotonic() < deadline:
        time.sleep(0.05)
    return log.end()


def ends_within(seconds: float, call: threading.Thread) -> bool:
    call.start()
    call.join(seconds)
    return not call.is_alive()


@pytest.mark.parametrize("commit", [True, False])
def test_a_transaction_at_the_end_does_not_block_a_reader(
    bootstrap: str, topics: Topics, writer: Producer, commit: bool
) -> None:
    log, history = ControlLog(bootstrap, topics.control), History()
    for begin in (0, 3):
        write(writer, topics.control, commit=commit)
        end = settled_end(log, begin + 2)  # the record and the marker of its transaction
        reading = threading.Thread(target=catch_up, args=(log, history, end), daemon=True)
        assert ends_within(15, reading)
        assert history.next_offset == end == log.append("cards", b"{}")
    assert len(history.entries) == 1 + 2 * commit
    log.close()


def test_a_transaction_at_the_end_does_not_block_a_reader_of_incidents(
    bootstrap: str, topics: Topics, writer: Producer
) -> None:
    write(writer, topics.incidents, commit=False)
    incidents = Incidents(ControlLog(bootstrap, topics.incidents))
    assert ends_within(15, threading.Thread(target=incidents.open, daemon=True))
    incidents.close()


@pytest.mark.parametrize("lost", [2, 3])
def test_a_log_that_has_lost_its_first_records_is_read_from_where_it_begins(
    bootstrap: str, topics: Topics, lost: int
) -> None:
    log = ControlLog(bootstrap, topics.control)
    for _ in range(3):
        log.append("cards", b"{}")
    log.close()
    admin = AdminClient(client_config(bootstrap, "test"))
    for future in admin.delete_records([TopicPartition(topics.control, 0, lost)]).values():
        future.result()
    log, history = ControlLog(bootstrap, topics.control), History()
    catch_up(log, history, log.end())
    assert (history.next_offset, len(history.entries), history.incomplete) == (3, 3 - lost, True)
    log.close()


def test_topics_as_created_have_no_wrong_settings(bootstrap: str, topics: Topics) -> None:
    admin = TopicAdmin(bootstrap)
    configs = admin.configs(topics.all())
    assert find_problems(topics, configs, admin.replicas(), brokers=admin.brokers()) == {}
    entry = ConfigEntry("cleanup.policy", "compact", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topics.control, incremental_configs=[entry])
    client = AdminClient(client_config(bootstrap, "test"))
    for future in client.incremental_alter_configs([resource]).values():
        future.result()
    deadline = time.monotonic() + 15  # the broker applies it a moment later
    while admin.configs([topics.control])[topics.control]["cleanup.policy"] != "compact":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(SettingsError, match="cleanup.policy is compact"):
        check_topic_settings(admin, topics)


def test_the_broker_decides_about_replicas(bootstrap: str) -> None:
    admin = TopicAdmin(bootstrap)
    assert admin.brokers() == 1
    assert set(admin.create_all(Topics("first."), 1, replication=None)) == set(Topics("first.").all())
    assert admin.create(["its-default"], 1, replication=BROKER_DEFAULT) == ["its-default"]
    assert {admin.replicas()[name] for name in ("first.control", "its-default")} == {1}


def test_a_rollback_on_a_real_broker_takes_effect_within_a_second_while_a_version_loads(
    bootstrap: str, topics: Topics, tmp_path: Path
) -> None:
    one, two, three = (ServedVersion(str(i), str(i) * 64) for i in (1, 2, 3))
    compose(tmp_path / "e")
    download = threading.Event()

    def load(version: ServedVersion) -> Ensemble:
        if version == three:
            download.wait(60)
        return Ensemble.load(tmp_path / "e", version=version.version)

    writer, clock = RecordWriter(bootstrap), SystemClock()
    follower = Follower(
        ScorerIdentity("cards", "one", "g"),
        ControlLog(bootstrap, topics.control),
        lambda: one,
        load,
        lambda topic, key, value: writer.write(getattr(topics, topic), key, value),
        clock,
        Metrics(),
        Health(clock),
    )
    follower.start()
    log, history = ControlLog(bootstrap, topics.control), History()

    def give(action: Action, version: ServedVersion | None = None) -> None:
        catch_up(log, history, log.end())
        entry = submit(
            log,
            history,
            lambda offset: Command(
                ensemble="cards",
                action=action,
                who="a",
                why="b",
                at=1,
                expected_offset=offset,
                version=version,
                share=0.1,
            ),
        )
        assert entry.refused == ""
        assert abs(entry.timestamp - clock.now_ms()) < 60_000  # the broker's time

    def serves(version: str) -> bool:
        deadline = time.monotonic() + 20
        while follower.lineup.champion.version != version and time.monotonic() < deadline:
            time.sleep(0.005)
        return follower.lineup.champion.version == version

    try:
        give("promote", two)
        assert serves("2")
        give("canary", three)
        time.sleep(0.5)
        began = time.monotonic()
        give("rollback")
        assert serves("1")
        assert time.monotonic() - began < 1.0
    finally:
        download.set()
        follower.close()
        log.close()
