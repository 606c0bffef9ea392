"""gate: bad candidates are refused, each for the right reason, and a good one passes; likewise by `ensemble promote`.

Seven candidates are refused by the rule that fits what is wrong with them: a column of the training set that contains a
part of the label, a feature that was served with another value, members that take four times as long, labels in random
order, a bias against one channel, the profile of other traffic, and a member that fails its self-test. Other rules may
refuse a candidate only where its fault has such a consequence (`follows`). A candidate that was trained again with
another seed passes.

With the default `N`, a scorer then serves the same history from a real Kafka and Redis, and `ensemble promote --gate`
runs on the topics: the candidates are refused with exit code 3 and nothing changes on `control`; an override and the
good candidate are accepted, and their commands state the result of the gate. For the skew, a scorer serves the newest
traffic with another value of one feature.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pyarrow.parquet as pq

from proofs.gate_world import (
    LEAKED,
    SKEWED,
    Candidate,
    World,
    cards,
    make_candidates,
    make_world,
    record_served,
)
from proofs.kit import (
    CARDS_SPEC,
    ROOT,
    Context,
    Result,
    Scorer,
    read_topic,
    services,
    wait_drained,
)
from stream_scorer.clock import SystemClock
from stream_scorer.data.publish import publish_file
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.gate import inputs
from stream_scorer.gate.result import GateReport, RuleResult
from stream_scorer.gate.run import run_gate
from stream_scorer.kafka.open_loop import OpenLoopProducer
from stream_scorer.kafka.topics import Topics
from stream_scorer.records import Command
from stream_scorer.replay.pieces import Range
from stream_scorer.spec.gate_rules import Rules, load_rules
from stream_scorer.stack import StackAddresses

N = 30_000
# With fewer transactions, no services are started.
_SERVICES_FROM = 30_000
# With fewer transactions, these candidates are left out (tests/unit/test_gate.py has such cases), and skew is measured
# for two candidates only.
_ALL_FROM = 10_000
_LEFT_OUT, _WITH_SKEW = ("drifted", "altered"), ("good", "skewed")
# The share of the history that the first scorer serves.
_FIRST_SHARE = 0.85
_MIN_ROWS, _MIN_FRAUDS = 2_000, 100
# What `promote` refuses on the topics, by candidate: the rule, and a part of its reason.
_PROMOTED = {
    "leaked": ("leak", LEAKED),
    "slow": ("latency", "the champion"),
    "worse": ("quality.average_precision", "frauds"),
    "biased": ("fairness.channel.to_champion", "chip"),
}


def run(context: Context) -> Result:
    """See the module."""
    n = context.n or N
    result = Result()
    if context.broken:
        _accept_everything()
    context.say(f"simulating {n:,} transactions and training")
    world = make_world(context.folder / "world", n, context.seed, live=n >= _SERVICES_FROM)
    record_served(world, world.champion)
    left_out = _LEFT_OUT if n < _ALL_FROM else ()
    candidates = make_candidates(world, left_out)
    champion = Ensemble.load(world.champion, version="1")
    for name, candidate in candidates.items():
        rules = load_rules(world.rules)
        if n < _ALL_FROM and name not in _WITH_SKEW:
            rules = msgspec.structs.replace(rules, skew=None)
        report = _gate(world, rules, candidate, champion)
        _check(result, name, candidate, report)
        context.say(f"{name}: {', '.join(rule.rule for rule in report.refusals) or 'passes'}")
        for rule in report.refusals:
            context.say(f"    {rule.rule} {rule.measured}: {rule.reason}")
        if name == "good":
            result.at_least("transactions", report.transactions, _MIN_ROWS)
            result.figures["good"] = {rule.rule: rule.measured for rule in report.rules}
    result.at_least("training_rows", len(world.data.label), _MIN_ROWS)
    result.at_least("training_frauds", int(world.data.label.sum()), _MIN_FRAUDS)
    if n >= _SERVICES_FROM:
        _promote_on_kafka(context, world, candidates, result)
    return result


def _accept_everything() -> None:
    """BREAK=1: every measured number is within its limit."""
    from stream_scorer.gate import drift, leak, quality, traffic, versions

    def accept(rule: str, measured: float, limit: float, reason: str) -> RuleResult:
        return RuleResult(rule, measured, limit, "pass", reason)

    for module in (drift, leak, quality, traffic, versions):
        module.at_most = accept  # type: ignore[attr-defined]


def _gate(world: World, rules: Rules, candidate: Candidate, champion: Ensemble) -> GateReport:
    material = inputs.from_files(
        world.transactions,
        world.labels,
        cards(),
        Range(time_start=world.cut),
        None,
        served=candidate.served,
        training_set=candidate.training_set,
    )
    version = candidate.folder.name
    return run_gate(rules, cards(), (candidate.folder, version), champion, material, SystemClock())


def _check(result: Result, name: str, candidate: Candidate, report: GateReport) -> None:
    refused = {rule.rule for rule in report.refusals}
    missed = {rule.rule for rule in report.refusals if rule.measured is None and rule.rule != "self_test"}
    result.check(f"{name}: every rule was measured", not missed)
    if not candidate.refused:
        result.check(f"{name} passes", report.passed)
        return
    result.check(f"{name} is refused by {', '.join(sorted(candidate.refused))}", candidate.refused <= refused)
    odd = {rule for rule in refused - candidate.refused if rule.partition(".")[0] not in candidate.follows}
    result.check(f"{name} is refused by no unrelated rule", not odd)
    reasons = {rule.rule: rule.reason for rule in report.refusals}
    if "leak" in candidate.refused:
        result.check("the reason names the leaked column and no other", reasons.get("leak", "").startswith(LEAKED))
        result.check("one column differs", [r.measured for r in report.rules if r.rule == "leak"] == [1.0])
    if "skew" in candidate.refused:
        result.check("the reason names the skewed feature", SKEWED in reasons.get("skew", ""))
    if "fairness.channel.to_champion" in candidate.refused:
        biased = reasons.get("fairness.channel.to_champion", "")
        result.check("the reason begins with the channel of the bias", biased.startswith("chip "))


def _promote_on_kafka(context: Context, world: World, candidates: dict[str, Candidate], result: Result) -> None:
    """The same through `ensemble promote`, on the topics that a scorer wrote."""
    topics = Topics()
    first, rest = _split(world)
    with services("kafka", "redis", partitions=1) as (_stack, at):
        bootstrap = str(at.kafka)
        _publish(bootstrap, world.labels, labels=True)
        _publish(bootstrap, first, labels=False)
        _serve(context, at, world, "scorer", None)
        for name, (rule, reason) in _PROMOTED.items():
            done = _promote(context, at, world, candidates[name])
            refused = done.stderr.partition("the gate refuses")[2].partition("\n")[0]
            context.say(f"promote {name}: exit code {done.returncode}{refused}")
            lines = [line for line in done.stdout.splitlines() if line.split()[:1] == [rule]]
            result.check(f"promote refuses {name} with exit code 3", done.returncode == 3)
            result.check(
                f"promote names {rule} for {name}", len(lines) == 1 and "refuse" in lines[0] and reason in lines[0]
            )
        before = read_topic(bootstrap, topics.control).decode(Command)
        # The first scorer proposes the version that it was started with.
        result.check("no refused candidate is on control", [c.author for c in before] == ["scorer"])
        # The slow one scores like the champion, so that the good candidate can be compared with it.
        done = _promote(context, at, world, candidates["slow"], "--skip-gate", "the champion is compromised")
        result.check("an override is accepted", done.returncode == 0)
        done = _promote(context, at, world, candidates["good"])
        context.say(f"promote good: exit code {done.returncode}")
        if done.returncode:
            context.say(done.stdout + done.stderr)
        result.check("the good candidate is promoted", done.returncode == 0)
        whys = [c.why for c in read_topic(bootstrap, topics.control).decode(Command) if c.author == "person"]
        digest = load_rules(world.rules).sha256[:12]
        expected = ["proof [gate skipped: the champion is compromised]", f"proof [gate passed: rules {digest}]"]
        result.check("the commands state the result of the gate", whys == expected)
        _publish(bootstrap, rest, labels=False)
        _serve(context, at, world, "skewed", "skew-a-feature")
        done = _promote(context, at, world, Candidate(world.champion, candidates["good"].training_set, world.served))
        lines = [line for line in done.stdout.splitlines() if "refuse" in line.split()]
        context.say(f"promote after a skew: exit code {done.returncode}; {'; '.join(lines)}")
        result.check("a skew of the scorer is refused with exit code 3", done.returncode == 3)
        result.check(
            "only skew refuses, and names the feature",
            len(lines) == 1 and lines[0].startswith("skew ") and SKEWED in lines[0],
        )


def _split(world: World) -> tuple[Path, Path]:
    """The transactions as two files: what the first scorer serves, and the newest ones."""
    table = pq.read_table(world.transactions)
    cut = int(_FIRST_SHARE * len(table))
    first, rest = world.folder / "first.parquet", world.folder / "rest.parquet"
    pq.write_table(table.slice(0, cut), first)
    pq.write_table(table.slice(cut), rest)
    return first, rest


def _publish(bootstrap: str, path: Path, *, labels: bool) -> None:
    with OpenLoopProducer(bootstrap, client_id="proof", clock=SystemClock(), sleep=time.sleep) as producer:
        publish_file(path, cards(), producer, Topics(), labels=labels)


def _serve(context: Context, at: StackAddresses, world: World, instance: str, sabotage: str | None) -> None:
    """Let a scorer score everything that is on the topics."""
    scorer = Scorer(context.folder, at, instance=instance, ensemble=world.champion, sabotage=sabotage)
    scorer.start()
    try:
        wait_drained(str(at.kafka), [scorer], timeout_s=240)
        scorer.stop()
    finally:
        scorer.close()


def _promote(
    context: Context, at: StackAddresses, world: World, candidate: Candidate, *more: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stream_scorer.cli.main", "ensemble", "promote", str(candidate.folder)]
    command += ["--gate", str(world.rules), "--training-set", str(candidate.training_set), "--spec", str(CARDS_SPEC)]
    command += ["--bootstrap", str(at.kafka), "--why", "proof", "--who", "proof", "--wait", "0", *more]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "STREAM_SCORER_CACHE_DIR": str(context.folder / "cache")}
    return subprocess.run(
        command, cwd=context.folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
