"""The owner's end of the pipe to a supervisor."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stream_scorer import errors
from stream_scorer.errors import StreamScorerError, UnavailableError
from stream_scorer.stack.model import StackState
from stream_scorer.stack.process import tail

_EXIT_SECONDS = 20.0  # longer than the stop limit of any service


class SupervisorLink:
    """A started supervisor; it ends when this end of the pipe closes (unless detached)."""

    def __init__(
        self,
        services: tuple[str, ...],
        data_dir: Path,
        *,
        on_progress: Callable[[str], None] | None,
        remove_data: bool = False,
    ) -> None:
        (data_dir / "logs").mkdir(parents=True, exist_ok=True)
        self._log = data_dir / "logs" / "supervisor.log"
        self._on_progress = on_progress
        self.pids: dict[str, int] = {}
        command = [sys.executable, "-m", "stream_scorer.stack.supervisor", "--data-dir", str(data_dir)]
        command += ["--remove-data"] if remove_data else []
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *services],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def wait_ready(self) -> StackState:
        """Wait until every service responds. Raises the supervisor's UsageError or UnavailableError."""
        return StackState.from_json(self._answer("ready")["state"])

    def call(self, operation: str, **arguments: object) -> None:
        """Send one command and wait for its reply. Raises the supervisor's UsageError or UnavailableError."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"op": operation, **arguments}) + "\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise self._gone() from None
        self._answer("done")

    def detach(self) -> None:
        """Leave the supervisor running after this process."""
        self.call("detach")
        self._close_pipes()
        # This process does not wait for it; without a return code, the garbage collector warns of a running child.
        self._process.returncode = 0

    def close(self) -> None:
        """Stop the supervisor and all services. Safe to call twice."""
        if self._process.returncode is not None:
            return
        self._close_pipes()
        try:
            self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()  # the kernel then kills the services
            self._process.wait()

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass

    def _answer(self, expected: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer: dict[str, Any] = json.loads(line)
            if answer["event"] == "progress":
                if self._on_progress is not None:
                    self._on_progress(answer["text"])
            elif answer["event"] == "error":
                kind: type[StreamScorerError] = getattr(errors, answer["kind"])
                raise kind(answer["message"], hint=answer["hint"])
            elif answer["event"] == expected:
                self.pids = answer["pids"]
                return answer
        raise self._gone()

    def _gone(self) -> UnavailableError:
        return UnavailableError(
            f"the stack's supervisor ended. The last lines of {self._log}:\n{tail(self._log)}",
            hint="Start the stack again.",
        )
