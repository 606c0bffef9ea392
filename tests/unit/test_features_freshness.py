"""Ages: how far other partitions and labels lag behind a transaction, and when a feature is called stale."""

from __future__ import annotations

import numpy as np
import pytest

from stream_scorer.features.engine import Enriched, EventBatch, FeatureEngine
from stream_scorer.features.freshness import Lateness, labels_age, progress
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.records import DEFAULT, FRESH, STALE
from stream_scorer.serde.columns import take_labels, take_transactions
from stream_scorer.spec import parse_spec
from stream_scorer.state.rows import AppliedOffsets, MemoryRowStore
from tests.support.tables import labels_from_columns, transactions_from_columns

SPEC = parse_spec("""
name: small
version: 1
transaction:
  id: id
  time: at
  value: amount
  fields:
    id: {type: string}
    at: {type: time}
    amount: {type: integer}
    who: {type: string}
    where: {type: string, optional: true}
entities: {customer: {field: who}, terminal: {field: where}}
partition_entity: customer
views:
  - {name: customer, entity: customer, windows: [1d], aggregates: [count]}
  - {name: terminal, entity: terminal, windows: [1d], aggregates: [count]}
  - {name: risk, entity: terminal, windows: [1d], aggregates: [label_rate], current: exclude}
derived:
  - {name: per_terminal, function: ratio, of: [amount, terminal.count_1d]}
  - {name: per_customer, function: ratio, of: [amount, customer.count_1d]}
policy: {version: p, review: 0.5, block: 0.9}
time: {stale_after: 100ms, labels_stale_after: 1s}
""")
ZERO, ONE = SourcePartition("transactions", 0), SourcePartition("transactions", 1)
LABELS = SourcePartition("labels", 0)
# In the order of event time: partition 1 falls silent after 20 and returns at 600.
PARTITION = np.array([0, 1, 0, 0, 0, 1, 0])
TIME = [10, 20, 110, 130, 500, 600, 601]
COLUMNS = {
    "id": list("abcdefg"),
    "at": TIME,
    "amount": [10] * 7,
    "who": list("xyxxxyx"),
    "where": ["t", "t", "t", "t", None, "t", "t"],
}
# How far the other partition is behind each: the first has nobody to wait for.
AGE = [0, 10, 90, 110, 480, 100, 1]


def enrich(
    batch: int, given: list[int], scattered_from: int | None = None, entity: str | None = None
) -> list[Enriched]:
    transactions = transactions_from_columns(SPEC, COLUMNS)
    columns = {
        "event_id": ["a"] * len(given), "event_time": [10] * len(given), "label": ["fraud"] * len(given),
        "labelled_at": given, "where": ["t"] * len(given),
    }  # fmt: skip
    labels = labels_from_columns(SPEC, columns)
    engine, store, out, label_at = FeatureEngine(SPEC, entity), MemoryRowStore(), [], 0
    for low in range(0, len(TIME), batch):
        rows = np.arange(low, min(low + batch, len(TIME)))
        label_to = int(np.searchsorted(labels.labelled_at, TIME[rows[-1]], side="right"))
        label_rows = np.arange(label_at, label_to)
        spans = []
        for partition, source in enumerate((ZERO, ONE)):
            mine = transactions.event_time[rows][PARTITION[rows] == partition]
            spans.append(Span(source, low, int(rows[-1]) + 1, int(mine.max(initial=-1))))
        newest = labels.labelled_at[label_rows].max(initial=-1)
        spans.append(Span(LABELS, label_at, label_to, int(newest)))
        events = EventBatch(
            take_transactions(transactions, rows), take_labels(labels, label_rows), spans,
            PARTITION[rows], rows, np.full(len(label_rows), 2), label_rows,
            None if scattered_from is None or scattered_from > rows[-1] else max(scattered_from - low, 0),
        )  # fmt: skip
        enriched = engine.enrich(events, store)
        store.apply(enriched.update)
        out.append(enriched)
        label_at = label_to
    return out


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_ages_and_statuses_are_the_same_in_any_batching(batch: int) -> None:
    out = enrich(batch, [15, 15, 400])
    assert np.concatenate([e.ages.partitions for e in out]).tolist() == AGE
    assert np.concatenate([e.ages.labels for e in out]).tolist() == [-1, 5, 95, 115, 100, 200, 201]
    status = np.concatenate([e.status for e in out])
    terminal = [DEFAULT if where is None else STALE if age > 100 else FRESH for where, age in zip(
        COLUMNS["where"], AGE, strict=True
    )]  # fmt: skip
    # In the order of the spec: customer, terminal, its risk, and what is derived of each of the first two.
    assert status[:, 1].tolist() == status[:, 2].tolist() == status[:, 3].tolist() == terminal
    assert (status[:, [0, 4]] == FRESH).all()
    assert np.concatenate([e.stale for e in out]).tolist() == [s == STALE for s in terminal]


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_features_of_the_partition_entity_lag_from_the_first_wrong_key_on(batch: int) -> None:
    status = np.concatenate([e.status for e in enrich(batch, [], 4)])
    # The lag of row 3 is too large as well, but the wrong key comes after it.
    assert status[:, 0].tolist() == status[:, 4].tolist() == [FRESH] * 4 + [STALE, FRESH, FRESH]
    assert (status == np.concatenate([e.status for e in enrich(batch, [], 5)]))[:, 1:4].all()
    alone = enrich(batch, [], 4, "customer")
    assert np.concatenate([e.ages.partitions for e in alone]).tolist() == [-1] * 4 + AGE[4:]


def test_a_feed_of_labels_that_stands_still_makes_only_their_features_stale() -> None:
    time, nothing = np.array([1_000, 1_015, 1_016]), np.zeros(0, dtype=np.int64)
    spans = [Span(ZERO, 0, 3, 1_016)]
    of = time, np.zeros(3, dtype=np.int64), spans
    assert labels_age(*of, {LABELS: 15, ZERO: 1_000}, nothing, nothing).tolist() == [985, 1_000, 1_001]
    assert labels_age(*of, {LABELS: -1}, nothing, nothing).tolist() == [-1, -1, -1]
    assert progress(*of, {LABELS: 15, ZERO: 1_000, ONE: -1}, Lateness(0)).lag.tolist() == [0, 0, 0]
    assert progress(*of, {ONE: 1_015}, Lateness(0)).lag.tolist() == [0, 0, 1]


def test_the_age_of_partitions_is_that_of_the_slowest_other_one() -> None:
    rng = np.random.default_rng(5)
    sources = [SourcePartition("transactions", partition) for partition in range(6)]
    spans = [Span(LABELS, 0, 1, 3), *(Span(source, 0, 9, -1) for source in sources[:5])]
    for _ in range(50):
        time, span_of = rng.integers(0, 99, 12), rng.integers(1, 5, 12)
        time.flags.writeable = False
        seen = {source: int(when) for source, when in zip(sources, rng.integers(-1, 99, 6), strict=True)}
        newest, expected = dict(seen), []
        for when, span in zip(time.tolist(), span_of.tolist(), strict=True):
            others = [n for source, n in newest.items() if source != spans[span].source and n >= 0]
            expected.append(max(when - min([when, *others]), 0))
            newest[spans[span].source] = max(newest[spans[span].source], when)
        assert progress(time, span_of, spans, {**seen, LABELS: 1}, Lateness(0)).lag.tolist() == expected


def test_ages_as_somebody_looks_at_them() -> None:
    engine, applied = FeatureEngine(SPEC), AppliedOffsets({}, {ZERO: 1_000, ONE: 940, LABELS: 15})
    names = ["customer.count_1d", "terminal.count_1d", "risk.label_rate_1d"]
    # A terminal's lags with the slower partition; its risk with labels, too.
    for time, ages in (
        (1_010, [(0, False), (70, False), (995, False)]),
        (1_050, [(0, False), (110, True), (1_035, True)]),
    ):
        assert engine.ages_as_of(applied, ZERO.topic, time) == dict(zip(names, ages, strict=True))
    applied.watermark[LABELS] = -1
    assert engine.ages_as_of(applied, ZERO.topic, 1_010)["risk.label_rate_1d"] == (None, False)
