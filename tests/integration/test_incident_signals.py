"""The signals on a real Kafka: topics are read from their beginning, and conditions become incidents on their topic."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from confluent_kafka import Producer

from stream_scorer.app import signals_run
from stream_scorer.cli.incident import incident
from stream_scorer.errors import UsageError
from stream_scorer.incidents.log import IncidentLog
from stream_scorer.incidents.signals import INCIDENT_METRICS
from stream_scorer.kafka.config import producer_config
from stream_scorer.kafka.control_log import ControlLog
from stream_scorer.kafka.topics import TopicAdmin, Topics
from stream_scorer.observability.metrics import Metrics
from stream_scorer.records import Incident, PaneSummary, ScoreSummary
from stream_scorer.settings import load_settings
from stream_scorer.stack import StackAddresses

pytestmark = pytest.mark.integration
MINUTE, ROWS, DEAD = 60_000, 90, 10


def summary(partition: int, first: int, at: int) -> ScoreSummary:
    pane = PaneSummary(at, ROWS, 0, 0, 0, {"approve": ROWS}, {"approve": 10 * ROWS}, {}, {}, {}, [], {})
    stop = first + ROWS + DEAD
    return ScoreSummary(
        "cards", "7", "champion", 3_600_000, "transactions", partition, first, stop, DEAD, [pane], 3, {}, at
    )


def test_the_backlog_of_the_topics_becomes_incidents(shared_stack: StackAddresses, tmp_path: Path) -> None:
    bootstrap, topics = str(shared_stack.kafka), Topics("signals.")
    TopicAdmin(bootstrap).create_all(topics, 2)
    producer = Producer(producer_config(bootstrap, "writer"))
    begin = int(time.time() * 1_000) // MINUTE * MINUTE - 20 * MINUTE
    # Partition 1 delivers for ten minutes only; a tenth of the transactions are dead letters.
    for minute in range(20):
        at = begin + minute * MINUTE + 1_000
        for partition in (0, 1) if minute < 10 else (0,):
            value = msgspec.json.encode(summary(partition, minute * 100, at))
            producer.produce(topics.score_summaries, value, partition=partition, timestamp=at)
            place = {"source.topic": "transactions", "source.partition": str(partition), "source.offset": f"{minute}07"}
            headers = {"error.code": "type", "error.path": "amount"} | place
            for _ in range(DEAD):
                producer.produce(topics.dead_letters, b"x", partition=partition, timestamp=at, headers=headers)
    producer.flush(15)
    flags = {"kafka.bootstrap": bootstrap, "topics.prefix": "signals."}
    metrics = Metrics(INCIDENT_METRICS)
    run = signals_run(load_settings(flags, environment={}), metrics)
    assert run is not None
    stop, ready = threading.Event(), threading.Event()
    thread = threading.Thread(target=run, args=(stop, ready.set), daemon=True)
    thread.start()
    evaluated = ready.wait(60)
    stop.set()
    thread.join(20)
    assert evaluated and not thread.is_alive()
    log = IncidentLog(ControlLog(bootstrap, topics.incidents))
    found = {each.subject: each for each in log.open()}
    log.close()
    assert set(found) == {"transactions, partition 1, silent", "transactions, dead letters"}
    letters = found["transactions, dead letters"]
    assert (letters.field, letters.code, letters.statistics["share"]) == ("amount", "type", DEAD / (ROWS + DEAD))
    assert [source.offset for source in letters.first] == [7, 7]
    assert metrics.registry.get_sample_value("stream_scorer_open_incidents", {"kind": "feed"}) == 2
    check_commands(["--bootstrap", bootstrap, "--topic-prefix", "signals."], letters, tmp_path)


def check_commands(where: list[str], letters: Incident, folder: Path) -> None:
    """`incident list`, `show` and `page` on these topics."""
    runner = CliRunner()
    listed = runner.invoke(incident, ["list", "--json", *where])
    assert {each["id"] for each in json.loads(listed.stdout)["incidents"]} >= {letters.id}
    table = runner.invoke(incident, ["list", "--kind", "feed", *where])
    assert letters.id in table.stdout and "type in field amount" in table.stdout
    shown = runner.invoke(incident, ["show", letters.id, *where])
    assert "10 % of the transactions" in shown.stdout and "no command" in shown.stdout
    pages = []
    for name in ("one.html", "two.html"):
        assert runner.invoke(incident, ["page", letters.id, "-o", str(folder / name), *where]).exit_code == 0
        pages.append((folder / name).read_bytes())
    assert pages[0] == pages[1] and b"<svg" in pages[0]
    with pytest.raises(UsageError, match="there is no incident 'nope'"):
        runner.invoke(incident, ["show", "nope", *where], catch_exceptions=False)
