"""The only table of who may do what on Kafka: the ACLs of each role, and the check that a user has them.

docs/security.md describes the roles. Only operators, and monitors in mode `auto`, may write to `control`.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AclOperation  # type: ignore[attr-defined]

from stream_scorer.clock import Deadline
from stream_scorer.errors import UsageError
from stream_scorer.kafka.clients import find_refusal, open_admin
from stream_scorer.kafka.config import client_config
from stream_scorer.kafka.errors import COORDINATOR_MOVES, as_domain_error, is_denied, kafka_error
from stream_scorer.kafka.topics import Topics
from stream_scorer.settings import Settings

Role = Literal["scorer", "monitor", "operator", "subscriber", "trainer", "auditor", "producer"]
ROLES: tuple[Role, ...] = ("scorer", "monitor", "operator", "subscriber", "trainer", "auditor", "producer")
# The setting of the group that a role needs.
GROUPS: Mapping[str, str] = {"scorer": "scorer.group", "monitor": "monitor.group"}
Kind = Literal["topic", "group", "transactional-id"]
_TOPIC_TIMEOUT_S, _GROUP_TIMEOUT_S, _RETRY_S = 10.0, 30.0, 0.2

_READ, _WRITE, _CONFIGS = ("Read", "DescribeConfigs"), ("Write", "DescribeConfigs"), ("Describe", "DescribeConfigs")
# What the groups of readers without commits begin with: librdkafka looks up their coordinator all the same.
_READERS = "stream-scorer-"
_OUTPUTS = ("scores", "contributions", "lineage", "alerts", "review_sample", "score_summaries", "dead_letters")
# Operations by topic. Read and Write include Describe. `topics check` and the check at the start of a scorer need
# DescribeConfigs.
_TOPICS: Mapping[Role, Mapping[str, tuple[str, ...]]] = {
    "scorer": {
        **dict.fromkeys(("transactions", "labels", "control", "serving_state"), _READ),
        **dict.fromkeys((*_OUTPUTS, "scorer_status", "audit"), _WRITE),
        "serving_state": ("Read", "Write", "DescribeConfigs"),
    },
    "monitor": {
        **dict.fromkeys(("scores", "labels", "score_summaries", "control", "scorer_status", "dead_letters"), ("Read",)),
        "transactions": ("Describe",),
        "outcomes": ("Read", "Write"),
        "monitor_metrics": ("Write",),
        **dict.fromkeys(("incidents", "verdicts"), ("Read", "Write")),
    },
    "operator": {
        **dict.fromkeys(("transactions", "labels"), ("Create", *_CONFIGS)),
        **dict.fromkeys((*_OUTPUTS, "outcomes", "monitor_metrics"), ("Create", *_READ)),
        **dict.fromkeys(("serving_state", "scorer_status", "audit", "verdicts"), ("Create", *_READ)),
        **dict.fromkeys(("control", "incidents"), ("Create", "Read", "Write", "DescribeConfigs")),
    },
    "subscriber": dict.fromkeys(
        ("scores", "contributions", "alerts", "review_sample", "outcomes", "monitor_metrics", "incidents"), ("Read",)
    ),
    "trainer": {
        # Their retention shows from when on they are complete.
        **dict.fromkeys(("transactions", "labels"), _READ),
        **dict.fromkeys(("scores", "contributions", "lineage", "outcomes"), ("Read",)),
    },
    "auditor": dict.fromkeys(
        (
            "transactions",
            "scores",
            "contributions",
            "lineage",
            "dead_letters",
            "control",
            "audit",
            "serving_state",
            "incidents",
        ),
        ("Read",),
    ),
    "producer": dict.fromkeys(("transactions", "labels"), ("Write",)),
}


@dataclass(frozen=True, slots=True)
class Permission:
    """Operations on one resource. With `prefixed`, on all resources whose name begins with `name`."""

    kind: Kind
    name: str
    operations: tuple[str, ...]
    prefixed: bool = False


@dataclass(frozen=True, slots=True)
class Names:
    """The names that depend on the settings. `commands`: the monitor issues commands (`monitor.mode` is `auto`)."""

    topics: Topics
    scorer_group: str
    monitor_group: str
    commands: bool = False


def names_of(settings: Settings) -> Names:
    """The names that the settings give."""
    groups = settings["scorer.group"], settings["monitor.group"]
    return Names(Topics.of(settings), *groups, commands=settings["monitor.mode"] == "auto")


def joiner_name(monitor_group: str, topics: Topics) -> str:
    """The consumer group and transactional id of the label joiner."""
    return f"{monitor_group}-joiner-{topics.prefix or 'default'}"


def permissions(role: Role, names: Names, user: str = "") -> list[Permission]:
    """What `role` needs.

    A subscriber named `user` may use the consumer group of that name, and those that begin with it and "-".

    Raises:
        UsageError: the group of scorers or monitors is among them.
    """
    of_topics = dict(_TOPICS[role])
    if role == "monitor" and names.commands:
        of_topics["control"] = ("Read", "Write")
    found = [Permission("topic", getattr(names.topics, key), operations) for key, operations in of_topics.items()]
    if role == "scorer":
        found.append(Permission("group", names.scorer_group, ("Read",)))
        found.append(Permission("transactional-id", f"{names.scorer_group}-", ("Write",), prefixed=True))
    if role == "monitor":
        joiner = joiner_name(names.monitor_group, names.topics)
        found.append(Permission("group", names.monitor_group, ("Read",)))
        found.append(Permission("group", joiner, ("Read",)))
        found.append(Permission("transactional-id", joiner, ("Write",)))
    if any("Read" in operations for operations in of_topics.values()):
        found.append(Permission("group", _READERS, ("Describe",), prefixed=True))
    if role == "subscriber" and user:
        # Not every name that begins with the user's: `app` must not use groups of `app2`.
        for group in (names.scorer_group, names.monitor_group):
            if group == user or group.startswith(f"{user}-"):
                raise UsageError(f"a subscriber named {user} could use the group {group}: choose another name")
        found.append(Permission("group", user, ("Read",)))
        found.append(Permission("group", f"{user}-", ("Read",), prefixed=True))
    return found


def to_command(topics: Topics) -> Permission:
    """What a monitor needs only in mode `auto`: to write commands."""
    return Permission("topic", topics.control, ("Write",))


def acl_commands(wanted: Iterable[Permission], principal: str) -> list[str]:
    """One ``kafka-acls.sh`` command per permission. ``$BOOTSTRAP`` and ``$ADMIN`` are for the caller to set."""
    commands = []
    for permission in wanted:
        words = ["--add", "--allow-principal", principal]
        for operation in permission.operations:
            words += ["--operation", operation]
        words += [f"--{permission.kind}", permission.name]
        if permission.prefixed:
            words += ["--resource-pattern-type", "prefixed"]
        commands.append(f'kafka-acls.sh --bootstrap-server "$BOOTSTRAP" --command-config "$ADMIN" {shlex.join(words)}')
    return commands


def missing_permissions(bootstrap: str, wanted: Iterable[Permission]) -> list[str]:
    """The permissions that this user lacks, as ``Write on topic alerts``.

    The broker reports the operations that the user may perform on topics and groups; it does not report them for
    transactional ids, which are not checked.

    Raises:
        BrokerUnavailable: the broker does not answer. AccessDenied: it refuses the credentials.
    """
    checked = [permission for permission in wanted if permission.kind != "transactional-id" and not permission.prefixed]
    allowed = _Allowed(bootstrap)
    return [
        f"{operation} on {permission.kind} {permission.name}"
        for permission in checked
        for operation in permission.operations
        if operation not in allowed.operations(permission) and operation != "Create"
    ]


class _Allowed:
    """Asks the broker what this user may do."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._client = open_admin(client_config(bootstrap, "stream-scorer-permissions"))
        self._known: dict[tuple[str, str], frozenset[str]] = {}

    def operations(self, permission: Permission) -> frozenset[str]:
        """The permitted operations on the resource of `permission`; none if the user may not even describe it."""
        at = (permission.kind, permission.name)
        if at not in self._known:
            self._known[at] = self._ask(permission)
        return self._known[at]

    def _ask(self, permission: Permission) -> frozenset[str]:
        timeout_s = _TOPIC_TIMEOUT_S if permission.kind == "topic" else _GROUP_TIMEOUT_S
        deadline = Deadline(timeout_s)
        while True:
            try:
                return frozenset(map(_name, self._describe(permission, timeout_s).result().authorized_operations or ()))
            except KafkaException as failure:
                error = kafka_error(failure)
                if is_denied(error):
                    return frozenset()
                # A broker that has just started has no coordinator until it has created the topic of offsets. Topics
                # are described first, so a broker that is away is an error after the shorter time.
                if error.code() not in COORDINATOR_MOVES or not deadline.remaining_s:
                    doing = f"describe {permission.kind} {permission.name}"
                    raise find_refusal(self._bootstrap) or as_domain_error(error, doing, self._bootstrap) from failure
            time.sleep(_RETRY_S)

    def _describe(self, permission: Permission, timeout_s: float) -> Future[Any]:
        name, options = permission.name, {"include_authorized_operations": True, "request_timeout": timeout_s}
        if permission.kind == "topic":
            found: dict[str, Future[Any]] = self._client.describe_topics(TopicCollection([name]), **options)
        else:
            found = self._client.describe_consumer_groups([name], **options)
        return found[name]


def _name(operation: AclOperation) -> str:
    """The name of an operation as in ``kafka-acls.sh``: ``DescribeConfigs``."""
    return "".join(word.capitalize() for word in operation.name.split("_"))
