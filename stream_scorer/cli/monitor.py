"""`stream-scorer monitor`: the label joiner and the side stream."""

from __future__ import annotations

from pathlib import Path

import click

from stream_scorer.cli.options import with_settings
from stream_scorer.settings import Settings


@click.command()
@with_settings(
    "kafka.bootstrap",
    "redis.url",
    "mlflow.url",
    "topics.prefix",
    "scorer.spec",
    "scorer.ensemble",
    "monitor.mode",
    "monitor.probation",
    "monitor.max_rise",
    "monitor.max_fall",
    "monitor.grace_s",
    "monitor.cooldown_s",
    "monitor.max_latency_ms",
    "monitor.max_errors",
    "monitor.max_dead_letters",
    "monitor.feed_silent_s",
    "monitor.feed_late_s",
    "monitor.labels_silent_s",
    "monitor.webhook_url",
    "monitor.state_dir",
    "monitor.group",
    "monitor.instance",
    "monitor.joiner",
    "monitor.namespace",
    "monitor.windows",
    "monitor.idle_after_s",
    "monitor.emit_every_s",
    "monitor.max_outage_s",
    "monitor.unreported_cap",
    "monitor.reviewer_miss",
    "monitor.reviewer_false",
    "monitor.false_alarms_per_year",
    "cache.dir",
    "metrics.host",
    "metrics.port",
)
def monitor(settings: Settings) -> None:
    """Watch alert rates, drift and false positives in event-time windows, until SIGTERM.

    Reads `scores`, `labels` and `score-summaries`; writes `outcomes` and `monitor-metrics`. Also watches versions on
    probation and canaries (`monitor.mode`, docs/probation.md), and in mode `auto` issues commands on `control`. Writes
    incidents of every kind to `incidents` (docs/incidents.md).
    """
    from stream_scorer.app import cleaning_cache, mirroring_aliases, signals_run, watch_run, webhook_run
    from stream_scorer.clock import SystemClock
    from stream_scorer.control.watch import WATCH_METRICS
    from stream_scorer.incidents.signals import INCIDENT_METRICS
    from stream_scorer.incidents.webhook import WEBHOOK_METRICS
    from stream_scorer.monitor.drift_incidents import DriftBoard
    from stream_scorer.monitor.metrics import MONITOR_METRICS
    from stream_scorer.monitor.reference import EnsembleReferences
    from stream_scorer.monitor.service import IncidentParts, MonitorSettings, run_monitor
    from stream_scorer.observability.metrics import Metrics
    from stream_scorer.spec import load_spec
    from stream_scorer.spec.model import duration_ms

    settings.group("monitor.group")  # refuses one that another installation may use
    of_folder = Path(settings["scorer.ensemble"]).is_dir()
    settings.refuse_mixed("kafka.bootstrap", "redis.url", *(() if of_folder else ("mlflow.url",)))
    clock = SystemClock()
    references = EnsembleReferences(
        settings["mlflow.url"] or None,
        Path(settings["cache.dir"]).expanduser(),
        clock,
        # The registry supplies the profiles of later versions. Without a registry, only this one is available.
        initial=settings["scorer.ensemble"] if settings.source("scorer.ensemble") != "default" else "",
    )
    if of_folder:
        references.load_initial()  # a folder needs no service, so a mistake in it ends the command
    metrics = Metrics((*MONITOR_METRICS, *WATCH_METRICS, *INCIDENT_METRICS, *WEBHOOK_METRICS))
    checked = load_spec(settings.require("scorer.spec"))
    label_age_ms = duration_ms(checked.spec.labels.horizon)
    watch = watch_run(settings, metrics, settings["monitor.instance"], label_age_ms)
    board = DriftBoard()
    more = {"signals": signals_run(settings, metrics, board.findings), "webhook": webhook_run(settings, metrics)}
    with mirroring_aliases(settings), cleaning_cache(settings):
        run_monitor(
            MonitorSettings.of(settings),
            checked,
            references,
            clock,
            metrics,
            watch=watch,
            incidents=IncidentParts({name: run for name, run in more.items() if run is not None}, board.publish),
            on_ready=lambda summary: click.echo(f"monitoring; {summary}", err=True),
        )
