"""Late transactions: a feature that is called fresh lacks at most what its two outer panes hold, however late it is."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
import pytest

from stream_scorer.arrays import Floats, Int8s, Ints
from stream_scorer.features.engine import EventBatch, FeatureEngine
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.records import FRESH, PARTIAL
from stream_scorer.serde.columns import take_labels, take_transactions
from stream_scorer.serde.decoder import Labels, Transactions
from stream_scorer.spec import parse_spec
from stream_scorer.state.rows import AppliedOffsets, MemoryRowStore, RowUpdate
from tests.support.tables import labels_from_columns, transactions_from_columns

HOUR, DAY = 3_600_000, 24 * 3_600_000
N, DAYS = 3_000, 6
WINDOW, LATENESS, PANE = DAY, HOUR, DAY // 32
SPEC = parse_spec("""
name: late
version: 1
transaction:
  id: id
  time: at
  value: amount
  fields: {id: {type: string}, at: {type: time}, amount: {type: integer}, shop: {type: string}, card: {type: string}}
entities: {card: {field: card}, shop: {field: shop}}
partition_entity: card
limits: {row_entries: 16}
time: {allowed_lateness: 1h}
views:
  - {name: card, entity: card, windows: [1d], aggregates: [sum]}
  - {name: shop, entity: shop, windows: [1d], aggregates: [count]}
  - {name: fraud, entity: shop, windows: [1d], delay: 6h, aggregates: [label_count]}
policy: {version: p, review: 0.5, block: 0.9}
""")
PARTITIONS = [SourcePartition("t", 0), SourcePartition("t", 1)]
LABELS = SourcePartition("l", 0)
CARD, SHOP, FRAUD = range(3)


class Log(NamedTuple):
    """One busy shop, in the order of arrival; `partition` and `offset` (n,) of each, and labels with their arrival."""

    transactions: Transactions
    partition: Ints
    offset: Ints
    labels: Labels
    after: Ints


def make_log(seed: int) -> Log:
    rng = np.random.default_rng(seed)
    time = np.sort(rng.integers(10 * DAY, (10 + DAYS) * DAY, N))
    delay = np.where(rng.random(N) < 0.1, rng.integers(0, 3 * DAY, N), rng.integers(0, HOUR // 2, N))
    time = time[np.argsort(time + delay, kind="stable")]
    partition = rng.integers(0, 2, N)
    offset = np.where(partition == 0, np.cumsum(partition == 0), np.cumsum(partition)) - 1
    transactions = transactions_from_columns(
        SPEC,
        {
            "id": [f"e{i}" for i in range(N)], "at": time, "amount": np.ones(N, dtype=np.int64),
            "shop": ["busy"] * N, "card": [f"c{i % 300}" for i in range(N)],
        },
    )  # fmt: skip
    # Few labels, so their watermark is often far behind.
    labelled = np.sort(rng.choice(np.arange(200, N - 200), 40, replace=False))
    labels = labels_from_columns(
        SPEC,
        {
            "event_id": [f"e{i}" for i in labelled.tolist()], "event_time": time[labelled].tolist(),
            "label": ["fraud"] * len(labelled), "labelled_at": (time[labelled] + HOUR).tolist(),
            "shop": ["busy"] * len(labelled), "card": ["c0"] * len(labelled),
        },
    )  # fmt: skip
    return Log(transactions, partition, offset, labels, labelled + 100)


def batches(log: Log, size: int) -> list[EventBatch]:
    out = []
    for low in range(0, N, size):
        rows = np.arange(low, min(low + size, N))
        label_rows = np.flatnonzero((log.after >= low) & (log.after < low + size))
        spans = []
        for number, source in enumerate(PARTITIONS):
            mine = rows[log.partition[rows] == number]
            newest = int(log.transactions.event_time[mine].max(initial=-1))
            start = int((log.partition[:low] == number).sum())
            spans.append(Span(source, start, start + len(mine), newest))
        first = int((log.after < low).sum())
        spans.append(
            Span(LABELS, first, first + len(label_rows), int(log.labels.labelled_at[label_rows].max(initial=-1)))
        )
        out.append(
            EventBatch(
                take_transactions(log.transactions, rows), take_labels(log.labels, label_rows), spans,
                log.partition[rows], log.offset[rows], np.full(len(label_rows), 2), label_rows,
            )
        )  # fmt: skip
    return out


def features(log: Log, size: int, depth: int) -> tuple[Floats, Int8s]:
    """Matrix and status of all transactions, in batches of `size`, up to `depth` of which are in flight."""
    engine, store, in_flight = FeatureEngine(SPEC), MemoryRowStore(), deque[RowUpdate]()
    matrices, statuses = [], []
    for events in batches(log, size):
        enriched = engine.enrich(events, store, list(in_flight))
        matrices.append(enriched.matrix)
        statuses.append(enriched.status)
        in_flight.append(enriched.update)
        if len(in_flight) > depth:
            store.apply(in_flight.popleft())
    return np.concatenate(matrices), np.concatenate(statuses)


def lateness(log: Log) -> Ints:
    """(n,) how far each transaction is behind the slowest partition; the first one of a partition is in time."""
    newest: dict[int, int] = {}
    behind = []
    for when, partition in zip(log.transactions.event_time.tolist(), log.partition.tolist(), strict=True):
        behind.append(min(newest.values()) - when if partition in newest else 0)
        newest[partition] = max(newest.get(partition, when), when)
    return np.array(behind)


def counts(log: Log) -> tuple[Ints, Ints]:
    """(n,) the shop's transactions in the window of each, and those of them that lie in its two outer panes."""
    time = log.transactions.event_time
    right, outer = np.zeros(N, np.int64), np.zeros(N, np.int64)
    for i, when in enumerate(time.tolist()):
        inside = time[: i + 1][(time[: i + 1] > when - WINDOW) & (time[: i + 1] <= when)]
        right[i] = len(inside)
        outer[i] = ((inside <= when - WINDOW + PANE) | (inside > when - PANE)).sum()
    return right, outer


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("size", "depth"), [(1, 0), (16, 3), (250, 0)])
def test_a_count_that_is_called_fresh_lacks_at_most_its_outer_panes(seed: int, size: int, depth: int) -> None:
    log = make_log(seed)
    matrix, status = features(log, size, depth)
    right, outer = counts(log)
    missing = right - matrix[:, SHOP].astype(np.int64)
    assert (missing >= 0).all()
    fresh = status[:, SHOP] == FRESH
    assert (missing[fresh] <= outer[fresh]).all()
    # The world does cut what late transactions would see.
    assert (missing > outer + right // 4).any()


@pytest.mark.parametrize("seed", range(2))
def test_transactions_are_partial_if_they_are_late_and_only_then_in_any_batching(seed: int) -> None:
    log = make_log(seed)
    late = lateness(log) > LATENESS
    assert 50 < late.sum() < N // 5
    expected = np.where(late, PARTIAL, FRESH)
    for size, depth in ((1, 0), (1, 7), (37, 0), (64, 2), (N, 0)):
        _, status = features(log, size, depth)
        for column in (CARD, SHOP, FRAUD):
            np.testing.assert_array_equal(np.isin(status[:, column], (PARTIAL,)), expected == PARTIAL)


def test_a_clock_that_is_ahead_makes_no_transaction_late() -> None:
    """Nothing is cut that is younger than the wall clock says; see ADR 0026."""
    log, now = make_log(0), 20 * DAY
    store = MemoryRowStore(AppliedOffsets({}, dict.fromkeys(PARTITIONS, now + 400 * DAY), now_ms=now))
    engine = FeatureEngine(SPEC)
    events = batches(log, 1)[0]
    for at, partial in ((now - HOUR, False), (now - HOUR - 1, True)):
        events.transactions.event_time = np.array([at])
        assert engine.enrich(events, store).partial.tolist() == [partial]
