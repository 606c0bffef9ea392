"""OpenLineage events of commands that train, evaluate or promote: START, then COMPLETE or FAIL, with their datasets.

The client and its configuration are those of openlineage-python (extra `openlineage`): OPENLINEAGE_URL,
OPENLINEAGE_CONFIG or OPENLINEAGE__TRANSPORT... Without one of these variables nothing is imported and nothing is
computed. An event never fails a command: all errors together are one warning. One event takes at most `EMIT_TIMEOUT_S`.

Source: https://openlineage.io/docs/spec/object-model; names of datasets: https://openlineage.io/docs/spec/naming.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stream_scorer import __version__
from stream_scorer.clock import Clock, SystemClock
from stream_scorer.observability.scrub import scrub

if TYPE_CHECKING:
    from openlineage.client import OpenLineageClient
    from openlineage.client.event_v2 import RunEvent

# The client tries again for longer than a command should wait for it.
EMIT_TIMEOUT_S = 10.0
PRODUCER = f"stream-scorer/{__version__}"
DEFAULT_NAMESPACE = "stream-scorer"
_CONFIGURED = ("OPENLINEAGE_URL", "OPENLINEAGE_CONFIG")
_TRANSPORT = "OPENLINEAGE__TRANSPORT"
# These log a line per attempt.
_LOUD = ("openlineage", "urllib3")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset. `version` is its digest or offset; None if it has none."""

    namespace: str
    name: str
    version: str | None = None


class LineageRun:
    """One run of a command; the command adds its inputs and outputs as it learns them."""

    def __init__(self) -> None:
        self.inputs: list[Dataset] = []
        self.outputs: list[Dataset] = []

    def add(self, inputs: Iterable[Dataset] = (), outputs: Iterable[Dataset] = ()) -> None:
        """Add datasets, which the next event contains."""
        self.inputs += inputs
        self.outputs += outputs


def configured(environment: Mapping[str, str]) -> bool:
    """Whether events are sent."""
    if environment.get("OPENLINEAGE_DISABLED", "").strip().lower() == "true":
        return False
    return any(environment.get(name) for name in _CONFIGURED) or any(
        name.startswith(_TRANSPORT) for name in environment
    )


@contextmanager
def lineage_run(
    job: str, inputs: Callable[[], Iterable[Dataset]], *, clock: Clock | None = None
) -> Iterator[LineageRun | None]:
    """Send START with `inputs`, then COMPLETE at the end of the block, or FAIL if it raises.

    `inputs` is called only if events are sent. Yields None if they are not.
    """
    if not configured(os.environ):
        yield None
        return
    run = LineageRun()
    sender = _Sender(job, run, clock or SystemClock())
    sender.send("START", inputs)
    try:
        yield run
    except BaseException as error:
        sender.send("FAIL", error=f"{type(error).__name__}: {error}")
        raise
    sender.send("COMPLETE")


def file_dataset(path: Path) -> Dataset:
    """A file with its sha256; a folder, or a file that cannot be read, has no version."""
    return Dataset("file", str(path.resolve()), _file_digest(path))


def _file_digest(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


class _Sender:
    """Sends the events of one run in their order, and warns once if something fails."""

    def __init__(self, job: str, run: LineageRun, clock: Clock) -> None:
        self._job, self._run, self._clock = job, run, clock
        self._run_id = str(uuid.uuid4())
        self._warned = False
        self._sending: threading.Thread | None = None

    def send(self, kind: str, inputs: Callable[[], Iterable[Dataset]] | None = None, error: str = "") -> None:
        """Send one event; wait at most `EMIT_TIMEOUT_S` until it is sent."""
        try:
            if inputs is not None:
                self._run.add(inputs())
            problem = self._emit(self._event(kind, error))
        except Exception as failure:
            problem = f"{type(failure).__name__}: {failure}"
        if problem and not self._warned:
            self._warned = True
            _log.warning("an OpenLineage event was not sent: %s", scrub(problem))

    def _emit(self, event: RunEvent) -> str:
        """Emit `event` in a thread, which a server that hangs cannot make the command wait for; returns the problem."""
        problems: list[str] = []
        before, client = self._sending, _client()

        def work() -> None:
            if before is not None:
                before.join()
            try:
                _emit(client, event)
            except Exception as failure:
                problems.append(f"{type(failure).__name__}: {failure}")

        self._sending = threading.Thread(target=work, name="openlineage", daemon=True)
        self._sending.start()
        self._sending.join(EMIT_TIMEOUT_S)
        return f"no answer within {EMIT_TIMEOUT_S:.0f} s" if self._sending.is_alive() else "".join(problems)

    def _event(self, kind: str, error: str) -> RunEvent:
        from openlineage.client import event_v2
        from openlineage.client.facet_v2 import dataset_version_dataset, error_message_run, job_type_job

        def facets(dataset: Dataset) -> dict[str, Any]:
            if dataset.version is None:
                return {}
            return {"version": dataset_version_dataset.DatasetVersionDatasetFacet(dataset.version, producer=PRODUCER)}

        time = datetime.fromtimestamp(self._clock.now_ms() / 1_000, UTC).isoformat(timespec="milliseconds")
        kind_of_job = job_type_job.JobTypeJobFacet("BATCH", "STREAM_SCORER", "COMMAND", producer=PRODUCER)
        namespace = os.environ.get("OPENLINEAGE_NAMESPACE") or DEFAULT_NAMESPACE
        failed: dict[str, Any] = {}
        if error:
            message = error_message_run.ErrorMessageRunFacet(scrub(error), "PYTHON", producer=PRODUCER)
            failed["errorMessage"] = message
        return event_v2.RunEvent(
            eventTime=time,
            eventType=event_v2.RunState[kind],
            producer=PRODUCER,
            run=event_v2.Run(self._run_id, facets=failed),
            job=event_v2.Job(namespace, self._job, facets={"jobType": kind_of_job}),
            inputs=[event_v2.InputDataset(d.namespace, d.name, facets=facets(d)) for d in self._run.inputs],
            outputs=[event_v2.OutputDataset(d.namespace, d.name, facets=facets(d)) for d in self._run.outputs],
        )


def _client() -> OpenLineageClient:
    from openlineage.client import OpenLineageClient

    return OpenLineageClient()


def _emit(client: OpenLineageClient, event: RunEvent) -> None:
    levels = {name: logging.getLogger(name).level for name in _LOUD}
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client.emit(event)
        # A transport that sends in the background.
        client.close(EMIT_TIMEOUT_S)
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
