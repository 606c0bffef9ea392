"""The traffic of a storm: simulated transactions and labels in accelerated event time, and whatever actions add.

A day of event time takes some twenty seconds. Kafka timestamps are event time too, so the log looks like that of weeks.
Records that must be refused have keys that begin with `BAD`, and nothing else does.
"""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from confluent_kafka import Producer

from proofs.memory_run import LogEvent, disturbed_events
from stream_scorer.kafka.config import producer_config
from stream_scorer.kafka.partitioner import partitions_of
from stream_scorer.kafka.topics import Topics
from stream_scorer.serde.raw import Headers
from stream_scorer.simulate.config import DAY_MS, HOUR_MS, SimulationConfig
from stream_scorer.simulate.generate import generate

BAD = b"bad-"
# Event time per second: 14 days in 300 s. With late events it must stay within the 30 days that features look back.
PACE_MS = 14 * DAY_MS // 300
# The simulator makes this many times the transactions that the rate asks for, because bursts take more.
SPARE = 1.5
_TICK_S = 0.02
_DELIVERY_MS = 600_000

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class Traffic:
    """Publishes until it is stopped. Actions call its methods from their own threads."""

    def __init__(self, bootstrap: str, seed: int, rate: int, duration_ms: int, partitions: int) -> None:
        n = int(rate * duration_ms / 1_000 * SPARE)
        days = PACE_MS * duration_ms / 1_000 / DAY_MS
        config = SimulationConfig(
            seed=seed,
            customers=max(int(n / SPARE / days / 1.5), 20),
            terminals=max(n // 200, 20),
            days=None,
            transactions=n,
            fraud_rate=0.05,
        )
        # In memory, records have timestamps of their own; here the time of arrival is the timestamp.
        events = disturbed_events(generate(config), np.random.default_rng(seed))
        self._base = [event._replace(timestamp=int(event.at)) for event in events]
        self._places = partitions_of([event.key for event in self._base], partitions).tolist()
        self.topics, self.partitions = Topics(), partitions
        self.now = self._base[0].at
        self._sent = 0
        self._factors: list[float] = []
        self._muted: Counter[tuple[str, int]] = Counter()
        self._held: dict[tuple[str, int], list[tuple[LogEvent, Headers | None]]] = {}
        self._extra: list[tuple[float, int, LogEvent, Headers | None]] = []
        self._number = itertools.count()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        settings = producer_config(bootstrap, "storm") | {"message.timeout.ms": _DELIVERY_MS, "linger.ms": 5}
        self._producer = Producer(settings)
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)
        self.start = self._thread.start

    @property
    def published(self) -> int:
        """Number of base records so far."""
        return self._sent

    def stop(self) -> None:
        """End the base traffic, release what is held, and wait until the broker has everything."""
        self._stop.set()
        self._thread.join()
        with self._lock:
            self._muted.clear()
            self._release()
            while self._extra:
                self._put(*heapq.heappop(self._extra)[2:])
        self.flush()

    def flush(self) -> None:
        """Wait until the broker has everything. Raises AssertionError if that takes too long."""
        left = self._producer.flush(180)
        assert not left, f"{left} records were not delivered"

    def inject(
        self,
        topic: str,
        key: bytes,
        value: bytes,
        *,
        after_ms: float = 0.0,
        skew_ms: int = 0,
        headers: Headers | None = None,
    ) -> None:
        """Publish one more record `after_ms` of event time, with a timestamp that is off by `skew_ms`."""
        with self._lock:
            at = self.now + after_ms
            event = LogEvent(at, topic, key, value, int(at) + skew_ms)
            heapq.heappush(self._extra, (at, next(self._number), event, headers))

    def mute(self, topic: str, partition: int, *, muted: bool) -> None:
        """Hold the records of a partition back, or release them."""
        with self._lock:
            self._muted[topic, partition] += 1 if muted else -1
            self._release()

    def accelerate(self, factor: float, *, on: bool) -> None:
        """Let event time, and with it the traffic, run `factor` times as fast, or end that."""
        with self._lock:
            (self._factors.append if on else self._factors.remove)(factor)

    def past(self, rng: random.Random, count: int) -> list[dict[str, Any]]:
        """Transactions that were published, drawn with repetition."""
        return [_decode(self._draw(rng, 0, max(self._sent, 1)).value) for _ in range(count)]

    def coming(self, rng: random.Random, count: int) -> list[tuple[float, dict[str, Any]]]:
        """Transactions that follow soon: in how many milliseconds of event time, and each of them."""
        drawn = [self._draw(rng, self._sent + 50, self._sent + 2_000) for _ in range(count)]
        return [(event.at - self.now, _decode(event.value)) for event in drawn]

    def touch_everything(self, name: str) -> int:
        """Publish a transaction of every entity that occurred; returns their number."""
        ids: dict[str, list[str]] = {}
        fields = ("customer_id", "terminal_id", "device_id", "network_id")
        documents = [_decode(e.value) for e in self._base[: self._sent] if e.topic == self.topics.transactions]
        for field in fields:
            ids[field] = sorted({document[field] for document in documents if document.get(field)})
        template = {k: v for k, v in documents[-1].items() if k not in fields}
        count = max(map(len, ids.values()))
        self.now += HOUR_MS
        with self._lock:
            for i in range(count):
                more = {field: owners[i % len(owners)] for field, owners in ids.items()}
                document = template | more | {"event_id": f"{name}-{i}", "event_time": int(self.now)}
                key = document["customer_id"].encode()
                event = LogEvent(self.now, self.topics.transactions, key, _encode(document), int(self.now))
                self._put(event, None)
        self.flush()
        return count

    def _draw(self, rng: random.Random, low: int, high: int) -> LogEvent:
        while True:
            event = self._base[rng.randrange(low, min(high, len(self._base)))]
            if event.topic == self.topics.transactions:
                return event

    def _run(self) -> None:
        before = time.monotonic()
        while not self._stop.wait(_TICK_S):
            elapsed, before = time.monotonic() - before, time.monotonic()
            with self._lock:
                self.now += PACE_MS * elapsed * max([1.0, *self._factors])
                while self._sent < len(self._base) and self._base[self._sent].at <= self.now:
                    self._send(self._base[self._sent], None, self._places[self._sent])
                    self._sent += 1
                while self._extra and self._extra[0][0] <= self.now:
                    self._put(*heapq.heappop(self._extra)[2:])
            self._producer.poll(0)

    def _put(self, event: LogEvent, headers: Headers | None) -> None:
        self._send(event, headers, int(partitions_of([event.key], self.partitions)[0]))

    def _send(self, event: LogEvent, headers: Headers | None, place: int) -> None:
        source = event.topic, place
        if self._muted[source] > 0:
            self._held.setdefault(source, []).append((event, headers))
            return
        while True:
            try:
                self._producer.produce(
                    event.topic,
                    event.value,
                    event.key,
                    place,
                    timestamp=event.timestamp,
                    headers=list(headers) if headers else None,
                )
                return
            except BufferError:
                self._producer.poll(0.1)

    def _release(self) -> None:
        for source in [source for source in self._held if self._muted[source] <= 0]:
            for event, headers in self._held.pop(source):
                self._send(event, headers, source[1])


def label_of(document: dict[str, Any], labelled_at: int, fraud: bool, source: str) -> tuple[bytes, bytes]:
    """Key and value of a label for a transaction."""
    shared = ("event_id", "event_time", "customer_id", "terminal_id", "device_id", "network_id")
    label = {name: document[name] for name in shared if document.get(name) is not None}
    label |= {"label": "fraud" if fraud else "genuine", "labelled_at": labelled_at, "source": source}
    return document["customer_id"].encode(), _encode(label)


def transactions_of(documents: Sequence[dict[str, Any]]) -> list[tuple[bytes, bytes]]:
    """Keys and values."""
    return [(document["customer_id"].encode(), _encode(document)) for document in documents]
