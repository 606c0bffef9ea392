"""`stream-scorer dlq`: list dead letters."""

from __future__ import annotations

import click
import msgspec

from stream_scorer.cli.groups import CommandGroup
from stream_scorer.cli.options import with_settings
from stream_scorer.settings import Settings


@click.group(cls=CommandGroup)
def dlq() -> None:
    """List dead letters: records that could not be scored."""


@dlq.command("list")
@click.option("--code", help="Only this error code.")
@click.option(
    "-n", "examples", type=click.IntRange(0), default=1, show_default=True, help="Number of newest examples per code."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.option(
    "--values",
    is_flag=True,
    help="Also print the values of the examples; without --spec, sensitive fields are not hidden.",
)
@with_settings("kafka.bootstrap", "topics.prefix", "scorer.spec")
def list_command(settings: Settings, code: str | None, examples: int, as_json: bool, values: bool) -> None:
    """Count dead letters by error code and show the newest of each. docs/errors.md explains the codes."""
    from stream_scorer.cli.dead_letters import dead_letter_lines, group_dead_letters
    from stream_scorer.cli.topic_io import Redaction, TopicReader, optional_spec, quiet_client
    from stream_scorer.kafka.topics import Topics

    quiet_client()
    redaction = Redaction(optional_spec(settings), values=values)
    topic = Topics.of(settings).dead_letters
    with TopicReader(
        settings.require("kafka.bootstrap"), topic, client_id="stream-scorer-dlq", start="beginning"
    ) as reader:
        groups = group_dead_letters(reader.read_to_end(), redaction, examples=examples, code=code)
    if as_json:
        total = sum(group.count for group in groups)
        click.echo(msgspec.json.encode({"topic": topic, "count": total, "codes": groups}).decode())
        return
    for text in dead_letter_lines(groups):
        click.echo(text)
    if not groups:
        click.echo(f"{topic}: no dead letters{f' with code {code}' if code else ''}", err=True)
