"""The command line as a person meets it: help, one message an error, exit codes, and what is never printed."""

from __future__ import annotations

import gc
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import msgspec
import numpy as np
import pytest
import redis
from click.testing import CliRunner, Result

from stream_scorer.cli.checks import NO_POLICY, PYTHON_BELOW, PYTHON_MIN, Check, run_checks, shown_value
from stream_scorer.cli.control import _ladder
from stream_scorer.cli.dead_letters import dead_letter_lines, group_dead_letters
from stream_scorer.cli.formatting import json_line, line
from stream_scorer.cli.main import _COMMANDS, GC_THRESHOLD, cli, main
from stream_scorer.cli.topic_io import ReadRecord, Redaction
from stream_scorer.console import plain
from stream_scorer.errors import UsageError
from stream_scorer.kafka.topics import Topics
from stream_scorer.records import (
    TOPIC_RECORDS,
    Alert,
    AuditRecord,
    CanaryState,
    Command,
    Contribution,
    CountedCards,
    Hold,
    Incident,
    Members,
    MonitorMetric,
    Outcome,
    PaneSummary,
    Reason,
    Score,
    ScorerStatus,
    ScoreSummary,
    ServedVersion,
    ServingState,
    Source,
    VerdictEvidence,
    VerdictRecord,
)
from stream_scorer.serde.lineage import LineageColumns, LineageHeader, LineageVersion, encode_lineage
from stream_scorer.settings import CATALOGUE, SETTINGS_FILE, Settings, load_settings
from stream_scorer.spec import load_spec
from stream_scorer.spec.load import parse_spec
from tests.support.control import MemoryControlLog

ROOT = Path(__file__).parents[2]
CARDS = ROOT / "stream_scorer" / "simulate" / "cards.yaml"
TIME = 1_736_157_600_123  # 2025-01-06 10:00:00.123 UTC
SECRET = "4111-SECRET"
DEAD_PORT = "127.0.0.1:1"  # nobody may listen there without being root


@dataclass
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


Run = Callable[..., Ended]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Run]:
    """The program in an empty folder, without this machine's settings; logging is put back afterwards."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("STREAM_SCORER_")]:
        monkeypatch.delenv(name)
    root, libraries = logging.getLogger(), logging.getLogger("stream_scorer.kafka.librdkafka")
    handlers, level, library_level = root.handlers[:], root.level, libraries.level

    def call(*arguments: str) -> Ended:
        monkeypatch.setattr("sys.argv", ["stream-scorer", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, printed.out, printed.err)

    yield call
    root.handlers[:] = handlers
    root.setLevel(level)
    libraries.setLevel(library_level)


def settings_of(folder: Path, **values: Any) -> Settings:
    flags = {name.replace("__", "."): value for name, value in values.items()}
    return load_settings(flags, environment={}, directory=folder)


# ---- Help and errors


def test_a_package_that_is_not_installed_is_one_message(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_COMMANDS, "bench", "no_such_module")
    with pytest.raises(ModuleNotFoundError):  # a fault of this project
        run("bench")
    monkeypatch.setattr("stream_scorer.cli.main.cli.main", lambda **_: __import__("no_such_package"))
    ended = run("monitor")
    assert ended.code == 2
    assert "'no_such_package', which is not installed\n  Install the file of requirements/" in ended.stderr


def test_help_lists_every_command() -> None:
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0, result.output
    listed = {words[0] for text in result.output.partition("Commands:")[2].splitlines() if (words := text.split())}
    assert set(_COMMANDS) <= listed


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_command_has_help(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("Usage:")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nonsense"], 2, "nonsense"),
        (["rnu"], 2, "No such command 'rnu'. Did you mean 'run'?"),
        (["ensemble", "promte"], 2, "No such command 'promte'. Did you mean 'promote'?"),
        (["ensemble", "rollback", "cards", "--why", " "], 2, "give a reason"),
        (["bench", "--ensemble", "."], 2, "no file manifest.json"),
        (["topics", "acls", "--role", "subscriber", "--principal", "anna"], 2, "such as User:anna"),
        (["tail"], 2, "TOPIC"),
        (["tail", "scores"], 2, "kafka.bootstrap is not set"),
        (["tail", "scores", "-n", "0"], 2, "-n"),
        (["tail", "scores", "--bootstrap", "k:1", "--spec", "nothing.yaml"], 2, "no pipeline spec at nothing.yaml"),
        (["dlq", "list"], 2, "kafka.bootstrap is not set"),
        (["spec", "check", "nothing.yaml"], 2, "nothing.yaml"),
        (["doctor", "--metrics-port", "many"], 2, "many"),
    ],
)
def test_a_mistake_is_one_message_and_its_exit_code(run: Run, arguments: list[str], code: int, message: str) -> None:
    done = run(*arguments)
    assert done.code == code
    assert message in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("name", "content", "command", "message"),
    [
        (
            "a.yaml",
            b"",
            "spec check a.yaml",
            "a.yaml: (top level): expected keys with values (a YAML mapping), but the",
        ),
        ("a.yaml", b"- 1\n", "spec check a.yaml", "but found a list\n  `stream-scorer data draft` makes"),
        (
            "a.yaml",
            CARDS.read_bytes().replace(b"limits:", b"limts:"),
            "spec check a.yaml",
            "\n  Did you mean limits? docs/",
        ),
        (
            "a.yaml",
            CARDS.read_bytes().replace(b"[1h, 1d]", b"[1 day]"),
            "spec check a.yaml",
            "\n  Write a duration, such as",
        ),
        (
            "a.yaml",
            b"PAR1\0",
            "spec check a.yaml",
            "a.yaml: not valid YAML: unacceptable character #x0000: special characters",
        ),
        ("a.yaml", b"\xff\xfe", "spec check a.yaml", "cannot read the pipeline spec a.yaml: it is not UTF-8 text"),
        ("a.yaml", None, "spec check .", "cannot read the pipeline spec .: Is a directory\n"),
        ("a.csv", None, "data draft a.csv --time t --value v", "cannot read a.csv: No such file or directory\n"),
        (
            "a.csv",
            b"a,b\n",
            "train --spec {} --transactions a.csv --labels a.csv --out o",
            "`stream-scorer data convert`",
        ),
        (
            "a.parquet",
            b"",
            "train --spec {} --transactions a.parquet --labels a.parquet --out o",
            "complete Parquet file\n",
        ),
        (
            "a.parquet",
            None,
            "train --spec {} --transactions a --labels a --out o",
            "cannot read a: No such file or directory\n",
        ),
    ],
)
def test_a_wrong_file_is_named_with_the_reason(
    run: Run, tmp_path: Path, name: str, content: bytes | None, command: str, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = run(*command.format(CARDS).split())
    assert (done.code, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Errno" not in done.stderr and "errno" not in done.stderr


def test_help_is_complete_and_has_the_defaults() -> None:
    listed = CliRunner().invoke(cli, ["--help"], terminal_width=80).output
    assert "..." not in listed.partition("Commands:")[2]
    options = " ".join(CliRunner().invoke(cli, ["run", "--help"]).output.split())
    assert "Maximum size of a micro-batch. [default: 1024; 1 to 10000 records]" in options
    assert "[default: the machine's host name]" in options


def test_an_error_of_the_installed_program_has_no_traceback(tmp_path: Path) -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith("STREAM_SCORER_")}
    done = subprocess.run(
        [sys.executable, "-m", "stream_scorer.cli.main", "dlq", "list"],
        capture_output=True, text=True, timeout=60, cwd=tmp_path, env=own,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    first, hint = done.stderr.splitlines()
    assert first.startswith("error: kafka.bootstrap is not set")
    assert "STREAM_SCORER_KAFKA_BOOTSTRAP" in hint


def test_a_wrong_name_in_the_settings_file_stops_a_command(run: Run, tmp_path: Path) -> None:
    (tmp_path / SETTINGS_FILE).write_text("[kafka]\nbootsrap = 'k:1'\n")
    done = run("doctor")
    assert (done.code, done.stdout) == (2, "")
    assert "kafka.bootsrap" in done.stderr


def test_commands_collect_garbage_rarely(run: Run) -> None:
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    try:
        run("--version")
        assert gc.get_threshold() == (GC_THRESHOLD, 10, 10)
    finally:
        gc.set_threshold(*before)


def test_version(run: Run) -> None:
    done = run("--version")
    assert done.code == 0
    assert done.stdout.startswith("stream-scorer, version ")


# ---- doctor


def checks_by_name(settings: Settings) -> dict[str, Check]:
    return {check.name: check for check in run_checks(settings)}


def test_doctor_shows_every_setting_and_is_content_with_nothing_set(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAM_SCORER_SCORER_GROUP", "mine")
    done = run("doctor", "--json", "--metrics-port", "0")
    assert done.code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ok"] is True
    sources = {row["name"]: row["source"] for row in found["settings"]}
    assert list(sources) == [setting.name for setting in CATALOGUE]
    assert sources["metrics.port"] == "flag"
    assert sources["scorer.group"] == "STREAM_SCORER_SCORER_GROUP"
    assert sources["scorer.batch"] == "default"
    states = {check["name"]: check["state"] for check in found["checks"]}
    assert states["python"] == states["metrics port"] == "ok"
    assert states["broker"] == states["redis"] == states["mlflow"] == states["ensemble"] == "skipped"


def test_doctor_fails_with_the_mend(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run(
            "doctor", "--spec", str(CARDS), "--redis", f"redis://bob:{SECRET}@{DEAD_PORT}/0", "--metrics-port", port
        )
    assert done.code == 1
    assert "ok      spec" in done.stdout
    assert "failed  redis" in done.stdout
    assert f"port {port} on 127.0.0.1 is taken" in done.stdout
    assert "stream-scorer stack status" in done.stdout
    assert "2 checks failed" in done.stdout
    assert "SECRET" not in done.stdout + done.stderr
    assert f"redis://***@{DEAD_PORT}/0" in done.stdout


def test_checks_of_services_that_are_gone_fail_without_their_passwords(tmp_path: Path) -> None:
    checks = checks_by_name(
        settings_of(
            tmp_path,
            mlflow__url=f"bob:{SECRET}@{DEAD_PORT}",  # no scheme: the registry refuses it and repeats it
            redis__url=f"redis://bob:{SECRET}@{DEAD_PORT}",
            scorer__spec=str(tmp_path / "nothing.yaml"),
            metrics__port=-1,
            cache__dir=str(tmp_path / "cache"),
        )
    )
    assert {name: check.state for name, check in checks.items()} == {
        "python": "ok",
        "spec": "failed",
        "broker": "skipped",
        "group": "ok",
        "topics": "skipped",
        "permissions": "skipped",
        "record keys": "skipped",
        "label ids": "skipped",
        "redis": "failed",
        "mlflow": "failed",
        "ensemble": "failed",
        "metrics port": "skipped",
    }
    assert "SECRET" not in str(checks)


@pytest.mark.parametrize(
    ("config", "info", "message"),
    [
        ({"maxmemory-policy": "noeviction"}, None, "answers, evicts no keys"),
        (None, {"maxmemory_policy": "noeviction"}, "answers, evicts no keys"),
        ({}, {"maxmemory_policy": "allkeys-lru"}, "Redis runs with maxmemory-policy allkeys-lru"),
        (None, None, NO_POLICY),
        ({}, {}, NO_POLICY),
    ],
)
def test_doctor_does_not_praise_a_policy_that_redis_does_not_reveal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, str] | None, info: object, message: str
) -> None:
    client = MagicMock()
    for name, answer in (("config_get", config), ("info", info)):
        getattr(client, name).side_effect = [redis.exceptions.NoPermissionError("no") if answer is None else answer]
    monkeypatch.setattr("stream_scorer.state.client.connect", lambda _url: client)
    check = checks_by_name(settings_of(tmp_path, redis__url="redis://h:6379/0", metrics__port=-1))["redis"]
    assert check.message.startswith(message)
    assert check.state == ("failed" if "lru" in message else "ok")


def test_an_ensemble_that_is_no_ensemble_fails(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, scorer__spec=str(CARDS), scorer__ensemble=str(tmp_path), metrics__port=-1)
    check = checks_by_name(settings)["ensemble"]
    assert check.state == "failed"
    assert check.message


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("redis.url", "redis://h:6379/0", "redis://h:6379/0"),
        ("redis.url", "rediss://u:pa:ss@h:6379/0", "rediss://***@h:6379/0"),
        ("redis.url", "redis://h:6379/0?password=pass", "redis://h:6379/0?***"),
        ("redis.url", "pass", "***"),
        ("mlflow.url", "https://u:p@ss@h/x", "https://***@h/x"),
        ("mlflow.url", "u:pass@h", "***"),
        ("kafka.bootstrap", "k1:9092,k2:9092", "k1:9092,k2:9092"),
        ("kafka.bootstrap", "SASL://u:pa,ss@k1:9092,k2:9092", "***"),
        ("redis.url", "redis://u:pa,ss@h:6379/0", "redis://***@h:6379/0"),
        ("kafka.bootstrap", "u:pass@k1:9092", "***"),
        ("scorer.ensemble", "cards@champion", "cards@champion"),
        ("redis.url", "", ""),
        ("redis.url", "redis://s:su/pass@h:6379/0", "***"),
        ("redis.url", "redis://:su#pass@h:6379/0", "***"),
        ("monitor.webhook_url", "https://u:pass@hooks.host/T0/pass?token=pass", "https://***@hooks.host/***?***"),
    ],
)
def test_credentials_are_hidden(name: str, value: str, shown: str) -> None:
    setting = next(s for s in CATALOGUE if s.name == name)
    assert shown_value(setting, value) == shown


def test_the_python_check_agrees_with_the_project() -> None:
    wanted = ">={}.{},<{}.{}".format(*PYTHON_MIN, *PYTHON_BELOW)
    assert f'requires-python = "{wanted}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


# ---- tail


SCORE = Score(
    "e1", TIME, TIME + 9, 0.91, "block", "model", "cards", "3", "champion", "cards-1",
    0.8, True, ["member:gbm"], 3, 1234,
)  # fmt: skip
RECORDS: dict[str, tuple[msgspec.Struct, list[str]]] = {
    "scores": (SCORE, ["10:00:00.123", "e1", "block", "0.910", "value 1234", "duplicate", "degraded: member:gbm"]),
    "alerts": (
        Alert(*msgspec.structs.astuple(SCORE), base=-3.2, z=1.4, reasons=[Reason("gbm", 2.345, "")]),
        ["10:00:00.123", "e1", "block", "0.910", "gbm +2.35", "cards 3"],
    ),
    "review-sample": (
        Alert(*msgspec.structs.astuple(SCORE), base=-3.2, z=1.4, reasons=[]),
        ["10:00:00.123", "e1", "no member", "cards 3"],
    ),
    "contributions": (
        Contribution(
            "e1", "cards", "3", "champion", -3.2, 1.4, 0.8,
            Members(["a", "b", "c", "d"], [0.5] * 4, [0.2] * 4, [0.1, -3.0, 2.0, 0.2]), Source("transactions", 0, 1),
        ),
        ["e1", "0.800", "b -3.00, c +2.00, d +0.20", "base -3.20, z +1.40"],
    ),
    "outcomes": (
        Outcome(
            "e1", TIME, 1, "3", "champion", "cards-1", "approve", 0, 1234, "fraud", "genuine", "chargeback", None, 1, 2
        ),
        ["10:00:00.123", "e1", "approve", "genuine -> fraud by chargeback"],
    ),
    "monitor-metrics": (
        MonitorMetric(
            "false_positive_rate", "alert", TIME, TIME + 3_600_000, 2, True, "cards", "3",
            None, 0.01, 0.03, 5, 200, 400, None, {},
        ),
        ["10:00 to 2025-01-06 11:00", "false_positive_rate/alert", "- [0.01, 0.03] = 5/200", "closed, revision 2"],
    ),
    "score-summaries": (
        ScoreSummary(
            "cards", "3", "champion", 3_600_000, "transactions", 2, 5, 9, 1,
            [PaneSummary(p, 3, 0, 0, 0, {"approve": 1, "block": p}, {}, {}, {}, {}, [], {}) for p in (1, 2)],
        ),
        ["transactions:2 5..9", "2 approve, 3 block", "1 dead letters", "2 panes"],
    ),
    "control": (
        Command(
            ensemble="cards", action="canary", who="ann", why="try it", at=TIME, expected_offset=4,
            version=ServedVersion("3", "f" * 64), share=0.1,
        ),
        ["canary cards 3 10 %", "by ann (person)", "expected offset 4", "try it"],
    ),
    "serving-state": (
        ServingState(
            ensemble="cards", control_offset=4, champion=ServedVersion("3", "f" * 64), probation=True,
            last_good=ServedVersion("2", "e" * 64), hold=Hold("ann", "wait", TIME), who="ann", why="x", at=TIME,
            withdrawn=ServedVersion("1", "d" * 64),
        ),
        ["cards 3 serves, on probation, compared with 2, withdrawn in shadow 1, on hold by ann, control offset 4"],
    ),
    "scorer-status": (
        ScorerStatus("one", "g", "cards", ["3", "2"], 4, 5, "no such version", TIME),
        ["one", "cards 3, 2 in play, control offset 4", "behind 5: no such version"],
    ),
    "audit": (
        AuditRecord(TIME, "one", "g", "cards", "3", "f" * 64, [], "digest", "other bytes"),
        ["one", "cards 3 (ffffffffffff) refused (digest): other bytes"],
    ),
    "incidents": (
        Incident(
            id="cards-4", ensemble="cards", version="3", baseline="2", since=4, opened=TIME, why="more alerts", rows=9,
            both=1, candidate_only=2, baseline_only=3,
            log_evidence=7.0, member="gbm", due="rollback", held_back="by hand: held",
        ),
        ["10:00:00.123", "cards-4", "cards 3: open, rollback is due, by hand: held", "more alerts"],
    ),
    "verdicts": (
        VerdictRecord(
            id="cards-4", ensemble="cards", version="3", baseline="2",
            since=4, at=TIME, finding="undecided", why="so far",
            rows=9_000, both=10, candidate_only=20, baseline_only=30, excluded=40, cards=CountedCards(1, 2, 3, 4),
            evidence=VerdictEvidence(1.0, 2.0, 3.0, 4.0), missing=["91,000 more transactions", "alerted cards"],
            more_rows=91_000, more_ms=7_200_000, due=None, held_back="",
        ),
        [
            "cards-4", "3 compared with 2: undecided", "1 alerted by both, 2 only by 3, 3 only by 2, 4 not counted yet",
            "9,000 transactions, alerts: 10 by both", "40 transactions do not count", "91,000 more transactions; ",
            "expected after about 91,000 more transactions, 2 h of event time at the rate so far",
        ],
    ),
}  # fmt: skip


def record(value: bytes | None, *, key: bytes | None = b"c1", **headers: bytes) -> ReadRecord:
    named = {name.replace("_", "."): content for name, content in headers.items()}
    return ReadRecord(0, 7, key, value, TIME, dict(named))


def nothing_hidden(values: bool = False) -> Redaction:
    return Redaction(None, values=values)


def cards(values: bool = False) -> Redaction:
    return Redaction(load_spec(CARDS), values=values)


def test_every_topic_of_ours_is_among_them() -> None:
    assert RECORDS.keys() == TOPIC_RECORDS.keys()


@pytest.mark.parametrize("topic", RECORDS)
def test_a_record_of_ours_is_one_readable_line(topic: str) -> None:
    value, parts = RECORDS[topic]
    text = line(topic, record(msgspec.json.encode(value)), nothing_hidden())
    assert "\n" not in text
    place = 0
    for part in parts:
        assert part in text[place:], f"{part!r} in {text!r}"
        place = text.index(part, place)


@pytest.mark.parametrize("topic", RECORDS)
def test_json_is_the_record_as_it_stands(topic: str) -> None:
    value = msgspec.json.encode(RECORDS[topic][0])
    assert json_line(topic, record(value), nothing_hidden()).encode() == value


@pytest.mark.parametrize(
    ("topic", "value"),
    [
        ("scores", '{"event_id":\t"e\u009b2J\u202e"}\r'.encode()),
        ("scores", b"\x1b[2J"),
        ("transactions", '{"id":"\u009b"}'.encode()),
        ("transactions", b"\x1b]0;x\x07"),
    ],
)
def test_json_of_a_record_cannot_send_commands_to_the_terminal(topic: str, value: bytes) -> None:
    text = json_line(topic, record(value), nothing_hidden(values=True))
    assert text.isprintable()
    if b"event_id" in value:
        assert json.loads(text) == json.loads(value)


def test_a_lineage_record_is_one_readable_line_and_as_json_one_document() -> None:
    value = lineage_record()
    text = line("lineage", record(value), nothing_hidden())
    assert "transactions:2 5..9  3 transactions of 2 features (1 values missing, 1 stale, 0 partial), cards 3" in text
    assert "by control offset 4, offsets of 1 inputs" in text
    document = msgspec.json.decode(json_line("lineage", record(value), nothing_hidden()))
    assert document["columns"]["event_id"] == ["e5", "e6", "e8"]
    assert document["columns"]["features"][1] == [1.0, None]
    assert document["applied_offsets"] == {"transactions": [None, None, 5]}
    assert "not a record of lineage" in line("lineage", record(b"{}"), nothing_hidden())


def lineage_record() -> bytes:
    version = LineageVersion("cards", "3", "champion", "logit", "m", "p", 0.3, 0.8)
    applied: dict[str, list[int | None]] = {"transactions": [None, None, 5]}
    header = LineageHeader("transactions", "f", "s", "0.1.0", [version], 4, applied, [], ["a", "b"])
    unknown, own = np.full(3, -1, np.int64), np.full(3, np.nan)
    (made,) = encode_lineage(header, LineageColumns(
        np.full(3, 2, np.int32), np.array([5, 6, 8]), ["e5", "e6", "e8"], np.zeros(3, np.int8),
        np.array([[0.0, 1.0], [1.0, np.nan], [2.0, 2.0]]), np.array([[0, 0], [0, 2], [1, 0]], np.int8),
        unknown, unknown, own, own,
    ))  # fmt: skip
    return made.value


def test_a_score_without_quorum_has_no_number() -> None:
    value = msgspec.structs.replace(SCORE, score=None, decision="review", decision_source="fallback")
    text = line("scores", record(msgspec.json.encode(value)), nothing_hidden())
    assert "review       -" in text and "fallback" in text


def test_what_is_no_record_of_the_topic_is_said_to_be_none() -> None:
    text = line("scores", record(f'{{"event_id": "{SECRET}"}}'.encode()), nothing_hidden())
    assert "not a record of scores" in text and "0:7" in text
    assert "SECRET" not in text


VALUE = json.dumps({"event_id": "e1", "card_number": SECRET, "deep": [{"card_number": SECRET}], "amount": 5}).encode()
BROKEN = VALUE[:-1]


@pytest.mark.parametrize("show", [line, json_line])
@pytest.mark.parametrize("topic", ["transactions", "transactions.dlq"])
def test_users_values_are_printed_when_asked_for_and_sensitive_fields_never(topic: str, show: Any) -> None:
    for value in (VALUE, BROKEN, b"\xff" + BROKEN):
        assert "SECRET" not in show(topic, record(value), nothing_hidden())
        assert "e1" not in show(topic, record(value), cards())
        assert "SECRET" not in show(topic, record(value), cards(values=True))
    assert '"amount":5' in show(topic, record(VALUE), cards(values=True))
    assert "withheld" in show("transactions", record(BROKEN), cards(values=True)) or show is line
    assert SECRET in show(topic, record(BROKEN), nothing_hidden(values=True))  # no spec: nothing is known to be secret


def test_a_label_is_shown_without_sensitive_fields() -> None:
    label = {"event_id": "e1", "label": "fraud", "source": "analyst", "review_probability": 0.25, "card_number": SECRET}
    shown = record(json.dumps(label).encode())
    assert line("labels", shown, cards()).endswith("e1  fraud  analyst  reviewed with probability 0.25")
    assert "SECRET" not in json_line("labels", shown, cards())
    assert json.loads(json_line("labels", shown, cards()))["value"]["label"] == "fraud"


def test_a_key_is_as_sensitive_as_its_field() -> None:
    text = CARDS.read_text(encoding="utf-8").replace(
        "customer_id: {type: string,", "customer_id: {sensitive: true, type: string,"
    )
    shown = Redaction(parse_spec(text), values=True)
    assert "key hidden" in line("transactions", record(b"{}", key=SECRET.encode()), shown)
    assert json.loads(json_line("transactions", record(b"{}", key=SECRET.encode()), shown))["key"] is None


def test_a_strangers_text_cannot_steer_the_terminal() -> None:
    evil = "e\x1b]0;pwned\x07\n\u202e1"
    value = msgspec.json.encode(msgspec.structs.replace(SCORE, event_id=evil))
    texts = [
        line("scores", record(value), nothing_hidden()),
        line("transactions", record(evil.encode(), key=evil.encode()), nothing_hidden(values=True)),
        line("transactions.dlq", record(b"x", error_code=b"bad", error_path=evil.encode()), nothing_hidden()),
        plain(evil),
    ]
    assert all(text.isprintable() for text in texts)


@pytest.mark.parametrize(
    ("given", "prefix", "expected"),
    [
        ("scores", "", ("scores", "scores")),
        ("scores", "p.", ("scores", "p.scores")),
        ("p.scores", "p.", ("scores", "p.scores")),
        ("p.scores", "", ("p.scores", "p.scores")),
        ("other", "p.", ("other", "other")),
    ],
)
def test_a_topic_is_found_with_and_without_prefix(given: str, prefix: str, expected: tuple[str, str]) -> None:
    assert Topics(prefix).find(given) == expected


def test_a_topic_of_another_program_shows_its_size_only() -> None:
    assert SECRET not in line("other", record(VALUE), nothing_hidden())
    assert SECRET in line("other", record(VALUE), nothing_hidden(values=True))


# ---- dlq


def letter(code: bytes, offset: int) -> ReadRecord:
    return record(
        VALUE,
        error_code=code, error_path=b"$.amount", error_message=b"Expected `int`, got `str`",
        source_topic=b"transactions", source_partition=b"1", source_offset=str(offset).encode(),
    )  # fmt: skip


LETTERS = [letter(b"not_json", 1), *(letter(b"wrong_type", offset) for offset in range(2, 7)), record(b"odd")]


def test_dead_letters_are_counted_by_code_with_the_newest_example() -> None:
    groups = group_dead_letters(iter(LETTERS), nothing_hidden(), examples=2)
    assert [(g.code, g.count) for g in groups] == [("wrong_type", 5), ("(no code)", 1), ("not_json", 1)]
    assert [example.source for example in groups[0].examples] == ["transactions:1:6", "transactions:1:5"]
    assert groups[0].examples[0].path == "$.amount"
    assert [g.code for g in group_dead_letters(LETTERS, nothing_hidden(), examples=1, code="not_json")] == ["not_json"]
    assert group_dead_letters(LETTERS, nothing_hidden(), examples=0)[0].examples == []


def test_the_newest_dead_letter_is_the_last_one_by_time_and_not_by_reading_order() -> None:
    read = [letter(b"not_json", offset)._replace(timestamp_ms=TIME + at) for offset, at in ((1, 5), (2, 9), (3, 1))]
    (group,) = group_dead_letters(read, nothing_hidden(), examples=2)
    assert [example.source for example in group.examples] == ["transactions:1:2", "transactions:1:1"]


def test_values_of_dead_letters_are_shown_when_asked_for_without_sensitive_fields() -> None:
    quiet = group_dead_letters(LETTERS, nothing_hidden(), examples=3)
    assert "SECRET" not in msgspec.json.encode(quiet).decode() + "".join(dead_letter_lines(quiet))
    loud = group_dead_letters(LETTERS, cards(values=True), examples=3)
    printed = msgspec.json.encode(loud).decode() + "".join(dead_letter_lines(loud))
    assert "SECRET" not in printed and '"amount":5' in printed


def test_the_table_of_dead_letters_is_aligned() -> None:
    head, first, second, *_ = dead_letter_lines(group_dead_letters(LETTERS, nothing_hidden(), examples=2))
    assert head.split()[:4] == ["count", "code", "path", "from"]
    assert first.index("$.amount") == second.index("$.amount") == head.index("path")
    assert dead_letter_lines([]) == []


def test_a_user_without_a_home_folder_sees_which_setting_to_change(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "os.path.expanduser", lambda path: path
    )  # as Python does without HOME and without a user's name
    ended = run("ensemble", "show", "cards@champion")
    assert ended.code == 2
    assert "no home folder\n  Set HOME, or a path such as cache.dir" in ended.stderr


@pytest.mark.parametrize("command", ["register . cards", "promote cards:1", "rollback cards", "retire cards:1"])
def test_what_changes_what_may_serve_wants_a_reason(command: str) -> None:
    ended = CliRunner().invoke(cli, ["ensemble", *command.split()])
    assert ended.exit_code == 2
    assert "--why" in ended.output


def test_a_person_closes_an_incident_once_and_must_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    log = MemoryControlLog()
    log.append("", msgspec.json.encode(Incident(id="feed-1", ensemble="", opened=1, why="nothing", kind="feed")))
    monkeypatch.setattr("stream_scorer.kafka.topics.TopicAdmin", lambda _bootstrap: SimpleNamespace(require=list))
    monkeypatch.setattr("stream_scorer.kafka.control_log.ControlLog", lambda *_: MemoryControlLog(log.records))

    def close(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["incident", "close", *arguments, "--bootstrap", DEAD_PORT])

    assert close("feed-1").exit_code == 2
    unknown = close("feed-2", "--why", "so")
    assert isinstance(unknown.exception, UsageError) and "no incident 'feed-2'" in str(unknown.exception)
    done = close("feed-1", "--why", "the feed is gone", "--who", "ann")
    assert (done.exit_code, done.stdout) == (0, "feed-1 is closed by ann: the feed is gone\n")
    again = close("feed-1", "--why", "again", "--who", "bob")
    assert isinstance(again.exception, UsageError) and again.exception.exit_code == 2
    assert "already closed, by ann: the feed is gone" in str(again.exception)
    last = msgspec.json.decode(log.records[-1], type=Incident)
    assert (len(log.records), last.closed_by, last.ended) == (2, "ann", "the feed is gone")
    assert "closed by ann, the feed is gone" in line("incidents", record(log.records[-1]), nothing_hidden())


def test_a_canary_needs_a_share_or_a_ladder() -> None:
    ended = CliRunner().invoke(cli, ["ensemble", "canary", "cards:1", "--why", "so"])
    assert isinstance(ended.exception, UsageError) or ended.exit_code == 2
    assert "--share or --ladder" in f"{ended.output}{ended.exception}"


def test_status_shows_the_steps_of_a_ladder() -> None:
    canary = CanaryState(ServedVersion("3", "f" * 64), 0.05, "s", ladder=[0.01, 0.05, 0.25, 1.0])
    assert _ladder(canary) == "steps 1 %, 5 %, 25 %, 100 %; next: 25 %, after a confirmation"
    assert "next: promotion, after the monitor acts" in _ladder(
        msgspec.structs.replace(canary, share=0.25, confirmed=True)
    )
    assert _ladder(msgspec.structs.replace(canary, ladder=[])) == ""
