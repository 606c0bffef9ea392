"""`stream-scorer topics`: create and check the topics."""

from __future__ import annotations

import click

from stream_scorer.cli.groups import CommandGroup
from stream_scorer.cli.options import with_settings
from stream_scorer.settings import Settings

# What topics are kept for beyond what is needed: time to notice and to repair.
MARGIN_MS = 7 * 86_400_000


def spans_of_spec(settings: Settings) -> tuple[int, int, int]:
    """How far back the features of the spec look, its label horizon, and how long labels count (ms); 0 without a spec.

    The first and the last include the lateness.
    """
    if not settings["scorer.spec"]:
        return 0, 0, 0
    from stream_scorer.features.plan import reach_ms
    from stream_scorer.monitor.joiner import JoinRules
    from stream_scorer.spec import load_spec

    checked = load_spec(settings["scorer.spec"])
    rules = JoinRules.of(checked.spec)
    return reach_ms(checked), rules.horizon_ms, rules.rows_kept_ms


@click.group(cls=CommandGroup)
def topics() -> None:
    """Create or check the topics."""


@topics.command()
@click.option(
    "--partitions",
    type=click.IntRange(1, 1024),
    help="Partitions of each partitioned topic.  [default: as the topics that exist, else 4]",
)
@click.option(
    "--replication",
    type=click.IntRange(1, 9),
    help="Replicas of each partition.  [default: as the topics that exist, else the broker's default]",
)
@with_settings("kafka.bootstrap", "topics.prefix", "scorer.spec")
def create(settings: Settings, partitions: int | None, replication: int | None) -> None:
    """Create every missing topic.

    With --spec, the inputs are kept for as long as features look back, scores and labels for as long as labels count,
    outcomes for four times the label horizon, and all of them for a week more.
    """
    from stream_scorer.kafka.topic_config import needed_retention
    from stream_scorer.kafka.topics import TopicAdmin, Topics

    names = Topics.of(settings)
    needed = needed_retention(names, *spans_of_spec(settings))
    created = TopicAdmin(settings.require("kafka.bootstrap")).create_all(
        names,
        partitions,
        replication=replication,
        keep_ms={name: need.ms + MARGIN_MS for name, need in needed.items() if need.ms},
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

    A monitor gets the right to issue commands only in mode `auto` (`--mode auto`); in another mode, this ACL is a
    comment. Connects to nothing.
    """
    from typing import cast

    from stream_scorer.kafka.permissions import GROUPS, Role, acl_commands, names_of, permissions, to_command

    who = principal or f"User:{role}"
    kind, _, user = who.partition(":")
    if not kind or not user:
        raise click.BadParameter(
            f"{who!r} is not a principal of Kafka, such as User:{who.strip(':')}", param_hint="--principal"
        )
    if role in GROUPS:
        settings.group(GROUPS[role])
    names = names_of(settings)
    for command in acl_commands(permissions(cast(Role, role), names, user), who):
        click.echo(command)
    if role == "monitor" and not names.commands:
        click.echo("# Only for monitor.mode auto, in which the monitor issues commands:")
        for command in acl_commands([to_command(names.topics)], who):
            click.echo(f"# {command}")


@topics.command()
@with_settings("kafka.bootstrap", "topics.prefix", "scorer.spec")
def check(settings: Settings) -> None:
    """Check that every topic exists, that partition counts agree, and that no setting loses records.

    With --spec, also that inputs, scores and outcomes are kept for long enough. Exit code 3 if a topic has wrong
    settings.
    """
    from stream_scorer.errors import CheckFailed
    from stream_scorer.kafka.topic_config import find_problems
    from stream_scorer.kafka.topics import TopicAdmin, Topics

    names, needed = Topics.of(settings), spans_of_spec(settings)
    admin = TopicAdmin(settings.require("kafka.bootstrap"))
    counts = admin.require(names.of_partitions()) | admin.require(names.of_one_partition())
    problems = find_problems(names, admin.configs(counts), admin.replicas(), *needed, brokers=admin.brokers())
    for name, count in counts.items():
        click.echo("\t".join([name, f"{count} partitions", *problems.get(name, [])]))
    if problems:
        raise CheckFailed(
            f"topics with wrong settings: {', '.join(problems)}",
            hint="Change them with `kafka-configs.sh --alter --entity-type topics --entity-name TOPIC --add-config …`, "
            "and replicas with `kafka-reassign-partitions.sh`.",
        )
