"""HTML pages from Jinja2 templates: self-contained, autoescaped, and the same bytes for the same input.

The templates are in `templates/`. Every page extends `base.html.j2`, whose content security policy forbids external
resources.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stream_scorer.errors import SettingsError, install_hint

if TYPE_CHECKING:
    from markupsafe import Markup

_HINT = install_hint("report")


def ms(value: float) -> str:
    """Milliseconds; a dash for NaN."""
    return "-" if value != value else f"{value:,.0f} ms"


def number(value: float | None) -> str:
    """Three decimal places; a dash for None, NaN and infinity."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.3f}"


def percent(value: float | None) -> str:
    """A share in percent; a dash for None."""
    return "-" if value is None else f"{value:.1%}"


def require_plots() -> None:
    """Raise `SettingsError`, which names the extra to install, if matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise SettingsError("plots need matplotlib", hint=_HINT) from None


def drawing(svg: str) -> Markup:
    """Mark an SVG of `stream_scorer.reports.plots` as markup for a template; matplotlib has escaped its text."""
    from markupsafe import Markup

    return Markup(svg)  # noqa: S704


def render(template: str, **context: Any) -> str:
    """Render `template` with `context`; every value is escaped. Raises `SettingsError` without Jinja2."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise SettingsError("pages need Jinja2", hint=_HINT) from None
    environment = Environment(
        loader=PackageLoader("stream_scorer.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "count": lambda value: f"{value:,}",
        "ms": ms,
        "number": number,
        "percent": percent,
        "signed": lambda value: f"{value:+.3f}",
        "utc": lambda value: f"{datetime.fromtimestamp(value / 1_000, UTC):%d %b %Y %H:%M}",
    }
    return environment.get_template(template).render(context)


def write(text: str, path: Path) -> None:
    """Write a page to `path` and create its folder. Raises `SettingsError` if that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"cannot write {path}: {error.strerror}") from None
