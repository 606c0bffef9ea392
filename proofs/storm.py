"""storm: generated schedules of overlapping faults, after which every invariant holds.

A schedule is complete before its run: `seed` decides the kind, the time, the target and the parameters of every action
(`proofs/storm_schedule.py`, `proofs/storm_actions.py`). Scorers, a monitor, a broker and Redis are real, and so are the
faults. During the run no output comes twice or out of order. Afterwards (`proofs/storm_invariants.py`): one output for
each input; features of scores that are not degraded equal a recomputation up to their applied offsets; rows equal the
log; control has one history; windows equal a recomputation; `verify` finds nothing.

`N` is the number of seeds, each of `STORM_SECONDS`. `SCHEDULE=FILE` replays a schedule. If one fails, its schedule is
shrunk in at most `STORM_SHRINK_RUNS` runs, and the command that replays the rest is printed.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka import KafkaException

from proofs import storm_invariants as invariants
from proofs.kit import CARDS_SPEC, WORK, Context, Result, group_offsets, log_ends, wait_until
from proofs.memory_run import SHORT_ROWS, WHOLE_ROWS, Parts, make_parts
from proofs.refusal import last_state
from proofs.storm_actions import ACTIONS, KINDS, NotNow
from proofs.storm_fleet import Managed
from proofs.storm_invariants import Findings, OutputWatch, Published
from proofs.storm_logs import traces
from proofs.storm_schedule import Action, Schedule, generate, load, overlapping, save, shrink
from proofs.storm_world import PARTITIONS, World
from stream_scorer.kafka.topics import Topics

SEEDS, SECONDS, RATE = 12, 300, 150
SHRINK_RUNS = 14
# The least numbers in a full run of 12 seeds, which carries out every kind of action.
ACTIONS_OF_ALL, OVERLAPPING_OF_ALL = 2_000, 300
# A shorter run must carry out half as many kinds as actions, but no more than this number.
KINDS_OF_SHORT = 25
# The share of the schedule that must have been carried out: an action that finds its target gone does not count.
LEAST_CARRIED_OUT = 0.7
SAVED = WORK / "storm"
START_S, CALM_S, MONITOR_S = 120.0, 240.0, 150.0
LOST_GROUP = "is out of sync with the underlying log"
# Transactions of every entity after all faults. In the first round rows that were deleted are noticed, so its scores
# may lack features; those of the last round may not.
FIRST_ROUND, LAST_ROUND = "first-", "last-"
# The share of the scores during the faults of a seed that must have features; 10 to 50 % do.
LEAST_WITH_FEATURES = 0.03
# The share of the sampled scores that may belong to a micro-batch which looks like another one, so that they cannot be
# compared; and their number in a short run.
MAX_UNCLEAR, MAX_UNCLEAR_OF_SHORT = 0.01, 30


@dataclass(slots=True)
class Run:
    """What happened in one run: findings, and the times (s) of the actions that were carried out, by kind.

    `not_healed` counts those that could not end their own fault; the end of the storm does.
    """

    findings: Findings = field(default_factory=Findings)
    spans: list[tuple[str, float, float]] = field(default_factory=list)
    not_now: Counter[str] = field(default_factory=Counter)
    not_healed: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)

    @property
    def violations(self) -> list[str]:
        return self.findings.violations


def run(context: Context) -> Result:
    """See the module."""
    seconds = int(os.environ.get("STORM_SECONDS") or SECONDS)
    sabotage = "handicap,skip-entries" if context.broken else "handicap"
    result, runs, lasted = Result(), [], 0.0
    parts = _parts(context.folder)
    for schedule in _schedules(context, seconds):
        path = SAVED / f"seed-{schedule.seed}.json"
        save(schedule, path)
        _print_schedule(context, schedule, path)
        done = storm(context, parts, schedule, sabotage)
        runs.append(done)
        lasted += schedule.duration_ms / 1_000
        _print_run(context, schedule, done)
        if done.violations:
            result.figures["violations"] = done.violations[:20]
            _shrink(context, result, parts, schedule, sabotage)
            break
    _judge(result, runs, lasted)
    return result


def _schedules(context: Context, seconds: int) -> list[Schedule]:
    if path := os.environ.get("SCHEDULE"):
        return [load(Path(path))]
    seeds = context.n or SEEDS
    return [generate(context.seed + i, seconds * 1_000, RATE, KINDS) for i in range(seeds)]


def _parts(folder: Path) -> tuple[Parts, Parts]:
    """Small members that load fast, a spec with panes of six hours, and rows that are never compacted, or early."""
    spec = folder / "storm.yaml"
    spec.write_text(CARDS_SPEC.read_text().replace("monitor: {pane: 1h}", "monitor: {pane: 6h}"))
    made = []
    for name, row_entries in (("whole", WHOLE_ROWS), ("compacting", SHORT_ROWS)):
        (folder / name).mkdir()
        made.append(make_parts(folder / name, spec, row_entries))
    return made[0], made[1]


def storm(context: Context, both: tuple[Parts, Parts], schedule: Schedule, sabotage: str) -> Run:
    """Run one schedule from an empty world to the last check. With `STORM_COMPACT`, half of the seeds compact rows."""
    parts = both[schedule.seed // 2 % 2 if os.environ.get("STORM_COMPACT") else 0]
    folder = context.folder / f"run-{schedule.seed}-{len(schedule.actions)}-{time.monotonic_ns()}"
    folder.mkdir()
    for name in ("cards.yaml", "small"):
        source = parts.folder / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    done = Run()
    try:
        with World(folder, parts, schedule.seed, schedule.rate, schedule.duration_ms, sabotage) as world:
            try:
                _run_in(context, world, schedule, done)
            finally:
                shutil.copy(world.kafka.log, folder / "kafka.log")
    except AssertionError as error:
        done.violations.append(f"liveness: {error}")
    except Exception as error:
        context.say(traceback.format_exc())
        done.violations.append(f"the storm failed: {type(error).__name__}: {error}")
    _read_logs(done, folder)
    if done.violations:
        kept = SAVED / f"failed-{schedule.seed}"
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        for file in (*folder.glob("*.log"), *folder.glob("monitor/joiner.sqlite*")):
            shutil.copy(file, kept / file.name)
    shutil.rmtree(folder, ignore_errors=True)
    return done


def _run_in(context: Context, world: World, schedule: Schedule, done: Run) -> None:
    world.fleet.start()
    one, monitor = world.fleet.by_name["one"], world.fleet.by_name["monitor"]
    wait_until("the scorer is assigned", lambda: _says(one.process.log, "assigned"), START_S)
    wait_until("the monitor runs", lambda: _says(monitor.process.log, "monitoring"), START_S)
    watch = OutputWatch(world.bootstrap, PARTITIONS)
    try:
        world.traffic.start()
        _perform_all(context, world, schedule, done)
        context.say("healing")
        world.heal()
        world.traffic.stop()
        settled = _calm_down(context, world, done.findings)
        context.say("calm; checking")
        _check(context, world, done.findings, settled)
    except AssertionError:
        world.fleet.dump()
        raise
    finally:
        for process in world.fleet.by_name.values():
            done.ended.update({f"{process.name}: {line}": count for line, count in process.ended.items()})
            done.violations.extend(f"liveness: {end}" for end in process.unexpected)
        watch.close()
    done.findings.counts["outputs_watched"] = watch.seen
    done.violations.extend(watch.violations[:5])


def _says(log: Path, word: str) -> bool:
    return log.exists() and word in log.read_text(errors="replace")


def _perform_all(context: Context, world: World, schedule: Schedule, done: Run) -> None:
    began = time.monotonic()
    threads = []
    for action in schedule.actions:
        time.sleep(max(began + action.at_ms / 1_000 - time.monotonic(), 0.0))
        thread = threading.Thread(target=_perform, args=(context, world, action, began, done), daemon=True)
        thread.start()
        threads.append(thread)
    time.sleep(max(began + schedule.duration_ms / 1_000 - time.monotonic(), 0.0))
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "an action did not end"


def _perform(context: Context, world: World, action: Action, began: float, done: Run) -> None:
    """Carry out one action. Where it finds that it cannot, or another fault stops it, this is counted."""
    _, perform = ACTIONS[action.kind]
    started, entered = time.monotonic() - began, False
    try:
        with perform(world, action):
            entered = True
            time.sleep(max(began + (action.at_ms + action.duration_ms) / 1_000 - time.monotonic(), 0.0))
    except NotNow:
        done.not_now[action.kind] += 1
        return
    except Exception as error:  # such as a broker that another action has stopped
        if os.environ.get("STORM_VERBOSE"):
            context.say(f"{action}: {type(error).__name__}: {error}")
        if not entered:
            done.not_now[action.kind] += 1
            return
        done.not_healed[action.kind] += 1
    done.spans.append((action.kind, started, time.monotonic() - began))


def _calm_down(context: Context, world: World, found: Findings) -> int:
    """Wait until one scorer has everything, then touch every entity twice; returns the offset of the last command."""
    for process in world.fleet.scorers[1:]:
        process.stop()
    settled = world.operator.settle()
    _wait_calm(world, found)
    context.say(f"{world.traffic.touch_everything(FIRST_ROUND)} entities touched")
    _wait_calm(world, found)
    world.traffic.touch_everything(LAST_ROUND)
    _wait_calm(world, found)
    return settled


def _wait_calm(world: World, found: Findings) -> None:
    """Wait until the scorer has read everything and its features are ready.

    Kafka 4.1.0 may load nothing of a group's partition after it was killed. It then refuses every member of the group,
    writes `LOST_GROUP` to its log at each attempt, and only another start helps. This function then restarts it, as an
    operator would, and counts the restart.
    """
    inputs = Topics().inputs()
    ends = log_ends(world.bootstrap, inputs)
    log = world.fleet.by_name["one"].process.log

    def calm() -> bool:
        try:
            done = group_offsets(world.bootstrap, "stream-scorer", inputs)
        except KafkaException:
            return False
        return all(done[place] >= end for place, end in ends.items() if end > 0) and last_state(log) == "ready"

    what = "the scorer recovers, and scores everything with features"
    lost = world.kafka.log.read_text().count(LOST_GROUP)
    try:
        wait_until(what, calm, CALM_S, 0.5)
    except AssertionError:
        if world.kafka.log.read_text().count(LOST_GROUP) == lost:
            raise
        found.counts["broker_restarted_because_it_lost_the_group"] += 1
        world.kafka.restart()
        wait_until(what, calm, CALM_S, 0.5)


def _check(context: Context, world: World, found: Findings, settled: int) -> None:
    steps: dict[str, Callable[[], None]] = {}
    expected = invariants.expected_windows(world)
    wait_quiet(world, expected)
    wrong = invariants.compare_windows(world, expected)
    found.counts["window_figures_compared"] = len(expected)
    for metric, figures in sorted(wrong.items()):
        found.violations.append(f"windows: {len(figures)} figures of {metric} differ, such as {figures[0]}")
    for line in invariants.explain_windows(world, expected) if wrong else ():
        context.say(f"  {line}")
    for figure in wrong.get("transactions", []):
        context.say(f"  {figure}")
    # The monitor first: it may submit commands, and the scorer must have followed the last one.
    for process in [world.fleet.by_name["monitor"], *world.fleet.scorers[1:]]:
        _end(found, process)
    invariants.check_control(found, world, "one", settled)
    _end(found, world.fleet.by_name["one"])
    published = Published.read(world.bootstrap)
    steps["outputs"] = lambda: invariants.check_outputs(found, published)
    steps["features"] = lambda: invariants.check_features(found, world, published, FIRST_ROUND, LAST_ROUND)
    steps["commands"] = lambda: invariants.check_commands(found, world)
    for name, step in steps.items():
        began = time.monotonic()
        step()
        context.say(f"{name} checked in {time.monotonic() - began:.0f} s")


def _end(found: Findings, process: Managed) -> None:
    process.adjust(wanted=-10)
    code = process.stop()
    found.require(code in (0, None), f"liveness: {process.name} ends with {code} after SIGTERM")


def wait_quiet(world: World, expected: dict[invariants.SubjectKey, object]) -> None:
    """Wait until the monitor has published what is expected, or nothing for a while."""
    deadline = time.monotonic() + MONITOR_S
    end, since = -1, time.monotonic()
    while time.monotonic() < deadline:
        now = sum(log_ends(world.bootstrap, [Topics().monitor_metrics]).values())
        if now != end:
            end, since = now, time.monotonic()
        quiet = time.monotonic() - since
        if quiet > 30 or (quiet > 4 and not invariants.compare_windows(world, expected)):
            return
        time.sleep(2)


def _read_logs(done: Run, folder: Path) -> None:
    """An unexpected error in a log is a violation."""
    for log in sorted(folder.glob("*.log")):
        found = list(traces(log.read_text(errors="replace").splitlines()))
        done.findings.counts["tracebacks"] += len(found)
        for trace in [trace for trace in found if not trace.expected(log.name)][:3]:
            done.violations.append(f"traceback in {log.name}, line {trace.line}: {trace.raised[:160]}, {trace.frame}")


def _shrink(context: Context, result: Result, parts: tuple[Parts, Parts], schedule: Schedule, sabotage: str) -> None:
    """Find a small part of the schedule that still fails, save it, and print how to replay it."""
    most = int(os.environ.get("STORM_SHRINK_RUNS") or SHRINK_RUNS)

    def fails(actions: list[Action]) -> bool:
        again = storm(context, parts, _with(schedule, actions), sabotage)
        context.say(f"shrink: {len(actions)} actions {'fail' if again.violations else 'hold'}")
        for violation in again.violations[:3]:
            context.say(f"  {violation}")
        return bool(again.violations)

    left, runs = shrink(schedule.actions, fails, most)
    path = SAVED / f"seed-{schedule.seed}-shrunk.json"
    save(_with(schedule, left), path)
    result.figures |= {"shrunk_to": len(left), "shrink_runs": runs, "shrunk_schedule": str(path)}
    context.say(f"shrunk to {len(left)} actions in {runs} runs:")
    for action in left:
        context.say(f"  {action}")
    context.say(f"replay: SCHEDULE={path} make prove P=storm{' BREAK=1' if context.broken else ''}")


def _with(schedule: Schedule, actions: list[Action]) -> Schedule:
    return Schedule(schedule.seed, schedule.duration_ms, schedule.rate, actions)


def _print_schedule(context: Context, schedule: Schedule, path: Path) -> None:
    context.say(f"seed {schedule.seed}: {len(schedule.actions)} actions in {schedule.duration_ms // 1_000} s, {path}")
    for action in schedule.actions:
        context.say(f"  {action}")


def _print_run(context: Context, schedule: Schedule, done: Run) -> None:
    context.say(f"seed {schedule.seed}: {len(done.spans)} actions carried out, {len(done.violations)} violations")
    context.say(f"  looked at: {dict(done.findings.counts)}")
    context.say(f"  not possible when due: {dict(done.not_now)}; not healed: {dict(done.not_healed)}")
    for line, count in done.ended.most_common(12):
        context.say(f"  ended by itself {count} times: {line}")
    for violation in done.violations:
        context.say(f"  VIOLATION {violation}")


def _judge(result: Result, runs: list[Run], seconds: float) -> None:
    """The counts, which must be large enough to mean anything."""
    kinds = Counter(kind for done in runs for kind, _, _ in done.spans)
    overlaps = sum(overlapping([(start, end) for _, start, end in done.spans]) for done in runs)
    share = seconds / (SEEDS * SECONDS)
    full = share >= 1
    violations = sum(len(done.violations) for done in runs)
    looked_at: Counter[str] = Counter()
    for done in runs:
        looked_at.update(done.findings.counts)
    result.figures |= {"seeds": len(runs), "by_kind": dict(sorted(kinds.items())), "looked_at": dict(looked_at)}
    result.figures["not_possible_when_due"] = sum(done.not_now.total() for done in runs)
    result.figures["ended_by_themselves"] = sum(done.ended.total() for done in runs)
    result.figures["not_healed"] = sum(done.not_healed.total() for done in runs)
    result.check("0 violations", violations == 0)
    for name, least_of_all in LEAST_LOOKED_AT.items():
        result.at_least(name, looked_at[name], int(least_of_all * share))
    _judge_features(result, runs, looked_at, short=seconds / len(runs) < SECONDS)
    if os.environ.get("SCHEDULE"):  # a part of a schedule may have few actions
        result.figures["actions"] = kinds.total()
        return
    least = LEAST_CARRIED_OUT if not full else 1.0
    result.at_least("actions", kinds.total(), int(ACTIONS_OF_ALL * share * least))
    result.at_least("overlapping_actions", overlaps, int(OVERLAPPING_OF_ALL * share))
    # An action that did not heal its fault counts for no kind. A short run draws from the bag only once.
    healed = kinds - Counter(kind for done in runs for kind in done.not_healed.elements())
    least_kinds = len(KINDS) if full else min(KINDS_OF_SHORT, kinds.total() // 2)
    result.at_least("kinds", len(healed), least_kinds)
    missing = sorted({kind.name for kind in KINDS} - healed.keys())
    result.figures["kinds_missing"] = missing if full else len(missing)


def _judge_features(result: Result, runs: list[Run], looked_at: Counter[str], *, short: bool) -> None:
    """Whether the scores during the faults had features often enough, and could be compared."""
    counts = [done.findings.counts for done in runs]
    shares = [found["with_features_in_faults"] / max(found["scores_in_faults"], 1) for found in counts]
    result.figures["share_with_features"] = [round(share, 3) for share in shares]
    # In a short storm hardly a second may pass between two faults.
    if not short:
        result.at_least("least_share_with_features", round(min(shares), 3), LEAST_WITH_FEATURES)
    most = max(MAX_UNCLEAR * looked_at["scores_compared"], MAX_UNCLEAR_OF_SHORT)
    unclear = looked_at["scores_of_unclear_batches"]
    result.check("hardly any score is of an unclear batch", unclear <= most)


# The least that a full run must check. Feature values are those during the faults.
LEAST_LOOKED_AT = {
    "scores": 400_000,
    "dead_letters": 1_000,
    "feature_values_compared": 1_000_000,
    "rows": 10_000,
    "scores_verified": 400_000,
    "commands_that_count": 100,
    "window_figures_compared": 10_000,
    "outputs_watched": 400_000,
}
