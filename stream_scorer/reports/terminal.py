"""The report in a few lines of plain text."""

from __future__ import annotations

from pathlib import Path

from stream_scorer.arrays import Floats
from stream_scorer.reports.facts import Facts
from stream_scorer.reports.incident import Incident
from stream_scorer.reports.latency import PERCENTILES, percentiles
from stream_scorer.reports.pages import number, percent
from stream_scorer.reports.story import Story

_NAME = 14


def closing_report(story: Story, facts: Facts, page: Path, total_s: float) -> list[str]:
    """The lines of the report; `page` is the path of the HTML page, `total_s` the wall time with that page."""
    failed = [check for check in story.checks if not check.holds]
    lines = [f"{story.title}: {'FAILED' if failed else 'passed'} in {total_s:.0f} s on {story.machine}", ""]
    lines += [f"  {'ok  ' if check.holds else 'FAIL'} {check.name}: {check.found}" for check in story.checks]
    lines += ["", _line("latency", f"to the score: {_spread(facts.latency.scored)}")]
    lines.append(_line("", f"to a reader:  {_spread(facts.latency.arrived)}"))
    lines += [
        "",
        _line("quality", f"{'':10}{'AP':>7}{'AUC':>7}{'precision':>11}{'recall':>8}   against the hidden truth"),
    ]
    lines += [
        _line(
            "",
            f"{q.name:10}{number(q.average_precision):>7}{number(q.roc_auc):>7}"
            f"{percent(q.alerts.precision):>11}{percent(q.alerts.recall):>8}",
        )
        for q in facts.qualities
    ]
    if facts.incident is not None:
        lines += [
            "",
            *(_line("" if number else "incident", text) for number, text in enumerate(_incident(facts.incident))),
        ]
    lines.append("")
    for place, alert in enumerate(facts.explained):
        parts = " ".join(f"{part.name} {part.contribution:+.2f}" for part in alert.parts)
        head = f"{alert.kind.replace('_', ' ')} {alert.value / 100:,.2f}, score {alert.score:.3f}: "
        lines.append(_line("" if place else "alerts", f"{head}base {alert.base:+.2f} {parts} = z {alert.z:+.2f}"))
    lines.append(_line("monitor", _monitor(facts)))
    steps = ", ".join(f"{name.split(',')[0].split(';')[0]} {seconds:.0f} s" for name, seconds in story.steps.items())
    return [*lines, _line("steps", f"{steps}, this report {total_s - story.total_s:.0f} s"), _line("report", str(page))]


def _line(name: str, text: str) -> str:
    return f"  {name:{_NAME}}{text}".rstrip()


def _spread(values: Floats) -> str:
    if not len(values):
        return "no measurements"
    found = percentiles(values)
    return ", ".join(f"p{p:g} {found[p]:,.0f} ms" for p in PERCENTILES) + f", max {values.max():,.0f} ms"


def _incident(incident: Incident) -> list[str]:
    update, overall, genuine = incident.update, incident.overall, incident.genuine
    if incident.promoted is None:
        return [f"version {update.version} was not promoted"]
    lines = [
        f"version {update.version} promoted, a minor update: {update.summary}",
        f"alerts on the same {overall.rows:,} transactions: {overall.candidate:,}, previous version "
        f"{overall.baseline:,} ({overall.rise_text}); on genuine ones: {genuine.candidate:,} and "
        f"{genuine.baseline:,} ({genuine.rise_text})",
    ]
    if incident.rollback is None or incident.rollback_s is None:
        return [*lines, "it was not rolled back"]
    after = f"after {incident.rollback_s:.1f} s{_last(incident)}"
    return [*lines, f"rolled back by {incident.rollback.command.who} {after}", *_record(incident)]


def _record(incident: Incident) -> list[str]:
    """What the monitor published: its finding, the suspect, and whether the incident is closed."""
    record = incident.record
    if record is None:
        return ["no record on topic incidents"]
    lines = [
        f"incident {record.id}: {record.finding} of alerted cards, {record.candidate_only:,} transactions alerted by "
        f"version {record.version} only, {record.baseline_only:,} by version {record.baseline} only, "
        f"{record.both:,} by both",
        f"it names member {record.member or '-'}, input {record.input or '-'}: {record.difference or 'no difference'}",
    ]
    if record.saved is not None:
        lines.append(f"the rollback saved {record.saved.alerts:,} alerts on {record.saved.transactions:,} transactions")
    return [*lines, f"closed: {record.ended}" if record.closed is not None else "it is still open"]


def _last(incident: Incident) -> str:
    if incident.last_score_s is None or incident.last_score_s <= 0:
        return "; none of its scores came later"
    return f"; its last score reached a reader {1_000 * incident.last_score_s:,.0f} ms later"


def _monitor(facts: Facts) -> str:
    inside, ripe = facts.truth_inside
    text = f"{facts.windows:,} windows; "
    text += (
        f"the bounds contain the true false-positive rate in {inside} of {ripe} windows with ripe labels"
        if ripe
        else "the run was too short for ripe labels"
    )
    for name, series in list(facts.drifts.items())[:1]:
        text += f"; drift of the {name} at most {max(m.value or 0.0 for m in series):.3f}"
    return text
