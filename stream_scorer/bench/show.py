"""The report as text: ratios first, then absolute figures."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from stream_scorer.bench.results import Cpu, Report
from stream_scorer.console import make_table


def show(report: Report, console: Console) -> None:
    """Print the report."""
    ratios = report.ratios
    table = _table("Ratios, from this one run", "", "measured", "target")
    table.add_row("drain, times the per-event loop", f"{ratios.times_the_loop:,.0f} x", ">= 100 x")
    table.add_row("drain, share of the passthrough", f"{ratios.share_of_passthrough:.1%}", ">= 7 %")
    for difference in ratios.latency:
        rate = f"at {difference.rate:,}/s"
        for name, times in (("p50", difference.p50_times), ("p99", difference.p99_times)):
            table.add_row(f"{name}, times the passthrough's, {rate}", f"{times:.1f} x", "<= 4 x")
        for name, ms, target in (("p50", difference.p50_ms, 20), ("p99", difference.p99_ms, 60)):
            table.add_row(
                f"{name} minus the passthrough's, {rate}", _ms(ms), f"{target} ms on a machine with spare CPU"
            )
    console.print(table)

    drains = (("scorer", report.scorer), ("passthrough", report.passthrough))
    table = _table("Drain, transactions per second", "", "median", "runs")
    for name, drain in drains:
        table.add_row(name, f"{drain.per_second:,.0f}", "  ".join(f"{run.per_second:,.0f}" for run in drain.runs))
    table.add_row("per-event loop", f"{report.loop.per_second:,.1f}", f"{report.loop.events} events")
    table.add_row("target, 2 cores", f"{report.target_per_second:,}", "")
    console.print(table)

    table = _table("Latency in ms, from due time to arrival, medians", "", "p50", "p90", "p99", "p99.9", "max")
    for entry in report.latency:
        found = entry.latency
        values = (found.p50, found.p90, found.p99, found.p999, found.max)
        table.add_row(f"{entry.rate:,}/s {entry.kind}", *map(_number, values))
    console.print(table)

    table = _table("CPU seconds per thousand transactions, medians", "", "process", "broker", "Redis")
    for name, drain in drains:
        _add_cpu(table, f"drain {name}", drain.cpu)
    for entry in report.latency:
        _add_cpu(table, f"{entry.rate:,}/s {entry.kind}", entry.cpu)
    console.print(table)

    console.print(_parts(report))

    stages = report.stages
    table = _table("Stages of the drain", "", "µs per transaction", "")
    _add(table, stages.main, "main thread", indent_after="score", inner=stages.members)
    table.add_row("all", f"{sum(stages.main.values()):.1f}", "")
    table.add_section()
    _add(table, stages.beside, "committer thread")
    console.print(table)
    console.print(bottleneck(report), markup=False)

    machine = report.machine
    console.print(
        f"{machine.processor}, {machine.cores} cores, {machine.memory_gb:.0f} GB, {machine.system}, "
        f"Python {machine.python}, load average {machine.load_before:.2f} before; {report.seconds:.0f} s"
    )
    for warning in report.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False)


def bottleneck(report: Report) -> str:
    """The bottleneck of the scorer's drain, in a sentence."""
    cpu, stages, cores = report.scorer.cpu, report.stages, report.machine.cores
    busy = (cpu.scorer + cpu.broker + cpu.redis) * report.scorer.per_second / 1_000
    longest = sorted((name for name in stages.main if name != "wait"), key=lambda name: -stages.main[name])[:3]
    names = ", ".join(f"{name} {stages.main[name]:.0f} µs" for name in longest)
    return (
        f"The drain, at {stages.rows_per_batch:,.0f} transactions per batch, uses {busy:.2f} of {cores} cores: scorer "
        f"{cpu.scorer * 1_000:.0f} µs per transaction, "
        f"broker {cpu.broker * 1_000:.0f}, Redis {cpu.redis * 1_000:.0f}. Longest stages of the main thread: {names}; "
        f"it waits {stages.main.get('wait', 0.0):.0f} µs for the committer."
    )


def _add_cpu(table: Table, name: str, cpu: Cpu) -> None:
    table.add_row(name, f"{cpu.scorer:.4f}", f"{cpu.broker:.4f}", f"{cpu.redis:.4f}")


def _table(title: str, first: str, *numeric: str) -> Table:
    return make_table([first, *(f"!{heading}" for heading in numeric)], title=title)


def _add(
    table: Table,
    stages: Mapping[str, float],
    note: str,
    *,
    indent_after: str = "",
    inner: Mapping[str, float] | None = None,
) -> None:
    for name, value in stages.items():
        table.add_row(name, f"{value:.1f}", note)
        if name == indent_after and inner:
            for member, microseconds in inner.items():
                table.add_row(f"  {member}", f"{microseconds:.1f}", "part of score")


def _parts(report: Report) -> Table:
    ours, limit = report.parts["scorer"], report.parts["passthrough"]
    table = _table("CPU of the drain, µs per transaction", "", "scorer", "passthrough", "difference")
    total, total_limit = 0.0, 0.0
    for name, mine, theirs in (
        ("scorer", ours.scorer, limit.scorer),
        ("broker", ours.broker, limit.broker),
        ("Redis", ours.redis, limit.redis),
    ):
        for part, us in mine.items():
            other = theirs.get(part, 0.0)
            total, total_limit = total + us, total_limit + other
            table.add_row(f"{name}: {part}", f"{us:.1f}", f"{other:.1f}", f"{us - other:+.1f}")
        table.add_section()
    table.add_row("all", f"{total:.1f}", f"{total_limit:.1f}", f"{total - total_limit:+.1f}")
    return table


def _ms(value: float) -> str:
    return f"{value:+.1f} ms" if math.isfinite(value) else "never arrived"


def _number(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "-"
