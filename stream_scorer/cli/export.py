"""`stream-scorer features export`: features and labels of a history as one table, to train models elsewhere."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stream_scorer.cli.history import history_options, read_history
from stream_scorer.cli.options import with_settings
from stream_scorer.cli.outputs import require_writable
from stream_scorer.clock import SystemClock
from stream_scorer.console import Progress
from stream_scorer.settings import Settings

if TYPE_CHECKING:
    from stream_scorer.train.rows import Period


@click.command()
@history_options
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="Parquet file to write.")
@with_settings("scorer.spec", "kafka.bootstrap", "topics.prefix")
def export(
    settings: Settings,
    transactions: Path | None,
    labels: Path | None,
    from_topics: bool,
    period: Period,
    out: Path,
) -> None:
    """Write features and labels of a history to a Parquet file, to train your own models on (docs/own-models.md).

    One row per transaction, by event time: event_id, event_time, label (1 is fraud), and the features of the spec, as
    the scorer computes them. Duplicates, and transactions without mature labels, are left out.
    """
    from stream_scorer.spec.load import load_spec
    from stream_scorer.train.export import write_training_table

    require_writable(out)
    # Features depend on which ids are equal, not on the ids: a key for this run is enough.
    spec = load_spec(settings.require("scorer.spec"), secrets.token_hex())
    with Progress("reading history", None, SystemClock()) as progress:
        data = read_history(settings, spec, transactions, labels, from_topics, progress, period)
    write_training_table(data, spec, out)
    click.echo(f"wrote {out}: {len(data.label):,} rows, {len(data.names)} features")
