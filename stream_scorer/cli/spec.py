"""`stream-scorer spec`: check a pipeline spec."""

from __future__ import annotations

import click
import msgspec

from stream_scorer.cli.groups import CommandGroup
from stream_scorer.spec import load_spec


@click.group(cls=CommandGroup)
def spec() -> None:
    """Check a pipeline spec."""


@spec.command()
@click.argument("path", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(path: str, as_json: bool) -> None:
    """Check the spec at PATH and print its features and hashes."""
    checked = load_spec(path)
    found = {
        "name": checked.spec.name,
        "version": checked.spec.version,
        "spec_hash": checked.sha256,
        "feature_hash": checked.feature_hash,
        "rows_hash": checked.rows_hash,
        "features": checked.features,
        "sensitive": checked.sensitive_fields,
        "hashed": checked.sensitive_entities,
        "rates": checked.spec.transaction.rates,
    }
    if as_json:
        click.echo(msgspec.json.encode(found).decode())
        return
    click.echo(f"{checked.spec.name} version {checked.spec.version}: {len(checked.features)} features")
    click.echo(f"spec {checked.sha256[:12]}, features {checked.feature_hash[:12]}, rows {checked.rows_hash[:12]}")
    for name in checked.features:
        click.echo(f"  {name}")
    shape = checked.spec.transaction
    rates = ", ".join(f"{name} {rate:g}" for name, rate in shape.rates.items())
    click.echo(f"amounts are converted: {rates}" if rates else "amounts are of one currency")
    if checked.sensitive_fields:
        click.echo(f"never published: {', '.join(checked.sensitive_fields)}")
    if checked.sensitive_entities:
        click.echo(f"ids stored and published as keyed hashes: {', '.join(checked.sensitive_entities)}")
        click.echo("the scorer requires the setting scorer.id_key")
