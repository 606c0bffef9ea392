"""The ACLs of each role."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from confluent_kafka.admin import AclOperation, ResourcePatternType, ResourceType

from proofs.secured_services import acls_of
from stream_scorer import app
from stream_scorer.cli.topics import acls
from stream_scorer.errors import BrokerUnavailable, UsageError
from stream_scorer.kafka.permissions import ROLES, Names, Permission, Role, acl_commands, permissions
from stream_scorer.kafka.topics import Topics
from stream_scorer.observability.metrics import Metrics
from stream_scorer.settings import load_settings
from stream_scorer.state.keys import NAMESPACES

ROOT = Path(__file__).parents[2]
NAMES = Names(Topics("", {"control": "ops-control"}), "fraud", "fraud-monitor")


def of(role: Role, names: Names = NAMES) -> dict[str, tuple[str, ...]]:
    return {found.name: found.operations for found in permissions(role, names)}


def test_only_operators_and_automatic_monitors_issue_commands() -> None:
    writers = {role for role in ROLES if "Write" in of(role).get("ops-control", ())}
    assert writers == {"operator"}
    assert "Write" in of("monitor", Names(NAMES.topics, "fraud", "fraud-monitor", commands=True))["ops-control"]


def test_only_monitors_and_operators_write_incidents() -> None:
    assert {role for role in ROLES if "Write" in of(role).get("incidents", ())} == {"monitor", "operator"}


def test_only_producers_write_the_inputs_and_only_scorers_the_scores() -> None:
    for topic, role in (("transactions", "producer"), ("labels", "producer"), ("scores", "scorer")):
        assert {r for r in ROLES if "Write" in of(r).get(topic, ())} == {role}


def test_a_subscriber_reads_and_no_more() -> None:
    topics = {found.name: found.operations for found in permissions("subscriber", NAMES) if found.kind == "topic"}
    assert set(topics.values()) == {("Read",)}
    assert not {"transactions", "labels", "lineage", "ops-control"} & of("subscriber").keys()
    groups = {(p.name, p.prefixed) for p in permissions("subscriber", NAMES, "app") if p.operations == ("Read",)}
    assert groups >= {("app", False), ("app-", True)}
    with pytest.raises(UsageError, match="could use the group fraud"):
        permissions("subscriber", NAMES, "fraud")


@pytest.mark.parametrize("role", ROLES)
def test_the_printed_commands_are_the_table(role: Role) -> None:
    wanted = permissions(role, NAMES, "someone")
    found = [acl for command in acl_commands(wanted, "User:someone") for acl in acls_of(command)]
    assert len(found) == sum(len(permission.operations) for permission in wanted)
    assert {acl.principal for acl in found} == {"User:someone"}
    assert AclOperation.ALL not in {acl.operation for acl in found}
    assert "*" not in {acl.name for acl in found}
    # Transactional ids and the groups of subscribers are the only prefixes.
    prefixed = {acl.restype for acl in found if acl.resource_pattern_type is ResourcePatternType.PREFIXED}
    assert prefixed <= {ResourceType.TRANSACTIONAL_ID, ResourceType.GROUP}


@pytest.mark.parametrize("mode", ["off", "propose", "auto"])
def test_the_acl_for_commands_of_a_monitor_is_printed_in_every_mode_and_is_a_comment_unless_it_applies(
    mode: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(acls, ["--role", "monitor", "--mode", mode])
    assert done.exit_code == 0, done.output
    comments = [line.removeprefix("# ") for line in done.output.splitlines() if line.startswith("#")]
    commands = [line for line in done.output.splitlines() if not line.startswith("#")]
    writes = [line for line in commands if "--operation Write --topic control" in line]
    assert len(writes) == (mode == "auto")
    if mode != "auto":
        assert comments[0].startswith("Only for monitor.mode auto")
        (acl,) = acls_of(comments[1])
        assert (acl.principal, acl.operation, acl.name) == ("User:monitor", AclOperation.WRITE, "control")
    else:
        assert comments == []


@pytest.mark.parametrize(
    ("mode", "found", "warning"),
    [
        ("auto", ["Write on topic control"], "monitor.mode is auto, but this user lacks Write on topic control: each"),
        ("auto", [], ""),
        ("auto", BrokerUnavailable("no answer"), "this user may write to control could not be checked: no answer"),
        ("propose", ["Write on topic control"], ""),
    ],
)
def test_a_monitor_that_may_not_issue_its_commands_warns_at_its_start(
    mode: str,
    found: list[str] | Exception,
    warning: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    def missing(_bootstrap: str, wanted: list[Permission]) -> list[str]:
        assert wanted == [Permission("topic", "control", ("Write",))]
        if isinstance(found, Exception):
            raise found
        return found

    admin = SimpleNamespace(require=lambda _topics, same_count: None)
    monkeypatch.setattr(app, "TopicAdmin", lambda _bootstrap: admin)
    monkeypatch.setattr(app, "missing_permissions", missing)
    values = {"kafka.bootstrap": "127.0.0.1:1", "monitor.mode": mode}
    settings = load_settings(values, environment={}, directory=tmp_path)
    with caplog.at_level(logging.WARNING):
        assert app.watch_run(settings, Metrics(), "monitor-1", 1) is not None
    assert (warning in caplog.text) if warning else not caplog.records


def test_the_acls_of_redis_have_the_prefixes_of_the_keys() -> None:
    users = {
        line.split()[1]: line.split() for line in (ROOT / "deploy" / "redis" / "users.acl").read_text().splitlines()
    }
    assert users["default"] == ["user", "default", "off"]
    assert "~{" + NAMESPACES + "*" in users["scorer"]
    assert "~{stream-scorer:stream-scorer-monitor:*" in users["monitor"]
    for role in ("scorer", "monitor"):
        assert users[role].index("-@all") < users[role].index("-@dangerous")
    # `doctor` reads the eviction policy.
    assert (users["scorer"][-1], users["monitor"][-1]) == ("+config|get", "+info")
