"""soak: for two hours at 2,000 transactions a second, memory, descriptors, threads and disk stay within stated slopes.

Scorer and monitor run on a real Kafka and Redis. A version is promoted or rolled back every five minutes. Every minute
a fiftieth of all customers and terminals is replaced by new ones, and a fiftieth of the transactions get a label a
minute later. Every few seconds the proof reads resident memory, open descriptors and threads of both processes, the
memory and the number of keys of Redis, and the bytes of the monitor's store and the scorer's cache. Latency is measured
from the time at which a transaction was due, which is its event time, to the timestamp of its score, so a producer that
is late does not hide a delay.

What may grow is compared between the second and the last quarter of the run: the first quarter fills caches. Redis has
limits per key and per entity instead, because rows of entities still grow; its keys are also counted by kind. `N` is
the length of the load in seconds; below `SHORT_S` the rate is lower, and latency and disk are printed only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from proofs.kit import Context, Monitor, Result, Scorer, services, train_cards, wait_drained, wait_until
from stream_scorer.clock import SystemClock
from stream_scorer.control.commands import catch_up, submit
from stream_scorer.control.state import History
from stream_scorer.ensemble.registry import keep
from stream_scorer.kafka.control_log import ControlLog
from stream_scorer.kafka.follower import RecordFollower
from stream_scorer.kafka.open_loop import OpenLoopProducer
from stream_scorer.kafka.topics import Topics
from stream_scorer.records import Command, ServedVersion
from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.simulate.encode import Label, encode_keys, encode_values
from stream_scorer.simulate.generate import generate
from stream_scorer.simulate.transactions import Transactions
from stream_scorer.state.client import connect

N, RATE = 7_200, 2_000
# A run this short is a test of the proof: a small machine runs other tests at the same time.
SHORT_S, SHORT_RATE = 600, 300
# What BREAK=1 leaves in memory within this time is enough to be noticed, and would fill it within two hours.
BROKEN_S = 300
BLOCK_S, CHANGE_EVERY_S, SAMPLE_EVERY_S = 60, 300, 5.0
# A customer or terminal lives for this many blocks.
LIFE_BLOCKS = 50
CUSTOMERS, TERMINALS = 50_000, 5_000
LABELLED = 50
WARM_UP_S, READY_S, DRAIN_S = 5.0, 90.0, 120.0
MIB = 1 << 20
# What may grow between the second and the last quarter: a fixed part (allocators, caches), and a slope per hour.
MEMORY_MIB, MEMORY_MIB_PER_HOUR = 48.0, 16.0
DESCRIPTORS, THREADS = 8, 4
# A row has up to 160 entries of 32 bytes, and panes; for an append, Redis reserves as much again. A row grows while its
# entity is active, 50 minutes in this load, so the mean per key still grows in the second hour and has a fixed limit.
REDIS_BYTES_PER_KEY = 12_000
# The share of Redis' memory that is not in keys.
REDIS_SHARE_OUTSIDE_KEYS = 0.25
# Keys: one row per entity that was sent, witnesses (in 8,192 sets per 30 days), applied offsets and the windows of the
# monitor. All but the rows are small.
OTHER_KEYS, OTHERS_MIB = 25_000, 64.0
# Redis grows by rows of new entities, and rows of older ones fill up: one and a half full rows for each new entity.
REDIS_BYTES_PER_NEW_ENTITY, REDIS_GROWTH_MIB = 16_000, 64.0
# Keys whose memory is measured at each reading.
KEYS_SAMPLED = 200
# The label joiner keeps a decision for two label ages; the cache holds the versions that served.
DISK_BYTES_PER_TRANSACTION = 400
P99_TIMES = 1.2


@dataclass(slots=True)
class Sample:
    """One reading. `at` in seconds since the start of the load; memory and disk in bytes.

    `keys`: of Redis. `entities`: different ones that were sent. `per_key`: mean memory of a key, from random ones.
    """

    at: float
    scored: int
    memory: dict[str, int]
    descriptors: dict[str, int]
    threads: dict[str, int]
    redis: int
    keys: int
    entities: int
    per_key: float
    disk: int


@dataclass(slots=True)
class Latencies:
    """Seconds since the start of the load, and latency in ms, of a sample of the scores."""

    at: list[NDArray[np.float64]] = field(default_factory=list)
    ms: list[NDArray[np.int64]] = field(default_factory=list)

    def between(self, start: float, stop: float) -> NDArray[np.int64]:
        """Latencies of the scores whose transactions were due in this part of the run."""
        at, ms = np.concatenate(self.at or [np.zeros(0)]), np.concatenate(self.ms or [np.zeros(0, np.int64)])
        return ms[(at >= start) & (at < stop)]


def run(context: Context) -> Result:
    """See the module."""
    seconds = min(context.n or N, BROKEN_S) if context.broken else context.n or N
    rate = RATE if seconds >= SHORT_S else SHORT_RATE
    result = Result()
    folders = [context.folder / name for name in ("one", "two")]
    for number, folder in enumerate(folders):
        train_cards(folder, seed=context.seed + number, transactions=30_000)
    cache = context.folder / "cache"
    candidate = ServedVersion(*keep(folders[1] / "ensemble", cache))
    topics = Topics()
    with services("kafka", "redis") as (_stack, at):
        bootstrap = str(at.kafka)
        scorer = Scorer(
            context.folder, at, instance="scorer", ensemble=folders[0] / "ensemble",
            arguments=["--cache", str(cache)], sabotage="keep-batches" if context.broken else None,
        )  # fmt: skip
        monitor = Monitor(context.folder, at, folders[0] / "ensemble")
        log = ControlLog(bootstrap, topics.control)
        traffic = _Traffic(bootstrap, context.seed, rate, seconds)
        try:
            scorer.start()
            monitor.start()
            wait_until("the scorer serves", lambda: log.end() > 0, READY_S)
            traffic.start()
            redis = connect(str(at.redis))
            meter = _Meter(context.folder, redis, {"scorer": scorer, "monitor": monitor}, traffic)
            with RecordFollower(bootstrap, topics.scores, client_id="soak", start="beginning") as follower:
                wait_until("it scores", lambda: meter.read_scores(follower) > 0, READY_S, pause_s=0)
                changes = _watch(context, meter, follower, log, candidate, seconds)
                sent = traffic.stop()
                wait_drained(bootstrap, [scorer], timeout_s=DRAIN_S)
                while meter.read_scores(follower):
                    pass
                _judge_keys(result, keys_by_kind(redis), len(traffic.entities))
            result.check("SIGTERM ends scorer and monitor with exit 0", scorer.stop(10) == 0 == monitor.stop(10))
        finally:
            traffic.stop()
            scorer.close()
            monitor.close()
            log.close()
    result.figures |= {"rate": rate, "load_seconds": seconds, "version_changes": changes}
    result.at_least("transactions", sent, (0.95 if seconds >= SHORT_S else 0.5) * rate * seconds)
    result.check("every transaction has one score", meter.scored == sent)
    _judge(result, meter.samples, meter.latencies, seconds)
    return result


def _watch(
    context: Context,
    meter: _Meter,
    follower: RecordFollower,
    log: ControlLog,
    candidate: ServedVersion,
    seconds: float,
) -> int:
    """Read the meters, and promote and roll back in turn, until `seconds` have passed; return the number of changes."""
    history, changes = History(), 0
    every = min(CHANGE_EVERY_S, seconds / 6)
    sampled = printed = 0.0
    while (now := meter.now()) < seconds:
        meter.read_scores(follower)
        if now >= sampled:
            sampled = now + min(SAMPLE_EVERY_S, seconds / 40)
            meter.sample()
        if now >= (changes + 1) * every:
            catch_up(log, history, log.end())
            changes += 1
            entry = submit(log, history, _change(candidate if changes % 2 else None))
            assert not entry.refused, entry.refused
        if now >= printed:
            printed = now + 60
            context.say(meter.line())
    return changes


def _change(version: ServedVersion | None) -> Callable[[int], Command]:
    """Promote `version`, or roll back."""
    return lambda offset: Command(
        ensemble="cards", action="promote" if version else "rollback", who="proof", why="soak",
        at=time.time_ns() // 1_000_000, expected_offset=offset, version=version,
    )  # fmt: skip


class _Traffic:
    """Sends transactions at a rate from its own thread, each with the event time at which it is due, and labels.

    Attributes:
        began_ms: event time of the first transaction.
        entities: field and id of all that were sent, or soon will be.
    """

    def __init__(self, bootstrap: str, seed: int, rate: int, seconds: int) -> None:
        self._bootstrap, self._rate, self._blocks = bootstrap, rate, -(-seconds // BLOCK_S)
        self._most = rate * seconds
        config = SimulationConfig(
            seed=seed, customers=CUSTOMERS, terminals=TERMINALS, days=None, transactions=rate * BLOCK_S,
        )  # fmt: skip
        self._pattern = generate(config)
        self._rng = np.random.default_rng(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._error: BaseException | None = None
        self.sent = 0
        self.began_ms = 0
        self.entities: set[tuple[str, str]] = set()

    def start(self) -> None:
        """Begin."""
        self.began_ms = time.time_ns() // 1_000_000 + 500
        self._thread.start()

    def stop(self) -> int:
        """End, and return how many transactions were sent."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error
        return self.sent

    def _run(self) -> None:
        topics, clock = Topics(), SystemClock()
        try:
            with OpenLoopProducer(self._bootstrap, client_id="soak", clock=clock, sleep=time.sleep) as producer:
                labels: Iterator[tuple[bytes, bytes]] = iter(())
                for block in range(self._blocks):
                    transactions = self._block(block)
                    for field_ in ("customer_id", "terminal_id", "device_id", "network_id"):
                        ids = set(getattr(transactions, field_).tolist()) - {None}
                        self.entities |= {(field_, name) for name in ids}
                    keys, values = encode_keys(transactions.customer_id), encode_values(transactions)
                    for low in range(0, len(keys), self._rate // 50):
                        due_ms = int(transactions.event_time[low])
                        if self._stop.wait(max(due_ms / 1e3 - time.time(), 0)) or self.sent >= self._most:
                            return
                        high = low + self._rate // 50
                        producer.publish(topics.transactions, keys[low:high], values[low:high])
                        self.sent += len(keys[low:high])
                        if due := list(islice(labels, max(self._rate // 50 // LABELLED, 1))):
                            producer.publish(topics.labels, [key for key, _ in due], [value for _, value in due])
                    labels = self._labels(transactions)
        except BaseException as error:  # carried to the proof's own thread
            self._error = error

    def _block(self, block: int) -> Transactions:
        """The pattern with the ids and times of this minute."""
        n = len(self._pattern)
        first = self.began_ms + block * BLOCK_S * 1_000
        return replace(
            self._pattern,
            event_id=np.array([f"soak-{block}-{i}" for i in range(n)], dtype=object),
            event_time=first + np.arange(n) * 1_000 // self._rate,
            customer_id=_living(self._pattern.customer_id, block),
            terminal_id=_living(self._pattern.terminal_id, block),
        )

    def _labels(self, transactions: Transactions) -> Iterator[tuple[bytes, bytes]]:
        """Key and value of a label for every `LABELLED`-th transaction, made when it is sent."""
        encode = msgspec.json.Encoder().encode
        for i in range(0, len(transactions), LABELLED):
            customer = str(transactions.customer_id[i])
            kind = "fraud" if transactions.fraud_kind[i] else "genuine"
            label = Label(
                str(transactions.event_id[i]), int(transactions.event_time[i]), kind, time.time_ns() // 1_000_000,
                "analyst", customer, str(transactions.terminal_id[i]),
                transactions.device_id[i], transactions.network_id[i],
            )  # fmt: skip
            yield customer.encode(), encode(label)


def _living(ids: NDArray[Any], block: int) -> NDArray[Any]:
    """The ids of those that live in a block: each block, one in `LIFE_BLOCKS` has been replaced by a new one."""
    names, place = np.unique(ids.astype(str), return_inverse=True)
    generation = (block + np.arange(len(names))) // LIFE_BLOCKS
    living = np.array([f"{name}-{g}" for name, g in zip(names, generation.tolist(), strict=True)], dtype=object)
    return living[place]


class _Meter:
    """Reads processes, Redis, disk and latencies."""

    def __init__(self, folder: Path, redis: Any, processes: dict[str, Scorer], traffic: _Traffic) -> None:
        self._folder, self._redis, self._processes, self._traffic = folder, redis, processes, traffic
        self._event_time = msgspec.json.Decoder(_EventTime).decode
        self.scored = 0
        self.samples: list[Sample] = []
        self.latencies = Latencies()

    def now(self) -> float:
        """Seconds since the start of the load."""
        return time.time() - self._traffic.began_ms / 1e3

    def read_scores(self, follower: RecordFollower) -> int:
        """Take what arrives within half a second, return how many scores that were, and measure one in eight."""
        records = follower.poll(2_000, 0.5)
        self.scored += len(records)
        due = np.array([self._event_time(r.value or b"").event_time for r in records[::8]], dtype=np.int64)
        published = np.array([r.timestamp_ms for r in records[::8]], dtype=np.int64)
        self.latencies.at.append((due - self._traffic.began_ms) / 1e3)
        self.latencies.ms.append(published - due)
        return len(records)

    def sample(self) -> None:
        """One reading of everything else."""
        for process in self._processes.values():
            process.require_running()
        status = {name: _status(process.pid) for name, process in self._processes.items()}
        self.samples.append(
            Sample(
                self.now(),
                self.scored,
                {name: fields["VmRSS"] * 1_024 for name, fields in status.items()},
                {name: len(list(Path(f"/proc/{p.pid}/fd").iterdir())) for name, p in self._processes.items()},
                {name: fields["Threads"] for name, fields in status.items()},
                int(self._redis.info("memory")["used_memory"]),
                int(self._redis.dbsize()),
                len(self._traffic.entities),
                self._bytes_per_key(),
                sum(p.stat().st_size for name in ("monitor", "cache") for p in _files(self._folder / name)),
            )
        )

    def _bytes_per_key(self) -> float:
        pipeline = self._redis.pipeline(transaction=False)
        for _ in range(KEYS_SAMPLED):
            pipeline.randomkey()
        keys = [key for key in pipeline.execute() if key is not None]
        for key in keys:
            pipeline.memory_usage(key)
        used = [bytes_ for bytes_ in pipeline.execute() if bytes_ is not None] if keys else []
        return float(np.mean(used)) if used else 0.0

    def line(self) -> str:
        """The last reading, for people."""
        s = self.samples[-1]
        recent = self.latencies.between(s.at - 60, s.at)
        return (
            f"{s.at:,.0f} s: {s.scored:,} scored, "
            + ", ".join(f"{name} {used / MIB:,.0f} MiB" for name, used in s.memory.items())
            + f", Redis {s.redis / MIB:,.0f} MiB in {s.keys:,} keys, disk {s.disk / MIB:,.0f} MiB"
            + (f", p99 {np.percentile(recent, 99):,.0f} ms" if len(recent) else "")
        )


class _EventTime(msgspec.Struct):
    event_time: int


def _status(pid: int) -> dict[str, int]:
    lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: int(value.split()[0]) for name, _, value in lines if name in ("VmRSS", "Threads")}


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []


def _judge(result: Result, samples: list[Sample], latencies: Latencies, seconds: float) -> None:
    """Compare the last quarter of the run with the second one."""
    before = [s for s in samples if seconds / 4 <= s.at < seconds / 2]
    after = [s for s in samples if s.at >= 3 * seconds / 4]
    result.at_least("samples_per_quarter", min(len(before), len(after)), 2)
    # In a short run, what the start left to do falls into the quarters that are compared.
    slack = 1 if seconds >= SHORT_S else 4
    if not before or not after:
        return
    hours = (np.mean([s.at for s in after]) - np.mean([s.at for s in before])) / 3_600
    for name in samples[0].memory:
        used = [float(np.median([s.memory[name] for s in part])) / MIB for part in (before, after)]
        result.figures[f"{name}_mib"] = [
            round(used[0], 1),
            round(used[1], 1),
            round(max(s.memory[name] for s in samples) / MIB),
        ]
        allowed = MEMORY_MIB + MEMORY_MIB_PER_HOUR * hours
        result.check(f"{name}: memory grows by at most {allowed:.0f} MiB", used[1] - used[0] <= allowed)
        for what, most in (("descriptors", DESCRIPTORS * slack), ("threads", THREADS * slack)):
            low, high = (max(getattr(s, what)[name] for s in part) for part in (before, after))
            result.figures[f"{name}_{what}"] = [low, high]
            result.check(f"{name}: at most {most} {what} more", high - low <= most)
    _judge_redis(result, before, after)
    scored = after[-1].scored - before[0].scored
    per_transaction = (after[-1].disk - before[0].disk) / max(scored, 1)
    result.figures["disk_bytes_per_transaction"] = round(per_transaction)
    if seconds >= SHORT_S:  # before, the database's own log counts for most
        result.check(
            f"disk: at most {DISK_BYTES_PER_TRANSACTION} bytes per transaction",
            per_transaction <= DISK_BYTES_PER_TRANSACTION,
        )
    first, last = latencies.between(WARM_UP_S, seconds / 4), latencies.between(3 * seconds / 4, seconds)
    result.at_least("latencies_measured_per_quarter", min(len(first), len(last)), 20)
    p99 = [float(np.percentile(part, 99)) for part in (first, last)]
    result.figures["p99_ms_first_and_last_quarter"] = p99
    if seconds >= SHORT_S:
        result.check(
            f"p99 of the last quarter is at most {P99_TIMES:g} times that of the first", p99[1] <= P99_TIMES * p99[0]
        )


def keys_by_kind(redis: Any) -> dict[str, tuple[int, int]]:
    """Number and bytes of the keys of Redis, by kind; bytes of rows are not measured."""
    found = {"rows": (0, 0), "witnesses": (0, 0), "others": (0, 0)}
    keys: list[bytes] = []
    for key in redis.scan_iter(count=5_000):
        if b"stream-scorer:rows:" in key and b":r:" in key:
            found["rows"] = (found["rows"][0] + 1, 0)
        else:
            keys.append(key)
    for low in range(0, len(keys), 5_000):
        pipeline = redis.pipeline(transaction=False)
        for key in keys[low : low + 5_000]:
            pipeline.memory_usage(key)
        for key, used in zip(keys[low : low + 5_000], pipeline.execute(), strict=True):
            kind = "witnesses" if b":seen:" in key else "others"
            found[kind] = (found[kind][0] + 1, found[kind][1] + (used or 0))
    return found


def _judge_keys(result: Result, kinds: dict[str, tuple[int, int]], entities: int) -> None:
    """At the end there is at most one row for each entity, and the other keys are small."""
    result.figures |= {"redis_keys_by_kind": kinds, "entities": entities}
    result.check("Redis: at most one row for each entity", 0 < kinds["rows"][0] <= entities)
    others = (kinds["witnesses"][1] + kinds["others"][1]) / MIB
    result.check(f"Redis: keys that are no rows have at most {OTHERS_MIB:.0f} MiB", others <= OTHERS_MIB)


def _judge_redis(result: Result, before: list[Sample], after: list[Sample]) -> None:
    """Redis uses a limited number of bytes per key, and a limited share of its memory outside of keys."""
    per_key = [float(np.median([s.redis / max(s.keys, 1) for s in part])) for part in (before, after)]
    outside = [float(np.median([1 - s.per_key * s.keys / s.redis for s in part])) for part in (before, after)]
    result.figures["redis_bytes_per_key"] = [round(b) for b in per_key]
    result.figures["redis_share_outside_keys"] = [round(share, 3) for share in outside]
    result.figures["redis_keys"] = after[-1].keys
    result.check(
        f"Redis: at most {REDIS_BYTES_PER_KEY:,} bytes per key, and {REDIS_SHARE_OUTSIDE_KEYS:.0%} outside of keys",
        per_key[1] <= REDIS_BYTES_PER_KEY and outside[1] <= REDIS_SHARE_OUTSIDE_KEYS,
    )
    others = max(s.keys - s.entities for s in after)
    grown = float(np.median([s.redis for s in after]) - np.median([s.redis for s in before]))
    new = after[-1].entities - before[0].entities
    result.figures |= {"redis_keys_above_entities": others, "redis_bytes_per_new_entity": round(grown / max(new, 1))}
    result.check(f"Redis: at most {OTHER_KEYS:,} keys more than entities", others <= OTHER_KEYS)
    result.check(
        f"Redis: grows by at most {REDIS_BYTES_PER_NEW_ENTITY:,} bytes for each new entity",
        grown <= REDIS_BYTES_PER_NEW_ENTITY * new + REDIS_GROWTH_MIB * MIB,
    )
