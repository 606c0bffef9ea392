"""`stream-scorer explain`: explain the score of one transaction."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from stream_scorer.cli.decided import archive_option, open_decided
from stream_scorer.cli.options import with_settings
from stream_scorer.errors import CheckFailed
from stream_scorer.settings import Settings


@click.command()
@click.argument("event_id")
@click.option(
    "--features", type=click.IntRange(0, 100), default=5, show_default=True, help="Number of inputs shown per member."
)
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Also write an HTML page to this file.")
@click.option(
    "--png", type=click.Path(path_type=Path, dir_okay=False), help="Also write the waterfall as a picture to this file."
)
@archive_option
@click.option("--json", "as_json", is_flag=True, help="The explanation as JSON.")
@with_settings("kafka.bootstrap", "mlflow.url", "topics.prefix", "scorer.ensemble", "cache.dir")
def explain(
    settings: Settings,
    event_id: str,
    features: int,
    html: Path | None,
    png: Path | None,
    archive: Path | None,
    as_json: bool,
) -> None:
    """Explain the score of EVENT_ID: from base to z member by member, and the strongest inputs of each member.

    Uses the published records and the version that they name. Exit code 3 if a member computes another score now.
    """
    from stream_scorer.clock import SystemClock
    from stream_scorer.console import Progress
    from stream_scorer.ensemble.ensemble import SELF_TEST_TOLERANCE, Ensemble
    from stream_scorer.replay.explain import explain as explain_score
    from stream_scorer.replay.explain import find_event
    from stream_scorer.reports.event import as_text, write_page, write_picture

    with open_decided(settings, archive, "stream-scorer-explain") as decided:
        reader, topics = decided.reader, decided.topics
        bounds = [*reader.bounds(topics.scores).values(), *reader.bounds(topics.contributions).values()]
        with Progress("searching the records", sum(high - low for low, high in bounds), SystemClock()) as progress:
            score, contribution, lineage, copies = find_event(reader, topics, event_id, progress)
        folder = decided.folder_of(lineage.ensemble, lineage.version, lineage.manifest_sha256)
    ensemble = Ensemble.load(folder, version=lineage.version)
    found = explain_score(score, contribution, lineage, copies, ensemble, folder, SELF_TEST_TOLERANCE, features)
    click.echo(msgspec.json.encode(found).decode() if as_json else as_text(found))
    if html is not None:
        write_page(found, html)
    if png is not None:
        write_picture(found, png)
    if not found.same:
        raise CheckFailed("a member computes another score than recorded: `stream-scorer verify` counts such scores")
