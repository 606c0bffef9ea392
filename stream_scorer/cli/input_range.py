"""A range of transactions and labels as input of a command: from the topics, or from files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from stream_scorer.cli.times import parse_time

if TYPE_CHECKING:
    from stream_scorer.replay.pieces import Range

F = TypeVar("F", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path, dir_okay=False)
_OFFSETS = re.compile(r"[0-9]+:[0-9]+(,[0-9]+:[0-9]+)*")


def period_options(command: F) -> F:
    """The flags --start and --end, which also take offsets."""
    for option in (
        click.option("--end", help="End, exclusive, in the format of --start."),
        click.option(
            "--start", help="First record: ISO time, epoch ms, or offsets such as 0:1500,1:900.  [default: all]"
        ),
    ):
        command = option(command)
    return command


def input_options(command: F) -> F:
    """The flags --from-topics, --transactions, --labels, --start, --end and --warm."""
    warm = click.option(
        "--warm", is_flag=True, help="Build features from the records before --start instead of starting empty."
    )
    command = period_options(warm(command))
    for option in (
        click.option("--labels", type=_FILE, help="File of the labels for --transactions."),
        click.option(
            "--transactions", type=_FILE, help="Read this file instead: Parquet, or JSON lines as on the topic."
        ),
        click.option(
            "--from-topics", is_flag=True, help="Read `transactions` and `labels` from Kafka, without a consumer group."
        ),
    ):
        command = option(command)
    return command


def check_input(from_topics: bool, transactions: Path | None, labels: Path | None) -> None:
    """Raise `click.UsageError` if the flags of `input_options` name no input, or several."""
    if from_topics == (transactions is not None):
        raise click.UsageError("Give either --from-topics or --transactions FILE.")
    if transactions is None and labels is not None:
        raise click.UsageError("--labels requires --transactions; with --from-topics, labels come from their topic.")


def period(start: str | None, end: str | None, *, offsets_allowed: bool) -> Range:
    """The range of --start and --end. Raises `click.UsageError`."""
    from stream_scorer.replay.pieces import Range

    times: dict[str, int | None] = {"start": None, "end": None}
    offsets: dict[str, dict[int, int] | None] = {"start": None, "end": None}
    for name, text in (("start", start), ("end", end)):
        if text is None:
            continue
        if _OFFSETS.fullmatch(text):
            if not offsets_allowed:
                raise click.UsageError(f"--{name} {text}: offsets require topics; give a time.")
            offsets[name] = {int(p): int(o) for p, _, o in (part.partition(":") for part in text.split(","))}
        else:
            times[name] = parse_time(f"--{name}", text, " or offsets (0:1500,1:900)")
    if times["start"] is not None and times["end"] is not None and times["start"] >= times["end"]:
        raise click.UsageError("--start must be before --end.")
    return Range(times["start"], times["end"], offsets["start"], offsets["end"])
