"""Parts of decoded transactions and labels, and their concatenation: what holds for every column of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stream_scorer.arrays import Ints
from stream_scorer.serde.decoder import Labels, Transactions

_List = Callable[[list[Any]], list[Any]]


def take_transactions(transactions: Transactions, rows: Ints) -> Transactions:
    """The transactions at `rows` (k,), in that order."""
    return _transactions(transactions, rows, _taken(rows))


def slice_transactions(transactions: Transactions, low: int, high: int) -> Transactions:
    """The transactions ``[low, high)``, whose arrays are views."""
    return _transactions(transactions, slice(low, high), lambda values: values[low:high])


def join_transactions(parts: Sequence[Transactions]) -> Transactions:
    """All transactions of at least one part, in order; `row` is their place in the result."""
    first = parts[0]
    return Transactions(
        row=np.arange(sum(len(part) for part in parts)),
        event_id=[event_id for part in parts for event_id in part.event_id],
        id_hash=np.concatenate([part.id_hash for part in parts]),
        event_time=np.concatenate([part.event_time for part in parts]),
        value=np.concatenate([part.value for part in parts]),
        entity_ids={name: [i for part in parts for i in part.entity_ids[name]] for name in first.entity_ids},
        columns={name: np.concatenate([part.columns[name] for part in parts]) for name in first.columns},
    )


def take_labels(labels: Labels, rows: Ints) -> Labels:
    """The labels at `rows` (k,), in that order."""
    return _labels(labels, rows, _taken(rows))


def slice_labels(labels: Labels, low: int, high: int) -> Labels:
    """The labels ``[low, high)``, whose arrays are views."""
    return _labels(labels, slice(low, high), lambda values: values[low:high])


def join_labels(parts: Sequence[Labels]) -> Labels:
    """All labels of at least one part, in order; `row` is their place in the result."""
    first = parts[0]
    return Labels(
        row=np.arange(sum(len(part) for part in parts)),
        event_id=[event_id for part in parts for event_id in part.event_id],
        id_hash=np.concatenate([part.id_hash for part in parts]),
        event_time=np.concatenate([part.event_time for part in parts]),
        labelled_at=np.concatenate([part.labelled_at for part in parts]),
        fraud=np.concatenate([part.fraud for part in parts]),
        entity_ids={name: [i for part in parts for i in part.entity_ids[name]] for name in first.entity_ids},
    )


def _taken(rows: Ints) -> _List:
    index = rows.tolist()
    return lambda values: [values[i] for i in index]


def _transactions(t: Transactions, rows: Ints | slice, of_list: _List) -> Transactions:
    """The transactions that `rows` selects in arrays, and `of_list` in lists."""
    return Transactions(
        row=t.row[rows],
        event_id=of_list(t.event_id),
        id_hash=t.id_hash[rows],
        event_time=t.event_time[rows],
        value=t.value[rows],
        entity_ids={name: of_list(ids) for name, ids in t.entity_ids.items()},
        columns={name: column[rows] for name, column in t.columns.items()},
    )


def _labels(labels: Labels, rows: Ints | slice, of_list: _List) -> Labels:
    """The labels that `rows` selects in arrays, and `of_list` in lists."""
    return Labels(
        row=labels.row[rows],
        event_id=of_list(labels.event_id),
        id_hash=labels.id_hash[rows],
        event_time=labels.event_time[rows],
        labelled_at=labels.labelled_at[rows],
        fraud=labels.fraud[rows],
        entity_ids={name: of_list(ids) for name, ids in labels.entity_ids.items()},
    )
