"""A whole benchmark on its own local stack: input data, alternating drains, per-event loop, latency, report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from stream_scorer.bench.compare import ratios, summarise_drains, summarise_windows, turns, typical_run
from stream_scorer.bench.config import BenchConfig
from stream_scorer.bench.drain import PREFIX, count_scores, drain
from stream_scorer.bench.latency import measure_latency, publish
from stream_scorer.bench.loop import run_loop
from stream_scorer.bench.machine import busy_warning, describe_machine
from stream_scorer.bench.material import simulate_records, train_cards_ensemble
from stream_scorer.bench.processes import Bench
from stream_scorer.bench.profiling import profile_scorer
from stream_scorer.bench.results import KINDS, DrainRun, Kind, Report
from stream_scorer.clock import Clock
from stream_scorer.ensemble.manifest import read_manifest
from stream_scorer.kafka.topics import TopicAdmin, Topics
from stream_scorer.stack import LocalStack

# On 2 cores that also run the broker and Redis.
TARGET_PER_SECOND = 15_000


def run_bench(
    config: BenchConfig,
    folder: Path,
    *,
    ensemble: Path | None,
    clock: Clock,
    progress: Callable[[str], None],
    profiles: Path | None = None,
) -> Report:
    """Run the benchmark; logs and data go to `folder`. A given `ensemble` (of the simulator's spec) replaces training.

    With `profiles`, two more drains write profiles of the scorer to this folder; see `bench.profiling`.

    Raises:
        UsageError, UnavailableError: the stack could not start, or the ensemble cannot be used.
        StreamScorerError: a measured process ended or timed out.
    """
    if ensemble is not None:
        read_manifest(ensemble)  # an error of this folder would otherwise show only after services and data are ready
    started = clock.monotonic()
    machine = describe_machine()
    warnings = busy_warning(machine)
    for warning in warnings:
        progress(f"warning: {warning}")
    if ensemble is None:
        progress(f"training five members on {config.history:,} transactions")
        ensemble = train_cards_ensemble(folder, seed=config.seed, transactions=config.history)
    records = simulate_records(max(config.transactions, config.backlog + config.live_transactions), config.seed, clock)
    with LocalStack(services=("kafka", "redis"), on_progress=progress) as stack:
        bench = Bench(config, stack, ensemble, folder, progress)
        TopicAdmin(bench.bootstrap).create_all(Topics(PREFIX), config.partitions)
        publish(bench, Topics(PREFIX).transactions, records.slice(0, config.transactions))
        progress(f"{config.transactions:,} transactions published")
        for number in range(config.warm_up_drains):
            for kind in KINDS:
                drain(bench, kind, -number)
        runs: dict[Kind, list[DrainRun]] = {kind: [] for kind in KINDS}
        for number, kind in enumerate(turns(config.drain_rounds), start=1):
            runs[kind].append(drain(bench, kind, number))
        expected = config.transactions * len(KINDS) * (config.warm_up_drains + config.drain_rounds)
        scores_read = count_scores(bench, expected)
        if scores_read != expected:
            warnings.append(f"{scores_read} records on scores, {expected} expected")
        loop = run_loop(bench)
        latency = summarise_windows(measure_latency(bench, records))
        if profiles is not None:
            for path in profile_scorer(bench, profiles):
                progress(f"wrote {path}")
    scorer, passthrough = summarise_drains(runs["scorer"]), summarise_drains(runs["passthrough"])
    if missing := sum(entry.missing for entry in latency):
        warnings.append(f"{missing} scores did not arrive in time")
    return Report(
        ratios(scorer, passthrough, loop, latency),
        scorer,
        passthrough,
        loop,
        typical_run(scorer).stages,
        {"scorer": typical_run(scorer).parts, "passthrough": typical_run(passthrough).parts},
        latency,
        TARGET_PER_SECOND,
        scores_read,
        expected,
        machine,
        asdict(config),
        warnings,
        round(clock.monotonic() - started, 1),
    )
