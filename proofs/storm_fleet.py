"""The processes of a storm: scorers and a monitor, each kept running unless an action holds it down.

A supervisor starts a process again that has ended by itself, as a deployment would, and notes why it ended. All are
started by one thread: the kernel kills a child when the thread that started it ends (`stack/parent_death.py`).
"""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from proofs.kit import Scorer
from proofs.storm_logs import end_is_expected

_POLL_S = 0.25
# Pause before a process that ended by itself starts again.
_RESTART_S = 1.0
STOP_S = 20.0
_DUMP_S = 1.0
_TAIL = 12


class Managed:
    """One process. Actions of different threads may use it at the same time."""

    def __init__(self, process: Scorer, *, wanted: bool) -> None:
        self.name = process.instance
        self._process = process
        self._lock = threading.RLock()
        self._wanted = int(wanted)
        self._holds = 0
        self._ended_at = 0.0
        # How often it ended by itself, by exit code and the last line of its log; and ends that no fault explains.
        self.ended: Counter[str] = Counter()
        self.unexpected: list[str] = []
        self.starts = 0
        self.run_in_starter: Callable[[Callable[[], None]], None] = lambda start: start()

    @property
    def process(self) -> Scorer:
        """The process itself, for checks."""
        return self._process

    @property
    def wanted(self) -> bool:
        """Whether it should run."""
        return self._wanted > 0

    @property
    def running(self) -> bool:
        """Whether it runs now."""
        return self._process.running

    def adjust(self, *, wanted: int = 0, holds: int = 0) -> None:
        """Change the number of those who want it to run, or who hold it down, and start it if that is the result."""
        with self._lock:
            self._wanted += wanted
            self._holds += holds
            self._start_if_due()

    def leave(self, how: str) -> None:
        """Withdraw one request that it runs; without any other, end it by "kill" or "stop"."""
        with self._lock:
            self.adjust(wanted=-1)
            if not self.wanted:
                (self.kill if how == "kill" else self.stop)()

    def kill(self) -> bool:
        """`kill -9`; whether it ran."""
        with self._lock:
            ran = self.running
            if ran:
                self._process.kill()
            return ran

    def stop(self) -> int | None:
        """SIGTERM, SIGKILL after a while; the exit code, None if it did not run."""
        with self._lock:
            self.resume()
            if not self.running:
                return None
            # A process that does not end writes its stacks before it is killed.
            dump = threading.Timer(STOP_S - 1, self.dump)
            dump.start()
            try:
                return self._process.stop(STOP_S)
            finally:
                dump.cancel()

    def suspend(self) -> int | None:
        """SIGSTOP; the process id, None if it does not run."""
        with self._lock:
            if not self.running:
                return None
            self._process.send(signal.SIGSTOP)
            return self._process.pid

    def resume(self) -> None:
        """SIGCONT."""
        with self._lock:
            if self.running:
                self._process.send(signal.SIGCONT)

    def limit_files(self, max_bytes: int) -> bool:
        """Let no file of the running process grow beyond `max_bytes` (-1: any size); whether it runs.

        Writes then fail as they do on a full disk. A process that starts later has no limit.
        """
        with self._lock:
            if not self.running:
                return False
            with suppress(ProcessLookupError):
                _, hard = resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE)
                soft = hard if max_bytes < 0 else max_bytes
                resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (soft, hard))
            return True

    def set_environment(self, more: Mapping[str, str]) -> None:
        """Environment variables from the next start on."""
        self._process.set_environment(more)

    def watch(self) -> None:
        """Note an end that no action caused, and start it again after a pause."""
        with self._lock:
            if self._wanted <= 0 or self._holds > 0 or self.running:
                self._ended_at = 0.0
                return
            if not self._ended_at:
                self._ended_at = time.monotonic()
                self._note_end()
            if time.monotonic() - self._ended_at >= _RESTART_S:
                self._start_if_due()

    def dump(self) -> None:
        """Have the process write the stacks of its threads to its log."""
        with suppress(ProcessLookupError):
            self._process.send(signal.SIGUSR2)

    def _start_if_due(self) -> None:
        if self._wanted > 0 and self._holds <= 0 and not self.running:
            self.run_in_starter(self._process.start)
            self.starts += 1

    def _note_end(self) -> None:
        code, tail = self._process.exit_code, list[str]()
        with suppress(OSError):
            tail = self._process.log.read_text(errors="replace").splitlines()[-_TAIL:]
        end = f"exit {code}: {tail[-1][-160:] if tail else ''}"
        self.ended[end] += 1
        if not end_is_expected(code, tail):
            self.unexpected.append(f"{self.name} ended by itself, {end}")


class Fleet:
    """All processes, and the thread that keeps them running."""

    def __init__(self, processes: list[Managed]) -> None:
        self.by_name = {process.name: process for process in processes}
        self._starter = ThreadPoolExecutor(1, "starter")
        for process in processes:
            process.run_in_starter = lambda start: self._starter.submit(start).result()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._supervise, name="supervisor", daemon=True)

    @property
    def scorers(self) -> list[Managed]:
        """All but the monitor."""
        return [process for name, process in self.by_name.items() if name != "monitor"]

    def start(self) -> None:
        """Start what is wanted."""
        for process in self.by_name.values():
            process.adjust()
        self._thread.start()

    def heal(self) -> None:
        """Resume what is suspended, and lift limits."""
        for process in self.by_name.values():
            process.resume()
            process.limit_files(-1)

    def dump(self) -> None:
        """Have each process that runs write the stacks of its threads to its log."""
        for process in self.by_name.values():
            if process.running:
                process.dump()
        time.sleep(_DUMP_S)

    def close(self) -> None:
        """Kill everything."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5)
        for process in self.by_name.values():
            process.kill()
        self._starter.shutdown()

    def _supervise(self) -> None:
        while not self._stop.wait(_POLL_S):
            for process in self.by_name.values():
                process.watch()


@contextmanager
def held_down(process: Managed) -> Iterator[None]:
    """Inside the block, the process is not started."""
    process.adjust(holds=1)
    try:
        yield
    finally:
        process.adjust(holds=-1)


@contextmanager
def suspended(pid: int | None) -> Iterator[Any]:
    """Continue process `pid` at the end of the block, if it still exists."""
    try:
        yield
    finally:
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
