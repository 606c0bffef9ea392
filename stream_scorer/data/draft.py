"""Drafts a pipeline spec for a CSV file: each column becomes a field, each number a feature. The user refines it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from stream_scorer.data.amounts import amounts_of
from stream_scorer.data.cells import kind_of, missing
from stream_scorer.data.csv_file import MAX_NAME_LENGTH, ROW_ID, CsvFile
from stream_scorer.errors import UsageError
from stream_scorer.spec import parse_spec

# A text column with more distinct values is an id or free text, not a category.
_MAX_CATEGORIES = 30
# Characters of a text: what a field allows by default, and what it can allow.
_SHORT, _MAX_LENGTH = 128, 4096
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
    fields: dict[str, dict[str, Any]] = {identity: _id_field(file, identity, required=True)}
    derived: list[dict[str, Any]] = []
    left_out: list[str] = []
    for column in file.columns:
        if column in (identity, label):
            continue
        if column == time:
            fields[column] = {"type": "time"}
            derived += [_derived(file, column, part) for part in ("hour", "weekday")]
        elif column == value:
            fields[column] = {"type": "integer"}
            derived += _value_features(file, column)
        elif column in owners.values():
            fields[column] = _id_field(file, column)
        else:
            declared, function = _field(file, column)
            if declared.get("max_length", 0) > _MAX_LENGTH:
                left_out.append(column)
                continue
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
    for column in left_out:
        text = f"# {column} is not a field: it has texts of more than {_MAX_LENGTH} characters.\n{text}"
    parse_spec(text)
    return text


def _field(file: CsvFile, column: str) -> tuple[dict[str, Any], str]:
    """The declaration of a column, and the function that derives a feature from it ('' for none)."""
    import pyarrow.compute as pc

    text = file.columns[column]
    kind = kind_of(text)
    if kind == "time":
        raise UsageError(
            f"{file.path}: column {file.original[column]!r} holds times, but a spec has only one time field",
            hint="Remove the column from the file, or convert it to a number.",
        )
    if kind == "missing":
        return {"type": "number", "optional": True}, "value"
    if kind != "text":
        optional = {"optional": True} if missing(text).any() else {}
        return {"type": kind} | optional, "code" if kind == "boolean" else "value"
    optional = {"optional": True} if _has_nulls(file, column) else {}
    distinct = sorted(v for v in pc.unique(text).to_pylist() if v is not None)
    if len(distinct) <= _MAX_CATEGORIES and _longest(file, column) <= _MAX_LENGTH:
        return {"type": "category", "values": distinct} | optional, "code"
    return {"type": "string", "max_length": max(_SHORT, _longest(file, column))} | optional, ""


def _id_field(file: CsvFile, column: str, *, required: bool = False) -> dict[str, Any]:
    """The declaration of the column of an id; of the row number, if the file has no such column."""
    if column not in file.columns:
        return {"type": "string"}
    longest = _longest(file, column)
    if longest > _MAX_LENGTH:
        raise UsageError(
            f"{file.path}: column {file.original[column]!r} has an id of {longest:,} characters, "
            f"and the limit is {_MAX_LENGTH:,}"
        )
    field = {"type": "string"} if required else {"type": "string", "optional": _has_nulls(file, column)}
    return field | ({"max_length": longest} if longest > _SHORT else {})


def _value_features(file: CsvFile, column: str) -> list[dict[str, Any]]:
    """The logarithm of the value; and the value itself if some are negative, because their logarithm is 0."""
    features = [_derived(file, column, "log1p", "log")]
    if (amounts_of(file, column) < 0).any():
        features.append({"name": column, "function": "value", "of": [column]})
    return features


def _derived(file: CsvFile, column: str, function: str, suffix: str = "") -> dict[str, Any]:
    """A derived column with the name of its field and a suffix. No column of the file has this name."""
    number = 1
    while True:
        end = f"_{suffix or function}" + (f"_{number}" if number > 1 else "")
        name = column[: MAX_NAME_LENGTH - len(end)] + end
        if name not in file.columns:
            return {"name": name, "function": function, "of": [column]}
        number += 1


def _longest(file: CsvFile, column: str) -> int:
    """Characters of the longest cell."""
    import pyarrow.compute as pc

    return pc.max(pc.utf8_length(file.columns[column])).as_py() or 0


def _has_nulls(file: CsvFile, column: str) -> bool:
    return bool(file.columns[column].null_count)
