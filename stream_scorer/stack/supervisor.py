"""The parent process of the services: starts them, reports when they respond, and stops all of them at its end.

``python -m stream_scorer.stack.supervisor --data-dir DIR [--remove-data] SERVICE...``

The protocol is JSON lines. Output: ``progress``, then ``ready`` or ``error``, then one reply per command. Input:
``stop``, ``start``, ``restart``, ``detach``. The end of the input means that the owner has ended; the supervisor then
stops everything, as on SIGTERM. After ``detach`` only SIGTERM does so. If the supervisor is killed, the kernel kills
its children.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from stream_scorer.errors import StreamScorerError, UnavailableError, UsageError
from stream_scorer.stack.model import STATE_FILE, ProcessId, StackAddresses, StackState, check_services, write_state
from stream_scorer.stack.ports import is_free
from stream_scorer.stack.process import identify, kill_group, spawn, stop, tail
from stream_scorer.stack.services import Service, make_service

_ATTEMPTS = 3
_POLL_SECONDS = 0.05
_OWNER_POLL_SECONDS = 0.5
_PORTS_SECONDS = 5.0
_TAKEN = ("address already in use", "address in use", "failed to bind", "socket server failed to bind")


class Stopped(BaseException):
    """SIGTERM arrived; not an error."""


@dataclass(slots=True)
class _Running:
    process: subprocess.Popen[bytes]
    log: Path
    log_start: int
    begun: float


class Supervisor:
    """Starts, stops and restarts services below one data folder."""

    def __init__(self, names: tuple[str, ...], data_dir: Path, reporter: Reporter) -> None:
        self._data_dir = data_dir
        self._reporter = reporter
        self._services: dict[str, Service] = {name: make_service(name, data_dir) for name in names}
        self._running: dict[str, _Running] = {}

    def start_all(self) -> None:
        """Start all services and wait until they respond. Raises the errors of `start`."""
        for service in self._services.values():
            service.choose_ports()
        # Kafka last, so that the others start while its jars are checked and its storage is formatted.
        for name in sorted(self._services, key=("mlflow", "redis", "kafka").index):
            self._launch(name)
        for name in sorted(self._services, key=("redis", "kafka", "mlflow").index):
            self._await(name, may_move=True)

    def start(self, name: str) -> None:
        """Start one service again, on its port and data. Raises UsageError or UnavailableError."""
        if name in self.pids:
            return
        service = self._service(name)
        if taken := [port for port in service.ports if not is_free(port)]:
            raise service.unavailable(
                f"{name} cannot start again: port {taken[0]} is taken by another process",
                hint="End that process, or start a new stack.",
            )
        self._launch(name)
        self._await(name, may_move=False)

    def stop(self, name: str, *, kill: bool) -> None:
        """Stop one service, with SIGTERM or SIGKILL. A service that does not run is no error."""
        service = self._service(name)
        if running := self._running.pop(name, None):
            if kill:
                kill_group(running.process)
            stop([(running.process, service.stop_seconds)])
            # Processes that the command started were killed too, but may end a little later.
            deadline = time.monotonic() + _PORTS_SECONDS
            while not all(map(is_free, service.ports)) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)

    def stop_all(self) -> None:
        """Stop all services."""
        graces = {name: service.stop_seconds for name, service in self._services.items()}
        stop([(running.process, graces[name]) for name, running in self._running.items()])
        self._running.clear()

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of the running services."""
        return {name: running.process.pid for name, running in self._running.items() if running.process.poll() is None}

    def state(self) -> StackState:
        """The content of the state file."""
        me = identify(os.getpid())
        assert me is not None
        services: dict[str, ProcessId] = {}
        for name, pid in self.pids.items():
            if identity := identify(pid):
                services[name] = identity
        addresses = StackAddresses(**{name: service.address for name, service in self._services.items()})
        return StackState(addresses, me, services, str(self._data_dir))

    def _service(self, name: str) -> Service:
        if name not in self._services:
            raise UsageError(
                f"{name} is not part of this stack", hint=f"It was started with {', '.join(self._services)}."
            )
        return self._services[name]

    def _launch(self, name: str) -> None:
        launch = self._services[name].prepare(self._reporter.progress)
        log = self._data_dir / "logs" / f"{name}.log"
        size = log.stat().st_size if log.exists() else 0
        process = spawn(launch.command, log=log, env=launch.env, has_children=launch.has_children)
        self._running[name] = _Running(process, log, size, time.monotonic())

    def _await(self, name: str, *, may_move: bool) -> None:
        service = self._services[name]
        for attempt in range(1, _ATTEMPTS + 1):
            running = self._running[name]
            if self._answers_in_time(service, running):
                self._reporter.progress(f"{name}: {service.address} after {time.monotonic() - running.begun:.1f} s")
                return
            code = running.process.poll()
            lines = tail(running.log, since=running.log_start)
            self.stop(name, kill=True)
            # The cause may stand before a stack trace, which is longer than what a person sees.
            whole = tail(running.log, 1_000, since=running.log_start).lower()
            taken = any(text in whole for text in _TAKEN)
            if code is not None and taken and may_move and attempt < _ATTEMPTS:
                self._reporter.progress(f"{name}: port taken, trying another")
                service.choose_ports()
                self._launch(name)
                continue
            what = (
                f"ended at start with code {code}"
                if code is not None
                else f"did not answer within {service.ready_seconds:.0f} s"
            )
            raise service.unavailable(
                f"{name} {what}. The last lines of {running.log}:\n{lines}",
                hint=(
                    f"Port {service.ports[0]} is in use: stop the process that uses it."
                    if taken
                    else "The log contains the cause."
                ),
            )

    @staticmethod
    def _answers_in_time(service: Service, running: _Running) -> bool:
        deadline = running.begun + service.ready_seconds
        while running.process.poll() is None:
            # Check the process again after the probe: a foreign service on our port also responds, and then ours ends.
            if service.answers() and running.process.poll() is None:
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return False


class Reporter:
    """Sends lines to the owner. An owner that has ended is not an error here: the end of the input reports it too."""

    def __init__(self) -> None:
        # No other output may mix with the lines: print and children write to the log on stderr.
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def send(self, event: str, **content: Any) -> None:
        """Send one line."""
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._out.write(json.dumps({"event": event, **content}) + "\n")

    def progress(self, text: str) -> None:
        """Send a progress line for the user."""
        self.send("progress", text=text)

    def error(self, error: StreamScorerError) -> None:
        """Send an error, which the owner raises."""
        self.send("error", kind=type(error).__name__, message=error.message, hint=error.hint)


class _Owner:
    """Reads the owner's commands in a separate thread, to notice the owner's end also during a long start."""

    def __init__(self) -> None:
        self.commands: queue.Queue[dict[str, Any]] = queue.Queue()
        self._parent = os.getppid()
        threading.Thread(target=self._read, name="owner", daemon=True).start()

    def _read(self) -> None:
        pending = b""
        # Check the parent too: one of its forked processes may keep the other end of the pipe open.
        while os.getppid() == self._parent:
            readable, _, _ = select.select([0], [], [], _OWNER_POLL_SECONDS)
            if not readable:
                continue
            part = os.read(0, 65536)
            if not part:
                break
            *lines, pending = (pending + part).split(b"\n")
            for line in lines:
                command = json.loads(line)
                self.commands.put(command)
                if command["op"] == "detach":
                    return
        os.kill(os.getpid(), signal.SIGTERM)


def _serve(supervisor: Supervisor, owner: _Owner, reporter: Reporter, data_dir: Path) -> None:
    while True:
        command = owner.commands.get()
        name = command.get("service", "")
        try:
            match command["op"]:
                case "stop":
                    supervisor.stop(name, kill=command["kill"])
                case "start":
                    supervisor.start(name)
                case "restart":
                    supervisor.stop(name, kill=command["kill"])
                    supervisor.start(name)
            write_state(data_dir, supervisor.state())
            reporter.send("done", pids=supervisor.pids)
        except StreamScorerError as error:
            reporter.error(error)


@contextlib.contextmanager
def _only_one(data_dir: Path) -> Iterator[None]:
    """Lock the data folder; the kernel releases the lock when this process ends."""
    with (data_dir / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another stack runs on {data_dir}", hint="Use another folder, or stop that stack first."
            ) from None
        yield


def main(arguments: list[str] | None = None) -> int:
    """Run until the owner ends or SIGTERM; returns 0, or 1 if a service could not be started."""
    parser = argparse.ArgumentParser(prog="stream_scorer.stack.supervisor")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--remove-data", action="store_true")
    parser.add_argument("services", nargs="+")
    options = parser.parse_args(arguments)
    data_dir: Path = options.data_dir.resolve()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Stopped

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the owner handles Ctrl-C
    signal.signal(signal.SIGTERM, on_signal)
    reporter = Reporter()
    supervisor: Supervisor | None = None
    try:
        owner = _Owner()
        with _only_one(data_dir):
            supervisor = Supervisor(check_services(options.services), data_dir, reporter)
            try:
                supervisor.start_all()
                state = supervisor.state()
                write_state(data_dir, state)
                reporter.send("ready", state=state.to_json(), pids=supervisor.pids)
                _serve(supervisor, owner, reporter, data_dir)
            finally:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                supervisor.stop_all()
                (data_dir / STATE_FILE).unlink(missing_ok=True)
                if options.remove_data:
                    shutil.rmtree(data_dir, ignore_errors=True)
    except Stopped:
        return 0
    except StreamScorerError as error:
        reporter.error(error)
        return 1
    except OSError as error:
        reporter.error(UnavailableError(f"the stack could not be started: {error}", hint=f"Is {data_dir} writable?"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
