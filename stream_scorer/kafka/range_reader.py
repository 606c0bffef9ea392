"""Reads a range of a partition once, without a consumer group: committed records only, and it commits no offsets."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from stream_scorer.clock import Deadline
from stream_scorer.errors import RecordsDeleted, StreamScorerError
from stream_scorer.kafka.clients import open_consumer
from stream_scorer.kafka.config import SMALL_PREFETCH, consumer_config
from stream_scorer.kafka.errors import NO_CONNECTION, NO_LEADER, NO_OFFSET, as_domain_error, kafka_error
from stream_scorer.kafka.messages import records_of
from stream_scorer.kafka.topic_config import kept_ms
from stream_scorer.kafka.topics import TopicAdmin
from stream_scorer.positions import SourcePartition
from stream_scorer.serde.raw import RawRecords

_log = logging.getLogger(__name__)
# Maximum time without an answer. A restarting broker answers again within half a minute.
SILENCE_S = 40.0
METADATA_TIMEOUT_S = 10.0
# A look-up is repeated this often, and for so long, while a partition has no leader.
RETRY_S, LOOKUP_DEADLINE_S = 0.1, 15.0
_POLL_S = 0.5
# Large enough to make the overhead per chunk negligible, small enough to keep one per partition in memory.
CHUNK = 5_000
# A rebuild reads all partitions of a scorer at the same time, so each prefetches little.
_PREFETCH = SMALL_PREFETCH | {"queued.max.messages.kbytes": 1_024}


class RangeReader:
    """Opens ranges of partitions. A context manager."""

    def __init__(self, bootstrap: str, *, client_id: str) -> None:
        self._bootstrap = bootstrap
        # librdkafka requires a group name. It has no effect, as nothing is subscribed or committed.
        config = consumer_config(bootstrap, client_id, f"{client_id}-reader")
        self._config = config | _PREFETCH | {"enable.partition.eof": True}
        self._lookup = open_consumer(self._config)
        self._open: list[Consumer] = []

    def bounds(self, topic: str) -> dict[SourcePartition, tuple[int, int]]:
        """First offset and end offset of each partition of `topic`.

        Raises:
            UsageError: the topic does not exist. BrokerUnavailable: the broker does not answer.
        """
        deadline = Deadline(LOOKUP_DEADLINE_S)
        while True:
            try:
                found = self._lookup.list_topics(topic, METADATA_TIMEOUT_S).topics[topic]
                if found.error is not None:
                    raise as_domain_error(found.error, f"look up topic {topic}", self._bootstrap)
                return {
                    SourcePartition(topic, p): self._lookup.get_watermark_offsets(
                        TopicPartition(topic, p), METADATA_TIMEOUT_S
                    )
                    for p in sorted(found.partitions)
                }
            except KafkaException as exception:
                error = kafka_error(exception)
                # A partition that was just created, or whose broker restarts, has no leader for a moment.
                if not (error.retriable() or error.code() in NO_LEADER) or not deadline.remaining_s:
                    raise as_domain_error(error, f"look up topic {topic}", self._bootstrap) from exception
                time.sleep(RETRY_S)

    def retention_ms(self, topic: str) -> int | None:
        """How long `topic` keeps every record, by its settings; None if it is not known, or other limits apply."""
        try:
            config = TopicAdmin(self._bootstrap).configs([topic])[topic]
        except StreamScorerError as error:
            _log.warning("the retention of %s cannot be looked up: %s", topic, error.message)
            return None
        return kept_ms(config)

    def committed(self, group: str, sources: Sequence[SourcePartition]) -> dict[SourcePartition, int]:
        """The committed offsets of `group`; omits partitions without one.

        Raises:
            BrokerUnavailable: the broker does not answer.
        """
        consumer = open_consumer(self._config | {"group.id": group})
        try:
            found = consumer.committed([TopicPartition(*source) for source in sources], METADATA_TIMEOUT_S)
        except KafkaException as error:
            raise as_domain_error(kafka_error(error), f"look up the group {group}", self._bootstrap) from error
        finally:
            consumer.close()
        return {SourcePartition(p.topic, p.partition): p.offset for p in found if p.offset >= 0}

    def offset_at(self, source: SourcePartition, timestamp_ms: int) -> int:
        """The first offset of `source` with a timestamp at or after `timestamp_ms`, or the end of the log.

        Raises:
            BrokerUnavailable: nobody answers.
        """
        try:
            (found,) = self._lookup.offsets_for_times([TopicPartition(*source, timestamp_ms)], METADATA_TIMEOUT_S)
            low, high = self._lookup.get_watermark_offsets(TopicPartition(*source), METADATA_TIMEOUT_S)
        except KafkaException as error:
            raise as_domain_error(kafka_error(error), f"look up {source.topic} by time", self._bootstrap) from error
        return max(found.offset, low) if found.offset >= 0 else high

    def read(self, source: SourcePartition, start: int, stop: int) -> Iterator[RawRecords]:
        """The records of `source` with offsets in ``[start, stop)``, in chunks of at most `CHUNK`.

        Raises:
            RecordsDeleted: the broker no longer has `start`.
            BrokerUnavailable: the broker did not answer for `SILENCE_S`.
        """
        if start >= stop:
            return
        consumer = open_consumer(self._config)
        self._open.append(consumer)
        try:
            consumer.assign([TopicPartition(source.topic, source.partition, start)])
            position, answered_at, end = start, time.monotonic(), -1
            while position < stop:
                messages, reached = self._poll(consumer, source)
                if messages or reached >= 0:
                    answered_at, end = time.monotonic(), reached
                elif time.monotonic() - answered_at > SILENCE_S:
                    raise as_domain_error(KafkaError(KafkaError._TIMED_OUT), f"read {source.topic}", self._bootstrap)
                wanted = [m for m in messages if cast(int, m.offset()) < stop]
                if wanted:
                    yield records_of(source.topic, wanted)
                if messages:
                    position = cast(int, messages[-1].offset()) + 1
                # The rest of the range contains no committed records, only transaction markers or aborted records.
                if end >= 0 and (end >= stop or self._ends_at(consumer, source, end)):
                    return
        finally:
            self._open.remove(consumer)
            consumer.close()

    def _poll(self, consumer: Consumer, source: SourcePartition) -> tuple[list[Message], int]:
        """Records, and the end of the partition if it was reached after them; -1 if not."""
        messages = consumer.consume(1, _POLL_S)
        if messages:
            messages += consumer.consume(CHUNK - 1, 0)
        good: list[Message] = []
        end = -1
        for message in messages:
            error = message.error()
            if error is None:
                good.append(message)
                end = -1
            elif error.code() == KafkaError._PARTITION_EOF:
                end = cast(int, message.offset())
            elif error.code() in NO_OFFSET:
                raise RecordsDeleted(
                    f"{source.topic}[{source.partition}] no longer has the start of the range: {error.str()}",
                    hint="Retention deleted it. Start at a later offset.",
                )
            elif not error.retriable() and error.code() not in NO_CONNECTION:
                raise as_domain_error(error, f"read {source.topic}", self._bootstrap)
        return good, end

    def _ends_at(self, consumer: Consumer, source: SourcePartition, end: int) -> bool:
        """Whether the leader has no committed record from `end` on.

        A fetch alone does not tell: a follower, which serves fetches where `client.rack` is set, and a new leader know
        the end of the partition a moment late.
        """
        try:
            _, high = consumer.get_watermark_offsets(TopicPartition(*source), METADATA_TIMEOUT_S)
        except KafkaException as exception:
            error = kafka_error(exception)
            if error.retriable() or error.code() in NO_LEADER:
                return False
            raise as_domain_error(error, f"read {source.topic}", self._bootstrap) from exception
        return high <= end

    def close(self) -> None:
        """Close the connections to the broker."""
        if self._open:
            raise StreamScorerError("a range is still being read: exhaust or close its iterator first")
        self._lookup.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lookup.close()
