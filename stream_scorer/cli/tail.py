"""`stream-scorer tail`: print the records of a topic, one readable line per record."""

from __future__ import annotations

import os
import sys
from typing import Literal

import click

from stream_scorer.cli.options import with_settings
from stream_scorer.settings import Settings


@click.command()
@click.argument("topic")
@click.option("--json", "as_json", is_flag=True, help="One JSON document per line, as on the topic.")
@click.option("--from-start", is_flag=True, help="Start with the oldest record instead of the next one.")
@click.option("-n", "count", type=click.IntRange(1), help="Stop after this number of records.")
@click.option("--values", is_flag=True, help="Also print values of transactions and transactions.dlq.")
@with_settings("kafka.bootstrap", "topics.prefix", "scorer.spec")
def tail(settings: Settings, topic: str, as_json: bool, from_start: bool, count: int | None, values: bool) -> None:
    """Print the committed records of TOPIC until Ctrl-C. TOPIC is the name of a topic or its default name.

    Values of your own topics are printed only with --values. Fields that the spec declares sensitive are never printed:
    give --spec, because without a spec no field counts as sensitive.
    """
    from stream_scorer.cli.formatting import json_line, line
    from stream_scorer.cli.topic_io import Redaction, TopicReader, optional_spec, quiet_client
    from stream_scorer.kafka.topics import Topics

    short, name = Topics.of(settings).find(topic)
    quiet_client()
    redaction = Redaction(optional_spec(settings), values=values)
    show = json_line if as_json else line
    start: Literal["beginning", "end"] = "beginning" if from_start else "end"
    left = count if count is not None else sys.maxsize
    with TopicReader(settings.require("kafka.bootstrap"), name, client_id="stream-scorer-tail", start=start) as reader:
        click.echo(f"{name}: waiting for records" if not from_start else f"{name}: from the start", err=True)
        try:
            while left:
                records = reader.read(min(left, 1_000))
                if records:
                    click.echo("\n".join(show(short, record, redaction) for record in records))
                left -= len(records)
        except BrokenPipeError:
            # The reader of the pipe is gone (`tail | head`). Python would fail to flush the rest of the buffer at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
