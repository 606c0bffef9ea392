"""`stream-scorer demo`: the whole product on real parts."""

from __future__ import annotations

import logging
import signal
import time
from pathlib import Path
from types import FrameType

import click
from rich.console import Console


@click.command()
@click.option("--transactions", type=int, default=60_000, show_default=True, help="Number of live transactions.")
@click.option("--rate", type=float, default=800.0, show_default=True, help="Live transactions per second.")
@click.option("--history", type=int, default=150_000, show_default=True, help="Number of transactions for training.")
@click.option(
    "--customers", type=click.IntRange(100), default=4_000, show_default=True, help="Number of simulated customers."
)
@click.option(
    "--fraud-rate",
    type=click.FloatRange(0, 0.1, min_open=True),
    default=0.01,
    show_default=True,
    help="Share of fraudulent transactions.",
)
@click.option(
    "--review-rate",
    type=click.FloatRange(0.005, 0.2, min_open=True),
    default=0.015,
    show_default=True,
    help="Share of transactions that become alerts.",
)
@click.option(
    "--incident/--no-incident",
    default=True,
    show_default=True,
    help="Promote a version that alerts too much, and let the monitor roll it back.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=1, show_default=True, help="Seed; the same seed gives the same data."
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-report"),
    show_default=True,
    help="Folder for the report and the logs.",
)
def demo(
    transactions: int,
    rate: float,
    history: int,
    customers: int,
    fraud_rate: float,
    review_rate: float,
    incident: bool,
    seed: int,
    report: Path,
) -> int:
    """Run the whole product on real parts, from simulated history to a report. Takes about 3 minutes.

    Starts Kafka, Redis and MLflow as local processes, trains and registers five members, and runs scorer and monitor on
    live traffic with labels. Then promotes an update of one member that raises alerts: the monitor rolls it back and
    names the member. Finally recomputes every score. Stops everything that it started. Exit code 1 if a check fails.
    """
    started = time.monotonic()
    from stream_scorer.demo.plan import DemoPlan
    from stream_scorer.demo.run import run_demo
    from stream_scorer.reports.facts import facts_of
    from stream_scorer.reports.html import write_page
    from stream_scorer.reports.terminal import closing_report

    # librdkafka logs many messages while a broker starts. Real failures raise exceptions.
    logging.getLogger("stream_scorer.kafka.librdkafka").setLevel(logging.CRITICAL)

    # SIGTERM acts like Ctrl-C, so that the context managers stop all processes.
    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    plan = DemoPlan(
        transactions=transactions,
        rate=rate,
        history=history,
        customers=customers,
        fraud_rate=fraud_rate,
        review_rate=review_rate,
        incident=incident,
        seed=seed,
    )
    story = run_demo(plan, Console(stderr=True), report=report)
    facts = facts_of(story)
    page = write_page(story, facts, report / "index.html")
    for line in closing_report(story, facts, page, time.monotonic() - started):
        click.echo(line)
    failed = [check for check in story.checks if not check.holds]
    for check in failed:
        click.echo(f"error: {check.name}: {check.found}", err=True)
    return 1 if failed else 0
