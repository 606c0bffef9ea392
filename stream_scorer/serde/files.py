"""Which columns files of transactions and of labels have."""

from __future__ import annotations

from stream_scorer.spec.model import LABEL_COLUMNS, LABELLED, CheckedSpec

LABEL_TIMES = ("event_time", "labelled_at")


def transaction_kinds(checked: CheckedSpec) -> dict[str, str]:
    """The types of the columns of transactions, by name."""
    return {name: field.type for name, field in checked.spec.transaction.fields.items()}


def label_kinds(checked: CheckedSpec) -> dict[str, str]:
    """The types of the columns of labels, by name: `LABEL_COLUMNS`, `OPTIONAL_LABEL_COLUMNS`, and ids of entities."""
    entities = sorted({entity.field for entity in checked.spec.entities.values()})
    times = dict.fromkeys(LABEL_TIMES, "time")
    return dict.fromkeys((*LABEL_COLUMNS, "source", *entities), "string") | {"review_probability": "number"} | times


def transactions_required(checked: CheckedSpec) -> dict[str, str]:
    """The columns without which a file of transactions is refused, with hints: see `read_rows`."""
    return {name: "" for name, field in checked.spec.transaction.fields.items() if not field.optional}


def labels_required(checked: CheckedSpec) -> dict[str, str]:
    """The columns without which a file of labels is refused, with hints: see `read_rows`.

    Without the ids of an entity, its features of labels would be 0 for all transactions, unlike live.
    """
    spec = checked.spec
    owners = {
        spec.entities[view.entity].field: f"The view {view.name!r} counts labels by it: add it to the labels, as live "
        "labels have it."
        for view in spec.views
        if LABELLED & set(view.aggregates)
    }
    return owners | dict.fromkeys(LABEL_COLUMNS, "")
