"""Times on the command line."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from stream_scorer.clock import EARLIEST_MS
from stream_scorer.parquet import MAX_TIME_MS


def parse_time(name: str, text: str, also: str = "") -> int:
    """Epoch ms of `text`: a time (UTC if it has no zone) or epoch ms. `also` names other forms that `name` takes.

    Raises:
        click.UsageError: it has another form.
    """
    if text.isascii() and text.isdigit():
        if int(text) < EARLIEST_MS:
            raise click.UsageError(
                f"{name} {text!r} would be epoch ms before 1974. They have 12 or 13 digits; a date is 2025-01-31."
            )
        if int(text) > MAX_TIME_MS:
            raise click.UsageError(f"{name} {text!r} would be epoch ms after the year 9999. They have 12 or 13 digits.")
        return int(text)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        forms = f"not a time (2025-01-31T12:00) or epoch ms{also}"
        raise click.UsageError(f"{name} {text!r} is {forms}.") from None
    return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1_000)
