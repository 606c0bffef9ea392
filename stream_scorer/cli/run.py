"""`stream-scorer run`: the scorer."""

from __future__ import annotations

import click

from stream_scorer.cli.options import with_settings
from stream_scorer.settings import Settings


@click.command()
@click.option("--passthrough", is_flag=True, help="Score nothing: copy every transaction to `scores`, exactly once.")
@with_settings(
    "kafka.bootstrap",
    "redis.url",
    "mlflow.url",
    "topics.prefix",
    "scorer.spec",
    "scorer.ensemble",
    "scorer.group",
    "scorer.instance",
    "scorer.start",
    "scorer.batch",
    "scorer.pace_ms",
    "cache.dir",
    "metrics.host",
    "metrics.port",
)
def run(settings: Settings, passthrough: bool) -> None:
    """Score transactions until SIGTERM: read, enrich, score, publish, commit, apply."""
    from stream_scorer.app import make_passthrough, make_scorer, run_processor

    run_processor(settings, make_passthrough if passthrough else make_scorer)
