"""The engine on specs that stretch it: no entities, columns named as fields, spread without entities' rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stream_scorer.clock import SystemClock
from stream_scorer.errors import SpecError
from stream_scorer.features import aggregates, kernel
from stream_scorer.features.derived import FUNCTIONS
from stream_scorer.features.engine import EventBatch, FeatureEngine
from stream_scorer.features.history import build_features
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.records import DEFAULT, FRESH, PARTIAL
from stream_scorer.spec import CheckedSpec, parse_spec
from stream_scorer.state.row_format import pack
from stream_scorer.state.rows import AppliedOffsets, Beginning, MemoryRowStore
from tests.support.tables import labels_from_columns, transactions_from_columns

HEAD = """
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
    v: {type: number, optional: true}
    who: {type: string, optional: true}
policy: {version: p, review: 0.5, block: 0.9}
"""
# Only the newest 16 labels and transactions of a row are compared.
SHORT = (
    HEAD
    + """
entities: {who: {field: who}}
partition_entity: who
limits: {row_entries: 16}
"""
)
SHORT_ROWS = (
    SHORT
    + """views:
  - {name: risk, entity: who, windows: [1h], delay: 1ms, aggregates: [label_count]}
"""
)
NO_LABELS: dict[str, list[str]] = {"event_id": [], "event_time": [], "label": [], "labelled_at": []}
COLUMNS = {
    "id": ["a", "b", "c", "a"],
    "at": [1, 2, 3, 4],
    "amount": [10, 20, 40, 10],
    "v": [0.5, np.nan, -1.0, 0.5],
    "who": ["x", "x", None, "x"],
}


def features(spec: str) -> tuple[list[str], np.ndarray]:
    checked = parse_spec(HEAD + spec)
    history = build_features(
        checked, transactions_from_columns(checked, COLUMNS), labels_from_columns(checked, NO_LABELS)
    )
    return checked.features, history.matrix


def test_a_spec_without_entities_has_the_features_of_its_columns_and_the_name_of_a_field_means_the_field() -> None:
    names, matrix = features("""
derived:
  - {name: v, function: value, of: [v]}
  - {name: amount, function: log1p, of: [amount]}
  - {name: per_amount, function: ratio, of: [v, amount]}
""")
    assert names == ["v", "amount", "per_amount"]
    v, amount = np.array(COLUMNS["v"]), np.array(COLUMNS["amount"], dtype=float)
    np.testing.assert_allclose(matrix, np.column_stack([v, np.log1p(amount), v / amount]))


def test_read_only_times_compile_no_kernel_again() -> None:
    spec = parse_spec(
        HEAD
        + """
entities: {who: {field: who}}
partition_entity: who
views:
  - {name: who, entity: who, windows: [10ms], aggregates: [count]}
"""
    )
    transactions, none = transactions_from_columns(spec, COLUMNS), np.zeros(0, dtype=np.int64)
    n, engine = len(transactions), FeatureEngine(spec)
    batch = EventBatch(
        transactions, labels_from_columns(spec, NO_LABELS), [Span(SourcePartition("t", 0), 0, n, -1)],
        np.zeros(n, dtype=np.int64), np.arange(n), none, none,
    )  # fmt: skip
    first = engine.enrich(batch, MemoryRowStore()).matrix
    compiled = [list(each.signatures) for each in (kernel.scan_windows, aggregates.fill)]
    transactions.event_time.setflags(write=False)
    np.testing.assert_array_equal(engine.enrich(batch, MemoryRowStore()).matrix, first)
    assert [list(each.signatures) for each in (kernel.scan_windows, aggregates.fill)] == compiled


@pytest.mark.kernels
def test_the_spread_of_nothing_is_missing_and_of_one_value_0() -> None:
    names, matrix = features("""
entities: {who: {field: who}}
partition_entity: who
views: [{name: who, entity: who, windows: [10ms], aggregates: [min, max, std, mean]}]
""")
    assert names == ["who.min_10ms", "who.max_10ms", "who.std_10ms", "who.mean_10ms"]
    # The last is a second copy of the first: it does not count itself.
    np.testing.assert_allclose(
        matrix, [[10, 10, 0, 10], [10, 20, 5, 15], [np.nan] * 4, [10, 20, 5, 15]]
    )  # fmt: skip


def test_an_entity_as_of_a_time_counts_what_is_stored() -> None:
    engine = FeatureEngine(
        parse_spec(
            HEAD
            + """
entities: {who: {field: who}}
partition_entity: who
views: [{name: who, entity: who, windows: [10ms], aggregates: [count, max]}]
"""
        )
    )
    row = pack(np.array([1, 5, 9]), np.array([10, 30, 20]), np.array([1, 2, 3])).tobytes()
    assert engine.as_of("who", [row], 9) == {"who.count_10ms": 3.0, "who.max_10ms": 30.0}
    assert engine.as_of("who", [row], 16) == {"who.count_10ms": 1.0, "who.max_10ms": 20.0}
    assert engine.row_keys("who", "x") == [b"0:x"]


def test_a_view_with_conditions_counts_what_meets_them_and_every_transaction_sees_it() -> None:
    names, matrix = features("""
entities: {who: {field: who}}
partition_entity: who
views:
  - {name: all, entity: who, windows: [10ms], aggregates: [count, max]}
  - {name: small, entity: who, windows: [10ms], aggregates: [count, max], where: {amount: {max: 15}}}
  - {name: known, entity: who, aggregates: [is_new], current: exclude, where: {v: {min: 0}}}
""")
    assert names[2:] == ["small.count_10ms", "small.max_10ms", "known.is_new"]
    nan = np.nan
    np.testing.assert_allclose(
        matrix, [[1, 10, 1, 10, 1], [2, 20, 1, 10, 0], [nan] * 5, [2, 20, 1, 10, 0]]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("{nothing: {min: 1}}", "there is no field"),
        ("{amount: {}}", "either"),
        ("{amount: {in: [true], min: 1}}", "either"),
        ("{who: {min: 1}}", "does not allow bounds"),
        ("{who: {in: [x]}}", "does not have the values"),
    ],
)
def test_a_condition_that_cannot_hold_is_refused(where: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_spec(
            HEAD
            + f"""
entities: {{who: {{field: who}}}}
partition_entity: who
views: [{{name: who, entity: who, windows: [10ms], aggregates: [count], where: {where}}}]
"""
        )


def test_a_label_is_reversed_at_the_time_at_which_it_counted() -> None:
    checked = parse_spec(
        HEAD
        + """
entities: {who: {field: who}}
partition_entity: who
views:
  - {name: l, entity: who, windows: [10ms, 1h], aggregates: [label_count], current: exclude}
"""
    )
    columns = {
        "id": ["e0", "e1", "e2", "e3"],
        "at": [10, 30, 38, 60],
        "amount": [1] * 4,
        "v": [1.0] * 4,
        "who": ["x"] * 4,
    }
    labels = {  # the second one has another time for the same transaction, the third one yet another
        "event_id": ["e0", "e0", "e0"], "event_time": [10, 35, 59], "label": ["fraud", "genuine", "fraud"],
        "labelled_at": [20, 36, 59], "who": ["x"] * 3,
    }  # fmt: skip
    for batch in (1, 4):
        found = build_features(
            checked, transactions_from_columns(checked, columns), labels_from_columns(checked, labels), batch=batch
        )
        assert found.matrix.tolist() == [[0, 0], [0, 1], [0, 0], [1, 1]]


def test_a_window_that_reaches_back_to_before_the_log_is_partial() -> None:
    checked = parse_spec(
        HEAD
        + """
entities: {who: {field: who}}
partition_entity: who
views:
  - {name: who, entity: who, windows: [10ms, 30ms], aggregates: [count]}
  - {name: risk, entity: who, windows: [10ms], delay: 5ms, aggregates: [label_rate]}
derived: [{name: ratio, function: ratio, of: [amount, who.count_30ms]}]
"""
    )
    assert checked.features == ["who.count_10ms", "who.count_30ms", "risk.label_rate_10ms", "ratio"]
    columns = {
        "id": ["a", "b", "c", "d", "e"], "at": [105, 110, 129, 130, 131], "amount": [1] * 5, "v": [0.0] * 5,
        "who": ["x", "x", "x", "x", None],
    }  # fmt: skip
    transactions = transactions_from_columns(checked, columns)
    span, none = Span(SourcePartition("t", 0), 0, 5, 131), np.zeros(0, np.int64)
    zero, offsets = np.zeros(5, np.int64), np.arange(5)
    events = EventBatch(transactions, labels_from_columns(checked, NO_LABELS), [span], zero, offsets, none, none)
    store = MemoryRowStore(AppliedOffsets({}, {}, beginning=Beginning(transactions=100, labels=114)))
    enriched = FeatureEngine(checked).enrich(events, store)
    # The windows reach back 10, 30 and 15 ms; the last transaction has no entity.
    partial, default, fresh = PARTIAL, DEFAULT, FRESH
    np.testing.assert_array_equal(enriched.status[:, :2], [
        [partial, partial], [fresh, partial], [fresh, partial], [fresh, fresh], [default, default],
    ])  # fmt: skip
    assert enriched.status[:, 2].tolist() == [partial, partial, fresh, fresh, default]
    assert (enriched.status[:4, 3] == enriched.status[:4, 1]).all()
    assert enriched.partial.tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("again", ["fraud", "genuine"])
def test_a_label_that_is_given_again_changes_nothing_although_its_first_change_is_beyond_the_limit(again: str) -> None:
    checked = parse_spec(SHORT_ROWS)
    # Between the labels of one transaction come those of ten others: the first one is not among the newest 16 changes.
    held = [("a", "fraud"), *[(f"b{i}", "fraud") for i in range(10)]]
    held += [("a", "genuine"), *[(f"c{i}", "fraud") for i in range(10)], ("a", again), ("a", again)]
    count = 20 + (again == "fraud")
    for batch in (1, 5, len(held)):
        engine, store = FeatureEngine(checked), MemoryRowStore()
        for low in range(0, len(held), batch):
            part = held[low : low + batch]
            n = len(part)
            labels = {
                "event_id": [name for name, _ in part], "event_time": [10] * n, "label": [label for _, label in part],
                "labelled_at": [20] * n, "who": ["x"] * n,
            }  # fmt: skip
            enriched = engine.enrich(given(checked, labels, low, []), store)
            store.apply(enriched.update)
        assert engine.enrich(given(checked, NO_LABELS | {"who": []}, 0, [30]), store).matrix[:, 0].tolist() == [count]


def given(checked: CheckedSpec, labels: dict[str, list[Any]], label_at: int, times: list[int]) -> EventBatch:
    """Labels, which begin at the offset `label_at`, and transactions of x at `times`."""
    n, k = len(times), len(labels["event_id"])
    columns = {"id": [f"e{t}" for t in times], "at": times, "amount": [1] * n, "v": [0.0] * n, "who": ["x"] * n}
    spans = [Span(SourcePartition("l", 0), label_at, label_at + k, 20), Span(SourcePartition("t", 0), 0, n, 30)]
    return EventBatch(
        transactions_from_columns(checked, columns), labels_from_columns(checked, labels), spans,
        np.ones(n, np.int64), np.arange(n), np.zeros(k, np.int64), np.arange(label_at, label_at + k),
    )  # fmt: skip


def test_an_event_from_a_clock_that_is_ahead_drops_no_panes_of_others() -> None:
    checked = parse_spec(SHORT + "views:\n  - {name: who, entity: who, windows: [1h], aggregates: [count]}\n")
    n, batch = 200, 20
    start = SystemClock().now_ms() - n * 1_000
    engine, store, found = FeatureEngine(checked), MemoryRowStore(), []
    for low in range(0, n, batch):
        times, who = [start + 1_000 * i for i in range(low, low + batch)], ["x"] * batch
        if low == 60:
            times[0], who[0] = start + 365 * 86_400_000, "ahead"
        columns = {
            "id": [f"e{i}" for i in range(low, low + batch)], "at": times, "amount": [1] * batch, "v": [0.0] * batch,
            "who": who,
        }  # fmt: skip
        none, zero = np.zeros(0, np.int64), np.zeros(batch, np.int64)
        events = EventBatch(
            transactions_from_columns(checked, columns), labels_from_columns(checked, NO_LABELS | {"who": []}),
            [Span(SourcePartition("t", 0), low, low + batch, max(times))],
            zero, np.arange(low, low + batch), none, none,
        )  # fmt: skip
        enriched = engine.enrich(events, store)
        store.apply(enriched.update)
        found += enriched.matrix[:, 0].tolist()
    assert found[-1] == n - 1


def test_labels_do_not_hide_a_repeated_id() -> None:
    checked = parse_spec(SHORT_ROWS)
    n = 10
    labels = {
        "event_id": [f"b{i}" for i in range(n)], "event_time": [1] * n, "label": ["fraud"] * n, "labelled_at": [9] * n,
        "who": ["x"] * n,
    }  # fmt: skip
    no_labels = NO_LABELS | {"who": []}
    for labels_first in (False, True):  # as in a recomputation, or as in live scoring
        engine, store = FeatureEngine(checked), MemoryRowStore()
        parts = [(no_labels, list(range(n))), (labels, [])]
        for given_labels, times in [*(reversed(parts) if labels_first else parts)]:
            store.apply(engine.enrich(given(checked, given_labels, 0, times), store).update)
        assert engine.enrich(given(checked, no_labels, 0, [0]), store).duplicate.tolist() == [True]


@pytest.mark.parametrize(("function", "expected"), [("hour", 5), ("weekday", 5), ("is_weekend", 1), ("is_night", 1)])
def test_a_time_that_is_missing_gives_no_calendar_feature(function: str, expected: float) -> None:
    found = FUNCTIONS[function](np.array([np.nan, (2 * 24 + 5) * 3_600_000.0]))  # 1970-01-03 was a Saturday
    assert found.dtype == np.float64
    assert np.array_equal(found, [np.nan, expected], equal_nan=True)
