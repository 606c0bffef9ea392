"""`stream-scorer train`: train an ensemble on labelled history, and optionally register it."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from stream_scorer.cli.options import with_settings
from stream_scorer.clock import SystemClock
from stream_scorer.console import Progress, make_table, print_table
from stream_scorer.settings import Settings
from stream_scorer.spec.load import load_spec

if TYPE_CHECKING:
    from stream_scorer.ensemble.manifest import Manifest
    from stream_scorer.train.report import MemberLine


@click.command()
@click.option(
    "--transactions",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Parquet file of transactions, columns as in the spec.",
)
@click.option(
    "--labels",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Parquet file of labels: event_id, event_time, label, labelled_at, entity ids.",
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the ensemble.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Seed; the same data and seed give the same members.",
)
@click.option("--name", help="Name in the manifest.  [default: the name of the spec]")
@click.option(
    "--review-rate", type=click.FloatRange(0, 1), help="Fit thresholds so that this share is reviewed or blocked."
)
@click.option("--block-rate", type=click.FloatRange(0, 1), help="Fit thresholds so that this share is blocked.")
@click.option(
    "--calibrator",
    type=click.Choice(["platt", "isotonic", "beta"]),
    default="platt",
    show_default=True,
    help="Calibrator of member scores; isotonic needs many frauds.",
)
@click.option(
    "--combiner",
    type=click.Choice(["weighted-mean", "median", "trimmed-mean", "stacking"]),
    default="weighted-mean",
    show_default=True,
    help="Combiner of the members.",
)
@click.option(
    "--link",
    type=click.Choice(["logit", "probability", "rank"]),
    default="logit",
    show_default=True,
    help="Scale on which the members are combined; stacking uses log-odds.",
)
@click.option("--register", "register_as", help="Register the ensemble under this name.")
@click.option("--alias", help="Alias to move to the new version, such as champion.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
@with_settings("scorer.spec", "mlflow.url")
def train(
    settings: Settings,
    transactions: Path,
    labels: Path,
    out: Path,
    seed: int,
    name: str | None,
    review_rate: float | None,
    block_rate: float | None,
    calibrator: Any,
    combiner: Any,
    link: Any,
    register_as: str | None,
    alias: str | None,
    as_json: bool,
) -> None:
    """Train five members, fit calibrators and weights, and write an ensemble that a scorer can load."""
    from stream_scorer.train.dataset import read_training_set
    from stream_scorer.train.recipe import AlertRates, Recipe
    from stream_scorer.train.report import member_lines
    from stream_scorer.train.train import train_ensemble

    if (review_rate is None) != (block_rate is None):
        raise click.UsageError("Give both --review-rate and --block-rate, or neither.")
    if alias and not register_as:
        raise click.UsageError("--alias needs --register.")
    rates = None if review_rate is None or block_rate is None else AlertRates(review_rate, block_rate)
    recipe = Recipe(seed, name, rates, calibrator=calibrator, combiner=combiner, link=link)
    tracking_uri = settings.require("mlflow.url") if register_as else None
    # Features depend on which ids are equal, not on the ids: a key for this run is enough.
    spec = load_spec(settings.require("scorer.spec"), secrets.token_hex())
    with Progress("training", None, SystemClock()) as progress:
        data = read_training_set(transactions, labels, spec, progress.stage)
        progress.say(
            f"{len(data.label):,} transactions, {int(data.label.sum()):,} frauds; excluded: {data.immature:,} without "
            f"mature labels, {data.duplicates:,} duplicates, {data.refused:,} refused"
        )
        manifest = train_ensemble(data, spec, out, recipe, on_progress=progress.stage)
    version = None
    if register_as and tracking_uri:
        from stream_scorer.ensemble.registry import register

        version = register(out, register_as, tracking_uri, alias)
    lines = member_lines(out, spec)
    if as_json:
        registered = {"registered": register_as, "version": version, "alias": alias}
        click.echo(msgspec.json.encode({"out": str(out)} | registered | _report(manifest, lines)))
        return
    _print_members(manifest, lines)
    click.echo(f"wrote {out}")
    if version:
        click.echo(f"registered as {register_as}:{version}" + (f" ({register_as}@{alias})" if alias else ""))


def _report(manifest: Manifest, lines: list[MemberLine]) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "run_id": manifest.training.run_id,
        "rows": manifest.training.rows,
        "positives": manifest.training.positives,
        "thresholds": manifest.thresholds,
        "metrics": manifest.training.metrics["ensemble"],
        "members": [msgspec.to_builtins(line) for line in lines[:-1]],
        "microseconds": lines[-1].microseconds,
    }


def _print_members(manifest: Manifest, lines: list[MemberLine]) -> None:
    """Print a table of the members, with the whole ensemble in the last line."""
    rows = [
        (
            line.name, line.feature_set, str(line.inputs), f"{line.average_precision:.3f}",
            f"{line.roc_auc:.3f}", f"{line.log_loss:.4f}", f"{line.weight:.3f}", f"{line.microseconds:.2f}",
        )
        for line in lines
    ]  # fmt: skip
    headings = ("member", "features", "!inputs", "!AP", "!AUC", "!log loss", "!weight", "!µs/row")
    table = make_table(headings, rows[:-1], title=f"{manifest.name}, on the holdout")
    table.add_section()
    table.add_row(*rows[-1])
    print_table(table)
