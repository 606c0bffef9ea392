"""bench: the scorer's throughput and latency compared with the passthrough limit and a per-event loop, in one run.

Ratios of this run decide; absolute targets are printed too and never do. Latency is judged by the medians of
five windows of each kind in turn, at rates up to half of what the scorer drains on this machine: close to saturation,
queues determine latency. A smaller `n` gives a shorter run, as its figures show.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import msgspec
from rich.console import Console

from proofs.kit import Context, Result
from stream_scorer.bench.config import BenchConfig, quick
from stream_scorer.bench.run import run_bench
from stream_scorer.bench.show import bottleneck, show
from stream_scorer.clock import SystemClock

MIN_TIMES_THE_LOOP = 100.0
MIN_SHARE_OF_PASSTHROUGH = 0.07
MAX_TIMES_THE_LATENCY = 4.0
MAX_UTILIZATION = 0.5
# Targets of latency above the passthrough's, for a machine with spare CPU.
TARGET_P50_MS, TARGET_P99_MS = 20.0, 60.0
MIN_LOOP_EVENTS = 100
# Below this many transactions the rest is scaled down too.
SMALL = 100_000


def run(context: Context) -> Result:
    """See the module. `n` is the number of transactions of one drain."""
    config = BenchConfig(seed=context.seed)
    if context.n is not None:
        config = replace(quick(config) if context.n < SMALL else config, transactions=context.n)
    if context.broken:
        # Waiting as long between commits as many do: each score then is a tenth of a second late and more.
        config = replace(config, scorer_arguments=("--pace-ms", "200"))
    trained = context.folder / "ensemble"
    report = run_bench(
        config,
        context.folder,
        ensemble=trained if trained.exists() else None,
        clock=SystemClock(),
        progress=context.say,
    )
    show(report, Console(file=sys.stderr))
    result = Result()
    ratios = report.ratios
    result.at_least("times_the_loop", ratios.times_the_loop, MIN_TIMES_THE_LOOP)
    result.at_least("share_of_passthrough", ratios.share_of_passthrough, MIN_SHARE_OF_PASSTHROUGH)
    judged = [entry for entry in ratios.latency if entry.rate <= MAX_UTILIZATION * report.scorer.per_second]
    for difference in judged:
        at = f"at {difference.rate} a second"
        for name, times in (("p50", difference.p50_times), ("p99", difference.p99_times)):
            result.check(
                f"{name} {at} <= {MAX_TIMES_THE_LATENCY:.0f} times the passthrough's", times <= MAX_TIMES_THE_LATENCY
            )
    result.check("latency is judged at one rate or more", bool(judged))
    result.at_least("loop_events", report.loop.events, min(MIN_LOOP_EVENTS, config.loop_events))
    result.check("each drain gave every transaction one score", report.scores_read == report.scores_expected)
    result.check("every score of every window was seen", all(entry.missing == 0 for entry in report.latency))
    drain = report.scorer.per_second
    result.figures |= {
        "latency": msgspec.to_builtins(ratios.latency),
        "latency_judged_at": [entry.rate for entry in judged],
        "latency_target_reached": all(
            entry.p50_ms <= TARGET_P50_MS and entry.p99_ms <= TARGET_P99_MS for entry in ratios.latency
        ),
        "per_second": drain,
        "passthrough_per_second": report.passthrough.per_second,
        "loop_per_second": report.loop.per_second,
        "target_per_second": report.target_per_second,
        "target_reached": drain >= report.target_per_second,
        "windows_each": config.latency_rounds,
        "transactions": config.transactions,
        "stages_us": msgspec.to_builtins(report.stages),
        "cpu_s_per_thousand": msgspec.to_builtins(report.scorer.cpu),
        "bottleneck": bottleneck(report),
        "machine": msgspec.to_builtins(report.machine),
        "warnings": report.warnings,
    }
    return result
