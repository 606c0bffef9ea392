"""The life of a simulated process: it passes named points, and dies or is suspended at one of them."""

from __future__ import annotations

import threading
from collections import Counter

# What the points are called, in the order in which a micro-batch passes them.
POINTS = ("open", "read", "rows", "begin", "produce", "flush", "offsets", "committed", "apply", "applied")
# A process that nobody resumes must not hang a test for ever.
SUSPENDED_AT_MOST_S = 30.0


class Crash(BaseException):
    """The process has died. Not an `Exception`: nothing but the harness may catch it."""


class Failpoints:
    """One process. Every call that leaves it (to the broker, to the rows) passes a point, in whatever thread.

    Args:
        dies_at: a point and how often it is passed before the process dies there; None for a long life. From then on
            every call of every thread raises `Crash` before it has any effect, as after `kill -9`.
    """

    def __init__(self, dies_at: tuple[str, int] | None = None) -> None:
        self._dies_at = dies_at
        self._passed: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._running = threading.Event()
        self._running.set()
        self._suspend_at: str | None = None
        self.suspended = threading.Event()
        self.dead = False
        self.died_at = ""

    def point(self, name: str) -> None:
        """Pass the point `name`. Raises `Crash` if the process is dead, or dies here."""
        with self._lock:
            if self._suspend_at == name:
                self._suspend_at = None
                self._running.clear()
                self.suspended.set()
        self._running.wait(SUSPENDED_AT_MOST_S)
        with self._lock:
            self._passed[name] += 1
            if self._dies_at == (name, self._passed[name]):
                self.dead, self.died_at = True, name
            if self.dead:
                raise Crash(name)

    def suspend_at(self, name: str) -> None:
        """From the next passing of `name` on, every thread stands still at its next point until `resume`."""
        self._suspend_at = name

    def resume(self) -> None:
        """Go on after a suspension."""
        self._suspend_at = None
        self.suspended.clear()
        self._running.set()

    def kill(self) -> None:
        """Die at the next point, wherever that is."""
        with self._lock:
            self.dead = True
        self._running.set()
