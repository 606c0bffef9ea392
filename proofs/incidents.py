"""incidents: 20 faulty updates and 8 faults upstream are detected, named, and answered in the right way.

20 seeded updates of 5 kinds (scale, category map, imputation, weight, inverted score) are promoted, one at a time, on
simulated traffic that passes through the product's own code (`proofs/worlds.py`). The effect of each is measured
against the simulator's truth: 12 to 25 % more cards with a false positive, or at least 20 % fewer with detected fraud.
In half of them every member is retrained and one is bad. The watch must roll each one back and name the member.

8 faults upstream change a field or a feed while a harmless version is on probation. The monitor must detect each one,
name the field or feed, and give no command.

`N` is the maximum number of transactions per update. A small one takes one update of each kind, with more alerts.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from proofs.kit import Context, Result
from proofs.updates import KINDS, Effect, Fault, Kind, Truth, Version, find_fault
from proofs.upstream import FEED_FAULTS, FIELD_FAULTS, Normal, control, try_feed, try_field
from proofs.world_probation import reweighed
from proofs.world_training import Training, train
from proofs.world_windows import Windows
from proofs.worlds import FeaturePath, Outcome, Prepared, Stage, Trial
from stream_scorer.ensemble.lineup import Lineup
from stream_scorer.monitor.drift_events import DriftDetector
from stream_scorer.monitor.drift_series import describe
from stream_scorer.monitor.drift_types import DriftRules
from stream_scorer.simulate.config import HOUR_MS, SimulationConfig
from stream_scorer.simulate.generate import generate_days
from stream_scorer.spec import CheckedSpec

N, SMALL = 200_000, 60_000
UPDATES = 20
# Rises of false positives that the search aims at, in turn.
TARGETS = (0.14, 0.17, 0.20, 0.23)
BLOCK_SHARE = 0.2
MIN_NAMED = 0.93
# Settings of the drift detector.
BUDGET = 4.0


@dataclass(frozen=True)
class Scale:
    """The size of a run.

    Attributes:
        cold_days: days that only fill the windows of features. history_days: days that the drift detector learns from.
        fault_days: days with a fault upstream. before: transactions before each promotion.
        alert_rate: share of the transactions that alert. updates: number of updates.
        faults: which of the faults upstream.
    """

    customers: int
    terminals: int
    cold_days: int
    history_days: int
    fault_days: int
    before: int
    alert_rate: float
    training: Training
    updates: int
    faults: tuple[int, ...]

    @classmethod
    def of(cls, n: int) -> Scale:
        """The full size, or a small one for a small `n`, where more alerts make up for fewer transactions."""
        if n > SMALL:
            return cls(12_000, 2_000, 10, 28, 2, 40_000, 0.012, Training(30_000), UPDATES, tuple(range(8)))
        return cls(3_000, 600, 2, 18, 2, 12_000, 0.05, Training(9_000), len(KINDS), (0, 1, 6))


@dataclass(frozen=True)
class Traffic:
    """Traffic for all cases, and the versions, with thresholds that fit it.

    Attributes:
        before, after: the transactions before each promotion, and after it.
        normal: what precedes the faults upstream. alarms: number of drift events before them.
    """

    good: Version
    retrained: Version
    before: list[Prepared]
    after: list[Prepared]
    normal: Normal
    alarms: int


@dataclass(frozen=True)
class Case:
    """A faulty update with its measured effect, and what became of it."""

    fault: Fault
    retrained: bool
    effect: Effect
    outcome: Outcome

    @property
    def detected(self) -> bool:
        """Whether the monitor gave a command."""
        return self.outcome.action != ""

    @property
    def rolled_back(self) -> bool:
        """Whether that was the right one."""
        return self.outcome.action == "rollback"

    @property
    def named(self) -> bool:
        """Whether the incident names the member."""
        return self.outcome.incident is not None and self.outcome.incident.member == self.fault.member

    def line(self) -> dict[str, Any]:
        """The case as a row of the table."""
        fault, outcome, incident = self.fault, self.outcome, self.outcome.incident
        return {
            "kind": fault.kind,
            "retrained": self.retrained,
            "member": fault.member,
            "input": fault.input or "",
            "strength": round(fault.strength, 3),
            "false_positives": round(self.effect.false_positives, 3),
            "recall": round(self.effect.recall, 3),
            "cards": round(self.effect.cards, 3),
            "false_positive_transactions": round(self.effect.false_positive_transactions, 3),
            "action": outcome.action or "none",
            "named": "" if incident is None or incident.member is None else incident.member,
            "named_input": "" if incident is None or incident.input is None else incident.input,
            "difference": "" if incident is None else incident.difference,
            "transactions": outcome.rows,
            "event_hours": round(outcome.event_ms / 3_600_000, 1),
            "seconds": round(outcome.seconds, 1),
        }


def run(context: Context) -> Result:
    """See the module."""
    n, result = context.n or N, Result()
    scale = Scale.of(n)
    checked, good, retrained = train(context.folder, context.seed, scale.training)
    traffic = make_traffic(checked, (good, retrained), context.seed, scale, n)
    context.say(f"{sum(p.rows for p in traffic.after):,} transactions for each update")
    cases = updates(context, checked, traffic, scale)
    result.figures["updates"] = [case.line() for case in cases]
    _judge(result, cases, scale)
    _upstream(context, result, traffic, scale)
    return result


def make_traffic(checked: CheckedSpec, versions: tuple[Version, Version], seed: int, scale: Scale, n: int) -> Traffic:
    """A world without faults, whose features are the same for every version."""
    per_day = round(1.5 * scale.customers)
    history = max(scale.history_days, -(-(scale.before + n) // per_day) + 1)
    config = SimulationConfig(
        seed=seed + 20, customers=scale.customers, terminals=scale.terminals, fraud_rate=0.003,
        days=scale.cold_days + history + scale.fault_days,
    )  # fmt: skip
    path, days, kept = FeaturePath(checked, seed=seed), generate_days(config), []
    for day, rows in enumerate(itertools.islice(days, scale.cold_days + history)):
        prepared = [p.slim() for p in path.run(rows)]
        kept += prepared if day >= scale.cold_days else []
    counts = np.cumsum([p.rows for p in kept])
    promoted = int(np.searchsorted(counts, counts[-1] - n))
    first = int(np.searchsorted(counts, max(counts[promoted] - scale.before, 0)))
    before, after = kept[first:promoted], kept[promoted:]
    calm = Truth.of(before)
    good, retrained = (calm.at_alert_rate(v, scale.alert_rate, scale.alert_rate * BLOCK_SHARE) for v in versions)
    stage = Stage(Lineup((good.ensemble("1"),), control_offset=0), checked)
    series = describe(checked, good.manifest)
    windows, detector = Windows(series, good.manifest.name), DriftDetector(DriftRules(HOUR_MS, BUDGET, series))
    alarms = 0
    for each in kept:
        windows.add(stage.run(each)[1])
        for window in windows.close(each.event_time // HOUR_MS * HOUR_MS):
            alarms += len(detector.update(window).events)
    normal = Normal(checked, good, reweighed(good), path, windows, detector, list(days))
    return Traffic(good, retrained, before, after, normal, alarms)


def updates(context: Context, checked: CheckedSpec, traffic: Traffic, scale: Scale) -> list[Case]:
    """Find the faults, and promote each over the good version."""
    rng = np.random.default_rng(context.seed)
    truth, good = Truth.of(traffic.after), traffic.good
    old = truth.alerts(good, keep=True)
    truth.alerts(traffic.retrained, keep=True)
    context.say(
        f"the good version alerts {old.mean():.2%}, precision {truth.fraud[old].mean():.0%}, "
        f"recall {old[truth.fraud].mean():.0%}"
    )
    cases = []
    for number in range(scale.updates):
        kind: Kind = KINDS[number % len(KINDS)]
        every = number % 2 == 1
        base = traffic.retrained if every else good
        fault, effect = find_fault(truth, old, base, kind, TARGETS[number % len(TARGETS)], rng)
        trial = Trial(checked, good.ensemble("1"), fault.apply(base).ensemble(str(number + 2)))
        case = Case(fault, every, effect, trial.run(traffic.before, traffic.after, blind=context.broken))
        context.say("  ".join(f"{value}" for value in case.line().values()))
        cases.append(case)
    return cases


def _judge(result: Result, cases: Sequence[Case], scale: Scale) -> None:
    n = scale.updates
    named, detected = sum(case.named for case in cases), sum(case.detected for case in cases)
    with_input = [case for case in cases if case.fault.input is not None]
    right = sum(c.outcome.incident is not None and c.outcome.incident.input == c.fault.input for c in with_input)
    result.figures |= {"detected": detected, "named": named, "with_input": len(with_input), "inputs_named": right}
    result.at_least("updates", len(cases), n)
    result.at_least("updates_with_every_member_retrained", sum(case.retrained for case in cases), n // 2)
    result.check("every update is harmful, as measured", all(case.effect.harmful for case in cases))
    result.check("every kind of fault is tried", len({c.fault.kind for c in cases}) == len(KINDS))
    result.check("every update is detected", detected == n)
    result.check("every update is rolled back", all(case.rolled_back for case in cases))
    result.check("the right member is named", named >= np.floor(MIN_NAMED * n))


def _upstream(context: Context, result: Result, traffic: Traffic, scale: Scale) -> None:
    cases = []
    faults = [(try_field, fault) for fault in FIELD_FAULTS] + [(try_feed, fault) for fault in FEED_FAULTS]
    for attempt, fault in [faults[number] for number in scale.faults]:
        cases.append(attempt(traffic.normal, fault))
        context.say("  ".join(f"{value}" for value in cases[-1].line().values()))
    result.figures["upstream"] = [case.line() for case in cases]
    result.figures["drift_events_before"] = traffic.alarms
    named, detected = sum(case.named for case in cases), sum(case.detected for case in cases)
    result.figures |= {"upstream_detected": detected, "upstream_named": named}
    result.at_least("faults_upstream", len(cases), len(scale.faults))
    result.check("every fault upstream is detected", detected == len(cases))
    result.check("the right field or feed is named", named >= len(cases) - 1)
    result.check("no command is given because of a fault upstream", not any(case.commands for case in cases))
    result.check("the same watch rolls back a version that alerts far more", control(traffic.normal) == ["rollback"])
