"""What proofs share: the real stack, a trained ensemble, scorers as processes, whole topics as columns."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient  # type: ignore[attr-defined]

from stream_scorer.bench.material import CARDS_SPEC, train_cards_ensemble
from stream_scorer.clock import SystemClock
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.manifest import Manifest, read_manifest
from stream_scorer.kafka.config import client_config, consumer_config
from stream_scorer.kafka.open_loop import OpenLoopProducer, Schedule
from stream_scorer.kafka.topics import TopicAdmin, Topics
from stream_scorer.records import LineageRow
from stream_scorer.serde.lineage import LineageBatch
from stream_scorer.spec import CheckedSpec, load_spec
from stream_scorer.stack import LocalStack, StackAddresses
from stream_scorer.state.client import connect

ROOT = Path(__file__).resolve().parent.parent
PARENT_DEATH = ROOT / "stream_scorer" / "stack" / "parent_death.py"
WORK = ROOT / ".stream-scorer"
# Environment variable: addresses of services to share, as a JSON object by service.
SHARED_STACK = "PROOF_SHARED_STACK"
# Environment variable: a folder of trained ensembles that processes share.
TRAINED = "PROOF_TRAINED"
EMPTY_TIMEOUT_S = 90
# A broker that starts on busy cores loads its groups for as long.
GROUP_OFFSETS_S = 90


@dataclass(slots=True)
class Context:
    """What a proof runs with: `seed`, `n` (None: the proof's own), `broken` (BREAK=1), and the folder to work in."""

    seed: int
    n: int | None
    broken: bool
    folder: Path
    say: Callable[[str], None]


@dataclass(slots=True)
class Result:
    """Checks by name (all must hold) and the figures that make them meaningful.

    Attributes:
        costs: those of the checks that limit time. A small run on a busy machine cannot judge them.
    """

    checks: dict[str, bool] = field(default_factory=dict)
    costs: set[str] = field(default_factory=set)
    figures: dict[str, Any] = field(default_factory=dict)
    _must_fail: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether all checks hold. With BREAK=1 also if a check of `must_fail` holds, because it misses the break."""
        return bool(self.checks) and (all(self.checks.values()) or bool(self.unnoticed))

    @property
    def unnoticed(self) -> list[str]:
        """The checks that hold although `must_fail` names them; none if the proof ended before it checked any."""
        return [name for name in self._must_fail if self.checks.get(name, True)]

    def must_fail(self, *names: str) -> None:
        """With BREAK=1: name the checks that must fail. If one of them holds, the proof does not notice the break."""
        self._must_fail += names

    def failed(self, *, but_costs: bool = False) -> list[str]:
        """The checks that do not hold; with `but_costs`, without those in `costs`."""
        return [name for name, holds in self.checks.items() if not holds and not (but_costs and name in self.costs)]

    def check(self, name: str, holds: bool, *, cost: bool = False) -> None:
        """Note whether `name` holds. With `cost`, it is one of `costs`."""
        self.checks[name] = bool(holds)
        if cost:
            self.costs.add(name)

    def at_least(self, name: str, value: float, minimum: float) -> None:
        """Note a figure that must reach `minimum` for the proof to mean anything."""
        self.figures[name] = value
        self.check(f"{name} >= {minimum:g}", value >= minimum)


class DataMissing(Exception):
    """A proof cannot run here because data that are not part of the project are absent. It neither holds nor fails."""

    EXIT_CODE = 77


def say(text: str) -> None:
    """Progress on stderr."""
    print(f"  {text}", file=sys.stderr, flush=True)


@contextmanager
def services(*names: str, partitions: int = 4) -> Iterator[tuple[LocalStack, StackAddresses]]:
    """A fresh stack of real parts, its topics created; everything ends with the block.

    `make prove-all` offers some proofs services that other proofs have used. They are emptied first, and go on running
    after the block; the stack that is given then is not started and cannot stop or restart them.
    """
    names = names or ("kafka", "redis")
    offered = json.loads(os.environ.get(SHARED_STACK) or "{}")
    if set(names) <= offered.keys():
        at = StackAddresses(**{name: offered[name] for name in names})
        empty(at)
        if at.kafka:
            TopicAdmin(at.kafka).create_all(Topics(), partitions)
        yield LocalStack(services=names), at
        return
    with LocalStack(services=names) as stack:
        if stack.addresses.kafka:
            TopicAdmin(stack.addresses.kafka).create_all(Topics(), partitions)
        yield stack, stack.addresses


def empty(at: StackAddresses) -> None:
    """Delete all topics, consumer groups, keys and registered models."""
    if at.kafka:
        admin = AdminClient(client_config(at.kafka, "proof-admin"))
        # Members that were killed stay in their group until their session ends.
        wait_until("consumer groups are deleted", lambda: _no_groups(admin), EMPTY_TIMEOUT_S)
        wait_until("topics are deleted", lambda: _no_topics(admin), EMPTY_TIMEOUT_S)
    if at.redis:
        connect(at.redis).flushall()
    if at.mlflow:
        from mlflow import MlflowClient

        registry = MlflowClient(at.mlflow, at.mlflow)
        for model in registry.search_registered_models():
            registry.delete_registered_model(model.name)


def _no_groups(admin: AdminClient) -> bool:
    groups = [group.group_id for group in admin.list_consumer_groups(request_timeout=10).result().valid]
    for deleted in (admin.delete_consumer_groups(groups, request_timeout=10) if groups else {}).values():
        with suppress(KafkaException):  # looked at again
            deleted.result()
    return not groups


def _no_topics(admin: AdminClient) -> bool:
    topics = [name for name in admin.list_topics(timeout=10).topics if not name.startswith("__")]
    for deleted in (admin.delete_topics(topics, request_timeout=10) if topics else {}).values():
        with suppress(KafkaException):
            deleted.result()
    return not topics


def cards() -> CheckedSpec:
    """The simulator's spec."""
    return load_spec(CARDS_SPEC)


def train_cards(folder: Path, *, seed: int, transactions: int = 60_000) -> Manifest:
    """The five default members, trained on a simulated history, in ``folder/ensemble``; the history beside it.

    What `TRAINED` holds already for the same seed and size is copied; training gives the same bytes.
    """
    if not (folder / "ensemble" / "manifest.json").exists():  # the scaled-down forms share one
        kept = os.environ.get(TRAINED)
        if kept:
            shutil.copytree(_kept_cards(Path(kept), seed, transactions), folder, dirs_exist_ok=True)
        else:
            train_cards_ensemble(folder, seed=seed, transactions=transactions)
    return read_manifest(folder / "ensemble")


def _kept_cards(kept: Path, seed: int, transactions: int) -> Path:
    """What training left in `kept`, done by the first process that asks for it."""
    place = kept / f"{seed}-{transactions}"
    kept.mkdir(parents=True, exist_ok=True)
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            unfinished = place.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            train_cards_ensemble(unfinished, seed=seed, transactions=transactions)
            unfinished.rename(place)
    return place


class Scorer:
    """`stream-scorer run` as a process of its own, tied to this one's life. Logs go to ``<folder>/<instance>.log``."""

    def __init__(
        self,
        folder: Path,
        addresses: StackAddresses,
        *,
        instance: str,
        ensemble: Path | str | None,
        spec: Path = CARDS_SPEC,
        arguments: Sequence[str] = (),
        sabotage: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        module = ["proofs.sabotage", sabotage] if sabotage else ["stream_scorer.cli.main"]
        command = [sys.executable, "-m", *module, "run", "--instance", instance, "--metrics-port", "-1"]
        command += ["--bootstrap", str(addresses.kafka), "--redis", str(addresses.redis), "--spec", str(spec)]
        command += ["--ensemble", str(ensemble)] if ensemble else ["--passthrough"]
        self.instance = instance
        self.log = folder / f"{instance}.log"
        self._command = die_with_parent([*command, *arguments])
        own = {"PYTHONPATH": str(ROOT), "STREAM_SCORER_CACHE_DIR": str(folder / "cache")}
        self._environment = dict(os.environ) | own | dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it (again)."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=self._environment, cwd=ROOT)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Its exit code, or the negative number of the signal that ended it; None if it runs, or never ran."""
        return self._process.poll() if self._process is not None else None

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def set_environment(self, more: Mapping[str, str]) -> None:
        """Add environment variables, from the next start on."""
        self._environment |= more

    def kill(self) -> None:
        """`kill -9`."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self, timeout_s: float = 15.0) -> int:
        """SIGTERM, and its exit code; a scorer that does not end in time is killed and answers -9."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def close(self) -> None:
        """End it if it still runs, also after an exception."""
        if self.running:
            self.kill()

    def require_running(self) -> None:
        """Raise with the end of its log if it has ended."""
        if not self.running:
            tail = self.log.read_text(errors="replace").splitlines()[-12:]
            raise AssertionError(f"{self.instance} ended by itself:\n" + "\n".join(tail))


class Monitor(Scorer):
    """`stream-scorer monitor` as a process of its own; its log is ``<folder>/<instance>.log``."""

    def __init__(
        self,
        folder: Path,
        addresses: StackAddresses,
        ensemble: Path,
        *,
        spec: Path = CARDS_SPEC,
        instance: str = "monitor",
        arguments: Sequence[str] = (),
        sabotage: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        module = ["proofs.sabotage", sabotage] if sabotage else ["stream_scorer.cli.main"]
        command = [sys.executable, "-m", *module, "monitor", "--metrics-port", "-1"]
        command += ["--bootstrap", str(addresses.kafka), "--redis", str(addresses.redis), "--spec", str(spec)]
        command += ["--ensemble", str(ensemble), "--state-dir", str(folder / "monitor")]
        self.instance = instance
        self.log = folder / f"{instance}.log"
        self._command = die_with_parent([*command, *arguments])
        self._environment = dict(os.environ) | {"PYTHONPATH": str(ROOT)} | dict(environment or {})
        self._process = None


class Load:
    """Sends transactions at `rate` per second from its own thread, until `stop` is called or none are left."""

    def __init__(self, bootstrap: str, topic: str, keys: Sequence[bytes], values: Sequence[bytes], rate: int) -> None:
        self._bootstrap, self._topic, self._keys, self._values, self._rate = bootstrap, topic, keys, values, rate
        self._most = len(keys)
        self._sent = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.start = self._thread.start

    def stop(self, least: int = 0) -> int:
        """Stop once `least` are sent; answers how many were."""
        while self._sent < least and self._thread.is_alive():
            time.sleep(0.01)
        self._most = 0
        if self._thread.ident is not None:
            self._thread.join()
        return self._sent

    def _run(self) -> None:
        schedule, step = Schedule(self._rate, SystemClock()), self._rate // 50
        with OpenLoopProducer(self._bootstrap, client_id="load", clock=SystemClock(), sleep=time.sleep) as producer:
            while self._sent < self._most:
                due = schedule.due(self._sent, min(step, self._most - self._sent))
                if due:
                    low, high = self._sent, self._sent + due
                    producer.publish(self._topic, self._keys[low:high], self._values[low:high])
                    self._sent = high
                time.sleep(schedule.pause_s(self._sent) if due < step else 0)


def die_with_parent(command: list[str]) -> list[str]:
    """`command`, ended by the kernel if this process dies."""
    return [sys.executable, "-I", "-S", str(PARENT_DEATH), str(os.getpid()), "exec", *command]


class Ends:
    """Log ends of a topic, as committed readers and as the broker itself see them."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._topic = topic
        self._committed = Consumer(consumer_config(bootstrap, "ends-committed", "ends"))
        self._all = Consumer(consumer_config(bootstrap, "ends-all", "ends") | {"isolation.level": "read_uncommitted"})
        self._partitions = sorted(self._all.list_topics(topic, 10).topics[topic].partitions)

    def committed(self) -> int:
        """Sum of the last stable offsets; control records count."""
        return sum(self._ends(self._committed))

    def written(self) -> int:
        """Sum of the high watermarks."""
        return sum(self._ends(self._all))

    def transaction_open(self) -> bool:
        """Whether some record is written and not yet committed or aborted."""
        return self.written() > self.committed()

    def close(self) -> None:
        self._committed.close()
        self._all.close()

    def _ends(self, consumer: Consumer) -> list[int]:
        return [consumer.get_watermark_offsets(TopicPartition(self._topic, p), 10)[1] for p in self._partitions]


@dataclass(slots=True)
class TopicContent:
    """Every record of a topic, in offset order within each partition."""

    partition: list[int]
    offset: list[int]
    key: list[bytes | None]
    value: list[bytes | None]
    timestamp: list[int]
    headers: list[dict[str, bytes | None]]

    def __len__(self) -> int:
        return len(self.value)

    def decode(self, kind: type[Any]) -> list[Any]:
        """The values as records of `kind`."""
        decode = msgspec.json.Decoder(kind).decode
        return [decode(value or b"") for value in self.value]


def read_topic(bootstrap: str, topic: str, *, uncommitted: bool = False, timeout_s: float = 90.0) -> TopicContent:
    """Everything on `topic` now, committed or (`uncommitted`) all that was ever written."""
    level = "read_uncommitted" if uncommitted else "read_committed"
    config = consumer_config(bootstrap, "proof-reader", "proof-reader")
    consumer = Consumer(config | {"isolation.level": level, "enable.partition.eof": True})
    out = TopicContent([], [], [], [], [], [])
    try:
        partitions = sorted(consumer.list_topics(topic, 10).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, p, 0) for p in partitions])
        waiting = set(partitions)
        deadline = time.monotonic() + timeout_s
        while waiting:
            if time.monotonic() > deadline:
                raise AssertionError(f"{topic} was not read to its end in {timeout_s:.0f} s")
            for message in consumer.consume(20_000, 0.2):
                if message.error() is not None:
                    waiting.discard(message.partition())
                    continue
                out.partition.append(message.partition())
                out.offset.append(message.offset())
                out.key.append(message.key())
                out.value.append(message.value())
                out.timestamp.append(message.timestamp()[1])
                out.headers.append(dict(message.headers() or ()))
    finally:
        consumer.close()
    order = np.lexsort((out.offset, out.partition)).tolist()
    return TopicContent(
        *([column[i] for i in order] for column in (
            out.partition, out.offset, out.key, out.value, out.timestamp, out.headers
        ))
    )  # fmt: skip


def read_lineage(bootstrap: str, topics: Topics) -> list[LineageRow]:
    """Every row on topic `lineage`, in the order of `contributions`."""
    return [row for value in read_topic(bootstrap, topics.lineage).value for row in LineageBatch(value or b"").rows()]


def publish(bootstrap: str, topic: str, keys: Sequence[bytes], values: Sequence[bytes]) -> None:
    """Put records on `topic`, as fast as the broker takes them, all confirmed."""
    with OpenLoopProducer(bootstrap, client_id="proof", clock=SystemClock(), sleep=time.sleep) as producer:
        producer.publish(topic, keys, values)


def wait_until(what: str, holds: Callable[[], bool], timeout_s: float, pause_s: float = 0.2) -> None:
    """Wait for `holds`, raising after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:.0f} s in vain: {what}")
        time.sleep(pause_s)


def group_offsets(bootstrap: str, group: str, topics: Sequence[str]) -> dict[tuple[str, int], int]:
    """Committed offsets of a group, settled transactions only; -1 where nothing is committed."""
    with closing(Consumer(consumer_config(bootstrap, "offsets", group))) as consumer:
        return _committed(consumer, topics)


def _committed(consumer: Consumer, topics: Sequence[str]) -> dict[tuple[str, int], int]:
    deadline = time.monotonic() + GROUP_OFFSETS_S
    wanted = []
    for topic in topics:
        wanted += [TopicPartition(topic, p) for p in sorted(consumer.list_topics(topic, 10).topics[topic].partitions)]
    while True:
        try:
            return {(p.topic, p.partition): max(p.offset, -1) for p in consumer.committed(wanted, 20)}
        except KafkaException:  # a group has no coordinator while it is new, and while a broker starts
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def log_ends(bootstrap: str, topics: Sequence[str]) -> dict[tuple[str, int], int]:
    """High watermarks. A broker that has just come back is given time to lead its partitions."""
    consumer = Consumer(consumer_config(bootstrap, "ends", "ends"))
    deadline = time.monotonic() + 30
    try:
        while True:
            try:
                return {
                    (topic, p): consumer.get_watermark_offsets(TopicPartition(topic, p), 10)[1]
                    for topic in topics
                    for p in sorted(consumer.list_topics(topic, 10).topics[topic].partitions)
                }
            except KafkaException:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
    finally:
        consumer.close()


def wait_drained(
    bootstrap: str,
    scorers: Sequence[Scorer],
    *,
    group: str = "stream-scorer",
    topics: Topics | None = None,
    timeout_s: float,
) -> None:
    """Wait until the group has committed everything on the input topics."""
    names = topics or Topics()
    inputs = [names.transactions, names.labels]
    ends = log_ends(bootstrap, inputs)
    with closing(Consumer(consumer_config(bootstrap, "offsets", group))) as consumer:

        def drained() -> bool:
            for scorer in scorers:
                scorer.require_running()
            done = _committed(consumer, inputs)
            return all(done[place] >= end for place, end in ends.items() if end > 0)

        wait_until("the input is drained", drained, timeout_s)


def recomputes_all(report: Mapping[str, Any], scores: int) -> bool:
    """Whether a report of `verify` covers all `scores`: none different, skipped or without its version."""
    counts = [report.get(name) for name in ("scores", "different", "skipped")]
    return scores > 0 and counts == [scores, 0, 0] and not report.get("unavailable")


def load_ensemble(folder: Path) -> Ensemble:
    """The ensemble that `train_cards` wrote."""
    return Ensemble.load(folder / "ensemble", version="proof")


@contextmanager
def working_folder(slug: str) -> Iterator[Path]:
    """A folder for one run, removed afterwards."""
    WORK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK, prefix=f"proof-{slug}-") as name:
        yield Path(name)
