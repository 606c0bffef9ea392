"""A first pipeline spec for a CSV file: every column a field, every number a feature. A person goes on from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from stream_scorer.data.csv_file import ROW_ID, CsvFile
from stream_scorer.errors import UsageError
from stream_scorer.spec import parse_spec

# A text column of more distinct values than this is an identity or prose, not a category.
_MAX_CATEGORIES = 30
_WINDOWS = ["1d", "7d", "30d"]


@dataclass(frozen=True, slots=True)
class Roles:
    """Which columns play a part, by their name in the file. `entities` maps entity names to columns."""

    time: str
    value: str
    id: str | None = None
    label: str | None = None
    entities: Mapping[str, str] = field(default_factory=dict)


def draft_spec(file: CsvFile, roles: Roles, name: str) -> str:
    """The YAML of a spec that `parse_spec` accepts.

    Raises:
        UsageError: a column named does not exist or cannot play its part.
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
                # A derived column needs a name of its own only where a field is turned into something else.
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
        # The data are older than the topic they are put on.
        "time": {"max_ahead": "5m", "max_age": "20000d", "stale_after": "30d"},
    }
    text: str = yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=120)
    parse_spec(text)
    return text


def _field(file: CsvFile, column: str) -> tuple[dict[str, Any], str]:
    """How a column is declared, and the function that makes a feature of it ('' for none)."""
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
            f"{file.path}: column {file.original[column]!r} holds times, and only one time is taken",
            hint="Leave the column out of the file, or turn it into a number.",
        )
    if not pa.types.is_string(data.type):  # nothing but missing values
        return {"type": "number", "optional": True}, "value"
    distinct = sorted(v for v in pc.unique(data).to_pylist() if v is not None)
    if len(distinct) <= _MAX_CATEGORIES:
        return {"type": "category", "values": distinct} | optional, "code"
    return {"type": "string", "max_length": max(128, *(len(v) for v in distinct))} | optional, ""


def _has_nulls(file: CsvFile, column: str) -> bool:
    return bool(file.columns[column].null_count)
