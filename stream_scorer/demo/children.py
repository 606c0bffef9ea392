"""The demo's own processes: commands of this product, tied to our life and stopped by process number."""

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

# The contract: a command ends within 10 s of SIGTERM. Half as much again before it is killed.
STOP_S = 15.0
POLL_S = 0.1
HTTP_TIMEOUT_S = 2.0
_SETTINGS = "STREAM_SCORER_"
# A proxy of the environment has no business between two processes of one machine.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Child:
    """One `stream-scorer` command as a process of its own, output in `log`. Start it from the main thread."""

    def __init__(self, name: str, arguments: Sequence[str], logs: Path) -> None:
        self.name = name
        self.log = logs / f"{name}.log"
        self.log.unlink(missing_ok=True)
        # Settings of whoever runs the demo must not reach its parts.
        environment = {k: v for k, v in os.environ.items() if not k.startswith(_SETTINGS)}
        command = [sys.executable, "-m", "stream_scorer.cli.main", *arguments]
        self._process: subprocess.Popen[bytes] = spawn(command, log=self.log, env=environment)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def require_running(self) -> None:
        """Raise `StreamScorerError` with the end of its log if it has ended."""
        if not self.running:
            raise StreamScorerError(
                f"the {self.name} ended by itself with exit code {self._process.returncode}. "
                f"The last lines of {self.log}:\n{tail(self.log)}"
            )

    def wait(self, on_line: Callable[[str], None]) -> None:
        """Wait until it ends; `on_line` gets each line it logs. Raises `StreamScorerError` unless it ends with 0."""
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
        """SIGTERM, SIGKILL if it does not end in time; its exit code. Safe to call twice."""
        if self.running:
            stop([(self._process, STOP_S)])
        return self._process.returncode


class Service(Child):
    """A command that serves ``/readyz`` and ``/metrics`` until it is stopped."""

    def __init__(self, name: str, arguments: Sequence[str], logs: Path) -> None:
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        super().__init__(name, [*arguments, "--metrics-port", str(port)], logs)

    def ready(self) -> bool:
        """Whether it says that it is. Raises `StreamScorerError` if it has ended."""
        self.require_running()
        try:
            with _OPENER.open(f"{self._url}/readyz", timeout=HTTP_TIMEOUT_S) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def metrics(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Every sample, by name and sorted labels; empty if it does not answer."""
        try:
            with _OPENER.open(f"{self._url}/metrics", timeout=HTTP_TIMEOUT_S) as answer:
                text = answer.read().decode()
        except (urllib.error.URLError, OSError):
            return {}
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): float(sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def metric(self, name: str) -> float | None:
        """The sum of a metric over its labels; None if there is none."""
        found = [value for (sample, _), value in self.metrics().items() if sample == name]
        return sum(found) if found else None
