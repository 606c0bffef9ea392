"""Clocks are injected: whatever needs the time takes a `Clock`, so tests and replays decide what time it is."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What time it is, and how long things took."""

    def now_ms(self) -> int:
        """UTC epoch milliseconds. For stamps such as `scored_at` only: event time comes from the record."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back. For durations and deadlines."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()


class Deadline:
    """One budget of time for several steps that must all finish in it."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    @property
    def remaining_s(self) -> float:
        """Seconds left; 0 once it has passed."""
        return max(self._at - time.monotonic(), 0.0)
