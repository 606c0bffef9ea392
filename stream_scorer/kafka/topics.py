"""Names, creation and checks of the topics."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    ClusterMetadata,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from stream_scorer.connections import Brokers
from stream_scorer.errors import SettingsError, UsageError
from stream_scorer.kafka.clients import find_refusal, open_admin
from stream_scorer.kafka.config import DEFAULT_MESSAGE_BYTES, MAX_MESSAGE_BYTES, client_config
from stream_scorer.kafka.errors import as_domain_error, is_denied, kafka_error
from stream_scorer.settings import TOPICS, Settings

_TIMEOUT_S = 10.0
# librdkafka tries a refused connection again until the timeout, so the cause is looked for before.
_FIRST_TIMEOUT_S = 3.0
# With this many replicas, a record must be on two brokers before it counts as written, and one broker may fail.
SAFE_REPLICAS = 3
_LISTED_PAUSE_S = 0.05
_ENDS_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Topics:
    """The names of the topics: those in `names`, by the keys of `stream_scorer.settings.TOPICS`.

    A topic that is not in `names` has the prefix and its default name. A name is an attribute: ``topics.dead_letters``.
    """

    prefix: str = ""
    names: Mapping[str, str] = field(default_factory=dict, hash=False)

    @classmethod
    def of(cls, settings: Settings) -> Topics:
        """The names that the settings give."""
        given = {key: settings[f"topics.{key}"] for key in TOPICS}
        return cls(settings["topics.prefix"], {key: name for key, name in given.items() if name})

    def __getattr__(self, key: str) -> str:
        if key not in TOPICS:
            raise AttributeError(key)
        return self.names.get(key) or self.prefix + TOPICS[key]

    def all(self) -> list[str]:
        """Every topic, in the order of docs/topics.md."""
        return [getattr(self, key) for key in TOPICS]

    def find(self, given: str) -> tuple[str, str]:
        """Default and full name of the topic `given`, by either name; (`given`, `given`) if it is none of these."""
        for key, default in TOPICS.items():
            name = getattr(self, key)
            if given in (name, default):
                return default, name
        return given, given

    def of_partitions(self) -> list[str]:
        """The topics with the partition count of the input, in the order of docs/topics.md."""
        return [getattr(self, key) for key in TOPICS if key not in _SINGLE]

    def inputs(self) -> list[str]:
        """The topics of transactions and labels."""
        return [self.transactions, self.labels]

    def scorer_topics(self) -> list[str]:
        """The topics of `of_partitions` that a scorer reads and writes."""
        return [name for name in self.of_partitions() if name not in (self.outcomes, self.monitor_metrics)]

    def monitor_topics(self) -> list[str]:
        """The topics that a monitor reads and writes."""
        return [self.scores, self.labels, self.score_summaries, self.outcomes, self.monitor_metrics]

    def control_topics(self) -> list[str]:
        """The topics of `of_one_partition` that a scorer reads and writes."""
        return [name for name in self.of_one_partition() if name not in (self.incidents, self.verdicts)]

    def of_one_partition(self) -> list[str]:
        """The topics that always have one partition."""
        return [getattr(self, key) for key in _SINGLE]

    def config(self, name: str) -> dict[str, str]:
        """The settings of a topic that differ from those of all topics."""
        return _SINGLE.get(next(key for key in TOPICS if getattr(self, key) == name), {})


# The broker's clock decides which scorers run, and how long ago a command was given; other clocks may be wrong.
_BROKER_TIME = {"message.timestamp.type": "LogAppendTime"}
# Topics with one partition. Logs (control, audit, incidents) are kept forever; compacted topics keep the newest value
# per key.
_SINGLE = {
    "control": {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"} | _BROKER_TIME,
    # A segment per hour, so that compaction runs every hour. By default, Kafka would keep a week of values.
    "serving_state": {"cleanup.policy": "compact", "segment.ms": "3600000"},
    "scorer_status": {"cleanup.policy": "compact", "segment.ms": "3600000"} | _BROKER_TIME,
    "audit": {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"},
    "incidents": {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"},
    "verdicts": {"cleanup.policy": "compact", "segment.ms": "3600000"},
}


# Partitions of a partitioned topic, if there is none yet.
DEFAULT_PARTITIONS = 4
# Instead of a number of replicas: the broker decides.
BROKER_DEFAULT = -1


def _common_config(replication: int) -> dict[str, str]:
    in_sync = {"min.insync.replicas": "2"} if replication >= SAFE_REPLICAS else {}
    return {"max.message.bytes": str(MAX_MESSAGE_BYTES)} | in_sync


def numbers_of(topics: Topics, partitions: Mapping[str, int], replicas: Mapping[str, int]) -> tuple[int, int]:
    """Partitions and replicas for new topics: those of the topics that exist, else `BROKER_DEFAULT` replicas.

    Args:
        partitions, replicas: of every topic on the broker, by name.
    """
    like = next((name for name in topics.of_partitions() if name in partitions), None)
    return (
        DEFAULT_PARTITIONS if like is None else partitions[like],
        max((replicas[name] for name in topics.all() if name in replicas), default=BROKER_DEFAULT),
    )


class TopicAdmin:
    """Creates, describes and checks topics. Raises `BrokerUnavailable` if the broker does not answer."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._client = open_admin(client_config(bootstrap, "stream-scorer-admin"))

    def partitions(self) -> dict[str, int]:
        """Partition count of every topic on the broker."""
        return {name: len(topic.partitions) for name, topic in self._metadata().topics.items()}

    def replicas(self) -> dict[str, int]:
        """Number of replicas of every topic on the broker."""
        return {
            name: min((len(partition.replicas) for partition in topic.partitions.values()), default=0)
            for name, topic in self._metadata().topics.items()
        }

    def brokers(self) -> int:
        """Number of brokers of the cluster."""
        return len(self._metadata().brokers)

    def _metadata(self) -> ClusterMetadata:
        secured = isinstance(self._bootstrap, Brokers) and self._bootstrap.properties
        for timeout_s in (_FIRST_TIMEOUT_S, _TIMEOUT_S) if secured else (_TIMEOUT_S,):
            try:
                return self._client.list_topics(timeout=timeout_s)
            except KafkaException as error:
                refusal = find_refusal(self._bootstrap)
                if refusal is not None or timeout_s == _TIMEOUT_S:
                    raise refusal or as_domain_error(kafka_error(error), "list the topics", self._bootstrap) from error
        raise AssertionError("the last attempt returns or raises")

    def configs(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        """The settings of the topics `names`. Raises `StreamScorerError` if the broker does not permit it."""
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
        futures = self._client.describe_configs(resources, request_timeout=_TIMEOUT_S)
        out = {}
        for resource, future in futures.items():
            try:
                found = future.result()
            except KafkaException as error:
                reason = f"read the settings of topic {resource.name}"
                raise as_domain_error(kafka_error(error), reason, self._bootstrap) from error
            out[resource.name] = {key: str(entry.value) for key, entry in found.items() if entry.value is not None}
        return out

    def create_all(
        self,
        topics: Topics,
        partitions: int | None,
        *,
        replication: int | None = 1,
        keep_ms: Mapping[str, int] = MappingProxyType({}),
    ) -> list[str]:
        """Create every missing topic, wait until the broker lists them, and return their names.

        `keep_ms` is the retention by topic, whatever its size; of the other topics, the broker's default. None for
        `partitions` or `replication`: as the topics that exist (`numbers_of`), else the broker's default of replicas.
        """
        present = self.partitions()
        if partitions is None or replication is None:
            like = numbers_of(topics, present, self.replicas())
            partitions = like[0] if partitions is None else partitions
            replication = like[1] if replication is None else replication
        if replication == BROKER_DEFAULT:
            replication = self._default_replicas()
        kept = {name: {"retention.ms": str(keep), "retention.bytes": "-1"} for name, keep in keep_ms.items()}
        new = [
            NewTopic(
                name,
                1 if name in topics.of_one_partition() else partitions,
                replication,
                config=_common_config(replication) | topics.config(name) | kept.get(name, {}),
            )
            for name in topics.all()
            if name not in present
        ]
        return self._create(new)

    def _default_replicas(self) -> int:
        """The broker's default of replicas; `BROKER_DEFAULT` if this user may not read it."""
        resource = ConfigResource(ResourceType.BROKER, str(min(self._metadata().brokers)))
        try:
            found = self._client.describe_configs([resource], request_timeout=_TIMEOUT_S)[resource].result()
            return int(found["default.replication.factor"].value)
        except (KafkaException, KeyError, TypeError, ValueError):
            return BROKER_DEFAULT

    def create(self, names: list[str], partitions: int, *, replication: int = 1) -> list[str]:
        """Create the missing topics of `names`, like `create_all`."""
        present = self.partitions()
        config = _common_config(replication)
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
        # The controller has created the topics, but a busy broker lists them somewhat later.
        deadline = time.monotonic() + _TIMEOUT_S
        while not self.partitions().keys() >= set(missing) and time.monotonic() < deadline:
            time.sleep(_LISTED_PAUSE_S)
        return missing

    def require(self, names: list[str], *, same_count: bool = True) -> dict[str, int]:
        """Partition counts of `names`. Raises `UsageError` unless all exist, with equal counts if `same_count`."""
        found = self.partitions()
        missing = [name for name in names if name not in found]
        if missing:
            self._require_access(missing)
            raise UsageError(
                f"missing topics at {self._bootstrap}: {', '.join(missing)}",
                hint="Create them with `stream-scorer topics create`, or check the setting `topics.prefix`.",
            )
        counts = {name: found[name] for name in names}
        if same_count and len(set(counts.values())) > 1:
            text = ", ".join(f"{name}: {count}" for name, count in counts.items())
            raise SettingsError(
                f"topics have different numbers of partitions ({text})",
                hint="Outputs use the partition number of the input. Delete topics that are still empty and run "
                "`topics create` without --partitions, or add partitions to the others (kafka-topics.sh --alter).",
            )
        return counts

    def _require_access(self, names: list[str]) -> None:
        """Raise `AccessDenied` if this user may not see `names`: the list of all topics omits such topics."""
        for name in names:
            try:
                error = self._client.list_topics(name, timeout=_TIMEOUT_S).topics[name].error
            except KafkaException as failure:
                error = kafka_error(failure)
            if error is not None and is_denied(error):
                raise as_domain_error(error, f"describe topic {name}", self._bootstrap)

    def message_limit(self, name: str) -> int:
        """The most bytes of a record on the topic; Kafka's default if this client may not describe the topic."""
        from confluent_kafka.admin import ConfigResource, ResourceType  # type: ignore[attr-defined]

        resource = ConfigResource(ResourceType.TOPIC, name)
        try:
            found = self._client.describe_configs([resource], request_timeout=_TIMEOUT_S)[resource].result()
            return int(found["max.message.bytes"].value)
        except (KafkaException, KeyError):
            return DEFAULT_MESSAGE_BYTES

    def has_records(self, name: str) -> bool:
        """Whether a record was ever written to the topic."""
        partitions = self.partitions().get(name, 0)
        newest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        latest = {TopicPartition(name, partition): newest for partition in range(partitions)}
        try:
            found = self._client.list_offsets(latest, request_timeout=_TIMEOUT_S)
            return any(future.result().offset > 0 for future in found.values())
        except KafkaException as error:
            raise as_domain_error(kafka_error(error), f"look up the end of topic {name}", self._bootstrap) from error

    def ends(self, name: str, partitions: Iterable[int]) -> dict[int, int]:
        """The offset of the end of each partition, without those that do not answer within two seconds."""
        newest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        wanted = {TopicPartition(name, partition): newest for partition in partitions}
        out = {}
        for place, future in self._client.list_offsets(wanted, request_timeout=_ENDS_TIMEOUT_S).items():
            with suppress(KafkaException):
                out[place.partition] = future.result().offset
        return out

    def topic_id(self, name: str) -> str:
        """The broker's id of the topic. It changes if the topic is deleted and created again."""
        from confluent_kafka import TopicCollection

        future = self._client.describe_topics(TopicCollection([name]), request_timeout=_TIMEOUT_S)[name]
        try:
            return str(future.result().topic_id)
        except KafkaException as error:
            raise as_domain_error(kafka_error(error), f"describe topic {name}", self._bootstrap) from error
