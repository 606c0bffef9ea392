"""Names of topics, and what a look at them leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka import Producer

from stream_scorer.errors import SettingsError, UsageError
from stream_scorer.kafka.topics import TopicAdmin, Topics
from stream_scorer.settings import SETTINGS_FILE, TOPICS, Settings, load_settings


def load(folder: Path, text: str) -> Settings:
    (folder / SETTINGS_FILE).write_text(text)
    return load_settings({}, environment={}, directory=folder)


def test_any_topic_keeps_its_name_and_the_prefix_is_for_the_others(tmp_path: Path) -> None:
    text = '[topics]\nprefix = "fraud."\ntransactions = "payments.card.auth"\ncontrol = "ops-control"\n'
    topics = Topics.of(load(tmp_path, text))
    assert (topics.transactions, topics.control, topics.dead_letters) == (
        "payments.card.auth",
        "ops-control",
        "fraud.transactions.dlq",
    )
    assert topics.config("ops-control")["retention.ms"] == "-1"
    assert "ops-control" in topics.of_one_partition()
    assert topics.inputs()[0] == "payments.card.auth"
    assert len(set(topics.all())) == len(TOPICS)
    assert topics.find("payments.card.auth") == topics.find("transactions") == ("transactions", "payments.card.auth")
    assert topics.find("fraud.scores") == topics.find("scores") == ("scores", "fraud.scores")
    assert topics.find("elsewhere") == ("elsewhere", "elsewhere")


def test_default_names_do_not_change(tmp_path: Path) -> None:
    assert Topics.of(load(tmp_path, "")) == Topics()
    assert Topics().all() == list(TOPICS.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('scores = "alerts"', "two topics have the same name: alerts"),
        ('scores = "a b"', "topics.scores = a b .from stream-scorer.toml. is not a topic name"),
        ('scores = ".."', "not a topic name"),
        ('stores = "a"', "there is no setting 'topics.stores'"),
    ],
)
def test_a_wrong_name_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load(tmp_path, f"[topics]\n{text}\n")


def test_a_look_for_a_missing_topic_does_not_create_it() -> None:
    """librdkafka's broker in memory creates topics on request, as Kafka does by default."""
    producer = Producer({"bootstrap.servers": "memory", "test.mock.num.brokers": 1, "log_level": 0})
    (broker,) = producer.list_topics(timeout=10).brokers.values()
    admin = TopicAdmin(f"{broker.host}:{broker.port}")
    for _ in range(2):
        with pytest.raises(UsageError, match="missing topics"):
            admin.require(["control"])
    assert admin.partitions() == {}
