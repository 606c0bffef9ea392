"""The ends of topics, without reading them."""

from __future__ import annotations

from collections.abc import Mapping

from confluent_kafka import KafkaException, TopicPartition

from stream_scorer.kafka.clients import open_consumer
from stream_scorer.kafka.config import consumer_config
from stream_scorer.kafka.errors import as_domain_error, kafka_error

TIMEOUT_S = 10.0


class TopicEnds:
    """Looks up the offsets after the last records of topics. One thread uses an object.

    Args:
        partitions: number of partitions of each topic.
    """

    def __init__(self, bootstrap: str, partitions: Mapping[str, int], *, client_id: str) -> None:
        self._bootstrap = bootstrap
        self._places = [(topic, p) for topic, count in partitions.items() for p in range(count)]
        self._consumer = open_consumer(consumer_config(bootstrap, client_id, f"{client_id}-ends"))

    def __call__(self) -> dict[tuple[str, int], int]:
        """The end of each partition. Raises `BrokerUnavailable`."""
        found = {}
        for place in self._places:
            try:
                found[place] = int(self._consumer.get_watermark_offsets(TopicPartition(*place), TIMEOUT_S)[1])
            except KafkaException as failure:
                error = kafka_error(failure)
                if not error.retriable():
                    raise as_domain_error(error, f"look up topic {place[0]}", self._bootstrap) from failure
        return found

    def close(self) -> None:
        """Close the connection to the broker."""
        self._consumer.close()
