"""features-crash: whatever dies, and wherever, rows equal the log, and every feature equals a recomputation from it.

In memory, where a process can be made to die between any two calls: 1,000 seeded crashes of one scorer, spread over all
points between reading and applying; then two scorers that are killed, suspended past their session and fenced while the
other takes over, so that updates arrive late and out of order. Every other world has shards, of which a crash leaves
some ahead, and every other one compacts its rows early (`proofs/compacted.py`). The stages, the processor and the
recovery are the real ones (`proofs/memory_run.py`). On a real Kafka and Redis: 50 `kill -9` while scoring, by
`kill-once`.

`N` is the number of crashes in memory, and a twentieth of it that of real kills (at most 50). After real kills, rows
and the features of customers are compared; in memory, every view feature up to the applied offsets recorded with it.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from dataclasses import fields

from proofs import kill_once
from proofs.kit import CARDS_SPEC, Context, Result
from proofs.memory_run import Parts, Verdict, World, make_parts, make_world, run_until_done, verify
from tests.support.failpoints import POINTS, Failpoints

CRASHES, REAL_KILLS = 1_000, 50
# Transactions on real parts with BREAK=1.
BROKEN_N = 6_000
# Per world: enough for windows to fill and labels to come, few enough that 1,000 crashes meet many worlds.
TRANSACTIONS, CRASHES_A_WORLD = 700, 25
# How often a point is passed before the process dies there, at most; records are produced by the dozen.
MAX_PASSED, MAX_PRODUCED = 8, 200
# Of all worlds, the share run by two scorers.
PAIRS_A_WORLD = 0.5
SUSPENSIONS = 4
PATIENCE_S = 60.0


def run(context: Context) -> Result:
    """See the module."""
    crashes = context.n or CRASHES
    result = Result()
    parts = make_parts(context.folder, CARDS_SPEC)
    if context.broken:
        _break()
    one = crash_one_scorer(context, parts, crashes)
    two = disturb_two_scorers(context, parts, max(int(PAIRS_A_WORLD * crashes / CRASHES_A_WORLD), 6))
    for name, (verdict, counts) in {"one_scorer": one, "two_scorers": two}.items():
        counted = {f.name: getattr(verdict, f.name) for f in fields(Verdict)}
        result.figures[name] = dict(counts) | {k: v for k, v in counted.items() if k != "example" or v}
        result.check(f"{name}: outputs once, rows and features equal the log", verdict.holds)
        result.check(f"{name}: nothing was taken for lost", verdict.degraded == 0)
        result.at_least(f"{name}: rows_compacted", verdict.rows_compacted, 5 * counts["worlds"])
        result.at_least(f"{name}: by_panes", verdict.by_panes, 50 * counts["worlds"])
    result.at_least("crashes_with_lag", one[1]["crashes_with_lag"], crashes)
    result.at_least("points_died_at", len([p for p in POINTS if one[1][f"at_{p}"]]), len(POINTS))
    result.at_least("worlds_in_shards", min(one[1]["worlds_in_shards"], two[1]["worlds_in_shards"]), 1)
    result.at_least("late_updates", two[1]["late_updates"], 1)
    result.at_least("fenced", two[1]["fenced"], 1)
    kills = min(crashes // 20, REAL_KILLS)
    if kills:
        # In shards: a kill may leave some of them ahead.
        n, sabotage = (BROKEN_N, "count-duplicates") if context.broken else (None, None)
        smaller = Context(context.seed, n, False, context.folder, context.say)
        real = kill_once.run(smaller, kills=kills, shards=2, sabotage=sabotage)
        result.checks |= {f"real parts: {name}": holds for name, holds in real.checks.items()}
        result.figures["real_parts"] = real.figures
    if context.broken:
        result.must_fail("one_scorer: outputs once, rows and features equal the log")
        if kills:
            result.must_fail("real parts: no event id stands twice in a row")
    return result


def crash_one_scorer(context: Context, parts: Parts, crashes: int) -> tuple[Verdict, Counter[str]]:
    """One scorer at a time, dying at seeded points, in as many worlds as it takes."""
    total, counts = Verdict(), Counter[str]()
    number = 0
    while counts["crashes_with_lag"] < crashes:
        number += 1
        seed = context.seed * 100_000 + number
        rng = random.Random(seed)
        world = make_world(parts.in_turn(number), seed, TRANSACTIONS, 1 + seed % 2)
        left = min(CRASHES_A_WORLD, crashes - counts["crashes_with_lag"])
        lives: list[Failpoints] = []

        def next_life(world: World = world, rng: random.Random = rng, lives: list[Failpoints] = lives) -> Failpoints:
            _count_deaths(world, lives[-1:], counts)
            dies_at = None
            if counts["crashes_with_lag"] < crashes and len(lives) < left:  # noqa: B023 - used within the loop
                point = rng.choice(POINTS)
                dies_at = (point, rng.randint(1, MAX_PRODUCED if point == "produce" else MAX_PASSED))
            lives.append(Failpoints(dies_at))
            return lives[-1]

        run_until_done(world, "scorer", rng, next_life)
        counts["worlds"] += 1
        counts["worlds_in_shards"] += len(world.servers) > 1
        total.add(verify(world), f"seed {seed}")
        if number % 10 == 0:
            context.say(
                f"{counts['crashes_with_lag']} crashes in {number} worlds, {total.features:,} features compared"
            )
    return total, counts


def _count_deaths(world: World, last: list[Failpoints], counts: Counter[str]) -> None:
    for life in last:
        if life.dead and not world.broker.drained():
            counts["crashes_with_lag"] += 1
            counts[f"at_{life.died_at}"] += 1


def disturb_two_scorers(context: Context, parts: Parts, worlds: int) -> tuple[Verdict, Counter[str]]:
    """Two scorers a world, killed, suspended and fenced."""
    total, counts = Verdict(), Counter[str]()
    for number in range(1, worlds + 1):
        seed = context.seed * 100_000 + 50_000 + number
        rng = random.Random(seed)
        world = make_world(parts.in_turn(number), seed, TRANSACTIONS, 1 + seed % 2, many_labels=False)
        _pair(world, rng, counts)
        counts["worlds"] += 1
        counts["worlds_in_shards"] += len(world.servers) > 1
        counts["late_updates"] += sum(server.late for server in world.servers)
        counts["aborted"] += world.broker.aborted
        total.add(verify(world), f"seed {seed}")
    context.say(f"two scorers: {dict(counts)}")
    return total, counts


def _pair(world: World, rng: random.Random, counts: Counter[str]) -> None:
    """Two scorers on one world; one at a time is killed, or suspended until the other has its partitions."""
    lives: dict[str, Failpoints] = {}
    failures: list[BaseException] = []

    def live(name: str) -> None:
        def next_life() -> Failpoints:
            lives[name] = Failpoints()
            return lives[name]

        try:
            run_until_done(world, name, random.Random(rng.random()), next_life)
        except BaseException as error:  # carried to the proof's own thread
            failures.append(error)
            world.stop.set()

    threads = {name: threading.Thread(target=live, args=(name,), daemon=True) for name in ("a", "b")}
    threads["a"].start()
    deadline = time.monotonic() + PATIENCE_S
    for step in range(2 * SUSPENSIONS):
        time.sleep(rng.uniform(0.005, 0.03))
        if step == 1:
            threads["b"].start()
        if world.stop.is_set() or len(lives) < (2 if step else 1):
            continue
        name = rng.choice(sorted(lives))
        life = lives[name]
        if rng.random() < 0.3:
            life.kill()
            world.broker.expel(name)
            counts["killed"] += 1
            continue
        point = rng.choice(("apply", "applied", "committed", "offsets", "produce", "rows"))
        life.suspend_at(point)
        if life.suspended.wait(0.5):
            world.broker.expel(name)
            counts["fenced"] += 1
            counts[f"suspended_at_{point}"] += 1
            time.sleep(rng.uniform(0.0, 0.03))
        life.resume()
    for name, thread in threads.items():
        if thread.ident is not None:
            thread.join(max(deadline - time.monotonic(), 0.1))
            assert not thread.is_alive(), f"scorer {name} did not end"
    if failures:
        raise AssertionError(str(failures[0])) from failures[0]


def _break() -> None:
    """Rows ignore their applied offsets: what was applied before counts again."""
    from tests.support import rows

    apply = rows.MemoryAppliedRows._apply

    def careless(self: rows.MemoryAppliedRows, update):  # type: ignore[no-untyped-def]
        for span in update.spans:
            applied, watermark, target = self._server.applied[span.source]
            self._server.applied[span.source] = (min(span.start, applied), watermark, target)
        apply(self, update)

    rows.MemoryAppliedRows._apply = careless  # type: ignore[method-assign]
