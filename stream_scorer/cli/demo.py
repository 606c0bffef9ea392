"""`stream-scorer demo`: the whole story on real parts."""

from __future__ import annotations

import logging
import signal
import time
from pathlib import Path
from types import FrameType

import click
from rich.console import Console


@click.command()
@click.option("--transactions", type=int, default=60_000, show_default=True, help="Live transactions.")
@click.option("--rate", type=float, default=800.0, show_default=True, help="Of them a second.")
@click.option("--history", type=int, default=150_000, show_default=True, help="Transactions to learn from.")
@click.option(
    "--customers", type=click.IntRange(100), default=4_000, show_default=True, help="Cards in the simulation."
)
@click.option(
    "--fraud-rate",
    type=click.FloatRange(0, 0.1, min_open=True),
    default=0.01,
    show_default=True,
    help="Share of fraud.",
)
@click.option(
    "--review-rate",
    type=click.FloatRange(0.005, 0.2, min_open=True),
    default=0.015,
    show_default=True,
    help="Share of transactions to alert.",
)
@click.option(
    "--incident/--no-incident",
    default=True,
    show_default=True,
    help="Promote a version that goes wrong, and see it rolled back.",
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Same seed, same data.")
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
    """Run everything on real parts, from simulated history to a report that judges the run. About 3 minutes.

    Kafka, Redis and MLflow start as local processes; five members are trained and registered; scorer and monitor run
    beside live traffic with labels. Then a minor update of one member is promoted that raises alerts: the monitor rolls
    it back and names the member, and every score is computed again. Nothing is left running. Exit code 1 when a check
    of the run fails.
    """
    started = time.monotonic()
    from stream_scorer.demo.plan import DemoPlan
    from stream_scorer.demo.run import run_demo
    from stream_scorer.reports.facts import facts_of
    from stream_scorer.reports.html import write_page
    from stream_scorer.reports.terminal import closing_report

    # A broker that has just started makes librdkafka talk; what fails is raised.
    logging.getLogger("stream_scorer.kafka.librdkafka").setLevel(logging.CRITICAL)

    # SIGTERM ends it as Ctrl-C does: whatever was started is stopped on the way out.
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
