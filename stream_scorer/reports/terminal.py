"""The report in a few lines of plain text."""

from __future__ import annotations

from pathlib import Path

from stream_scorer.reports.story import Story


def closing_report(story: Story, page: Path) -> list[str]:
    """The lines; `page` is where the long form stands."""
    lines = [f"{'ok  ' if check.holds else 'FAIL'} {check.name}: {check.found}" for check in story.checks]
    lines += [f"{seconds:6.1f} s  {name}" for name, seconds in story.steps.items()]
    return [*lines, f"{story.total_s:6.1f} s  in all", f"report: {page}"]
