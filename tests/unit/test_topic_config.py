"""Settings of topics that lose records."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import ConfigResource, NewTopic, ResourceType  # type: ignore[attr-defined]

from stream_scorer.cli.main import cli
from stream_scorer.kafka.config import DEFAULT_MESSAGE_BYTES, MAX_MESSAGE_BYTES
from stream_scorer.kafka.topic_config import DAY_MS, find_problems, kept_ms, loses_commands, needed_retention
from stream_scorer.kafka.topics import BROKER_DEFAULT, DEFAULT_PARTITIONS, TopicAdmin, Topics, numbers_of
from stream_scorer.monitor.joiner import JoinRules
from stream_scorer.spec import load_spec

TOPICS = Topics("x.")
COMMON = {"cleanup.policy": "delete", "max.message.bytes": str(MAX_MESSAGE_BYTES), "retention.ms": "604800000"}


def created() -> dict[str, dict[str, str]]:
    """The settings of topics that `topics create` has created."""
    return {name: COMMON | TOPICS.config(name) for name in TOPICS.all()}


def test_topics_as_they_are_created_have_no_problem() -> None:
    assert find_problems(TOPICS, created(), {}) == {}


def test_settings_that_lose_records_are_found() -> None:
    configs = created()
    configs["x.control"] |= {"cleanup.policy": "compact", "retention.ms": "604800000"}
    configs["x.serving-state"] |= {"cleanup.policy": "delete"}
    configs["x.scorer-status"] |= {"message.timestamp.type": "CreateTime", "segment.ms": "60000"}
    configs["x.scores"] |= {"cleanup.policy": "compact,delete", "max.message.bytes": "500000"}
    assert find_problems(TOPICS, configs, {}) == {
        "x.control": ["cleanup.policy is compact, must be delete", "retention.ms is 604800000, must be -1"],
        "x.serving-state": ["cleanup.policy is delete, must be compact"],
        "x.scorer-status": ["message.timestamp.type is CreateTime, must be LogAppendTime"],
        "x.scores": [
            "cleanup.policy is compact,delete, must be delete",
            f"max.message.bytes is 500000, must be at least {DEFAULT_MESSAGE_BYTES}",
        ],
    }
    assert len(loses_commands(configs["x.control"])) == 2
    assert loses_commands(COMMON | TOPICS.config("x.control")) == []


def test_three_replicas_need_two_in_sync() -> None:
    configs = {"x.scores": COMMON | {"min.insync.replicas": "1"}, "x.alerts": COMMON | {"min.insync.replicas": "2"}}
    replicas = {"x.scores": 3, "x.alerts": 3}
    assert find_problems(TOPICS, configs, replicas) == {
        "x.scores": ["min.insync.replicas is 1, must be 2 with 3 replicas"]
    }
    assert find_problems(TOPICS, configs, {"x.scores": 1, "x.alerts": 1}) == {}


def test_one_replica_among_topics_with_more_is_found() -> None:
    configs = {"x.scores": COMMON | {"min.insync.replicas": "2"}, "x.control": COMMON | TOPICS.config("x.control")}
    assert find_problems(TOPICS, configs, {"x.scores": 3, "x.control": 1}) == {
        "x.control": ["has one replica, other topics have up to 3: it is lost with its broker"]
    }


def test_one_replica_is_found_where_there_are_more_brokers() -> None:
    configs = {"x.scores": COMMON | {"min.insync.replicas": "1"}, "x.alerts": COMMON | {"min.insync.replicas": "1"}}
    replicas = {"x.scores": 1, "x.alerts": 2}
    assert find_problems(TOPICS, configs, replicas | {"x.alerts": 1}, brokers=1) == {}
    problem = "has one replica, the cluster has 3 brokers: it is lost with its broker"
    found = find_problems(TOPICS, configs, replicas | {"x.alerts": 1}, brokers=3)
    assert found == {"x.scores": [problem], "x.alerts": [problem]}
    assert find_problems(TOPICS, configs, replicas, brokers=3) == {
        "x.scores": ["has one replica, other topics have up to 2: it is lost with its broker"]
    }


class BrokerConfig:
    """An admin client that creates nothing and answers with the settings of a broker, or with an error."""

    def __init__(self, values: dict[str, str | None] | KafkaException) -> None:
        self.values, self.asked = values, list[str]()

    def list_topics(self, timeout: float) -> SimpleNamespace:
        return SimpleNamespace(topics={}, brokers={2: None, 7: None, 5: None})

    def describe_configs(self, resources: list[ConfigResource], **_more: object) -> dict[ConfigResource, Future[Any]]:
        future: Future[Any] = Future()
        (resource,) = resources
        assert resource.restype is ResourceType.BROKER
        self.asked.append(resource.name)
        if isinstance(self.values, KafkaException):
            future.set_exception(self.values)
        else:
            future.set_result({name: SimpleNamespace(value=value) for name, value in self.values.items()})
        return {resource: future}


@pytest.mark.parametrize(
    ("values", "replicas", "in_sync"),
    [
        ({"default.replication.factor": "3"}, 3, "2"),
        ({"default.replication.factor": "2"}, 2, None),
        ({"default.replication.factor": "1"}, 1, None),
        # The broker decides about both.
        (KafkaException(KafkaError(KafkaError.CLUSTER_AUTHORIZATION_FAILED)), BROKER_DEFAULT, None),
        ({}, BROKER_DEFAULT, None),
        ({"default.replication.factor": None}, BROKER_DEFAULT, None),
    ],
)
def test_the_first_topics_have_the_replicas_that_are_the_default_of_the_broker(
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, str | None] | KafkaException,
    replicas: int,
    in_sync: str | None,
) -> None:
    admin, created_topics, client = TopicAdmin("127.0.0.1:1"), list[NewTopic](), BrokerConfig(values)
    monkeypatch.setattr(admin, "_client", client)
    monkeypatch.setattr(admin, "_create", created_topics.extend)
    admin.create_all(TOPICS, None, replication=None)
    assert {topic.replication_factor for topic in created_topics} == {replicas}
    assert {topic.config.get("min.insync.replicas") for topic in created_topics} == {in_sync}
    assert client.asked == ["2"]
    admin.create_all(TOPICS, None, replication=3)
    assert created_topics[-1].replication_factor == 3
    assert created_topics[-1].config["min.insync.replicas"] == "2"
    assert client.asked == ["2"]


def test_new_topics_are_like_those_that_exist() -> None:
    assert numbers_of(TOPICS, {}, {}) == (DEFAULT_PARTITIONS, BROKER_DEFAULT)
    partitions = {"x.control": 1, "x.scores": 12, "of-others": 50}
    assert numbers_of(TOPICS, partitions, {"x.control": 3, "x.scores": 2, "of-others": 5}) == (12, 3)


def test_inputs_must_be_kept_for_as_long_as_features_look_back() -> None:
    configs = created()
    assert find_problems(TOPICS, configs, {}, reach_ms=7 * DAY_MS) == {}
    problem = "retention.ms is 7.0 days, but features look back 30.5 days: features that are rebuilt would be partial"
    assert find_problems(TOPICS, configs, {}, reach_ms=int(30.5 * DAY_MS)) == {
        "x.transactions": [problem],
        "x.labels": [problem],
    }
    configs["x.transactions"] |= {"retention.ms": "-1"}
    assert list(find_problems(TOPICS, configs, {}, reach_ms=30 * DAY_MS)) == ["x.labels"]


def test_outcomes_must_be_kept_for_four_label_horizons() -> None:
    configs = created()
    assert find_problems(TOPICS, configs, {}, horizon_ms=int(1.75 * DAY_MS)) == {}
    assert find_problems(TOPICS, configs, {}, horizon_ms=2 * DAY_MS) == {
        "x.outcomes": [
            "retention.ms is 7.0 days, but 4 times the label horizon is 8.0 days: a restarted monitor would miss labels"
        ]
    }


def test_scores_and_labels_must_be_kept_for_as_long_as_labels_count() -> None:
    """A label joiner that lost its store reads both again."""
    configs = created()
    assert find_problems(TOPICS, configs, {}, labels_ms=7 * DAY_MS) == {}
    problem = (
        "retention.ms is 7.0 days, but labels count for 14.5 days: a monitor that loses its state folder would miss "
        "labels"
    )
    long = int(14.5 * DAY_MS)
    assert find_problems(TOPICS, configs, {}, labels_ms=long) == {"x.scores": [problem], "x.labels": [problem]}
    configs["x.scores"] |= {"retention.ms": str(long), "retention.bytes": "1000"}
    configs["x.labels"] |= {"retention.ms": "-1"}
    assert list(find_problems(TOPICS, configs, {}, labels_ms=long)) == ["x.scores"]
    configs["x.scores"] |= {"retention.bytes": "-1"}
    assert find_problems(TOPICS, configs, {}, labels_ms=long) == {}


def test_labels_are_kept_for_the_longer_need() -> None:
    for reach_ms, labels_ms in ((30 * DAY_MS, 14 * DAY_MS), (14 * DAY_MS, 30 * DAY_MS)):
        needed = needed_retention(TOPICS, reach_ms, 5 * DAY_MS, labels_ms)
        assert {name: need.ms for name, need in needed.items()} == {
            "x.transactions": reach_ms,
            "x.labels": 30 * DAY_MS,
            "x.scores": labels_ms,
            "x.outcomes": 20 * DAY_MS,
        }


def test_topics_are_created_with_a_week_more_than_the_spec_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, int] = {}

    class Admin:
        def __init__(self, _bootstrap: str) -> None: ...

        def create_all(
            self, _topics: Topics, _partitions: None, *, keep_ms: dict[str, int], **_more: object
        ) -> list[str]:
            seen.update(keep_ms)
            return []

    monkeypatch.setattr("stream_scorer.kafka.topics.TopicAdmin", Admin)
    spec = Path(__file__).parents[2] / "stream_scorer" / "simulate" / "cards.yaml"  # labels.horizon is 2 days
    command = ["topics", "create", "--bootstrap", "nowhere:9092", "--spec", str(spec), "--topic-prefix", "x."]
    assert CliRunner().invoke(cli, command, catch_exceptions=False).exit_code == 0
    labels_ms = JoinRules.of(load_spec(spec).spec).rows_kept_ms
    assert 4 * DAY_MS < labels_ms < 5 * DAY_MS
    assert seen["x.scores"] == labels_ms + 7 * DAY_MS
    assert seen["x.labels"] >= seen["x.scores"] and seen["x.outcomes"] == (8 + 7) * DAY_MS


def test_a_limit_of_size_is_found_where_records_must_be_kept_for_a_time() -> None:
    configs = created()
    for name in ("x.labels", "x.outcomes"):
        configs[name] |= {"retention.bytes": "1000"}
    assert find_problems(TOPICS, configs, {}) == {}
    assert find_problems(TOPICS, configs, {}, reach_ms=DAY_MS, horizon_ms=DAY_MS) == {
        "x.labels": [
            "retention.bytes is 1000, must be -1, because features look back 1.0 days: "
            "features that are rebuilt would be partial"
        ],
        "x.outcomes": [
            "retention.bytes is 1000, must be -1, because 4 times the label horizon is 4.0 days: "
            "a restarted monitor would miss labels"
        ],
    }


def test_topics_that_are_kept_for_a_time_have_no_limit_of_size(monkeypatch: pytest.MonkeyPatch) -> None:
    admin, created_topics = TopicAdmin("127.0.0.1:1"), []
    monkeypatch.setattr(admin, "partitions", dict)
    monkeypatch.setattr(admin, "_create", created_topics.extend)
    admin.create_all(TOPICS, 1, keep_ms={"x.labels": DAY_MS})
    configs = {topic.topic: topic.config for topic in created_topics}
    assert (configs["x.labels"]["retention.ms"], configs["x.labels"]["retention.bytes"]) == (str(DAY_MS), "-1")
    assert "retention.bytes" not in configs["x.scores"]


def test_only_a_topic_that_deletes_by_age_alone_tells_how_long_it_keeps_records() -> None:
    config = COMMON | {"retention.bytes": "-1"}
    assert kept_ms(config) == 7 * DAY_MS
    for setting, value in {"retention.ms": "-1", "retention.bytes": "1000", "cleanup.policy": "compact,delete"}.items():
        assert kept_ms(config | {setting: value}) is None
    assert kept_ms({}) is None
