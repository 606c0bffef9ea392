"""`stream-scorer monitor`: the label joiner and the side stream."""

from __future__ import annotations

from pathlib import Path

import click

from stream_scorer.cli.options import with_settings
from stream_scorer.settings import Settings


@click.command()
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".stream-scorer/monitor"),
    show_default=True,
    help="Folder of the label joiner's store. One monitor a folder.",
)
@click.option("--monitor-group", default="stream-scorer-monitor", show_default=True, help="Consumer group.")
@click.option("--monitor-instance", default="monitor-1", show_default=True, help="Stable name, unique in its group.")
@click.option(
    "--joiner/--no-joiner",
    default=True,
    show_default=True,
    help="Join labels in this worker. Exactly one worker of a group does.",
)
@click.option(
    "--namespace", default="", help="Prefix of the counters in Redis; made from group and topic if not given."
)
@click.option(
    "--window",
    "windows",
    type=click.IntRange(1, 1024),
    multiple=True,
    default=(1, 24),
    show_default=True,
    help="Length of a window in panes; may be repeated.",
)
@click.option("--idle-after", default=30.0, show_default=True, help="Seconds after which a silent partition is idle.")
@click.option("--emit-every", default=1.0, show_default=True, help="Seconds between two looks at what changed.")
@click.option(
    "--unreported-cap",
    type=click.FloatRange(0, 1),
    default=0.02,
    show_default=True,
    help="Assumed: probability at most that a silent approved transaction is fraud.",
)
@click.option(
    "--reviewer-miss",
    type=click.FloatRange(0, 0.5),
    default=0.05,
    show_default=True,
    help="Assumed: probability at most that a reviewer calls fraud genuine.",
)
@click.option(
    "--reviewer-false",
    type=click.FloatRange(0, 0.5),
    default=0.01,
    show_default=True,
    help="Assumed: probability at most that a reviewer calls a genuine transaction fraud.",
)
@with_settings(
    "kafka.bootstrap",
    "redis.url",
    "mlflow.url",
    "topics.prefix",
    "scorer.spec",
    "scorer.ensemble",
    "monitor.mode",
    "monitor.probation",
    "monitor.cooldown_s",
    "cache.dir",
    "metrics.host",
    "metrics.port",
)
def monitor(
    settings: Settings,
    state_dir: Path,
    monitor_group: str,
    monitor_instance: str,
    joiner: bool,
    namespace: str,
    windows: tuple[int, ...],
    idle_after: float,
    emit_every: float,
    unreported_cap: float,
    reviewer_miss: float,
    reviewer_false: float,
) -> None:
    """Watch alert rates, drift and false positives in event-time windows, until SIGTERM.

    Reads `scores`, `labels` and `score-summaries`; writes `outcomes` and `monitor-metrics`. It also watches versions on
    probation and canaries (`monitor.mode`, docs/control.md), and in mode `auto` gives commands on `control`.
    """
    from stream_scorer.app import watching
    from stream_scorer.clock import SystemClock
    from stream_scorer.control.watch import WATCH_METRICS
    from stream_scorer.monitor.metrics import MONITOR_METRICS
    from stream_scorer.monitor.rates import Assumptions
    from stream_scorer.monitor.reference import EnsembleReferences
    from stream_scorer.monitor.service import MonitorSettings, run_monitor
    from stream_scorer.observability.metrics import Metrics
    from stream_scorer.spec import load_spec

    clock = SystemClock()
    references = EnsembleReferences(settings["mlflow.url"] or None, Path(settings["cache.dir"]).expanduser(), clock)
    # Versions seen later come from the registry by themselves; without one, the folder named here is all there is.
    if settings.source("scorer.ensemble") != "default":
        name, version = references.add(settings["scorer.ensemble"])
        click.echo(f"reference profile of {name} {version}", err=True)
    metrics = Metrics((*MONITOR_METRICS, *WATCH_METRICS))
    with watching(settings, metrics, monitor_instance):
        run_monitor(
            MonitorSettings(
                bootstrap=settings.require("kafka.bootstrap"),
                redis=settings.require("redis.url"),
                state_dir=state_dir,
                topic_prefix=settings["topics.prefix"],
                group=monitor_group,
                instance=monitor_instance,
                namespace=namespace,
                joins=joiner,
                window_panes=tuple(sorted({1, *windows})),
                idle_s=idle_after,
                emit_every_s=emit_every,
                metrics_host=settings["metrics.host"],
                metrics_port=settings["metrics.port"] if settings["metrics.port"] >= 0 else None,
                assumed=Assumptions(unreported_cap, reviewer_miss, reviewer_false),
            ),
            load_spec(settings.require("scorer.spec")),
            references,
            clock,
            metrics,
            on_ready=lambda what: click.echo(f"monitoring; {what}", err=True),
        )
