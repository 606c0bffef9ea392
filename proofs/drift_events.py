"""drift-events: the detector of drift events keeps its rate of false alarms, and finds changes within a few windows.

`N` days of synthetic healthy traffic in worlds of 120 days (`tests/support/drift_worlds.py`: daily and weekly cycles,
growth, days that differ, 30-day windows that fill, attacks on one card and on many, a sale per 100 days): the number of
events is at most what a Poisson process with the budget of 4 per year exceeds with probability 2.5 %. Then eight
changes of one field in two worlds each: all are found, a large change within three windows, with the right field first
and the right kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from scipy import stats

from proofs.kit import Context, Result
from stream_scorer.monitor import drift_events
from stream_scorer.monitor.drift_events import DriftDetector
from stream_scorer.monitor.drift_types import HOUR_MS, ChangeKind, DriftEvent, DriftRules
from tests.support.drift_worlds import Change, World

N, WORLD_DAYS = 960, 120
BUDGET = 4.0
# Mid-morning of the fourth Monday; then a day to find the change.
CHANGE, AFTER = 21 * 24 + 10, 24
LARGE_WINDOWS = 3


@dataclass(frozen=True)
class Case:
    """A change, the series and kind to be named, and whether it is large."""

    name: str
    change: Change
    series: str
    kind: ChangeKind
    large: bool


@dataclass(frozen=True)
class Found:
    """Windows and transactions up to the detection, 0 if there was none; whether the field and the kind are right."""

    case: str
    large: bool
    windows: int = 0
    transactions: int = 0
    field: bool = False
    kind: bool = False


CASES = (
    Case("amounts x 100", Change("amount", CHANGE, shift=4.6), "amount_log", "scale", True),
    Case("amounts null", Change("amount", CHANGE, missing=1.0), "amount_log", "missing", True),
    Case("a third of the devices null", Change("device_id", CHANGE, missing=0.33), "device.count_1h", "missing", True),
    Case("amounts x 1.65", Change("amount", CHANGE, shift=0.5), "amount_log", "scale", False),
    Case("amounts x 1.35", Change("amount", CHANGE, shift=0.3), "amount_log", "scale", False),
    Case("categories mapped", Change("channel", CHANGE, swap=True), "channel_code", "mapping", False),
    Case("5 % of the devices null", Change("device_id", CHANGE, missing=0.05), "device.count_1h", "missing", False),
    Case("customer ids merged", Change("customer_id", CHANGE, shift=0.5), "customer.count_1h", "offset", False),
)


def run(context: Context) -> Result:
    """See the module."""
    result = Result()
    days = context.n or N
    events: list[str] = []
    watched = 0
    for world in range(max(days // WORLD_DAYS, 1)):
        found, hours = _healthy(context.seed * 1_000 + world, min(days, WORLD_DAYS), context.broken)
        events += found
        watched += hours
        context.say(f"world {world + 1}: {len(found)} events, {len(events)} in {watched / 24:.0f} watched days")
    years = watched / 24 / 365
    allowed = int(stats.poisson.ppf(0.975, BUDGET * years))
    result.figures |= {
        "days": days,
        "watched_days": watched / 24,
        "events": events,
        "events_per_year": len(events) / years,
        "allowed_events": allowed,
    }
    result.at_least("watched_windows", watched, int(0.8 * 24 * days))
    result.check(f"false alarms are compatible with {BUDGET:g} per year", len(events) <= allowed)
    _changes(context, result)
    return result


def _healthy(seed: int, days: int, broken: bool) -> tuple[list[str], int]:
    """The events in one world without a change, and the number of windows that were watched.

    `broken`: the detector has a budget of one false alarm per day, and a single window can use all of it.
    """
    world = World(seed)
    detector = DriftDetector(DriftRules(HOUR_MS, BUDGET, world.series))
    if broken:
        detector = DriftDetector(DriftRules(HOUR_MS, 365.0, world.series))
        drift_events.MIN_WINDOW_SHARE = drift_events.MAX_WINDOW_SHARE = 10.0
    events: list[str] = []
    watched = 0
    for window in world.windows(days * 24):
        report = detector.update(window)
        watched += report.state != "learning"
        opened = [event for event in report.events if event.status == "open"]
        events += [f"{event.series[0].info.name} at day {event.first_window / HOUR_MS / 24:.1f}" for event in opened]
    return events, watched


def _changes(context: Context, result: Result) -> None:
    """Every case in two worlds."""
    found: list[Found] = []
    for number, case in enumerate(CASES):
        for world in range(2):
            seed = context.seed * 1_000 + 500 + 10 * number + world
            found.append(_found(case, _first_event(World(seed, changes=(case.change,)))))
            context.say(str(found[-1]))
    detected = [each for each in found if each.windows]
    result.figures |= {
        "cases": [vars(each) for each in found],
        "median_windows": median(each.windows for each in detected) if detected else None,
        "median_transactions": median(each.transactions for each in detected) if detected else None,
    }
    result.at_least("changes_tried", len(found), 2 * len(CASES))
    result.check("every change is found within a day", len(detected) == len(found))
    slowest = max((each.windows for each in detected if each.large), default=AFTER)
    result.check(f"a large change is found within {LARGE_WINDOWS} windows", slowest <= LARGE_WINDOWS)
    result.check("the field is named first", all(each.field for each in found))
    result.check("the kind is right", all(each.kind for each in found))


def _first_event(world: World) -> DriftEvent | None:
    detector = DriftDetector(DriftRules(HOUR_MS, BUDGET, world.series))
    for window in world.windows(CHANGE + AFTER):
        for event in detector.update(window).events:
            if event.status == "open" and event.detected_window >= CHANGE * HOUR_MS:
                return event
    return None


def _found(case: Case, event: DriftEvent | None) -> Found:
    if event is None:
        return Found(case.name, case.large)
    kinds = {shift.info.name: shift.kind for shift in event.series}
    return Found(
        case.name,
        case.large,
        event.detected_window // HOUR_MS - CHANGE + 1,
        event.rows,
        bool(event.fields) and event.fields[0] == case.change.field,
        kinds.get(case.series) == case.kind,
    )
