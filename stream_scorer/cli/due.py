"""`stream-scorer ensemble due`: whether an ensemble should be trained again."""

from __future__ import annotations

import re
from pathlib import Path

import click
import msgspec

from stream_scorer.cli.incident import incident_table
from stream_scorer.cli.options import with_settings
from stream_scorer.clock import SystemClock
from stream_scorer.errors import CheckFailed
from stream_scorer.settings import Settings
from stream_scorer.spec.model import duration_ms


@click.command("due")
@click.argument("reference")
@click.option("--max-age", help="Due if the newest training row is older, such as 30d.")
@click.option("--drift", is_flag=True, help="Due if a drift incident began after the newest training row.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@with_settings("mlflow.url", "cache.dir", "kafka.bootstrap", "topics.prefix")
def due(settings: Settings, reference: str, max_age: str | None, drift: bool, as_json: bool) -> None:
    """Check whether ensemble REFERENCE should be trained again; exit code 3 if so, with the reasons.

    Drift events come from the topic of incidents.
    """
    from stream_scorer.ensemble.manifest import read_manifest
    from stream_scorer.ensemble.registry import resolve
    from stream_scorer.train.due import training_due

    if max_age is None and not drift:
        raise click.UsageError("Give --max-age, --drift, or both.")
    if max_age is not None and not re.fullmatch(r"[0-9]+(ms|s|m|h|d)", max_age):
        raise click.UsageError(f"--max-age {max_age!r} is not a duration, such as 30d.")
    path, version = resolve(reference, settings["mlflow.url"], Path(settings["cache.dir"]).expanduser())
    incidents = list(incident_table(settings).newest.values()) if drift else []
    reasons = training_due(
        read_manifest(path), SystemClock().now_ms(), None if max_age is None else duration_ms(max_age), incidents
    )
    if as_json:
        found = {"ensemble": reference, "version": version, "due": bool(reasons), "reasons": reasons}
        click.echo(msgspec.json.encode(found))
    elif not reasons:
        click.echo(f"{reference} is not due")
    for reason in () if as_json else reasons:
        click.echo(reason.text)
    if reasons:
        raise CheckFailed(f"{reference} is due for another training")
