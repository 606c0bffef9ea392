"""member-faults: whatever one member does, every transaction is scored once, and its score names the missing member.

On a real Kafka and Redis one of the five members (`proofs/sabotage.py` puts another in its place) raises, returns NaN,
a wrong shape or a value out of range, exceeds its budget, hangs while others run, and hangs holding the interpreter
lock, one after the other. Each time its breaker opens, and scores go on without the member and name it. When it works
again, the breaker closes, and scores are complete. A hang that holds the lock ends the scorer; the next one starts
without that member. Whatever else the member does, there is no gap of 2 s before a score or between two.

`N` is the number of transactions of each phase; each fault has a faulty and a healthy phase.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np

from proofs.kit import (
    Context,
    Result,
    Scorer,
    publish,
    read_topic,
    services,
    train_cards,
    wait_drained,
    wait_until,
)
from proofs.throughout import PROMISED_MS, longest_gap
from stream_scorer.clock import SystemClock
from stream_scorer.kafka.topics import Topics
from stream_scorer.records import Contribution, Score
from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.simulate.encode import encode_keys, encode_values
from stream_scorer.simulate.generate import generate
from stream_scorer.stack import StackAddresses

N = 2_000
FAULTS = ("raises", "returns-nan", "another-shape", "out-of-range", "slow", "hangs", "holds-the-lock")
MEMBER = "xgb"
FLAG = f"member:{MEMBER}"
BUDGET_MS, LIMIT_S = 200, 2
# Enough batches for a breaker to count, few enough records in each.
_BATCH, _TRIAL = 64, 100
_PATIENCE_S = 90.0
OPENED, CLOSED = f"member {MEMBER}: breaker opened", f"member {MEMBER}: breaker closed"


def run(context: Context) -> Result:
    """See the module."""
    n = context.n or N
    faults = FAULTS if not context.broken else FAULTS[:1]
    result = Result()
    train_cards(context.folder, seed=context.seed, transactions=30_000)
    keys, values = _input(context.seed, (2 * n + 200 * _TRIAL) * len(faults))
    flag = context.folder / "fault"
    topics, sent = Topics(), 0
    phase: dict[int, str] = {}
    sent_at: dict[str, int] = {}
    with services("kafka", "redis") as (_stack, at):
        bootstrap = str(at.kafka)
        scorer = _scorer(context, at, flag)

        def send(count: int, name: str) -> None:
            nonlocal sent
            publish(bootstrap, topics.transactions, keys[sent : sent + count], values[sent : sent + count])
            sent_at.setdefault(name, SystemClock().now_ms())
            phase.update(dict.fromkeys(range(sent, sent + count), name))
            sent += count

        def logged(what: str) -> int:
            return scorer.log.read_text().count(what)

        flag.write_text("well")
        scorer.start()
        try:
            # Its self-test would refuse a member that does not score as it did.
            send(_TRIAL, "at first")
            wait_drained(bootstrap, [scorer], timeout_s=_PATIENCE_S)
            for fault in faults:
                opened, closed = logged(OPENED), logged(CLOSED)
                flag.write_text(fault)
                send(n, fault)
                if fault == "holds-the-lock":
                    wait_until("the watchdog ends the scorer", lambda: not scorer.running, _PATIENCE_S)
                    flag.write_text("well")
                    scorer.start()
                wait_drained(bootstrap, [scorer], timeout_s=_PATIENCE_S)
                result.check(f"{fault}: its breaker opens", logged(OPENED) > opened)
                flag.write_text("well")
                deadline = time.monotonic() + (_PATIENCE_S if not context.broken else 15.0)
                while logged(CLOSED) == closed and time.monotonic() < deadline:
                    send(_TRIAL, f"{fault}, recovering")
                    time.sleep(0.5)
                result.check(f"{fault}: its breaker closes", logged(CLOSED) > closed)
                wait_drained(bootstrap, [scorer], timeout_s=_PATIENCE_S)
                send(n, f"{fault}, recovered")
                wait_drained(bootstrap, [scorer], timeout_s=_PATIENCE_S)
                context.say(f"{fault}: opened and closed again")
            result.check("SIGTERM ends the scorer with exit 0 in 10 s", scorer.stop(10) == 0)
        finally:
            scorer.close()
        scores = read_topic(bootstrap, topics.scores).decode(Score)
        contributions = read_topic(bootstrap, topics.contributions).decode(Contribution)
    place = {_event_id(value): index for index, value in enumerate(values[:sent])}
    phases = [phase[place[s.event_id]] for s in scores]
    _check(result, faults, phases, scores, contributions)
    _check_gaps(result, sent_at, phases, scores)
    result.check("every transaction is scored once", Counter(s.event_id for s in scores) == Counter(place.keys()))
    return result


def _scorer(context: Context, at: StackAddresses, flag: Path) -> Scorer:
    """A scorer with a member that has the fault in the file `flag`."""
    return Scorer(
        context.folder,
        at,
        instance="scorer",
        ensemble=context.folder / "ensemble",
        arguments=[
            "--batch", str(_BATCH), "--cache", str(context.folder / "cache"),
            "--member-timeout-ms", str(BUDGET_MS), "--watchdog-timeout-s", str(LIMIT_S),
        ],
        sabotage="faulty-member-unguarded" if context.broken else "faulty-member",
        environment={"FAULT": str(flag)},
    )  # fmt: skip


def _check(
    result: Result, faults: tuple[str, ...], phases: list[str], scores: list[Score], contributions: list[Contribution]
) -> None:
    lineage = {c.event_id: c for c in contributions}
    flagged: Counter[str] = Counter()
    unlike = incomplete = 0
    for name, score in zip(phases, scores, strict=True):
        c = lineage[score.event_id]
        gone = c.members.score[c.members.name.index(MEMBER)] is None
        flagged[name] += FLAG in score.degraded
        unlike += gone != (FLAG in score.degraded) or (gone != (score.coverage < 1.0))
        if c.z is None or c.base is None or abs(c.base + sum(c.members.contribution) - c.z) > 1e-9:
            incomplete += 1
    total = Counter(phases)
    result.figures["scores"] = len(scores)
    result.figures["without_the_member"] = {fault: f"{flagged[fault]} of {total[fault]}" for fault in faults}
    result.check("a score names the member as missing if and only if it is", unlike == 0)
    result.check("every score is complete and adds up", incomplete == 0)
    for fault in faults:
        # The lock is held from the first batch on; what is scored with the fault is scored by the next scorer.
        result.check(f"{fault}: scores go on without the member", flagged[fault] > 0.9 * total[fault])
        result.check(f"{fault}: scores are whole afterwards", flagged[f"{fault}, recovered"] == 0)


def _check_gaps(result: Result, sent_at: dict[str, int], phases: list[str], scores: list[Score]) -> None:
    """No phase has a gap between the arrival of its transactions, which come all at once, and its last score."""
    longest: dict[str, int] = {}
    for name, began in sent_at.items():
        at = np.array([s.scored_at for phase, s in zip(phases, scores, strict=True) if phase == name])
        if name == "at first" or name.endswith("recovering") or not len(at):
            continue  # the scorer starts, or transactions come with pauses
        # With the lock held, nothing is scored until the watchdog has ended the scorer and it runs again.
        began = int(at.min()) if name == "holds-the-lock" else began
        longest[name] = longest_gap(at, (began, int(at.max())))
        result.check(f"{name}: no gap of {PROMISED_MS / 1_000:g} s", longest[name] <= PROMISED_MS)
    result.figures["longest_gap_ms"] = {name: gap for name, gap in longest.items() if name in FAULTS}


def _input(seed: int, n: int) -> tuple[list[bytes], list[bytes]]:
    config = SimulationConfig(seed=seed, customers=max(n // 60, 50), days=None, transactions=n)
    transactions = generate(config.starting(config.start_to_end_by(SystemClock().now_ms())))
    return encode_keys(transactions.customer_id), encode_values(transactions)


def _event_id(value: bytes) -> str:
    return str(msgspec.json.decode(value)["event_id"])
