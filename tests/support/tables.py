"""Transactions and labels from columns (Parquet, CSV), without JSON.

Does not validate values like the decoder: the operator controls the files, but not the topics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stream_scorer.errors import UsageError
from stream_scorer.serde.currency import Currencies
from stream_scorer.serde.decoder import Labels, Transactions, hash_ids
from stream_scorer.spec.model import CheckedSpec


def transactions_from_columns(checked: CheckedSpec, columns: Mapping[str, Sequence[Any]]) -> Transactions:
    """Columns by field name (lists with None, or numpy arrays) as `Transactions`.

    Raises:
        UsageError: a required field of the spec has no column, or a category holds an undeclared value.
    """
    spec = checked.spec
    shape = spec.transaction
    for name, field in shape.fields.items():
        if name not in columns and not field.optional:
            raise UsageError(f"the file has no column {name!r}", hint="The pipeline spec declares it as required.")
    ids = [str(i) for i in columns[shape.id]]
    n = len(ids)
    numeric: dict[str, Any] = {}
    present = {d.of[0] for d in spec.derived if d.function == "present"}
    for name, field in shape.fields.items():
        values = columns.get(name, [None] * n)
        if field.type == "string":
            if name in present:
                numeric[name] = np.array([np.nan if v is None else 1.0 for v in values])
        elif field.type == "category":
            codes = {value: float(code) for code, value in enumerate(field.values or [])}
            try:
                numeric[name] = np.array([np.nan if v is None else codes[v] for v in values])
            except KeyError as error:
                raise UsageError(f"column {name!r} holds {error}, which the spec does not declare") from None
        else:
            numeric[name] = np.array(values, dtype=np.float64)
    value = Currencies(shape).convert(np.asarray(columns[shape.value], dtype=np.int64), numeric)
    numeric[shape.value] = value.astype(np.float64)
    return Transactions(
        row=np.arange(n),
        event_id=ids,
        id_hash=hash_ids(ids),
        event_time=np.asarray(columns[shape.time], dtype=np.int64),
        value=value,
        entity_ids=_entity_ids(checked, columns, n),
        columns=numeric,
    )


def labels_from_columns(checked: CheckedSpec, columns: Mapping[str, Sequence[Any]]) -> Labels:
    """Columns ``event_id, event_time, label, labelled_at`` and the entity fields as `Labels`. Raises `UsageError`."""
    for name in ("event_id", "event_time", "label", "labelled_at"):
        if name not in columns:
            raise UsageError(f"the labels have no column {name!r}")
    ids = [str(i) for i in columns["event_id"]]
    n = len(ids)
    return Labels(
        row=np.arange(n),
        event_id=ids,
        id_hash=hash_ids(ids),
        event_time=np.asarray(columns["event_time"], dtype=np.int64),
        labelled_at=np.asarray(columns["labelled_at"], dtype=np.int64),
        fraud=np.array([value == "fraud" for value in columns["label"]], dtype=np.bool_),
        entity_ids=_entity_ids(checked, columns, n),
    )


def _entity_ids(checked: CheckedSpec, columns: Mapping[str, Sequence[Any]], n: int) -> dict[str, list[str | None]]:
    return {
        name: checked.pseudonyms.column(name, _ids(columns.get(entity.field), n))
        for name, entity in checked.spec.entities.items()
    }


def _ids(values: Sequence[Any] | None, n: int) -> list[str | None]:
    if values is None:
        return [None] * n
    return [None if v is None else str(v) for v in values]
