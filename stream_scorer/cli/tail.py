"""`stream-scorer tail`: what a topic holds, one readable line a record."""

from __future__ import annotations

import os
import sys
from typing import Literal

import click

from stream_scorer.cli.options import with_settings
from stream_scorer.settings import Settings


@click.command()
@click.argument("topic")
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line, as it stands in the topic.")
@click.option("--from-start", is_flag=True, help="Begin with the oldest record. Without it: with what comes now.")
@click.option("-n", "count", type=click.IntRange(1), help="End after so many records.")
@click.option("--values", is_flag=True, help="Print the users' values too (transactions, transactions.dlq).")
@with_settings("kafka.bootstrap", "topics.prefix", "scorer.spec")
def tail(settings: Settings, topic: str, as_json: bool, from_start: bool, count: int | None, values: bool) -> None:
    """Follow TOPIC and print its committed records until Ctrl-C. The topic prefix may be left out.

    Users' values are printed with --values only, and fields that the spec declares sensitive never: name it with
    --spec, because without it nothing is known to be sensitive.
    """
    from stream_scorer.cli.formatting import json_line, line
    from stream_scorer.cli.topic_io import Shown, TopicReader, optional_spec, quiet_client, topic_name

    short, name = topic_name(topic, settings["topics.prefix"])
    quiet_client()
    shown = Shown(optional_spec(settings), values=values)
    show = json_line if as_json else line
    start: Literal["beginning", "end"] = "beginning" if from_start else "end"
    left = count if count is not None else sys.maxsize
    with TopicReader(settings.require("kafka.bootstrap"), name, client_id="stream-scorer-tail", start=start) as reader:
        click.echo(f"{name}: waiting for records" if not from_start else f"{name}: from the start", err=True)
        try:
            while left:
                records = reader.read(min(left, 1_000))
                if records:
                    click.echo("\n".join(show(short, record, shown) for record in records))
                left -= len(records)
        except BrokenPipeError:
            # `tail | head` has seen enough. What is left in the buffer has no reader: at exit it goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
