"""What a storm acts on: a broker, two Redis servers behind a proxy, the processes, the traffic, and an operator."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis

from proofs.control_race import Answer
from proofs.kit import Monitor, Scorer
from proofs.memory_run import Parts
from proofs.storm_fleet import Fleet, Managed
from proofs.storm_proxy import Proxy
from proofs.storm_traffic import Traffic
from stream_scorer.control.commands import catch_up, submit
from stream_scorer.control.state import History
from stream_scorer.ensemble.manifest import member_key, read_manifest
from stream_scorer.ensemble.registry import keep
from stream_scorer.ensemble.reweigh import reweigh
from stream_scorer.kafka.control_log import ControlLog
from stream_scorer.kafka.topics import TopicAdmin, Topics
from stream_scorer.records import Command, DisabledMember, ServedVersion
from stream_scorer.stack import LocalStack, StackAddresses
from stream_scorer.stack.ports import LOOPBACK
from stream_scorer.state.client import connect

PARTITIONS = 4
SCORERS = ("one", "two", "three")
# Versions that can be loaded, besides the one that serves at first.
VERSIONS = 5
ABSENT = ServedVersion("local-000000000000", "0" * 64)
# Lengths of the monitor's windows in panes.
WINDOWS = (1, 4)
# What the processes are run with: see `proofs.sabotage.handicap`.
SLOW_VERSION, SLOW_S, CLOCK_SKEW_MS = "STORM_SLOW_VERSION", "STORM_SLOW_S", "STORM_CLOCK_SKEW_MS"
_REDIS_FAULTS = {
    "maxmemory": "0",
    "min-replicas-to-write": "0",
    "save": "",
    "stop-writes-on-bgsave-error": "no",
}


class Service:
    """A Kafka or Redis of its own stack, whose calls come one after another."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stack = LocalStack((name,))
        self._lock = threading.Lock()

    def start(self) -> str:
        """Start, and return the address."""
        return str(self._stack.start().addresses.get(self._name))

    def close(self) -> None:
        """End it."""
        self._stack.close()

    @property
    def log(self) -> Path:
        """Its log; it exists until `close`."""
        return self._stack.logs / f"{self._name}.log"

    @property
    def pid(self) -> int | None:
        """Its process id; None if it does not run."""
        return self._stack.pids.get(self._name)

    def restart(self) -> None:
        """`kill -9`, and start again."""
        with self._lock:
            self._stack.restart(self._name, kill=True)

    @contextmanager
    def down(self, *, kill: bool) -> Iterator[None]:
        """Stop it for the time of the block."""
        with self._lock:
            self._stack.stop_service(self._name, kill=kill)
            try:
                yield
            finally:
                self._stack.start_service(self._name)

    def heal(self) -> None:
        """Make it run."""
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGCONT)
        with self._lock:
            self._stack.start_service(self._name)


class RedisPair:
    """Two Redis servers, of which the proxy reaches one."""

    def __init__(self) -> None:
        self.servers = [Service("redis"), Service("redis")]
        self._ports: list[int] = []
        self._primary = 0
        self._lock = threading.Lock()
        self.proxy: Proxy

    def start(self) -> None:
        """Start both, and the proxy."""
        self._ports = [urlsplit(server.start()).port or 0 for server in self.servers]
        self.proxy = Proxy(self._ports[0])

    def close(self) -> None:
        """End everything."""
        self.proxy.close()
        for server in self.servers:
            server.close()

    @property
    def url(self) -> str:
        """The address of the proxy."""
        return f"redis://{LOOPBACK}:{self.proxy.port}/0"

    @property
    def service(self) -> Service:
        """The server that the proxy reaches."""
        return self.servers[self._primary]

    def client(self, timeout_s: float = 5.0) -> Any:
        """A client of that server, past the proxy."""
        return self._client_of(self._primary, timeout_s)

    @contextmanager
    def failing_over(self) -> Iterator[None]:
        """Replicate during the block, and make the replica the primary at its end."""
        with self._lock:
            old, new = self._primary, 1 - self._primary
            replica = self._client_of(new, 5.0)
            replica.execute_command("REPLICAOF", LOOPBACK, str(self._ports[old]))
            try:
                yield
                if replica.info("replication").get("master_link_status") != "up":
                    raise redis.ConnectionError("the replica is not in sync")
            finally:
                replica.execute_command("REPLICAOF", "NO", "ONE")
            self._primary, self.proxy.target = new, self._ports[new]
            self.proxy.reset()

    def heal(self) -> None:
        """Make both run without any fault."""
        self.proxy.delay_s = 0.0
        self.proxy.resume()
        for index, server in enumerate(self.servers):
            server.heal()
            client = self._client_of(index, 10.0)
            client.execute_command("REPLICAOF", "NO", "ONE")
            for name, value in _REDIS_FAULTS.items():
                client.config_set(name, value)

    def _client_of(self, index: int, timeout_s: float) -> Any:
        return connect(f"redis://{LOOPBACK}:{self._ports[index]}/0", timeout_s=timeout_s)


class Operator:
    """Submits commands, and keeps the answers. Several threads may use it at once."""

    def __init__(self, bootstrap: str, versions: Sequence[ServedVersion], member: DisabledMember) -> None:
        self._bootstrap = bootstrap
        self.versions, self.member = versions, member
        self.answers: list[Answer] = []
        self._lock = threading.Lock()

    def submit(self, action: Any, who: str, **more: Any) -> bool:
        """Submit one command; whether it counts. Raises BrokerUnavailable, if it may or may not be in the log."""
        log, history = ControlLog(self._bootstrap, Topics().control), History()
        try:
            catch_up(log, history, log.end())

            def make(offset: int) -> Command:
                # The author's clock, which decides nothing.
                at = (0, offset, 1 << 50)[offset % 3]
                return Command(
                    ensemble="cards", action=action, who=who, why="storm", at=at, expected_offset=offset, **more
                )

            entry = submit(log, history, make)
        finally:
            log.close()
        with self._lock:
            self.answers.append(Answer(who, entry.offset, not entry.refused))
        return not entry.refused

    def settle(self) -> int:
        """Make a version champion that can be loaded; returns the offset of the command."""
        for _ in range(20):
            for version in self.versions[:VERSIONS]:
                if self.submit("promote", "last", version=version):
                    return max(answer.offset for answer in self.answers)
        raise AssertionError("no version could be promoted")


class World:
    """Everything together; a context manager."""

    def __init__(self, folder: Path, parts: Parts, seed: int, rate: int, duration_ms: int, sabotage: str) -> None:
        self.folder, self.parts = folder, parts
        self.spec, self.ensemble, self.cache = folder / "cards.yaml", folder / "small", folder / "cache"
        self.kafka, self.redis = Service("kafka"), RedisPair()
        self._seed, self._rate, self._duration_ms = seed, rate, duration_ms
        self._sabotage = sabotage
        self.seconds = duration_ms / 1_000
        # Every second seed has its rows in shards.
        count = 1 + seed % 2
        self.sharding = parts.engine.sharding(count) if count > 1 else None
        self.shards = ("--shards", str(count))
        self._lifetime = ExitStack()
        self.bootstrap: str
        self.traffic: Traffic
        self.fleet: Fleet
        self.operator: Operator

    def __enter__(self) -> World:
        with self._lifetime as lifetime:
            self.bootstrap = self.kafka.start()
            lifetime.callback(self.kafka.close)
            self.redis.start()
            lifetime.callback(self.redis.close)
            TopicAdmin(self.bootstrap).create_all(Topics(), PARTITIONS)
            versions = self._versions()
            manifest = read_manifest(self.ensemble)
            member = manifest.members[0]
            self.operator = Operator(self.bootstrap, versions, DisabledMember(member.name, member_key(member)))
            self.traffic = Traffic(self.bootstrap, self._seed, self._rate, self._duration_ms, PARTITIONS)
            slow = {SLOW_VERSION: versions[VERSIONS].version, SLOW_S: "5"}
            self.fleet = Fleet([*(self._scorer(name, slow) for name in SCORERS), self._monitor(slow)])
            lifetime.callback(self.fleet.close)
            self._lifetime = lifetime.pop_all()
        return self

    def __exit__(self, *_error: object) -> None:
        self._lifetime.close()

    @property
    def addresses(self) -> StackAddresses:
        """As the product has them: Redis behind the proxy."""
        return StackAddresses(kafka=self.bootstrap, redis=self.redis.url)

    def _versions(self) -> list[ServedVersion]:
        """`VERSIONS` that load at once, one that loads slowly, one with an altered file, and one that nobody has."""
        found = []
        for number in range(VERSIONS + 2):
            folder = self.folder / f"v{number}"
            reweigh(self.ensemble, {"a": 0.3 + number / 7}, folder, number)
            found.append(ServedVersion(*keep(folder, self.cache)))
        digest = found[-1].manifest_sha256
        for path in (self.cache / "sha256" / digest, self.cache / "ensembles" / digest / "manifest.json"):
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.unlink()  # a link to the same bytes may be elsewhere
            path.write_bytes(data)
        return [*found, ABSENT]

    def _scorer(self, name: str, environment: Mapping[str, str]) -> Managed:
        scorer = Scorer(
            self.folder,
            self.addresses,
            instance=name,
            ensemble=self.ensemble,
            spec=self.spec,
            arguments=["--cache", str(self.cache), "--explain-alerts", "2", *self.shards],
            sabotage=self._sabotage,
            environment=environment,
        )
        return Managed(scorer, wanted=name == "one")

    def _monitor(self, environment: Mapping[str, str]) -> Managed:
        arguments = ["--cache", str(self.cache), "--emit-every", "1", "--mode", "auto", "--probation", "4000"]
        arguments += [word for panes in WINDOWS for word in ("--window", str(panes))]
        monitor = Monitor(
            self.folder,
            self.addresses,
            self.ensemble,
            spec=self.spec,
            arguments=arguments,
            sabotage="handicap",
            # When its disk is full, Python 3.11 would leave cut bytecode files, on which later imports fail.
            environment={**environment, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        return Managed(monitor, wanted=True)

    def heal(self) -> None:
        """End every fault that an action may have left."""
        self.fleet.heal()
        self.kafka.heal()
        self.redis.heal()


def log_has(path: Path, word: str) -> bool:
    """Whether a log contains a word."""
    return path.exists() and word in path.read_text(errors="replace")
