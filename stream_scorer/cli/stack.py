"""`stream-scorer stack`: start, stop and show the local stack of Kafka, Redis and MLflow."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from stream_scorer.cli.groups import CommandGroup
from stream_scorer.console import make_table, print_table
from stream_scorer.stack import SERVICES, StackAddresses, down, status, up


@click.group(cls=CommandGroup)
def stack() -> None:
    """Run Kafka, Redis and MLflow as local processes on 127.0.0.1. Docker is not required.

    The data is in .stream-scorer/stack/ of the working directory; each directory has its own stack.
    """


@stack.command("up")
@click.option(
    "services",
    "--service",
    multiple=True,
    type=click.Choice(SERVICES),
    help="Start only this service; may be repeated.  [default: all three]",
)
@click.option(
    "use_docker",
    "--docker",
    is_flag=True,
    help="Run docker-compose.yml instead, if a Docker engine answers. The project's tests do not cover this.",
)
@click.option("as_json", "--json", is_flag=True, help="Addresses as JSON.")
def up_command(services: tuple[str, ...], use_docker: bool, as_json: bool) -> None:
    """Start the stack and wait until it answers. Does nothing if the stack already runs.

    Local processes are the default even if a Docker engine runs, so that laptops, CI and containers run the same parts
    with the same settings. The first start on a machine downloads 43 MB of Kafka.
    """
    addresses, started = up(
        Path(),
        services or SERVICES,
        on_progress=lambda text: click.echo(text, err=True),
        use_docker=use_docker,
    )
    if not started:
        click.echo("the stack already runs", err=True)
        if missing := [name for name in services if addresses.get(name) is None]:
            click.echo(f"{', '.join(missing)} not started: run `stack down` first to change the services", err=True)
    _print_addresses(addresses, as_json)


@stack.command("down")
@click.option("--purge", is_flag=True, help="Also delete the data: topics, models, logs.")
def down_command(purge: bool) -> None:
    """Stop the stack. Topics and models stay on disk for the next start; the content of Redis is lost."""
    was_running = down(Path(), purge=purge)
    click.echo("stopped" if was_running else "no stack was running", err=True)


@stack.command("status")
@click.option("as_json", "--json", is_flag=True, help="As JSON: a list with service, address, alive and pid.")
def status_command(as_json: bool) -> None:
    """Show the services. Exit code 1 if there is no stack or a service has stopped."""
    found = status(Path())
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in found], indent=2))
    elif not found:
        click.echo("this directory has no stack: run `stream-scorer stack up`", err=True)
    else:
        rows = [(e.service, e.address, "up" if e.alive else "stopped", str(e.pid or "in Docker")) for e in found]
        print_table(make_table(("service", "address", "state", "pid"), rows))
    if not found or not all(entry.alive for entry in found):
        raise SystemExit(1)


def _print_addresses(addresses: StackAddresses, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(asdict(addresses), indent=2))
        return
    for name in SERVICES:
        if address := addresses.get(name):
            click.echo(f"{name:<8}{address}")
