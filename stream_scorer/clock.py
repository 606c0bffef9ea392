"""Clocks are injected: whatever needs the time takes a `Clock`, so tests and replays decide what time it is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol

from stream_scorer.errors import SettingsError

# Smaller numbers are no epoch milliseconds of today, but dates without hyphens (20250131) or epoch seconds.
EARLIEST_MS = 10**11


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


class _BuildClock(SystemClock):
    """The machine's clock, with a fixed time for stamps."""

    def __init__(self, now_ms: int) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        return self._now_ms


def build_clock(environment: Mapping[str, str]) -> Clock:
    """The clock of artifacts: the machine's, or one fixed at SOURCE_DATE_EPOCH (reproducible-builds.org) in seconds.

    Raises:
        SettingsError: SOURCE_DATE_EPOCH is not a whole number.
    """
    text = environment.get("SOURCE_DATE_EPOCH", "")
    if not text:
        return SystemClock()
    if not text.isdecimal():
        raise SettingsError(f"SOURCE_DATE_EPOCH is {text!r}", hint="Set it to seconds since 1970, or unset it.")
    return _BuildClock(int(text) * 1_000)


class Deadline:
    """One budget of time for several steps that must all finish in it."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    @property
    def remaining_s(self) -> float:
        """Seconds left; 0 once it has passed."""
        return max(self._at - time.monotonic(), 0.0)
