"""`stream-scorer ensemble`: registered versions, the contents of an ensemble, and commands that change what serves."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from stream_scorer.cli.champion_alias import check_alias
from stream_scorer.cli.compose import compose
from stream_scorer.cli.control import COMMANDS
from stream_scorer.cli.due import due
from stream_scorer.cli.groups import CommandGroup
from stream_scorer.cli.options import reason_option, with_settings
from stream_scorer.cli.served import at
from stream_scorer.console import make_table, print_table
from stream_scorer.settings import Settings

_SAME_WEIGHT = 5e-4


@click.group(cls=CommandGroup)
def ensemble() -> None:
    """Compose, list, show and register ensembles; promote, roll back and control the versions that serve."""


@ensemble.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@with_settings("mlflow.url")
def list_command(settings: Settings, as_json: bool) -> None:
    """List every registered version, newest first."""
    from stream_scorer.ensemble.registry import list_versions

    versions = list_versions(settings.require("mlflow.url"))
    if as_json:
        click.echo(msgspec.json.encode(versions))
        return
    if not versions:
        click.echo("no ensemble is registered", err=True)
        return
    rows = [
        (
            f"{entry.name}:{entry.version}",
            ", ".join(entry.aliases),
            f"{datetime.fromtimestamp(entry.created_at / 1_000, UTC):%Y-%m-%d %H:%M}",
            entry.manifest_sha256[:12],
        )
        for entry in versions
    ]
    print_table(make_table(("ensemble", "aliases", "registered", "manifest"), rows))


@ensemble.command("show")
@click.argument("reference")
@click.option("--json", "as_json", is_flag=True, help="The whole manifest as JSON.")
@with_settings("mlflow.url", "cache.dir")
def show(settings: Settings, reference: str, as_json: bool) -> None:
    """Show the ensemble REFERENCE: a folder (champion, ./champion), name@alias or name:version."""
    from stream_scorer.ensemble.cost import member_microseconds
    from stream_scorer.ensemble.ensemble import Ensemble
    from stream_scorer.ensemble.manifest import manifest_bytes, manifest_digest, read_manifest
    from stream_scorer.ensemble.registry import resolve

    path, version = resolve(reference, settings["mlflow.url"], Path(settings["cache.dir"]).expanduser())
    manifest = read_manifest(path)
    if as_json:
        click.echo(manifest_bytes(manifest), nl=False)
        return
    training, policy = manifest.training, manifest.thresholds
    until = training.members_until
    facts = {
        "ensemble": f"{manifest.name}, version {version}, manifest {manifest_digest(manifest)[:12]}",
        "trained": f"{training.rows:,} transactions, {training.positives:,} frauds, "
        f"{_day(training.first_event_time)} to {_day(training.last_event_time)}, run {training.run_id}",
        "members": f"trained on data until {'an unknown time' if until is None else _day(until)}",
        "spec": f"{manifest.spec_name}, {len(manifest.features)} features, hash {manifest.feature_hash[:12]}",
        "combiner": f"{manifest.formula}, quorum {manifest.quorum:g}, final calibrator {manifest.final_calibrator}"
        + (f", if a member is missing {manifest.incomplete_calibrator}" if manifest.incomplete_calibrator else ""),
        "thresholds": f"review {policy.review:.4g}, block {policy.block:.4g}, policy {policy.policy_version}",
    }
    for label, fact in facts.items():
        click.echo(f"{label:11} {fact}")
    for name, value in training.metrics.get("ensemble", {}).items():
        click.echo(f"{name.replace('_', ' '):28} {value:.4f}")
    total = sum(member.weight for member in manifest.members)
    costs = member_microseconds(Ensemble.load(path, version=version))
    whole = training.metrics.get("ensemble", {})
    rows = []
    for member, cost in zip(manifest.members, costs, strict=True):
        figures = training.metrics.get(member.name, {})
        rows.append(
            (
                member.name,
                member.format,
                str(len(member.inputs)),
                f"{member.weight / total:.3f}",
                _figure(figures.get("average_precision")),
                _change(figures.get("ensemble_average_precision_without"), whole.get("average_precision")),
                _change(figures.get("ensemble_false_positive_rate_without"), whole.get("review_false_positive_rate")),
                f"{cost:.2f}",
            )
        )
    headings = ("member", "format", "inputs", "weight", "AP", "AP without", "FPR without", "ms/1000")
    print_table(make_table(headings, rows))
    click.echo("without: change on the holdout if the member is left out")
    click.echo("ms/1000: time per 1,000 decisions on this machine (live: stream_scorer_member_seconds_total)")


@ensemble.command("compare")
@click.argument("before")
@click.argument("after")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@with_settings("mlflow.url", "cache.dir")
def compare_command(settings: Settings, before: str, after: str, as_json: bool) -> None:
    """Show what changed from ensemble BEFORE to AFTER: members, weights, thresholds, and the change of the scores."""
    from stream_scorer.ensemble.compare import compare
    from stream_scorer.ensemble.ensemble import Ensemble
    from stream_scorer.ensemble.registry import resolve

    loaded = []
    for reference in (before, after):
        path, version = resolve(reference, settings["mlflow.url"], Path(settings["cache.dir"]).expanduser())
        loaded.append(Ensemble.load(path, version=version))
    found = compare(*loaded)
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    for name, (one, two) in found.facts.items():
        click.echo(f"{name:17} {one} -> {two}")
    rows = []
    for member in sorted(found.members, key=lambda m: -(m.moved if m.moved == m.moved else 0.0)):
        weight = f"{member.weight_before:.3f} -> {member.weight_after:.3f}"
        if abs(member.weight_before - member.weight_after) < _SAME_WEIGHT:
            weight = f"{member.weight_after:.3f}"
        moved = "" if member.moved != member.moved else f"{member.moved:.4f}"
        rows.append((member.name, ", ".join(member.changed) or "no", weight, moved))
    rows.append(("the final score", "", "", "" if found.moved != found.moved else f"{found.moved:.4f}"))
    print_table(make_table(("member", "changed", "weight", "moved"), rows))
    click.echo("moved: mean absolute change of the score on the rows of both self-tests")


@ensemble.command("register")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.argument("name")
@click.option("--alias", help="Alias to move to the new version, such as champion.")
@click.option("--once", is_flag=True, help="If a version of NAME is this ensemble, only move the alias to it.")
@reason_option("The reason; the registry keeps it with the version.")
@with_settings("mlflow.url", "kafka.bootstrap", "topics.prefix")
def register_command(settings: Settings, folder: Path, name: str, alias: str | None, once: bool, why: str) -> None:
    """Register the ensemble in FOLDER as a new version of NAME, if it passes its self-test."""
    from stream_scorer.ensemble.manifest import manifest_digest, read_manifest
    from stream_scorer.ensemble.registry import find_registered, register, set_alias

    registry = settings.require("mlflow.url")
    version = find_registered(name, manifest_digest(read_manifest(folder)), registry) if once else None
    check_alias(settings, name, alias, version)
    if version is None:
        version = register(folder, name, registry, alias, {"stream_scorer.why": why})
    elif alias is not None:
        set_alias(name, alias, version, registry)
    click.echo(f"{name}:{version}")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _change(value: float | None, whole: float | None) -> str:
    """The difference of a figure without a member from the figure of the whole ensemble."""
    return "" if value is None or whole is None else f"{value - whole:+.4f}"


def _day(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1_000, UTC):%Y-%m-%d}"


for _each in (compose, *COMMANDS, at, due):
    ensemble.add_command(_each)
