"""The names of the topics, and creating and checking them."""

from __future__ import annotations

import time
from dataclasses import dataclass

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from stream_scorer.errors import SettingsError, UsageError
from stream_scorer.kafka.config import MAX_MESSAGE_BYTES, client_config
from stream_scorer.kafka.errors import as_domain_error, kafka_error

_TIMEOUT_S = 10.0
_LISTED_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class Topics:
    """Topic names under one prefix."""

    prefix: str = ""

    def __getattr__(self, name: str) -> str:
        if name not in _NAMES:
            raise AttributeError(name)
        return self.prefix + _NAMES[name]

    def all(self) -> list[str]:
        """Every topic, in the order of the documents."""
        return [self.prefix + name for name in _NAMES.values()]

    def of_partitions(self) -> list[str]:
        """Those with the partition count of the input, in the order of the documents."""
        return [self.prefix + name for key, name in _NAMES.items() if key not in _SINGLE]

    def scorer_topics(self) -> list[str]:
        """Those among `of_partitions` that a scorer reads and writes."""
        return [name for name in self.of_partitions() if name not in (self.outcomes, self.monitor_metrics)]

    def monitor_topics(self) -> list[str]:
        """Topics a monitor needs to count and to write what it finds."""
        return [self.scores, self.labels, self.score_summaries, self.outcomes, self.monitor_metrics]

    def control_topics(self) -> list[str]:
        """Those among `of_one_partition` that a scorer needs: what is to serve, and what does."""
        return [name for name in self.of_one_partition() if name != self.incidents]

    def of_one_partition(self) -> list[str]:
        """Those with one partition, whatever the input has."""
        return [self.prefix + _NAMES[key] for key in _SINGLE]

    def config(self, name: str) -> dict[str, str]:
        """Settings of a topic beside those that all have."""
        return _SINGLE.get(next(key for key, known in _NAMES.items() if self.prefix + known == name), {})


_NAMES = {
    "transactions": "transactions",
    "labels": "labels",
    "scores": "scores",
    "contributions": "contributions",
    "alerts": "alerts",
    "score_summaries": "score-summaries",
    "dead_letters": "transactions.dlq",
    "outcomes": "outcomes",
    "monitor_metrics": "monitor-metrics",
    "control": "control",
    "serving_state": "serving-state",
    "scorer_status": "scorer-status",
    "audit": "audit",
    "incidents": "incidents",
}
# Topics of one partition: commands, incidents and what was loaded are kept for ever, of the notes the newest of a key.
_SINGLE = {
    "control": {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"},
    # Compacted by the hour: by itself Kafka would keep a week of them.
    "serving_state": {"cleanup.policy": "compact", "segment.ms": "3600000"},
    "scorer_status": {"cleanup.policy": "compact", "segment.ms": "3600000"},
    "audit": {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"},
    "incidents": {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"},
}


class TopicAdmin:
    """Creates, describes and checks topics. Raises `BrokerUnavailable` when nobody answers."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._client = AdminClient(client_config(bootstrap, "stream-scorer-admin"))

    def partitions(self) -> dict[str, int]:
        """Partition count of every topic the broker has."""
        try:
            found = self._client.list_topics(timeout=_TIMEOUT_S).topics
        except KafkaException as error:
            raise as_domain_error(kafka_error(error), "list the topics", self._bootstrap) from error
        return {name: len(topic.partitions) for name, topic in found.items()}

    def create_all(self, topics: Topics, partitions: int, *, replication: int = 1) -> list[str]:
        """Create every topic that does not exist, and wait until the broker lists them; answers which."""
        present = self.partitions()
        new = [
            NewTopic(
                name,
                1 if name in topics.of_one_partition() else partitions,
                replication,
                config={"max.message.bytes": str(MAX_MESSAGE_BYTES)} | topics.config(name),
            )
            for name in topics.all()
            if name not in present
        ]
        return self._create(new)

    def create(self, names: list[str], partitions: int, *, replication: int = 1) -> list[str]:
        """Create those of `names` that do not exist, as `create_all` does."""
        present = self.partitions()
        config = {"max.message.bytes": str(MAX_MESSAGE_BYTES)}
        return self._create([NewTopic(n, partitions, replication, config=config) for n in names if n not in present])

    def _create(self, new: list[NewTopic]) -> list[str]:
        if not new:
            return []
        missing = [topic.topic for topic in new]
        futures = self._client.create_topics(new, request_timeout=_TIMEOUT_S)
        for name, future in futures.items():
            try:
                future.result()
            except KafkaException as error:
                raise as_domain_error(kafka_error(error), f"create topic {name}", self._bootstrap) from error
        # The controller has made them; a busy broker hears of it somewhat later.
        deadline = time.monotonic() + _TIMEOUT_S
        while not self.partitions().keys() >= set(missing) and time.monotonic() < deadline:
            time.sleep(_LISTED_PAUSE_S)
        return missing

    def require(self, names: list[str], *, same_count: bool = True) -> dict[str, int]:
        """Partition counts of `names`. Raises `UsageError` unless all exist, with equal counts if `same_count`."""
        found = self.partitions()
        missing = [name for name in names if name not in found]
        if missing:
            raise UsageError(
                f"no topic {', '.join(missing)} at {self._bootstrap}",
                hint="Create them: `stream-scorer topics create`, or check the setting `topics.prefix`.",
            )
        counts = {name: found[name] for name in names}
        if same_count and len(set(counts.values())) > 1:
            told = ", ".join(f"{name}: {count}" for name, count in counts.items())
            raise SettingsError(
                f"topics differ in their number of partitions ({told})",
                hint="Output goes to the input's partition number: give every topic the same count.",
            )
        return counts

    def topic_id(self, name: str) -> str:
        """The broker's id of the topic: another one once it was deleted and created again."""
        from confluent_kafka import TopicCollection

        future = self._client.describe_topics(TopicCollection([name]), request_timeout=_TIMEOUT_S)[name]
        try:
            return str(future.result().topic_id)
        except KafkaException as error:
            raise as_domain_error(kafka_error(error), f"describe topic {name}", self._bootstrap) from error
