"""The demo's child processes: `stream-scorer` commands that end with the demo and are stopped by process id."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from stream_scorer.errors import StreamScorerError
from stream_scorer.stack.ports import free_port
from stream_scorer.stack.process import spawn, stop, tail

# A command must end within 10 s of SIGTERM; after 1.5 times that it is killed.
STOP_S = 15.0
POLL_S = 0.1
HTTP_TIMEOUT_S = 2.0
_SETTINGS = "STREAM_SCORER_"
# Requests between two processes of one machine must not go through the environment's proxy.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Child:
    """One `stream-scorer` command as a child process with its output in `log`. Start it from the main thread."""

    def __init__(self, name: str, arguments: Sequence[str], logs: Path) -> None:
        self.name = name
        self.log = logs / f"{name}.log"
        self.log.unlink(missing_ok=True)
        # The user's settings must not reach the demo's processes.
        environment = {k: v for k, v in os.environ.items() if not k.startswith(_SETTINGS)}
        command = [sys.executable, "-m", "stream_scorer.cli.main", *arguments]
        self._process: subprocess.Popen[bytes] = spawn(command, log=self.log, env=environment)

    @property
    def running(self) -> bool:
        """Whether the process is still running."""
        return self._process.poll() is None

    def require_running(self) -> None:
        """Raise `StreamScorerError` with the last lines of the log if the process has ended."""
        if not self.running:
            raise StreamScorerError(
                f"the {self.name} ended unexpectedly with exit code {self._process.returncode}. "
                f"The last lines of {self.log}:\n{tail(self.log)}"
            )

    def wait(self, on_line: Callable[[str], None]) -> None:
        """Wait for the process to end; call `on_line` per line of its log.

        Raises `StreamScorerError` if the exit code is not 0.
        """
        with self.log.open(encoding="utf-8", errors="replace") as log:
            while True:
                ended = not self.running
                for line in log:
                    on_line(line.rstrip())
                if ended:
                    break
                time.sleep(POLL_S)
        if self._process.returncode != 0:
            raise StreamScorerError(
                f"{self.name} failed with exit code {self._process.returncode}. "
                f"The last lines of {self.log}:\n{tail(self.log)}"
            )

    def stop(self) -> int:
        """Send SIGTERM, then SIGKILL after `STOP_S`; return the exit code. Safe to call twice."""
        if self.running:
            stop([(self._process, STOP_S)])
        return self._process.returncode


class Service(Child):
    """A command that runs until it is stopped and serves ``/readyz`` and ``/metrics``."""

    def __init__(self, name: str, arguments: Sequence[str], logs: Path) -> None:
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        super().__init__(name, [*arguments, "--metrics-port", str(port)], logs)

    def ready(self) -> bool:
        """Whether ``/readyz`` returns 200. Raises `StreamScorerError` if the process has ended."""
        self.require_running()
        try:
            with _OPENER.open(f"{self._url}/readyz", timeout=HTTP_TIMEOUT_S) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def metrics(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """All samples by name and sorted labels; empty if the request fails."""
        try:
            with _OPENER.open(f"{self._url}/metrics", timeout=HTTP_TIMEOUT_S) as response:
                text = response.read().decode()
        except (urllib.error.URLError, OSError):
            return {}
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): float(sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def metric(self, name: str) -> float | None:
        """The sum of a metric over its labels; None without a sample."""
        found = [value for (sample, _), value in self.metrics().items() if sample == name]
        return sum(found) if found else None
