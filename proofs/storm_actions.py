"""The kinds of action of a storm. Each is a context manager that begins a fault and, at its end, heals it.

An action that cannot be done now, because another one holds what it needs, raises; the runner counts it as such.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import numpy as np
from confluent_kafka import Consumer, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from proofs.refusal import FAULTS
from proofs.storm_fleet import held_down, suspended
from proofs.storm_schedule import Action, Kind
from proofs.storm_traffic import BAD, label_of, transactions_of
from proofs.storm_world import ABSENT, CLOCK_SKEW_MS, PARTITIONS, VERSIONS, World
from stream_scorer.ensemble.registry import keep
from stream_scorer.ensemble.reweigh import reweigh
from stream_scorer.kafka.config import client_config, consumer_config
from stream_scorer.records import ServedVersion
from stream_scorer.simulate.config import DAY_MS, HOUR_MS, MINUTE_MS
from stream_scorer.simulate.garbage import GARBAGE_KINDS, garbage

# The monitor keeps a transaction for four days of event time. Whether a label counts that is given at the end of this
# time, and then held back in a silent partition, depends on when it arrives; so there are no such labels.
UNDECIDED_MS = 80 * HOUR_MS, 100 * HOUR_MS
SCORERS, MORE_SCORERS = ("one", "two", "three"), ("two", "three")
Perform = Callable[[World, Action], AbstractContextManager[None]]
ACTIONS: dict[str, tuple[Kind, Perform]] = {}


class NotNow(Exception):
    """What the action needs is not there."""


def kind(
    group: str,
    *,
    targets: tuple[str, ...] = (),
    last: tuple[float, float] = (0.0, 0.0),
    weight: int = 3,
    **choices: tuple[float | int | str, ...],
) -> Callable[[Callable[[World, Action], Iterator[None]]], Perform]:
    """Register a kind of action, which lasts for `last` seconds (shortest, longest)."""

    def register(function: Callable[[World, Action], Iterator[None]]) -> Perform:
        name = function.__name__
        perform = contextmanager(function)
        shortest, longest = (int(1_000 * bound) for bound in last)
        ACTIONS[name] = Kind(name, group, targets, shortest, longest, weight, choices), perform
        return perform

    return register


# Processes


@kind("processes", targets=(*SCORERS, "monitor"), last=(0, 4), weight=6)
def kill(world: World, action: Action) -> Iterator[None]:
    """`kill -9`, and a start after a while."""
    process = world.fleet.by_name[action.target]
    with held_down(process):
        if not process.kill():
            raise NotNow
        yield


@kind("processes", targets=(*SCORERS, "monitor"), last=(0, 4))
def stop(world: World, action: Action) -> Iterator[None]:
    """SIGTERM, and a start after a while."""
    process = world.fleet.by_name[action.target]
    with held_down(process):
        if process.stop() is None:
            raise NotNow
        yield


@kind("processes", targets=(*SCORERS, "monitor"), last=(0.5, 14))
def suspend(world: World, action: Action) -> Iterator[None]:
    """SIGSTOP for a while, sometimes for longer than the session of its group."""
    pid = world.fleet.by_name[action.target].suspend()
    if pid is None:
        raise NotNow
    with suspended(pid):
        yield


@kind("processes", targets=(*SCORERS, "monitor"), last=(2, 8))
def throttle(world: World, action: Action) -> Iterator[None]:
    """A process that gets little CPU time: it is suspended for four fifths of the time."""
    process = world.fleet.by_name[action.target]
    done = threading.Event()

    def pulse() -> None:
        while not done.is_set():
            with suspended(process.suspend()):
                done.wait(0.2)
            done.wait(0.05)

    thread = threading.Thread(target=pulse, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@kind("processes", targets=MORE_SCORERS, last=(8, 40), weight=6, how=("stop", "kill"))
def add_scorer(world: World, action: Action) -> Iterator[None]:
    """Another scorer joins for a while, and leaves in good order or not."""
    process = world.fleet.by_name[action.target]
    process.adjust(wanted=1)
    try:
        yield
    finally:
        process.leave(str(action.parameters["how"]))


@kind("environment", targets=MORE_SCORERS, last=(8, 30), minutes=(-7, -3, 2, 9))
def clock_off(world: World, action: Action) -> Iterator[None]:
    """A scorer joins whose clock is off by minutes."""
    process = world.fleet.by_name[action.target]
    if process.running:
        raise NotNow
    process.set_environment({CLOCK_SKEW_MS: str(int(action.parameters["minutes"]) * MINUTE_MS)})
    process.adjust(wanted=1)
    try:
        yield
    finally:
        process.set_environment({CLOCK_SKEW_MS: "0"})
        process.leave("stop")


# Broker


@kind("broker", weight=1)
def restart_broker(world: World, _action: Action) -> Iterator[None]:
    """`kill -9` of the broker, and a start at once."""
    world.kafka.restart()
    yield


@kind("broker", last=(20, 20), weight=1, how=("stop", "kill"))
def broker_down(world: World, action: Action) -> Iterator[None]:
    """No broker for 20 s."""
    with world.kafka.down(kill=action.parameters["how"] == "kill"):
        yield


@kind("broker", last=(0.5, 7), weight=1)
def suspend_broker(world: World, _action: Action) -> Iterator[None]:
    """The broker is suspended, and its connections stay open."""
    with suspended(_suspend(world.kafka.pid)):
        yield


# Redis


@kind("redis", weight=2)
def kill_redis(world: World, _action: Action) -> Iterator[None]:
    """`kill -9` of Redis, and a start at once: it is empty."""
    world.redis.service.restart()
    yield


@kind("redis", last=(3, 12), weight=1)
def redis_down(world: World, _action: Action) -> Iterator[None]:
    """No Redis for a while; it comes back empty."""
    with world.redis.service.down(kill=True):
        yield


@kind("redis")
def flush(world: World, _action: Action) -> Iterator[None]:
    """FLUSHALL."""
    world.redis.client().flushall()
    yield


@kind("redis", rows=(1, 20, 500))
def delete_rows(world: World, action: Action) -> Iterator[None]:
    """Some rows of features disappear."""
    client, rng = world.redis.client(), random.Random(action.seed)
    rows = sorted(client.scan_iter(match="*:r:*", count=10_000))
    if not rows:
        raise NotNow
    client.delete(*rng.sample(rows, min(int(action.parameters["rows"]), len(rows))))
    yield


@kind("redis")
def lose_scripts(world: World, _action: Action) -> Iterator[None]:
    """Redis forgets its Lua scripts."""
    world.redis.client().script_flush()
    yield


def _refusal(name: str) -> Callable[[World, Action], Iterator[None]]:
    def refuse(world: World, action: Action) -> Iterator[None]:
        with FAULTS[name](world.redis.client(), random.Random(action.seed)):
            yield

    refuse.__name__ = name.lower().replace(" ", "_")
    return refuse


for _name in ("out of memory", "READONLY", "MISCONF", "too few replicas", "connections break"):
    kind("redis", last=(0.5, 8), weight=2)(_refusal(_name))


@kind("redis", last=(0.3, 6))
def hang_redis(world: World, _action: Action) -> Iterator[None]:
    """The server is suspended, and its connections stay open."""
    with suspended(_suspend(world.redis.service.pid)):
        yield


@kind("redis", last=(1, 8), milliseconds=(3, 30, 150))
def slow_redis(world: World, action: Action) -> Iterator[None]:
    """Every answer is late."""
    world.redis.proxy.delay_s = int(action.parameters["milliseconds"]) / 1_000
    try:
        yield
    finally:
        world.redis.proxy.delay_s = 0.0


@kind("redis", last=(0.3, 6))
def silent_network(world: World, _action: Action) -> Iterator[None]:
    """Nothing arrives, and nothing fails."""
    world.redis.proxy.hold()
    try:
        yield
    finally:
        world.redis.proxy.resume()


@kind("redis")
def reset_connections(world: World, _action: Action) -> Iterator[None]:
    """Every connection is reset."""
    if not world.redis.proxy.reset():
        raise NotNow
    yield


@kind("redis", last=(1, 3), weight=2)
def fail_over(world: World, _action: Action) -> Iterator[None]:
    """A replica becomes the primary; it may lack the last writes."""
    with world.redis.failing_over():
        yield


# Control


@kind("control", version=tuple(range(VERSIONS)))
def promote(world: World, action: Action) -> Iterator[None]:
    """A version becomes the champion."""
    world.operator.submit("promote", "ann", version=_version(world, action))
    yield


@kind("control", version=tuple(range(VERSIONS)), share=(0.1, 0.5, 1.0))
def canary(world: World, action: Action) -> Iterator[None]:
    """A version decides for a share of the entities."""
    world.operator.submit("canary", "ann", version=_version(world, action), share=action.parameters["share"])
    yield


@kind("control", version=tuple(range(VERSIONS)), last=(1, 8))
def shadow(world: World, action: Action) -> Iterator[None]:
    """A version scores without deciding, for a while."""
    world.operator.submit("shadow", "ann", version=_version(world, action))
    yield
    world.operator.submit("stop", "ann", version=_version(world, action))


@kind("control")
def rollback(world: World, _action: Action) -> Iterator[None]:
    """Back to the last good version."""
    world.operator.submit("rollback", "ben")
    yield


@kind("control", last=(1, 6))
def disable_member(world: World, _action: Action) -> Iterator[None]:
    """One member does not count for a while."""
    world.operator.submit("disable", "ben", member=world.operator.member)
    yield
    world.operator.submit("enable", "ben", member=world.operator.member)


@kind("control", last=(1, 6))
def hold_monitor(world: World, _action: Action) -> Iterator[None]:
    """The monitor must not submit commands for a while."""
    world.operator.submit("hold", "ben")
    yield
    world.operator.submit("release", "ben")


@kind("control", weight_a=(0.0, 0.4, 2.0), weight_b=(0.1, 1.0))
def weights(world: World, action: Action) -> Iterator[None]:
    """Other weights, which make a new version."""
    folder = world.folder / f"weights-{action.seed}"
    wanted = {"a": float(action.parameters["weight_a"]), "b": float(action.parameters["weight_b"])}
    reweigh(world.ensemble, wanted, folder, action.at_ms)
    world.operator.submit("promote", "ann", version=ServedVersion(*keep(folder, world.cache)))
    yield


@kind("control", targets=("absent", "altered"), how=("promote", "canary", "shadow"), last=(1, 6))
def unloadable_version(world: World, action: Action) -> Iterator[None]:
    """A command names a version that no scorer can load; another command takes it back."""
    version = ABSENT if action.target == "absent" else world.operator.versions[VERSIONS + 1]
    how = str(action.parameters["how"])
    world.operator.submit(how, "ann", version=version, share=0.5 if how == "canary" else None)
    yield
    if how == "promote":
        _insist(world, "rollback")
    else:
        world.operator.submit("stop", "ann", version=version)


@kind("control", how=("promote", "canary", "shadow"), last=(1, 8))
def slow_version(world: World, action: Action) -> Iterator[None]:
    """A command names a version that takes seconds to load."""
    version, how = world.operator.versions[VERSIONS], str(action.parameters["how"])
    world.operator.submit(how, "ann", version=version, share=0.2 if how == "canary" else None)
    yield
    world.operator.submit("rollback" if how == "promote" else "stop", "ann", version=version)


@kind("control", version=tuple(range(VERSIONS)))
def two_operators(world: World, action: Action) -> Iterator[None]:
    """Two people submit commands at the same moment."""
    threads = [
        threading.Thread(target=_try, args=(world, name, who, _version(world, action)))
        for name, who in (("canary", "ann"), ("rollback", "ben"), ("confirm", "ann"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    yield


# Data


@kind("data", what=GARBAGE_KINDS, records=(1, 5))
def bad_records(world: World, action: Action) -> Iterator[None]:
    """Records that no decoder accepts, of one kind."""
    _garbage(world, action, [str(action.parameters["what"])], int(action.parameters["records"]))
    yield


@kind("data", records=(500, 3_000), weight=2)
def flood_of_bad_records(world: World, action: Action) -> Iterator[None]:
    """Thousands of them at once."""
    small = [name for name in GARBAGE_KINDS if name not in ("oversized", "deep")]
    _garbage(world, action, small, int(action.parameters["records"]))
    yield


@kind("data", what=("key", "headers", "many_headers"), weight=2)
def envelope_too_large(world: World, action: Action) -> Iterator[None]:
    """Keys or headers that are too large for the outputs to which they are copied."""
    rng = random.Random(action.seed)
    key, headers = BAD + b"envelope-%d" % action.seed, [("trace", b"t" * 100)]
    if action.parameters["what"] == "key":
        key += b"k" * 100_000
    elif action.parameters["what"] == "headers":
        headers.append(("large", b"h" * 500_000))
    else:
        headers += [(f"h{i}", b"h" * 100) for i in range(2_000)]
    _, value = transactions_of(world.traffic.past(rng, 1))[0]
    world.traffic.inject(world.traffic.topics.transactions, key, value, headers=headers)
    yield


@kind("data", records=(1, 5), weight=2)
def large_values(world: World, action: Action) -> Iterator[None]:
    """Good records with almost as many bytes as the spec allows, and headers."""
    rng = random.Random(action.seed)
    for i, document in enumerate(world.traffic.past(rng, int(action.parameters["records"]))):
        new = document | {"event_id": f"large-{action.seed}-{i}", "event_time": int(world.traffic.now)}
        new["note"] = "n" * 900_000
        key, value = transactions_of([new])[0]
        headers = [("trace", b"t" * 20_000)]
        world.traffic.inject(world.traffic.topics.transactions, key, value, headers=headers)
    yield


@kind("data", hours=(1, 24, 200), records=(20, 200))
def late_events(world: World, action: Action) -> Iterator[None]:
    """Transactions that arrive hours or days after they happened."""
    _transactions(world, action, "late", -int(action.parameters["hours"]) * HOUR_MS)
    yield


@kind("data", seconds=(30, 290), records=(5, 50))
def future_events(world: World, action: Action) -> Iterator[None]:
    """Transactions that claim to happen minutes from now."""
    _transactions(world, action, "future", int(action.parameters["seconds"]) * 1_000)
    yield


@kind("data", minutes=(-4, 4), records=(20, 100))
def producer_clock_off(world: World, action: Action) -> Iterator[None]:
    """Records of a producer whose clock is off by minutes."""
    skew = int(action.parameters["minutes"]) * MINUTE_MS
    _transactions(world, action, "skewed", min(skew, 0), skew_ms=skew)
    yield


@kind("data", records=(50, 500))
def duplicates(world: World, action: Action) -> Iterator[None]:
    """Transactions that were sent before, again."""
    rng = random.Random(action.seed)
    for key, value in transactions_of(world.traffic.past(rng, int(action.parameters["records"]))):
        world.traffic.inject(world.traffic.topics.transactions, key, value)
    yield


@kind("data", factor=(2, 4), last=(1, 5))
def burst(world: World, action: Action) -> Iterator[None]:
    """Traffic runs several times as fast."""
    factor = float(action.parameters["factor"])
    world.traffic.accelerate(factor, on=True)
    try:
        yield
    finally:
        world.traffic.accelerate(factor, on=False)


@kind("data", partition=tuple(range(PARTITIONS)), what=("transactions", "labels", "both"), last=(2, 12))
def silent_partition(world: World, action: Action) -> Iterator[None]:
    """A partition is silent for hours of event time; then its records arrive."""
    partition, what = int(action.parameters["partition"]), str(action.parameters["what"])
    topics = [name for name in world.traffic.topics.inputs() if what in (name, "both")]
    for topic in topics:
        world.traffic.mute(topic, partition, muted=True)
    try:
        yield
    finally:
        for topic in topics:
            world.traffic.mute(topic, partition, muted=False)


@kind("data", records=(10, 100))
def early_labels(world: World, action: Action) -> Iterator[None]:
    """Labels that arrive before their transaction."""
    rng = random.Random(action.seed)
    for wait, document in world.traffic.coming(rng, int(action.parameters["records"])):
        lead = rng.randrange(MINUTE_MS, 4 * MINUTE_MS)
        # A transaction may be ahead of its record; a label is given at most 5 min before its transaction.
        given = max(int(world.traffic.now + wait) - lead, document["event_time"] - 4 * MINUTE_MS)
        key, value = label_of(document, given, rng.random() < 0.5, "analyst")
        world.traffic.inject(world.traffic.topics.labels, key, value, after_ms=max(wait - lead, 0))
    yield


@kind("data", records=(10, 100))
def repeated_labels(world: World, action: Action) -> Iterator[None]:
    """The same labels several times."""
    _labels(world, action, lambda rng: [rng.random() < 0.5] * 3)
    yield


@kind("data", records=(10, 100))
def changed_labels(world: World, action: Action) -> Iterator[None]:
    """Labels that change their mind, some of them back."""
    _labels(world, action, lambda rng: [rng.random() < 0.5, rng.random() < 0.5, rng.random() < 0.5])
    yield


@kind("data", what=("microseconds", "nanoseconds", "seconds", "negative", "year_9999", "event_time", "not_json"))
def absurd_labels(world: World, action: Action) -> Iterator[None]:
    """Labels with times that cannot be, or that are none."""
    rng, now = random.Random(action.seed), int(world.traffic.now)
    what = str(action.parameters["what"])
    times = {"microseconds": now * 1_000, "nanoseconds": now * 1_000_000, "seconds": now // 1_000, "negative": -now}
    for i, document in enumerate(world.traffic.past(rng, 10)):
        if what == "event_time":
            document["event_time"] = now + 30 * DAY_MS
        _, value = label_of(document, times.get(what, 253_370_764_800_000 if what == "year_9999" else now), True, "x")
        value = b"{" if what == "not_json" else value
        world.traffic.inject(world.traffic.topics.labels, BAD + b"label-%d-%d" % (action.seed, i), value)
    yield


@kind("data", records=(10, 100))
def labels_of_nothing(world: World, action: Action) -> Iterator[None]:
    """Labels for transactions that never come."""
    rng, now = random.Random(action.seed), int(world.traffic.now)
    for i, document in enumerate(world.traffic.past(rng, int(action.parameters["records"]))):
        unknown = document | {"event_id": f"unknown-{action.seed}-{i}"}
        key, value = label_of(unknown, max(now, document["event_time"]), True, "chargeback")
        world.traffic.inject(world.traffic.topics.labels, key, value)
    yield


# Environment


@kind("environment", last=(1, 8))
def disk_full(world: World, _action: Action) -> Iterator[None]:
    """The monitor cannot write its store: no file of its process may grow."""
    monitor = world.fleet.by_name["monitor"]
    if not monitor.limit_files(8_192):
        raise NotNow
    try:
        yield
    finally:
        monitor.limit_files(-1)


@kind("environment", last=(3, 15), weight=2)
def slow_consumer(world: World, action: Action) -> Iterator[None]:
    """A subscriber that reads scores one by one, slowly."""
    consumer = Consumer(consumer_config(world.bootstrap, "slow", f"slow-{action.seed}") | {"group.id": "slow"})
    done = threading.Event()

    def read() -> None:
        consumer.subscribe([world.traffic.topics.scores])
        while not done.wait(0.1):
            with suppress(KafkaException):
                consumer.consume(1, 0.1)
        consumer.close()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(20)


@kind("environment", last=(2, 8), weight=2)
def narrow_topic(world: World, _action: Action) -> Iterator[None]:
    """The topic of dead letters takes records of 1 MB only, as a topic has it that somebody else created."""
    name = world.traffic.topics.dead_letters
    admin = AdminClient(client_config(world.bootstrap, "storm-admin"))

    def set_limit(number: int) -> None:
        entry = ConfigEntry("max.message.bytes", str(number), incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=[entry])
        for future in admin.incremental_alter_configs([resource], request_timeout=20).values():
            future.result()

    set_limit(1_048_588)
    yield
    _until_done(lambda: set_limit(10 * 1024 * 1024))


def _version(world: World, action: Action) -> Any:
    return world.operator.versions[int(action.parameters["version"])]


def _try(world: World, name: str, who: str, version: Any) -> None:
    more = {"version": version} if name == "canary" else {}
    with suppress(Exception):  # the broker may be away; the other one counts
        world.operator.submit(name, who, **more, share=0.3 if name == "canary" else None)


def _insist(world: World, name: str) -> None:
    """Submit until the log has the command."""
    _until_done(lambda: world.operator.submit(name, "ben"))


def _until_done(step: Callable[[], object], patience_s: float = 90.0) -> None:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            step()
            return
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _suspend(pid: int | None) -> int:
    if pid is None:
        raise NotNow
    os.kill(pid, signal.SIGSTOP)
    return pid


def _garbage(world: World, action: Action, kinds: list[str], count: int) -> None:
    rng = random.Random(action.seed)
    goods = transactions_of(world.traffic.past(rng, min(count, 50)))
    draw = np.random.default_rng(action.seed)
    for i in range(count):
        value = garbage(kinds[i % len(kinds)], goods[i % len(goods)][1], draw)
        world.traffic.inject(world.traffic.topics.transactions, BAD + b"%d-%d" % (action.seed, i), value)


def _transactions(world: World, action: Action, name: str, shift_ms: int, skew_ms: int = 0) -> None:
    rng = random.Random(action.seed)
    now = int(world.traffic.now)
    for i, document in enumerate(world.traffic.past(rng, int(action.parameters["records"]))):
        new = document | {"event_id": f"{name}-{action.seed}-{i}", "event_time": now + shift_ms}
        key, value = transactions_of([new])[0]
        world.traffic.inject(world.traffic.topics.transactions, key, value, skew_ms=skew_ms)


def _labels(world: World, action: Action, verdicts: Callable[[random.Random], list[bool]]) -> None:
    rng, now = random.Random(action.seed), int(world.traffic.now)
    for document in world.traffic.past(rng, int(action.parameters["records"])):
        source = rng.choice(("analyst", "chargeback", "random_review", "somebody"))
        if UNDECIDED_MS[0] < now - document["event_time"] < UNDECIDED_MS[1]:
            continue
        for i, fraud in enumerate(verdicts(rng)):
            at = max(now, document["event_time"] - MINUTE_MS) + i * 1_000
            key, value = label_of(document, at, fraud, source)
            world.traffic.inject(world.traffic.topics.labels, key, value, after_ms=i * 1_000)


KINDS = [entry for entry, _ in ACTIONS.values()]
