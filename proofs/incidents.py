"""incidents: 20 faulty updates and 8 faults upstream are detected, named, and answered in the right way.

20 seeded updates of 5 kinds (scale, category map, imputation, weight, inverted score) are promoted, one at a time, on
simulated traffic that passes through the product's own code (`proofs/worlds.py`). The effect of each is measured
against the simulator's truth: 12 to 25 % more cards with a false positive, or at least 20 % fewer with detected fraud.
In half of them every member is retrained and one is bad. The watch must roll each one back and name the member.

`N` is the maximum number of transactions per update. A small one takes one update of each kind, with more alerts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from proofs.kit import Context, Result
from proofs.updates import KINDS, MIN_RISE, Effect, Fault, Kind, Truth, Version, find_fault
from proofs.world_training import Training, train
from proofs.worlds import Outcome, Prepared, Trial, settled_traffic
from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.spec import CheckedSpec

N, SMALL = 300_000, 60_000
UPDATES = 20
# Rises of false positives that the search aims at, in turn.
TARGETS = (0.14, 0.17, 0.20, 0.23)
BLOCK_SHARE = 0.2
MIN_NAMED = 0.93


@dataclass(frozen=True)
class Scale:
    """The size of a run: the world, its days before the first update, and the share of transactions that alert."""

    customers: int
    terminals: int
    warm_up_days: int
    before: int
    alert_rate: float
    training: Training
    updates: int

    @classmethod
    def of(cls, n: int) -> Scale:
        """The full size, or a small one for a small `n`, where more alerts make up for fewer transactions."""
        if n > SMALL:
            return cls(12_000, 2_000, 21, 40_000, 0.012, Training(30_000), UPDATES)
        return cls(3_000, 600, 6, 12_000, 0.05, Training(9_000), len(KINDS))


@dataclass(frozen=True)
class Stretch:
    """Traffic for all updates: `before` the promotion, and `after` it; the truth of both."""

    before: list[Prepared]
    after: list[Prepared]


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
            "transactions": outcome.rows,
            "event_hours": round(outcome.event_ms / 3_600_000, 1),
            "seconds": round(outcome.seconds, 1),
        }


def run(context: Context) -> Result:
    """See the module."""
    n, result = context.n or N, Result()
    scale = Scale.of(n)
    checked, good, retrained = train(context.folder, context.seed, scale.training)
    stretch = make_stretch(checked, context.seed, scale, n)
    context.say(f"{sum(p.rows for p in stretch.after):,} transactions for each update")
    cases = updates(context, checked, (good, retrained), stretch, scale)
    result.figures["updates"] = [case.line() for case in cases]
    _judge(result, cases, scale)
    return result


def make_stretch(checked: CheckedSpec, seed: int, scale: Scale, n: int) -> Stretch:
    """The features of a world without faults; they are the same for every version."""
    per_day = round(1.5 * scale.customers)
    days = scale.warm_up_days + -(-(scale.before + n) // per_day) + 1
    config = SimulationConfig(
        seed=seed + 20, customers=scale.customers, terminals=scale.terminals, days=days, fraud_rate=0.003
    )
    kept = settled_traffic(checked, config, scale.warm_up_days)
    counts = np.cumsum([p.rows for p in kept])
    first = int(np.searchsorted(counts, scale.before)) + 1
    last = int(np.searchsorted(counts, counts[first - 1] + n)) + 1
    return Stretch(kept[:first], kept[first:last])


def updates(
    context: Context, checked: CheckedSpec, versions: tuple[Version, Version], stretch: Stretch, scale: Scale
) -> list[Case]:
    """Find the faults, and promote each over the good version."""
    rng = np.random.default_rng(context.seed)
    calibration, truth = Truth.of(stretch.before), Truth.of(stretch.after)
    good, retrained = (calibration.at_alert_rate(v, scale.alert_rate, scale.alert_rate * BLOCK_SHARE) for v in versions)
    old = truth.alerts(good, keep=True)
    truth.alerts(retrained, keep=True)
    context.say(
        f"the good version alerts {old.mean():.2%}, precision {truth.fraud[old].mean():.0%}, "
        f"recall {old[truth.fraud].mean():.0%}"
    )
    cases = []
    for number in range(scale.updates):
        kind: Kind = KINDS[number % len(KINDS)]
        every = (number // len(KINDS) + number) % 2 == 1
        base = retrained if every else good
        fault, effect = find_fault(truth, old, base, kind, TARGETS[number % len(TARGETS)], rng)
        trial = Trial(checked, good.ensemble("1"), fault.apply(base).ensemble(str(number + 2)))
        case = Case(fault, every, effect, trial.run(stretch.before, stretch.after, blind=context.broken))
        context.say("  ".join(f"{value}" for value in case.line().values()))
        cases.append(case)
    return cases


def _judge(result: Result, cases: Sequence[Case], scale: Scale) -> None:
    n = scale.updates
    named, detected = sum(case.named for case in cases), sum(case.detected for case in cases)
    result.figures |= {"detected": detected, "named": named}
    result.at_least("updates", len(cases), n)
    result.at_least("updates_with_every_member_retrained", sum(case.retrained for case in cases), n // 2)
    result.check("every update is harmful, as measured", all(case.effect.harmful for case in cases))
    result.check(f"no fault is milder than +{MIN_RISE:.0%} or a fall", len({c.fault.kind for c in cases}) == len(KINDS))
    result.check("every update is detected", detected == n)
    result.check("every update is rolled back", all(case.rolled_back for case in cases))
    result.check("the right member is named", named >= np.floor(MIN_NAMED * n))
