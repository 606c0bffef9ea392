"""`stream-scorer bench`: throughput, latency and cost beside the passthrough and a per-event loop."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

# Not stream-scorer's settings: whatever is set, a benchmark runs on a stack of its own.


@click.command()
@click.option("--quick", is_flag=True, help="About 1.5 minutes instead of 6: fewer rounds, shorter windows, noisier.")
@click.option("--transactions", type=click.IntRange(2_000), help="Transactions of one drain.  [default: 150000]")
@click.option("--drain-rounds", type=click.IntRange(1), help="Drains of each kind.  [default: 3]")
@click.option("--warm-up-drains", type=click.IntRange(0), help="Drains of each kind, thrown away.  [default: 1]")
@click.option("--rate", "rates", type=click.IntRange(1), multiple=True, help="Open-loop rate; may be repeated.  "
              "[default: 1000 and 5000]")  # fmt: skip
@click.option("--rounds", "latency_rounds", type=click.IntRange(1), help="Windows of each kind and rate.  [default: 5]")
@click.option("--seconds", "window_s", type=click.FloatRange(0.1), help="Seconds measured a window.  [default: 5]")
@click.option("--warm-up", "warm_up_s", type=click.FloatRange(0), help="Seconds thrown away first.  [default: 1.5]")
@click.option("--events", "loop_events", type=click.IntRange(1), help="Events of the per-event loop.  [default: 500]")
@click.option("--backlog", type=click.IntRange(0), help="Worked off before the first window.  [default: 20000]")
@click.option("--batch", type=click.IntRange(1, 10_000), help="Most records in a micro-batch.  [default: 1024]")
@click.option("--pace-ms", type=click.IntRange(0), help="Least time from one batch to the next.  [default: 20]")
@click.option("--partitions", type=click.IntRange(1), help="Of every topic.  [default: 4]")
@click.option("--seed", type=click.IntRange(0), help="Same seed, same transactions.  [default: 1]")
@click.option(
    "--ensemble",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of an ensemble of the simulator's spec.  [default: one is trained]",
)
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the report as JSON to this file.")
def bench(quick: bool, ensemble: Path | None, as_json: bool, out: Path | None, **sizes: Any) -> None:
    """Measure the scorer beside its limit (the exactly-once passthrough) and a loop as tutorials write it.

    It starts a Kafka and a Redis of its own. Run nothing else beside it. Only ratios of one run mean anything: machines
    differ, and drift.
    """
    import msgspec
    from rich.console import Console

    from stream_scorer.bench import config as sizing
    from stream_scorer.bench.run import run_bench
    from stream_scorer.bench.show import show
    from stream_scorer.cli.topic_io import quiet_client
    from stream_scorer.clock import SystemClock
    from stream_scorer.stack.local import SCRATCH

    config = sizing.quick(sizing.BenchConfig()) if quick else sizing.BenchConfig()
    config = replace(config, **{name: value for name, value in sizes.items() if value not in (None, ())})
    quiet_client()
    started = time.monotonic()
    SCRATCH.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SCRATCH, prefix="bench-") as folder:
        report = run_bench(
            config,
            Path(folder),
            ensemble=ensemble,
            clock=SystemClock(),
            say=lambda text: click.echo(f"{time.monotonic() - started:6.1f} s  {text}", err=True),
        )
    encoded = msgspec.json.format(msgspec.json.encode(report), indent=2)
    if out is not None:
        out.write_bytes(encoded + b"\n")
    if as_json:
        click.echo(encoded.decode())
        return
    show(report, Console())
