"""Generates the JSON schemas in `schemas/` from the records: ``python -m stream_scorer.serde.schemas DIR``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from stream_scorer.records import TOPIC_RECORDS, Record
from stream_scorer.serde.lineage import SCHEMA_FIELDS, LineageHeader
from stream_scorer.spec.gate_rules import Rules
from stream_scorer.spec.training import TrainingSpec

LINEAGE = "lineage"
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
    """Incompatible changes for a reader of `old`: removed fields and changed types. Added fields are compatible."""
    out = []
    for name, definition in old.get("$defs", {}).items():
        then, now = definition.get("properties", {}), new.get("$defs", {}).get(name, {}).get("properties", {})
        for field, kind in then.items():
            if field not in now:
                out.append(f"{name}.{field} is removed")
            elif _types(kind) - _types(now[field]):
                out.append(f"{name}.{field} changed its type")
    return out


def _types(kind: dict[str, Any]) -> set[str]:
    found = {str(kind["type"])} if "type" in kind else set()
    return found.union(*(_types(k) for k in kind.get("anyOf", [])))


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
