"""The ends of topics, without reading them."""

from __future__ import annotations

from collections.abc import Mapping

from confluent_kafka import IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]

from stream_scorer.kafka.clients import open_admin
from stream_scorer.kafka.config import client_config
from stream_scorer.kafka.errors import NO_LEADER, as_domain_error, kafka_error

TIMEOUT_S = 10.0


class TopicEnds:
    """Looks up the offsets after the last records of topics, by one request per broker.

    Args:
        partitions: number of partitions of each topic. committed: look up where a reader of committed records ends,
            which is before an open transaction.
    """

    def __init__(
        self, bootstrap: str, partitions: Mapping[str, int], *, client_id: str, committed: bool = False
    ) -> None:
        self._bootstrap = bootstrap
        newest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        self._wanted = {TopicPartition(topic, p): newest for topic, count in partitions.items() for p in range(count)}
        self._isolation = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        self._client = open_admin(client_config(bootstrap, f"{client_id}-ends"))

    def __call__(self) -> dict[tuple[str, int], int]:
        """The end of each partition; none for a partition that has no leader at present.

        Raises:
            BrokerUnavailable, AccessDenied: the lookup failed.
        """
        found = {}
        asked = self._client.list_offsets(self._wanted, isolation_level=self._isolation, request_timeout=TIMEOUT_S)
        for place, future in asked.items():
            try:
                found[place.topic, place.partition] = int(future.result().offset)
            except KafkaException as failure:
                error = kafka_error(failure)
                if not error.retriable() and error.code() not in NO_LEADER:
                    raise as_domain_error(error, f"look up topic {place.topic}", self._bootstrap) from failure
        return found
