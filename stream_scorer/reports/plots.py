"""Plots as inline SVG: real text, no scripts, no external resources; the same data give the same bytes.

Lines, text and grid have the colour of the page's text, so the drawings fit light and dark pages.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from stream_scorer.control.verdict import ALPHA
from stream_scorer.quality import precision_recall_curve
from stream_scorer.records import MonitorMetric
from stream_scorer.reports.explain import Explained
from stream_scorer.reports.incident import Incident
from stream_scorer.reports.latency import Latency, percentiles
from stream_scorer.reports.quality import ENSEMBLE, Judged, Quality
from stream_scorer.reports.story import Story
from stream_scorer.reports.windows import Bound

# Readable on white and on near-black, and distinguishable for most colour-blind people (after Okabe and Ito).
BLUE, ORANGE, GREEN, RED, PURPLE, SAND = "#3a86c8", "#e08b22", "#1f9e78", "#d4504f", "#9a6fc4", "#b59a4a"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, SAND, RED)
# A colour that nothing else uses; `drawn` replaces it by the page's text colour.
_INK = "#010203"
# Inches at 100 px: half the page, so that text keeps its size.
_WIDTH, _HEIGHT = 5.0, 2.9
_DRIFT_THRESHOLD = 0.1
# In a pane with fewer transactions, one alert changes the rate by more than 1 %.
MIN_PANE_ROWS = 100
DAY_MS, SECOND_MS = 86_400_000, 1_000
_FEW_DAYS = 3.0
# Longer axes name years; the calendar of Python ends with the year 9999.
_MANY_DAYS, _LAST_DAY = 300.0, 2_932_897.0
_NAME_LENGTH = 30


def flow(story: Story) -> str:
    """Records in and out per second, and the number of records in progress."""
    recording = story.recording
    into, out = np.sort(recording.inputs.timestamp), np.sort(recording.contributions.arrival)
    if not len(into) or not len(out):
        return ""
    begin = int(into[0])
    seconds = np.arange(0, int((max(into[-1], out[-1]) - begin) // SECOND_MS) + 2)
    edges = begin + seconds * SECOND_MS
    figure, (top, low) = make_figure(2, 1, height=3.6, ratios=(2, 1))
    for times, colour, label in ((into, BLUE, "in: transactions"), (out, ORANGE, "out: scores, committed")):
        top.plot(seconds[:-1], np.diff(np.searchsorted(times, edges)), color=colour, label=label, linewidth=1.4)
    top.set_ylabel("records per second")
    top.set_ylim(bottom=0)
    show_legend(top)
    fine = begin + np.arange(0, (int(seconds[-1])) * 10 + 1) * (SECOND_MS // 10)
    dead = len(recording.dead.places)
    inside = np.searchsorted(into, fine) - np.searchsorted(out, fine)
    low.fill_between((fine - begin) / SECOND_MS, inside, color=BLUE, alpha=0.45, linewidth=0)
    low.set_ylabel("in minus out")
    low.set_xlabel(f"seconds of live traffic (the difference ends at the {dead:,} dead letters)")
    low.set_ylim(bottom=0)
    return drawn(figure, "flow")


def latency_curve(latency: Latency) -> str:
    """Share of transactions slower than x."""
    figure, (axes,) = make_figure(1, 1)
    for values, colour, label in (
        (latency.scored, BLUE, "until scored"),
        (latency.arrived, ORANGE, "until read by a read_committed consumer"),
    ):
        ordered = np.sort(np.maximum(values, 1.0))
        if len(ordered):
            # A thousand points are enough for the curve.
            rank = np.unique(np.linspace(0, len(ordered) - 1, 1_000).astype(np.int64))
            axes.plot(ordered[rank], 1.0 - rank / len(ordered), color=colour, label=label, linewidth=1.6)
    for share, name in ((0.5, "p50"), (0.1, "p90"), (0.01, "p99"), (0.001, "p99.9")):
        axes.axhline(share, color=_INK, alpha=0.25, linewidth=0.7, linestyle=":")
        axes.text(1.0, share, f" {name}", transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(5e-4, 1.3)
    axes.set_yticks([1.0, 0.1, 0.01, 0.001], ["100 %", "10 %", "1 %", "0.1 %"])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_xlabel("milliseconds since the record's Kafka timestamp")
    axes.set_ylabel("slower than that")
    show_legend(axes, loc="lower left")
    return drawn(figure, "latency")


def latency_over_time(latency: Latency) -> str:
    """p50 and p99 of every two seconds."""
    figure, (axes,) = make_figure(1, 1, height=2.3)
    if len(latency.at):
        bins = (latency.at - latency.at.min()) // (2 * SECOND_MS)
        found = [(b, percentiles(latency.arrived[bins == b], (50.0, 99.0))) for b in np.unique(bins).tolist()]
        times = [2 * b + 1 for b, _ in found]
        axes.plot(times, [p[99.0] for _, p in found], color=ORANGE, label="p99", linewidth=1.4)
        axes.plot(times, [p[50.0] for _, p in found], color=BLUE, label="p50", linewidth=1.4)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("ms until read")
    axes.set_xlabel("seconds of live traffic")
    show_legend(axes)
    return drawn(figure, "latency-time")


def precision_recall_curves(story: Story, events: Judged, found: Sequence[Quality]) -> str:
    """The ensemble and each single member; dots mark the review threshold."""
    contributions = story.recording.contributions
    figure, (axes,) = make_figure(1, 1, height=3.6)
    colours = dict(zip(contributions.members, PALETTE, strict=False))
    for quality in reversed(found):
        whole = quality.name == ENSEMBLE
        column = (
            contributions.score if whole else contributions.member_score[:, contributions.members.index(quality.name)]
        )
        precision, recall = precision_recall_curve(column[events.row], events.fraud)
        # Precision only falls between two frauds, so the points at frauds define the curve.
        keep = np.flatnonzero(np.diff(recall, prepend=0.0) > 0)
        colour = _INK if whole else colours.get(quality.name, SAND)
        label = (
            f"{_short(quality.name)} {'-' if quality.average_precision is None else f'{quality.average_precision:.3f}'}"
        )
        axes.plot(recall[keep], precision[keep], color=colour, label=label, linewidth=2.4 if whole else 1.2)
        dot = quality.alerts
        if dot.precision is not None and dot.recall is not None:
            axes.plot([dot.recall], [dot.precision], "o", color=colour, markersize=6 if whole else 4)
    axes.set_xlim(0, 1.01)
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], title="average precision", frameon=False, fontsize=8, title_fontsize=8,
                loc="lower left")  # fmt: skip
    return drawn(figure, "precision-recall")


def recall_bars(kinds: Sequence[tuple[str, int, int]]) -> str:
    """Share of alerted transactions per kind of fraud."""
    ordered = sorted(kinds, key=lambda k: k[1] / k[2])
    figure, (axes,) = make_figure(1, 1, height=0.6 + 0.33 * max(len(ordered), 1))
    axes.barh(
        [_short(k[0].replace("_", " ")) for k in ordered], [k[1] / k[2] for k in ordered], color=BLUE, height=0.62
    )
    for place, (_, caught, total) in enumerate(ordered):
        axes.text(caught / total + 0.01, place, f"{caught} of {total}", va="center", fontsize=8)
    axes.set_xlim(0, 1.15)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.set_xlabel("alerted")
    axes.grid(visible=False, axis="y")
    return drawn(figure, "kinds")


def waterfall(alert: Explained, number: int) -> str:
    """From the base to z, one bar per member."""
    return drawn(_waterfall(alert), f"alert-{number}")


def waterfall_picture(alert: Explained, path: Path) -> None:
    """Write the waterfall as a PNG file."""
    from matplotlib import rc_context

    with rc_context(_STYLE):
        _waterfall(alert).savefig(path, format="png", dpi=200, facecolor="white", metadata={"Software": None})


def _waterfall(alert: Explained) -> Any:
    figure, (axes,) = make_figure(1, 1, width=3.3, height=2.1)
    names = ["base", *(_short(part.name) for part in alert.parts), "z"]
    at = alert.base
    axes.barh(0, alert.base, color=_INK, alpha=0.35, height=0.6)
    for place, part in enumerate(alert.parts, start=1):
        colour = RED if part.contribution >= 0 else GREEN
        axes.barh(place, part.contribution, left=at, color=colour, height=0.6)
        axes.plot([at, at], [place - 1, place], color=_INK, alpha=0.4, linewidth=0.7)
        at += part.contribution
    axes.barh(len(names) - 1, alert.z, color=_INK, alpha=0.35, height=0.6)
    axes.axvline(0, color=_INK, alpha=0.5, linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(alert.unit)
    axes.grid(visible=False, axis="y")
    return figure


def paired_alerts(incident: Incident) -> str:
    """Cumulative alerts of the deciding version and of the previous one, on the same transactions."""
    figure, (axes,) = make_figure(1, 1)
    for counts, colour, label in (
        (incident.candidate, RED, f"version {incident.update.version} (decides)"),
        (incident.baseline, BLUE, "previous version, same transactions"),
    ):
        axes.step(incident.seconds, counts, color=colour, label=label, linewidth=1.6, where="post")
    axes.set_ylabel("alerts")
    axes.set_ylim(bottom=0)
    _from_promotion(axes, incident)
    show_legend(axes, loc="upper left")
    return drawn(figure, "paired-alerts")


def evidence(incident: Incident) -> str:
    """Evidence for a rise of alerted cards of more than 5 %, and the threshold of the rollback."""
    figure, (axes,) = make_figure(1, 1)
    axes.plot(incident.seconds, incident.evidence, color=RED, linewidth=1.6, label="evidence")
    axes.axhline(-np.log10(ALPHA), color=_INK, alpha=0.6, linewidth=0.9, linestyle="--", label="rollback threshold")
    axes.set_ylabel("evidence, powers of ten")
    _from_promotion(axes, incident)
    show_legend(axes, loc="upper left")
    return drawn(figure, "evidence")


def _from_promotion(axes: Any, incident: Incident) -> None:
    axes.set_xlabel("seconds since the promotion")
    axes.set_xlim(left=0)
    if incident.rollback_s is not None:
        axes.axvline(incident.rollback_s, color=_INK, alpha=0.6, linewidth=0.9, linestyle=":", label="rollback")


def alert_rate(hours: Sequence[MonitorMetric], days: Sequence[MonitorMetric]) -> str:
    """Alert rate per pane with enough transactions, and per long window."""
    hours = [m for m in hours if m.rows >= MIN_PANE_ROWS]
    figure, (axes,) = make_figure(1, 1, height=2.5)
    axes.plot([_middle(m) for m in hours], [m.value for m in hours], color=BLUE, alpha=0.5, linewidth=0.9,
              label="panes")  # fmt: skip
    for index, m in enumerate(days):
        axes.plot([moment(m.window_start), moment(m.window_end)], [m.value, m.value], color=ORANGE, linewidth=2.4,
                  label="" if index else "long windows")  # fmt: skip
    _percent(axes, "alert rate")
    show_times(axes)
    show_legend(axes)
    return drawn(figure, "alert-rate")


def false_positives(found: Sequence[Bound]) -> str:
    """Bounds per window, and the hidden truth."""
    figure, (axes,) = make_figure(1, 1, height=2.7)
    labelled: set[str] = set()

    def once(label: str) -> str:
        if label in labelled:
            return ""
        labelled.add(label)
        return label

    for bound in found:
        left, width = _number(bound.start), (bound.end - bound.start) / DAY_MS
        label = once("bounds, labels ripe" if bound.ripe else "bounds, labels not yet ripe")
        axes.bar(left + width / 2, bound.high - bound.low, bottom=bound.low, width=0.86 * width, color=BLUE,
                 alpha=0.6 if bound.ripe else 0.25, linewidth=0, label=label)  # fmt: skip
        if bound.value is not None and bound.interval is not None:
            below, above = bound.value - bound.interval[0], bound.interval[1] - bound.value
            axes.errorbar([left + 0.7 * width], [bound.value], [[max(below, 0.0)], [max(above, 0.0)]], fmt="o",
                          color=ORANGE, markersize=3.5, capsize=3, linewidth=1.0,
                          label=once("estimate, 95 % interval by card"))  # fmt: skip
        if bound.truth is not None:
            inside = bound.contains_truth
            axes.plot([left + width / 2], [bound.truth], "D", color=_INK if inside else RED, markersize=5,
                      label=once("hidden truth, inside" if inside else "hidden truth, outside"))  # fmt: skip
    axes.xaxis_date(tz=UTC)
    _percent(axes, "false-positive rate")
    show_times(axes)
    highest = max((max(bound.high, (bound.interval or (0.0, 0.0))[1]) for bound in found), default=0.01)
    axes.set_ylim(0, 1.3 * highest)
    show_legend(axes, loc="upper left", ncols=2)
    return drawn(figure, "false-positives")


def drift(series: dict[str, list[MonitorMetric]]) -> str:
    """Drift score per window."""
    figure, (axes,) = make_figure(1, 1, width=2 * _WIDTH, height=2.7)
    for (name, metrics), colour in zip(series.items(), (_INK, *PALETTE), strict=False):
        axes.plot([_middle(m) for m in metrics], [m.value for m in metrics], "o-", color=colour, markersize=3.5,
                  linewidth=2.0 if name == "score" else 1.2, label=_short(name))  # fmt: skip
    axes.axhline(_DRIFT_THRESHOLD, color=RED, linewidth=0.9, linestyle="--", label=f"{_DRIFT_THRESHOLD:g}")
    highest = max((m.value or 0.0 for metrics in series.values() for m in metrics), default=_DRIFT_THRESHOLD)
    axes.set_ylim(0, 1.35 * highest)
    axes.set_ylabel("drift score")
    show_times(axes)
    show_legend(axes, loc="upper left", ncols=3)
    return drawn(figure, "drift")


def steps_bar(steps: dict[str, float]) -> str:
    """Wall time per step."""
    names = list(steps)
    figure, (axes,) = make_figure(1, 1, width=2 * _WIDTH, height=0.6 + 0.33 * max(len(names), 1))
    starts = np.concatenate([[0.0], np.cumsum(list(steps.values()))])
    for place, name in enumerate(names):
        axes.barh(place, steps[name], left=starts[place], color=BLUE, height=0.62)
        axes.text(starts[place + 1], place, f" {steps[name]:.1f} s", va="center", fontsize=8)
    axes.set_yticks(range(len(names)), [_short(name.split(",")[0].split(";")[0]) for name in names])
    axes.set_xlim(0, float(starts[-1]) * 1.1)
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.grid(visible=False, axis="y")
    return drawn(figure, "steps")


def make_figure(
    rows: int, columns: int, *, width: float = _WIDTH, height: float = _HEIGHT, ratios: tuple[int, ...] | None = None
) -> tuple[Any, list[Any]]:
    """A figure in the style of the pages, and its axes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharex=rows > 1, height_ratios=ratios).ravel().tolist()
        for each in axes:
            each.spines[["top", "right"]].set_visible(False)
            each.grid(visible=True, alpha=0.15, linewidth=0.7)
            each.set_axisbelow(True)
    return figure, axes


_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "grid.color": _INK,
} | dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK)


def drawn(figure: Any, name: str) -> str:
    """The drawing as an ``<svg>`` element; the prefix `name` makes its ids unique on the page."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context(_STYLE | {"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # HTML does not need the namespaces.
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'\b(id|href)="(#?)([^"]+)"', rf'\1="\2{name}-\3"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'<svg [^>]*viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1)
    return text.replace(_INK, "currentColor").strip()


def _short(name: str) -> str:
    """The name, cut to `_NAME_LENGTH` characters."""
    return name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 1]}\N{HORIZONTAL ELLIPSIS}"


def show_legend(axes: Any, **where: Any) -> None:
    """Add a legend, if a curve has a label. Labels are plain text: a `$` begins no formula."""
    from matplotlib import rc_context

    if axes.get_legend_handles_labels()[0]:
        with rc_context({"text.parse_math": False}):
            axes.legend(frameon=False, fontsize=8, **where)


def _percent(axes: Any, label: str) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(bottom=0)
    axes.set_ylabel(label)


def show_times(axes: Any, label: str = "event time (UTC)") -> None:
    """Label the horizontal axis with times."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    left, right = axes.get_xlim()
    first, last = axes.dataLim.intervalx
    if first == last:  # matplotlib shows years around a single time
        left, right = first - 1.0, last + 1.0
    left, right = max(left, 0.0), min(right, _LAST_DAY)
    axes.set_xlim(left, right)
    whole_days = right - left >= _FEW_DAYS
    shown = "%d %b %H:%M" if not whole_days else "%d %b" if right - left < _MANY_DAYS else "%b %Y"

    def named(day: float, _place: int | None = None) -> str:
        # The locator also returns times outside the axis.
        return f"{moment(round(day * DAY_MS)):{shown}}" if 0 <= day < _LAST_DAY else ""

    axes.xaxis.set_major_locator(MaxNLocator(6 if whole_days else 3, integer=whole_days))
    axes.xaxis.set_major_formatter(FuncFormatter(named))
    axes.set_xlabel(label)


def moment(time_ms: int) -> datetime:
    """A time in ms for an axis."""
    return datetime.fromtimestamp(time_ms / 1_000, UTC)


def _middle(m: MonitorMetric) -> datetime:
    return moment((m.window_start + m.window_end) // 2)


def _number(time_ms: int) -> float:
    """A date as a matplotlib number: days since 1970."""
    return time_ms / DAY_MS
