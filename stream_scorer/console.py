"""Progress of long work on stderr: a bar on a terminal, a log line now and then elsewhere."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from stream_scorer.clock import Clock

# Often enough to see that it goes on, seldom enough to be read afterwards.
LOG_EVERY_S = 10.0

_log = logging.getLogger(__name__)


class ReplayProgress:
    """Shows how many of `total` records have gone by, the rate and what remains. A context manager."""

    def __init__(self, total: int, clock: Clock) -> None:
        console = Console(stderr=True)
        self._total = total
        self._clock = clock
        self._started = self._told = clock.monotonic()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("replaying"), BarColumn(), TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
                TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=console, transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task("replaying", total=total, rate="")

    def __call__(self, done: int) -> None:
        """Note that `done` records have gone by."""
        now = self._clock.monotonic()
        rate = done / max(now - self._started, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, completed=min(done, self._total), rate=f"{rate:,.0f}/s")
        elif now - self._told >= LOG_EVERY_S:
            self._told = now
            left = max(self._total - done, 0) / max(rate, 1e-9)
            _log.info("replayed %s of %s records, %s/s, %.0f s to go", f"{done:,}", f"{self._total:,}",
                      f"{rate:,.0f}", left)  # fmt: skip

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
