"""The flags that choose where a command computes: in this process, or on Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from stream_scorer.workers import Workers

F = TypeVar("F", bound=Callable[..., Any])


def engine_options(command: F) -> F:
    """The flags --engine, --workers and --ray-address."""
    for option in (
        click.option("--ray-address", help="Address of a Ray cluster.  [default: a local Ray, stopped afterwards]"),
        click.option("--workers", type=click.IntRange(1), help="Workers of --engine ray.  [default: one per core]"),
        click.option(
            "--engine",
            type=click.Choice(["local", "ray"]),
            default="local",
            show_default=True,
            help="Compute in this process, or on Ray from a Parquet file, with the same results.",
        ),
    ):
        command = option(command)
    return command


def check_engine(engine: str, workers: int | None, ray_address: str | None, *, from_topics: bool) -> None:
    """Raise `click.UsageError` if the flags of `engine_options` contradict each other or the input."""
    if engine == "local" and (workers is not None or ray_address is not None):
        raise click.UsageError("--workers and --ray-address require --engine ray.")
    if engine == "ray" and from_topics:
        raise click.UsageError(
            "--engine ray reads Parquet files, not topics: write the range to a file, or use --engine local."
        )


@contextmanager
def chosen_workers(engine: str, workers: int | None, ray_address: str | None) -> Iterator[Workers | None]:
    """The workers of the chosen engine; None for this process. Raises as `ray_workers`."""
    if engine == "local":
        yield None
        return
    from stream_scorer.ray_workers import ray_workers

    with ray_workers(workers, ray_address) as started:
        yield started
