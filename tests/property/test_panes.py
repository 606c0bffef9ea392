"""Beyond the newest entries: folding changes nothing, and the error is what the panes at a window's edges hold."""

import numpy as np
import pytest

from stream_scorer.features.engine import EventBatch, FeatureEngine
from stream_scorer.features.panes import longest_unfolded
from stream_scorer.features.plan import PANES
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.serde.columns import take_labels, take_transactions
from stream_scorer.spec import parse_spec
from stream_scorer.state.row_format import KIND, unpack
from stream_scorer.state.rows import Compaction, MemoryRowStore
from tests.support.tables import labels_from_columns, transactions_from_columns

K = 16
SPEC = parse_spec(f"""
name: hot
version: 1
transaction:
  id: id
  time: at
  value: amount
  fields: {{id: {{type: string}}, at: {{type: time}}, amount: {{type: integer}}, where: {{type: string}}}}
entities: {{where: {{field: where}}}}
partition_entity: where
limits: {{row_entries: {K}}}
time: {{allowed_lateness: 1s}}
views:
  - {{name: near, entity: where, windows: [200ms, 2s], aggregates: [count, sum, mean, max]}}
  - {{name: far, entity: where, windows: [1s], delay: 500ms, aggregates: [label_count, label_rate, count]}}
  - {{name: rhythm, entity: where, aggregates: [since_last, is_new]}}
policy: {{version: p, review: 0.5, block: 0.9}}
""")
NAMES = [f.name for f in SPEC.view_features]


def make(seed: int, n: int):
    rng = np.random.default_rng(seed)
    at = np.sort(rng.integers(10_000, 10_000 + 5 * n, n))
    at -= np.where(rng.random(n) < 0.1, rng.integers(0, 900, n), 0)
    where = [
        "hot" if hot else f"t{place}" for hot, place in zip(rng.random(n) < 0.8, rng.integers(0, 9, n), strict=True)
    ]
    columns = {"id": [f"e{i}" for i in range(n)], "at": at, "amount": rng.integers(0, 1_000, n), "where": where}
    labelled = np.flatnonzero(rng.random(n) < 0.3).tolist()
    labels = labels_from_columns(
        SPEC,
        {
            "event_id": [f"e{i}" for i in labelled],
            "event_time": [int(at[i]) for i in labelled],
            "label": ["fraud" if rng.random() < 0.5 else "genuine" for _ in labelled],
            "labelled_at": [int(at[i]) + 100 for i in labelled],
            "where": [where[i] for i in labelled],
        },
    )
    return transactions_from_columns(SPEC, columns), labels, np.array(labelled)


def run(seed: int, n: int, batch: int):
    """The features of all transactions; a label comes 20 transactions after its own."""
    transactions, labels, labelled = make(seed, n)
    engine, store, out, given, compactions = FeatureEngine(SPEC), MemoryRowStore(), [], 0, 0
    # Batches of any size see the same labels only where those come between batches: every 60 transactions.
    for block in range(0, n, 60):
        known = int(np.searchsorted(labelled, max(block - 20, 0)))
        for low in range(block, min(block + 60, n), batch):
            rows = np.arange(low, min(low + batch, block + 60, n))
            new = np.arange(given, known)
            given = known
            spans = [
                Span(
                    SourcePartition("t", 0), int(rows[0]), int(rows[-1]) + 1, int(transactions.event_time[rows].max())
                ),
                Span(SourcePartition("l", 0), int(new[0]) if len(new) else known, known, -1),
            ]
            events = EventBatch(
                take_transactions(transactions, rows), take_labels(labels, new), spans,
                np.zeros(len(rows), np.int64), rows, np.ones(len(new), np.int64), new,
            )  # fmt: skip
            enriched = engine.enrich(events, store)
            compactions += len(enriched.update.compactions)
            store.apply(enriched.update)
            out.append(enriched.matrix)
    return transactions, labels, labelled, np.vstack(out), store, compactions


@pytest.mark.parametrize("seed", range(4))
def test_folding_earlier_or_later_changes_no_value(seed: int) -> None:
    *_, one, _, compactions = run(seed, 900, 1)
    assert compactions > 20
    for batch in (7, 60):
        *_, many, _, others = run(seed, 900, batch)
        assert 0 < others != compactions
        np.testing.assert_array_equal(one, many)


def test_a_value_is_never_too_much_and_lacks_at_most_what_two_panes_hold() -> None:
    n = 1_500
    transactions, _, _, got, _, _ = run(5, n, 7)
    at, where = transactions.event_time, np.array(transactions.entity_ids["where"])
    exact = inexact = 0
    for i in range(n):
        mine = np.flatnonzero(where[:i] == where[i])
        old, earlier = mine[: max(len(mine) - K, 0)], mine[at[mine] <= at[i]]
        for name, window, delay in (
            ("near.count_200ms", 200, 0),
            ("near.count_2s", 2_000, 0),
            ("far.count_1s", 1_000, 500),
        ):
            high = at[i] - delay
            inside = earlier[(at[earlier] > high - window) & (at[earlier] <= high)]
            value = got[i, NAMES.index(name)] - (delay == 0)
            width = -(-window // PANES)
            pane = at // width * width
            unsure = np.isin(old, inside) & (pane[old] <= high - window)
            # The pane that the window ends in counts if nothing in it is later than the window.
            cut = pane[old] == (high + 1) // width * width
            unsure |= cut & (at[old][cut].max(initial=0) > high) & np.isin(old, inside)
            assert value == len(inside) - unsure.sum(), (i, name)
            exact += value == len(inside)
            inexact += value < len(inside)
    assert exact > 500
    assert inexact > 500


def test_a_row_stays_bounded() -> None:
    *_, store, _ = run(6, 6_000, 60)
    (row,) = store.read([b"0:hot"])[0]
    assert row is not None
    entries = unpack(row)
    raw = entries[entries[:, KIND] >= 0]
    # Transactions and labels each, and what one more batch brings.
    assert len(raw) <= 2 * longest_unfolded(K) + 60
    # Of transactions and of labels, on three levels, each as far back as its windows and the allowed lateness reach.
    widths = {200: 200, 1_000: 1_500, 2_000: 2_000}
    assert len(entries) - len(raw) <= 2 * sum((reach + 1_000) / -(-w // PANES) + 2 for w, reach in widths.items()) + 1
    assert (entries[:, KIND] < -1).sum() > 100


def test_a_row_that_changed_meanwhile_is_not_folded() -> None:
    before = b"a" * 32 + b"b" * 32
    fold = Compaction(before, b"h" * 32)
    assert fold.apply(before + b"c" * 32) == b"h" * 32 + b"c" * 32
    assert fold.apply(b"h" * 32 + b"c" * 32) == b"h" * 32 + b"c" * 32
    assert fold.apply(b"a" * 32) == b"a" * 32
