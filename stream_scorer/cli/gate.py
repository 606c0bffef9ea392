"""`stream-scorer gate`: check a candidate against declared rules; and the same check before a promotion."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from stream_scorer.cli.input_range import period
from stream_scorer.cli.options import with_settings
from stream_scorer.errors import CheckFailed, UsageError
from stream_scorer.settings import Settings

if TYPE_CHECKING:
    from stream_scorer.ensemble.ensemble import Ensemble
    from stream_scorer.gate.result import GateReport
    from stream_scorer.gate.run import Material
    from stream_scorer.kafka.topics import Topics
    from stream_scorer.spec.gate_rules import Rules
    from stream_scorer.spec.model import CheckedSpec

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("rules_file", metavar="RULES", type=_FILE)
@click.argument("candidate")
@click.option(
    "--champion",
    help="Version to compare with: a folder, name@alias or name:version.  [default: NAME@champion of a registered "
    "candidate]",
)
@click.option("--from-topics", is_flag=True, help="Read transactions, labels and lineage from Kafka.")
@click.option("--transactions", type=_FILE, help="Read this file instead: Parquet with the columns of the spec.")
@click.option("--labels", type=_FILE, help="Parquet file of the labels for --transactions.")
@click.option(
    "--start", help="First record of the recent traffic: ISO time or epoch ms.  [default: after the training data]"
)
@click.option("--end", help="End, exclusive, in the format of --start.")
@click.option("--labels-as-of", "as_of", help="Quality counts labels until this time.  [default: all labels]")
@click.option("--served", type=_FILE, help="Recorded features for the rule skew: lineage.parquet.")
@click.option("--training-set", type=_FILE, help="Training set for the rule leak, from `train --save-set`.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
@with_settings("kafka.bootstrap", "mlflow.url", "topics.prefix", "scorer.spec", "scorer.id_key", "cache.dir")
def gate(
    settings: Settings,
    rules_file: Path,
    candidate: str,
    champion: str | None,
    from_topics: bool,
    transactions: Path | None,
    labels: Path | None,
    start: str | None,
    end: str | None,
    as_of: str | None,
    served: Path | None,
    training_set: Path | None,
    as_json: bool,
) -> None:
    """Check CANDIDATE (a folder, name@alias or name:version) against the rules in the file RULES.

    Prints one line per rule: measured value, limit, verdict and reason. Exit code 3 if a rule refuses the candidate.
    """
    if from_topics == (transactions is not None):
        raise click.UsageError("Give either --from-topics or --transactions FILE.")
    if from_topics and (labels is not None or served is not None):
        raise click.UsageError("--labels and --served require --transactions; topics have both.")
    from stream_scorer.gate import inputs
    from stream_scorer.kafka.range_reader import RangeReader
    from stream_scorer.kafka.topics import Topics
    from stream_scorer.spec import load_spec
    from stream_scorer.spec.gate_rules import load_rules

    rules = load_rules(rules_file)
    scored = period(start, end, offsets_allowed=False)
    known_until = None if as_of is None else period(as_of, None, offsets_allowed=False).time_start
    checked = load_spec(settings.require("scorer.spec"), settings["scorer.id_key"])
    against = _champion(settings, champion, candidate)
    found = _resolve(settings, candidate)
    scored = inputs.after_training(found[0], scored)
    with ExitStack() as stack:
        if transactions is not None:
            material = inputs.from_files(
                transactions, labels, checked, scored, known_until, served=served, training_set=training_set
            )
        else:
            topics = Topics.of(settings)
            _require_topics(settings, topics, rules)
            reader = stack.enter_context(RangeReader(settings["kafka.bootstrap"], client_id="stream-scorer-gate"))
            if start is None:
                scored = inputs.recent(reader, topics, checked, rules, scored)
            material = inputs.from_topics(reader, topics, checked, scored, known_until, training_set=training_set)
        report = _run(rules, checked, found, against, material)
    show_report(report, as_json)
    if not report.passed:
        raise refusal(report)


def gate_promotion(
    settings: Settings, candidate: tuple[Path, str], champion: Ensemble | None, training_set: Path | None
) -> GateReport:
    """Check a candidate (folder and version) against the rules of `gate.rules`, on the topics, before its promotion.

    Raises:
        CheckFailed: a rule refuses the candidate. The report is printed.
    """
    from stream_scorer.gate import inputs
    from stream_scorer.kafka.range_reader import RangeReader
    from stream_scorer.kafka.topics import Topics
    from stream_scorer.replay.pieces import Range
    from stream_scorer.spec import load_spec
    from stream_scorer.spec.gate_rules import load_rules

    rules = load_rules(Path(settings["gate.rules"]).expanduser())
    checked = load_spec(settings.require("scorer.spec"), settings["scorer.id_key"])
    topics = Topics.of(settings)
    _require_topics(settings, topics, rules)
    with RangeReader(settings["kafka.bootstrap"], client_id="stream-scorer-gate") as reader:
        scored = inputs.recent(reader, topics, checked, rules, inputs.after_training(candidate[0], Range()))
        material = inputs.from_topics(reader, topics, checked, scored, None, training_set=training_set)
        report = _run(rules, checked, candidate, champion, material)
    show_report(report, as_json=False)
    if not report.passed:
        raise refusal(report)
    return report


def load_version(settings: Settings, reference: str) -> Ensemble:
    """The ensemble of a reference. Raises `ArtifactError`."""
    from stream_scorer.ensemble.ensemble import Ensemble

    folder, version = _resolve(settings, reference)
    return Ensemble.load(folder, version=version)


def _champion(settings: Settings, champion: str | None, candidate: str) -> Ensemble | None:
    """The version to compare with; None for a folder without --champion."""
    from stream_scorer.control.aliases import CHAMPION
    from stream_scorer.ensemble.registry import parse_reference

    if champion is None:
        parsed = parse_reference(candidate)
        if not parsed.registered:
            return None
        if not settings["mlflow.champion_alias"]:
            raise UsageError(
                f"the alias {CHAMPION} may name the version of another installation (mlflow.champion_alias is off)",
                hint="Give --champion, such as NAME:VERSION; `stream-scorer ensemble status` shows what serves.",
            )
        champion = f"{parsed.name}@{CHAMPION}"
    return load_version(settings, champion)


def _require_topics(settings: Settings, topics: Topics, rules: Rules) -> None:
    from stream_scorer.kafka.topics import TopicAdmin

    needed = [topics.transactions, topics.labels] + ([topics.lineage] if rules.skew is not None else [])
    TopicAdmin(settings.require("kafka.bootstrap")).require(needed, same_count=False)


def _resolve(settings: Settings, reference: str) -> tuple[Path, str]:
    """The folder and version of a reference."""
    from stream_scorer.ensemble.registry import resolve

    cache = Path(settings["cache.dir"]).expanduser()
    return resolve(reference, settings["mlflow.url"], cache, stale_alias=False)


def _run(
    rules: Rules, checked: CheckedSpec, candidate: tuple[Path, str], champion: Ensemble | None, material: Material
) -> GateReport:
    from stream_scorer.clock import SystemClock
    from stream_scorer.console import Progress
    from stream_scorer.gate.run import run_gate

    with Progress("checking the candidate", None, SystemClock()) as progress:
        return run_gate(rules, checked, candidate, champion, material, SystemClock(), progress.stage)


def show_report(report: GateReport, as_json: bool) -> None:
    """Print the report: one line per rule, or one JSON document."""
    if as_json:
        click.echo(msgspec.json.encode(report).decode())
        return
    from stream_scorer.console import columns, plain

    against = f" against {report.champion}" if report.champion is not None else ""
    mature = "" if report.mature is None else f" ({report.mature:.0%} with mature labels)"
    click.echo(
        f"{report.candidate}{against}: {report.transactions:,} transactions{mature}, "
        f"{report.rejected:,} records that cannot be read, rules {report.rules_sha256[:12]}"
    )
    lines = [["rule", "measured", "limit", "verdict"]]
    lines += [[r.rule, _number(r.measured), _number(r.limit), r.verdict] for r in report.rules]
    reasons = ["reason", *(rule.reason for rule in report.rules)]
    for line, reason in zip(columns(lines), reasons, strict=True):
        click.echo(plain(f"{line}  {reason}"))


def refusal(report: GateReport) -> CheckFailed:
    """The error of a refused candidate."""
    rules = ", ".join(rule.rule for rule in report.refusals)
    return CheckFailed(
        f"the gate refuses {report.candidate}: {rules}",
        hint="The report has the reason of each rule; see docs/gate.md.",
    )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def check_reason(skip: str | None) -> None:
    """Raise `UsageError` for an override without a reason."""
    if skip is not None and not skip.strip():
        raise UsageError("--skip-gate needs a reason", hint='As in --skip-gate "incident 4711: the champion fails".')
