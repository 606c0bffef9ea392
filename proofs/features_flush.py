"""features-flush: what Redis loses is noticed before a wrong value is called fresh, and rebuilt while scoring goes on.

In memory, where any read may find a loss: of everything, during a run and during the rebuild that follows; of the row
about to be read; of a row that was read and is about to get entries; or a Redis that does not answer for a moment. The
stages, the processor, the recovery and the rebuild are the real ones (`proofs/memory_run.py`); half of the worlds
compact their rows early (`proofs/compacted.py`). On a real Kafka and Redis under live traffic: a single row deleted,
then one shard of four, then FLUSHALL, then FLUSHALL again in the middle of the rebuild, then a rebuild on request,
during which features stay; `features check` then compares Redis with the log, and scoring must go on as promised
(`proofs/throughout.py`).

`N` is the number of losses in memory; on real parts, 1,000 transactions for each (at most `HISTORY`) come first.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from proofs.kill_once import check_features
from proofs.kit import (
    CARDS_SPEC,
    ROOT,
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
from proofs.memory_run import Parts, Verdict, World, lacks_features, make_parts, make_world, run_until_done, verify
from proofs.throughout import SMALL as SMALL_PROMISE
from proofs.throughout import Promise, check_throughout
from stream_scorer.clock import SystemClock
from stream_scorer.errors import StateUnavailable
from stream_scorer.kafka.open_loop import OpenLoopProducer, Schedule
from stream_scorer.kafka.topics import Topics
from stream_scorer.records import Contribution, Score
from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.simulate.encode import encode_keys, encode_values
from stream_scorer.simulate.generate import generate
from stream_scorer.stack import StackAddresses
from stream_scorer.state.client import connect
from tests.support.failpoints import Failpoints

LOSSES, HISTORY = 200, 120_000
TRANSACTIONS, LOSSES_A_WORLD = 700, 6
PATIENCE_S = 60.0
# With less than this to go nobody may come by to notice.
LEAST_LAG = 150
# Transactions per second; fewer in the scaled-down form.
RATE, SMALL, SMALL_RATE = 500, 100, 200
# Live traffic for this long at most; it ends soon after the last rebuild.
MAX_LIVE_S = 240
REBUILT = "features are rebuilt"
SHARDS = ("--shards", "2")


def run(context: Context) -> Result:
    """See the module."""
    losses = context.n or LOSSES
    result = Result()
    if context.broken:
        _break()
    verdict, counts = lose_in_memory(context, make_parts(context.folder, CARDS_SPEC), losses)
    counted = {f.name: getattr(verdict, f.name) for f in fields(Verdict)}
    result.figures["memory"] = dict(counts) | {k: v for k, v in counted.items() if k != "example" or v}
    result.check("in memory: outputs once, rows equal the log, no wrong value is called fresh", verdict.holds)
    for kind in (
        "flushed",
        "flushed_in_rebuild",
        "row_lost",
        "row_lost_after_reading",
        "shard_lost",
        "unavailable",
        "writes_refused",
    ):
        result.at_least(kind, counts[kind], losses // 20)
    result.at_least("degraded", verdict.degraded, losses)
    result.at_least("rows_compacted", verdict.rows_compacted, losses // 2)
    if not context.broken:
        _on_real_parts(context, result, min(1_000 * losses, HISTORY), RATE if losses >= SMALL else SMALL_RATE)
    return result


def lose_in_memory(context: Context, parts: Parts, losses: int) -> tuple[Verdict, Counter[str]]:
    """One scorer a world, two in every third, from whose reads things go missing."""
    total, counts = Verdict(), Counter[str]()
    number = 0
    while counts["losses"] < losses:
        number += 1
        seed = context.seed * 100_000 + 70_000 + number
        rng = random.Random(seed)
        world = make_world(parts.in_turn(number), seed, TRANSACTIONS, 1 + number % 2, many_labels=False)
        _Disturbance(world, rng, counts)
        _score(world, rng, ("a", "b") if number % 3 == 0 else ("a",))
        counts["worlds"] += 1
        total.add(verify(world), f"seed {seed}")
        if number % 10 == 0:
            context.say(f"{counts['losses']} losses in {number} worlds, {total.features:,} features compared")
    return total, counts


def _score(world: World, rng: random.Random, names: tuple[str, ...]) -> None:
    """Scorers side by side until the input is drained."""
    failures: list[BaseException] = []

    def live(name: str, seed: float) -> None:
        try:
            run_until_done(world, name, random.Random(seed), Failpoints)
        except BaseException as error:  # carried to the proof's own thread
            failures.append(error)
            world.stop.set()

    threads = [threading.Thread(target=live, args=(name, rng.random()), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "a scorer did not end"
    if failures:
        raise AssertionError(str(failures[0])) from failures[0]


class _Disturbance:
    """Something goes missing, or is refused, at seeded reads and updates of `world`."""

    def __init__(self, world: World, rng: random.Random, counts: Counter[str]) -> None:
        self._world, self._rng, self._counts = world, rng, counts
        self._lock = threading.Lock()
        self._left, self._until = LOSSES_A_WORLD, rng.randint(3, 20)
        self._silent = self._refusing = 0
        # Set while the next update that finds one of its rows there shall lose it.
        self._doomed = False
        for server in world.servers:
            server.on_read, server.on_apply, server.on_probe = self.on_read, self.on_apply, self.on_probe

    def on_probe(self) -> None:
        with self._lock:
            self._refuse()

    def on_apply(self, keys: Sequence[bytes]) -> None:
        with self._lock:
            self._refuse()
            present = self._present(keys)
            if self._doomed and present and self._lag() >= LEAST_LAG:
                key = self._rng.choice(present)
                self._world.server_of(key).lose(key)
                self._doomed = False
                self._counts["row_lost_after_reading"] += 1
                self._counts["losses"] += 1

    def on_read(self, keys: Sequence[bytes]) -> None:
        with self._lock:
            if self._silent:
                self._silent -= 1
                raise StateUnavailable("silent for a while")
            self._until -= 1
            if self._until > 0 or not self._left:
                return
            if self._lag() < LEAST_LAG:
                self._left = 0
                return
            self._until = self._rng.randint(2, 12)
            kinds = ["flushed", "row_lost", "row_lost_after_reading", "unavailable", "writes_refused"]
            what = self._rng.choice(kinds + ["shard_lost"] * (self._world.sharding is not None))
            if what == "row_lost_after_reading":
                self._doomed = True
                self._left -= 1
            elif what == "row_lost" and not self._present(keys):
                self._until = 1
            else:
                self._lose(what, keys)

    def _lose(self, what: str, keys: Sequence[bytes]) -> None:
        world, rng, counts = self._world, self._rng, self._counts
        applied = [at for server in world.servers for at in list(server.applied.values())]
        rebuilding = any(at < target for at, _, target in applied)
        self._left -= 1
        counts[what] += 1
        counts["losses"] += 1
        if what == "row_lost":
            key = rng.choice(self._present(keys))
            world.server_of(key).lose(key)
        elif what == "shard_lost":
            rng.choice(world.servers).flush()
            counts["shard_lost_in_rebuild"] += rebuilding
        elif what == "flushed":
            for server in world.servers:
                server.flush()
            counts["flushed_in_rebuild"] += rebuilding
        elif what == "writes_refused":
            self._refusing = rng.randint(1, 12)
        else:
            self._silent = rng.randint(0, 2)
            raise StateUnavailable("silent for a while")

    def _refuse(self) -> None:
        if self._refusing:
            self._refusing -= 1
            raise StateUnavailable("writes are refused for a while")

    def _present(self, keys: Sequence[bytes]) -> list[bytes]:
        return [key for key in keys if key in self._world.server_of(key).rows]

    def _lag(self) -> int:
        broker = self._world.broker
        return sum(len(broker.log[s]) - broker.offsets.get(s, 0) for s in broker.inputs)


def _on_real_parts(context: Context, result: Result, history: int, rate: int) -> None:
    train_cards(context.folder, seed=context.seed, transactions=30_000)
    keys, values = _input(context.seed, history + rate * MAX_LIVE_S)
    topics = Topics()
    with services("kafka", "redis", partitions=1) as (_stack, at):
        bootstrap = str(at.kafka)
        publish(bootstrap, topics.transactions, keys[:history], values[:history])
        scorer = Scorer(context.folder, at, instance="scorer", ensemble=context.folder / "ensemble", arguments=SHARDS)
        scorer.start()
        try:
            wait_drained(bootstrap, [scorer], timeout_s=120)
            live = _Live(bootstrap, keys[history:], values[history:], rate)
            spells = _lose(context, result, scorer, at, keys[history : history + 60 * rate])
            live.end()
            wait_drained(bootstrap, [scorer], timeout_s=60)
            result.check("SIGTERM ends the scorer with exit 0 in 10 s", scorer.stop(10) == 0)
        finally:
            scorer.close()
        _check(context, result, at, history + live.sent)
        _check_throughout(result, at, history, rate, spells)


class _Live:
    """Live traffic in a thread, until it is ended."""

    def __init__(self, bootstrap: str, keys: list[bytes], values: list[bytes], rate: int) -> None:
        self._keys, self._values, self._rate = keys, values, rate
        self._stop = threading.Event()
        self._bootstrap = bootstrap
        self.sent = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """No more, and all of it confirmed."""
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        step = self._rate // 2
        with OpenLoopProducer(self._bootstrap, client_id="live", clock=SystemClock(), sleep=time.sleep) as producer:
            while not self._stop.is_set() and self.sent < len(self._keys):
                part = slice(self.sent, self.sent + step)
                schedule = Schedule(self._rate, SystemClock())
                producer.publish(Topics().transactions, self._keys[part], self._values[part], schedule=schedule)
                self.sent += len(self._keys[part])


def _lose(
    context: Context, result: Result, scorer: Scorer, at: StackAddresses, soon: list[bytes]
) -> dict[str, tuple[int, int]]:
    """Cause one loss after the other; returns the spells (epoch ms) from each loss to the end of its rebuild.

    `soon` are the keys of the records that come within a minute.
    """
    client, clock = connect(str(at.redis)), SystemClock()
    spells: dict[str, tuple[int, int]] = {}

    def rebuilt(times: int) -> bool:
        scorer.require_running()
        return scorer.log.read_text().count(REBUILT) >= times

    time.sleep(3)
    # The customer with the most records to come, so that the row is read soon.
    owner = Counter(soon).most_common(1)[0][0]
    (row,) = list(client.scan_iter(match=b"*:r:0:" + owner, count=10_000))
    began = clock.now_ms()
    client.delete(row)
    context.say("one row deleted")
    wait_until("features are rebuilt after the loss of a row", lambda: rebuilt(1), MAX_LIVE_S / 3)
    spells["a row is lost"] = began, clock.now_ms()
    time.sleep(2)
    shard = list(client.scan_iter(match="*/2.1}:*", count=10_000))
    began = clock.now_ms()
    client.delete(*shard)
    context.say(f"one shard of four deleted, {len(shard)} keys")
    result.figures["keys_of_the_lost_shard"] = len(shard)
    wait_until("features are rebuilt after the loss of a shard", lambda: rebuilt(2), MAX_LIVE_S / 3)
    spells["a shard is lost"] = began, clock.now_ms()
    time.sleep(2)
    began = clock.now_ms()
    client.flushall()
    context.say("FLUSHALL")
    wait_until("the rebuild is under way", lambda: _rows(client) > 200, 60, 0.01)
    seen = _rows(client)
    client.flushall()
    context.say(f"FLUSHALL again, with {seen} rows rebuilt")
    result.figures["rows_when_flushed_again"] = seen
    wait_until("features are rebuilt after FLUSHALL", lambda: rebuilt(3), MAX_LIVE_S / 2)
    spells["all rows are lost"] = began, clock.now_ms()
    time.sleep(1)
    before, began = _epochs(client), clock.now_ms()
    done = _features(at, "rebuild")
    context.say(f"features rebuild: {done.stdout.strip()}")
    time.sleep(2)
    result.check(
        "features rebuild switches to new rows", done.returncode == 0 and not before & _epochs(client) and rebuilt(3)
    )
    spells["a rebuild on request"] = began, clock.now_ms()
    return spells


def _epochs(client) -> set[bytes]:  # type: ignore[no-untyped-def]
    return {key.split(b":mark:")[0] for key in client.scan_iter(match="*:mark:*", count=10_000)}


def _features(at: StackAddresses, command: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "stream_scorer.cli.main", "features", command, "--bootstrap", str(at.kafka)]
    arguments += ["--redis", str(at.redis), "--spec", str(CARDS_SPEC), *SHARDS]
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def _rows(client) -> int:  # type: ignore[no-untyped-def]
    return int(client.dbsize())


def _check(context: Context, result: Result, at: StackAddresses, published: int) -> None:
    bootstrap = str(at.kafka)
    scores = read_topic(bootstrap, Topics().scores).decode(Score)
    sources = Counter((c.source.partition, c.source.offset) for c in _contributions(bootstrap))
    result.check("one output for each input", len(sources) == published and max(sources.values()) == 1)
    degraded = [s for s in scores if lacks_features(s)]
    result.figures["reasons"] = dict(Counter(reason for s in degraded for reason in s.degraded))
    # Every spell without features, by the scores.
    spells: list[list[Score]] = []
    for before, s in zip([None, *scores], scores, strict=False):
        if lacks_features(s):
            if before is None or not lacks_features(before):
                spells.append([])
            spells[-1].append(s)
    # The second FLUSHALL may fall into the first one's spell; a rebuild on request makes none.
    result.figures["spells"] = len(spells)
    result.check("scores lacked features after losses only", 3 <= len(spells) <= 4)
    result.figures["scored_without_features"] = [len(spell) for spell in spells]
    result.figures["seconds_without_features"] = [
        round((spell[-1].scored_at - spell[0].scored_at) / 1_000, 1) for spell in spells
    ]
    log = (context.folder / "scorer.log").read_text()
    rates = [int(rate) for rate in re.findall(r"to go, (\d+)/s", log)]
    result.figures["rebuild_records_per_second"] = rates
    without = check_features(result, bootstrap, str(at.redis), ("customer", "terminal", "device", "network"))
    result.figures["scores_without_features"] = without
    result.check("only scores that are marked as degraded lack features", without == len(degraded))
    done = _features(at, "check")
    result.figures["features_check"] = done.stdout.strip().splitlines()[:1]
    result.check("features check exits 0", done.returncode == 0)


def _check_throughout(
    result: Result, at: StackAddresses, history: int, rate: int, spells: dict[str, tuple[int, int]]
) -> None:
    """Scoring goes on throughout and in the spell of each loss, where scores are marked as lacking features."""
    arrived = np.array(read_topic(str(at.kafka), Topics().transactions).timestamp[history:])
    scores = read_topic(str(at.kafka), Topics().scores).decode(Score)[history:]
    scored_at = np.array([s.scored_at for s in scores])
    lacking = scored_at[[lacks_features(s) for s in scores]]
    promise = Promise() if rate >= RATE else SMALL_PROMISE
    for name, (began, ended) in (spells | {"throughout": (int(arrived[0]), int(arrived[-1]))}).items():
        check_throughout(result, name, (arrived, scored_at), (began, ended), promise)
        without = int(((lacking >= began) & (lacking <= ended)).sum())
        result.figures[name]["without_features"] = without
        if name.endswith("lost"):
            result.check(f"{name}: scores go on without features, and are marked", without > rate / 5)


def _contributions(bootstrap: str) -> list[Contribution]:
    return read_topic(bootstrap, Topics().contributions).decode(Contribution)


def _input(seed: int, n: int) -> tuple[list[bytes], list[bytes]]:
    config = SimulationConfig(seed=seed, customers=n // 60, terminals=n // 200, days=None, transactions=n)
    transactions = generate(config.starting(config.start_to_end_by(SystemClock().now_ms())))
    return encode_keys(transactions.customer_id), encode_values(transactions)


def _break() -> None:
    """An absent row always counts as a new entity."""
    from tests.support import rows

    class _Forgetful(set[bytes]):
        def __contains__(self, key: object) -> bool:
            return False

    begin = rows.MemoryServer.__init__

    def forget(self: rows.MemoryServer) -> None:
        begin(self)
        self.seen = _Forgetful()

    rows.MemoryServer.__init__ = forget  # type: ignore[method-assign]
