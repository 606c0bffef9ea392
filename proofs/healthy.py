"""healthy: traffic that changes without being faulty raises no alarm, and healthy updates are not rolled back.

`N` days of at least 100,000 transactions pass through the product's own code (`proofs/worlds.py`): daily and weekly
cycles, growth, the cold start of 30-day windows, new customers and terminals, bursts of fraud on one card and on many
cards at one terminal, and a sale. All the time an update that hardly differs is on probation. There must be at most one
drift event at a budget of 4 false alarms per year, and no rollback.

On 20 days another healthy update is tried on that day's transactions. Five of them alert 10 % more of that day's cards,
because they detect more fraud, and do not declare it: at most one is rolled back. It stays in shadow on this day and on
later ones, until the monitor has enough cards, and their labels clear it. The same five that declare it never are
rolled back. In the last days, an update of a version that lacks far more fraud is rolled back for certain, and cleared
in the same way.

A small `N` takes fewer transactions per day and more alerts.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from proofs.kit import Context, Result
from proofs.updates import Effect, Truth, Version
from proofs.world_probation import Probation, alerting_more, reweighed
from proofs.world_training import Training, train
from proofs.world_windows import Windows
from proofs.worlds import BATCH, FeaturePath, Outcome, Prepared, Trial, settled_traffic
from stream_scorer.control.label_progress import Known
from stream_scorer.control.label_verdict import Labels, judge_labels
from stream_scorer.ensemble.manifest import Manifest, preprocess_digest
from stream_scorer.monitor.drift import compare
from stream_scorer.monitor.drift_events import DriftDetector
from stream_scorer.monitor.drift_series import describe
from stream_scorer.monitor.drift_types import DriftRules, DriftWindow, SeriesInfo
from stream_scorer.records import DECISIONS, ScoreSummary, VerdictRecord
from stream_scorer.simulate.config import DAY_MS, HOUR_MS, Life, SimulationConfig
from stream_scorer.simulate.generate import generate_days
from stream_scorer.spec import CheckedSpec

N, SMALL = 100, 30
MAX_EVENTS, BUDGET = 1, 4.0
PLAIN, BETTER = 15, 5
MAX_ROLLED_BACK = 1
# A better update alerts this many more cards than the version before, which lacks the fraud that it detects.
RISE, RISE_ERROR, SMALL_RISE_ERROR = 0.10, 0.02, 0.06
MIN_MORE_RECALL = 0.05
LABEL_AGE_MS = 2 * DAY_MS
# Days of calm traffic on which thresholds are set and effects are measured; the last eight count.
SETTLED_DAYS, COUNTED_DAYS = 16, 8
# The detector learns for about two weeks. Share of the later windows in which it must watch.
LEARNING_DAYS, MIN_WATCHED = 16, 0.9
# The threshold of the alert on the distance from the training profile, before there were events.
OLD_THRESHOLD = 0.2
# Inputs that show how fast an entity is used. A version that clips them does not see fast fraud.
VELOCITY = ("customer.count_1h", "device.count_1h", "device.count_1d", "network.count_1h", "network.count_1d")
CLIPS = tuple(np.arange(1.0, 8.25, 0.25).tolist())
# Days at the end on which an update is tried that is rolled back, and that labels clear; the small form has more.
LAST_DAYS, SMALL_LAST_DAYS = 1, 9
# Days after the last other trial, in which a withdrawn version can stay in shadow.
SHADOW_DAYS = 7


@dataclass(frozen=True)
class Scale:
    """The size of a run. `rise_error`: a better update alerts `RISE` more cards, with at most this difference."""

    customers: int
    terminals: int
    alert_rate: float
    training: Training
    plain: int
    better: int
    batch: int
    rise_error: float

    @classmethod
    def of(cls, days: int) -> Scale:
        """The full size, or a small one for a few days."""
        if days > SMALL:
            return cls(92_000, 9_000, 0.008, Training(30_000), PLAIN, BETTER, BATCH, RISE_ERROR)
        return cls(2_000, 400, 0.04, Training(9_000), 3, 1, 512, SMALL_RISE_ERROR)

    def world(self, seed: int, days: int, life: Life | None) -> SimulationConfig:
        """A world of this size; every day has at least 100,000 transactions at the full size."""
        return SimulationConfig(
            seed=seed, customers=self.customers, terminals=self.terminals, days=days, fraud_rate=0.003, life=life
        )


@dataclass(frozen=True)
class Update:
    """A healthy update: `new` is promoted over `old`. `better` ones detect more fraud.

    `effect` is measured against the truth: on calm traffic, that of a better one on the traffic of its trial.
    """

    name: str
    old: Version
    new: Version
    better: bool
    effect: Effect


@dataclass
class Findings:
    """What happened on the simulated days.

    Attributes:
        events: drift events in words. watched: windows in which the detector had learned.
        trials: a row for each trial of an update. better: the better updates that were tried.
        withdrawn: the row of the update that detects so much more fraud that it is rolled back.
        control: the commands of the same watch for a version with half the threshold, in the last days.
    """

    transactions: int = 0
    smallest_day: int = 2**62
    events: list[str] = field(default_factory=list)
    rollbacks: int = 0
    watched: int = 0
    trials: list[dict[str, Any]] = field(default_factory=list)
    better: list[Update] = field(default_factory=list)
    withdrawn: list[dict[str, Any]] = field(default_factory=list)
    control: list[str] = field(default_factory=list)


def run(context: Context) -> Result:
    """See the module."""
    days, result = context.n or N, Result()
    scale = Scale.of(days)
    checked, good, retrained = train(context.folder, context.seed, scale.training)
    small = replace(scale, customers=min(scale.customers, 6_000), terminals=min(scale.terminals, 1_000))
    settled = Truth.of(
        settled_traffic(checked, small.world(context.seed + 40, SETTLED_DAYS, None), SETTLED_DAYS - COUNTED_DAYS)
    )
    good, retrained = (settled.at_alert_rate(v, scale.alert_rate, scale.alert_rate / 5) for v in (good, retrained))
    planned = healthy_updates(settled, good, retrained, scale, np.random.default_rng(context.seed))
    for update in planned:
        context.say(f"{update.name}: {update.effect.cards:+.1%} cards, {update.effect.recall:+.1%} detected fraud")
    found = live(context, checked, planned, scale, days)
    _judge(result, found, scale, days)
    return result


def healthy_updates(
    settled: Truth, good: Version, retrained: Version, scale: Scale, rng: np.random.Generator
) -> list[Update]:
    """Updates in which some members are trained again."""
    members = len(good.models)
    before = settled.alerts(good, keep=True)
    found = []
    for number in range(scale.plain):
        chosen = rng.permutation(members)[: 1 + number % (members - 1)].tolist()
        new = settled.at_alert_rate(good.mixed(retrained, chosen), scale.alert_rate, scale.alert_rate / 5)
        effect = settled.effect(before, settled.alerts(new))
        found.append(Update(f"members {sorted(chosen)} trained again", good, new, False, effect))
    return found


def better_update(
    traffic: Sequence[Prepared], good: Version, tried: Sequence[str], error: float, rng: np.random.Generator
) -> Update | None:
    """An update of a version that lacks fraud in `traffic`, other than those `tried`; None if there is none."""
    truth = Truth.of(traffic)
    after = truth.alerts(good, keep=True)
    places = range(len(good.models))
    chosen = [members for size in (1, 2, 3, 5) for members in itertools.combinations(places, size)]
    for number in rng.permutation(len(chosen)).tolist():
        members = chosen[number]
        low, high = 0, len(CLIPS)
        while low < high:  # the lower the limit, the more cards the old version lacks
            middle = (low + high) // 2
            clip = CLIPS[middle]
            old, text = _clipped(good, members, clip), f"sees velocity above {clip:g} in members {list(members)}"
            alerts = truth.alerts(old, keep=True)
            effect, more = truth.effect(alerts, after), after & ~alerts
            # The additional alerts are fraud at least as often as the others, so precision does not fall.
            precise = more.any() and truth.fraud[more].mean() >= truth.fraud[alerts].mean()
            near = abs(effect.cards - RISE) <= error
            if precise and near and effect.recall >= MIN_MORE_RECALL and text not in tried:
                return Update(text, old, good, True, effect)
            low, high = (middle + 1, high) if effect.cards > RISE else (low, middle)
    return None


def much_better_update(traffic: Sequence[Prepared], good: Version) -> Update:
    """The update of a version in which no member sees velocity."""
    truth = Truth.of(traffic)
    after = truth.alerts(good, keep=True)
    old = _clipped(good, range(len(good.models)), CLIPS[0])
    effect = truth.effect(truth.alerts(old, keep=True), after)
    return Update("sees velocity for the first time", old, good, False, effect)


def _clipped(version: Version, members: Sequence[int], clip: float) -> Version:
    """`version` with velocities above `clip` read as `clip` by some members."""
    specs = list(version.manifest.members)
    for place in members:
        spec = specs[place]
        entries = [
            msgspec.structs.replace(entry, high=clip) if name in VELOCITY else entry
            for name, entry in zip(spec.inputs, spec.preprocess, strict=True)
        ]
        specs[place] = msgspec.structs.replace(spec, preprocess=entries, preprocess_sha256=preprocess_digest(entries))
    return replace(version, manifest=msgspec.structs.replace(version.manifest, members=specs))


def live(context: Context, checked: CheckedSpec, planned: Sequence[Update], scale: Scale, days: int) -> Findings:
    """The simulated days, with one update on probation all the time, and the others for a day each."""
    life = Life(
        growth=0.5, new_customers=0.2, lost_customers=0.05, new_terminals=0.15,
        card_bursts=1.0, terminal_bursts=0.3, sales=(round(0.6 * days),),
    )  # fmt: skip
    found = Findings()
    good = planned[0].old
    probation = Probation(checked, good, reweighed(good))
    manifest = good.manifest
    series = describe(checked, manifest)
    windows, alarms = Windows(series, manifest.name), Alarms(manifest, series, broken=context.broken)
    path = FeaturePath(checked, seed=context.seed)
    # The first weeks are left to the cold start.
    last_trial = days - 1 - (SHADOW_DAYS if days > SMALL else 0)
    when = np.linspace(days // 4, last_trial, scale.plain + scale.better).astype(int).tolist()
    tried: list[Tried] = []
    rng = np.random.default_rng(context.seed + 1)
    started = time.perf_counter()
    last: list[Prepared] = []
    last_day = days - (LAST_DAYS if days > SMALL else SMALL_LAST_DAYS)
    for day, rows in enumerate(generate_days(scale.world(context.seed + 60, days, life))):
        kept = []
        for prepared in path.run(rows, size=scale.batch):
            windows.add(_scored(probation, path, prepared))
            if day in when or any(each.trial.collecting() for each in tried):
                kept.append(prepared)
            if day >= last_day:
                last.append(prepared)
        for window in windows.close(int(rows.event_time[-1]) // HOUR_MS * HOUR_MS):
            alarms.update(window)
        found.transactions += len(rows)
        found.smallest_day = min(found.smallest_day, len(rows))
        for each in tried:
            each.go_on(kept)
        for number in [n for n, on in enumerate(when) if on == day]:
            update = (
                planned[number]
                if number < scale.plain
                else _better(context, found, kept[1:], good, scale.rise_error, rng)
            )
            if update is not None:
                tried += _trials(context, checked, update, kept)
        if day % 10 == 9:
            rate = found.transactions / (time.perf_counter() - started)
            context.say(f"day {day + 1}: {found.transactions:,} transactions, {rate:,.0f} per second; {alarms.text}")
    found.trials = [each.row for each in tried]
    found.withdrawn = [each.row for each in _trials(context, checked, much_better_update(last, good), last)]
    control = Probation(checked, good, alerting_more(good))
    for prepared in last:
        control.run(prepared)
    found.control = control.commands
    found.rollbacks = probation.commands.count("rollback")
    found.events, found.watched = alarms.events, alarms.watched
    return found


def _better(
    context: Context,
    found: Findings,
    traffic: Sequence[Prepared],
    good: Version,
    error: float,
    rng: np.random.Generator,
) -> Update | None:
    """A better update for this traffic; it is added to those `found`."""
    update = better_update(traffic, good, [each.name for each in found.better], error, rng)
    if update is None:
        context.say("no version lacks the right amount of fraud on this day")
        return None
    found.better.append(update)
    context.say(f"{update.name}: {update.effect.cards:+.1%} cards, {update.effect.recall:+.1%} detected fraud")
    return update


def _scored(probation: Probation, path: FeaturePath, prepared: Prepared) -> list[ScoreSummary]:
    """Score a batch, and pass the alerts to the analysts of `path`."""
    batch, summaries = probation.run(prepared)
    assert batch.events is not None and batch.decided is not None
    alerted = np.flatnonzero(batch.decided.decision).tolist()
    ids = batch.events.transactions.event_id
    path.decided([ids[i] for i in alerted], [DECISIONS[code] for code in batch.decided.decision[alerted].tolist()])
    return summaries


class Alarms:
    """The product's detector of drift events; `broken`: distances from the training profile, as they were before."""

    def __init__(self, manifest: Manifest, series: Mapping[str, SeriesInfo], *, broken: bool) -> None:
        profile = manifest.reference_profile
        self._profile = {name: np.asarray(each.counts) for name, each in profile.items()} if broken else None
        self._detector = DriftDetector(DriftRules(HOUR_MS, BUDGET, series))
        self.events: list[str] = []
        self.windows = self.watched = 0

    @property
    def text(self) -> str:
        """The result so far."""
        return f"{len(self.events)} drift events, {self.watched} of {self.windows} windows watched"

    def update(self, window: DriftWindow) -> None:
        """Take the next window."""
        self.windows += 1
        if self._profile is not None:
            self.watched += 1
            far = [n for n, counts in self._profile.items() if _distance(window, n, counts) > OLD_THRESHOLD]
            self.events += [f"{far[0]} at {window.start}"] if far else []
            return
        report = self._detector.update(window)
        self.watched += report.state != "learning"
        self.events += [
            f"{event.kind} of {event.series[0].info.name} at {event.first_window}"
            for event in report.events
            if event.status == "open"
        ]


def _distance(window: DriftWindow, name: str, reference: NDArray[np.int64]) -> float:
    return compare(window.counts[name], reference).score


@dataclass
class Tried:
    """A trial of `update`, and the truth of its transactions by event id."""

    update: Update
    declared: float | None
    trial: Trial
    outcome: Outcome
    truth: dict[str, bool] = field(default_factory=dict)
    newest: int = 0

    def learn(self, traffic: Sequence[Prepared]) -> None:
        """Add the truth of some transactions."""
        for prepared in traffic:
            assert prepared.batch.events is not None
            ids = prepared.batch.events.transactions.event_id
            self.truth.update(zip(ids, prepared.fraud.tolist(), strict=True))
            self.newest = max(self.newest, prepared.event_time)

    def go_on(self, traffic: Sequence[Prepared]) -> None:
        """Score further traffic, if the new version stays in shadow."""
        if self.trial.collecting():
            self.learn(traffic)
            self.trial.go_on(traffic, self.outcome)

    @property
    def row(self) -> dict[str, Any]:
        """The result."""
        outcome = self.outcome
        cards = outcome.verdict.cards if outcome.verdict is not None else None
        rolled_back = outcome.action == "rollback"
        return {
            "update": self.update.name,
            "better": self.update.better,
            "declared": self.declared,
            "action": outcome.action or "none",
            "transactions": outcome.rows,
            "cards": [] if cards is None else [cards.both, cards.candidate_only, cards.baseline_only],
            "in_shadow": outcome.shadow_rows,
            "labels_without_shadow": self._labels(outcome.acted) if rolled_back else "",
            "labels": self._labels(outcome.verdict) if rolled_back else "",
        }

    def _labels(self, verdict: VerdictRecord | None) -> str:
        """What the product concludes from true labels. An alert that was approved has one only if it is fraud."""
        if verdict is None:
            return ""
        found, common, truth = verdict.disagreements, verdict.common, self.truth
        alerted = [each for each in found if each.candidate != each.shadow or truth[each.event_id]]
        given = [(each.event_id, each.at + 1) for each in alerted] + [(each.event_id, each.at + 1) for each in common]
        labels: Labels = {event: [(at, "fraud" if truth[event] else "genuine")] for event, at in given}
        end = self.newest + 2 * LABEL_AGE_MS
        return judge_labels(found, labels, Known(end, end), LABEL_AGE_MS, common=common).finding


def _trials(context: Context, checked: CheckedSpec, update: Update, kept: Sequence[Prepared]) -> list[Tried]:
    """The update on one day's transactions; a better one also with the declared rise."""
    found = []
    for declared in (None, RISE) if update.better else (None,):
        old, new = update.old.ensemble("1"), update.new.ensemble("2")
        trial = Trial(checked, old, new, expect_rise=declared, collect=True)
        tried = Tried(update, declared, trial, trial.run(kept[:1], kept[1:]))
        tried.learn(kept)
        row = tried.row
        context.say(f"{update.name}{', declared' if declared else ''}: {row['action']}, cards {row['cards']}")
        found.append(tried)
    return found


def _judge(result: Result, found: Findings, scale: Scale, days: int) -> None:
    undeclared = [t for t in found.trials if t["declared"] is None]
    withdrawn = [t["update"] for t in undeclared if t["action"] == "rollback"]
    declared = [t["update"] for t in found.trials if t["declared"] is not None and t["action"] == "rollback"]
    result.figures |= {
        "days": days,
        "transactions": found.transactions,
        "events": found.events,
        "rollbacks": found.rollbacks,
        "watched_windows": found.watched,
        "updates": found.trials,
        "withdrawn": found.withdrawn,
    }
    if days > SMALL:
        result.at_least("smallest_day", found.smallest_day, 100_000)
        whole = [t["transactions"] for t in undeclared if t["action"] != "rollback"]
        result.at_least("fewest_transactions_of_an_update", min(whole), 90_000)
    result.check(f"at most {MAX_EVENTS} drift event", len(found.events) <= MAX_EVENTS)
    watchable = 24 * (days - LEARNING_DAYS)
    result.check("the detector watches once it has learned", found.watched >= MIN_WATCHED * watchable > 0)
    result.check("no rollback on healthy days", found.rollbacks == 0)
    result.check("the same watch rolls back a version that alerts far more", found.control == ["rollback"])
    result.at_least("updates_tried", len(undeclared), scale.plain + scale.better)
    result.at_least("better_updates", len(found.better), scale.better)
    plain = [t["action"] for t in undeclared if not t["better"]]
    result.check("no plain update is rolled back", "rollback" not in plain)
    result.check("at most one better update is rolled back", len(withdrawn) <= MAX_ROLLED_BACK)
    result.check("its labels clear it", all(t["labels"] == "cleared" for t in undeclared if t["action"] == "rollback"))
    result.check("none that declares its rise", not declared)
    result.check("one that detects far more fraud is", [t["action"] for t in found.withdrawn] == ["rollback"])
    result.check("it stays in shadow", all(t["in_shadow"] > 0 for t in found.withdrawn))
    result.check("and labels clear it", [t["labels"] for t in found.withdrawn] == ["cleared"])
