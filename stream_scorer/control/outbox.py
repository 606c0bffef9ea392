"""Records that a scorer publishes about itself, retried until the broker confirms them.

Publication is separate from what the records report: a broker that refuses a record about a loaded version does not
change that the version is loaded.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from stream_scorer.clock import Clock
from stream_scorer.errors import StreamScorerError

_log = logging.getLogger(__name__)
# The first retry follows soon, as most failures are leader elections. Then the wait doubles up to the maximum.
MIN_BACKOFF_S, MAX_BACKOFF_S = 0.5, 30.0
# Bound of the records that wait per topic. A scorer appends one audit record per version it loads or refuses.
MAX_WAITING = 1_000


@dataclass(slots=True)
class _Queue:
    """The records of one topic that the broker has not confirmed, oldest first, and the time of the next attempt."""

    records: deque[tuple[str, bytes | None]] = field(default_factory=deque)
    backoff_s: float = 0.0
    retry_at: float = 0.0


class Outbox:
    """Queues records by topic and publishes them in order. Any thread may queue records, one thread publishes them.

    Delivery is at least once: a record whose confirmation is lost is written again.

    Args:
        publish: writes one record (topic, key, value) and waits for the confirmation. Raises `StreamScorerError`.
    """

    def __init__(self, publish: Callable[[str, str, bytes | None], object], clock: Clock) -> None:
        self._publish = publish
        self._clock = clock
        self._queues: dict[str, _Queue] = {}
        self._lock = threading.Lock()  # guards the queues; it is free while a record is published

    @property
    def waiting(self) -> int:
        """Number of records that the broker has not confirmed."""
        with self._lock:
            return sum(len(queue.records) for queue in self._queues.values())

    def append(self, topic: str, key: str, value: bytes | None) -> None:
        """Queue a record of a log, where every record counts. Beyond `MAX_WAITING` the oldest is dropped."""
        with self._lock:
            records = self._queue(topic).records
            full = len(records) >= MAX_WAITING
            if full:
                records.popleft()
            records.append((key, value))
        if full:
            _log.error("%s: more than %d records wait for the broker; the oldest is dropped", topic, MAX_WAITING)

    def replace(self, topic: str, key: str, value: bytes | None) -> None:
        """Queue a record of a compacted topic: it replaces a waiting record with the same key."""
        with self._lock:
            queue = self._queue(topic)
            queue.records = deque(record for record in queue.records if record[0] != key)
            queue.records.append((key, value))

    def flush(self) -> None:
        """Publish what waits, except on topics whose next attempt is not due.

        The first failure ends the call, as one attempt can take as long as the broker's timeout. The failed topic is
        then not due, so the next call reaches the others.
        """
        with self._lock:
            queues = list(self._queues.items())
        for topic, queue in queues:
            if self._clock.monotonic() < queue.retry_at:
                continue
            while (record := self._oldest(queue)) is not None:
                try:
                    self._publish(topic, *record)
                except StreamScorerError as error:
                    self._back_off(topic, queue, error)
                    return
                self._remove(queue, record)
            if queue.backoff_s:
                _log.info("%s: the records that waited are published", topic)
            queue.backoff_s = queue.retry_at = 0.0

    def close(self, topic: str, key: str) -> None:
        """Publish a deletion of `key` on the compacted `topic`, then what waits, with one attempt each at most."""
        self.replace(topic, key, None)
        # The deletion comes first, because a failure ends the flush and there is no later retry.
        with self._lock:
            self._queues = {topic: self._queues[topic], **self._queues}
            for queue in self._queues.values():
                queue.retry_at = 0.0
        self.flush()
        if self.waiting:
            _log.warning("%d records could not be published before the end", self.waiting)

    def _queue(self, topic: str) -> _Queue:
        return self._queues.setdefault(topic, _Queue())

    def _oldest(self, queue: _Queue) -> tuple[str, bytes | None] | None:
        with self._lock:
            return queue.records[0] if queue.records else None

    def _remove(self, queue: _Queue, published: tuple[str, bytes | None]) -> None:
        """Remove a published record, unless another thread has replaced or dropped it meanwhile."""
        with self._lock:
            if queue.records and queue.records[0] is published:
                queue.records.popleft()

    def _back_off(self, topic: str, queue: _Queue, error: StreamScorerError) -> None:
        level = logging.DEBUG if queue.backoff_s else logging.WARNING
        queue.backoff_s = min(max(2 * queue.backoff_s, MIN_BACKOFF_S), MAX_BACKOFF_S)
        queue.retry_at = self._clock.monotonic() + queue.backoff_s
        _log.log(level, "%s: a record is not published and will be retried: %s", topic, error.message)
