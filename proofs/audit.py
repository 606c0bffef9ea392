"""audit: an archive shows what was decided, by which models and by whose command, without any service.

A real scorer scores `N` transactions, one in a hundred unreadable, on a real Kafka, while versions are promoted twice,
a canary decides for some cards and a member is disabled. `audit export` writes the whole period, and two archives that
continue each other. Then all services are stopped. `audit verify` holds for each archive and recomputes every score to
the last bit; `verify`, `explain` and `ensemble at` work from the archive.

Copies of the archive are altered: one byte of each file, a record, a block, the order, a model, a version, a command;
files only, and with a seal that is computed again. Each must be found, with a message that names it. `ensemble at` for
random times equals independent bookkeeping over the raw log, also over a log of random commands.

`in_memory` is the same on records in memory, without the scorer.
"""

from __future__ import annotations

import bisect
import copy
import os
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from click.testing import CliRunner

from proofs import audit_tampering, audit_world
from proofs.control_race import Books
from proofs.kit import (
    ROOT,
    Context,
    Result,
    Scorer,
    TopicContent,
    publish,
    read_topic,
    recomputes_all,
    services,
    train_cards,
    wait_drained,
    wait_until,
)
from stream_scorer.audit import parts
from stream_scorer.audit.archive import Archive
from stream_scorer.audit.export import Scope, export_archive
from stream_scorer.audit.findings import AuditReport
from stream_scorer.audit.models import keep_version
from stream_scorer.audit.verify import Expected, verify_archive
from stream_scorer.cli.main import cli
from stream_scorer.clock import SystemClock
from stream_scorer.control.commands import catch_up, submit
from stream_scorer.control.state import History
from stream_scorer.control.timeline import Served, served_at
from stream_scorer.ensemble.manifest import member_key, read_manifest
from stream_scorer.ensemble.registry import keep
from stream_scorer.ensemble.reweigh import reweigh
from stream_scorer.errors import StreamScorerError
from stream_scorer.kafka.control_log import ControlLog
from stream_scorer.kafka.topics import Topics
from stream_scorer.records import Command, DisabledMember, Score, ServedVersion
from stream_scorer.replay.recorded import ControlRecord, control_records
from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.simulate.encode import encode_keys, encode_values
from stream_scorer.simulate.generate import generate

N = 20_000
TIMES = 200
COMMANDS = 400
# Every hundredth transaction is unreadable.
_BAD = 100
# Blocks of this many records or a little more, so that a small archive has several.
_SMALL_BLOCK = 100


def run(context: Context) -> Result:
    """See the module."""
    n, result = context.n or N, Result()
    parts.BLOCK_RECORDS = max(n // 20, _SMALL_BLOCK)
    train_cards(context.folder, seed=context.seed, transactions=30_000)
    with services("kafka", "redis", partitions=2) as (_stack, at):
        bootstrap = str(at.kafka)
        context.say("the services run")
        inputs = _score(context, at, n)
        _export(context, result, bootstrap)
        scores = read_topic(bootstrap, Topics().scores)
        control = read_topic(bootstrap, Topics().control)
        live = _at(control.timestamp[-1], "--bootstrap", bootstrap)
    result.check("all services are stopped", not os.environ.get("PROOF_SHARED_STACK"))
    whole = context.folder / "whole"
    reports = {name: _verify(context, result, name, *after) for name, *after in (
        ("whole",), ("first",), ("second", "--after", str(context.folder / "first"))
    )}  # fmt: skip
    report = reports["whole"]
    result.at_least("n", sum(report.scores.values()), n - n // _BAD)
    result.check(
        "one score or dead letter for each input",
        inputs == sum(report.scores.values()) + report.records["dead_letters"],
    )
    result.check("every score is in the archive", sum(report.scores.values()) == len(scores))
    both = Counter(reports["first"].scores) + Counter(reports["second"].scores)
    result.check("the two archives that continue each other have the same scores", both == Counter(report.scores))
    result.at_least("versions_that_decided", len(report.scores), 3)
    if context.broken:
        return result
    _read_archive(result, whole, scores)
    _check_times(context, result, whole, _rows(control), live)
    _check_tampering(context, result, whole)
    return result


def in_memory(context: Context) -> Result:
    """The proof on records in memory: `n` micro-batches per partition."""
    result, parts.BLOCK_RECORDS = Result(), _SMALL_BLOCK
    world = audit_world.make(context.folder, context.seed, context.n or 12, broken=context.broken)
    whole, start = context.folder / "whole", audit_world.START_MS

    def export(name: str, until: int, after: str = "") -> None:
        scope = Scope(None, until, Archive(context.folder / after) if after else None)
        export_archive(
            world.topics, Topics(), context.folder / name, scope,
            lambda root, v: keep_version(root, world.folders[v[2]], *v, with_models=True), start,
        )  # fmt: skip

    end = 2 * start
    export("whole", end)
    export("first", start + 3_000)
    export("second", end, "first")
    scores = Counter[str]()
    for name, expected in (("first", Expected()), ("second", Expected(previous=context.folder / "first"))):
        report = verify_archive(context.folder / name, expected, 0.0)
        result.check(f"the archive {name} holds", not report.different and not report.notes)
        scores += Counter(report.scores)
    report = verify_archive(whole, Expected(), 0.0)
    result.figures |= {"scores": sum(report.scores.values()), "different": report.different}
    result.check("the whole archive holds", not report.different)
    result.check("every score is recomputed", report.recomputed == sum(report.scores.values()) > 0)
    result.check("the two archives that continue each other have the same scores", scores == Counter(report.scores))
    if context.broken:
        return result
    archive = Archive(whole)
    _check_times(context, result, whole, list(control_records(archive, archive.topics)), None)
    _check_tampering(context, result, whole)
    return result


def _score(context: Context, at: Any, n: int) -> int:
    """Publish transactions in parts, with a command after each, until all are scored; the number of inputs."""
    folder, topics, bootstrap, cache = context.folder, Topics(), str(at.kafka), context.folder / "cache"
    versions = []
    for number in range(3):
        reweigh(folder / "ensemble", {"xgb": 0.1 + number / 2}, folder / f"v{number}", number)
        versions.append(ServedVersion(*keep(folder / f"v{number}", cache)))
    manifest = read_manifest(folder / "ensemble")
    member = DisabledMember(manifest.members[-1].name, member_key(manifest.members[-1]))
    steps: list[dict[str, Any]] = [
        {"action": "canary", "version": versions[1], "share": 0.3, "who": "ann"},
        {"action": "promote", "version": versions[1], "who": "ben"},
        {"action": "disable", "member": member, "who": "ann"},
        {"action": "enable", "member": member, "who": "ann"},
        {"action": "hold", "who": "cleo"},
        {"action": "promote", "version": versions[2], "who": "ben"},
        {"action": "shadow", "version": versions[0], "who": "ann"},
        {"action": "confirm", "who": "ann"},
    ]
    config = SimulationConfig(seed=context.seed, customers=max(n // 40, 50), days=None, transactions=n)
    made = generate(config.starting(config.start_to_end_by(SystemClock().now_ms())))
    keys, values = encode_keys(made.customer_id), encode_values(made)
    values[_BAD - 1 :: _BAD] = [b"not JSON"] * len(values[_BAD - 1 :: _BAD])
    sabotage = "bend-contributions" if context.broken else None
    scorer = Scorer(
        folder, at, instance="scorer", ensemble=folder / "v0", arguments=["--cache", str(cache)], sabotage=sabotage
    )
    scorer.start()
    log, history, statuses = (
        ControlLog(bootstrap, topics.control),
        History(),
        ControlLog(bootstrap, topics.scorer_status),
    )
    try:
        wait_until("the scorer serves", lambda: log.end() > 0, 240)
        size = -(-n // (len(steps) + 1))
        for number, step in enumerate([{}, *steps]):
            if step:
                catch_up(log, history, log.end())
                entry = submit(log, history, _command(step))
                assert not entry.refused, entry.refused
                wait_until(f"{step['action']} is in force", lambda o=entry.offset: _in_force(statuses, o), 120)
                log.append("cards", msgspec.json.encode(_command(step)(0)))  # a stale command, without effect
            part = slice(number * size, (number + 1) * size)
            publish(bootstrap, topics.transactions, keys[part], values[part])
            wait_drained(bootstrap, [scorer], timeout_s=300)
            context.say(f"{step.get('action', 'start')}: {min(part.stop, n):,} transactions scored")
        scorer.stop()
    finally:
        scorer.close()
        log.close()
        statuses.close()
    return n


def _command(step: dict[str, Any]) -> Any:
    return lambda offset: Command(
        **{
            "ensemble": "cards",
            "why": "an audited change",
            "at": time.time_ns() // 1_000_000,
            "expected_offset": offset,
        }
        | step
    )


def _in_force(statuses: ControlLog, offset: int) -> bool:
    found = [msgspec.json.decode(record.value) for record in statuses.read(0.05) if record.value]
    return any(status["control_offset"] >= offset for status in found)


@dataclass(frozen=True, slots=True)
class _Done:
    returncode: int
    stdout: str
    stderr: str


def _run(*arguments: str) -> _Done:
    """A command of the product, in this process."""
    found = CliRunner().invoke(cli, arguments)
    error = found.exception
    if isinstance(error, StreamScorerError):
        return _Done(error.exit_code, found.stdout, str(error))
    if error is not None and not isinstance(error, SystemExit):
        raise error
    return _Done(found.exit_code, found.stdout, found.stderr)


def _run_alone(*arguments: str) -> _Done:
    """A command of the product, in a process of its own, without settings from the environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STREAM_SCORER_")}
    command = [sys.executable, "-m", "stream_scorer.cli.main", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    return _Done(done.returncode, done.stdout, done.stderr)


def _export(context: Context, result: Result, bootstrap: str) -> None:
    """The whole period, and the same in two archives, cut in the middle of the scores."""
    folder, content = context.folder, read_topic(bootstrap, Topics().lineage)
    middle = sorted(content.timestamp)[len(content) // 2]
    common = ["--bootstrap", bootstrap, "--cache", str(folder / "cache"), "--ensemble", str(folder / "v0")]
    began = time.monotonic()
    runs = [
        _run("audit", "export", str(folder / "whole"), *common),
        _run("audit", "export", str(folder / "first"), "--to", str(middle), *common),
        _run("audit", "export", str(folder / "second"), "--after", str(folder / "first"), *common),
    ]
    result.figures["export_seconds"] = round(time.monotonic() - began, 1)
    for done in runs:
        if done.returncode:
            context.say(done.stderr)
    result.check("three archives are exported", not any(done.returncode for done in runs))


def _verify(context: Context, result: Result, name: str, *more: str) -> AuditReport:
    began = time.monotonic()
    verify = _run_alone if name == "whole" else _run
    done = verify("audit", "verify", str(context.folder / name), "--tolerance", "0", "--json", *more)
    assert done.stdout, done.stderr
    report = msgspec.json.decode(done.stdout, type=AuditReport)
    for difference in report.first[:5]:
        context.say(f"{name}: {difference.kind}: {difference.what}")
    result.figures[f"verify_{name}_seconds"] = round(time.monotonic() - began, 1)
    result.check(f"without services, the archive {name} holds", done.returncode == 0 and report.different == 0)
    result.check(
        f"every score of the archive {name} is recomputed", report.recomputed == sum(report.scores.values()) > 0
    )
    result.check(f"everything in the archive {name} is checked", not report.notes)
    return report


def _read_archive(result: Result, whole: Path, scores: TopicContent) -> None:
    """`verify` and `explain` from the archive."""
    done = _run("verify", "--archive", str(whole), "--tolerance", "0", "--json")
    report = msgspec.json.decode(done.stdout) if done.stdout else {}
    result.check(
        "verify --archive recomputes every score", done.returncode == 0 and recomputes_all(report, len(scores))
    )
    chosen = max(scores.decode(Score), key=lambda score: score.score or 0.0)
    done = _run("explain", chosen.event_id, "--archive", str(whole), "--json")
    explained = msgspec.json.decode(done.stdout) if done.stdout else {}
    result.check("explain --archive explains the highest score", done.returncode == 0 and explained["same"])


def _at(moment: int, *more: str) -> list[dict[str, Any]]:
    done = _run("ensemble", "at", str(moment), "--json", *more)
    return [msgspec.json.decode(line) for line in done.stdout.splitlines()]


def _rows(control: TopicContent) -> list[ControlRecord]:
    return list(map(ControlRecord, control.offset, control.value, control.timestamp))


def _check_times(
    context: Context, result: Result, whole: Path, rows: list[ControlRecord], live: list[dict[str, Any]] | None
) -> None:
    """Compare `ensemble at` for random times with independent bookkeeping over the raw log."""
    rng = random.Random(context.seed)
    first, last = rows[0].timestamp, rows[-1].timestamp
    times = sorted({first - 1, first, last, last + 1, *(rng.randint(first, last) for _ in range(TIMES))})
    if live is not None:
        done = _run("ensemble", "at", *map(str, times), "--archive", str(whole), "--json")
        answers = [msgspec.json.decode(line) for line in done.stdout.splitlines()]
        found = {a["time"]: [msgspec.convert(e, Served) for e in a["ensembles"]] for a in answers}
        archived = [answer["ensembles"] for answer in _at(last, "--archive", str(whole))]
        result.check(
            "the archive and the topics give the same answer", archived == [answer["ensembles"] for answer in live]
        )
        result.check("the first score under the last command is found", found[last][0].first_score is not None)
    else:
        found = {time_: list(served_at(rows, time_).values()) for time_ in times}
    result.check("`ensemble at` equals independent bookkeeping at every time", _wrong(rows, found) == [])
    made = _random_commands(context.seed)
    found = {t: list(served_at(made, t).values()) for t in range(0, made[-1].timestamp + 10, 20)}
    result.at_least("times", len(times) + len(found), TIMES)
    result.check("`ensemble at` equals it over a log of random commands, too", _wrong(made, found) == [])


def _wrong(rows: list[ControlRecord], found: dict[int, list[Served]]) -> list[int]:
    """The times at which an answer differs from the independent bookkeeping."""
    books, champion, wrong = Books(), -1, []
    pages: list[tuple[int, Books, tuple[Any, ...], int]] = []
    for row in rows:
        command = msgspec.json.decode(row.value or b"")
        before = books.champion
        if books.enter(row.offset, command):
            champion = row.offset if books.champion != before else champion
            last = (row.offset, command["who"], command["why"], row.timestamp)
            pages.append((row.timestamp, copy.deepcopy(books), last, champion))
    for moment, answers in found.items():
        number = bisect.bisect_right([page[0] for page in pages], moment)
        if not number:
            right = not answers
        else:
            _, page, last, champion = pages[number - 1]
            (one,) = answers
            by = one.decided
            right = Books.of(one.state) == page and one.since["champion"].offset == champion
            right = right and (by.offset, by.who, by.why, by.timestamp) == last
            following = pages[number][2] if number < len(pages) else None
            right = right and (None if one.next is None else one.next.offset) == (following and following[0])
        if not right:
            wrong.append(moment)
    return wrong


def _random_commands(seed: int) -> list[ControlRecord]:
    """A log of random commands, one in five stale; the first one names a version."""
    rng, rows = random.Random(seed), []
    versions = [ServedVersion(f"local-{str(i) * 12}", str(i) * 64) for i in range(4)]
    actions = (
        "promote",
        "promote",
        "confirm",
        "rollback",
        "canary",
        "shadow",
        "stop",
        "disable",
        "enable",
        "hold",
        "release",
    )
    for offset in range(COMMANDS):
        action: Any = "promote" if not offset else rng.choice(actions)
        version = rng.choice(versions) if action in ("promote", "canary", "shadow", "stop") else None
        member = DisabledMember("xgb", "1" * 64) if action in ("disable", "enable") else None
        command = Command(
            ensemble="cards", action=action, who=rng.choice(("ann", "ben")), why=f"reason {offset}", at=0,
            expected_offset=offset - (offset > 0 and rng.random() < 0.2), version=version, member=member,
            share=0.1 if action == "canary" else None,
        )  # fmt: skip
        rows.append(ControlRecord(offset, msgspec.json.encode(command), 10 * offset + rng.randint(0, 9)))
    return rows


def _check_tampering(context: Context, result: Result, whole: Path) -> None:
    digest = Archive(whole).seal.digest
    tamperings = list(audit_tampering.all_of(whole))
    found, wrong = audit_tampering.missed(whole, context.folder, Expected(digest=digest), iter(tamperings))
    for message in wrong:
        context.say(f"not found: {message}")
    for name, message in found.items():
        context.say(f"{name}: {message}")
    result.at_least("alterations", len(tamperings), 25)
    result.check("each alteration is found, with a message that names it", not wrong)
