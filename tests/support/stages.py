"""The stages of a scorer on simulated transactions, whose output is kept in memory."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.lineup import Lineup
from stream_scorer.features.engine import FeatureEngine
from stream_scorer.kafka.topics import Topics
from stream_scorer.observability.metrics import Metrics
from stream_scorer.pipeline.batch import MicroBatch
from stream_scorer.pipeline.decode import Decode
from stream_scorer.pipeline.enrich import EnrichInProcess
from stream_scorer.pipeline.publish import DEAD_LETTER_MAX_BYTES, OutputWriter
from stream_scorer.pipeline.score import Scoring
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.records import LineageRow
from stream_scorer.serde.lineage import LineageBatch
from stream_scorer.serde.raw import RawRecords
from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.simulate.encode import encode_keys, encode_labels, encode_values
from stream_scorer.simulate.generate import generate
from stream_scorer.simulate.labeller import history_labels
from stream_scorer.simulate.transactions import Transactions
from stream_scorer.spec import CheckedSpec, load_spec
from stream_scorer.state.rows import MemoryRowStore

CARDS = Path(__file__).resolve().parents[2] / "stream_scorer" / "simulate" / "cards.yaml"
CHECKED = load_spec(CARDS)
CONFIG = SimulationConfig(seed=3, customers=40, terminals=20, days=None, transactions=600, fraud_rate=0.05)


@cache
def simulated() -> Transactions:
    return generate(CONFIG)


@cache
def inputs() -> tuple[list[bytes], list[bytes], Any, list[bytes], list[bytes]]:
    """Keys and values of the transactions, the labels, and their keys and values."""
    transactions = simulated()
    labels = history_labels(transactions, int(transactions.event_time[-1]))
    records = encode_keys(transactions.customer_id), encode_values(transactions)
    return *records, labels, encode_keys(labels.customer_id), encode_labels(labels)


class FixedClock:
    def now_ms(self) -> int:
        return CONFIG.start_ms + 10**9

    def monotonic(self) -> float:
        return 0.0


class Collected:
    """A sink that keeps records by topic."""

    def __init__(self) -> None:
        self.records: dict[str, list[tuple[int, bytes | None, bytes | None, Any]]] = {}

    def produce(self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Any = None) -> None:
        self.records.setdefault(topic, []).append((partition, key, value, headers))

    def documents(self, topic: str) -> list[dict[str, Any]]:
        return [json.loads(value or b"") for _, _, value, _ in self.records.get(topic, [])]

    def values(self, topic: str) -> list[bytes]:
        return [value or b"" for _, _, value, _ in self.records.get(topic, [])]

    def lineage(self) -> list[LineageRow]:
        return [row for _, _, value, _ in self.records["lineage"] for row in LineageBatch(value or b"").rows()]


def raw(topic: str, keys: list[bytes], values: list[bytes], start: int) -> RawRecords:
    n = len(values)
    now = np.full(n, FixedClock().now_ms())
    return RawRecords(
        topic, np.zeros(n, np.int32), np.arange(start, start + n), now, list(keys), list(values), [None] * n
    )


def run(
    ensemble: Ensemble | Lineup,
    batch: int,
    *,
    values: list[bytes] | None = None,
    store: Any = None,
    checked: CheckedSpec = CHECKED,
    max_explained: int = 0,
    enrich: Any = None,
    headers: dict[int, Any] | None = None,
    keys: dict[int, bytes] | None = None,
    max_dead_letter: int = DEAD_LETTER_MAX_BYTES,
) -> Collected:
    transactions, (all_keys, good, labels, label_keys, label_values) = simulated(), inputs()
    all_keys = [(keys or {}).get(i, key) for i, key in enumerate(all_keys)]
    values = values or good
    store = store or MemoryRowStore()
    enrich = enrich or EnrichInProcess(FeatureEngine(checked), store)
    lineup = ensemble if isinstance(ensemble, Lineup) else Lineup.of(ensemble)
    stages = [Decode(checked), enrich, Scoring(lambda: lineup, checked, Metrics())]
    limits = {"max_explained": max_explained, "max_dead_letter": max_dead_letter}
    writer, sink = OutputWriter(Topics(), checked, FixedClock(), **limits), Collected()
    label_source = SourcePartition("labels", 0)
    at_label = 0
    for low in range(0, len(values), batch):
        high = min(low + batch, len(values))
        # All labels given by the batch's first transaction: the same for every batching of 1.
        to_label = int(np.searchsorted(labels.labelled_at, transactions.event_time[low], side="right"))
        to_label = max(to_label, at_label)
        spans = [Span(SourcePartition("transactions", 0), low, high, -1), Span(label_source, at_label, to_label, -1)]
        micro = MicroBatch(
            raw("transactions", all_keys[low:high], values[low:high], low),
            raw("labels", label_keys[at_label:to_label], label_values[at_label:to_label], at_label),
            spans,
            None,
        )
        micro.transactions.headers = [(headers or {}).get(i) for i in range(low, high)]
        at_label = to_label
        for stage in stages:
            stage.process(micro)
        writer.write(micro, sink)
        assert micro.enriched is not None
        if micro.enriched.update.keys:
            store.apply(micro.enriched.update)
    return sink
