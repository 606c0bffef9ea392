"""Drafts a pipeline spec for a CSV file: each column becomes a field, each number a feature. The user refines it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from stream_scorer.data.csv_file import ROW_ID, CsvFile
from stream_scorer.errors import UsageError
from stream_scorer.spec import parse_spec

# A text column with more distinct values is an id or free text, not a category.
_MAX_CATEGORIES = 30
_WINDOWS = ["1d", "7d", "30d"]


@dataclass(frozen=True, slots=True)
class Roles:
    """The columns with a role, by their names in the file. `entities` maps entity names to columns."""

    time: str
    value: str
    id: str | None = None
    label: str | None = None
    entities: Mapping[str, str] = field(default_factory=dict)


def draft_spec(file: CsvFile, roles: Roles, name: str) -> str:
    """The YAML of a spec that `parse_spec` accepts.

    Raises:
        UsageError: a named column does not exist or is not suitable for its role.
    """
    time, value = file.column(roles.time, "the time"), file.column(roles.value, "the value")
    identity = ROW_ID if roles.id is None else file.column(roles.id, "the id")
    label = None if roles.label is None else file.column(roles.label, "the label")
    owners = {entity: file.column(column, f"entity {entity}") for entity, column in roles.entities.items()}
    fields: dict[str, dict[str, Any]] = {identity: {"type": "string"}}
    derived: list[dict[str, Any]] = []
    for column in file.columns:
        if column in (identity, label):
            continue
        if column == time:
            fields[column] = {"type": "time"}
            derived += [{"name": f"{column}_{part}", "function": part, "of": [column]} for part in ("hour", "weekday")]
        elif column == value:
            fields[column] = {"type": "integer"}
            derived.append({"name": f"{column}_log", "function": "log1p", "of": [column]})
        elif column in owners.values():
            fields[column] = {"type": "string", "optional": _has_nulls(file, column)}
        else:
            declared, function = _field(file, column)
            fields[column] = declared
            if function:
                # The derived column can have the name of the field, as only the derived column is a feature.
                derived.append({"name": column, "function": function, "of": [column]})
    document: dict[str, Any] = {
        "name": name,
        "version": 1,
        "transaction": {"id": identity, "time": time, "value": value, "fields": fields},
    }
    if owners:
        document["entities"] = {entity: {"field": column} for entity, column in owners.items()}
        document["partition_entity"] = next(iter(owners))
        document["views"] = [
            {"name": entity, "entity": entity, "windows": _WINDOWS, "aggregates": ["count", "mean"]}
            for entity in owners
        ]
    document |= {
        "derived": derived,
        "policy": {"version": f"{name}-1", "review": 0.3, "block": 0.8},
        "labels": {"horizon": "1d"},
        # Imported data are older than the topic.
        "time": {"max_ahead": "5m", "max_age": "20000d", "stale_after": "30d"},
    }
    text: str = yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=120)
    parse_spec(text)
    return text


def _field(file: CsvFile, column: str) -> tuple[dict[str, Any], str]:
    """The declaration of a column, and the function that derives a feature from it ('' for none)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    data = file.columns[column]
    optional = {"optional": True} if _has_nulls(file, column) else {}
    if pa.types.is_boolean(data.type):
        return {"type": "boolean"} | optional, "code"
    if pa.types.is_integer(data.type):
        return {"type": "integer"} | optional, "value"
    if pa.types.is_floating(data.type):
        return {"type": "number"} | optional, "value"
    if pa.types.is_temporal(data.type):
        raise UsageError(
            f"{file.path}: column {file.original[column]!r} holds times, but a spec has only one time field",
            hint="Remove the column from the file, or convert it to a number.",
        )
    if not pa.types.is_string(data.type):  # all values are missing
        return {"type": "number", "optional": True}, "value"
    distinct = sorted(v for v in pc.unique(data).to_pylist() if v is not None)
    if len(distinct) <= _MAX_CATEGORIES:
        return {"type": "category", "values": distinct} | optional, "code"
    return {"type": "string", "max_length": max(128, *(len(v) for v in distinct))} | optional, ""


def _has_nulls(file: CsvFile, column: str) -> bool:
    return bool(file.columns[column].null_count)
