"""Features of a whole history, by the serving kernel, for training sets and offline evaluations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_scorer.features.engine import EventBatch, FeatureEngine
from stream_scorer.features.label_cuts import LabelCuts
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.serde.columns import take_labels, take_transactions
from stream_scorer.serde.decoder import Labels, Transactions
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.state.rows import MemoryRowStore

# Large enough to amortize the per-batch numpy calls, small enough to stay in cache.
HISTORY_BATCH = 4096


@dataclass(slots=True)
class History:
    """Features of `n` transactions: matrix (n, n_features) float64, status likewise int8, duplicate (n,) bool."""

    event_id: list[str]
    event_time: NDArray[np.int64]
    matrix: NDArray[np.float64]
    status: NDArray[np.int8]
    duplicate: NDArray[np.bool_]
    feature_names: list[str]


def build_features(
    checked: CheckedSpec,
    transactions: Transactions,
    labels: Labels,
    *,
    batch: int = HISTORY_BATCH,
    on_progress: Callable[[int, int], None] | None = None,
) -> History:
    """Features of `transactions`, as if each had been scored when it happened.

    Both inputs are sorted by time first (`event_time`, `labelled_at`; ties keep their order), so a transaction sees the
    labels that were given until then and none that were given later, whatever the size of a `batch`.
    """
    engine = FeatureEngine(checked)
    store = MemoryRowStore()
    transactions = take_transactions(transactions, np.argsort(transactions.event_time, kind="stable"))
    labels = take_labels(labels, np.argsort(labels.labelled_at, kind="stable"))
    sources = [SourcePartition("history", 0), SourcePartition("labels", 0)]
    cuts, n = LabelCuts(checked), len(transactions)
    # A label comes before the transactions of the same time.
    before = np.searchsorted(transactions.event_time, labels.labelled_at, side="left")
    risky = cuts.risky(labels, before, transactions.event_time)
    matrix = np.empty((n, len(checked.features)))
    status = np.empty((n, len(checked.features)), dtype=np.int8)
    duplicate = np.empty(n, dtype=np.bool_)
    low = label_at = 0
    while low < n:
        high = min(low + batch, n)
        label_to = int(np.searchsorted(before, high, side="left"))
        between = risky[np.searchsorted(risky, label_at) : np.searchsorted(risky, label_to)]
        cut = cuts.first_conflict(transactions, labels, before, low, between)
        if cut is not None:
            high = int(before[cut])
            label_to = int(np.searchsorted(before, high, side="left"))
        newest = int(transactions.event_time[high - 1])
        given = int(labels.labelled_at[label_to - 1]) if label_to else -1
        rows, label_rows = np.arange(low, high), np.arange(label_at, label_to)
        events = EventBatch(
            transactions=take_transactions(transactions, rows),
            labels=take_labels(labels, label_rows),
            spans=[Span(sources[0], low, high, newest), Span(sources[1], label_at, label_to, given)],
            transaction_span=np.zeros(high - low, dtype=np.int64),
            transaction_offset=rows,
            label_span=np.ones(label_to - label_at, dtype=np.int64),
            label_offset=label_rows,
        )
        enriched = engine.enrich(events, store)
        store.apply(enriched.update)
        matrix[low:high], status[low:high] = enriched.matrix, enriched.status
        duplicate[low:high] = enriched.duplicate
        low, label_at = high, label_to
        if on_progress is not None:
            on_progress(high, n)
    return History(transactions.event_id, transactions.event_time, matrix, status, duplicate, checked.features)
