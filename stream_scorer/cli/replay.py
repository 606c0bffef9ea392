"""`stream-scorer replay`: score history with the stages of the scorer, into files."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from stream_scorer.cli.input_range import check_input, input_options, period
from stream_scorer.cli.options import with_settings
from stream_scorer.errors import CheckFailed
from stream_scorer.settings import Settings

if TYPE_CHECKING:
    from stream_scorer.replay.report import ReplayReport


@click.command()
@input_options
@click.option("--as-served", is_flag=True, help="Use the micro-batches and label positions that the scorer recorded.")
@click.option(
    "--compare", is_flag=True, help="Compare the result with the published records; exit code 3 if it differs."
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the files.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
@with_settings(
    "kafka.bootstrap",
    "mlflow.url",
    "topics.prefix",
    "scorer.spec",
    "scorer.id_key",
    "scorer.ensemble",
    "scorer.batch",
    "cache.dir",
)
def replay(
    settings: Settings,
    from_topics: bool,
    transactions: Path | None,
    labels: Path | None,
    start: str | None,
    end: str | None,
    warm: bool,
    as_served: bool,
    compare: bool,
    out: Path,
    as_json: bool,
) -> None:
    """Score history again: write scores, contributions and lineage to Parquet, and evaluate them against the labels.

    Runs the code of the scorer with rows in memory; changes nothing live. The same input, spec and ensemble give the
    same canonical bytes for every --batch.
    """
    _check_usage(from_topics, transactions, labels, as_served or compare, as_served and bool(start or end or warm))
    scored = period(start, end, offsets_allowed=from_topics)

    from stream_scorer.app import load_serving_ensemble
    from stream_scorer.clock import SystemClock
    from stream_scorer.console import Progress
    from stream_scorer.kafka.range_reader import RangeReader
    from stream_scorer.kafka.topics import TopicAdmin, Topics
    from stream_scorer.replay import sources
    from stream_scorer.replay.compare import Comparison, served_records
    from stream_scorer.replay.job import replay as run
    from stream_scorer.spec import load_spec

    checked = load_spec(settings.require("scorer.spec"), settings["scorer.id_key"])
    topics, batch, clock = Topics.of(settings), settings["scorer.batch"], SystemClock()
    with ExitStack() as stack:
        comparison = None
        if transactions is None:
            bootstrap = settings.require("kafka.bootstrap")
            needed = [topics.transactions, topics.labels]
            needed += [topics.scores, topics.contributions, topics.lineage] if as_served or compare else []
            TopicAdmin(bootstrap).require(needed, same_count=False)
            ensemble = load_serving_ensemble(settings, checked)
            reader = stack.enter_context(RangeReader(bootstrap, client_id="stream-scorer-replay"))
            source = (
                sources.as_served(reader, topics, checked, batch)
                if as_served
                else sources.from_topics(reader, topics, checked, scored, batch, warm=warm)
            )
            if compare:
                comparison = Comparison(served_records(reader, topics), checked.features, topics.transactions)
        else:
            source = sources.from_files(transactions, labels, topics, checked, scored, batch, warm=warm)
            ensemble = load_serving_ensemble(settings, checked)
        progress = stack.enter_context(Progress("replaying", source.total, clock))
        report = run(source, checked, ensemble, topics, out, clock, comparison=comparison, on_progress=progress)
    _show(report, as_json)
    if report.first_difference is not None:
        raise CheckFailed(f"the replay differs from the published records: {report.first_difference}")
    if report.compared == 0:
        raise CheckFailed("nothing to compare: the range contains no published score with complete features")


def _check_usage(
    from_topics: bool, transactions: Path | None, labels: Path | None, needs_topics: bool, as_served_in_part: bool
) -> None:
    """Raises `click.UsageError` if the flags contradict each other."""
    check_input(from_topics, transactions, labels)
    if needs_topics and not from_topics:
        raise click.UsageError("--as-served and --compare require --from-topics.")
    if as_served_in_part:
        raise click.UsageError("--as-served replays every published score: do not give --start, --end or --warm.")


def _show(report: ReplayReport, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(report).decode())
        return
    from stream_scorer.console import make_table, print_table
    from stream_scorer.replay.report import HEADINGS, summary_lines, table_rows

    for line in summary_lines(report):
        click.echo(line)
    if report.quality is not None:
        *members, ensemble = table_rows(report.quality)
        table = make_table([f"!{heading}" if heading else "" for heading in HEADINGS], members)
        table.add_section()
        table.add_row(*ensemble)
        print_table(table)
    click.echo(f"wrote {report.out}")
