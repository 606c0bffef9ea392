"""What `/healthz` and `/readyz` report: threads that must make progress, and conditions of readiness."""

from __future__ import annotations

import threading
from collections.abc import Callable

from stream_scorer.clock import Clock


class Pulse:
    """The progress of one thread. It is not checked before the first beat, nor after `end`.

    Args:
        limit_s: longest time between two beats. It must exceed every wait that the thread makes on purpose.
    """

    def __init__(self, name: str, limit_s: float, clock: Clock) -> None:
        self._name, self._limit_s, self._clock = name, limit_s, clock
        self._thread: threading.Thread | None = None
        self._at = 0.0

    def beat(self) -> None:
        """Record that the calling thread makes progress."""
        self._at = self._clock.monotonic()
        self._thread = threading.current_thread()

    def end(self) -> None:
        """Record that the thread ends on purpose."""
        self._thread = None

    @property
    def problem(self) -> str:
        """Why the process must be restarted; empty if the thread makes progress."""
        thread, idle_s = self._thread, self._clock.monotonic() - self._at
        if thread is None:
            return ""
        if not thread.is_alive():
            return f"the thread {self._name} has stopped"
        if idle_s > self._limit_s:
            return f"the thread {self._name} has made no progress for {idle_s:.0f} s (limit: {self._limit_s:.0f} s)"
        return ""


class Health:
    """Collects pulses and conditions of one process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._pulses: list[Pulse] = []
        self._conditions: list[Callable[[], str]] = []

    def watch(self, name: str, limit_s: float) -> Pulse:
        """A new pulse; see `Pulse`."""
        self._pulses.append(Pulse(name, limit_s, self._clock))
        return self._pulses[-1]

    def require(self, missing: Callable[[], str]) -> None:
        """Add a condition of readiness: `missing` returns what is missing, empty if the condition holds."""
        self._conditions.append(missing)

    def problems(self) -> list[str]:
        """Why the process must be restarted; empty if it is alive."""
        return [pulse.problem for pulse in self._pulses if pulse.problem]

    def ready(self) -> tuple[bool, str]:
        """Whether every condition holds, and what is missing."""
        if not self._conditions:
            return False, "starting"
        missing = [*filter(None, (condition() for condition in self._conditions)), *self.problems()]
        return not missing, "; ".join(missing) or "serving"
