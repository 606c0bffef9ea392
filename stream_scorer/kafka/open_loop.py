"""Publishes records at a rate, independent of their delivery (an open loop)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from stream_scorer.clock import Clock
from stream_scorer.errors import UsageError
from stream_scorer.kafka.metadata import partition_ids
from stream_scorer.kafka.partitioner import partitions_of
from stream_scorer.kafka.producer import PlainProducer

# Maximum number of records per call to librdkafka: large enough to be cheap, small enough to keep a schedule.
CHUNK = 5_000
# Records due within one tick are sent together. One by one, 1,000 per second would use a quarter of a core.
TICK_S = 0.01


class Schedule:
    """The due times of records: `rate` per second from the start, independent of their delivery (an open loop)."""

    def __init__(self, rate: float | None, clock: Clock) -> None:
        """With `rate` None, all records are due at once."""
        if rate is not None and rate <= 0:
            raise UsageError(f"the rate must be greater than 0, not {rate}")
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
        """Time until the next call of `due`: about the time until the next record, between one and two ticks."""
        if self._rate is None:
            return 0.0
        next_s = self._start + sent / self._rate - self._clock.monotonic()
        return min(max(next_s, TICK_S), 2 * TICK_S)


class OpenLoopProducer(PlainProducer):
    """A producer that puts each key where Java's default partitioner would, at a rate if there is a schedule."""

    def __init__(self, bootstrap: str, *, client_id: str, clock: Clock, sleep: Callable[[float], None]) -> None:
        # Callbacks for failures only: a callback per success would cost more than the record.
        settings = {"linger.ms": 5, "delivery.report.only.error": True}
        super().__init__(bootstrap, client_id, settings=settings, monotonic=clock.monotonic)
        self._sleep = sleep
        self._counts: dict[str, int] = {}

    def partitions(self, topic: str) -> int:
        """Number of partitions of `topic`. Raises `UsageError` if it does not exist, or `BrokerUnavailable`."""
        if topic not in self._counts:
            self._counts[topic] = len(partition_ids(self.client, topic, self.bootstrap))
        return self._counts[topic]

    def publish(
        self, topic: str, keys: Sequence[bytes | None], values: Sequence[bytes], *, schedule: Schedule | None = None
    ) -> NDArray[np.int32]:
        """Publish records in order, each at its due time (at once without a schedule). Returns their partitions.

        Records without a key go to the partitions in turn. A schedule counts the records of this call only. Waits only
        while librdkafka's queue is full.

        Raises:
            BrokerUnavailable: the delivery of a record failed, or the queue remains full.
            UsageError: the topic does not exist.
        """
        places = _places(keys, self.partitions(topic))
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

    def _hand_over(
        self, topic: str, keys: Sequence[bytes | None], values: Sequence[bytes], places: NDArray[np.int32]
    ) -> None:
        for partition in np.unique(places).tolist():
            rows = np.flatnonzero(places == partition).tolist()
            self.produce_batch(topic, partition, [{"key": keys[r], "value": values[r]} for r in rows])
        self.client.poll(0)
        self.raise_failure()


def _places(keys: Sequence[bytes | None], partitions: int) -> NDArray[np.int32]:
    known = [key for key in keys if key is not None]
    if len(known) == len(keys):
        return partitions_of(known, partitions)
    places = np.arange(len(keys), dtype=np.int32) % np.int32(partitions)
    places[[key is not None for key in keys]] = partitions_of(known, partitions)
    return places
