"""Features by shards equal those of one process, byte for byte, whatever the events, the batches and the shards."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_scorer.features.engine import EventBatch, FeatureEngine
from stream_scorer.features.plan import reach_ms
from stream_scorer.features.shards import Batching, EntityShard, Joiner, Splitter, entities_with_features, trim_time
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.serde.columns import slice_labels, slice_transactions
from stream_scorer.spec import parse_spec
from stream_scorer.state.rows import MemoryRowStore
from tests.support.specs import entities_spec
from tests.support.tables import labels_from_columns, transactions_from_columns

# Rows are long after 20 entries, and an event is late after 5 ms, so that compaction drops panes that late events miss.
SPEC = parse_spec(
    entities_spec(
        """views:
  - {name: who, entity: who, windows: [10ms, 160ms], aggregates: [count, sum, mean]}
  - {name: places, entity: who, windows: [40ms], aggregates: [distinct], of: where}
  - {name: web, entity: where, windows: [40ms], aggregates: [count], where: {kind: {in: [web]}}}
  - {name: spread, entity: where, windows: [20ms], aggregates: [min, max, std]}
  - {name: rhythm, entity: where, aggregates: [since_last, is_new]}
  - {name: risk, entity: where, windows: [80ms, 160ms], delay: 5ms, aggregates: [label_rate, label_count]}
derived:
  - {name: ratio, function: ratio, of: [amount, who.mean_160ms]}
  - {name: kind_code, function: code, of: [kind]}
policy: {version: p, review: 0.5, block: 0.9}
time: {allowed_lateness: 5ms}
limits: {row_entries: 16}
""",
        who="string, optional: true",
        kind="category, values: [web, shop], optional: true",
    )
)
# Rows are trimmed after batches whose end is a multiple of it.
TRIM_AT = 5
SOURCES = SourcePartition("transactions", 0), SourcePartition("labels", 0)


def odd_events(rng, n):
    """Transactions with duplicates, equal times, late ones and unknown entities; labels, some late, some changed."""
    at = 1_000 + np.sort(rng.integers(0, 500, n)) // 3 * 3
    at -= np.where(rng.random(n) < 0.1, rng.integers(0, 400, n), 0)
    # A tenth are copies of the id, and some of these also of the entity, which makes them duplicates.
    of = np.array([i if rng.random() < 0.9 else rng.integers(max(i - 5, 0), i + 1) for i in range(n)])
    ids, who = [f"e{i}" for i in of], rng.integers(0, 3, n)
    who = np.where(rng.random(n) < 0.8, who[of], who)
    columns = {
        "id": ids, "at": at, "amount": rng.integers(0, 1_000, n),
        "who": [None if rng.random() < 0.1 else f"c{i}" for i in who],
        "where": [None if rng.random() < 0.2 else f"t{i}" for i in rng.integers(0, 3, n)],
        "kind": [rng.choice(["web", "shop", None]) for _ in range(n)],
    }  # fmt: skip
    labelled = np.sort(rng.integers(0, n, n // 2))
    labels = {
        "event_id": [ids[i] for i in labelled], "event_time": at[labelled],
        "label": rng.choice(["fraud", "genuine"], len(labelled)),
        "labelled_at": at[labelled] + rng.integers(1, 100, len(labelled)),
        "where": [columns["where"][i] for i in labelled], "who": [columns["who"][i] for i in labelled],
    }  # fmt: skip
    return transactions_from_columns(SPEC, columns), labels_from_columns(SPEC, labels)


def cuts(rng, n, k):
    """The batches of the transactions and labels: bounds of both, some without transactions."""
    edges = np.sort(rng.integers(0, n + 1, n // 12))
    stops = np.append(edges, n)
    return list(zip(np.append(0, edges), stops, np.sort(np.append(rng.integers(0, k + 1, len(edges)), k)), strict=True))


def together(transactions, labels, batches):
    """As the local engine."""
    engine, rows, matrices, duplicates, at = FeatureEngine(SPEC), MemoryRowStore(), [], [], 0
    for low, high, label_high in batches:
        part, given = slice_transactions(transactions, low, high), slice_labels(labels, at, label_high)
        events = EventBatch(
            part, given,
            [Span(SOURCES[0], low, high, int(part.event_time.max(initial=-1))),
             Span(SOURCES[1], at, label_high, int(given.labelled_at.max(initial=-1)))],
            np.zeros(high - low, np.int64), np.arange(low, high),
            np.ones(label_high - at, np.int64), np.arange(at, label_high),
        )  # fmt: skip
        enriched = engine.enrich(events, rows)
        rows.apply(enriched.update)
        if high % TRIM_AT == 0:
            rows.trim(trim_time(rows, reach_ms(SPEC)))
        matrices.append(enriched.matrix)
        duplicates.append(enriched.duplicate)
        at = label_high
    return np.concatenate(matrices), np.concatenate(duplicates)


def sharded(transactions, labels, batches, count, block):
    """By `count` shards, in blocks of `block` batches."""
    own, others = entities_with_features(SPEC)
    splitters = {name: Splitter(SPEC, name, count) for name in (own, *others)}
    shards = {name: [EntityShard(SPEC, name, k, count) for k in range(count)] for name in (own, *others)}
    joiner, matrices, duplicates, at = Joiner(SPEC), [], [], 0
    for first in range(0, len(batches), block):
        mine = np.array(batches[first : first + block], np.int64)
        start, stop, label_stop = int(mine[0, 0]), int(mine[-1, 1]), int(mine[-1, 2])
        part, given = slice_transactions(transactions, start, stop), slice_labels(labels, at, label_stop)
        label_edges = np.append(at, mine[:, 2])
        batching = Batching(
            mine[:, 0] - start, mine[:, 1] - start, mine[:, 2] - at,
            np.array([transactions.event_time[low:high].max(initial=-1) for low, high, _ in mine]),
            np.array([labels.labelled_at[low:high].max(initial=-1) for low, high in
                      zip(label_edges[:-1], label_edges[1:], strict=True)]),
            mine[:, 1] % TRIM_AT == 0,
        )  # fmt: skip
        values = [s.features(batching, given, p) for s, p in zip(shards[own], splitters[own].split(part), strict=True)]
        found = np.concatenate([each.rows[each.duplicate] for each in values])
        for name in others:
            for shard, each in zip(shards[name], splitters[name].split(part), strict=True):
                values.append(shard.features(batching, given, each, np.isin(each.rows, found)))
        matrix, duplicate = joiner.join(part, values)
        matrices.append(matrix)
        duplicates.append(duplicate)
        at = label_stop
    return np.concatenate(matrices), np.concatenate(duplicates)


@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 5))
@settings(max_examples=12, deadline=None)
def test_shards_give_the_features_of_one_process(seed, count, block):
    rng = np.random.default_rng(seed)
    transactions, labels = odd_events(rng, int(rng.integers(1, 300)))
    batches = cuts(rng, len(transactions), len(labels))
    matrix, duplicate = together(transactions, labels, batches)
    again, found = sharded(transactions, labels, batches, count, block)
    assert found.tobytes() == duplicate.tobytes()
    assert again.tobytes() == matrix.tobytes()


def test_the_features_of_these_events_depend_on_the_batches():
    """What the property is about happens in these events: panes that late events miss, and duplicates."""
    rng = np.random.default_rng(1)
    transactions, labels = odd_events(rng, 300)
    batches = cuts(rng, len(transactions), len(labels))
    matrix, duplicate = together(transactions, labels, batches)
    coarse, _ = together(transactions, labels, [(0, 150, batches[-1][2]), (150, 300, batches[-1][2])])
    assert duplicate.sum() > 5
    assert not np.array_equal(coarse[:, 1], matrix[:, 1], equal_nan=True)
