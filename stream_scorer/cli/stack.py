"""`stream-scorer stack`: start, stop and look at the local stack of real parts."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from stream_scorer.stack import SERVICES, StackAddresses, down, status, up


@click.group()
def stack() -> None:
    """Kafka, Redis and MLflow as plain local processes, on 127.0.0.1 only.

    They live below .stream-scorer/stack/ of the working directory, one stack a directory. No Docker is needed.
    """


@stack.command("up")
@click.option(
    "services",
    "--service",
    multiple=True,
    type=click.Choice(SERVICES),
    help="Start only this one; may be repeated. All three without it.",
)
@click.option(
    "use_docker",
    "--docker",
    is_flag=True,
    help="Run docker-compose.yml instead, where a Docker engine answers. Written to the compose documentation, "
    "not run by the project's tests.",
)
@click.option("as_json", "--json", is_flag=True, help="Addresses as JSON.")
def up_command(services: tuple[str, ...], use_docker: bool, as_json: bool) -> None:
    """Start the stack and wait until it answers. Starting it twice does no harm.

    Local processes are preferred to Docker also where an engine runs: so laptops, CI and containers all run the same
    parts with the same settings. The first start fetches 43 MB of Kafka; later ones, of any clone, do not.
    """
    addresses, started = up(
        Path(),
        services or SERVICES,
        on_progress=lambda text: click.echo(text, err=True),
        use_docker=use_docker,
    )
    if not started:
        click.echo("already up", err=True)
        if missing := [name for name in services if addresses.get(name) is None]:
            click.echo(f"without {', '.join(missing)}: stack down first to start it with other services", err=True)
    _print_addresses(addresses, as_json)


@stack.command("down")
@click.option("--purge", is_flag=True, help="Remove the data too: topics, models, logs.")
def down_command(purge: bool) -> None:
    """Stop the stack. Topics and models stay on disk for the next start; Redis holds nothing over a stop."""
    was_running = down(Path(), purge=purge)
    click.echo("stopped" if was_running else "nothing was running", err=True)


@stack.command("status")
@click.option("as_json", "--json", is_flag=True, help="As JSON: a list with service, address, alive and pid.")
def status_command(as_json: bool) -> None:
    """Show what runs. Exit code 1 when there is no stack or one of its services is gone."""
    found = status(Path())
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in found], indent=2))
    elif not found:
        click.echo("no stack here: stream-scorer stack up", err=True)
    else:
        table = Table("service", "address", "state", "pid")
        for entry in found:
            table.add_row(entry.service, entry.address, "up" if entry.alive else "gone", str(entry.pid or "in Docker"))
        Console().print(table)
    if not found or not all(entry.alive for entry in found):
        raise SystemExit(1)


def _print_addresses(addresses: StackAddresses, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(asdict(addresses), indent=2))
        return
    for name in SERVICES:
        if address := addresses.get(name):
            click.echo(f"{name:<8}{address}")
