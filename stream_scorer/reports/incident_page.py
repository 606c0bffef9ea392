"""The page of one incident, from records of topics alone: the same records give the same bytes at any later time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from stream_scorer.incidents.detector import seconds
from stream_scorer.records import Affected, Command, Incident, IncidentKind, MonitorMetric, ScoreSummary
from stream_scorer.reports.incident_plots import Line, Mark, lines
from stream_scorer.reports.pages import drawing, render, require_plots

MINUTE_MS, HOUR_MS = 60_000, 3_600_000
# How much of the topics before and after an incident the page shows, in record timestamps, ms.
BEFORE_MS = AFTER_MS = HOUR_MS
# Most updates that the table of the course lists; the first and the last ones.
MAX_ROWS = 20

TITLES: dict[IncidentKind, str] = {
    "verdict": "A version changes the number of alerts",
    "drift": "The traffic has changed",
    "feed": "An input has a problem",
    "labels": "Labels stopped arriving",
    "latency": "Scores are late",
    "errors": "Transactions are scored without the model or a member",
    "breaker": "A member is not called",
}
# The figure of `statistics` that shows the course of an incident, its name on the axis, and the factor for the axis.
_FIGURES: Mapping[str, tuple[str, float]] = {
    "p95_ms": ("P95, milliseconds", 1.0),
    "waiting": ("waiting transactions", 1.0),
    "share": ("share, %", 100.0),
    "missed": ("missing transactions", 1.0),
    "lag_s": ("seconds behind the others", 1.0),
    "silent_s": ("seconds of silence", 1.0),
    "pause_s": ("hours without a label", 1 / 3_600),
    "log_evidence": ("logarithm of the evidence", 1.0),
}


@dataclass(slots=True)
class _Minute:
    """Transactions, alerts and money of one minute."""

    rows: int = 0
    alerts: int = 0
    money: int = 0
    alerted_money: int = 0
    by_partition: dict[int, int] = field(default_factory=dict)

    @property
    def rate(self) -> str:
        """Alerts per 1,000 transactions."""
        return f"{1_000 * self.alerts / self.rows:.2f}" if self.rows else "-"


class Traffic:
    """The summaries of the incident's ensemble (all, if it has none) by minute, in any order.

    An incident may be open for weeks, with millions of summaries.

    Attributes:
        minutes: by their beginning, ms. pairs: of a verdict, the alerts of its version and of the other one on the same
            transactions, by minute.
    """

    def __init__(self, incident: Incident, summaries: Iterable[tuple[int, ScoreSummary]] = ()) -> None:
        """`summaries` have their record timestamps, ms."""
        self._incident = incident
        self._minutes: dict[int, _Minute] = {}
        self._pairs: dict[int, tuple[int, int]] = {}
        for at, summary in summaries:
            self._add(at // MINUTE_MS * MINUTE_MS, summary)

    @property
    def minutes(self) -> dict[int, _Minute]:
        """See the class."""
        return dict(sorted(self._minutes.items()))

    @property
    def pairs(self) -> dict[int, tuple[int, int]]:
        """See the class."""
        return dict(sorted(self._pairs.items()))

    def _add(self, at: int, summary: ScoreSummary) -> None:
        incident = self._incident
        if incident.ensemble not in ("", summary.ensemble):
            return
        minute = self._minutes.setdefault(at, _Minute())
        for pane in summary.panes:
            alerts = pane.decisions.get("review", 0) + pane.decisions.get("block", 0)
            minute.rows += pane.rows
            minute.alerts += alerts
            minute.money += sum(pane.money.values())
            minute.alerted_money += pane.money.get("review", 0) + pane.money.get("block", 0)
            seen = minute.by_partition.get(summary.partition, 0)
            minute.by_partition[summary.partition] = seen + pane.rows
        if incident.kind != "verdict" or summary.version != incident.version:
            return
        if summary.control_offset is not None and summary.control_offset < incident.since:
            return
        ours, theirs = self._pairs.get(at, (0, 0))
        for pane in summary.panes:
            square = pane.against.get(incident.baseline)
            if square is not None:
                ours, theirs = ours + square[0] + square[1], theirs + square[0] + square[2]
        self._pairs[at] = ours, theirs


@dataclass(frozen=True, slots=True)
class IncidentRecords:
    """What the topics have about one incident, between `BEFORE_MS` before it and `AFTER_MS` after it.

    Attributes:
        history: its records, oldest first; at least one. traffic: None if it was not read.
        metrics: of its ensemble. commands: of its ensemble, with their offsets.
    """

    history: Sequence[Incident]
    traffic: Traffic | None = None
    metrics: Sequence[MonitorMetric] = ()
    commands: Sequence[tuple[int, Command]] = ()

    @property
    def newest(self) -> Incident:
        """The last record."""
        return self.history[-1]

    @property
    def bounds(self) -> tuple[int, int | None]:
        """The time that the page shows, in record timestamps, ms; no end while the incident is open."""
        return bounds_of(self.newest)


def bounds_of(incident: Incident) -> tuple[int, int | None]:
    """The time that the page of `incident` shows, in record timestamps, ms; no end while it is open."""
    end = None if incident.closed is None else incident.closed + AFTER_MS
    return max(incident.opened - BEFORE_MS, 0), end


def incident_page(records: IncidentRecords) -> str:
    """The page as HTML. Raises `SettingsError` without Jinja2 or matplotlib."""
    require_plots()
    incident = records.newest
    return render(
        "incident.html.j2",
        incident=incident,
        title=TITLES[incident.kind],
        state="open" if incident.closed is None else "closed",
        tiles=_tiles(incident),
        facts=facts(incident),
        traffic=_traffic_rows(records),
        course=_course(records.history),
        commands=_commands(records),
        first=[(s.topic, str(s.partition), f"{s.offset:,}") for s in incident.first],
        figures=_figure_rows(incident),
        plots=[(drawing(svg), caption) for svg, caption in _plots(records)],
        has_traffic=bool(_minutes(records)),
    )


def money(minor_units: int) -> str:
    """An amount as text. The number of decimals depends on the currency, so minor units come first."""
    return f"{minor_units:,} minor units ({minor_units / 100:,.2f} with two decimals)"


def utc(ms: int | None) -> str:
    """A time as text, UTC; a dash if it is not known, and the number itself if it is outside the calendar."""
    try:
        return "-" if ms is None else f"{datetime.fromtimestamp(ms // 1_000, UTC):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return str(ms)


def facts(incident: Incident) -> list[tuple[str, str]]:
    """What happened, when, who is affected, what was done and what it saved: pairs of a label and a sentence."""
    found = [
        ("what changed", incident.why),
        ("subject", incident.subject or f"{incident.ensemble} {incident.version}"),
        ("error code", incident.code),
        ("field", incident.field or ""),
        ("member", incident.member or ""),
        ("opened", f"{utc(incident.opened)} (clock), {utc(incident.opened_event)} (event time)"),
        ("last update", "" if incident.updated is None else f"{utc(incident.updated)} (clock)"),
        ("closed", _closed(incident)),
        ("who is affected", affected_text(incident.affected)),
        ("what was done", incident.done),
        ("needs", f"{incident.due} ({incident.held_back})" if incident.held_back and incident.closed is None else ""),
    ]
    if incident.saved is not None:
        verb = "prevented" if incident.saved.alerts >= 0 else "brought back"
        found.append(("what it saved", f"{abs(incident.saved.alerts):,} alerts {verb}; {incident.saved.how}"))
    return [(label, text) for label, text in found if text]


def _closed(incident: Incident) -> str:
    if incident.closed is None:
        return ""
    took = seconds(incident.closed - incident.opened)
    event = "" if incident.closed_event is None else f", {utc(incident.closed_event)} (event time)"
    by = f" by {incident.closed_by}" if incident.closed_by else ""
    return f"{utc(incident.closed)} (clock){event}, after {took}{by}: {incident.ended}"


def affected_text(affected: Affected | None) -> str:
    """The affected transactions, cards, alerts and money in words; empty if nothing is known."""
    if affected is None:
        return ""
    parts = [
        "" if affected.transactions is None else f"{affected.transactions:,} transactions",
        "" if affected.cards is None else f"{affected.cards:,} cards",
        "" if affected.alerts is None else f"{affected.alerts:+,} alerts",
        "" if affected.money is None else money(affected.money),
    ]
    text = ", ".join(part for part in parts if part)
    return f"{text} ({affected.how})" if text and affected.how else text


def _tiles(incident: Incident) -> list[tuple[str, str]]:
    affected = incident.affected or Affected()
    saved = None if incident.saved is None else incident.saved.alerts
    lasted = None if incident.closed is None else incident.closed - incident.opened
    found = [
        ("open" if incident.closed is None else "closed", incident.kind),
        ("still open" if lasted is None else seconds(lasted), "duration"),
        (None if affected.transactions is None else f"{affected.transactions:,}", "affected transactions"),
        (None if affected.cards is None else f"{affected.cards:,}", "affected cards"),
        (None if affected.money is None else f"{affected.money:,}", "money, minor units"),
        (
            None if saved is None else f"{abs(saved):,}",
            f"alerts {'prevented' if (saved or 0) >= 0 else 'brought back'}",
        ),
    ]
    return [(value, label) for value, label in found if value is not None]


def _course(history: Sequence[Incident]) -> list[tuple[str, str, str]]:
    """Time, state and text of the records, shortened in the middle."""
    rows = []
    for number, incident in enumerate(history):
        state = "closed" if incident.closed is not None else "opened" if number == 0 else "updated"
        if state == "closed" and number and history[number - 1].closed is not None:
            state = "completed"
        at = incident.closed or incident.updated or incident.opened
        text = incident.ended if state == "closed" else incident.why
        rows.append((utc(at), state, text))
    if len(rows) <= MAX_ROWS:
        return rows
    half = MAX_ROWS // 2
    left_out = ("", "", f"{len(rows) - 2 * half:,} further updates")
    return [*rows[:half], left_out, *rows[-half:]]


def _commands(records: IncidentRecords) -> list[tuple[str, str, str, str]]:
    since = records.newest.since if records.newest.kind == "verdict" else None
    return [
        (str(offset), utc(command.at), f"{command.action} by {command.who} ({command.author})", command.why)
        for offset, command in records.commands
        if since is None or offset >= since
    ]


def _figure_rows(incident: Incident) -> list[tuple[str, str, str]]:
    rows = []
    for name, value in incident.statistics.items():
        limit = incident.limits.get(name)
        rows.append((name.replace("_", " "), _number(value), "" if limit is None else _number(limit)))
    return rows


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"


def _minutes(records: IncidentRecords) -> dict[int, _Minute]:
    return {} if records.traffic is None else records.traffic.minutes


def _traffic_rows(records: IncidentRecords) -> list[tuple[str, ...]]:
    """Transactions, alerts and money before, during and after the incident."""
    incident = records.newest
    parts: dict[str, _Minute] = {}
    for at, minute in _minutes(records).items():
        name = "before" if at + MINUTE_MS <= incident.opened else "while it was open"
        if incident.closed is not None and at >= incident.closed:
            name = "after"
        part = parts.setdefault(name, _Minute())
        part.rows += minute.rows
        part.alerts += minute.alerts
        part.money += minute.money
        part.alerted_money += minute.alerted_money
    return [
        (name, f"{part.rows:,}", f"{part.alerts:,}", part.rate, f"{part.money:,}", f"{part.alerted_money:,}")
        for name, part in parts.items()
    ]


def _plots(records: IncidentRecords) -> list[tuple[str, str]]:
    """Drawings and their captions."""
    incident = records.newest
    marks = [Mark(incident.opened, "opened")]
    if incident.closed is not None:
        marks.append(Mark(incident.closed, "closed"))
    found = [_course_plot(records, marks)]
    if incident.kind == "verdict":
        found.append(_versions_plot(records, marks))
    if incident.kind == "drift":
        found.append(_drift_plot(records))
    found += _traffic_plots(records, marks)
    return [plot for plot in found if plot[0]]


def _course_plot(records: IncidentRecords, marks: Sequence[Mark]) -> tuple[str, str]:
    incident = records.newest
    name = next((name for name in _FIGURES if name in incident.statistics), "")
    if not name:
        return "", ""
    label, factor = _FIGURES[name]
    points = [
        (record.updated or record.opened, factor * value)
        for record in records.history
        if (value := record.statistics.get(name)) is not None
    ]
    limit = incident.limits.get(name)
    drawn = lines(
        "course", [Line(label, points)], label, marks, limit=None if limit is None else factor * limit, dots=True
    )
    return drawn, "The figure that opened the incident, at each of its records" + (
        "; dashed: the limit." if limit is not None else "."
    )


def _versions_plot(records: IncidentRecords, marks: Sequence[Mark]) -> tuple[str, str]:
    """Cumulative alerts of both versions on the same transactions."""
    incident = records.newest
    ours, theirs = 0, 0
    curves: tuple[list[tuple[int, float]], list[tuple[int, float]]] = [], []
    for at, (more, also) in (records.traffic.pairs if records.traffic is not None else {}).items():
        ours, theirs = ours + more, theirs + also
        curves[0].append((at, ours))
        curves[1].append((at, theirs))
    names = (f"version {incident.version} (decides)", f"version {incident.baseline}, same transactions")
    found = [Line(name, curve) for name, curve in zip(names, curves, strict=True) if curve]
    return lines("versions", found, "alerts", marks), "Alerts of both versions on the same transactions, summed up."


def _drift_plot(records: IncidentRecords) -> tuple[str, str]:
    """Distances of the changed series by event time; of many, those with the largest distance."""
    incident = records.newest
    newest: dict[tuple[str, int], MonitorMetric] = {}
    for metric in records.metrics:
        if metric.metric == "drift_score" and metric.value is not None and _concerns(metric.dimension, incident):
            key = metric.dimension, metric.window_start
            if key not in newest or metric.revision >= newest[key].revision:
                newest[key] = metric
    series: dict[str, list[tuple[int, float]]] = {}
    for (dimension, start), metric in sorted(newest.items()):
        series.setdefault(dimension, []).append((start, metric.value or 0.0))
    marks = [Mark(at, name) for at, name in ((incident.opened_event, "began"),) if at is not None]
    largest = sorted(series, key=lambda name: (-max(distance for _, distance in series[name]), name))[:6]
    found = [Line(name, series[name]) for name in sorted(largest)]
    return lines("drift", found, "distance", marks, dots=True), "Distance of the changed inputs by event time."


def _concerns(dimension: str, incident: Incident) -> bool:
    """Whether a series of `monitor-metrics` belongs to the incident: its field, or a feature that the text names."""
    # A name within a longer one counts after "_" only: the field `amount` in `amount_log`, but not `at` in `category`.
    whole = incident.field and re.search(rf"(?<![a-z0-9_]){re.escape(incident.field)}(?![a-z0-9])", dimension)
    return bool(whole) or dimension in incident.why


def _traffic_plots(records: IncidentRecords, marks: Sequence[Mark]) -> list[tuple[str, str]]:
    incident = records.newest
    minutes = _minutes(records)
    if not minutes:
        return []
    rows = [Line("transactions", [(at, minute.rows) for at, minute in minutes.items()])]
    caption = "Scored transactions per minute."
    if incident.partition is not None:
        own = [(at, minute.by_partition.get(incident.partition, 0)) for at, minute in minutes.items()]
        rows.append(Line(f"partition {incident.partition}", own))
        caption = "Scored transactions per minute: all, and those of the affected partition."
    rate = [(at, 1_000 * m.alerts / m.rows) for at, m in minutes.items() if m.rows]
    return [
        (lines("traffic", rows, "transactions", marks), caption),
        (lines("alerts", [Line("alerts", rate)], "alerts per 1,000", marks), "Alerts per 1,000 transactions."),
    ]
