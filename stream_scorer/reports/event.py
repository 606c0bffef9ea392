"""The explanation of one score as text, as an HTML page, or as a PNG."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stream_scorer.console import plain
from stream_scorer.errors import SettingsError
from stream_scorer.replay.explain import Explanation, MemberPart
from stream_scorer.reports import plots
from stream_scorer.reports.explain import Explained, Part
from stream_scorer.reports.pages import drawing, render, require_plots, write

# A line has at most 80 columns: name, number, then the bar.
_NAME, _BAR = 16, 48


def as_text(explanation: Explanation) -> str:
    """Summary, waterfall and the strongest inputs per member, in lines of at most 80 characters."""
    lines = [*_head(explanation), "", *_waterfall(explanation), ""]
    for part in explanation.members:
        lines += [*_member_lines(part), ""]
    return "\n".join(map(plain, lines)).rstrip()


def write_page(explanation: Explanation, path: Path) -> None:
    """Write the explanation as one self-contained HTML page.

    Raises `SettingsError` if matplotlib or Jinja2 is missing, or if the file cannot be written.
    """
    require_plots()
    waterfall = drawing(plots.waterfall(to_explained(explanation), 1)) if explanation.contribution.z is not None else ""
    text = render(
        "explanation.html.j2",
        score=explanation.score,
        head=_head(explanation),
        waterfall=waterfall,
        members=[_member(part) for part in explanation.members],
    )
    write(text, path)


def write_picture(explanation: Explanation, path: Path) -> None:
    """Write the waterfall as PNG. Raises `SettingsError` as `write_page` does, and without a z."""
    require_plots()
    if explanation.contribution.z is None:
        raise SettingsError("there is no z to draw: the quorum failed")
    try:
        plots.waterfall_picture(to_explained(explanation), path)
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error.strerror}") from None


def to_explained(explanation: Explanation) -> Explained:
    """Convert to the input of the plots."""
    score, contribution = explanation.score, explanation.contribution
    return Explained(
        event_id=score.event_id,
        event_time=score.event_time,
        value=score.value,
        decision=score.decision,
        kind="",
        base=contribution.base or 0.0,
        parts=[
            Part(p.name, float("nan") if p.score is None else p.score, p.weight, p.contribution)
            for p in explanation.members
        ],
        z=contribution.z or 0.0,
        score=contribution.score or 0.0,
        unit=_unit(explanation.lineage.link),
    )


def _head(explanation: Explanation) -> list[str]:
    score, contribution = explanation.score, explanation.contribution
    when = datetime.fromtimestamp(score.event_time / 1_000, UTC)
    by = {"model": "by its score", "fallback": "fallback: no quorum", "list": f"by the list {score.rule}"}
    shown = "none" if score.score is None else f"{score.score:.4f}"
    lines = [
        f"event      {score.event_id}, {when:%Y-%m-%d %H:%M:%S} UTC, value {score.value:,} (minor units)",
        f"decision   {score.decision} ({by.get(score.decision_source, score.decision_source)}), policy "
        f"{score.policy_version}: review {explanation.review:.4g}, block {explanation.block:.4g}",
        f"score      {shown} by {score.ensemble} {score.version}, {score.arm}; coverage {score.coverage:.0%}",
    ]
    if score.rule and score.decision_source != "list":
        lines.append(f"segment    {score.rule}")
    if score.degraded:
        lines.append(f"degraded   {', '.join(score.degraded)}")
    if score.duplicate:
        lines.append("duplicate  the event id occurred before")
    if explanation.copies > 1:
        lines.append(f"copies     {explanation.copies} scores have this event id; this is the first")
    for other in contribution.alternatives:
        z = "none" if other.z is None else f"{other.z:.3f}"
        lines.append(f"other      {other.version} would have decided {other.decision} (z {z})")
    if not explanation.same:
        lines.append("WARNING    a recomputed member score differs from the record: run `stream-scorer verify`")
    return lines


def _unit(link: str) -> str:
    return {"logit": "log-odds"}.get(link, link)


def _waterfall(explanation: Explanation) -> list[str]:
    contribution, link = explanation.contribution, explanation.lineage.link
    if contribution.z is None or contribution.base is None:
        return ["no z: too few members returned a score"]
    unit = _unit(link)
    rows: list[tuple[str, float, float, float]] = [("base", contribution.base, 0.0, contribution.base)]
    at = contribution.base
    for part in explanation.members:
        rows.append((part.name, part.contribution, at, at + part.contribution))
        at += part.contribution
    rows.append(("z", contribution.z, 0.0, contribution.z))
    low = min(min(start, end) for _, _, start, end in rows)
    high = max(max(start, end) for _, _, start, end in rows)
    scale = (_BAR - 1) / max(high - low, 1e-12)
    lines = [f"{'from base to z':{_NAME}} {unit:>10}"]
    for name, value, start, end in rows:
        left, right = (round((edge - low) * scale) for edge in (min(start, end), max(start, end)))
        mark = "=" if name in ("base", "z") else ("+" if value >= 0 else "-")
        lines.append(f"{name[:_NAME]:{_NAME}} {value:+10.3f}  {' ' * left}{mark * max(right - left, 1)}")
    return lines


def _member_lines(part: MemberPart) -> list[str]:
    shown = "no score" if part.score is None else f"score {part.score:.4f}"
    lines = [f"{part.name}: {shown} ({part.status}), weight {part.weight:.1%}; {part.how}"]
    for feature in part.inside:
        value = "none" if feature.value is None else f"{feature.value:.6g}"
        status = "" if feature.status == "fresh" else f" ({feature.status})"
        lines.append(f"  {feature.contribution:+9.3f}  {feature.feature[:36]:36} = {value}{status}")
    return lines


def _member(part: MemberPart) -> dict[str, Any]:
    """The member's values for the page template."""
    return {
        "name": part.name,
        "contribution": part.contribution,
        "score": "no score" if part.score is None else f"{part.score:.4f}",
        "weight": part.weight,
        "how": part.how,
        "inputs": [
            (f.feature, "" if f.value is None else f"{f.value:.6g}", f.status, f"{f.contribution:+.3f}")
            for f in part.inside
        ],
    }
