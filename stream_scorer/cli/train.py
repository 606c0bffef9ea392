"""`stream-scorer train`: train an ensemble on labelled history, and optionally register it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from click.core import ParameterSource

from stream_scorer.cli.champion_alias import check_alias
from stream_scorer.cli.datasets import ensemble_dataset, history_datasets, registered_dataset
from stream_scorer.cli.history import history_options, read_history
from stream_scorer.cli.options import with_settings
from stream_scorer.cli.outputs import require_ensemble_name, require_writable
from stream_scorer.clock import SystemClock, build_clock
from stream_scorer.console import Progress, make_table, print_table
from stream_scorer.observability.openlineage import Dataset, file_dataset, lineage_run
from stream_scorer.settings import Settings
from stream_scorer.spec.load import load_spec
from stream_scorer.spec.training import CheckedTraining, check_training

if TYPE_CHECKING:
    from stream_scorer.ensemble.manifest import Manifest
    from stream_scorer.spec.model import CheckedSpec
    from stream_scorer.train.recipe import Recipe, TrainingSet
    from stream_scorer.train.report import MemberLine
    from stream_scorer.train.rows import Period


@click.command()
@history_options
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the ensemble.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Seed; the same data and seed give the same members.",
)
@click.option("--name", help="Name in the manifest.  [default: of --training, else of --register, else of the spec]")
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
@click.option(
    "--training",
    type=click.Path(path_type=Path),
    help="Training spec (docs/training.md), or `default`. It replaces the options of seed, "
    "calibrator, combiner, link and rates.",
)
@click.option(
    "--jobs",
    type=click.IntRange(0),
    default=0,
    help="Fits at a time, with --training.  [default: 0, as many as cores and memory allow]",
)
@click.option(
    "--keep",
    is_flag=True,
    help="Do not train if --out has the ensemble of the same history and specs; with --training.",
)
@click.option(
    "--save-set",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the training set with its features, for the rule leak of `stream-scorer gate`.",
)
@click.option("--register", "register_as", help="Register the ensemble under this name.")
@click.option("--alias", help="Alias to move to the new version, such as champion.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
@with_settings("scorer.spec", "mlflow.url", "kafka.bootstrap", "topics.prefix")
def train(
    settings: Settings,
    transactions: Path | None,
    labels: Path | None,
    from_topics: bool,
    period: Period,
    out: Path,
    seed: int,
    name: str | None,
    review_rate: float | None,
    block_rate: float | None,
    calibrator: Any,
    combiner: Any,
    link: Any,
    training: Path | None,
    jobs: int,
    keep: bool,
    save_set: Path | None,
    register_as: str | None,
    alias: str | None,
    as_json: bool,
) -> None:
    """Train members, fit calibrators and weights, and write an ensemble that a scorer can load.

    Trains five fixed members, or those of --training.
    """
    from stream_scorer.ensemble.registry import register
    from stream_scorer.train.recipe import AlertRates, Recipe
    from stream_scorer.train.report import member_lines

    if (review_rate is None) != (block_rate is None):
        raise click.UsageError("Give both --review-rate and --block-rate, or neither.")
    rates = None if review_rate is None or block_rate is None else AlertRates(review_rate, block_rate)
    _check_training_options(training, jobs, keep)
    require_ensemble_name(name)
    require_writable(out, save_set)
    tracking_uri = _check_registration(settings, register_as, alias)
    recipe = Recipe(seed, name or register_as, rates, calibrator=calibrator, combiner=combiner, link=link)
    # Features depend on which ids are equal, not on the ids: a key for this run is enough.
    spec = load_spec(settings.require("scorer.spec"), secrets.token_hex())
    how = recipe if training is None else _find_training(training, spec, name, register_as)
    _require_one_name(how, register_as)
    version = None
    with lineage_run("train", lambda: history_datasets(settings, transactions, labels)) as lineage:
        with Progress("training", None, SystemClock()) as progress:
            data = read_history(settings, spec, transactions, labels, from_topics, progress, period)
            manifest = _train(data, spec, out, how, jobs, progress, keep=keep)
            if save_set is not None:
                from stream_scorer.train.export import write_training_table

                write_training_table(data, spec, save_set)
        if register_as and tracking_uri:
            version = register(out, register_as, tracking_uri, alias)
        if lineage is not None:
            lineage.add(outputs=_outputs(settings, manifest, out, save_set, register_as))
    lines = member_lines(out, spec)
    if as_json:
        registered = {"registered": register_as, "version": version, "alias": alias}
        click.echo(msgspec.json.encode({"out": str(out)} | registered | _report(manifest, lines)))
        return
    _print_members(manifest, lines)
    click.echo(_alerts(manifest, how))
    click.echo(f"wrote {out}")
    if version:
        click.echo(f"registered as {register_as}:{version}" + (f" ({register_as}@{alias})" if alias else ""))


def _check_training_options(training: Path | None, jobs: int, keep: bool) -> None:
    """Refuse options that a training spec replaces, or that need one."""
    if training is None:
        if jobs:
            raise click.UsageError("--jobs needs --training.")
        if keep:
            raise click.UsageError("--keep needs --training.")
        return
    for option in ("seed", "calibrator", "combiner", "link", "review_rate", "block_rate"):
        if click.get_current_context().get_parameter_source(option) == ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{option.replace('_', '-')} is declared by the training spec: leave it out.")


def _check_registration(settings: Settings, register_as: str | None, alias: str | None) -> str | None:
    """The registry, None without --register. Refuses now what would be refused after the training."""
    from stream_scorer.ensemble.registry import check_registered_name

    if register_as is None:
        if alias:
            raise click.UsageError("--alias needs --register.")
        return None
    check_registered_name(register_as, alias)
    require_ensemble_name(register_as, "--register")
    registry: str = settings.require("mlflow.url")
    check_alias(settings, register_as, alias)
    return registry


def _find_training(path: Path, spec: CheckedSpec, name: str | None, register_as: str | None) -> CheckedTraining:
    """The training spec in `path`, with the name of the ensemble: `name`, else its own, else `register_as`."""
    from stream_scorer.train.defaults import find_training

    checked = find_training(path, spec)
    named = name or checked.spec.name or register_as
    return checked if named == checked.spec.name else check_training(msgspec.structs.replace(checked.spec, name=named))


def _require_one_name(how: Recipe | CheckedTraining, register_as: str | None) -> None:
    """Raise `click.UsageError` for an ensemble that cannot be registered: its manifest would have another name."""
    name = how.spec.name if isinstance(how, CheckedTraining) else how.name
    if register_as is not None and name != register_as:
        raise click.UsageError(
            f"--register {register_as}, but the ensemble is named {name} (--name, or the training spec): an ensemble "
            f"is registered under the name in its manifest. Give --name {register_as}, or --register {name}."
        )


def _outputs(
    settings: Settings, manifest: Manifest, out: Path, save_set: Path | None, register_as: str | None
) -> list[Dataset]:
    """What a training wrote."""
    from stream_scorer.ensemble.manifest import manifest_digest

    found = [ensemble_dataset(out, manifest)]
    found += [] if save_set is None else [file_dataset(save_set)]
    return found + ([registered_dataset(settings, register_as, manifest_digest(manifest))] if register_as else [])


def _train(
    data: TrainingSet,
    spec: CheckedSpec,
    out: Path,
    how: Recipe | CheckedTraining,
    jobs: int,
    progress: Progress,
    *,
    keep: bool,
) -> Manifest:
    from stream_scorer.train.from_spec import Options, find_equal, train_from_spec
    from stream_scorer.train.parallel import default_jobs
    from stream_scorer.train.train import train_ensemble

    clock = build_clock(os.environ)
    if isinstance(how, CheckedTraining):
        if keep and (kept := find_equal(data, spec, how, out)) is not None:
            progress.say(f"{out} has the ensemble of the same history and specs: kept")
            return kept
        options = Options(jobs or default_jobs(data.features.nbytes), progress.stage, clock)
        return train_from_spec(data, spec, how, out, options)
    return train_ensemble(data, spec, out, how, on_progress=progress.stage, clock=clock)


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


def _alerts(manifest: Manifest, how: Recipe | CheckedTraining) -> str:
    """The shares of held-out rows that reach the thresholds, with the targets that these were fitted to."""
    from stream_scorer.train.stack import alert_rates

    rates = alert_rates(how.spec) if isinstance(how, CheckedTraining) else how.alert_rates
    figures = manifest.training.metrics["ensemble"]
    shares = []
    for name, what in (("review", "reviewed or blocked"), ("block", "blocked")):
        target = "" if rates is None else f" (target {getattr(rates, name):.2%})"
        shares.append(f"{figures[f'{name}_alert_rate']:.2%} {what}{target}")
    return f"held-out rows: {', '.join(shares)}"


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
    table = make_table(headings, rows[:-1], title=f"{manifest.name}, on held-out rows")
    table.add_section()
    table.add_row(*rows[-1])
    print_table(table)
