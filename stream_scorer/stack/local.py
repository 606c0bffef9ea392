"""A stack that ends with its owner: for fixtures and the demo."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from stream_scorer.errors import UsageError
from stream_scorer.stack.link import SupervisorLink
from stream_scorer.stack.model import SERVICES, StackAddresses, check_services

SCRATCH = Path(".stream-scorer")


class LocalStack:
    """Real services on free loopback ports that end with this object, or with this process, however it ends.

    A context manager; `start` and `close` are the explicit calls. `services` is any of ``kafka``, ``redis`` and
    ``mlflow``. Without `data_dir`, the data is in a new folder under ``.stream-scorer/`` of the working directory and
    is removed at the end. `on_progress` receives lines of progress during a start. Not thread-safe.
    """

    def __init__(
        self,
        services: Sequence[str] = SERVICES,
        data_dir: Path | None = None,
        on_progress: Callable[[str], None] | None = None,
    ) -> None:
        self._services = check_services(services)
        self._data_dir = data_dir
        self._on_progress = on_progress
        self._link: SupervisorLink | None = None
        self._addresses = StackAddresses()
        self._temporary: Path | None = None

    def start(self) -> Self:
        """Start and wait until all services respond. Raises UsageError or UnavailableError; then nothing is left."""
        if self._link is not None:
            raise UsageError("this stack is already started", hint="Close it first, or make another.")
        folder = self._data_dir
        if folder is None:
            SCRATCH.mkdir(exist_ok=True)
            folder = self._temporary = Path(tempfile.mkdtemp(prefix="run-", dir=SCRATCH)).resolve()
        try:
            self._link = SupervisorLink(
                self._services,
                folder.resolve(),
                on_progress=self._on_progress,
                remove_data=self._temporary is not None,
            )
            self._addresses = self._link.wait_ready().addresses
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """End every service; remove the data if it was temporary. Safe to call twice."""
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def addresses(self) -> StackAddresses:
        """Addresses of the services. They do not change on restarts."""
        return self._addresses

    @property
    def logs(self) -> Path:
        """The folder with a log per service; it exists while the stack runs."""
        folder = self._data_dir or self._temporary
        assert folder is not None, "the stack is not started"
        return folder / "logs"

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the services that ran after the last command, by name."""
        return dict(self._started.pids)

    def stop_service(self, name: str, *, kill: bool = False) -> None:
        """Stop one service with SIGTERM or, with `kill`, with SIGKILL. It keeps its data and port."""
        self._started.call("stop", service=name, kill=kill)

    def start_service(self, name: str) -> None:
        """Start a stopped service on its port and data, and wait until it responds. Raises UnavailableError."""
        self._started.call("start", service=name)

    def restart(self, name: str, *, kill: bool = False) -> None:
        """`stop_service` and `start_service`. Raises UnavailableError."""
        self._started.call("restart", service=name, kill=kill)

    @property
    def _started(self) -> SupervisorLink:
        if self._link is None:
            raise UsageError("this stack is not started", hint="Use it in a with block, or call start().")
        return self._link
