"""`stream-scorer simulate`: simulated card transactions with fraud, to Kafka at a rate or to Parquet files."""

from __future__ import annotations

import json
import signal
from datetime import UTC, datetime
from pathlib import Path

import click

from stream_scorer.cli.options import resolve_settings
from stream_scorer.clock import Clock, SystemClock
from stream_scorer.console import Progress
from stream_scorer.simulate import LabellerConfig, SimulationConfig
from stream_scorer.simulate.config import DEFAULT_START_MS
from stream_scorer.simulate.export import ExportReport, export
from stream_scorer.simulate.generate import generate_days
from stream_scorer.simulate.labeller import Labeller
from stream_scorer.simulate.live import LiveConfig, LiveReport, LiveTraffic


@click.command()
@click.option(
    "--transactions", type=click.IntRange(1), help="Number of transactions, fraud included.  [default: 100000]"
)
@click.option("--days", type=click.IntRange(1), help="Stop after this number of days of event time.")
@click.option(
    "--seed", type=click.IntRange(0), default=1, show_default=True, help="Seed; the same seed gives the same data."
)
@click.option("--customers", type=click.IntRange(1), default=5_000, show_default=True, help="Number of customers.")
@click.option("--terminals", type=click.IntRange(10), default=1_000, show_default=True, help="Number of terminals.")
@click.option(
    "--start",
    type=click.DateTime(["%Y-%m-%d"]),
    help="First day of event time (UTC).  [default: with --bootstrap, the data end today; else 2025-01-06]",
)
@click.option("--bootstrap", help="Kafka brokers that receive live traffic.")
@click.option("--topic-prefix", help="Prefix of every topic name.  [default: the setting topics.prefix]")
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), help="Transactions per second.  [default: as fast as possible]"
)
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), help="With --bootstrap: stop after this number of seconds."
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Write Parquet files to this directory.")
@click.option("--truth", type=click.Path(path_type=Path, dir_okay=False), help="File for the ground truth (Parquet).")
@click.option(
    "--labels/--no-labels", default=True, show_default=True, help="Also write labels; live labels follow the alerts."
)
@click.option(
    "--capacity",
    type=click.IntRange(0),
    default=30,
    show_default=True,
    help="Labels by analysts per hour of event time.",
)
@click.option(
    "--duplicates", type=click.FloatRange(0, 1), default=0.0, help="Share of transactions that are sent twice."
)
@click.option("--garbage", type=click.FloatRange(0, 1), default=0.0, help="Share of invalid records.")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
def simulate(
    transactions: int | None,
    days: int | None,
    seed: int,
    customers: int,
    terminals: int,
    start: datetime | None,
    bootstrap: str | None,
    topic_prefix: str | None,
    rate: float | None,
    seconds: float | None,
    out: Path | None,
    truth: Path | None,
    labels: bool,
    capacity: int,
    duplicates: float,
    garbage: float,
    as_json: bool,
) -> None:
    """Simulate card transactions with fraud, to Parquet files (--out DIR) or to Kafka.

    The ground truth about fraud goes to a separate file, which no part of the product reads.
    """
    if bootstrap is not None and out is not None:
        raise click.UsageError("Give either --bootstrap or --out.")
    if bootstrap is None and out is None and not _broker_is_known():
        raise click.UsageError("Give --out DIR, or --bootstrap (or the setting kafka.bootstrap, or a local stack).")
    config = SimulationConfig(
        seed=seed,
        customers=customers,
        terminals=terminals,
        days=days,
        transactions=100_000 if transactions is None and days is None else transactions,
    )
    labelling = LabellerConfig(seed=seed, capacity_per_hour=capacity)
    if out is not None:
        config = config.starting(DEFAULT_START_MS if start is None else _midnight_ms(start))
        with Progress("simulating transactions", config.transactions, SystemClock()) as progress:
            done = export(
                config, out, truth=truth, labels=labelling if labels else None,
                on_progress=lambda report: progress(report.transactions, _until(report.event_time_ms)),
            )  # fmt: skip
        _print(_export_report(done, out), as_json)
        return
    from stream_scorer.kafka.topics import Topics

    settings = resolve_settings({"kafka.bootstrap": bootstrap, "topics.prefix": topic_prefix})
    clock = SystemClock()
    config = config.starting(config.start_to_end_by(clock.now_ms()) if start is None else _midnight_ms(start))
    live = LiveConfig(
        bootstrap=settings["kafka.bootstrap"],
        topics=Topics.of(settings),
        rate=rate,
        duplicates=duplicates,
        garbage=garbage,
        seed=seed,
        truth=truth,
        seconds=seconds,
    )
    _print(_live_report(_send(live, config, Labeller(labelling) if labels else None, clock)), as_json)


def _broker_is_known() -> bool:
    settings = resolve_settings({})
    settings.refuse_mixed("kafka.bootstrap")
    return bool(settings["kafka.bootstrap"])


def _send(live: LiveConfig, config: SimulationConfig, labeller: Labeller | None, clock: Clock) -> LiveReport:
    """Send live traffic; SIGTERM ends it early and cleanly."""
    with Progress("sending transactions", config.transactions, clock) as progress:
        traffic = LiveTraffic(
            live,
            generate_days(config),
            labeller,
            clock=clock,
            on_progress=lambda report: progress(report.transactions, _until(report.event_time_ms)),
        )
        # The default action of SIGTERM would leave the Parquet file of the ground truth without its footer.
        before = signal.signal(signal.SIGTERM, lambda *_: traffic.stop())
        try:
            return traffic.run()
        finally:
            signal.signal(signal.SIGTERM, before)


def _midnight_ms(day: datetime) -> int:
    return int(day.replace(tzinfo=UTC).timestamp()) * 1_000


def _until(event_time_ms: int) -> str:
    return f"event time {datetime.fromtimestamp(event_time_ms / 1_000, UTC):%Y-%m-%d %H:%M}"


def _export_report(report: ExportReport, out: Path) -> dict[str, object]:
    return {
        "out": str(out),
        "transactions": report.transactions,
        "fraud": report.fraud,
        "labels": report.labels,
    }


def _live_report(report: LiveReport) -> dict[str, object]:
    return {
        "transactions": report.transactions,
        "fraud": report.fraud,
        "duplicates": report.duplicates,
        "garbage": len(report.garbage),
        "records": report.records,
        "labels": dict(report.labels),
        "alerts": dict(report.alerts),
        "late_alerts": report.late_alerts,
        "unknown_alerts": report.unknown_alerts,
        "behind_s": round(report.behind_s, 3),
        "elapsed_s": round(report.elapsed_s, 3),
        "stopped": report.stopped,
    }


def _print(report: dict[str, object], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(report))
        return
    for name, value in report.items():
        click.echo(f"{name.replace('_', ' '):16} {value}")
