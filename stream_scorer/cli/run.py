"""`stream-scorer run`: the scorer."""

from __future__ import annotations

import faulthandler
import signal
import sys

import click

from stream_scorer.cli.init_process import leave_process_one
from stream_scorer.cli.options import with_settings
from stream_scorer.settings import Settings


@click.command()
@click.option("--passthrough", is_flag=True, help="Copy every transaction to `scores`, exactly once, without scoring.")
@with_settings(
    "kafka.bootstrap",
    "redis.url",
    "redis.shards",
    "redis.cluster",
    "mlflow.url",
    "topics.prefix",
    "scorer.spec",
    "scorer.id_key",
    "scorer.ensemble",
    "scorer.group",
    "scorer.instance",
    "scorer.start",
    "scorer.batch",
    "scorer.pace_ms",
    "scorer.member_threads",
    "scorer.member_timeout_ms",
    "scorer.watchdog_timeout_s",
    "scorer.explain_alerts",
    "cache.dir",
    "metrics.host",
    "metrics.port",
)
def run(settings: Settings, passthrough: bool) -> None:
    """Score transactions until SIGTERM: read, enrich, score, publish, commit, apply.

    SIGUSR1 prints all stack traces.
    """
    if not passthrough:  # the registry only if the ensemble is not a folder: its look-up refuses
        settings.refuse_mixed("kafka.bootstrap", "redis.url")
    settings.group("scorer.group")  # refuses one that another installation may use
    leave_process_one()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    # Imports and start take seconds, or as long as a broker is away. A SIGTERM during that time is an orderly stop too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    from stream_scorer import app

    app.run_processor(settings, app.passthrough if passthrough else app.scorer)
