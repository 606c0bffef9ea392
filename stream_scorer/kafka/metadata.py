"""Which partitions a topic has."""

from __future__ import annotations

from confluent_kafka import Consumer, KafkaException, Producer

from stream_scorer.kafka.clients import find_refusal
from stream_scorer.kafka.errors import as_domain_error, is_denied, kafka_error

# A healthy broker answers metadata in milliseconds; a single-node one that has just started may elect for seconds.
METADATA_TIMEOUT_S = 10.0
RETRY_WAIT_S = 0.1
# A broker lists a new topic later than the controller creates it, so for one second an unknown topic may still appear.
ABSENCE_TRIES = 10


def partition_ids(client: Producer | Consumer, topic: str, bootstrap: str) -> list[int]:
    """The partitions of `topic`, in order. Raises `UsageError` if it does not exist, or `BrokerUnavailable`."""
    for left in reversed(range(ABSENCE_TRIES)):
        try:
            found = client.list_topics(topic, METADATA_TIMEOUT_S).topics[topic]
        except KafkaException as error:
            raise find_refusal(bootstrap) or as_domain_error(
                kafka_error(error), f"look up topic {topic}", bootstrap
            ) from error
        if found.error is None:
            return sorted(found.partitions)
        if not left or is_denied(found.error):
            raise as_domain_error(found.error, f"look up topic {topic}", bootstrap)
        client.poll(RETRY_WAIT_S)
    raise AssertionError("the last attempt returns or raises")
