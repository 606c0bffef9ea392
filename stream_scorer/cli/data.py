"""`stream-scorer data`: convert a CSV file to a spec, to training files, and to records on the topics."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import click

from stream_scorer.cli.options import with_settings
from stream_scorer.clock import SystemClock
from stream_scorer.data.convert import Interpretation, convert
from stream_scorer.data.csv_file import read_csv, spec_name_of
from stream_scorer.data.draft import Roles, draft_spec
from stream_scorer.settings import Settings
from stream_scorer.spec import load_spec
from stream_scorer.spec.model import duration_ms

_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.group()
def data() -> None:
    """Use your own data: draft a spec from a CSV file, convert it for training, publish it to the topics."""


@data.command("draft")
@click.argument("csv", type=_FILE)
@click.option("--time", "time_column", required=True, help="Column with the time: a timestamp, or seconds.")
@click.option("--value", "value_column", required=True, help="Column with the amount.")
@click.option("--id", "id_column", help="Column with the transaction id.  [default: the row number]")
@click.option("--label", help="Column with the fraud label; it does not become a feature.")
@click.option("--entity", "entities", multiple=True, metavar="NAME=COLUMN", help="An entity and its id column; the "
              "first entity is the record key.")  # fmt: skip
@click.option("--name", help="Name of the spec.  [default: the name of the file]")
@click.option("--out", type=_FILE, help="File for the spec.  [default: standard output]")
def draft(
    csv: Path,
    time_column: str,
    value_column: str,
    id_column: str | None,
    label: str | None,
    entities: tuple[str, ...],
    name: str | None,
    out: Path | None,
) -> None:
    """Draft a pipeline spec for CSV: each column becomes a field, each number and category a feature."""
    pairs = dict(_pair(entity) for entity in entities)
    roles = Roles(time_column, value_column, id_column, label, pairs)
    text = draft_spec(read_csv(csv), roles, spec_name_of(name or csv.stem))
    if out is None:
        click.echo(text, nl=False)
        return
    out.write_text(text)
    click.echo(f"{out}: {len(load_spec(out).features)} features. Review and adjust it before use.", err=True)


@data.command("convert")
@click.argument("csv", type=_FILE)
@click.option("--out", type=_FOLDER, required=True, help="Folder for transactions.parquet and labels.parquet.")
@click.option("--label", help="Column with the fraud label; without it, no labels are written.")
@click.option("--fraud", default="1", show_default=True, help="Value of that column for fraud.")
@click.option("--start", type=click.DateTime(["%Y-%m-%d"]), default="2024-01-01", show_default=True,
              help="Day of second 0 (UTC), if the time column holds seconds.")  # fmt: skip
@click.option(
    "--minor-units", type=click.IntRange(1), default=100, show_default=True, help="Minor units per currency unit."
)
@click.option("--label-delay", default="0s", show_default=True, help="Time between a transaction and its label.")
@with_settings("scorer.spec")
def convert_command(
    settings: Settings,
    csv: Path,
    out: Path,
    label: str | None,
    fraud: str,
    start: datetime,
    minor_units: int,
    label_delay: str,
) -> None:
    """Convert CSV to the Parquet files that `train` and `replay` read."""
    checked = load_spec(settings.require("scorer.spec"))
    start_ms = int(start.replace(tzinfo=UTC).timestamp() * 1_000)
    interpretation = Interpretation(label, fraud, start_ms, minor_units, _duration(label_delay))
    written = convert(read_csv(csv), checked, interpretation, out)
    click.echo(f"{written.transactions:,} transactions, {written.labels:,} labels, {written.frauds:,} of them fraud")


@data.command("publish")
@click.option("--transactions", type=_FILE, help="Parquet file of transactions.")
@click.option("--labels", type=_FILE, help="Parquet file of labels.")
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), help="Records per second.  [default: as fast as possible]"
)
@with_settings("kafka.bootstrap", "topics.prefix", "scorer.spec")
def publish_command(settings: Settings, transactions: Path | None, labels: Path | None, rate: float | None) -> None:
    """Publish labels, then transactions, to their topics."""
    from stream_scorer.console import Progress
    from stream_scorer.data.publish import publish_file
    from stream_scorer.kafka.load import OpenLoopProducer, Schedule
    from stream_scorer.kafka.topics import Topics

    if transactions is None and labels is None:
        raise click.UsageError("Give --transactions, --labels, or both.")
    checked, bootstrap = load_spec(settings.require("scorer.spec")), settings.require("kafka.bootstrap")
    topics = Topics.of(settings)
    clock = SystemClock()
    with OpenLoopProducer(bootstrap, client_id="data", clock=clock, sleep=time.sleep) as producer:
        for path, are_labels in ((labels, True), (transactions, False)):
            if path is None:
                continue
            topic = topics.labels if are_labels else topics.transactions
            schedule = None if rate is None else Schedule(rate, clock)
            with Progress(f"publishing to {topic}", None, clock) as progress:
                sent = publish_file(
                    path, checked, producer, topics, labels=are_labels, schedule=schedule, on_progress=progress
                )
                producer.flush()
            click.echo(f"{topic}\t{sent:,} records")


def _pair(text: str) -> tuple[str, str]:
    name, equals, column = text.partition("=")
    if not equals or not name or not column:
        raise click.BadParameter(f"{text!r} is not NAME=COLUMN", param_hint="--entity")
    return spec_name_of(name), column


def _duration(text: str) -> int:
    try:
        return duration_ms(text)
    except AttributeError:
        raise click.BadParameter(
            f"{text!r} is not a duration (such as 7d or 12h)", param_hint="--label-delay"
        ) from None
