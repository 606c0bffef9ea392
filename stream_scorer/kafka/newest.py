"""The newest records of a topic: a bounded look at what producers send at present."""

from __future__ import annotations

from typing import cast

from confluent_kafka import KafkaError, Message, TopicPartition

from stream_scorer.clock import Deadline
from stream_scorer.kafka.clients import open_consumer
from stream_scorer.kafka.config import SMALL_PREFETCH, consumer_config
from stream_scorer.kafka.errors import NO_CONNECTION, NO_OFFSET, as_domain_error
from stream_scorer.kafka.messages import records_of
from stream_scorer.kafka.range_reader import RangeReader
from stream_scorer.serde.raw import RawRecords

_CLIENT = "stream-scorer-newest"
_CHUNK, _POLL_S = 1_000, 0.2
# Retention deleted the first of them, or a broker is away: the look ends with what came until then.
_PASSING = NO_OFFSET | NO_CONNECTION


def newest_records(bootstrap: str, topic: str, per_partition: int, timeout_s: float) -> RawRecords:
    """About the newest `per_partition` records of each partition, as far as they arrive within `timeout_s`.

    Fewer, if transaction markers or aborted records take some of the last offsets.

    Raises:
        UsageError: the topic does not exist. BrokerUnavailable, AccessDenied: the broker does not answer, or refuses.
    """
    with RangeReader(bootstrap, client_id=_CLIENT) as reader:
        bounds = {source.partition: (low, high) for source, (low, high) in reader.bounds(topic).items() if low < high}
    config = consumer_config(bootstrap, _CLIENT, f"{_CLIENT}-reader") | SMALL_PREFETCH | {"enable.partition.eof": True}
    consumer, deadline = open_consumer(config), Deadline(timeout_s)
    found: list[Message] = []
    try:
        consumer.assign([TopicPartition(topic, p, max(low, high - per_partition)) for p, (low, high) in bounds.items()])
        left = {partition: high for partition, (_, high) in bounds.items()}
        while left and deadline.remaining_s:
            messages = consumer.consume(1, min(_POLL_S, deadline.remaining_s))
            for message in messages + (consumer.consume(_CHUNK, 0) if messages else []):
                if _take(message, left, topic, bootstrap):
                    found.append(message)
    finally:
        consumer.close()
    return records_of(topic, found)


def _take(message: Message, left: dict[int, int], topic: str, bootstrap: str) -> bool:
    """Whether `message` is a wanted record. Removes a partition from `left`, the ends by partition, when it is read."""
    partition, offset, error = cast(int, message.partition()), cast(int, message.offset()), message.error()
    if error is not None and error.code() != KafkaError._PARTITION_EOF:
        if not error.retriable() and error.code() not in _PASSING:
            raise as_domain_error(error, f"read {topic}", bootstrap)
        return False
    wanted = error is None and offset < left.get(partition, 0)
    if error is not None or offset + 1 >= left.get(partition, 0):
        left.pop(partition, None)
    return wanted
