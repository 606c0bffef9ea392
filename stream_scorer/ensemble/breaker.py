"""A circuit breaker per member: after repeated failures a member is not called for a pause, then called on trial.

The caller passes the time, so that tests control it.
"""

from __future__ import annotations

from enum import IntEnum

# Consecutive failing micro-batches that open the breaker.
FAILURES = 5
# First and longest pause; every failed trial doubles the pause.
PAUSE_S, LONGEST_PAUSE_S = 5.0, 80.0
# First pause of a member that hung the whole scorer: longer, so that the scorer is not killed every few seconds.
SUSPECT_PAUSE_S = 20.0
# Consecutive successful trials that close the breaker.
TRIALS = 3


class State(IntEnum):
    """The values of the gauge `stream_scorer_member_breaker`."""

    CLOSED = 0
    TRIAL = 1
    OPEN = 2


class Breaker:
    """See the module. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.state = State.CLOSED
        self._failures = 0
        self._successes = 0
        self._pause = PAUSE_S
        self._until = 0.0

    def allows(self, now: float) -> bool:
        """Whether the member may be called now; the end of a pause starts a trial."""
        if self.state is State.OPEN and now >= self._until:
            self.state, self._successes = State.TRIAL, 0
        return self.state is not State.OPEN

    def succeeded(self) -> None:
        """Record a successful call."""
        self._failures = 0
        if self.state is State.TRIAL:
            self._successes += 1
            if self._successes >= TRIALS:
                self.state, self._pause = State.CLOSED, PAUSE_S

    def suspect(self, now: float) -> None:
        """Open the breaker: this member was running when the previous scorer was killed."""
        self._pause = SUSPECT_PAUSE_S
        self.failed(now, at_once=True)

    def failed(self, now: float, *, at_once: bool = False) -> None:
        """Record a failed call. `at_once` opens the breaker after this one failure: the member hangs."""
        self._failures += 1
        if self.state is State.TRIAL:
            self._pause = min(2 * self._pause, LONGEST_PAUSE_S)
        elif not at_once and self._failures < FAILURES:
            return
        self.state, self._failures, self._until = State.OPEN, 0, now + self._pause
