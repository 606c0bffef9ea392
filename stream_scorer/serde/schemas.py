"""Generates the JSON schemas in `schemas/` from the records: ``python -m stream_scorer.serde.schemas DIR``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from stream_scorer.records import TOPIC_RECORDS, Record
from stream_scorer.serde.lineage import SCHEMA_FIELDS, LineageHeader
from stream_scorer.spec.gate_rules import Rules
from stream_scorer.spec.training import TrainingSpec

LINEAGE = "lineage"
# Enumerations that later versions may extend (docs/topics.md).
GROWING = frozenset({"Incident.kind", "Command.action", "Cause.kind", "InputChange.kind"})
DRAFT = "https://json-schema.org/draft/2020-12/schema"


def make_schemas() -> dict[str, dict[str, Any]]:
    """The schema of each topic, of training specs and of a gate's rules, by file name.

    That of `lineage` describes its header and lists its Arrow columns.
    """
    records: dict[str, type[Record]] = TOPIC_RECORDS | {LINEAGE: LineageHeader}
    schemas = {
        f"{topic}.schema.json": {"$schema": DRAFT, "title": topic} | msgspec.json.schema(record)
        for topic, record in records.items()
    }
    schemas[f"{LINEAGE}.schema.json"]["x-arrow-columns"] = [
        {"name": name, "type": kind, "description": about} for name, kind, about in SCHEMA_FIELDS
    ]
    schemas["training-spec.schema.json"] = {"$schema": DRAFT, "title": "training spec"} | msgspec.json.schema(
        TrainingSpec
    )
    schemas["gate-rules.schema.json"] = {"$schema": DRAFT, "title": "gate rules"} | msgspec.json.schema(Rules)
    return {name: portable(schema) for name, schema in schemas.items()}


def portable(schema: Any) -> Any:
    """The schema with patterns that every language compiles.

    The code ends patterns with a backslash and Z, because `$` in Python also stands before a line feed at the end. Only
    Python has that; in JSON Schema `$` is the end of the text.
    """
    if isinstance(schema, dict):
        changed = {name: portable(value) for name, value in schema.items()}
        if isinstance(pattern := changed.get("pattern"), str):
            changed["pattern"] = pattern.replace(r"\Z", "$")
        return changed
    return [portable(value) for value in schema] if isinstance(schema, list) else schema


def render(schema: dict[str, Any]) -> str:
    """A schema as text for its file."""
    return msgspec.json.format(msgspec.json.encode(schema), indent=2).decode() + "\n"


def breaking_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What is incompatible with readers of `old`, or with records that `old` describes.

    Incompatible are removed fields, other types (also null where there was none), other items of lists, another record
    in a field, fields that are no longer always there, fields that old records lack, and new values of an enumeration,
    except in `GROWING`. Added fields with a default are compatible.
    """
    out = list(_differences("the record", old, new))
    for name, then in old.get("$defs", {}).items():
        now = new.get("$defs", {}).get(name, {})
        fields, fields_now = then.get("properties", {}), now.get("properties", {})
        for field, kind in fields.items():
            if field in fields_now:
                out += _differences(f"{name}.{field}", kind, fields_now[field])
            else:
                out.append(f"{name}.{field} is removed")
        required, required_now = set(then.get("required", ())), set(now.get("required", ()))
        out += [f"{name}.{field} is no longer required" for field in sorted((required - required_now) & {*fields_now})]
        out += [f"{name}.{field} is required, and old records lack it" for field in sorted(required_now - required)]
    columns = [{(c["name"], c["type"]) for c in each.get("x-arrow-columns", ())} for each in (old, new)]
    return out + [f"the column {name} ({kind}) is removed" for name, kind in sorted(columns[0] - columns[1])]


def _differences(path: str, then: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """How the type of a field differs."""
    forms, forms_now = _forms(then), _forms(now)
    if forms.keys() != forms_now.keys():
        yield f"{path} changed its type"
        return
    for form, old in forms.items():
        new = forms_now[form]
        values, values_now = ({str(v) for v in each.get("enum", ())} for each in (old, new))
        if values - values_now:
            yield f"{path} no longer has the values {', '.join(sorted(values - values_now))}"
        if values_now - values and path not in GROWING:
            yield f"{path} has the new values {', '.join(sorted(values_now - values))}"
        parts = [(old.get(key), new.get(key)) for key in ("items", "additionalProperties")]
        parts += zip(old.get("prefixItems", ()), new.get("prefixItems", ()), strict=False)
        for inner, inner_now in parts:
            if isinstance(inner, dict) and isinstance(inner_now, dict):
                yield from _differences(f"{path}[]", inner, inner_now)


def _forms(kind: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The alternatives of a type, by the name of the type or of the record."""
    if "anyOf" in kind:
        return {name: form for each in kind["anyOf"] for name, form in _forms(each).items()}
    return {str(kind.get("$ref") or kind.get("type") or ("enum" if "enum" in kind else "any")): kind}


def main(arguments: list[str]) -> int:
    """Write the schemas, or with ``--check`` compare them with the files and return 3 if they differ."""
    folder = Path(arguments[0])
    faults = 0
    wanted = {name: render(schema) for name, schema in make_schemas().items()}
    if "--check" in arguments:
        for name, text in wanted.items():
            path = folder / name
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                sys.stderr.write(f"{path} differs from the records in the code: run 'make schemas'\n")
                faults += 1
        return 3 if faults else 0
    folder.mkdir(exist_ok=True)
    for name, text in wanted.items():
        (folder / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
