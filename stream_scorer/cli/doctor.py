"""`stream-scorer doctor`: print every setting with its source and bounds, and check that each part answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from stream_scorer.cli.options import with_settings
from stream_scorer.settings import CATALOGUE, Settings

if TYPE_CHECKING:
    from stream_scorer.kafka.permissions import Role


@click.command()
@click.option(
    "--role",
    type=click.Choice(["scorer", "monitor", "operator", "subscriber", "trainer", "auditor", "producer"]),
    default="scorer",
    show_default=True,
    help="Role whose permissions on Kafka are checked (docs/security.md).",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@with_settings(*(setting.name for setting in CATALOGUE))
def doctor(settings: Settings, role: Role, as_json: bool) -> int:
    """Show every setting with its source and its allowed values, then check each part that a scorer needs.

    Changes nothing, except that a download may fill the model cache. Skips checks whose settings are not set. Exit code
    0 if every check passes, 1 if one fails.
    """
    from stream_scorer.cli.checks import run_checks, setting_rows
    from stream_scorer.cli.topic_io import quiet_client
    from stream_scorer.console import columns

    quiet_client()
    rows = setting_rows(settings)
    if as_json:
        found = list(run_checks(settings, role))
        healthy = all(check.state != "failed" for check in found)
        click.echo(msgspec.json.encode({"ok": healthy, "settings": rows, "checks": found}).decode())
        return 0 if healthy else 1
    table = [
        ["setting", "value", "from", "allowed"],
        *([row.name, row.value or "-", row.source, row.allowed or "any text"] for row in rows),
    ]
    for text in columns(table):
        click.echo(text)
    click.echo()
    failed = 0
    for check in run_checks(settings, role):
        failed += check.state == "failed"
        click.echo(f"{check.state:<8}{check.name:<14}{check.message}")
        if check.hint:
            click.echo(f"{'':<22}{check.hint}")
    click.echo(f"\n{failed} check{'s' if failed > 1 else ''} failed" if failed else "\nno check failed")
    return 1 if failed else 0
