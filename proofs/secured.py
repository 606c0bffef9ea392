"""secured: the main job with least privilege on secured services, and refusals in one readable message.

Kafka with SASL_SSL (SCRAM) and ACLs, Redis with TLS and ACL users, MLflow behind TLS and basic authentication. The ACLs
are exactly those that `stream-scorer topics acls` prints and `deploy/redis/users.acl` contains. Each role has a folder
with a `stream-scorer.toml` and files with its passwords. Three topics keep names that they had before.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import redis
from confluent_kafka import KafkaError, Producer

from proofs.kit import (
    CARDS_SPEC,
    ROOT,
    Context,
    Result,
    die_with_parent,
    log_ends,
    read_topic,
    train_cards,
    wait_drained,
    wait_until,
)
from proofs.secured_services import (
    Acls,
    Certificates,
    SecuredKafka,
    kafka,
    make_certificates,
    mlflow_with_users,
    redis_with_acl,
    run_command,
)
from stream_scorer.connections import Brokers
from stream_scorer.kafka.config import client_config
from stream_scorer.kafka.permissions import ROLES, Names, acl_commands, permissions
from stream_scorer.kafka.topics import Topics
from stream_scorer.records import FEATURES_STALE, Outcome, Score

N = 12_000
PARTITIONS = 2
NAMES = {"transactions": "payments.card.auth", "dead_letters": "payments.card.rejected", "control": "fraud-control"}
TOPICS = Topics("", NAMES)
DENIED = 4
MAX_LINES = 4
# Each command mostly imports, or waits for an answer.
PARALLEL = 3
COMMAND_S, DRAIN_S = 120.0, 240.0
REDIS_ACL = ROOT / "deploy" / "redis" / "users.acl"


def run(context: Context) -> Result:
    """See the module. `n` is the number of transactions; with it there is no registry, which takes long to start."""
    n = context.n or N
    result = Result()
    passwords = {role: f"{role}-{secrets.token_hex(12)}" for role in ROLES}
    with _cluster(context, passwords) as cluster:
        _main_job(context, cluster, result, n)
        _refusals(cluster, result)
        found = [secret for secret in passwords.values() if secret in cluster.logged() + cluster.published()]
        result.figures["secrets found in outputs, logs and topics"] = len(found)
        result.check("no secret in outputs, logs and topics", not found)
    return result


@dataclass(slots=True)
class _Role:
    """A user with a folder of its own; its settings are in the file, its passwords in files next to it."""

    name: str
    folder: Path
    outputs: list[str] = field(default_factory=list)

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("STREAM_SCORER_", "MLFLOW_"))}
        files = {f"STREAM_SCORER_{part}_PASSWORD_FILE": str(self.folder / "password") for part in ("REDIS", "MLFLOW")}
        own = {k: v for k, v in files.items() if k.removesuffix("_FILE") not in more}
        return inherited | own | dict(more) | {"PYTHONPATH": str(ROOT)}

    def run(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the product to its end; `more` are variables."""
        command = die_with_parent([sys.executable, "-m", "stream_scorer.cli.main", *arguments])
        done: subprocess.CompletedProcess[str] = run_command(
            command, folder=self.folder, environment=self.environment(more), timeout_s=COMMAND_S
        )
        self.outputs.append(done.stdout + done.stderr)
        return done

    def must(self, *arguments: str) -> str:
        """As `run`; returns standard output. Raises unless the command succeeds."""
        done = self.run(*arguments)
        assert done.returncode == 0, (
            f"{self.name}: {' '.join(arguments)}: exit {done.returncode}: {done.stderr[-2000:]}"
        )
        return done.stdout


@dataclass(slots=True)
class _Cluster:
    broker: SecuredKafka
    redis: tuple[str, str]
    registry: tuple[str, str] | None
    certificates: Certificates
    passwords: Mapping[str, str]
    roles: dict[str, _Role]
    folder: Path

    def logged(self) -> str:
        """Everything that commands printed and processes logged."""
        logs = [path.read_text(errors="replace") for path in self.folder.glob("roles/*/*.log")]
        return "\n".join([*(text for role in self.roles.values() for text in role.outputs), *logs])

    def published(self) -> str:
        """The content of every topic."""
        contents = [read_topic(self.broker.internal, topic) for topic in TOPICS.all()]
        values = [value or b"" for content in contents for value in content.value]
        return b"\n".join(values).decode(errors="replace")

    def properties(self, role: str) -> dict[str, str]:
        return {
            "security.protocol": "SASL_SSL",
            "ssl.ca.location": str(self.certificates.ca),
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": role,
            "sasl.password": self.passwords[role],
        }


@contextmanager
def _cluster(context: Context, passwords: Mapping[str, str]) -> Iterator[_Cluster]:
    """The services with their users and ACLs. With BREAK=1 Kafka permits every user everything."""
    folder = context.folder
    certificates = make_certificates(folder / "certificates")
    acl = REDIS_ACL.read_text()
    for role in ("scorer", "monitor"):
        acl = acl.replace(f"{role.upper()}_PASSWORD", passwords[role])
    writers = {role: passwords[role] for role in ("operator", "monitor", "trainer")}
    with ExitStack() as services:
        context.say("the services start")
        registry, waiting = None, []
        if context.n is None:
            readers = {"scorer": passwords["scorer"]}
            *addresses, wait = services.enter_context(mlflow_with_users(folder, certificates, writers, readers))
            registry, waiting = (addresses[0], addresses[1]), [wait]
        broker = services.enter_context(kafka(folder, certificates, passwords, open_to_all=context.broken, later=True))
        stores = services.enter_context(redis_with_acl(folder, certificates, acl))
        # Meanwhile the services start.
        train_cards(folder, seed=context.seed, transactions=30_000)
        for wait in (*waiting, broker.wait):
            wait()
        roles = {role: _Role(role, folder / "roles" / role) for role in ROLES}
        cluster = _Cluster(broker, stores, registry, certificates, passwords, roles, folder)
        for role in roles.values():
            _write_settings(cluster, role)
        if not context.broken:
            context.say(f"{Acls(broker.internal).apply(_acls(cluster))} ACLs for {len(ROLES)} roles")
        yield cluster


def _acls(cluster: _Cluster) -> list[str]:
    """What `topics acls` prints for each role, and what it is for the monitor, with the settings of the proof."""
    names = Names(TOPICS, "stream-scorer", "stream-scorer-monitor", commands=True)
    commands = {role: acl_commands(permissions(role, names, role), f"User:{role}") for role in ROLES}
    printed = cluster.roles["monitor"].must("topics", "acls", "--role", "monitor").splitlines()
    assert printed == commands["monitor"]
    return [command for role in ROLES for command in commands[role]]


def _write_settings(cluster: _Cluster, role: _Role) -> None:
    role.folder.mkdir(parents=True)
    (role.folder / "password").write_text(cluster.passwords[role.name] + "\n")
    properties = cluster.properties(role.name) | {"sasl.password_file": str(role.folder / "password")}
    del properties["sasl.password"]
    ca = str(cluster.certificates.ca)
    sections: dict[str, dict[str, object]] = {
        "kafka": {"bootstrap": cluster.broker.secured},
        "kafka.client": properties,
        "topics": NAMES,
        "scorer": {"spec": str(CARDS_SPEC), "ensemble": _ensemble(cluster), "instance": "scorer-1"},
        "monitor": {"mode": "auto", "state_dir": str(role.folder / "state"), "emit_every_s": 0.5},
        "cache": {"dir": str(role.folder / "cache")},
        "metrics": {"port": -1},
    }
    if role.name in ("scorer", "monitor"):
        sections["redis"] = {"url": cluster.redis[0], "username": role.name, "ca_file": ca}
    if cluster.registry is not None:
        sections["mlflow"] = {"url": cluster.registry[0], "username": role.name, "ca_file": ca}
    lines = []
    for section, entries in sections.items():
        lines.append(f"[{section}]")
        lines += [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in entries.items()]
    (role.folder / "stream-scorer.toml").write_text("\n".join(lines) + "\n")


def _ensemble(cluster: _Cluster) -> str:
    return "cards@champion" if cluster.registry is not None else str(cluster.folder / "ensemble")


def _main_job(context: Context, cluster: _Cluster, result: Result, n: int) -> None:
    """Topics, ensemble, transactions and labels in, scores, windows and outcomes out, a promotion."""
    roles, internal = cluster.roles, cluster.broker.internal
    roles["operator"].must("topics", "create", "--partitions", str(PARTITIONS), "--spec", str(CARDS_SPEC))
    register = ("ensemble", "register", str(context.folder / "ensemble"), "cards", "--why", "proof")
    if cluster.registry is not None:
        roles["trainer"].must(*register, "--alias", "champion")
    # The scorer may not write to `control`, so an operator names the first version.
    roles["operator"].must("ensemble", "promote", _ensemble(cluster), "--why", "proof", "--wait", "0")
    # Labels come up to days after their transactions, and none may be later than now.
    start = (datetime.now(UTC) - timedelta(days=40)).strftime("%Y-%m-%d")
    data = context.folder / "data"
    simulate = ("simulate", "--transactions", str(n), "--customers", "500", "--seed", str(context.seed))
    roles["producer"].must(*simulate, "--start", start, "--out", str(data))
    files = ("--transactions", str(data / "transactions.parquet"), "--labels", str(data / "labels.parquet"))
    roles["producer"].must("data", "publish", *files)
    context.say("scorer and monitor start")
    with _process(roles["scorer"], "run") as scorer, _process(roles["monitor"], "monitor") as monitor:

        def holds() -> bool:
            for process in (scorer, monitor):
                assert process.poll() is None, f"a process ended: {cluster.logged()[-3000:]}"
            return len(read_topic(internal, TOPICS.scores)) >= n

        wait_until("every transaction is scored", holds, DRAIN_S, 1.0)
        wait_drained(internal, [], topics=TOPICS, timeout_s=DRAIN_S)
        wait_until("windows are published", lambda: len(read_topic(internal, TOPICS.monitor_metrics)) > 0, DRAIN_S, 1.0)
        wait_until("labels are joined", lambda: len(read_topic(internal, TOPICS.outcomes)) > 0, DRAIN_S, 1.0)
        if cluster.registry is not None:
            roles["trainer"].must(*register)
            roles["operator"].must("ensemble", "promote", "cards:2", "--why", "proof")
        tailed = roles["subscriber"].must("tail", "scores", "--from-start", "-n", "5", "--json")
        doctors = {role: roles[role].run("doctor", "--role", role) for role in ("scorer", "monitor", "operator")}
    scores = [score for score in read_topic(internal, TOPICS.scores).decode(Score) if isinstance(score, Score)]
    outcomes = read_topic(internal, TOPICS.outcomes).decode(Outcome)
    result.figures |= {
        "transactions": n,
        "scores": len(scores),
        "degraded": dict(Counter(reason for score in scores for reason in score.degraded)),
        "windows": len(read_topic(internal, TOPICS.monitor_metrics)),
        "outcomes": len(outcomes),
    }
    result.check("every transaction has one score", len({score.event_id for score in scores}) == len(scores) == n)
    # Beside a feed of labels that ends, features grow old, wherever they come from.
    result.check("every score has features from Redis", {r for s in scores for r in s.degraded} <= {FEATURES_STALE})
    result.check("a subscriber reads scores", len(tailed.splitlines()) == 5)
    for role, done in doctors.items():
        result.check(f"doctor finds nothing for the role {role}", done.returncode == 0)
        if done.returncode != 0:
            context.say(done.stdout[-1500:])


@contextmanager
def _process(role: _Role, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command of the product that runs until the end of the block; its log is ``<command>.log``."""
    command = die_with_parent([sys.executable, "-m", "stream_scorer.cli.main", *arguments])
    with (role.folder / f"{arguments[0]}.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=role.folder, env=role.environment({}), stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _refusals(cluster: _Cluster, result: Result) -> None:
    """Each of these is refused with one message and the documented exit code; nothing reaches the topics."""
    roles, data = cluster.roles, str(cluster.folder / "data" / "transactions.parquet")
    inputs = [TOPICS.control, TOPICS.transactions]
    before = log_ends(cluster.broker.internal, inputs)
    rollback = ("ensemble", "rollback", "cards", "--why", "proof", "--wait", "0")
    _refused(result, "a subscriber that issues a command", roles["subscriber"].run(*rollback), TOPICS.control)
    _refused(
        result,
        "a scorer that writes transactions",
        roles["scorer"].run("data", "publish", "--transactions", data),
        TOPICS.transactions,
    )
    for role, topic in (("subscriber", TOPICS.control), ("scorer", TOPICS.transactions), ("scorer", TOPICS.control)):
        error = _write(cluster, role, topic)
        result.check(f"a {role} cannot write to {topic}", error == "TOPIC_AUTHORIZATION_FAILED")
    result.check("nothing was written by them", log_ends(cluster.broker.internal, inputs) == before)

    wrong = {"STREAM_SCORER_KAFKA_CLIENT_SASL_PASSWORD": "a-wrong-password"}
    expired = {"STREAM_SCORER_KAFKA_BOOTSTRAP": cluster.broker.expired}
    wrong_redis = {"STREAM_SCORER_REDIS_PASSWORD": "a-wrong-password"}
    expired_redis = {"STREAM_SCORER_REDIS_URL": cluster.redis[1]}
    cases: list[tuple[str, str, tuple[str, ...], dict[str, str], str]] = [
        ("a scorer with a wrong password", "scorer", ("run",), wrong, "credentials"),
        ("a scorer and an expired certificate", "scorer", ("run",), expired, "expired"),
        ("a monitor with a wrong password", "monitor", ("monitor",), wrong, "credentials"),
        ("a monitor and an expired certificate", "monitor", ("monitor",), expired, "expired"),
        ("Redis with a wrong password", "scorer", ("features", "check"), wrong_redis, "Redis"),
        ("Redis with an expired certificate", "scorer", ("features", "check"), expired_redis, "expired"),
    ]
    if cluster.registry is not None:
        wrong_registry = {"STREAM_SCORER_MLFLOW_PASSWORD": "a-wrong-password"}
        expired_registry = {"STREAM_SCORER_MLFLOW_URL": cluster.registry[1]}
        register = ("ensemble", "register", str(cluster.folder / "ensemble"), "cards", "--why", "proof")
        cases += [
            ("MLflow with a wrong password", "trainer", ("ensemble", "list"), wrong_registry, "MLflow"),
            ("MLflow with an expired certificate", "trainer", ("ensemble", "list"), expired_registry, "expired"),
            ("a scorer that registers a version", "scorer", register, {}, "MLflow"),
        ]
    with ThreadPoolExecutor(PARALLEL) as pool:
        runs = [pool.submit(roles[role].run, *arguments, **more) for _, role, arguments, more, _ in cases]
        for (what, *_, word), done in zip(cases, runs, strict=True):
            _refused(result, what, done.result(), word)
    result.check("the monitor's user cannot read rows in Redis", _reads_rows(cluster) == "NoPermissionError")
    _remove_permission(cluster, result)


def _remove_permission(cluster: _Cluster, result: Result) -> None:
    """Without one of its ACLs, `doctor` names what is missing."""
    roles = cluster.roles
    Acls(cluster.broker.internal).remove("User:scorer", TOPICS.alerts, "Write")
    lines: list[str] = []
    for _ in range(20):  # the broker applies a change of ACLs somewhat later
        done = roles["scorer"].run("doctor")
        lines = [line for line in done.stdout.splitlines() if "Write on topic alerts" in line]
        if lines:
            break
        time.sleep(0.5)
    result.check("doctor names a missing permission in one line", len(lines) == 1 and done.returncode == 1)


def _refused(result: Result, what: str, done: subprocess.CompletedProcess[str], word: str) -> None:
    """The command ended with the documented exit code, and one message that contains `word`."""
    lines = [line for line in done.stderr.splitlines() if line.strip() and not re.search(r" (INFO|WARNING) ", line)]
    faults = []
    if done.returncode != DENIED:
        faults.append(f"exit {done.returncode}, not {DENIED}")
    if "Traceback" in done.stderr:
        faults.append("a traceback")
    if not 1 <= len(lines) <= MAX_LINES or sum(line.startswith("error: ") for line in lines) != 1:
        faults.append(f"{len(lines)} lines: {lines[:3]}")
    if word not in done.stderr:
        faults.append(f"no word of {word!r}")
    result.check(
        f"{what}: refused, exit {DENIED}, one message" + (f" ({'; '.join(faults)})" if faults else ""), not faults
    )


def _write(cluster: _Cluster, role: str, topic: str) -> str:
    """The error of a plain client with the credentials of `role` that writes to `topic`; empty for none."""
    brokers = Brokers(cluster.broker.secured, cluster.properties(role))
    producer = Producer(client_config(brokers, "intruder"))
    errors: list[KafkaError | None] = []
    producer.produce(topic, b"{}", on_delivery=lambda error, _message: errors.append(error))
    producer.flush(20)
    return errors[0].name() if errors and errors[0] is not None else ""


def _reads_rows(cluster: _Cluster) -> str:
    """The error of the monitor's user that reads a key of a scorer."""
    client = redis.Redis.from_url(
        cluster.redis[0],
        username="monitor",
        password=cluster.passwords["monitor"],
        ssl_ca_certs=str(cluster.certificates.ca),
    )
    try:
        client.get("{stream-scorer:rows:0}:epoch")
    except redis.RedisError as error:
        return type(error).__name__
    return ""
