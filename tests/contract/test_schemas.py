"""The schemas in `schemas/` are those of the code, real records meet them, and a change that breaks readers is told."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import msgspec
import pytest

from stream_scorer.ensemble.manifest import Name
from stream_scorer.records import TOPIC_RECORDS, Contribution, Members, ServedVersion, Source
from stream_scorer.serde.schemas import breaking_changes, main, make_schemas, render
from tools.make_documents import make_document_schemas

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"


@pytest.mark.parametrize("topic", TOPIC_RECORDS)
def test_code_and_file_agree(topic: str) -> None:
    name = f"{topic}.schema.json"
    assert (SCHEMAS / name).read_text() == render(make_schemas()[name])


def test_no_file_is_left_over() -> None:
    assert {path.name for path in SCHEMAS.iterdir()} == {*make_schemas(), *make_document_schemas()}


def test_a_difference_is_told_with_exit_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
