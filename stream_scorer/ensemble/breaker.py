"""A breaker per member: who fails again and again is not asked for a while, then tried, then trusted again.

It only counts and decides; time is given to it, so that it can be tested to the second.
"""

from __future__ import annotations

from enum import IntEnum

# Failing micro-batches in a row until a member is not asked any more.
FAILURES = 5
# How long it is left alone, at first and at most; every failed trial doubles it.
PAUSE_S, LONGEST_PAUSE_S = 5.0, 80.0
# A member that took the whole scorer with it is left alone for longer: nobody is to be killed every few seconds.
SUSPECT_PAUSE_S = 20.0
# Trials in a row that must go well.
TRIALS = 3


class State(IntEnum):
    """As the gauge `stream_scorer_member_breaker` shows it."""

    CLOSED = 0
    TRIAL = 1
    OPEN = 2


class Breaker:
    """See the module. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.state = State.CLOSED
        self._failures = 0
        self._good = 0
        self._pause = PAUSE_S
        self._until = 0.0

    def allows(self, now: float) -> bool:
        """Whether the member may be asked now; a pause that is over begins a trial."""
        if self.state is State.OPEN and now >= self._until:
            self.state, self._good = State.TRIAL, 0
        return self.state is not State.OPEN

    def succeeded(self) -> None:
        """It answered as it should."""
        self._failures = 0
        if self.state is State.TRIAL:
            self._good += 1
            if self._good >= TRIALS:
                self.state, self._pause = State.CLOSED, PAUSE_S

    def suspect(self, now: float) -> None:
        """It was being asked when the last scorer was killed."""
        self._pause = SUSPECT_PAUSE_S
        self.failed(now, at_once=True)

    def failed(self, now: float, *, at_once: bool = False) -> None:
        """It did not. `at_once` opens the breaker without waiting for more of it: the member hangs."""
        self._failures += 1
        if self.state is State.TRIAL:
            self._pause = min(2 * self._pause, LONGEST_PAUSE_S)
        elif not at_once and self._failures < FAILURES:
            return
        self.state, self._failures, self._until = State.OPEN, 0, now + self._pause
