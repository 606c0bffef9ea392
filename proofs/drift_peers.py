"""drift-peers: our detector of drift events against those of other libraries, on the same streams.

Simulated worlds (`proofs/peer_streams.py`) are healthy for weeks; then one of 14 changes begins, small or large. All
detectors get the same rows of the same columns in windows of an hour: the drift preset of Evidently, the calculators of
NannyML, ADWIN and KSWIN of River, and the online detector of Alibi Detect, each with its defaults in its own virtual
environment (`proofs/peers/`). Then every detector gets the most sensitive threshold with which it has at most as many
false alarms on the worlds for calibration as `RATE` per year allows, and is measured on the other worlds. Peers compare
with a fixed reference, the last two weeks before the watch; ours refers to the hours of the past weeks.

`N` is the number of test worlds; there are twice as many for calibration. With N=0 only our side runs, on a small
world, and no other library is needed. The distances equal those of scipy, and those of Evidently, to 1e-9.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr
from scipy.stats import ks_2samp

from proofs.kit import ROOT, Context, Result
from proofs.peer_environments import NotInstalled, environment
from proofs.peer_scoring import Detector, Leveled, Measure, Tried, calibrate, detectors_of, measure, table
from proofs.peer_streams import (
    AFTER_HOURS,
    CHANGES,
    COLUMNS,
    CONTROL,
    PeerChange,
    Scale,
    Stretch,
    World,
    make_world,
    peer_spec,
    write_streams,
)
from stream_scorer.ensemble.manifest import Series
from stream_scorer.ensemble.profile import Binner, build_profile
from stream_scorer.monitor.drift import jensen_shannon_distance, kolmogorov_smirnov, population_stability_index
from stream_scorer.monitor.drift_events import DriftDetector
from stream_scorer.monitor.drift_evidence import divergences
from stream_scorer.monitor.drift_history import WEEKS
from stream_scorer.monitor.drift_series import describe_features
from stream_scorer.monitor.drift_types import HOUR_MS, DriftRules, DriftWindow, SeriesInfo
from stream_scorer.spec import CheckedSpec

N = 2
# Healthy worlds to choose thresholds on, per test world.
CALIBRATION = 2
# False alarms per year at which the detectors are compared.
RATE = 12.0
# Our setting: the default is 4. The strictest first.
BUDGET, BUDGETS = 4.0, (0.5, 4.0, 12.0, 52.0, 365.0)
OURS = "stream_scorer"
# Program in `proofs/peers`, and its requirement file.
PROGRAMS = (
    ("evidently_preset", "peers"),
    ("nannyml_calculators", "peers"),
    ("river_detectors", "peers"),
    ("alibi_online", "peers-alibi"),
)
PROGRAM_S = 5_400.0
SMALL_CHANGES = ("amounts x 100", "networks null", "channels mapped to each other", "customer ids merged")
TOLERANCE = 1e-9


def run(context: Context) -> Result:
    """See the module."""
    result = Result()
    number = N if context.n is None else context.n
    _agrees_with_scipy(result, context.seed)
    checked = peer_spec(context.folder / "spec")
    if number == 0:
        _own_side(context, result, checked)
        return result
    scale = Scale(6_000, 1_000, 21, 14, 14, context.seed)
    worlds = []
    for each in range((1 + CALIBRATION) * number):
        worlds.append(make_world(checked, scale, each, CHANGES if each < number else ()))
        context.say(f"{worlds[-1].name}: {len(worlds[-1].healthy.hour):,} healthy transactions")
    test, calm = worlds[:number], worlds[number:]
    ours = own_detector(checked, worlds, broken=context.broken)
    context.say("our detector has read the streams")
    found, left_out = _peers(context, result, write_streams(context.folder, worlds))
    _compare(context, result, calm, test, [ours, *found])
    result.figures |= {"left_out": left_out}
    result.check("the table is complete", bool(found) and set(left_out) <= {"alibi_online"})
    return result


def _own_side(context: Context, result: Result, checked: CheckedSpec) -> None:
    """A small world with four changes, by our detector only."""
    changes = [change for change in CHANGES if change.name in SMALL_CHANGES]
    scale = Scale(3_000, 600, 16, 14, 2, context.seed)
    world = make_world(checked, scale, 0, changes)
    ours = own_detector(checked, [world], broken=context.broken, budgets=(BUDGET,))
    found = measure(ours, BUDGET, {world.name: world.end - world.watch}, _tried([world], changes))
    result.figures |= {"table": [found.line()], "delays": found.delays}
    result.at_least("changes_tried", found.tried, len(SMALL_CHANGES))
    result.check("every change is found within a day", len(found.delays) == found.tried)
    result.check("no false alarm", found.false_alarms == 0)


# ------------------------------------------------------------------------------------------------------- our detector


class FollowingReference(DriftDetector):
    """The sabotage: the references are the hours before the window, not the same hour of past weeks.

    A change is then its own reference after an hour.
    """

    def _measure(self, pane: int, slot: int, dense: NDArray[np.int32]) -> None:
        history = self._history
        kept = history.counts.copy()
        for number in range(1, WEEKS + 1):
            then = pane - number * history.per_week
            if history.holds(then) and history.holds(pane - number):
                history.counts[history.slot(then)] = kept[history.slot(pane - number)]
        super()._measure(pane, slot, dense)
        history.counts[:] = kept


@dataclass(frozen=True)
class _Binned:
    """Windows of histograms for our detector; `bins` are those of its series."""

    series: Mapping[str, SeriesInfo]
    binner: Binner

    @classmethod
    def of(cls, checked: CheckedSpec, values: NDArray[np.float64]) -> _Binned:
        """The bins that the profile of these values (n, columns) has."""
        profile: dict[str, Series] = build_profile(COLUMNS, values)
        infos = describe_features(checked)
        series = {name: replace(infos[name], edges=tuple(profile[name].edges)) for name in COLUMNS}
        return cls(series, Binner(profile, COLUMNS))

    def windows(self, stretch: Stretch) -> list[DriftWindow]:
        """A window for each hour with rows."""
        first = int(stretch.hour[0])
        groups = stretch.hour - first
        rows = np.bincount(groups)
        counts = self.binner.count(stretch.values, groups, len(rows))
        found = []
        for group in np.flatnonzero(rows).tolist():
            by_name = {name: counts[group, k, : self.binner.bins[k]] for k, name in enumerate(COLUMNS)}
            found.append(DriftWindow((first + group) * HOUR_MS, int(rows[group]), by_name, "peers", "1"))
        return found


def own_detector(
    checked: CheckedSpec, worlds: Sequence[World], *, broken: bool, budgets: Sequence[float] = BUDGETS
) -> Leveled:
    """Our detector on all streams, once per budget of false alarms per year. Its bins come from the first world."""
    first = worlds[0].healthy
    binned = _Binned.of(checked, first.values[first.hour < worlds[0].watch])
    kind = FollowingReference if broken else DriftDetector
    levels: dict[Any, dict[str, list[int]]] = {budget: {} for budget in budgets}
    for world in worlds:
        healthy = binned.windows(world.healthy)
        changed = {f"{world.name}/{name}": binned.windows(stretch) for name, stretch in world.changed.items()}
        for budget, level in levels.items():
            detector = kind(DriftRules(HOUR_MS, budget, binned.series))
            level[world.name] = [hour for hour in _opened(detector, healthy) if hour >= world.watch]
            for stream, windows in changed.items():
                level[stream] = _opened(copy.deepcopy(detector), windows)
    return Leveled(OURS, "monitor.false_alarms_per_year", BUDGET, levels)


def _opened(detector: DriftDetector, windows: Sequence[DriftWindow]) -> list[int]:
    """Hours of the windows with which an event opens."""
    return [
        window.start // HOUR_MS
        for window in windows
        if any(event.status == "open" for event in detector.update(window).events)
    ]


# ----------------------------------------------------------------------------------------------------------- the peers


def _peers(context: Context, result: Result, index: Path) -> tuple[list[Detector], dict[str, str]]:
    """The detectors of all programs, two at a time, and those that were left out with the reason."""
    pythons: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for program, requirements in PROGRAMS:
        try:
            pythons[program] = environment(requirements)
        except NotInstalled as error:
            left_out[program] = f"does not install here: {error}"
            context.say(f"left out: {program} {left_out[program]}")
    with ThreadPoolExecutor(2) as pool:
        waiting = {name: pool.submit(_run, name, python, index, context.say) for name, python in pythons.items()}
        outputs = {name: each.result() for name, each in waiting.items()}
    detectors: list[Detector] = []
    packages: list[str] = []
    for output in outputs.values():
        detectors += detectors_of(output)
        packages += output["packages"]
        if "agreement" in output:
            _agrees_with_evidently(result, output["agreement"])
    result.figures["packages"] = packages
    return detectors, left_out


def _run(program: str, python: str, index: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The results of one program."""
    out = index.parent / f"{program}.json"
    path = ROOT / "proofs" / "peers" / f"{program}.py"
    # Each library would start a thread per core, and there is another program.
    environ = dict(os.environ) | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    environ |= {"DO_NOT_TRACK": "1", "NML_DISABLE_USAGE_LOGGING": "1"}
    done = subprocess.run(
        [python, str(path), str(index), str(out)], capture_output=True, text=True, env=environ, timeout=PROGRAM_S,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{program}: {done.stderr[-1500:]}"
    say(f"{program} has read the streams")
    return dict(json.loads(out.read_text()))


# ------------------------------------------------------------------------------------------------------ the comparison


def _compare(
    context: Context, result: Result, calm: Sequence[World], test: Sequence[World], detectors: Sequence[Detector]
) -> None:
    """Both tables. Our detector has to find every large change at the equal rate; the best F1 is only reported."""
    hours = {world.name: world.end - world.watch for world in calm}
    healthy = {world.name: world.end - world.watch for world in test}
    healthy |= {f"{world.name}/{CONTROL}": AFTER_HOURS for world in test}
    allowed = int(RATE * sum(hours.values()) / (365 * 24))
    tried = _tried(test, CHANGES)
    default = [measure(each, each.default, healthy, tried) for each in detectors]
    equal = [measure(each, calibrate(each, list(hours), allowed), healthy, tried) for each in detectors]
    for title, rows in (("with defaults", default), (f"with at most {allowed} false alarms in calibration", equal)):
        context.say(title)
        for line in table([row.line() for row in rows]):
            context.say(line)
    best = max(equal[1:], key=lambda row: row.f1, default=Measure("none", None))
    result.figures |= {
        "settings": {each.name: each.setting for each in detectors},
        "allowed_false_alarms": allowed,
        "calibration_hours": sum(hours.values()),
        "defaults": [row.line() for row in default],
        "equal_rate": [row.line() for row in equal],
        "our_delays": equal[0].delays,
        "our_f1": round(equal[0].f1, 3),
        "best_peer": best.name,
        "best_peer_f1": round(best.f1, 3),
        "best_peer_delays": best.delays,
    }
    result.at_least("changes_tried", len(tried), len(CHANGES) * len(test))
    result.check("ours finds every large change at the equal rate", equal[0].large == equal[0].large_tried > 0)
    result.check("with no more false alarms than the best peer", equal[0].false_alarms <= best.false_alarms)


def _tried(worlds: Sequence[World], changes: Sequence[PeerChange]) -> list[Tried]:
    return [Tried(f"{w.name}/{c.name}", f"{w.name}/{CONTROL}", c.name, w.end, c.large) for w in worlds for c in changes]


# ------------------------------------------------------------------------------------------------- the same statistics


def _agrees_with_scipy(result: Result, seed: int) -> None:
    """Jensen-Shannon distance, PSI and KS of counts equal those that scipy computes."""
    rng = np.random.default_rng(seed)
    errors = []
    for bins in (2, 7, 31):
        for size in (50, 5_000):
            old, new = (rng.multinomial(size, rng.dirichlet(np.full(bins, 2.0))) for _ in range(2))
            p, q = (counts / counts.sum() for counts in (old, new))
            samples = [np.repeat(np.arange(bins), counts) for counts in (old, new)]
            errors.append(abs(kolmogorov_smirnov(p, q) - ks_2samp(*samples).statistic))
            # Smoothed as in the product, so that no share is 0.
            p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (old, new))
            distance = float(jensenshannon(p, q))
            errors.append(abs(jensen_shannon_distance(p, q) - distance))
            errors.append(abs(population_stability_index(p, q) - float((rel_entr(p, q) + rel_entr(q, p)).sum())))
            many = divergences(new[None], old[None, None], np.ones((1, bins), np.bool_))
            errors.append(abs(float(np.sqrt(many[0, 0])) - distance))
    result.figures["largest_difference_from_scipy"] = max(errors)
    result.check("distances equal those of scipy", max(errors) <= TOLERANCE)


def _agrees_with_evidently(result: Result, cases: Sequence[Mapping[str, Any]]) -> None:
    """The same of categories without empty ones, which each library smooths in its own way."""
    errors = []
    for case in cases:
        p, q = (np.array(case[name]) / np.sum(case[name]) for name in ("old", "new"))
        assert p.min() > 0 and q.min() > 0
        errors.append(abs(jensen_shannon_distance(p, q) - case["jensenshannon"]))
        errors.append(abs(population_stability_index(p, q) - case["psi"]))
    result.figures["largest_difference_from_evidently"] = max(errors)
    result.check("distances equal those of Evidently", max(errors) <= TOLERANCE)
