"""Idle partitions: rows of busy entities stay bounded over 60 days, and no feature of an event in time changes."""

from __future__ import annotations

import numpy as np
import pytest

from stream_scorer.features.engine import Enriched, EventBatch, FeatureEngine
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.records import FRESH, PARTIAL
from stream_scorer.serde.columns import take_labels, take_transactions
from stream_scorer.spec import parse_spec
from stream_scorer.state.row_format import unpack
from stream_scorer.state.rows import IDLE_MS, AppliedOffsets, MemoryRowStore, RowStore
from tests.support.failpoints import Failpoints
from tests.support.rows import MemoryAppliedRows, MemoryServer
from tests.support.tables import labels_from_columns, transactions_from_columns

HOUR, DAY = 3_600_000, 24 * 3_600_000
DAYS, PER_DAY, BATCH = 60, 100, 50
K = 16
SPEC = parse_spec(f"""
name: idle
version: 1
transaction:
  id: id
  time: at
  value: amount
  fields: {{id: {{type: string}}, at: {{type: time}}, amount: {{type: integer}}, shop: {{type: string}}}}
entities: {{shop: {{field: shop}}}}
partition_entity: shop
limits: {{row_entries: {K}}}
time: {{allowed_lateness: 1h}}
views:
  - {{name: near, entity: shop, windows: [6h, 2d], aggregates: [count, sum]}}
  - {{name: far, entity: shop, windows: [1d], delay: 1d, aggregates: [label_count]}}
policy: {{version: p, review: 0.5, block: 0.9}}
""")
BUSY, QUIET, LABELS = SourcePartition("t", 0), SourcePartition("t", 1), SourcePartition("l", 0)


def batches(seed: int) -> list[EventBatch]:
    """60 days of one busy shop. On the first day another partition has an event, and the first two days have labels."""
    rng = np.random.default_rng(seed)
    n = DAYS * PER_DAY
    at = np.sort(rng.integers(DAY, (DAYS + 1) * DAY, n)) - np.where(rng.random(n) < 0.05, HOUR // 2, 0)
    transactions = transactions_from_columns(
        SPEC, {"id": [f"e{i}" for i in range(n)], "at": at, "amount": rng.integers(1, 99, n), "shop": ["busy"] * n}
    )
    k = PER_DAY
    labels = labels_from_columns(
        SPEC,
        {
            "event_id": [f"e{i}" for i in range(k)],
            "event_time": at[:k].tolist(),
            "label": ["fraud"] * k,
            "labelled_at": (at[:k] + DAY).tolist(),
            "shop": ["busy"] * k,
        },
    )
    none = np.zeros(0, dtype=np.int64)
    out = [one_event(DAY, 0, QUIET, 0)]
    for low in range(0, n, BATCH):
        place = np.arange(low, low + BATCH)
        label_rows = np.arange(low, min(low + BATCH, k)) if low < k else none
        spans = [Span(BUSY, low, low + BATCH, int(at[place].max()))]
        if len(label_rows):
            spans.append(Span(LABELS, low, low + len(label_rows), int(at[label_rows].max()) + DAY))
        out.append(
            EventBatch(
                take_transactions(transactions, place), take_labels(labels, label_rows), spans,
                np.zeros(BATCH, np.int64), place, np.ones(len(label_rows), np.int64), label_rows,
            )
        )  # fmt: skip
    return out


def one_event(at: int, number: int, source: SourcePartition, offset: int) -> EventBatch:
    """An event of the busy shop alone."""
    row = transactions_from_columns(SPEC, {"id": [f"q{number}"], "at": [at], "amount": [1], "shop": ["busy"]})
    none, zero = np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.int64)
    no_labels = labels_from_columns(
        SPEC, {"event_id": [], "event_time": [], "label": [], "labelled_at": [], "shop": []}
    )
    return EventBatch(row, no_labels, [Span(source, offset, offset + 1, at)], zero, zero + offset, none, none)


def opened() -> tuple[MemoryServer, MemoryAppliedRows]:
    server = MemoryServer()
    store = MemoryAppliedRows(server, [BUSY, QUIET, LABELS], Failpoints(), per_call=10_000, labels_topic="l")
    store.open()
    assert store.init(dict.fromkeys([BUSY, QUIET, LABELS], 0), {})
    return server, store


def feed(engine: FeatureEngine, store: RowStore, events: EventBatch) -> Enriched:
    enriched = engine.enrich(events, store)
    store.apply(enriched.update)
    return enriched


def size(store: RowStore) -> int:
    row = store.read([b"0:busy"])[0][0]
    return len(unpack(row or b""))


@pytest.mark.parametrize("seed", range(2))
def test_rows_of_a_busy_entity_stay_bounded_while_a_partition_and_the_labels_are_silent(seed: int) -> None:
    engine = FeatureEngine(SPEC)
    (server, store), keeps_all = opened(), MemoryRowStore()
    sizes = []
    for events in batches(seed):
        enriched, right = feed(engine, store, events), feed(engine, keeps_all, events)
        np.testing.assert_array_equal(enriched.matrix, right.matrix)
        assert (enriched.status != PARTIAL).all()
        applied = store.open()
        assert applied is not None
        server.passed = applied.passed_by(applied.next_offset)  # what the hourly pass does
        sizes.append(size(store))
    # Panes of 6 hours and of 2 days lie this far back at most: their windows, lateness, and a day of idleness.
    per_level = [(reach + HOUR + IDLE_MS) // (window // 32) + 2 for window, reach in
                 ((6 * HOUR, 6 * HOUR), (2 * DAY, 2 * DAY), (DAY, 2 * DAY))]  # fmt: skip
    assert max(sizes) <= 2 * sum(per_level) + 3 * K + 2 * BATCH
    assert max(sizes[-200:]) < size(keeps_all) / 3


def test_labels_that_are_all_there_first_drop_nothing_and_make_no_transaction_late() -> None:
    engine, (server, store) = FeatureEngine(SPEC), opened()
    keeps_all = MemoryRowStore(AppliedOffsets({}, {SourcePartition("t", 9): 0}, labels_topic="l"))
    at = np.arange(DAY, 61 * DAY, DAY // 8)
    labels = labels_from_columns(
        SPEC,
        {
            "event_id": [f"l{i}" for i in range(len(at))],
            "event_time": at.tolist(),
            "label": ["fraud"] * len(at),
            "labelled_at": (at + DAY).tolist(),
            "shop": ["busy"] * len(at),
        },
    )
    nothing = take_transactions(one_event(DAY, 0, BUSY, 0).transactions, np.zeros(0, dtype=np.int64))
    none = np.zeros(0, dtype=np.int64)
    log = []
    for low in range(0, len(at), 16):
        rows = np.arange(low, low + 16)
        span = Span(LABELS, low, low + 16, int(at[rows].max()) + DAY)
        log.append(EventBatch(nothing, take_labels(labels, rows), [span], none, none, rows * 0, rows))
    # Batches without their own labels.
    log += [
        EventBatch(each.transactions, take_labels(labels, none), each.spans[:1], each.transaction_span,
                   each.transaction_offset, none, none)
        for each in batches(0)[1:21]
    ]  # fmt: skip
    for events in log:
        enriched, right = feed(engine, store, events), feed(engine, keeps_all, events)
        np.testing.assert_array_equal(enriched.matrix, right.matrix)
        assert (enriched.status != PARTIAL).all()
        applied = store.open()
        assert applied is not None
        server.passed = applied.passed_by(applied.next_offset)
        assert applied.settled(applied.next_offset) == applied.watermark[BUSY]
    assert enriched.matrix[:, 2].max() > 0


def test_labels_do_not_make_a_partition_of_transactions_idle() -> None:
    behind = AppliedOffsets(
        {BUSY: 10, QUIET: 10, LABELS: 5}, {BUSY: 8 * DAY, QUIET: 7 * DAY, LABELS: 60 * DAY}, labels_topic="l"
    )
    ends = dict(behind.next_offset)
    assert behind.passed_by(ends) == 7 * DAY
    assert behind.settled(ends) == behind.settled(ends | {LABELS: 9}) == behind.newest_watermark() == 8 * DAY
    assert behind.settled(ends | {QUIET: 11}) == behind.slowest_active_watermark() == 7 * DAY
    none_yet = AppliedOffsets(behind.next_offset, {BUSY: -1, QUIET: -1, LABELS: 60 * DAY}, labels_topic="l")
    assert none_yet.passed_by(ends) == none_yet.settled(ends) == none_yet.slowest_active_watermark() == -1
    silent = AppliedOffsets(behind.next_offset, behind.watermark | {LABELS: DAY}, labels_topic="l")
    assert silent.passed_by(ends) == 7 * DAY
    assert silent.passed_by(ends | {LABELS: 6}) == DAY


def test_a_partition_with_unread_records_is_not_idle_however_old_they_are() -> None:
    applied = AppliedOffsets({BUSY: 10, QUIET: 1, LABELS: 5}, {BUSY: 60 * DAY, QUIET: DAY, LABELS: -1})
    ends = {BUSY: 10, QUIET: 1, LABELS: 5}
    assert applied.passed_by(ends) == 60 * DAY
    assert applied.passed_by(ends | {QUIET: 2}) == DAY
    assert applied.passed_by(ends | {LABELS: 9}) == 60 * DAY  # it has no event yet, so it holds nothing back
    near = AppliedOffsets(applied.next_offset, applied.watermark | {QUIET: 60 * DAY - IDLE_MS})
    assert near.passed_by(ends) == 60 * DAY - IDLE_MS


def test_an_event_older_than_what_has_passed_has_partial_features() -> None:
    engine, (server, store) = FeatureEngine(SPEC), opened()
    feed(engine, store, one_event(10 * DAY, 1, BUSY, 0))
    server.passed = 10 * DAY
    late = feed(engine, store, one_event(10 * DAY - HOUR - 1, 2, QUIET, 0))
    assert (late.status == PARTIAL).all()
    in_time = feed(engine, store, one_event(10 * DAY - HOUR, 3, QUIET, 1))
    assert (in_time.status == FRESH).all() or not in_time.partial.any()
