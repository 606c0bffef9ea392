"""Which columns files of transactions and of labels have."""

from __future__ import annotations

from stream_scorer.spec.model import CheckedSpec

LABEL_COLUMNS = ("event_id", "event_time", "label", "labelled_at")
LABEL_TIMES = ("event_time", "labelled_at")


def transaction_kinds(checked: CheckedSpec) -> dict[str, str]:
    """The types of the columns of transactions, by name."""
    return {name: field.type for name, field in checked.spec.transaction.fields.items()}


def label_kinds(checked: CheckedSpec) -> dict[str, str]:
    """The types of the columns of labels, by name: `LABEL_COLUMNS`, optional ones, and the ids of entities."""
    entities = sorted({entity.field for entity in checked.spec.entities.values()})
    times = dict.fromkeys(LABEL_TIMES, "time")
    return dict.fromkeys((*LABEL_COLUMNS, "source", *entities), "string") | {"review_probability": "number"} | times
