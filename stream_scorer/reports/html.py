"""The report as one self-contained HTML page."""

from __future__ import annotations

import html
from pathlib import Path

from stream_scorer.reports.story import Story


def write_page(story: Story, path: Path) -> Path:
    """Write the page to `path` and return it."""
    rows = "".join(
        f"<tr><td>{'ok' if c.holds else 'FAILED'}</td><td>{html.escape(c.name)}</td><td>{html.escape(c.found)}</td></tr>"
        for c in story.checks
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<!doctype html><title>{html.escape(story.title)}</title><table>{rows}</table>", encoding="utf-8")
    return path
