"""Compares the rows in Redis with the log: recomputes every entry from the topics, row by row.

The log is read again up to the applied offsets, decoded, and passed through the serving engine into rows in memory;
duplicates are found as in serving. A row that several partitions feed has its entries in the order in which they were
applied, which the log does not contain. So rows are compared as multisets, and compacted rows pane by pane, with all of
their entries in panes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from stream_scorer.arrays import Ints
from stream_scorer.errors import UsageError
from stream_scorer.features.engine import EventBatch, FeatureEngine
from stream_scorer.features.panes import folded
from stream_scorer.features.plan import EntityPlan
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.serde.decoder import LabelDecoder, Labels, TransactionDecoder, Transactions
from stream_scorer.serde.raw import RawRecords
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.state.row_format import HASH, HEADER, KIND, TIME, VALUE, latest, unpack
from stream_scorer.state.rows import WITNESS_PERIOD_MS, AppliedOffsets, FeatureRows, MemoryRowStore

# Rows per read.
_CHUNK = 500
# How many differing rows the result names.
_EXAMPLES = 10

Reads = Callable[[SourcePartition, int, int], Iterator[RawRecords]]


@dataclass(slots=True)
class RowCheck:
    """The result of a check.

    Attributes:
        records: read from the log. rows: in Redis or according to the log. folded: rows compared pane by pane.
        expired: rows that are missing because they are past the horizon. different: rows with an entry too many or too
            few. examples: some of them, with the difference.
    """

    records: int = 0
    rows: int = 0
    folded: int = 0
    expired: int = 0
    different: int = 0
    examples: list[str] = field(default_factory=list)


def check_rows(
    checked: CheckedSpec, engine: FeatureEngine, store: FeatureRows, read: Reads, labels_topic: str
) -> RowCheck:
    """Compare the rows of `store` with the log, which `read(source, start, stop)` returns.

    Raises:
        UsageError: there are no rows yet, or they change during the check because a scorer runs.
        StateUnavailable, BrokerUnavailable: Redis or Kafka does not answer.
    """
    applied = store.open()
    if applied is None:
        raise UsageError("there are no features of this group and spec in Redis", hint="Has a scorer run with them?")
    found = RowCheck()
    wanted = _recompute(checked, engine, applied, read, labels_topic, found)
    keys = sorted(set(wanted) | set(store.keys()))
    found.rows = len(keys)
    edge = applied.slowest_watermark() - store.horizon_ms
    # Like the look-up of witnesses for lost rows: in whole periods.
    unread = (applied.newest_watermark() - store.horizon_ms) // WITNESS_PERIOD_MS * WITNESS_PERIOD_MS
    past = applied.slowest_active_watermark() - (store.horizon_ms - engine.plan.horizon_ms)
    for low in range(0, len(keys), _CHUNK):
        part = keys[low : low + _CHUNK]
        rows, now = store.read(part)
        if any(m.next_offset != applied.next_offset for m in (now, *now.by_shard)):
            raise UsageError("the features change while they are checked", hint="Stop the scorers of this group first.")
        for key, row in zip(part, rows, strict=True):
            number, _, owner = key.decode().partition(":")
            plan = engine.plan.entities[int(number)]
            held, right = unpack(row or b""), unpack(wanted.get(key, b""))
            if row is None and latest(right) < unread:
                found.expired += 1
                continue
            is_folded = any(len(e) and e[0, KIND] == HEADER for e in (held, right))
            found.folded += is_folded
            extra, lost = _panes(held, right, plan, past) if is_folded else _entries(held, right, edge)
            if extra or lost:
                found.different += 1
                if len(found.examples) < _EXAMPLES:
                    found.examples.append(f"{plan.name} {owner}: {extra} entries too many, {lost} too few")
    return found


def _entries(held: Ints, right: Ints, edge: int) -> tuple[int, int]:
    """How many entries a row has too many and too few; entries before `edge` may have been trimmed."""
    ours, logs = (Counter(map(tuple, entries.tolist())) for entries in (held, right))
    return (ours - logs).total(), Counter({e: n for e, n in (logs - ours).items() if e[TIME] >= edge}).total()


def _panes(held: Ints, right: Ints, plan: EntityPlan, past_ms: int) -> tuple[int, int]:
    """The same for panes: how many entries they count too many and too few, or 1 each if only their sums differ."""
    ours, logs = (
        {(e[KIND], e[TIME]): (e[HASH], e[VALUE]) for e in folded(entries, plan, 0, past_ms).tolist()[1:]}
        for entries in (held, right)
    )
    extra = lost = 0
    for place in ours.keys() | logs.keys():
        a, b = ours.get(place, (0, 0)), logs.get(place, (0, 0))
        if a != b:
            extra += max(a[0] - b[0], int(a[0] == b[0]))
            lost += max(b[0] - a[0], int(a[0] == b[0]))
    return extra, lost


def _recompute(
    checked: CheckedSpec,
    engine: FeatureEngine,
    applied: AppliedOffsets,
    read: Reads,
    labels_topic: str,
    found: RowCheck,
) -> dict[bytes, bytes]:
    store = MemoryRowStore()
    transactions, labels = TransactionDecoder(checked), LabelDecoder(checked)
    for source, stop in sorted(applied.next_offset.items()):
        for records in read(source, 0, stop):
            found.records += len(records)
            span = [Span(source, int(records.offset[0]), int(records.offset[-1]) + 1, -1)]
            is_label = source.topic == labels_topic
            nothing = RawRecords.empty(source.topic)
            of_transactions, of_labels = (nothing, records) if is_label else (records, nothing)
            decoded, _ = transactions.decode(of_transactions.value, of_transactions.timestamp)
            decoded_labels, _ = labels.decode(of_labels.value, of_labels.timestamp)
            store.apply(engine.enrich(_batch(records, decoded, decoded_labels, span), store).update)
    return store.rows()


def _batch(records: RawRecords, transactions: Transactions, labels: Labels, spans: list[Span]) -> EventBatch:
    n, k = len(transactions), len(labels)
    return EventBatch(
        transactions=transactions,
        labels=labels,
        spans=spans,
        transaction_span=np.zeros(n, dtype=np.int64),
        transaction_offset=records.offset[transactions.row],
        label_span=np.zeros(k, dtype=np.int64),
        label_offset=records.offset[labels.row],
    )
