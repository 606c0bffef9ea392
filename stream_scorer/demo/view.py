"""Terminal output while traffic runs: a live table on a terminal, otherwise one line every `LINE_EVERY_S`."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from stream_scorer.clock import Clock
from stream_scorer.demo.watch import Glance
from stream_scorer.records import Alert, MonitorMetric
from stream_scorer.reports.latency import percentiles
from stream_scorer.spec.model import CheckedSpec, DerivedFunction, duration_ms

REFRESH_S = 0.5
LINE_EVERY_S = 5.0
RATE_OVER_S = 5.0
ALERTS_SHOWN, DRIFTS_SHOWN = 4, 3
HOUR_MS = 3_600_000
_OF_THE_CALENDAR: frozenset[DerivedFunction] = frozenset({"hour", "weekday", "is_weekend", "is_night"})


@dataclass(frozen=True)
class Rates:
    """Records per second, over the last seconds."""

    into: float
    out: float


class RateMeter:
    """Computes rates from cumulative counts."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int, int]] = deque([(clock.monotonic(), 0, 0)])

    def rates(self, into: int, out: int) -> Rates:
        """Record the current counts and return the rates over about the last `RATE_OVER_S` seconds."""
        now = self._clock.monotonic()
        self._seen.append((now, into, out))
        while len(self._seen) > 2 and now - self._seen[1][0] > RATE_OVER_S:
            self._seen.popleft()
        then, into_then, out_then = self._seen[0]
        span = max(now - then, 1e-9)
        return Rates((into - into_then) / span, (out - out_then) / span)


def calendar_columns(checked: CheckedSpec) -> frozenset[str]:
    """Features that depend only on the time; a single day always differs from the reference in them."""
    return frozenset(d.name for d in checked.spec.derived if d.function in _OF_THE_CALENDAR)


def newest_drifts(metrics: list[MonitorMetric], calendar: frozenset[str]) -> list[MonitorMetric]:
    """The largest drift scores of the newest window with enough rows, without the `calendar` columns."""
    fit = [
        m for m in metrics
        if m.metric == "drift_score" and m.statistics.get("sufficient") and m.value is not None
        and m.dimension not in calendar
    ]  # fmt: skip
    if not fit:
        return []
    newest = max((m.window_end, m.window_start) for m in fit)
    last = {m.dimension: m for m in fit if (m.window_end, m.window_start) == newest}
    return sorted(last.values(), key=lambda m: -(m.value or 0.0))[:DRIFTS_SHOWN]


def newest_bounds(metrics: list[MonitorMetric], pane_ms: int, horizon_ms: int) -> MonitorMetric | None:
    """False-positive bounds of the newest window longer than a pane; windows with ripe labels come first."""
    found = [
        m for m in metrics
        if m.metric == "fpr" and m.dimension == "review+block" and m.window_end - m.window_start > pane_ms
        and m.low is not None and m.high is not None
    ]  # fmt: skip
    ripe = [m for m in found if (m.label_age or 0) >= horizon_ms]
    return max(ripe or found, key=lambda m: (m.window_end, m.revision), default=None)


class View:
    """Shows glances on stderr. A context manager, because a live table must be removed at the end."""

    def __init__(self, console: Console, clock: Clock, checked: CheckedSpec) -> None:
        self._console = console
        self._clock = clock
        self._pane_ms = duration_ms(checked.spec.monitor.pane)
        self._horizon_ms = duration_ms(checked.spec.labels.horizon)
        self._calendar = calendar_columns(checked)
        self._meter = RateMeter(clock)
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._last_line_at = clock.monotonic()

    def __enter__(self) -> View:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, glance: Glance, elapsed_s: float) -> None:
        """Refresh the table, or print a line if one is due."""
        rates = self._meter.rates(glance.records_in, glance.records_out + glance.dead)
        if self._live is not None:
            self._live.update(self.table(glance, rates, elapsed_s), refresh=True)
        elif self._clock.monotonic() - self._last_line_at >= LINE_EVERY_S:
            self._last_line_at = self._clock.monotonic()
            self._console.print(self.line(glance, rates, elapsed_s), highlight=False, markup=False, soft_wrap=True)

    def line(self, glance: Glance, rates: Rates, elapsed_s: float) -> str:
        """The glance as one line of plain text."""
        latency = percentiles(_floats(glance.latencies), (50.0, 99.0))
        parts = [
            f"{elapsed_s:6.1f} s  in {rates.into:,.0f}/s, out {rates.out:,.0f}/s",
            f"latency p50 {latency[50.0]:.0f} ms p99 {latency[99.0]:.0f} ms",
            f"{len(glance.alerts):,} alerts",
        ]
        if drifts := newest_drifts(glance.metrics, self._calendar):
            parts.append(f"furthest from training: {drifts[0].dimension} {drifts[0].value:.3f}")
        if bounds := newest_bounds(glance.metrics, self._pane_ms, self._horizon_ms):
            parts.append(_bounds(bounds))
        return ", ".join(parts)

    def table(self, glance: Glance, rates: Rates, elapsed_s: float) -> RenderableType:
        """The glance as a table."""
        latency = percentiles(_floats(glance.latencies), (50.0, 99.0))
        facts = Table.grid(padding=(0, 3))
        for _ in range(4):
            facts.add_column(no_wrap=True)
        facts.add_row(
            f"[dim]in[/] {rates.into:,.0f}/s", f"[dim]out[/] {rates.out:,.0f}/s",
            f"[dim]latency p50[/] {latency[50.0]:.0f} ms", f"[dim]p99[/] {latency[99.0]:.0f} ms",
        )  # fmt: skip
        facts.add_row(
            f"[dim]scored[/] {glance.records_out:,}", f"[dim]dead letters[/] {glance.dead:,}",
            f"[dim]alerts[/] {len(glance.alerts):,}", f"[dim]event time[/] {_moment(glance.event_time)}",
        )  # fmt: skip
        watched = Table.grid(padding=(0, 1))
        watched.add_column(style="dim", no_wrap=True)
        watched.add_column()
        drifts = ", ".join(f"{m.dimension} {m.value:.3f}" for m in newest_drifts(glance.metrics, self._calendar))
        watched.add_row("from training", Text(drifts or "waiting for a day of traffic"))
        bounds = newest_bounds(glance.metrics, self._pane_ms, self._horizon_ms)
        watched.add_row("false positives", Text(_bounds(bounds) if bounds else "waiting for a day of traffic"))
        title = Text(f"live traffic, {elapsed_s:.0f} s", style="bold")
        return Group(title, facts, watched, _alert_table(glance.alerts[-ALERTS_SHOWN:]))


def _alert_table(alerts: list[Alert]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="latest alerts", title_justify="left", title_style="dim")
    table.add_column("event", no_wrap=True)
    table.add_column("amount", justify="right", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("decision", no_wrap=True)
    table.add_column("strongest contributions to the log-odds")
    for alert in reversed(alerts):
        reasons = ", ".join(f"{reason.member} {reason.contribution:+.2f}" for reason in alert.reasons)
        score = "-" if alert.score is None else f"{alert.score:.3f}"
        decision = f"{alert.decision}, second copy" if alert.duplicate else alert.decision
        table.add_row(Text(alert.event_id), f"{alert.value / 100:,.2f}", score, decision, Text(reasons))
    return table


def _bounds(metric: MonitorMetric) -> str:
    age = (metric.label_age or 0) / HOUR_MS
    share = "" if metric.final or metric.maturity is None else f", {metric.maturity:.0%} complete"
    return f"FPR {metric.low:.2%} to {metric.high:.2%} (labels {age:.0f} h old{share})"


def _moment(time_ms: int) -> str:
    return f"{datetime.fromtimestamp(time_ms / 1_000, UTC):%Y-%m-%d %H:%M}" if time_ms else "-"


def _floats(values: list[int]) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)
