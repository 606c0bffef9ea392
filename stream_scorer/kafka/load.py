"""Load on a broker: publish records open-loop at a rate, and follow the records of a topic from a stated place on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Literal, NamedTuple, Self, cast

import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from numpy.typing import NDArray

from stream_scorer.clock import Clock
from stream_scorer.errors import BrokerUnavailable, UsageError
from stream_scorer.kafka.config import consumer_config
from stream_scorer.kafka.errors import as_domain_error, kafka_error
from stream_scorer.kafka.partitioner import partitions_of
from stream_scorer.kafka.producer import PlainProducer
from stream_scorer.serde.raw import Headers

# A healthy broker answers metadata in milliseconds; a single-node one that has just started may elect for seconds.
METADATA_TIMEOUT_S = 10.0
# A topic made a moment ago has no leader yet: a hundred tries, 0.1 s apart, are the same bound.
ELECTION_TRIES, RETRY_WAIT_S = 100, 0.1
# A broker hears of a topic somewhat after the controller has made it: for a second, unknown may mean not yet.
ABSENCE_TRIES = 10
_ELECTING = {KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE}
# Records handed to librdkafka in one call: large enough to cost little, small enough to keep a schedule.
CHUNK = 5_000
# Records due within a tick go together: one by one, a thousand a second would cost a quarter of a core.
TICK_S = 0.01


class Schedule:
    """When records are due: `rate` a second from the start, whatever becomes of them (an open loop)."""

    def __init__(self, rate: float | None, clock: Clock) -> None:
        """`rate` None means that everything is due at once."""
        if rate is not None and rate <= 0:
            raise UsageError(f"a rate is above 0, not {rate}")
        self._rate = rate
        self._clock = clock
        self._start = clock.monotonic()
        self.behind_s = 0.0

    def due(self, sent: int, max_records: int) -> int:
        """How many records, at most `max_records`, should follow the `sent` ones now; notes how late the first of them
        is.
        """
        if self._rate is None:
            return max_records
        elapsed = self._clock.monotonic() - self._start
        count = min(int(elapsed * self._rate) + 1 - sent, max_records)
        if count > 0:
            self.behind_s = max(self.behind_s, elapsed - sent / self._rate)
        return max(count, 0)

    def pause_s(self, sent: int) -> float:
        """How long to wait before asking again: about until the next record is due, at least one tick, at most two."""
        if self._rate is None:
            return 0.0
        next_s = self._start + sent / self._rate - self._clock.monotonic()
        return min(max(next_s, TICK_S), 2 * TICK_S)


class OpenLoopProducer(PlainProducer):
    """A producer that puts each key where Java's default partitioner would, at a rate if there is a schedule."""

    def __init__(self, bootstrap: str, *, client_id: str, clock: Clock, sleep: Callable[[float], None]) -> None:
        # Only failures are reported back: a callback for each success would cost more than the record itself.
        settings = {"linger.ms": 5, "delivery.report.only.error": True}
        super().__init__(bootstrap, client_id, settings=settings, monotonic=clock.monotonic)
        self._sleep = sleep
        self._counts: dict[str, int] = {}

    def partitions(self, topic: str) -> int:
        """How many partitions `topic` has. Raises `UsageError` if it does not exist, `BrokerUnavailable`."""
        if topic not in self._counts:
            self._counts[topic] = len(_partition_ids(self.client, topic, self.bootstrap))
        return self._counts[topic]

    def publish(
        self, topic: str, keys: Sequence[bytes], values: Sequence[bytes], *, schedule: Schedule | None = None
    ) -> NDArray[np.int32]:
        """Publish records in order, each when it is due (at once without a schedule). Returns their partitions.

        A schedule counts the records of this call only. Waits only while librdkafka's queue is full.

        Raises:
            BrokerUnavailable: a record was given up, or the queue stayed full.
            UsageError: the topic does not exist.
        """
        places = partitions_of(keys, self.partitions(topic))
        done = 0
        while done < len(keys):
            max_records = min(CHUNK, len(keys) - done)
            count = max_records if schedule is None else schedule.due(done, max_records)
            stop = done + count
            self._hand_over(topic, keys[done:stop], values[done:stop], places[done:stop])
            done = stop
            if schedule is not None and count < max_records:
                self._sleep(schedule.pause_s(done))
        return places

    def _hand_over(self, topic: str, keys: Sequence[bytes], values: Sequence[bytes], places: NDArray[np.int32]) -> None:
        for partition in np.unique(places).tolist():
            rows = np.flatnonzero(places == partition).tolist()
            self.produce_batch(topic, partition, [{"key": keys[r], "value": values[r]} for r in rows])
        self.client.poll(0)
        self.raise_failure()


class FollowedRecord(NamedTuple):
    """One record as it was read."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    headers: Headers | None = None


class RecordFollower:
    """Reads every committed record of one topic, in no consumer group and without committing. A context manager."""

    def __init__(
        self, bootstrap: str, topic: str, *, client_id: str, start: Literal["beginning", "end"] | int = "end"
    ) -> None:
        """Start at the beginning, behind what is there now, or at a record timestamp (ms).

        Raises:
            UsageError: no such topic. BrokerUnavailable: nobody answers.
        """
        self._bootstrap = bootstrap
        self._topic = topic
        # No offsets are stored, so the group's name matters to nobody; librdkafka wants one.
        self._consumer = Consumer(consumer_config(bootstrap, client_id, f"{client_id}-follower"))
        try:
            self.starts = self._watermarks(start)
            self._consumer.assign([TopicPartition(topic, p, offset) for p, offset in self.starts.items()])
        except BaseException:
            self._consumer.close()
            raise

    def poll(self, max_records: int = 10_000, timeout_s: float = 0.0) -> list[FollowedRecord]:
        """Up to `max_records` records, waiting at most `timeout_s` for the first.

        Raises:
            StreamScorerError: the topic was deleted, or the broker refuses. An unavailable broker is not an error.
        """
        messages = self._consumer.consume(1, timeout_s)
        if messages and max_records > 1:
            messages += self._consumer.consume(max_records - 1, 0)
        records = []
        for message in messages:
            error = message.error()
            if error is not None:
                known = as_domain_error(error, f"read {self._topic}", self._bootstrap)
                if error.retriable() or isinstance(known, BrokerUnavailable):
                    continue  # librdkafka reconnects by itself
                raise known
            partition, offset = message.partition(), message.offset()
            assert partition is not None and offset is not None
            headers = cast(Headers | None, message.headers())
            records.append(
                FollowedRecord(partition, offset, message.key(), message.value(), message.timestamp()[1], headers)
            )
        return records

    def close(self) -> None:
        """Stop reading."""
        self._consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _watermarks(self, start: Literal["beginning", "end"] | int) -> dict[int, int]:
        starts = {}
        for partition in _partition_ids(self._consumer, self._topic, self._bootstrap):
            low, high = self._watermark(TopicPartition(self._topic, partition))
            starts[partition] = low if start == "beginning" else high
            if isinstance(start, int):
                starts[partition] = self._first_since(partition, start, high)
        return starts

    def _first_since(self, partition: int, timestamp_ms: int, end: int) -> int:
        try:
            (found,) = self._consumer.offsets_for_times(
                [TopicPartition(self._topic, partition, timestamp_ms)], METADATA_TIMEOUT_S
            )
        except KafkaException as error:
            raise as_domain_error(kafka_error(error), f"look up {self._topic} by time", self._bootstrap) from error
        return found.offset if found.offset >= 0 else end  # -1: nothing is as young

    def _watermark(self, place: TopicPartition) -> tuple[int, int]:
        for left in reversed(range(ELECTION_TRIES)):
            try:
                low, high = self._consumer.get_watermark_offsets(place, METADATA_TIMEOUT_S)
                return int(low), int(high)
            except KafkaException as error:
                if kafka_error(error).code() not in _ELECTING or not left:
                    raise as_domain_error(
                        kafka_error(error), f"find the ends of {self._topic}", self._bootstrap
                    ) from error
                # Nothing is assigned yet: this only waits, and lets librdkafka look for the leader.
                self._consumer.poll(RETRY_WAIT_S)
        raise AssertionError("the last try returns or raises")


def _partition_ids(client: Producer | Consumer, topic: str, bootstrap: str) -> list[int]:
    for left in reversed(range(ABSENCE_TRIES)):
        try:
            found = client.list_topics(topic, METADATA_TIMEOUT_S).topics[topic]
        except KafkaException as error:
            raise as_domain_error(kafka_error(error), f"look up topic {topic}", bootstrap) from error
        if found.error is None:
            return sorted(found.partitions)
        if not left:
            raise as_domain_error(found.error, f"look up topic {topic}", bootstrap)
        client.poll(RETRY_WAIT_S)
    raise AssertionError("the last try returns or raises")
