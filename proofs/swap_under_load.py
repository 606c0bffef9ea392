"""swap-under-load: versions come and go under 5,000 transactions a second, and nothing is lost, doubled or mixed.

A real scorer is loaded open-loop while commands go to `control`: a shadow, a canary that grows, a promotion, a
rollback, a member disabled and enabled, another promotion and its confirmation, retirement. Afterwards: every
transaction has one score; no micro-batch was scored under two commands; every score has the version, arm, alternatives
and members that the command in force asks for; commands take force in order; and `stream-scorer verify` computes every
score again from its record. During the rollbacks, the files of the version that returns are not in the cache, so that
it cannot be loaded again; the bad version goes on for at most two seconds. Figures: how long each command took to be in
force, how long the bad version went on after its rollback, the longest pause and the latency around each swap.

`N` is the least number of transactions. A small one has less load, and a candidate with other weights instead
of one that is trained.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from proofs.kit import (
    ROOT,
    Context,
    Ends,
    Load,
    Result,
    Scorer,
    log_ends,
    read_lineage,
    read_topic,
    recomputes_all,
    services,
    train_cards,
    wait_drained,
    wait_until,
)
from stream_scorer.clock import SystemClock
from stream_scorer.control.commands import catch_up, submit
from stream_scorer.control.state import History
from stream_scorer.ensemble.manifest import member_key, read_manifest
from stream_scorer.ensemble.registry import keep
from stream_scorer.ensemble.reweigh import reweigh
from stream_scorer.kafka.control_log import ControlLog
from stream_scorer.kafka.topics import Topics
from stream_scorer.records import Command, Contribution, DisabledMember, LineageRow, Score, ServedVersion
from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.simulate.encode import encode_keys, encode_values
from stream_scorer.simulate.generate import generate

N, RATE = 200_000, 5_000
SMALL, SMALL_RATE = 50_000, 300
# Commands may take longer than planned: the load goes on for at most this many seconds.
_SPARE_S = 60
TARGET_S = 2.0
# A version that would have to be loaded does not serve, however long the proof waits.
_WITHOUT_FILES_S = 20
MEMBER = "xgb"
_AROUND_MS = 1_000
# Swaps do not overlap: the effects of the one before are over.
_LEAST_DWELL_S = 0.5
# A command stays in force for at least so many micro-batches. The first of them may have begun under the one before.
_LEAST_BATCHES = 5
# Until what waited for the group to form is worked off.
_WARM_UP_S = 2.0


@dataclass(slots=True)
class Expected:
    """The state that a command leads to: champion, canary with its share, other versions, whether a member is off."""

    champion: str
    canary: str = ""
    share: float = 0.0
    shadows: list[str] = field(default_factory=list)
    disabled: bool = False


def run(context: Context) -> Result:
    """See the module."""
    n = context.n or N
    rate = RATE if n >= SMALL else SMALL_RATE
    result = Result()
    folders = [context.folder / name for name in ("good", "candidate")]
    train_cards(folders[0], seed=context.seed, transactions=30_000)
    if n >= SMALL:
        train_cards(folders[1], seed=context.seed + 1, transactions=30_000)
    else:
        reweigh(folders[0] / "ensemble", {MEMBER: 1.0}, folders[1] / "ensemble", 1)
    cache = context.folder / "cache"
    good, candidate = (ServedVersion(*keep(folder / "ensemble", cache)) for folder in folders)
    key = next(member_key(m) for m in read_manifest(folders[0] / "ensemble").members if m.name == MEMBER)
    member = DisabledMember(MEMBER, key)
    a, b = good.version, candidate.version
    steps: list[tuple[str, dict[str, Any], Expected]] = [
        ("shadow", {"version": candidate}, Expected(a, shadows=[b])),
        ("canary", {"version": candidate, "share": 0.1}, Expected(a, b, 0.1)),
        ("canary", {"version": candidate, "share": 0.5}, Expected(a, b, 0.5)),
        ("promote", {"version": candidate}, Expected(b, shadows=[a])),
        ("rollback", {}, Expected(a)),
        ("disable", {"member": member}, Expected(a, disabled=True)),
        ("enable", {"member": member}, Expected(a)),
        ("promote", {"version": candidate}, Expected(b, shadows=[a])),
        ("confirm", {}, Expected(b)),
        ("rollback", {}, Expected(a)),
        ("retire", {"version": candidate}, Expected(a)),
    ]
    keys, values = _input(context.seed, n + rate * _SPARE_S)
    topics = Topics()
    # On one partition the places within micro-batches show where each begins.
    with services("kafka", "redis", partitions=1) as (_stack, at):
        bootstrap = str(at.kafka)
        scorer = Scorer(
            context.folder,
            at,
            instance="scorer",
            ensemble=folders[0] / "ensemble",
            arguments=["--cache", str(cache)],
            sabotage="halves-of-batches,forget-last-good" if context.broken else None,
        )
        scorer.start()
        log, history = ControlLog(bootstrap, topics.control), History()
        statuses = ControlLog(bootstrap, topics.scorer_status)
        ends = Ends(bootstrap, topics.scores)
        try:
            wait_until("the scorer serves", lambda: log.end() > 0 and _in_force(statuses, 0), 60)
            load = Load(bootstrap, topics.transactions, keys, values, rate)
            load.start()
            wait_until("it scores", lambda: sum(log_ends(bootstrap, [topics.scores]).values()) > 0, 60)
            time.sleep(_WARM_UP_S)
            dwell = max(n / rate / len(steps), _LEAST_DWELL_S)
            catch_up(log, history, log.end())
            expected, commands, rolled_back = {0: Expected(a)}, [], 0
            for action, more, wanted in steps:
                with _without_files(cache, a) if action == "rollback" else nullcontext():
                    began, at_ms = time.monotonic(), time.time_ns() // 1_000_000
                    entry = submit(log, history, _command(action, at_ms, more))
                    assert not entry.refused, entry.refused
                    expected[entry.offset] = wanted
                    found = _await_force(statuses, entry.offset, _WITHOUT_FILES_S if action == "rollback" else 60)
                    if action == "rollback":
                        rolled_back += found
                if not found:
                    assert _await_force(statuses, entry.offset, 60), f"{action} is not in force"
                commands.append((action, entry.offset, at_ms, round(1e3 * (time.monotonic() - began))))
                context.say(f"{action}: in force after {commands[-1][3]} ms")
                _dwell(ends, dwell)
            sent = load.stop(n)
            wait_drained(bootstrap, [scorer], timeout_s=120)
            result.check("SIGTERM ends the scorer with exit 0 in 10 s", scorer.stop(10) == 0)
        finally:
            scorer.close()
            log.close()
            statuses.close()
            ends.close()
        inputs = read_topic(bootstrap, topics.transactions)
        outputs = read_topic(bootstrap, topics.scores)
        contributions = read_topic(bootstrap, topics.contributions).decode(Contribution)
        lineage = read_lineage(bootstrap, topics)
        verified = _verify(bootstrap, cache, folders[0] / "ensemble")
    result.at_least("transactions", sent, n)
    result.at_least("commands", len(commands), 11)
    scores = outputs.decode(Score)
    event_ids = Counter(_event_id(value) for value in inputs.value)
    result.check("every transaction has one score", Counter(s.event_id for s in scores) == event_ids)
    result.check("and one contribution record", Counter(c.event_id for c in contributions) == event_ids)
    result.check("and one row of lineage", Counter(row.event_id for row in lineage) == event_ids)
    _check_batches(result, lineage)
    _check_versions(result, scores, contributions, lineage, expected, dict(zip(event_ids, inputs.key, strict=False)))
    report = msgspec.json.decode(verified.stdout) if verified.stdout else {}
    result.figures["verified"] = report.get("scores")
    result.check(
        "verify computes all of them again, 0 differ", verified.returncode == 0 and recomputes_all(report, len(scores))
    )
    arrived = dict(zip((_event_id(value) for value in inputs.value), inputs.timestamp, strict=True))
    _figures(
        result,
        scores,
        [t - arrived[s.event_id] for s, t in zip(scores, outputs.timestamp, strict=True)],
        commands,
        lineage,
        b,
    )
    result.check("a rollback needs no file of the version that returns", rolled_back == 2)
    result.check(f"the bad version goes on for at most {TARGET_S:g} s", result.figures["target_reached"], cost=True)
    if context.broken:
        result.must_fail("no micro-batch was scored under two commands")
        result.must_fail("a rollback needs no file of the version that returns")
    return result


@contextmanager
def _without_files(cache: Path, version: str) -> Iterator[None]:
    """Inside the block, the files of `version` are not in the cache."""
    found = next(iter(cache.glob(f"ensembles/{version.removeprefix('local-')}*")))
    aside = found.rename(cache / f"aside-{found.name}")
    try:
        yield
    finally:
        if not found.exists():
            aside.rename(found)


def _await_force(statuses: ControlLog, offset: int, timeout_s: float) -> bool:
    """Whether the command at `offset` takes force in time."""
    with suppress(AssertionError):
        wait_until("the command is in force", lambda: _in_force(statuses, offset), timeout_s, pause_s=0.005)
        return True
    return False


def _command(action: str, at_ms: int, more: dict[str, Any]) -> Any:
    return lambda offset: Command(
        ensemble="cards", action=action, who="proof", why="under load", at=at_ms, expected_offset=offset, **more
    )  # fmt: skip


def _in_force(statuses: ControlLog, offset: int) -> bool:
    """Whether a status shows that the command at `offset` is in force."""
    found = [msgspec.json.decode(record.value) for record in statuses.read(0.005) if record.value]
    return any(status["control_offset"] >= offset for status in found)


def _dwell(ends: Ends, seconds: float) -> None:
    """Wait for `seconds` and `_LEAST_BATCHES` micro-batches."""
    until, last, batches = time.monotonic() + seconds, ends.committed(), 0

    def over() -> bool:
        nonlocal last, batches
        now = ends.committed()
        batches += now > last
        last = now
        return batches >= _LEAST_BATCHES and time.monotonic() >= until

    wait_until("micro-batches are scored", over, 60, pause_s=0.05)


def _check_batches(result: Result, lineage: list[LineageRow]) -> None:
    """A micro-batch begins where the place within it is 0."""
    places = np.array([row.place for row in lineage])
    offsets = np.array([-1 if c.control_offset is None else c.control_offset for c in lineage])
    starts = np.flatnonzero(places == 0)
    whole = np.array_equal(places, np.arange(len(places)) - np.repeat(starts, np.diff([*starts, len(places)])))
    result.check("micro-batches are whole", whole)
    result.at_least("micro_batches", len(starts), 20)
    inside = np.diff(offsets) != 0
    inside[starts[1:] - 1] = False
    result.check("no micro-batch was scored under two commands", not inside.any())
    result.check("commands take force in their order", bool((np.diff(offsets) >= 0).all()))


def _check_versions(
    result: Result,
    scores: list[Score],
    contributions: list[Contribution],
    lineage: list[LineageRow],
    expected: dict[int, Expected],
    key_of: dict[str, bytes | None],
) -> None:
    wrong: Counter[str] = Counter()
    seen: Counter[int] = Counter()
    for score, c, row in zip(scores, contributions, lineage, strict=True):
        wanted = expected.get(-1 if row.control_offset is None else row.control_offset)
        if wanted is None:
            wrong["an unknown command"] += 1
            continue
        seen[row.control_offset or 0] += 1
        entity = (key_of[score.event_id] or b"").decode()
        mine = wanted.canary if wanted.canary and _place(f"cards:{wanted.canary}", entity) < wanted.share else ""
        version, arm = (mine, "canary") if mine else (wanted.champion, "champion")
        others = [v for v in (wanted.champion, wanted.canary, *wanted.shadows) if v and v != version]
        wrong["version or arm"] += (score.version, score.arm, c.version, c.arm) != (version, arm) * 2
        wrong["lineage"] += (row.event_id, row.version, row.arm) != (score.event_id, version, arm)
        wrong["alternatives"] += [a.version for a in c.alternatives] != others
        gone = [m.name for m in c.members.rows() if m.status != "ok"]
        wrong["members"] += gone != ([MEMBER] if wanted.disabled else [])
        wrong["status"] += any(m.status == "missing" for m in c.members.rows())
    result.figures["scores_by_command"] = dict(seen)
    result.figures["wrong"] = {what: count for what, count in wrong.items() if count}
    result.check("every score has the version, arm, alternatives and members its command asks for", not wrong.total())
    result.check("every command decided some transactions", set(seen) == set(expected))


def _figures(
    result: Result,
    scores: list[Score],
    latency: list[int],
    commands: list[tuple[str, int, int, int]],
    lineage: list[LineageRow],
    bad: str,
) -> None:
    at = np.array([s.scored_at for s in scores])
    late = np.array(latency)
    near = np.zeros(len(at), bool)
    around = {}
    for action, offset, at_ms, force_ms in commands:
        window = (at >= at_ms) & (at < at_ms + _AROUND_MS)
        near |= window
        pause = int(np.diff(np.sort(at[window])).max(initial=0))
        p50, p99 = (int(q) for q in np.percentile(late[window], [50, 99])) if window.any() else (-1, -1)
        around[f"{offset} {action}"] = {
            "in_force_ms": force_ms,
            "longest_pause_ms": pause,
            "p50_ms": p50,
            "p99_ms": p99,
        }
    result.figures["around_swaps"] = around
    if (~near).any():
        p50, p99 = (int(q) for q in np.percentile(late[~near], [50, 99]))
        result.figures["elsewhere"] = {"p50_ms": p50, "p99_ms": p99}
    offsets = np.array([-1 if c.control_offset is None else c.control_offset for c in lineage])
    decided = np.array([s.version == bad for s in scores])
    stops = {}
    for action, offset, at_ms, _ in commands:
        before = decided & (offsets < offset)
        if action == "rollback" and before.any():
            stops[f"{offset} {action}"] = max(int(at[before].max()) - at_ms, 0)
    result.figures["bad_version_went_on_ms"] = stops
    result.figures["target_ms"] = round(TARGET_S * 1_000)
    result.figures["target_reached"] = max(stops.values(), default=0) <= TARGET_S * 1_000


def _verify(bootstrap: str, cache: Path, ensemble: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stream_scorer.cli.main", "verify", "--bootstrap", bootstrap, "--json"]
    command += ["--cache", str(cache), "--ensemble", str(ensemble), "--tolerance", "0"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def _place(salt: str, entity: str) -> float:
    """By the definition in docs/control.md."""
    key = hashlib.blake2b(salt.encode(), digest_size=32).digest()
    return int(hashlib.blake2b(entity.encode(), digest_size=8, key=key).hexdigest(), 16) / 2.0**64


def _input(seed: int, n: int) -> tuple[list[bytes], list[bytes]]:
    config = SimulationConfig(seed=seed, customers=max(n // 60, 200), days=None, transactions=n)
    transactions = generate(config.starting(config.start_to_end_by(SystemClock().now_ms())))
    return encode_keys(transactions.customer_id), encode_values(transactions)


def _event_id(value: bytes | None) -> str:
    return str(msgspec.json.decode(value or b"")["event_id"])
