"""incident: a minor update of one member raises alerts by a sixth or more; the monitor sees it and rolls it back.

A real scorer under 2,000 transactions a second, a real monitor in mode `auto`. First a harmless new version is
promoted: its probation ends by itself. Then a version in which one member reads one input at another scale, with a
weight that amplifies it: the monitor rolls it back with a reason that names the member. Promoted once more within the
cool-down, it is only reported. The monitor is killed in between and comes to the same counts. These are compared with a
recount from the lineage of every single score, card by card, and its evidence with a product over the cards.

`N` is the number of transactions of a probation. If there are few, the update does more harm, so that it can be found,
and is promoted once only.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from proofs.kit import (
    Context,
    Load,
    Monitor,
    Result,
    Scorer,
    cards,
    log_ends,
    read_lineage,
    read_topic,
    services,
    train_cards,
    wait_drained,
    wait_until,
)
from stream_scorer.clock import SystemClock
from stream_scorer.control.commands import catch_up, submit
from stream_scorer.control.probation import GRACE_MS, Comparison, ComparisonCounts
from stream_scorer.control.state import History
from stream_scorer.control.verdict import ALPHA
from stream_scorer.control.verdicts import read_verdicts
from stream_scorer.demo.update import Change, minor_update
from stream_scorer.ensemble.manifest import read_manifest
from stream_scorer.ensemble.registry import keep
from stream_scorer.ensemble.reweigh import reweigh
from stream_scorer.kafka.control_log import ControlLog
from stream_scorer.kafka.topics import Topics
from stream_scorer.records import Command, Contribution, Incident, LineageRow, Score, ScoreSummary, ServedVersion
from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.simulate.encode import encode_keys, encode_values
from stream_scorer.simulate.generate import generate
from stream_scorer.train.dataset import read_training_set

N, RATE, FEW = 100_000, 2_000, 50_000
MEMBER, INPUT = "gbdt", "customer.count_1h"
SCALES = (0.9, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4)
AMPLIFIED = 2.0
LEAST_RISE, LEAST_RISE_OF_FEW = 0.17, 0.35
PATIENCE_S = 90
# Reasons of `degraded` with which a score still has its features.
_FEATURES_KNOWN = {"features_stale", "features_partial"}


def run(context: Context) -> Result:
    """See the module."""
    n = context.n or N
    result = Result()
    good, harmless, bad = (context.folder / name for name in ("good", "harmless", "bad"))
    train_cards(good, seed=context.seed, transactions=30_000)
    least = LEAST_RISE if n >= FEW else LEAST_RISE_OF_FEW
    made = minor_update_of(good, bad, least)
    changed = asdict(made[0]) | {"rise_on_history": round(made[1], 3)}
    result.figures |= changed
    context.say(f"the bad version: {changed}")
    weights = {m.name: m.weight for m in read_manifest(good / "ensemble").members}
    (harmless / "ensemble").mkdir(parents=True, exist_ok=True)
    reweigh(good / "ensemble", {MEMBER: weights[MEMBER] * 1.01}, harmless / "ensemble", 1)
    cache = context.folder / "cache"
    two, three = (ServedVersion(*keep(folder / "ensemble", cache)) for folder in (harmless, bad))
    topics = Topics()
    with services("kafka", "redis", partitions=2) as (_stack, at):
        bootstrap = str(at.kafka)
        arguments = ["--cache", str(cache)]
        scorer = Scorer(context.folder, at, instance="scorer", ensemble=good / "ensemble", arguments=arguments)
        monitor = Monitor(
            context.folder,
            at,
            good / "ensemble",
            arguments=["--mode", "auto", "--probation", str(n), "--monitor-instance", "watcher"],
            sabotage="blind-watch" if context.broken else None,
        )
        log, history = ControlLog(bootstrap, topics.control), History()
        load = Load(bootstrap, topics.transactions, *_input(context.seed), RATE)
        scorer.start()
        monitor.start()

        def state() -> Any:
            catch_up(log, history, log.end())
            return history.states["cards"]

        def promote(version: ServedVersion) -> int:
            catch_up(log, history, log.end())
            entry = submit(log, history, lambda offset: promotion(version, offset))
            assert not entry.refused, entry.refused
            return entry.offset

        try:
            wait_until("the scorer serves", lambda: log.end() > 0, 180)
            load.start()
            wait_until("it scores", lambda: sum(log_ends(bootstrap, [topics.scores]).values()) > n // 4, 60)
            promote(two)
            time.sleep(1)
            monitor.kill()  # it keeps nothing: the next one counts from the topics
            monitor.start()
            wait_until("the harmless version's probation is over", lambda: not state().probation, PATIENCE_S)
            context.say("the harmless version is confirmed")
            result.check("a harmless version's probation ends by itself", state().champion == two)
            since = promote(three)
            began = time.monotonic()
            gone = _within(PATIENCE_S if not context.broken else 20, lambda: state().champion == two)
            result.figures["seconds_to_rollback"] = round(time.monotonic() - began, 1)
            result.check("the bad version is rolled back by itself", gone)
            if gone:
                command = history.entries[-1].command
                assert command is not None
                context.say(f"rolled back: {command.why}")
                result.figures["why"] = command.why
                result.check("by the monitor", (command.author, command.who) == ("monitor", "watcher"))
                result.check("the reason names the member", f"member {MEMBER} " in command.why)
            collected = gone and _within(PATIENCE_S, lambda: _collected(bootstrap, topics, f"cards-{since}"))
            result.check("it stays in shadow, and its cards are collected for labels", collected)
            if gone and n >= FEW:
                again = promote(three)
                logged = _within(PATIENCE_S, lambda: "within the cool-down" in monitor.log.read_text())
                result.check(
                    "a second time within the cool-down it is only logged", logged and state().champion == three
                )
                result.check("and no command is issued", history.entries[-1].offset == again)
            if gone:
                _within(PATIENCE_S, lambda: _reported(bootstrap, topics, again=n >= FEW))
            sent = load.stop()
            wait_drained(bootstrap, [scorer], timeout_s=120)
            result.check("SIGTERM ends scorer and monitor with exit 0", scorer.stop(10) == 0 == monitor.stop(10))
        finally:
            load.stop()
            scorer.close()
            monitor.close()
            log.close()
        content = read_topic(bootstrap, topics.scores)
        scores = content.decode(Score)
        contributions = read_topic(bootstrap, topics.contributions).decode(Contribution)
        lineage = read_lineage(bootstrap, topics)
        summaries = read_topic(bootstrap, topics.score_summaries).decode(ScoreSummary)
        reported = _verdict_incidents(bootstrap, topics)
        log = ControlLog(bootstrap, topics.verdicts)
        try:
            verdicts = read_verdicts(log)
        finally:
            log.close()
    newest = list({incident.id: incident for incident in reported}.values())  # type: ignore[attr-defined]
    result.figures["incidents"] = [f"{i.id} {i.member} {'open' if i.closed is None else 'closed'}" for i in newest]
    incidents = [(three.version, MEMBER, False, False)] + [(three.version, MEMBER, True, True)] * (n >= FEW)
    result.check(
        "every promotion of the bad version is an incident: the first closed, another one open and held back",
        [(i.version, i.member, i.closed is None, bool(i.held_back)) for i in newest] == incidents,
    )
    last = verdicts.get(f"cards-{since}")
    result.check("the verdict on the bad version is published", last is not None and last.finding == "rise")
    result.check("every transaction has one score", len(scores) == len({s.event_id for s in scores}) == sent)
    _recount(
        result,
        Comparison("cards", three, two, since, 0, "rollback"),
        scores,
        content.key,
        list(zip(contributions, lineage, strict=True)),
        summaries,
    )
    return result


def _recount(
    result: Result,
    comparison: Comparison,
    scores: list[Score],
    keys: list[bytes | None],
    recorded: list[tuple[Contribution, LineageRow]],
    summaries: list[ScoreSummary],
) -> None:
    """Compare the counts from the summaries with those of every single score, and the evidence with a product."""
    watched = ComparisonCounts(comparison)
    for summary in summaries:
        watched.add(summary)
    decided = {s.event_id: (s, key) for s, key in zip(scores, keys, strict=True)}
    scored, counts = 0, [0, 0, 0, 0]
    # By card (the record key): the first alert by each version, and its partition. By partition: the newest event time.
    first: dict[tuple[int, bytes], list[float]] = {}
    newest: dict[int, int] = {}
    for c, row in recorded:
        if (
            c.version != comparison.candidate.version
            or row.control_offset is None
            or row.control_offset < comparison.since
        ):
            continue
        alerted = [a.decision != "approve" for a in c.alternatives if a.version == comparison.baseline.version]
        if not alerted:  # after its probation it is scored alone
            continue
        scored += 1
        score, key = decided[c.event_id]
        ours, theirs = score.decision != "approve", alerted[0]
        partition = c.source.partition
        newest[partition] = max(newest.get(partition, 0), score.event_time)
        if score.duplicate or not set(score.degraded) <= _FEATURES_KNOWN:
            continue
        counts[(0 if theirs else 1) if ours else (2 if theirs else 3)] += 1
        if ours or theirs:
            card = first.setdefault((partition, key or b""), [math.inf, math.inf])
            for place, alert in enumerate((ours, theirs)):
                card[place] = min(card[place], score.event_time) if alert else card[place]
    classes = [
        "both" if abs(card[0] - card[1]) <= GRACE_MS else "candidate" if card[0] < card[1] else "baseline"
        for (partition, _), card in first.items()
        if min(card) + GRACE_MS < newest[partition]
    ]
    found = [classes.count(name) for name in ("both", "candidate", "baseline")]
    result.figures |= {
        "scored_by_the_bad_version": scored,
        "alerts": counts[0] + counts[1],
        "alerts_of_the_one_before": counts[0] + counts[2],
        "alerted_cards": found[0] + found[1],
        "alerted_cards_of_the_one_before": found[0] + found[2],
    }
    result.at_least("scored_by_the_bad_version", scored, 1)
    result.check(
        "counts equal those of every single score",
        [watched.both, watched.candidate_only, watched.baseline_only, watched.neither] == counts,
    )
    by_card = watched.cards.counts
    result.check(
        "counts of cards equal those of every single card",
        [by_card.both, by_card.candidate_only, by_card.baseline_only] == found,
    )
    evidence = _evidence(found)
    result.figures["log_evidence"] = round(evidence, 2)
    result.check("the evidence equals a product", math.isclose(evidence, watched.verdict.evidence.rise, abs_tol=1e-6))
    # The bad version scores until scorers follow the command. The evidence of the end may therefore be lower again.
    stated = re.search(r"evidence 10\^([0-9.]+)", str(result.figures.get("why")))
    result.check("it was enough to act", stated is not None and float(stated[1]) >= round(-math.log10(ALPHA), 1))


def _evidence(cards: list[int]) -> float:
    """The evidence for a rise of more than 5 %, card by card. Independent of the product's code."""
    both, candidate_only, baseline_only = cards
    bets = np.array([0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 0.95]) / 1.05
    fortunes = np.full(len(bets), math.log(0.5 / len(bets)))  # half of the wealth bets on a fall
    for ours, theirs in [(1.0, 1.0)] * both + [(1.0, 0.0)] * candidate_only + [(0.0, 1.0)] * baseline_only:
        fortunes += np.log(1 + bets * (ours - 1.05 * theirs))
    return float(np.logaddexp.reduce(fortunes))


def minor_update_of(good: Path, bad: Path, least: float) -> tuple[Change, float]:
    """Write a version to ``bad/ensemble`` that alerts at least `least` more on the history of `good`.

    Returns the change, and the rise.
    """
    features = read_training_set(good / "transactions.parquet", good / "labels.parquet", cards()).features
    changes = [Change(MEMBER, INPUT, scale, AMPLIFIED) for scale in SCALES]
    made = minor_update(good / "ensemble", bad / "ensemble", features, changes, least)
    assert made is not None, "no scale raises alerts enough"
    return made


def promotion(version: ServedVersion, offset: int) -> Command:
    """The command that promotes `version`, at this place of the log."""
    return Command(
        ensemble="cards", action="promote", who="ann", why="a minor update", at=SystemClock().now_ms(),
        expected_offset=offset, version=version,
    )  # fmt: skip


def _verdict_incidents(bootstrap: str, topics: Topics) -> list[Incident]:
    """The records of incidents about versions. A slow machine has incidents of latency too."""
    return [i for i in read_topic(bootstrap, topics.incidents).decode(Incident) if i.kind == "verdict"]


def _reported(bootstrap: str, topics: Topics, *, again: bool) -> bool:
    """Whether the first incident is closed and, with `again`, the second one is held back."""
    found = _verdict_incidents(bootstrap, topics)
    return any(i.closed is not None for i in found) and (not again or any(i.held_back for i in found))


def _collected(bootstrap: str, topics: Topics, key: str) -> bool:
    """Whether the verdict `key` has cards of the time in shadow; the last good version decided them."""
    log = ControlLog(bootstrap, topics.verdicts)
    try:
        verdict = read_verdicts(log).get(key)
    finally:
        log.close()
    return verdict is not None and any(each.shadow for each in verdict.disagreements)


def _within(seconds: float, holds: Any) -> bool:
    try:
        wait_until("it comes", holds, seconds)
    except AssertionError:
        return False
    return True


def _input(seed: int) -> tuple[list[bytes], list[bytes]]:
    n = RATE * 150
    config = SimulationConfig(seed=seed + 7, customers=4_000, terminals=900, days=None, transactions=n, fraud_rate=0.03)
    transactions = generate(config.starting(config.start_to_end_by(SystemClock().now_ms())))
    return encode_keys(transactions.customer_id), encode_values(transactions)
