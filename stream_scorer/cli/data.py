"""`stream-scorer data`: convert a CSV file to a spec, to training files, and to records on the topics."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from pathlib import Path

import click

from stream_scorer.cli.groups import CommandGroup
from stream_scorer.cli.options import with_settings
from stream_scorer.clock import SystemClock
from stream_scorer.data.convert import Converted, Interpretation, convert
from stream_scorer.data.csv_file import read_csv, spec_name_of
from stream_scorer.data.draft import Roles, draft_spec
from stream_scorer.errors import UsageError
from stream_scorer.settings import Settings
from stream_scorer.spec import load_spec
from stream_scorer.spec.model import duration_ms

_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)
_ENCODING = click.option("--encoding", default="utf-8", show_default=True, help="Encoding of CSV, such as cp1252.")
_DELIMITER = click.option(
    "--delimiter",
    default=",",
    show_default=True,
    callback=lambda _context, _option, text: _delimiter(text),
    help="Character between the cells of CSV, or `tab`.",
)


@click.group(cls=CommandGroup)
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
@_ENCODING
@_DELIMITER
@click.option("--out", type=_FILE, help="File for the spec.  [default: standard output]")
def draft(
    csv: Path,
    time_column: str,
    value_column: str,
    id_column: str | None,
    label: str | None,
    entities: tuple[str, ...],
    name: str | None,
    encoding: str,
    delimiter: str,
    out: Path | None,
) -> None:
    """Draft a pipeline spec for CSV: each column becomes a field, each number and category a feature."""
    pairs = dict(_pair(entity) for entity in entities)
    roles = Roles(time_column, value_column, id_column, label, pairs)
    text = draft_spec(read_csv(csv, encoding, delimiter), roles, spec_name_of(name or csv.stem))
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror}") from None
    click.echo(f"{out}: {len(load_spec(out).features)} features. Review and adjust it before use.", err=True)


@data.command("convert")
@click.argument("csv", type=_FILE)
@click.option("--out", type=_FOLDER, required=True, help="Folder for transactions.parquet and labels.parquet.")
@click.option("--label", help="Column with the fraud label; without it, no labels are written.")
@click.option("--fraud", default="1", show_default=True, help="Value of that column for fraud.")
@click.option("--start", type=click.DateTime(["%Y-%m-%d"]), help="Day of second 0 (UTC), if the time column holds "
              "seconds; 1970-01-01 for Unix time.  [default: 2024-01-01, for less than 10,000,000 s]")  # fmt: skip
@click.option("--minor-units", metavar="N|CODE=N,...", help="Minor units per unit of the value, or of each currency of "
              "the spec: EUR=100,JPY=1.  [default: 100 if the values have decimals]")  # fmt: skip
@_ENCODING
@_DELIMITER
@click.option("--label-delay", help="Time between a transaction and its label.  [default: labels.horizon of the spec]")
@with_settings("scorer.spec")
def convert_command(
    settings: Settings,
    csv: Path,
    out: Path,
    label: str | None,
    fraud: str,
    start: datetime | None,
    minor_units: str | None,
    label_delay: str | None,
    encoding: str,
    delimiter: str,
) -> None:
    """Convert CSV to the Parquet files that `train` and `replay` read."""
    checked = load_spec(settings.require("scorer.spec"))
    start_ms = None if start is None else int(start.replace(tzinfo=UTC).timestamp() * 1_000)
    delay = None if label_delay is None else _duration(label_delay)
    interpretation = Interpretation(label, fraud, start_ms, _units(minor_units), delay)
    written = convert(read_csv(csv, encoding, delimiter), checked, interpretation, out)
    _report(written)


def _report(written: Converted) -> None:
    click.echo(f"{written.transactions:,} transactions, {written.labels:,} labels, {written.frauds:,} of them fraud")
    if written.unlabelled:
        click.echo(f"{written.unlabelled:,} transactions have no label, because the cell is empty")
    if written.repeated_ids:
        click.echo(
            f"warning: {written.repeated_ids:,} ids occur in several rows: labels name transactions by their id and "
            "can reach the wrong ones, and a repeated id of one entity counts as a duplicate",
            err=True,
        )
    click.echo(f"times {_utc(written.first_ms)} … {_utc(written.last_ms)} UTC")
    for amounts in written.amounts:
        of = f" ({amounts.currency})" if amounts.currency else ""
        units = f"{amounts.low_units} … {amounts.high_units}"
        click.echo(f"amounts {amounts.low} … {amounts.high}{of} became {units}")


def _utc(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1_000, UTC):%Y-%m-%d %H:%M:%S}"


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
    from stream_scorer.kafka.open_loop import OpenLoopProducer, Schedule
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


def _units(text: str | None) -> int | dict[str, int] | None:
    if text is None:
        return None
    found = dict(re.findall(r"(?:^|,)(?:([^,=]+)=)?([1-9][0-9]{0,8})(?=,|$)", text))
    given = {code: int(number) for code, number in found.items()}
    if len(given) != text.count(",") + 1 or ("" in given and len(given) > 1):
        raise click.BadParameter(f"{text!r} is neither a number nor CODE=NUMBER,...", param_hint="--minor-units")
    return given.get("", given)


def _delimiter(text: str) -> str:
    character = "\t" if text in ("tab", "\\t") else text
    if len(character) != 1 or character in '\r\n"':
        raise click.BadParameter(f"{text!r} is not one character", param_hint="--delimiter")
    return character


def _duration(text: str) -> int:
    try:
        return duration_ms(text)
    except AttributeError:
        raise click.BadParameter(
            f"{text!r} is not a duration (such as 7d or 12h)", param_hint="--label-delay"
        ) from None
