"""leaks: card numbers and secrets stay where they belong.

10,000 card numbers are planted in two sensitive fields. One is the field of an entity, which is also the partition
entity, so that its values are record keys; labels have them too, and a list of the policy names some. Secrets with
quotes, backslashes and other letters are planted in the settings of a scorer and a monitor that work, of others whose
services refuse them, and of `doctor`; a library in the four processes logs them. Then everything that the run left is
searched: topics (except `transactions`, `labels` and the dead letters), logs, metrics, output of commands, pages,
Redis, and the label joiner's store. `BREAK=1` ignores the mark `sensitive`, and removes nothing from logs.

`N` is the number of card numbers. Below `SMALL` there is no registry, and fewer commands run.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
from confluent_kafka.admin import AdminClient  # type: ignore[attr-defined]

from proofs.kit import (
    ROOT,
    Context,
    Monitor,
    Result,
    Scorer,
    publish,
    read_topic,
    services,
    wait_drained,
    wait_until,
)
from proofs.leak_search import Search, card_numbers, redis_content
from stream_scorer.bench.material import CARDS_SPEC
from stream_scorer.clock import SystemClock
from stream_scorer.control.commands import catch_up, submit
from stream_scorer.control.state import History
from stream_scorer.ensemble.compose import Draft, Outline, compose_ensemble
from stream_scorer.ensemble.manifest import Input, NoCalibrator, Thresholds, Training
from stream_scorer.ensemble.members.dense_json import Dense, Layer, encode_dense
from stream_scorer.kafka.config import client_config
from stream_scorer.kafka.control_log import ControlLog
from stream_scorer.kafka.topics import Topics
from stream_scorer.records import Command, ServedVersion
from stream_scorer.serde.lineage import LineageBatch
from stream_scorer.simulate.config import HOUR_MS, SimulationConfig
from stream_scorer.simulate.encode import encode_values
from stream_scorer.simulate.generate import generate
from stream_scorer.spec import CheckedSpec, load_spec
from stream_scorer.stack import StackAddresses
from stream_scorer.stack.ports import free_port
from stream_scorer.state.client import connect

N = 10_000
SMALL = 2_000
LABELS = 1_000
SECRETS = tuple(
    f"{who} {what}"
    for who, all_of in {
        "scorer": ("redis", "mlflow", "id key", "sasl", "tls key"),
        "monitor": ("redis", "mlflow", "sasl", "tls key", "webhook"),
        "refused scorer": ("redis", "mlflow", "mlflow token", "id key", "sasl"),
        "refused monitor": ("redis", "mlflow", "sasl", "webhook"),
        "doctor": ("redis", "mlflow", "sasl", "webhook"),
        "doctor with a token": ("redis", "mlflow", "sasl", "token command"),
    }.items()
    for what in all_of
)
USER = "ann"
# Characters that must be quoted in an address and escaped in a document.
ODD = '@/#%"\\ü'
_VIEWS = """
  - {name: card, entity: card, windows: [1h, 7d], aggregates: [count, mean]}
  - {name: card_risk, entity: card, windows: [7d], aggregates: [label_count, label_rate], delay: 1h}
  - {name: cards_there, entity: terminal, windows: [7d], aggregates: [distinct], of: card_number}
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is planted, and where the run works. `ports` are those of the metrics of scorer and monitor."""

    folder: Path
    cards: list[str]
    secrets: dict[str, str]
    checked: CheckedSpec
    spec: Path
    ports: tuple[int, int]
    small: bool

    def secret_file(self, name: str) -> str:
        """The path of a file with a secret."""
        path = self.folder / "secrets" / name.replace(" ", "-")
        path.parent.mkdir(exist_ok=True)
        path.write_text(self.secrets[name] + "\n", encoding="utf-8")
        return str(path)


def run(context: Context) -> Result:
    """See the module."""
    n = context.n or N
    result = Result()
    plan = _plan(context.folder, n, context.seed)
    names = ("kafka", "redis") if plan.small else ("kafka", "redis", "mlflow")
    search = Search(plan.cards, plan.secrets, [USER, "eve", "default"])
    with services(*names) as (_stack, at), ExitStack() as lifetime:
        _add_redis_users(plan, str(at.redis), lifetime)
        ensemble = _register(plan, at)
        records = _publish(plan, str(at.kafka), context.seed)
        context.say(f"{records:,} transactions are published")
        scorer, monitor, refused = _start(context, plan, at, ensemble, lifetime)
        wait_drained(str(at.kafka), [scorer], timeout_s=150)
        context.say("the transactions are scored")
        for process in refused:  # later, so that none of them proposes the first version
            process.start()
        _command_what_fails(str(at.kafka))
        _wait_for_the_monitor(str(at.kafka), monitor)
        _wait_for_refusals(refused)
        context.say("the monitor reports windows; commands follow")
        search.look("metrics and health", [page for port in plan.ports for page in _pages_of(port)])
        outputs = _run_commands(plan, at, ensemble)
        result.check("the scorer ends with exit 0", scorer.stop(30) == 0)
        result.check("the monitor ends with exit 0", monitor.stop(30) == 0)
        for process in refused:
            process.close()
        context.say("all processes have ended; the search follows")
        _look_at_topics(search, str(at.kafka))
        with closing(connect(str(at.redis))) as client:
            search.look("Redis", redis_content(client), binary=True)
    search.look("output of commands", outputs)
    search.look_at_files("logs", plan.folder.glob("*.log"))
    search.look_at_files("pages and files of commands", [f for f in (plan.folder / "out").rglob("*") if f.is_file()])
    search.look_at_files("disk cache", [f for f in (plan.folder / "cache").rglob("*") if f.is_file()])
    search.look_at_files("joiner's store", (plan.folder / "monitor").glob("joiner*"), binary=True)
    _judge(context, result, search, plan, records)
    return result


def _plan(folder: Path, n: int, seed: int) -> Plan:
    rng = np.random.default_rng(seed)
    secrets = {name: f"planted-{rng.bytes(20).hex()}{ODD}" for name in SECRETS}
    cards = card_numbers(n, seed)
    text = CARDS_SPEC.read_text(encoding="utf-8")
    field = "card_number: {type: string, max_length: 32, optional: true, sensitive: true}"
    for before, after in (
        (field, f"{field}\n    funding_card: {field.partition(': ')[2]}"),
        ("\npartition_entity: customer", "\n  card: {field: card_number}\npartition_entity: card"),
        ("\nderived:", f"{_VIEWS}\nderived:\n  - {{name: has_funding, function: present, of: [funding_card]}}"),
        ("quorum: 0.5}", f"quorum: 0.5, lists: [{{name: hot, entity: card, decision: block, ids: {cards[:20]}}}]}}"),
    ):
        assert before in text, before
        text = text.replace(before, after)
    spec = folder / "leaks.yaml"
    spec.write_text(text, encoding="utf-8")
    (folder / "out").mkdir()
    return Plan(folder, cards, secrets, load_spec(spec), spec, (free_port(), free_port()), n < SMALL)


def _add_redis_users(plan: Plan, url: str, lifetime: ExitStack) -> None:
    """Users with passwords, so that the passwords are used; deleted at the end, as other proofs may use this Redis."""
    client = connect(url)
    lifetime.callback(client.close)
    for user in ("scorer", "monitor"):
        client.acl_setuser(
            user, enabled=True, passwords=[f"+{plan.secrets[f'{user} redis']}"], keys=["*"], categories=["+@all"]
        )
        lifetime.callback(client.acl_deluser, user)


def _register(plan: Plan, at: StackAddresses) -> Path:
    """A small ensemble, in the registry if there is one. What settings call it."""

    def member(name: str, feature: str, weight: float) -> Draft:
        data = encode_dense(Dense([Layer([[weight]], [-3.0], "logistic")]))
        return Draft(name, "dense-json", data, [feature], [Input(impute=0.0)], NoCalibrator(), 1.0)

    checked = plan.checked
    outline = Outline(
        "cards", 1, "cards", checked.sha256, checked.feature_hash, checked.features, NoCalibrator(),
        Thresholds("p", 0.12, 0.3), 0.5, Training(0, 1, 1, 1, "r", "0" * 64, {}),
    )  # fmt: skip
    reference = np.abs(np.random.default_rng(1).normal(2, 1, (200, len(checked.features))))
    drafts = [member("a", "card.count_1h", 0.4), member("b", "amount_log", 0.3), member("c", "is_night", 2.0)]
    folder = plan.folder / "small"
    compose_ensemble(folder, outline, drafts, reference)
    if at.mlflow is None:
        return folder
    from stream_scorer.ensemble.registry import register

    register(folder, "cards", at.mlflow, "champion")
    return Path("cards@champion")


def _publish(plan: Plan, bootstrap: str, seed: int) -> int:
    """Transactions that hold every card number twice, broken ones, and labels. How many transactions."""
    topics, cards, n = Topics(), plan.cards, 2 * len(plan.cards)
    config = SimulationConfig(seed=seed, customers=max(n // 20, 20), terminals=50, days=None, transactions=n)
    made = generate(config.starting(config.start_to_end_by(SystemClock().now_ms()) - 2 * HOUR_MS))
    half = len(cards) // 2
    documents = [json.loads(value) for value in encode_values(made)]
    for row, document in enumerate(documents):
        document |= {"card_number": cards[row % half], "funding_card": cards[half + row % half]}
    keys = [document["card_number"].encode() for document in documents]
    values = [json.dumps(document).encode() for document in documents]
    broken: list[bytes] = []
    for document in documents[:50]:
        card = document["card_number"]
        broken += [json.dumps(document).encode()[:-1], card.encode(), f'["{card}"]'.encode()]
        broken += [
            json.dumps(document | change).encode()
            for change in ({"card_number": [card]}, {"amount": card}, {"currency": card}, {"event_time": int(card)})
        ]
    publish(bootstrap, topics.transactions, [*keys, *keys[: len(broken)]], [*values, *broken])
    now = SystemClock().now_ms()
    labels = [
        {
            "event_id": d["event_id"], "event_time": d["event_time"], "labelled_at": now, "source": "analyst",
            "label": "fraud" if row % 3 else "genuine", "terminal_id": d["terminal_id"],
            "card_number": d["card_number"],
        }
        for row, d in enumerate(documents[-LABELS:])
    ]  # fmt: skip
    spoilt = [json.dumps(label).encode()[:-1] for label in labels[:20]]
    for label in labels[:20]:
        card = str(label["card_number"])
        for change in ({"card_number": [card]}, {"label": card}, {"source": int(card)}, {"labelled_at": int(card)}):
            spoilt.append(json.dumps(label | change).encode())
    cards_of_labels = [str(label["card_number"]).encode() for label in labels]
    publish(
        bootstrap,
        topics.labels,
        [*cards_of_labels, *(cards_of_labels * 5)[: len(spoilt)]],
        [*(json.dumps(label).encode() for label in labels), *spoilt],
    )
    return n + len(broken)


def _environment(plan: Plan, who: str, mlflow: str, **more: str) -> dict[str, str]:
    """Settings of one process; `mlflow` is the address of the registry without user and password."""
    secrets, prefix = plan.secrets, "STREAM_SCORER_"
    scheme, _, rest = mlflow.partition("://")
    token = f"?token={quote(secrets[f'{who} mlflow token'], safe='')}" if f"{who} mlflow token" in secrets else ""
    found = {
        "MLFLOW_URL": f"{scheme}://{USER}:{quote(secrets[f'{who} mlflow'], safe='')}@{rest}{token}",
        "KAFKA_CLIENT_SASL_PASSWORD": secrets[f"{who} sasl"],
        "LOGS_LEVEL": "debug",
    } | more
    if f"{who} id key" in secrets:
        found["SCORER_ID_KEY_FILE"] = plan.secret_file(f"{who} id key")
    if f"{who} tls key" in secrets:
        found["KAFKA_CLIENT_SSL_KEY_PASSWORD_FILE"] = plan.secret_file(f"{who} tls key")
    if f"{who} webhook" in secrets:
        found["MONITOR_WEBHOOK_URL"] = (
            f"http://127.0.0.1:{free_port()}/hook/{quote(secrets[f'{who} webhook'], safe='')}"
        )
    if f"{who} token command" in secrets:
        found["KAFKA_OAUTH_TOKEN_COMMAND"] = shlex.join(["printf", secrets[f"{who} token command"]])
        found |= {"KAFKA_CLIENT_SASL_MECHANISM": "OAUTHBEARER", "KAFKA_CLIENT_SECURITY_PROTOCOL": "SASL_PLAINTEXT"}
    return {prefix + name: value for name, value in found.items()}


def _with_password(url: str, user: str, password: str) -> str:
    return url.replace("redis://", f"redis://{user}:{quote(password, safe='')}@", 1)


def _start(
    context: Context, plan: Plan, at: StackAddresses, ensemble: Path, lifetime: ExitStack
) -> tuple[Scorer, Monitor, list[Scorer]]:
    """A scorer and a monitor that work, started; one of each whose Redis and registry refuse them, not yet."""
    redis, nowhere = str(at.redis), f"http://127.0.0.1:{free_port()}"
    registry = at.mlflow or nowhere
    sabotage = "library-logs-secrets" + (",no-scrub" if context.broken else "")
    spec = ["--spec", str(plan.spec)]
    mine = replace(at, redis=_with_password(redis, "scorer", plan.secrets["scorer redis"]))
    scorer = Scorer(
        plan.folder, mine, instance="scorer", ensemble=ensemble, spec=plan.spec,
        arguments=["--metrics-port", str(plan.ports[0])], environment=_environment(plan, "scorer", registry),
        sabotage=f"{sabotage},ignore-sensitive" if context.broken else sabotage,
    )  # fmt: skip
    by_file = {"REDIS_USERNAME": "monitor", "REDIS_PASSWORD_FILE": plan.secret_file("monitor redis")}
    monitor = Monitor(
        plan.folder, at, ensemble, arguments=[*spec, "--metrics-port", str(plan.ports[1])],
        environment=_environment(plan, "monitor", registry, **by_file), sabotage=sabotage,
    )  # fmt: skip
    wrong = [replace(at, redis=_with_password(redis, "eve", plan.secrets[f"refused {who} redis"]))
             for who in ("scorer", "monitor")]  # fmt: skip
    refused: list[Scorer] = [
        Scorer(
            plan.folder, wrong[0], instance="refused-scorer", ensemble=plan.folder / "small", spec=plan.spec,
            arguments=["--group", "refused", "--start", "latest"],
            environment=_environment(plan, "refused scorer", nowhere), sabotage=sabotage,
        ),
        Monitor(
            plan.folder, wrong[1], plan.folder / "small", instance="refused-monitor",
            arguments=[*spec, "--monitor-group", "refused", "--no-joiner", "--state-dir", str(plan.folder / "refused")],
            environment=_environment(plan, "refused monitor", nowhere), sabotage=sabotage,
        ),
    ]  # fmt: skip
    for process in (scorer, monitor, *refused):
        lifetime.callback(process.close)
    scorer.start()
    monitor.start()
    return scorer, monitor, refused


def _command_what_fails(bootstrap: str) -> None:
    """A shadow that no registry has: scorers report that they cannot load it."""
    log, history = ControlLog(bootstrap, Topics().control), History()
    with closing(log):
        catch_up(log, history, log.end())
        absent = ServedVersion("99", "9" * 64)
        now = SystemClock().now_ms()
        submit(
            log, history,
            lambda offset: Command(
                ensemble="cards", action="shadow", who=USER, why="a proof", at=now, expected_offset=offset,
                version=absent,
            ),
        )  # fmt: skip


def _wait_for_the_monitor(bootstrap: str, monitor: Monitor) -> None:
    def done() -> bool:
        monitor.require_running()
        return all(len(read_topic(bootstrap, topic)) > 0 for topic in (Topics().outcomes, Topics().monitor_metrics))

    wait_until("the monitor has joined labels and reports windows", done, 90, 1.0)


def _wait_for_refusals(refused: Sequence[Scorer]) -> None:
    """Each has ended, or has logged that Redis refuses it."""

    def all_refused() -> bool:
        return all(not p.running or "redis" in p.log.read_text(errors="replace").lower() for p in refused)

    wait_until("Redis refuses those with a wrong password", all_refused, 60, 0.5)


def _pages_of(port: int) -> list[bytes]:
    """What a process serves at `port`, ready or not."""
    out = []
    for page in ("metrics", "healthz", "readyz"):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=10) as answer:
                out.append(answer.read())
        except urllib.error.HTTPError as error:
            out.append(error.read())
    return out


def _run_commands(plan: Plan, at: StackAddresses, ensemble: Path) -> list[bytes]:
    """The output of commands. Two run at a time."""
    redis, nowhere = str(at.redis), f"http://127.0.0.1:{free_port()}"
    common = {"STREAM_SCORER_KAFKA_BOOTSTRAP": str(at.kafka), "STREAM_SCORER_SCORER_SPEC": str(plan.spec)}
    common |= {"STREAM_SCORER_SCORER_ENSEMBLE": str(ensemble), "STREAM_SCORER_CACHE_DIR": str(plan.folder / "cache")}
    mine = _environment(
        plan, "scorer", at.mlflow or nowhere, REDIS_URL=_with_password(redis, "scorer", plan.secrets["scorer redis"])
    )
    wrong, with_token = (
        _environment(plan, who, nowhere, REDIS_URL=_with_password(redis, "eve", plan.secrets[f"{who} redis"]))
        for who in ("doctor", "doctor with a token")
    )
    out, topics = plan.folder / "out", Topics()
    event = json.loads(read_topic(str(at.kafka), topics.alerts).value[0] or b"")["event_id"]
    commands: list[tuple[list[str], Mapping[str, str]]] = [
        (["explain", event, "--html", str(out / "explain.html")], mine),
        (["doctor", "--json"], wrong),
        (["doctor", "--json"], with_token),
        (["tail", topics.transactions, "--from-start", "-n", "20", "--values", "--json"], mine),
    ]
    if not plan.small:
        commands += [
            (["verify"], mine),
            (["ensemble", "status", "cards"], mine),
            (["tail", topics.scores, "--from-start", "-n", "20"], mine),
            (["dlq", "--values"], mine),
            (["spec", "check", str(plan.spec)], mine),
            (["features", "check"], mine),
            (["replay", "--from-topics", "--out", str(out / "replay")], mine),
        ]

    def output(command: tuple[list[str], Mapping[str, str]]) -> bytes:
        arguments, environment = command
        done = subprocess.run(
            [sys.executable, "-m", "stream_scorer.cli.main", *arguments], cwd=plan.folder, capture_output=True,
            env=dict(os.environ) | {"PYTHONPATH": str(ROOT)} | common | dict(environment), timeout=180, check=False,
        )  # fmt: skip
        text = done.stdout + done.stderr
        assert b"Traceback" not in text, f"{' '.join(arguments[:2])}: {text[-400:].decode(errors='replace')}"
        return text

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(output, commands))


def _look_at_topics(search: Search, bootstrap: str) -> None:
    """Every topic that is not the users' own input; lineage also as it unpacks."""
    topics = Topics()
    for name in AdminClient(client_config(bootstrap, "leaks")).list_topics(timeout=10).topics:
        if name in (topics.transactions, topics.labels, topics.dead_letters):
            continue
        content = read_topic(bootstrap, name, uncommitted=True)
        headers = [value for of_record in content.headers for value in of_record.values()]
        search.look(f"topic {name}", [*content.key, *content.value, *headers])
        if name == topics.lineage:
            unpacked = [repr(LineageBatch(value).document()).encode() for value in content.value if value]
            search.look("topic lineage, unpacked", unpacked)


def _judge(context: Context, result: Result, search: Search, plan: Plan, records: int) -> None:
    for name, area in sorted(search.areas.items()):
        context.say(
            f"{name}: {area.items:,} items, {area.size:,} bytes; {len(area.cards)} cards, {len(area.secrets)} secrets"
        )
        for secret in sorted(area.secrets):
            context.say(f"  found: {secret}")
    areas, cards = search.areas, len(plan.cards)
    result.figures["transactions"] = records
    result.at_least("planted_cards", len(set(plan.cards)), context.n or N)
    result.at_least("planted_secrets", len(set(plan.secrets.values())), 27)
    for topic in ("scores", "contributions"):
        result.at_least(f"items_of_{topic}", areas[f"topic {topic}"].items, 2 * 2 * cards)
    result.at_least("items_of_alerts", areas["topic alerts"].items, 40)
    result.at_least("bytes_of_lineage_unpacked", areas["topic lineage, unpacked"].size, 100 * cards)
    result.at_least("topics", sum(name.startswith("topic ") for name in areas), 12)
    logged = sum(f.read_text(errors="replace").count("connecting with") for f in plan.folder.glob("*.log"))
    result.at_least("settings_logged_by_a_library", logged, 20)
    result.at_least("items_in_redis", areas["Redis"].items, 2 * (cards // 2))
    result.at_least("bytes_in_redis", areas["Redis"].size, 100 * cards)
    result.at_least("bytes_of_logs", areas["logs"].size, 2_000)
    result.at_least("bytes_of_metrics", areas["metrics and health"].size, 5_000)
    result.at_least("bytes_of_commands", areas["output of commands"].size, 3_000)
    result.at_least("bytes_of_pages", areas["pages and files of commands"].size, 10_000)
    result.at_least("bytes_of_the_joiners_store", areas["joiner's store"].size, 10_000)
    result.figures |= {
        "bytes": sum(area.size for area in areas.values()),
        "cards_found": search.found("cards"),
        "secrets_found": search.found("secrets"),
    }
    result.check("no card number is found", search.found("cards") == 0)
    result.check("no secret is found", search.found("secrets") == 0)
    if context.broken:
        result.must_fail("no card number is found", "no secret is found")
