"""`stream-scorer topics`: create and check the topics."""

from __future__ import annotations

import click

from stream_scorer.cli.options import with_settings
from stream_scorer.settings import Settings

# What inputs are kept for beyond the reach of features: time to notice and to repair.
MARGIN_MS = 7 * 86_400_000


def _reach_ms(settings: Settings) -> int:
    """How far back the features of the spec look (ms), lateness included; 0 without a spec."""
    if not settings["scorer.spec"]:
        return 0
    from stream_scorer.features.plan import reach_ms
    from stream_scorer.spec import load_spec

    return reach_ms(load_spec(settings["scorer.spec"]))


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
@with_settings("kafka.bootstrap", "topics.prefix", "scorer.spec")
def create(settings: Settings, partitions: int, replication: int) -> None:
    """Create every missing topic.

    With --spec, the inputs are kept for as long as features look back, and a week more.
    """
    from stream_scorer.kafka.topics import TopicAdmin, Topics

    names = Topics.of(settings)
    reach_ms = _reach_ms(settings)
    created = TopicAdmin(settings.require("kafka.bootstrap")).create_all(
        names, partitions, replication=replication, keep_ms=reach_ms + MARGIN_MS if reach_ms else 0
    )
    for name in names.all():
        click.echo(f"{name}\t{'created' if name in created else 'exists'}")


@topics.command()
@click.option(
    "--role",
    type=click.Choice(["scorer", "monitor", "operator", "subscriber", "trainer", "auditor", "producer"]),
    required=True,
    help="Role whose ACLs are printed (docs/security.md).",
)
@click.option("--principal", help="Principal that gets the ACLs.  [default: User:<role>]")
@with_settings("topics.prefix", "scorer.group", "monitor.group", "monitor.mode")
def acls(settings: Settings, role: str, principal: str | None) -> None:
    """Print the kafka-acls.sh commands that give a principal what a role needs, and nothing else.

    A monitor gets the right to issue commands only in mode `auto` (`--mode auto`). Connects to nothing.
    """
    from typing import cast

    from stream_scorer.kafka.permissions import Role, acl_commands, names_of, permissions

    who = principal or f"User:{role}"
    user = who.partition(":")[2]
    for command in acl_commands(permissions(cast(Role, role), names_of(settings), user), who):
        click.echo(command)


@topics.command()
@with_settings("kafka.bootstrap", "topics.prefix", "scorer.spec")
def check(settings: Settings) -> None:
    """Check that every topic exists, that partition counts agree, and that no setting loses records.

    With --spec, also that the inputs are kept for as long as features look back.
    """
    from stream_scorer.errors import CheckFailed
    from stream_scorer.kafka.topic_config import find_problems
    from stream_scorer.kafka.topics import TopicAdmin, Topics

    names = Topics.of(settings)
    admin = TopicAdmin(settings.require("kafka.bootstrap"))
    counts = admin.require(names.of_partitions()) | admin.require(names.of_one_partition())
    problems = find_problems(names, admin.configs(counts), admin.replicas(), _reach_ms(settings))
    for name, count in counts.items():
        click.echo("\t".join([name, f"{count} partitions", *problems.get(name, [])]))
    if problems:
        raise CheckFailed(
            f"topics with wrong settings: {', '.join(problems)}",
            hint="Change them with `kafka-configs.sh --alter --entity-type topics --entity-name TOPIC --add-config …`.",
        )
