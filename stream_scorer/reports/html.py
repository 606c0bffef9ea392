"""The report of a run as one self-contained HTML page (`templates/run_report.html.j2`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from stream_scorer import __version__
from stream_scorer.arrays import Floats
from stream_scorer.reports import plots
from stream_scorer.reports.explain import Explained
from stream_scorer.reports.facts import Facts
from stream_scorer.reports.incident import Incident
from stream_scorer.reports.latency import PERCENTILES, percentiles
from stream_scorer.reports.pages import drawing, ms, number, percent, render, require_plots, write
from stream_scorer.reports.quality import ENSEMBLE
from stream_scorer.reports.story import Story
from stream_scorer.reports.windows import alert_rates, long_ms

if TYPE_CHECKING:
    from markupsafe import Markup

HOUR_MS = 3_600_000


def write_page(story: Story, facts: Facts, path: Path) -> Path:
    """Write the page to `path` and return it. Raises `SettingsError` as `page` does, or if it cannot be written."""
    write(page(story, facts), path)
    return path


def page(story: Story, facts: Facts) -> str:
    """The whole page. Raises `SettingsError` if matplotlib or Jinja2 is missing."""
    require_plots()
    incident = facts.incident if facts.incident is not None and facts.incident.promoted is not None else None
    labels = ", ".join(f"{count:,} by {source.replace('_', ' ')}" for source, count in sorted(story.labels.items()))
    return render(
        "run_report.html.j2",
        story=story,
        facts=facts,
        version=__version__,
        failed=sum(not check.holds for check in story.checks),
        tiles=_tiles(facts),
        incident=incident,
        dead_letters=Counter(story.recording.dead.code).most_common(),
        latency_headings=["", *(f"!p{p:g}" for p in PERCENTILES), "!max"],
        latencies=[
            ("until scored", "scored_at", _spread(facts.latency.scored)),
            ("until read by a read_committed consumer", "", _spread(facts.latency.arrived)),
        ],
        tables={
            "incident": _incident_rows(incident) if incident is not None else [],
            "quality": list(_quality_rows(story, facts)),
        },
        alerts=[
            (alert, drawing(plots.waterfall(alert, place)), _waterfall_rows(alert))
            for place, alert in enumerate(facts.explained, start=1)
        ],
        labels=labels or "none",
        hours=long_ms(story) // HOUR_MS,
        min_pane_rows=plots.MIN_PANE_ROWS,
        drawings=_drawings(story, facts, incident),
    )


def _drawings(story: Story, facts: Facts, incident: Incident | None) -> dict[str, Markup]:
    """The plots by their names in the template."""
    drawn = {
        "flow": plots.flow(story),
        "latency_curve": plots.latency_curve(facts.latency),
        "latency_over_time": plots.latency_over_time(facts.latency),
        "precision_recall": plots.precision_recall_curves(story, facts.events, facts.qualities),
        "recall_bars": plots.recall_bars(facts.kinds),
        "alert_rate": plots.alert_rate(alert_rates(story, story.pane_ms), alert_rates(story, long_ms(story))),
        "false_positives": plots.false_positives(facts.bounds),
        "drift": plots.drift(facts.drifts),
        "steps": plots.steps_bar(story.steps),
    }
    if incident is not None:
        drawn |= {"paired_alerts": plots.paired_alerts(incident), "evidence": plots.evidence(incident)}
    return {name: drawing(svg) for name, svg in drawn.items()}


def _tiles(facts: Facts) -> list[tuple[str, str]]:
    """Value and description per tile below the title."""
    delivery = facts.delivery
    arrived = percentiles(facts.latency.arrived)
    whole = facts.qualities[0]
    inside, ripe = facts.truth_inside
    return [
        (f"{delivery.inputs:,} = {delivery.scored:,} + {delivery.dead:,}", "records in = scored + dead letters"),
        (f"{ms(arrived[50.0])} / {ms(arrived[99.0])}", "p50 / p99 until a read_committed consumer has the score"),
        (
            f"{percent(whole.alerts.precision)} / {percent(whole.alerts.recall)}",
            "precision / recall of alerts against the hidden truth",
        ),
        (number(whole.average_precision), "average precision of the ensemble"),
        (f"{inside} of {ripe}", "windows with ripe labels whose bounds contain the true false-positive rate"),
    ]


def _incident_rows(incident: Incident) -> list[list[str]]:
    return [
        [name, f"{alerts.rows:,}", f"{alerts.candidate:,}", f"{alerts.baseline:,}", alerts.rise_text]
        for name, alerts in (("all", incident.overall), ("genuine (hidden truth): false positives", incident.genuine))
    ]


def _spread(values: Floats) -> list[float]:
    """The percentiles and the maximum; NaN for no values."""
    found = percentiles(values)
    return [*(found[p] for p in PERCENTILES), float(values.max()) if len(values) else float("nan")]


def _quality_rows(story: Story, facts: Facts) -> Iterator[list[str]]:
    members = {m["name"]: m for m in story.training.get("members", [])}
    for quality in facts.qualities:
        trained = members.get(quality.name, {"feature_set": "", "weight": 1.0 if quality.name == ENSEMBLE else None})
        yield [
            quality.name,
            trained["feature_set"],
            "" if trained["weight"] is None else number(trained["weight"]),
            number(quality.average_precision),
            number(quality.roc_auc),
            percent(quality.alerts.precision),
            percent(quality.alerts.recall),
            f"{quality.alerts.caught:,} of {quality.alerts.alerts:,}",
        ]


def _waterfall_rows(alert: Explained) -> list[list[str]]:
    """Table rows from the base to z."""
    parts = [[p.name, number(p.score), number(p.weight), f"{p.contribution:+.3f}"] for p in alert.parts]
    return [["base", "", "", f"{alert.base:+.3f}"], *parts, ["z", "", "", f"{alert.z:+.3f}"]]
