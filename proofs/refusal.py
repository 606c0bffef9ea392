"""refusal: Redis answers reads and refuses writes, hangs, or breaks connections, under live traffic.

A real scorer on a real Kafka and Redis, one fault after the other: out of memory, READONLY, MISCONF, too few replicas,
a server process that is stopped by a signal, and connections that are closed one at a time. Afterwards every score
without a `degraded` reason must have the features that a recomputation from the log gives, every input must have one
score, and `features check` must exit 0. During each fault scoring goes on as promised (`proofs/throughout.py`).

`N` is the number of transactions per second; each fault lasts `FAULT_S`. Below `SMALL` there is one fault of each kind
(refused writes, a hang, broken connections), of a sixth of that time, a hang of half of it.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import redis

from proofs.kill_once import check_features
from proofs.kit import (
    CARDS_SPEC,
    ROOT,
    Context,
    Load,
    Result,
    Scorer,
    publish,
    read_topic,
    services,
    train_cards,
    wait_drained,
    wait_until,
)
from proofs.memory_run import lacks_features
from proofs.throughout import SMALL as SMALL_PROMISE
from proofs.throughout import Promise, check_throughout
from stream_scorer.clock import SystemClock
from stream_scorer.kafka.topics import Topics
from stream_scorer.pipeline.in_flight import MAX_UPDATES
from stream_scorer.records import Score
from stream_scorer.simulate.config import SimulationConfig
from stream_scorer.simulate.encode import encode_keys, encode_values
from stream_scorer.simulate.generate import generate
from stream_scorer.stack import StackAddresses
from stream_scorer.state.client import connect

RATE, FAULT_S = 2_000, 10.0
SMALL = 1_000
# Between two faults the rows must catch up: a gap of 20,000 records takes about two seconds.
RECOVERY_S = 60.0
# Updates in flight bridge a refusal of this many micro-batches without any degraded score (and some at its ends).
BRIDGED = MAX_UPDATES + 10


def run(context: Context) -> Result:
    """See the module."""
    rate = context.n or RATE
    fault_s = FAULT_S if rate >= SMALL else FAULT_S / 6
    faults = FAULTS if rate >= SMALL else {name: FAULTS[name] for name in ONE_OF_EACH}
    lasts = dict.fromkeys(faults, fault_s)
    if rate < SMALL:
        # A shorter hang may end before the first read gives up.
        lasts["hangs"] = FAULT_S / 2
    result = Result()
    train_cards(context.folder, seed=context.seed, transactions=30_000)
    keys, values = _input(context.seed, int(rate * (sum(lasts.values()) + len(faults) * RECOVERY_S + 30)))
    with services("kafka", "redis", partitions=1) as (_, at):
        scorer = Scorer(
            context.folder,
            at,
            instance="scorer",
            ensemble=context.folder / "ensemble",
            sabotage="drop-refused" if context.broken else None,
        )
        scorer.start()
        try:
            publish(str(at.kafka), Topics().transactions, keys[:rate], values[:rate])
            wait_drained(str(at.kafka), [scorer], timeout_s=120)
            load = Load(str(at.kafka), Topics().transactions, keys[rate:], values[rate:], rate)
            load.start()
            spells = _refuse(context, scorer, at, lasts)
            sent = rate + load.stop()
            wait_drained(str(at.kafka), [scorer], timeout_s=120)
            time.sleep(1)
            result.check("SIGTERM ends the scorer with exit 0 in 10 s", scorer.stop(10) == 0)
        finally:
            scorer.close()
        _check(result, at, sent, rate, spells)
    return result


def _refuse(
    context: Context, scorer: Scorer, at: StackAddresses, lasts: dict[str, float]
) -> dict[str, tuple[int, int]]:
    """Cause each fault in turn, for the seconds in `lasts`; returns the spells (epoch ms) in which it was active."""
    client = connect(str(at.redis), timeout_s=30.0)
    rng, clock = random.Random(context.seed), SystemClock()
    spells = {}
    for name, fault_s in lasts.items():
        time.sleep(2)
        scorer.require_running()
        context.say(f"{name} for {fault_s:.1f} s")
        began = clock.now_ms()
        with FAULTS[name](client, rng):
            time.sleep(fault_s)
        spells[name] = began, clock.now_ms()
        # The log names every state the scorer entered; the last one must be ready again.
        wait_until(f"features are ready after {name}", lambda: _last_state(scorer) == "ready", RECOVERY_S)
    return spells


def _last_state(scorer: Scorer) -> str:
    scorer.require_running()
    return last_state(scorer.log)


def last_state(log: Path) -> str:
    """The last state of the features that a scorer's log names; empty if it names none."""
    lines = log.read_text(errors="replace").splitlines()
    entered = [line for line in lines if " -> " in line and "features:" in line]
    return entered[-1].split(" -> ")[1].split(":")[0].split('"')[0].strip() if entered else ""


@contextmanager
def out_of_memory(client: Any, _rng: random.Random) -> Iterator[None]:
    """Writes get OOM."""
    client.config_set("maxmemory", "1mb")
    yield
    client.config_set("maxmemory", "0")


@contextmanager
def read_only(client: Any, _rng: random.Random) -> Iterator[None]:
    """The server becomes a replica of a master that is not there: it answers reads, writes get READONLY."""
    client.execute_command("REPLICAOF", "127.0.0.1", "1")
    yield
    client.execute_command("REPLICAOF", "NO", "ONE")


@contextmanager
def cannot_save(client: Any, _rng: random.Random) -> Iterator[None]:
    """The last snapshot failed: writes get MISCONF."""
    folder = client.config_get("dir")["dir"]
    client.config_set("save", "3600 1")
    client.config_set("dir", "/proc")
    client.bgsave()
    wait_until("the snapshot fails", lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", 10)
    yield
    client.config_set("dir", folder)
    client.config_set("save", "")
    client.config_set("stop-writes-on-bgsave-error", "no")


@contextmanager
def too_few_replicas(client: Any, _rng: random.Random) -> Iterator[None]:
    """Writes get NOREPLICAS."""
    client.config_set("min-replicas-to-write", "1")
    yield
    client.config_set("min-replicas-to-write", "0")


@contextmanager
def hangs(client: Any, _rng: random.Random) -> Iterator[None]:
    """The server process is suspended."""
    pid = client.info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def connections_break(client: Any, rng: random.Random) -> Iterator[None]:
    """Ten times a second one connection is closed by the server."""
    stop = threading.Event()
    own = client.client_id()

    def close_one() -> None:
        while not stop.wait(0.1):
            with suppress(redis.ResponseError, redis.ConnectionError):  # it, or the server, has just gone by itself
                others = [c["id"] for c in client.client_list() if int(c["id"]) != own]
                if others:
                    client.client_kill_filter(_id=rng.choice(others))

    thread = threading.Thread(target=close_one, daemon=True)
    thread.start()
    yield
    stop.set()
    thread.join()


FAULTS: dict[str, Any] = {
    "out of memory": out_of_memory,
    "READONLY": read_only,
    "MISCONF": cannot_save,
    "too few replicas": too_few_replicas,
    "hangs": hangs,
    "connections break": connections_break,
}
# Not every version of Redis refuses scripts for too few replicas, and a broken connection is made again.
MUST_DEGRADE = ("out of memory", "READONLY", "MISCONF", "hangs")
ONE_OF_EACH = ("out of memory", "hangs", "connections break")


def _check(result: Result, at: StackAddresses, sent: int, rate: int, spells: dict[str, tuple[int, int]]) -> None:
    bootstrap = str(at.kafka)
    inputs = read_topic(bootstrap, Topics().transactions)
    scores = read_topic(bootstrap, Topics().scores).decode(Score)
    result.figures["transactions"] = sent
    result.check("one score per input", len(scores) == len(inputs) == sent)
    arrived = np.array(inputs.timestamp[: len(scores)])
    scored_at = np.array([s.scored_at for s in scores])
    degraded = np.array([lacks_features(s) for s in scores])
    reasons = Counter(reason for s in scores for reason in s.degraded)
    result.figures["degraded_by_reason"] = dict(reasons)
    times = arrived, scored_at
    promise = Promise() if rate >= SMALL else SMALL_PROMISE
    for name, (began, ended) in spells.items():
        during = (arrived >= began) & (arrived <= ended)
        check_throughout(result, name, times, (began, ended), promise)
        # All scores of a micro-batch have the same time.
        batches, lacking = len(np.unique(scored_at[during])), int((degraded & during).sum())
        result.figures[name] |= {"batches": batches, "degraded": lacking}
        result.check(f"{name}: traffic comes all the time", during.sum() >= rate * (ended - began) / 4_000)
        if name in MUST_DEGRADE:
            # In a short spell, updates in flight bridge refused writes.
            bridged = rate < SMALL and name != "hangs" and batches <= BRIDGED
            result.check(f"{name}: scores are marked as lacking features", lacking > 0 or bridged)
    live = int(arrived[rate]), int(arrived[-1])
    check_throughout(result, "throughout", times, live, promise)
    without = check_features(result, bootstrap, str(at.redis), ("customer", "terminal", "device", "network"))
    result.figures["scores_without_features"] = without
    result.check("exactly the scores without features are marked as degraded", without == int(degraded.sum()))
    command = [sys.executable, "-m", "stream_scorer.cli.main", "features", "check", "--bootstrap", bootstrap]
    command += ["--redis", str(at.redis), "--spec", str(CARDS_SPEC)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    result.figures["features_check"] = done.stdout.strip().splitlines()[:1]
    result.check("features check exits 0", done.returncode == 0)


def _input(seed: int, n: int) -> tuple[list[bytes], list[bytes]]:
    config = SimulationConfig(seed=seed, customers=n // 60, terminals=n // 200, days=None, transactions=n)
    transactions = generate(config.starting(config.start_to_end_by(SystemClock().now_ms())))
    return encode_keys(transactions.customer_id), encode_values(transactions)
