"""`stream-scorer bench`: throughput, latency and cost, compared with the passthrough and a per-event loop."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

# A benchmark runs on a stack of its own, so it ignores the settings.


@click.command()
@click.option(
    "--quick", is_flag=True, help="Take about 1.5 minutes instead of 6: fewer rounds, shorter windows, more noise."
)
@click.option("--transactions", type=click.IntRange(2_000), help="Transactions per drain.  [default: 150000]")
@click.option("--drain-rounds", type=click.IntRange(1), help="Drains per kind.  [default: 3]")
@click.option("--warm-up-drains", type=click.IntRange(0), help="Discarded drains per kind.  [default: 1]")
@click.option("--rate", "rates", type=click.IntRange(1), multiple=True, help="Open-loop rate; may be repeated.  "
              "[default: 1000 and 5000]")  # fmt: skip
@click.option("--rounds", "latency_rounds", type=click.IntRange(1), help="Windows per kind and rate.  [default: 5]")
@click.option("--seconds", "window_s", type=click.FloatRange(0.1), help="Measured seconds per window.  [default: 5]")
@click.option(
    "--warm-up", "warm_up_s", type=click.FloatRange(0), help="Discarded seconds before a window.  [default: 1.5]"
)
@click.option("--events", "loop_events", type=click.IntRange(1), help="Events for the per-event loop.  [default: 500]")
@click.option("--backlog", type=click.IntRange(0), help="Records processed before the first window.  [default: 20000]")
@click.option("--batch", type=click.IntRange(1, 10_000), help="Maximum size of a micro-batch.  [default: 1024]")
@click.option("--pace-ms", type=click.IntRange(0), help="Minimum milliseconds between batches.  [default: 20]")
@click.option("--partitions", type=click.IntRange(1), help="Partitions per topic.  [default: 4]")
@click.option("--seed", type=click.IntRange(0), help="Seed of the transactions.  [default: 1]")
@click.option(
    "--ensemble",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of an ensemble for the simulator's spec.  [default: train one]",
)
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the report as JSON to this file.")
@click.option("--profile", "profiles", type=click.Path(path_type=Path, file_okay=False), help="Drain twice more, and "
              "write a profile of the scorer's functions and a flame graph to this folder.")  # fmt: skip
def bench(
    quick: bool, ensemble: Path | None, as_json: bool, out: Path | None, profiles: Path | None, **sizes: Any
) -> None:
    """Measure the scorer, and compare it with the exactly-once passthrough and with a per-event loop from tutorials.

    Starts its own Kafka and Redis. Run nothing else at the same time. Compare only ratios from one run: machines
    differ, and their speed drifts.
    """
    import msgspec
    from rich.console import Console

    from stream_scorer.bench import config as sizing
    from stream_scorer.bench.run import run_bench
    from stream_scorer.bench.show import show
    from stream_scorer.cli.topic_io import quiet_client
    from stream_scorer.clock import SystemClock
    from stream_scorer.console import Steps
    from stream_scorer.stack.local import SCRATCH

    config = sizing.quick(sizing.BenchConfig()) if quick else sizing.BenchConfig()
    config = replace(config, **{name: value for name, value in sizes.items() if value not in (None, ())})
    quiet_client()
    clock = SystemClock()
    SCRATCH.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SCRATCH, prefix="bench-") as folder:
        report = run_bench(
            config,
            Path(folder),
            ensemble=ensemble,
            clock=clock,
            progress=Steps(clock, lambda text: click.echo(text, err=True)).say,
            profiles=profiles,
        )
    encoded = msgspec.json.format(msgspec.json.encode(report), indent=2)
    if out is not None:
        out.write_bytes(encoded + b"\n")
    if as_json:
        click.echo(encoded.decode())
        return
    show(report, Console())
