"""`stream-scorer ensemble compose`: an ensemble of models that were trained elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from stream_scorer.cli.history import history_options, read_history
from stream_scorer.cli.options import with_settings
from stream_scorer.cli.outputs import require_writable
from stream_scorer.clock import SystemClock
from stream_scorer.console import Progress, make_table, print_table
from stream_scorer.settings import Settings

if TYPE_CHECKING:
    from stream_scorer.train.own.report import ComposeReport, MemberReport
    from stream_scorer.train.rows import Period


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the ensemble.")
@history_options
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
@with_settings("scorer.spec", "scorer.batch", "kafka.bootstrap", "topics.prefix")
def compose(
    settings: Settings,
    file: Path,
    out: Path,
    transactions: Path | None,
    labels: Path | None,
    from_topics: bool,
    period: Period,
    as_json: bool,
) -> None:
    """Compose an ensemble of models that were trained elsewhere, as FILE (YAML, docs/own-models.md) describes.

    Checks every model, fits the calibrators, weights and thresholds that FILE does not give, on labelled history, and
    writes a folder for `ensemble register`. The flags of the history replace `history` in FILE.
    """
    from stream_scorer.spec.load import load_spec
    from stream_scorer.train.own.compose import Limits, compose_models, load_models
    from stream_scorer.train.own.document import HistoryNode, read_compose_file

    require_writable(out)
    described = read_compose_file(file)
    history = described.document.history or HistoryNode()
    if transactions is None and not from_topics:
        transactions = described.find(history.transactions) if history.transactions else None
        labels = labels or (described.find(history.labels) if history.labels else None)
        from_topics = history.topics
    # Wrong models fail before the history is read, which takes longest.
    spec = load_spec(settings.require("scorer.spec"), _key())
    models = load_models(described, spec)
    limits = Limits(settings["scorer.batch"], float(settings["scorer.member_timeout_ms"]))
    with Progress("reading history", None, SystemClock()) as progress:
        data = read_history(settings, spec, transactions, labels, from_topics, progress, period)
        report = compose_models(
            described, models, data, spec, out, limits=limits, clock=SystemClock(), on_progress=progress.stage
        )
    if as_json:
        click.echo(msgspec.json.encode(report))
    else:
        _print(report, limits.batch)


def _key() -> str:
    """A key for this run: features depend on which ids are equal, not on the ids."""
    import secrets

    return secrets.token_hex()


def _print(report: ComposeReport, batch: int) -> None:
    headings = ("member", "format", "!inputs", "!MB", "calibrator", "!weight", "!AP", "!AUC", f"!ms/{batch}")
    rows = [_row(member) for member in report.members]
    print_table(make_table(headings, rows, title=f"{report.name}: {report.formula}"))
    for member in report.members:
        click.echo(f"{member.name}: {member.file}, sha256 {member.sha256[:12]}")
        for note in member.notes:
            click.echo(f"  {note}")
        for found in member.agreements:
            click.echo(
                f"  equals {found.source} on {found.rows} rows to {found.difference:.1g} (limit {found.tolerance:g})"
            )
    if report.fitted:
        click.echo(f"fitted on history: {', '.join(report.fitted)}")
    click.echo(
        f"{report.rows:,} transactions with {report.positives:,} frauds"
        + (f", of which the last {report.holdout:,} give the metrics only" if report.fitted else "")
        + (f"; {report.immature:,} younger than the label horizon are left out" if report.immature else "")
    )
    for name, value in report.metrics.items():
        click.echo(f"{name.replace('_', ' '):28} {value:.4f}")
    click.echo(f"wrote {report.out}")


def _row(member: MemberReport) -> tuple[str, ...]:
    return (
        member.name, member.file_format, str(member.inputs), f"{member.size / 1e6:.2f}", member.calibrator,
        f"{member.weight:.3f}", _figure(member.average_precision), _figure(member.roc_auc), f"{member.batch_ms:.2f}",
    )  # fmt: skip


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
