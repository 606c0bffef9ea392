"""An update applied in parts leaves the rows that it leaves whole: what a replay of served batches relies on."""

from __future__ import annotations

import numpy as np
import pytest

from stream_scorer.positions import SourcePartition, Span
from stream_scorer.state.rows import MemoryRowStore, RowUpdate

TRANSACTIONS, LABELS = SourcePartition("transactions", 0), SourcePartition("labels", 0)


def update(labels: int, transactions: int, keys: int = 5, seed: int = 1) -> RowUpdate:
    rng = np.random.default_rng(seed)
    n = labels + transactions
    entries = np.zeros((n, 4), dtype=np.int64)
    entries[:, 0] = np.arange(n)
    entries[:labels, 3] = 1
    spans = [Span(TRANSACTIONS, 100, 100 + 2 * transactions + 7, 5), Span(LABELS, 40, 40 + labels, 9)]
    span_of = np.repeat([1, 0], [labels, transactions])
    # Offsets of transactions have holes, as where aborted records stood.
    offset = np.concatenate([40 + np.arange(labels), 100 + 2 * np.arange(transactions)])
    return RowUpdate.group(
        spans,
        [b"%d" % k for k in range(keys)],
        rng.integers(0, keys, n),
        entries,
        span_of.astype(np.int64),
        offset,
        np.zeros(n, dtype=np.int8),
    )


@pytest.mark.parametrize(("labels", "transactions"), [(0, 50), (50, 0), (3, 60), (60, 3), (30, 31), (1, 9)])
@pytest.mark.parametrize("most", [1, 4, 10, 25])
def test_parts_append_in_the_order_of_the_whole(labels: int, transactions: int, most: int) -> None:
    whole = update(labels, transactions)
    one, many = MemoryRowStore(), MemoryRowStore()
    one.apply(whole)
    parts = whole.split(most)
    for part in parts:
        many.apply(part)
    rows, applied = one.read(whole.keys)
    assert many.read(whole.keys)[0] == rows
    assert many.read(whole.keys)[1].next_offset == applied.next_offset
    assert sum(len(part) for part in parts) == len(whole)
    for earlier, later in zip(parts, parts[1:], strict=False):
        assert [s.stop for s in earlier.spans] == [s.start for s in later.spans]


@pytest.mark.parametrize("most", [1, 4, 10])
def test_a_watermark_never_runs_ahead_of_its_mark_and_a_begun_partition_has_one(most: int) -> None:
    whole = update(3, 60)
    whole.spans = [whole.spans[0]._replace(watermark=1_000), whole.spans[1]]
    store = MemoryRowStore()
    for part in whole.split(most):
        store.apply(part)
        offsets = store.read([])[1]
        applied = (whole.span_of == 0) & (whole.offset < offsets.next_offset[TRANSACTIONS])
        ended = offsets.next_offset[TRANSACTIONS] == whole.spans[0].stop
        newest = int(whole.entries[applied, 0].max(initial=-1))
        assert offsets.watermark[TRANSACTIONS] == (1_000 if ended else newest)
