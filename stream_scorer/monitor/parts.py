"""The parts of a monitor: each runs in a thread of its own, and restarts with back-off when it fails.

A part depends on some services and not on others: the watch needs Kafka only, the windows need Redis too, the joiner
needs a disk. So a failure ends one part and no other, and never the process.

::

    STOPPED ──► STARTING ──► RUNNING
                 ▲    │         │
                 │    │ failure │ failure       every state ──► STOPPED
                 │    ▼         ▼
                 └── BACKING_OFF
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import Enum

from stream_scorer.clock import Clock, Deadline
from stream_scorer.errors import StreamScorerError
from stream_scorer.monitor.metrics import PART_FAILURES, PART_RUNNING
from stream_scorer.observability.metrics import Metrics

# The first retry follows soon, as most failures are restarts of a service. Then the pause doubles up to the maximum,
# which is short, because a part that is away delays what it reports.
MIN_BACKOFF_S, MAX_BACKOFF_S = 1.0, 15.0
# A part that ran this long before it failed starts with the shortest pause again.
STABLE_S = 60.0

_log = logging.getLogger("stream_scorer.monitor")

# Runs a part until the event is set, and calls the function once the part does its work.
PartRun = Callable[[threading.Event, Callable[[], None]], None]


class PartState(Enum):
    """See the diagram of the module."""

    STARTING = "starting"
    RUNNING = "running"
    BACKING_OFF = "backing_off"
    STOPPED = "stopped"


_NEXT = {
    PartState.STARTING: {PartState.RUNNING, PartState.BACKING_OFF, PartState.STOPPED},
    PartState.RUNNING: {PartState.BACKING_OFF, PartState.STOPPED},
    PartState.BACKING_OFF: {PartState.STARTING, PartState.STOPPED},
    PartState.STOPPED: {PartState.STARTING},
}


@dataclass(frozen=True, slots=True)
class PartStatus:
    """The state of a part, its last failure ("": none since it runs), and how often it has failed."""

    state: str
    reason: str
    failures: int


class Part:
    """One part. `run` may be called many times, one call after the other, and creates what it needs each time."""

    def __init__(self, name: str, run: PartRun, clock: Clock, metrics: Metrics) -> None:
        self.name = name
        self._run = run
        self._clock = clock
        self._metrics = metrics
        metrics.begin(PART_FAILURES, [name])
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._state = PartState.STOPPED
        self._reason = ""
        self._failures = 0
        self._backoff_s = 0.0
        # Two threads change the state: that of the part, and one inside the part that reports readiness.
        self._lock = threading.Lock()

    @property
    def status(self) -> PartStatus:
        """The present state."""
        with self._lock:
            return PartStatus(self._state.value, self._reason, self._failures)

    @property
    def running(self) -> bool:
        """Whether the part does its work."""
        return self._state is PartState.RUNNING

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def request_stop(self) -> None:
        """Ask the part to end. Returns at once."""
        self._stop.set()

    def join(self, timeout_s: float) -> bool:
        """Wait for the end, and return whether the part ended in time."""
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _loop(self) -> None:
        while not self._stop.is_set():
            self._enter(PartState.STARTING)
            started_at, failure = self._clock.monotonic(), None
            try:
                self._run(self._stop, self._report_running)
            except BaseException as error:  # without this, an unexpected error would end the part for good
                failure = error
            if self._stop.is_set():
                break
            if self._clock.monotonic() - started_at > STABLE_S:
                self._backoff_s = 0.0
            self._back_off(failure or StreamScorerError("it ended without an error"))
            self._stop.wait(self._backoff_s)
        self._enter(PartState.STOPPED)

    def _report_running(self) -> None:
        with self._lock:
            if self._state is not PartState.STARTING or self._stop.is_set():
                return
            recovered, self._reason = self._reason, ""
            self._set(PartState.RUNNING)
        if recovered:
            _log.warning("%s: runs again", self.name)

    def _back_off(self, failure: BaseException) -> None:
        self._backoff_s = min(max(2 * self._backoff_s, MIN_BACKOFF_S), MAX_BACKOFF_S)
        known = isinstance(failure, StreamScorerError)
        reason = failure.message if isinstance(failure, StreamScorerError) else f"{type(failure).__name__}: {failure}"
        hint = f" ({failure.hint})" if isinstance(failure, StreamScorerError) and failure.hint else ""
        with self._lock:
            again, self._reason = reason == self._reason, reason
            self._failures += 1
            self._set(PartState.BACKING_OFF)
        self._metrics.count(PART_FAILURES, 1, self.name)
        # The traceback of an unexpected error is logged once, not at every attempt.
        trace = None if known or again else failure
        text = f"{reason}{hint}; it starts again in {self._backoff_s:.0f} s"
        _log.error("%s failed: %s", self.name, text, exc_info=trace)

    def _enter(self, state: PartState) -> None:
        with self._lock:
            self._set(state)

    def _set(self, state: PartState) -> None:
        assert state in _NEXT[self._state], (self.name, self._state, state)
        self._state = state
        self._metrics.set(PART_RUNNING, state is PartState.RUNNING, self.name)


class Parts:
    """All parts of a monitor."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = list(parts)

    @property
    def running(self) -> bool:
        """Whether every part does its work."""
        return all(part.running for part in self._parts)

    def readiness(self) -> tuple[bool, str]:
        """What `/readyz` reports: whether every part does its work, and the reasons of those that do not."""
        found = [(part.name, part.status) for part in self._parts if not part.running]
        return not found, "; ".join(f"{name}: {status.reason or status.state}" for name, status in found)

    def details(self) -> dict[str, object]:
        """The status of each part, for `/readyz`."""
        return {"parts": {part.name: asdict(part.status) for part in self._parts}}

    def start(self) -> None:
        """Start them in their order."""
        for part in self._parts:
            part.start()

    def stop(self, timeout_s: float) -> None:
        """Stop all at the same time, and wait at most `timeout_s`."""
        for part in self._parts:
            part.request_stop()
        deadline = Deadline(timeout_s)
        for part in self._parts:
            if not part.join(deadline.remaining_s):
                _log.warning("%s did not end in time", part.name)
