"""The feature path by itself: engine and rows in a real Redis, fed with made transactions, and what its parts cost.

Shared by `features-hotkey` and `features-bench`. No Kafka: what is measured is reading rows, the kernel, the overlay of
one batch in flight, and applying in Redis; CPU seconds of this process and of Redis, from one run.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_scorer.features.engine import Enriched, EventBatch, FeatureEngine
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.serde.columns import take_labels, take_transactions
from stream_scorer.serde.decoder import Labels, Transactions
from stream_scorer.spec import parse_spec
from stream_scorer.spec.model import CheckedSpec, duration_ms
from stream_scorer.state.client import connect
from stream_scorer.state.redis_rows import RedisRowStore
from stream_scorer.state.rows import RowUpdate
from tests.support.tables import labels_from_columns, transactions_from_columns

SOURCE = SourcePartition("transactions", 0)
BATCH = 256
START_MS = 1_700_000_000_000
HOUR_MS = 3_600_000
K = 128
# Two entities, four views of three windows each, one of them of labels.
SPEC = f"""
name: path
version: 1
transaction:
  id: id
  time: at
  value: amount
  fields:
    id: {{type: string}}
    at: {{type: time}}
    amount: {{type: integer}}
    customer: {{type: string}}
    terminal: {{type: string}}
entities: {{customer: {{field: customer}}, terminal: {{field: terminal}}}}
partition_entity: customer
limits: {{row_entries: {K}}}
views:
  - {{name: spent, entity: customer, windows: [1h, 1d, 7d], aggregates: [count, sum, mean]}}
  - {{name: before, entity: customer, windows: [2h, 2d, 5d], aggregates: [count], current: exclude}}
  - {{name: seen, entity: terminal, windows: [1h, 1d, 7d], aggregates: [count, mean]}}
  - {{name: risk, entity: terminal, windows: [1d, 3d, 7d], delay: 1d, aggregates: [label_rate]}}
policy: {{version: p, review: 0.5, block: 0.9}}
"""


def path_spec() -> CheckedSpec:
    """Two entities, four views of three windows."""
    return parse_spec(SPEC)


def no_labels(checked: CheckedSpec) -> Labels:
    """A column of nothing each."""
    names = ("event_id", "event_time", "label", "labelled_at", "customer", "terminal")
    return labels_from_columns(checked, {name: [] for name in names})


def made(
    checked: CheckedSpec, customers: Sequence[str], terminals: Sequence[str], at: NDArray[np.int64], first: int
) -> Transactions:
    """Transactions numbered from `first` on, in event-time order."""
    n = len(at)
    return transactions_from_columns(
        checked,
        {
            "id": [f"e{i}" for i in range(first, first + n)],
            "at": at,
            "amount": 100 + (np.arange(first, first + n) * 7_919) % 40_000,
            "customer": list(customers),
            "terminal": list(terminals),
        },
    )


class Path:
    """Engine and rows of one spec, under a namespace of their own."""

    def __init__(self, redis_url: str, checked: CheckedSpec, namespace: str) -> None:
        self.url, self.checked = redis_url, checked
        self.engine = FeatureEngine(checked)
        self.engine.warm()
        self._client = connect(redis_url)
        horizon_ms = self.engine.plan.horizon_ms + duration_ms(checked.spec.time.allowed_lateness)
        self.store = RedisRowStore(self._client, namespace, [SOURCE], labels_topic="labels", horizon_ms=horizon_ms)
        assert self.store.open() is None
        self.store.init({SOURCE: 0}, {})
        self.store.open()
        self._no_labels = no_labels(checked)
        self._position = 0
        self._in_flight: deque[RowUpdate] = deque()
        self.reading: list[float] = []
        self._watch_reads()

    def feed(self, transactions: Transactions, batch: int = BATCH) -> Iterator[Enriched]:
        """Batch by batch through the path, one batch always in flight; yields what enrichment gave."""
        none = np.zeros(0, dtype=np.int64)
        for low in range(0, len(transactions), batch):
            rows = np.arange(low, min(low + batch, len(transactions)))
            part = take_transactions(transactions, rows)
            start, self._position = self._position, self._position + len(rows)
            span = Span(SOURCE, start, self._position, int(part.event_time.max()))
            events = EventBatch(
                part, take_labels(self._no_labels, none), [span],
                np.zeros(len(rows), dtype=np.int64), start + np.arange(len(rows)), none, none,
            )  # fmt: skip
            enriched = self.engine.enrich(events, self.store, tuple(self._in_flight))
            self._in_flight.append(enriched.update)
            if len(self._in_flight) > 1:
                self.store.apply(self._in_flight.popleft())
            yield enriched

    def finish(self) -> None:
        """Apply the batch in flight."""
        while self._in_flight:
            self.store.apply(self._in_flight.popleft())

    def measure(
        self, transactions: Transactions, look: Callable[[Enriched], None] | None = None, batch: int = BATCH
    ) -> Counter[str]:
        """CPU microseconds a transaction, by part; `look` is shown every batch."""
        spent: Counter[str] = Counter()
        apply = self.store.apply

        def timed(update: RowUpdate) -> None:
            started = time.thread_time()
            apply(update)
            spent["apply"] += time.thread_time() - started

        self.store.apply = timed  # type: ignore[method-assign]
        self.reading.clear()
        redis, began = self.redis_cpu(), time.thread_time()
        for enriched in self.feed(transactions, batch):
            if look is not None:
                look(enriched)
        whole = time.thread_time() - began
        spent["redis"] = self.redis_cpu() - redis
        self.store.apply = apply  # type: ignore[method-assign]
        spent["read"] = sum(self.reading)
        spent["kernel"] = whole - spent["read"] - spent["apply"]
        return Counter({part: 1e6 * seconds / len(transactions) for part, seconds in spent.items()})

    def info(self, section: str) -> dict[str, Any]:
        """What Redis says of itself."""
        return dict(self._client.info(section))

    @property
    def row_prefix(self) -> bytes:
        """What row keys begin with in Redis."""
        return self.store.row_prefix

    def row(self, key: bytes) -> bytes:
        """A stored row."""
        (row,) = self.store.read([key])[0]
        assert row is not None
        return row

    def redis_cpu(self) -> float:
        """Seconds of CPU that Redis has used so far."""
        info = self.info("cpu")
        return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])

    def _watch_reads(self) -> None:
        read = self.store.read

        def timed(keys: Sequence[bytes]) -> Any:
            started = time.thread_time()
            found = read(keys)
            self.reading.append(time.thread_time() - started)
            return found

        self.store.read = timed  # type: ignore[method-assign]
