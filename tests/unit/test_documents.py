"""What the documents name exists: commands, settings, variables, targets, proofs, decisions, files, metrics, alerts."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin

import click
import jsonschema
import msgspec
import numpy as np
import pytest
import yaml

from proofs.catalogue import PROOFS
from stream_scorer import __version__
from stream_scorer.cli.main import cli
from stream_scorer.control.watch import WATCH_METRICS
from stream_scorer.incidents.signals import INCIDENT_METRICS
from stream_scorer.incidents.webhook import WEBHOOK_METRICS
from stream_scorer.monitor.metrics import MONITOR_METRICS
from stream_scorer.observability.metrics import SCORER_METRICS
from stream_scorer.serde.decoder import LabelDecoder, TransactionDecoder
from stream_scorer.settings import CATALOGUE
from stream_scorer.spec.load import load_spec
from stream_scorer.spec.model import PipelineSpec

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "deploy").rglob("*.md"),
        *ROOT.glob("examples/*/*.md"),
    ]
)
DECISIONS = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))
SETTINGS = {s.name for s in CATALOGUE}
VARIABLES = {s.variable for s in CATALOGUE}
# Of no setting: what proofs and examples read, and variables of librdkafka properties.
OTHER_VARIABLES = re.compile(r"STREAM_SCORER_(SOURCE|HANDBOOK|KAFKA_CLIENT\w*)")
# Dotted names that begin like a section: fields of `verdicts`, fields of a user, properties of Kafka, and files.
OTHER_NAMES = re.compile(
    r"labels\.(known|common)|transaction\.(fields|state|max|timeout)\..*|\w+\.(yaml|parquet|pq|client)"
)
METRICS = {m.name for m in SCORER_METRICS + MONITOR_METRICS + WATCH_METRICS + INCIDENT_METRICS + WEBHOOK_METRICS}


@cache
def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def prose(path: Path) -> str:
    return re.sub(r"```.*?```", "", read(path), flags=re.S)


# ---- Links


def anchors(path: Path) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_leads_somewhere() -> None:
    wrong = []
    for path in DOCUMENTS:
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", read(path)):
            name, _, anchor = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            if not target.exists() or (anchor and anchor not in anchors(target)):
                wrong.append((path.name, link))
    assert wrong == []


# ---- Commands


def commands(path: Path) -> Iterator[tuple[str, bool]]:
    """The command lines in a document, and whether each is complete: those within sentences may be shortened."""
    for block in re.findall(r"```\w*\n(.*?)```", read(path), re.S):
        for line in re.findall(r"^ *(?:[A-Z_]+=\S+ )?(stream-scorer .*)$", re.sub(r"\\\n\s*", " ", block), re.M):
            yield line, "…" not in line.partition(" #")[0]
    for line in re.findall(r"`(stream-scorer [^`]+)`", prose(path)):
        yield line.replace("\n", " "), False


def parse(line: str, complete: bool) -> None:
    words = shlex.split(line, comments=True)[1:]
    for end in ("&", "|", ">"):
        words = words[: words.index(end)] if end in words else words
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group) and words and re.fullmatch(r"[a-z]+", words[0]):
        name = words.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"{line}: no command {name}"
        command = found
    if complete and not isinstance(command, click.Group):
        command.make_context(command.name, words).close()
    known = {flag for each in command.params for flag in (*each.opts, *each.secondary_opts)} | {"--help", "--version"}
    assert {word.partition("=")[0] for word in words if re.match(r"--\w", word)} <= known, line


def test_every_command_can_be_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    # The files of the examples do not exist here.
    monkeypatch.setattr(click.Path, "convert", lambda _self, value, _parameter, _context: value)
    found = [command for path in DOCUMENTS for command in commands(path)]
    assert len(found) > 150
    for line, complete in found:
        try:
            parse(line, complete)
        except click.UsageError as error:
            pytest.fail(f"{line}: {error.format_message()}")


def test_a_command_that_does_not_exist_is_found() -> None:
    for line in ("stream-scorer ensemble promote cards:8", "stream-scorer topics make", "stream-scorer run --bach 1"):
        with pytest.raises((click.UsageError, AssertionError)):
            parse(line, complete=True)


# ---- Names


def structs_in(kind: Any) -> Iterator[type[msgspec.Struct]]:
    for each in get_args(kind):
        yield from structs_in(each)
    if isinstance(kind, type) and get_origin(kind) is None and issubclass(kind, msgspec.Struct):
        yield kind


def defaults_of(kind: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The dotted names of the keys of a pipeline spec, with their defaults as the document writes them."""
    for struct in structs_in(kind):
        for field in msgspec.structs.fields(struct):
            default = "required" if field.required else field.default
            text = "none" if default in (None, msgspec.NODEFAULT) else str(default).removesuffix(".0").lower()
            yield prefix + field.encode_name, text
            yield from defaults_of(field.type, f"{prefix}{field.encode_name}.")


def named(pattern: str, text: Callable[[Path], str] = prose) -> set[str]:
    """What `pattern` finds in all documents."""
    return {name for path in DOCUMENTS for name in re.findall(pattern, text(path), re.M)}


def test_every_setting_variable_and_key_of_the_spec_exists() -> None:
    keys = SETTINGS | dict(defaults_of(PipelineSpec)).keys()
    sections = {key.partition(".")[0] for key in keys if "." in key}
    names = {name for name in named(r"`([a-z_]+\.[a-z_.]+)`") if name.partition(".")[0] in sections}
    assert len(names) > 50
    assert {name for name in names - keys if not OTHER_NAMES.fullmatch(name)} == set()
    variables = {name for name in named(r"\bSTREAM_SCORER_\w*[A-Z]\b", read) if not OTHER_VARIABLES.fullmatch(name)}
    assert variables - VARIABLES - {f"{variable}_FILE" for variable in VARIABLES} == set()


def test_every_target_proof_decision_and_metric_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", read(ROOT / "Makefile"), re.M))
    assert named(r"`make ([a-z-]+)") | named(r"^make ([a-z-]+) *(?:#|[A-Z]+=|$)", read) <= targets
    assert named(r"\bP=([a-z][a-z-]+)", read) <= PROOFS.keys()
    groups = named(r"ADR ((?:\d{4}(?:, | and )?)+)", read)
    assert set(re.findall(r"\d{4}", " ".join(groups))) <= {file.name[:4] for file in DECISIONS}
    assert named(r"`(stream_scorer_\w+)`") <= METRICS


def test_every_file_exists() -> None:
    for path in DOCUMENTS:
        for name in re.findall(r"`([\w.-]+/[\w./-]+\.(?:py|md|yaml|yml|lua|acl|in|sum))`", prose(path)):
            assert any((folder / name).exists() for folder in (ROOT, ROOT / "stream_scorer", path.parent)), name


def test_every_alert_has_its_row_with_severity() -> None:
    rules = [
        rule
        for group in yaml.safe_load(read(ROOT / "deploy" / "prometheus" / "alerts.yml"))["groups"]
        for rule in group["rules"]
    ]
    rows = re.findall(r"^\| `(\w+)` \| (page|ticket) \|", read(ROOT / "docs" / "operations.md"), re.M)
    assert rows == [(rule["alert"], rule["labels"]["severity"]) for rule in rules]


def test_every_key_of_a_spec_has_its_row_with_its_default() -> None:
    found = {}
    for keys, defaults in re.findall(r"^\| (`.+?`) \| (.+?) \|", read(ROOT / "docs" / "spec.md"), re.M):
        names = [name.replace("<name>.", "").replace(".<name>", "").replace("[]", "") for name in keys.split(", ")]
        texts = [text.strip("`") for text in defaults.split(", ")]
        found |= dict(zip((name.strip("`") for name in names), texts * len(names), strict=False))
    known = dict(defaults_of(PipelineSpec))
    assert found == {key: text for key, text in known.items() if not any(k.startswith(f"{key}.") for k in known)}


def test_the_schema_of_a_spec_accepts_the_examples_and_rejects_an_unknown_key() -> None:
    schema = json.loads(read(ROOT / "schemas" / "pipeline-spec.schema.json"))
    for path in (ROOT / "stream_scorer/simulate/cards.yaml", ROOT / "examples/handbook/handbook.yaml"):
        spec = yaml.safe_load(read(path))
        jsonschema.validate(spec, schema)
        spec["views"][0]["windws"] = ["1d"]
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(spec, schema)


def test_the_records_of_the_inputs_can_be_read() -> None:
    section = read(ROOT / "docs/topics.md").split("## Transactions")[1].split("\n## ")[0]
    transaction, label = re.findall(r"```json\n(.*?)```", section, re.DOTALL)
    checked, at = load_spec(ROOT / "stream_scorer/simulate/cards.yaml"), np.array([1767225600000])
    assert not TransactionDecoder(checked).decode([transaction.encode()], at)[1]
    assert not LabelDecoder(checked).decode([label.encode()], at + 7 * 86_400_000)[1]


def test_the_index_of_decisions_is_complete() -> None:
    index = read(ROOT / "docs" / "adr" / "README.md")
    for file in DECISIONS:
        title = read(file).partition("\n")[0].partition(": ")[2]
        assert f"| [{file.name[:4]}]({file.name}) | {title} |" in index
    assert len(re.findall(r"^\| \[\d{4}\]", index, re.M)) == len(DECISIONS)


def test_images_have_the_version_of_the_package() -> None:
    texts = [read(path) for path in (*DOCUMENTS, *(ROOT / "deploy").rglob("*.yaml"))]
    found = {tag for text in texts for tag in re.findall(r"\bstream-scorer[a-z-]*:(\d+\.\d+\.\d+)", text)}
    assert found == {__version__}


def test_the_readme_is_short() -> None:
    assert len(read(ROOT / "README.md").splitlines()) <= 120
