"""Processes of a benchmark: scorers from the normal command line, and the programs that measure from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import stream_scorer.stack
from stream_scorer.bench.config import BenchConfig
from stream_scorer.bench.material import CARDS_SPEC
from stream_scorer.bench.results import Kind
from stream_scorer.bench.stages import rows_of
from stream_scorer.errors import StreamScorerError
from stream_scorer.stack import LocalStack
from stream_scorer.stack.ports import LOOPBACK, free_port
from stream_scorer.stack.process import spawn, stop, tail

_OUTSIDE = Path(__file__).with_name("outside")
_PARENT_DEATH = Path(stream_scorer.stack.__file__).with_name("parent_death.py")
# A scorer is ready within seconds; without a kernel cache, compilation takes another half a minute.
READY_S = 120.0
STOP_S = 10.0
STACKS_S = 0.5
_STACK_LINES = 150
PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class Bench:
    """The context of a run."""

    config: BenchConfig
    stack: LocalStack
    ensemble: Path
    folder: Path
    progress: Callable[[str], None]

    @property
    def bootstrap(self) -> str:
        """Address of the broker."""
        return str(self.stack.addresses.kafka)


class ScorerProcess:
    """`stream-scorer run` (or ``run --passthrough``), ready when the block begins and ended with it.

    Args:
        profile: the file for the profile of its main thread (`cProfile`), which makes it slower.
    """

    def __init__(self, bench: Bench, kind: Kind, *, prefix: str, group: str, profile: Path | None = None) -> None:
        config, at = bench.config, bench.stack.addresses
        self._url = f"http://{LOOPBACK}:{(port := free_port())}"
        self._log = bench.folder / f"{group}.log"
        # Every relevant setting is a flag, so that the caller's settings file and environment do not affect results.
        profiler = [] if profile is None else ["-m", "cProfile", "-o", str(profile)]
        command = [sys.executable, *profiler, "-m", "stream_scorer.cli.main", "run"]
        command += ["--instance", f"{group}-1", "--group", group]
        command += ["--bootstrap", bench.bootstrap, "--redis", str(at.redis), "--topic-prefix", prefix]
        command += ["--spec", str(CARDS_SPEC), "--ensemble", str(bench.ensemble.resolve()), "--start", "earliest"]
        command += ["--batch", str(config.batch), "--pace-ms", str(config.pace_ms)]
        command += ["--metrics-host", LOOPBACK, "--metrics-port", str(port), "--log-level", "warning"]
        command += ["--cache", str(bench.folder / "cache")]
        command += ["--passthrough"] if kind == "passthrough" else list(config.scorer_arguments)
        self._name = kind
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process = spawn(self._command, log=self._log)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        stop([(self._process, STOP_S)])

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    def require_running(self) -> None:
        """Raise `StreamScorerError` with the last lines of the log if the process has ended."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise StreamScorerError(f"the {self._name} ended unexpectedly:\n{tail(self._log)}")

    def wait_ready(self) -> None:
        """Wait until it owns its partitions. Raises `StreamScorerError` if it ends, or takes too long."""
        deadline = time.monotonic() + READY_S
        while True:
            self.require_running()
            try:
                self._get("/readyz")
                return
            except OSError:  # not listening yet, or 503 for not ready yet
                if time.monotonic() > deadline:
                    raise StreamScorerError(f"the {self._name} was not ready in {READY_S:.0f} s") from None
            time.sleep(PAUSE_S)

    def rows(self) -> float:
        """Number of committed records; 0 while it starts. Raises `StreamScorerError` if the process has ended."""
        self.require_running()
        try:
            return rows_of(self.metrics())
        except OSError:  # not listening yet
            return 0.0

    def diagnostics(self) -> str:
        """The last lines of the log, with a stack trace of every thread."""
        assert self._process is not None
        self._process.send_signal(signal.SIGUSR1)
        time.sleep(STACKS_S)
        return tail(self._log, _STACK_LINES)

    def metrics(self) -> str:
        """The text of ``/metrics``."""
        return self._get("/metrics")

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(self._url + path, timeout=5.0) as response:  # noqa: S310 - our own loopback address
            return str(response.read().decode())


class Program:
    """A program of `outside/` with its pipes: it may print ``ready``, and its last line is JSON."""

    def __init__(self, name: str, arguments: Sequence[object]) -> None:
        self._name = name
        command = [sys.executable, str(_OUTSIDE / f"{name}.py"), *map(str, arguments)]
        die_with_parent = [sys.executable, "-I", "-S", str(_PARENT_DEATH), str(os.getpid()), "exec", *command]
        # One thread: for single rows, the libraries' thread pools only compete for the cores.
        environment = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            die_with_parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def wait_ready(self) -> None:
        """Wait for ``ready``. Raises `StreamScorerError` on any other line."""
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            self._fail()

    def send_line(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def result(self, timeout_s: float) -> Any:
        """Wait for the end and return the result. Raises `StreamScorerError` if it fails or times out."""
        try:
            out, errors = self._process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise StreamScorerError(f"{self._name} did not end in {timeout_s:.0f} s") from None
        if self._process.returncode != 0:
            self._fail(errors)
        return json.loads(out)

    def close(self) -> None:
        """Kill the program if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _fail(self, errors: str = "") -> None:
        if not errors:
            _, errors = self._process.communicate(timeout=10.0)
        raise StreamScorerError(f"{self._name} failed:\n" + "\n".join(errors.splitlines()[-12:]))


@contextmanager
def program(name: str, *arguments: object) -> Iterator[Program]:
    """The program `outside/<name>.py`, ended with the block."""
    started = Program(name, arguments)
    try:
        yield started
    finally:
        started.close()
