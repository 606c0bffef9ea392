"""The schemas in `schemas/` are those of the code, real records meet them, and changes that break readers are found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from stream_scorer.ensemble.manifest import Name
from stream_scorer.records import TOPIC_RECORDS, Contribution, Members, ServedVersion, Source
from stream_scorer.serde.schemas import breaking_changes, main, make_schemas, render
from tools.make_documents import make_document_schemas

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"
RELEASED = Path(__file__).parent / "released"


@pytest.mark.parametrize("topic", TOPIC_RECORDS)
def test_code_and_file_agree(topic: str) -> None:
    name = f"{topic}.schema.json"
    assert (SCHEMAS / name).read_text() == render(make_schemas()[name])


def test_no_file_is_left_over() -> None:
    assert {path.name for path in SCHEMAS.iterdir()} == {*make_schemas(), *make_document_schemas()}


def test_a_difference_exits_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 0
    (tmp_path / "scores.schema.json").write_text("{}")
    assert main([str(tmp_path), "--check"]) == 3
    assert "scores.schema.json" in capsys.readouterr().err


def test_a_record_with_missing_values_meets_its_schema() -> None:
    record = Contribution(
        "e", "cards", "1", "champion", float("nan"), float("nan"), float("nan"),
        Members(["a"], [float("nan")], [0.0], [0.0], ["missing"]), Source("transactions", 0, 7),
    )  # fmt: skip
    document = json.loads(msgspec.json.encode(record))
    schema = make_schemas()["contributions.schema.json"]
    jsonschema.validate(document, schema)
    assert document["z"] is None
    document["members"]["contribution"] = ["much"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema)


def test_breaking_changes_are_found_and_additions_are_not() -> None:
    old = make_schemas()["scores.schema.json"]
    new = json.loads(json.dumps(old))
    (name,) = (n for n, d in new["$defs"].items() if "event_id" in d["properties"])
    new["$defs"][name]["properties"]["more"] = {"type": "string"}
    assert breaking_changes(old, new) == []
    del new["$defs"][name]["properties"]["decision"]
    new["$defs"][name]["properties"]["score"] = {"type": "string"}
    assert breaking_changes(old, new) == [f"{name}.score changed its type", f"{name}.decision is removed"]


def test_patterns_compile_in_every_language_and_ours_still_refuse_a_line_feed() -> None:
    for path in SCHEMAS.iterdir():
        assert r"\\Z" not in path.read_text(), path.name
    pattern = make_schemas()["serving-state.schema.json"]["$defs"]["ServedVersion"]["properties"]["version"]["pattern"]
    assert pattern.startswith("^") and pattern.endswith("$")
    for version, digest in (("8\n", "0" * 64), ("8", "0" * 64 + "\n")):
        with pytest.raises(msgspec.ValidationError, match="regex"):
            msgspec.convert({"version": version, "manifest_sha256": digest}, ServedVersion)
    with pytest.raises(msgspec.ValidationError, match="regex"):
        msgspec.convert("cards\n", Name)


def _definition(schema: dict[str, Any], field: str) -> dict[str, Any]:
    found: dict[str, Any] = next(d for d in schema["$defs"].values() if field in d["properties"])
    return found


@pytest.mark.parametrize(
    ("field", "change", "found"),
    [
        ("decision", lambda d: d["properties"]["decision"]["enum"].append("hold"), "has the new values hold"),
        ("decision", lambda d: d["properties"]["decision"]["enum"].remove("block"), "no longer has the values block"),
        ("decision", lambda d: d["required"].remove("decision"), "is no longer required"),
        ("more", lambda d: d["required"].append("more"), "is required, and old records lack it"),
        ("coverage", lambda d: d["properties"].update(coverage=NUMBER_OR_NULL), "changed its type"),
        ("degraded", lambda d: d["properties"]["degraded"].update(items={"type": "object"}), "[] changed its type"),
        ("rule", lambda d: d["properties"].update(rule={"$ref": "#/$defs/Source"}), "changed its type"),
    ],
)
def test_what_readers_cannot_read_is_a_breaking_change(field: str, change: Any, found: str) -> None:
    old = make_schemas()["scores.schema.json"]
    new = json.loads(json.dumps(old))
    change(_definition(new, "decision"))
    assert [text.startswith(f"Score.{field}") and text.endswith(found) for text in breaking_changes(old, new)] == [True]


NUMBER_OR_NULL = {"anyOf": [{"type": "number"}, {"type": "null"}]}


@pytest.mark.parametrize("path", sorted(RELEASED.iterdir()), ids=lambda path: path.name)
def test_records_stay_compatible(path: Path) -> None:
    """`released` has the schemas of the last release, or of an earlier commit: write them again with each release."""
    assert breaking_changes(json.loads(path.read_text()), make_schemas()[path.name]) == []
