"""Features equal a brute-force recomputation, whatever the order of events, the batches and what is in flight."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_scorer.features import kernel, reference
from stream_scorer.features.arguments import Events, PaneLevels, Rows, Windows
from stream_scorer.features.engine import EventBatch, FeatureEngine
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.serde.columns import take_labels, take_transactions
from stream_scorer.spec import parse_spec
from stream_scorer.state.row_format import VALUE
from stream_scorer.state.rows import MemoryRowStore
from tests.support.specs import entities_spec
from tests.support.tables import labels_from_columns, transactions_from_columns

SPEC = parse_spec(
    entities_spec("""views:
  - {name: who, entity: who, windows: [10ms, 40ms], aggregates: [count, sum, mean]}
  - {name: before, entity: who, windows: [20ms], aggregates: [count, max, std], current: exclude}
  - {name: spread, entity: where, windows: [20ms], aggregates: [min, max, std]}
  - {name: rhythm, entity: who, aggregates: [since_last, is_new]}
  - {name: risk, entity: where, windows: [15ms, 30ms], delay: 5ms, aggregates: [label_rate, label_count]}
derived: [{name: ratio, function: ratio, of: [amount, who.mean_40ms]}]
policy: {version: p, review: 0.5, block: 0.9}
""")
)


def _as_stored(entries):
    """Read-only, as rows of the store are: numba compiles a kernel for each kind of array."""
    entries.setflags(write=False)
    return entries


def _with_values(rows, values):
    entries = rows.entries.copy()
    entries[:, VALUE] = values
    return rows._replace(entries=_as_stored(entries))


@st.composite
def rows_and_events(draw):
    k = draw(st.integers(1, 4))
    lengths = draw(st.lists(st.integers(0, 12), min_size=k, max_size=k))
    n = draw(st.integers(0, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    total = sum(lengths)
    entries = np.column_stack(
        [
            rng.integers(0, 60, total),
            rng.integers(-1, 500, total),
            rng.integers(0, 9, total),
            rng.integers(0, 2, total) * rng.integers(1, 60, total),
        ]
    ).astype(np.int64)
    end = np.cumsum(lengths).astype(np.int64)
    m = draw(st.integers(1, 4))
    levels = draw(st.integers(1, 3))
    # Some rows were folded: they begin with a header and panes.
    for first, length in zip(end - lengths, lengths, strict=True):
        panes = int(rng.integers(0, length)) if length and rng.random() < 0.5 else 0
        if panes:
            entries[first] = (1 << 62, panes, 7, -1)
            later = 256 * rng.integers(0, 20, panes - 1)
            entries[first + 1 : first + panes, 3] = -2 - rng.integers(0, 2 * levels, panes - 1) - later
    # A pane is never wider than a window that asks for it.
    window_ms, level_of, pane_ms = rng.integers(1, 40, m), rng.integers(0, levels, m), rng.integers(1, 20, levels)
    np.minimum.at(pane_ms, level_of, window_ms)
    is_pane = entries[:, 3] < -1
    width = pane_ms[((-2 - entries[is_pane, 3]) % 256) // 2]
    entries[is_pane, 0] = entries[is_pane, 0] // width * width
    rows = Rows(_as_stored(entries), end - np.array(lengths, dtype=np.int64), end)
    events = Events(rng.integers(-1, k, n), rng.integers(0, 60, n), rng.integers(0, 500, n), rng.random(n) < 0.2)
    windows = Windows(window_ms, rng.integers(0, 2, m) * rng.integers(0, 20, m), rng.random(m) < 0.5, 60)
    panes = PaneLevels(level_of, pane_ms, int(rng.integers(0, levels)))
    return rows, events, windows, panes, draw(st.integers(1, 16))


@given(rows_and_events())
@settings(max_examples=150, deadline=None)
def test_kernel_equals_the_numpy_reference(case):
    for ours, theirs in zip(kernel.scan_windows(*case), reference.scan_windows(*case), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@given(rows_and_events(), st.sampled_from([1, 10**6, 10**11]))
@settings(max_examples=150, deadline=None)
def test_the_spread_of_values_equals_that_of_unbounded_numbers(case, size):
    rows, events, windows, _, limit = case
    rows = _with_values(rows, rows.entries[:, VALUE] * size)
    arguments = rows, events._replace(value=events.value * size), windows, limit
    count, least, greatest, squares = kernel.scan_spread(*arguments)
    for i, (low, high, variance) in enumerate(zip(*reference.scan_spread(*arguments), strict=True)):
        for w in range(len(windows.window_ms)):
            assert (count[i, w] > 0) == (low[w] is not None)
            if count[i, w]:
                assert (least[i, w], greatest[i, w]) == (low[w], high[w])
                assert squares[i, w] / count[i, w] == pytest.approx(float(variance[w]), rel=1e-12)


@given(rows_and_events())
@settings(max_examples=150, deadline=None)
def test_distinct_values_are_counted_as_sets_count_them(case):
    rows, events, windows, _, limit = case
    rows = _with_values(rows, rows.entries[:, VALUE] // 100)
    arguments = rows, events._replace(value=events.value // 100), windows, limit
    assert kernel.scan_distinct(*arguments).tolist() == reference.scan_distinct(*arguments)


def test_the_spread_of_many_small_deviations_does_not_drown_in_their_parts():
    random = np.random.default_rng(3)
    n = 500
    value = random.integers(0, 20_000, n)
    entries = np.column_stack([np.arange(n), value, np.arange(n), np.zeros(n, np.int64)]).astype(np.int64)
    rows = Rows(_as_stored(entries), np.array([0]), np.array([n]))
    events = Events(np.array([0]), np.array([n]), np.array([7]), np.array([True]))
    windows = Windows(np.array([2 * n]), np.array([0]), np.array([True]), 2 * n)
    _, _, _, squares = kernel.scan_spread(rows, events, windows, n)
    assert squares[0, 0] / n == pytest.approx(float(np.var(value)), rel=1e-13)


def make_events(seed: int, n: int, duplicates: bool = True):
    rng = np.random.default_rng(seed)
    at = np.sort(rng.integers(0, 120, n)) + rng.integers(-3, 4, n) + 10
    ids = [f"e{i}" for i in range(n)]
    who = [f"c{i}" for i in rng.integers(0, 4, n)]
    where = [None if rng.random() < 0.2 else f"t{i}" for i in rng.integers(0, 3, n)]
    amount = rng.integers(0, 1000, n)
    if duplicates:
        for i in range(3, n):
            if rng.random() < 0.15:
                j = i - int(rng.integers(1, 4))
                ids[i], who[i], where[i], at[i], amount[i] = ids[j], who[j], where[j], at[j], amount[j]
    transactions = transactions_from_columns(SPEC, {"id": ids, "at": at, "amount": amount, "who": who, "where": where})
    labelled = [i for i in range(n) if rng.random() < 0.4 and ids.index(ids[i]) == i]
    columns = {
        "event_id": [ids[i] for i in labelled],
        "event_time": [int(at[i]) for i in labelled],
        "label": ["fraud" if rng.random() < 0.6 else "genuine" for _ in labelled],
        "labelled_at": [int(at[i]) + int(rng.integers(0, 30)) for i in labelled],
        "where": [where[i] for i in labelled],
        "who": [who[i] for i in labelled],
    }
    changed = [i for i in range(len(labelled)) if rng.random() < 0.3]
    for i in changed:
        for name in ("event_id", "event_time", "where", "who"):
            columns[name].append(columns[name][i])
        columns["label"].append("genuine" if columns["label"][i] == "fraud" else "fraud")
        # Some claim to have been given before the label they change.
        columns["labelled_at"].append(columns["labelled_at"][i] + int(rng.choice([5, -5])))
    return transactions, labels_from_columns(SPEC, columns)


def brute_force(transactions, labels, label_seen_by):
    """Every feature of every transaction from plain lists. `label_seen_by[i]` labels were on the log before it."""
    out = []
    for i in range(len(transactions)):
        t, who = int(transactions.event_time[i]), transactions.entity_ids["who"][i]
        where = transactions.entity_ids["where"][i]
        first = [j for j in range(i) if transactions.event_id[j] not in transactions.event_id[:j]]
        before = [j for j in first if transactions.event_time[j] <= t]
        own = [j for j in before if transactions.entity_ids["who"][j] == who]
        new = transactions.event_id[i] not in transactions.event_id[:i]
        row = []

        def inside(js, window, delay=0, t=t):
            return [j for j in js if t - delay - window < transactions.event_time[j] <= t - delay]

        for kind in ("count", "sum", "mean"):
            for window in (10, 40):
                js = inside(own, window) + ([i] if new else [])
                amounts = [int(transactions.value[j]) for j in js]
                mean = sum(amounts) / len(js) if js else np.nan
                row.append({"count": len(js), "sum": sum(amounts), "mean": mean}[kind])
        amounts = [int(transactions.value[j]) for j in inside(own, 20)]
        row += [len(amounts), max(amounts, default=np.nan), np.std(amounts) if amounts else np.nan]
        there = [j for j in before if where is not None and transactions.entity_ids["where"][j] == where]
        amounts = [int(transactions.value[j]) for j in inside(there, 20) + ([i] if new else [])]
        known = bool(amounts) and where is not None
        row += [min(amounts), max(amounts), np.std(amounts)] if known else [np.nan] * 3
        recent = [int(transactions.event_time[j]) for j in own if transactions.event_time[j] > t - 40]
        row += [(t - max(recent)) / 1000 if recent else np.nan, float(not recent)]
        for kind in ("label_rate", "label_count"):
            for window in (15, 30):
                if where is None:
                    row.append(np.nan)
                    continue
                net: dict[str, int] = {}
                last: dict[str, bool] = {}
                since: dict[str, int] = {}
                for k in range(label_seen_by[i]):
                    if labels.entity_ids["where"][k] != where:
                        continue
                    was = last.get(labels.event_id[k], False)
                    last[labels.event_id[k]] = bool(labels.fraud[k])
                    if bool(labels.fraud[k]) != was:
                        # A change holds from when it was given, and not before what it changes.
                        since[labels.event_id[k]] = max(since.get(labels.event_id[k], 1), int(labels.labelled_at[k]))
                    if since.get(labels.event_id[k], 0) <= t and t - 5 - window < labels.event_time[k] <= t - 5:
                        net[labels.event_id[k]] = net.get(labels.event_id[k], 0) + int(labels.fraud[k]) - int(was)
                frauds, seen = sum(net.values()), len(inside(there, window, 5))
                row.append((frauds / seen if seen else 0.0) if kind == "label_rate" else frauds)
        row.append(int(transactions.value[i]) / row[5] if row[5] else np.nan)
        out.append(row)
    return np.array(out, dtype=float)


@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize("lag", [0, 2])
@pytest.mark.parametrize("seed", range(6))
def test_features_equal_brute_force_in_any_batching_and_with_updates_in_flight(batch, lag, seed):
    n = 90
    transactions, labels = make_events(seed, n)
    engine, store = FeatureEngine(SPEC), MemoryRowStore()
    sources = [SourcePartition("t", 0), SourcePartition("l", 0)]
    waiting, got, seen_by, label_at = [], [], [], 0
    for low in range(0, n, batch):
        high = min(low + batch, n)
        # Labels are fed a few at a time, before the transactions of the batch, in their log order.
        label_to = min(len(labels), label_at + max(1, (high - low) // 2))
        rows, label_rows = np.arange(low, high), np.arange(label_at, label_to)
        events = EventBatch(
            take_transactions(transactions, rows),
            take_labels(labels, label_rows),
            [Span(sources[0], low, high, 0), Span(sources[1], label_at, label_to, 0)],
            np.zeros(high - low, np.int64),
            rows,
            np.ones(label_to - label_at, np.int64),
            label_rows,
        )
        enriched = engine.enrich(events, store, waiting)
        got.append(enriched.matrix)
        seen_by += [label_to] * (high - low)
        label_at = label_to
        for part in enriched.update.split(9):
            waiting.append(part)
        while len(waiting) > lag:
            store.apply(waiting.pop(0))
    np.testing.assert_allclose(np.vstack(got), brute_force(transactions, labels, seen_by), rtol=1e-12)
