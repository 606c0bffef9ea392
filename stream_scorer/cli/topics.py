"""`stream-scorer topics`: create and check the topics."""

from __future__ import annotations

import click

from stream_scorer.cli.options import with_settings
from stream_scorer.settings import Settings


@click.group()
def topics() -> None:
    """Create or check the topics."""


@topics.command()
@click.option(
    "--partitions",
    type=click.IntRange(1, 1024),
    default=4,
    show_default=True,
    help="Partitions of each partitioned topic.",
)
@click.option(
    "--replication", type=click.IntRange(1, 9), default=1, show_default=True, help="Replicas of each partition."
)
@with_settings("kafka.bootstrap", "topics.prefix")
def create(settings: Settings, partitions: int, replication: int) -> None:
    """Create every missing topic."""
    from stream_scorer.kafka.topics import TopicAdmin, Topics

    names = Topics(settings["topics.prefix"])
    created = TopicAdmin(settings.require("kafka.bootstrap")).create_all(names, partitions, replication=replication)
    for name in names.all():
        click.echo(f"{name}\t{'created' if name in created else 'exists'}")


@topics.command()
@with_settings("kafka.bootstrap", "topics.prefix")
def check(settings: Settings) -> None:
    """Check that every topic exists and that partition counts agree."""
    from stream_scorer.kafka.topics import TopicAdmin, Topics

    names = Topics(settings["topics.prefix"])
    admin = TopicAdmin(settings.require("kafka.bootstrap"))
    counts = admin.require(names.of_partitions()) | admin.require(names.of_one_partition())
    for name, count in counts.items():
        click.echo(f"{name}\t{count} partitions")
