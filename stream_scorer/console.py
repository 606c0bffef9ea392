"""Terminal output on rich: progress of long work on stderr, tables on stdout. The only home of both."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from stream_scorer.clock import Clock

# Frequent enough to show that the work continues, rare enough to keep a log readable.
LINE_EVERY_S = 5.0


class Progress:
    """How far long work has come: a bar on a terminal; elsewhere a line per stage and every `LINE_EVERY_S`.

    A context manager. Work has one stage, or several in turn, each with a count and a total of its own.
    """

    def __init__(self, stage: str, total: int | None, clock: Clock, *, console: Console | None = None) -> None:
        """`total` is None if nobody knows it in advance. Writes to stderr unless `console` is given."""
        self._console = console if console is not None else Console(stderr=True)
        self._clock = clock
        self._began = self._stage_began = clock.monotonic()
        self._last_line = self._began
        self._stage, self._total = stage, total
        self._first = self._done = 0
        self._bar: Bar | None = None
        self._task = TaskID(0)
        if self._console.is_terminal:
            self._bar = Bar(
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"),
                TimeRemainingColumn(), console=self._console, transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task(stage, total=total, state="")

    def __call__(self, done: int, note: str = "") -> None:
        """`done` of the stage's total are done; `note` adds something to show with it."""
        self._done = done
        now = self._clock.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=self._total, state=self._state(now, note))
        elif now - self._last_line >= LINE_EVERY_S:
            self._write_line(now, note)

    def advance(self, more: int) -> None:
        """`more` are done than at the last call."""
        self(self._done + more)

    def stage(self, name: str, done: int, total: int | None) -> None:
        """`done` of `total` of the stage `name` are done; a name that is new begins a stage."""
        self._total = total
        if name != self._stage:
            self._stage, self._first = name, done
            self._stage_began = self._clock.monotonic()
            if self._bar is not None:
                self._bar.reset(self._task, description=name, total=total, completed=done)
            else:
                self._done = done
                self._write_line(self._stage_began, "")
        self(done)

    def say(self, text: str) -> None:
        """A line of its own, which stays."""
        self._print(text)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _rate(self, now: float) -> float:
        return max(self._done - self._first, 0) / max(now - self._stage_began, 1e-9)

    def _state(self, now: float, note: str) -> str:
        count = f"{self._done:,}" + (f" of {self._total:,}" if self._total is not None else "")
        rate = self._rate(now)
        return ", ".join(part for part in (count, f"{rate:,.0f}/s" if rate >= 1.0 else "", note) if part)

    def _write_line(self, now: float, note: str) -> None:
        self._last_line = now
        rate = self._rate(now)
        left = f", {max(self._total - self._done, 0) / rate:.0f} s left" if self._total and rate >= 1.0 else ""
        self._print(f"{now - self._began:6.1f} s  {self._stage}: {self._state(now, note)}{left}")

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


@dataclass
class Steps:
    """Writes each step as it begins and ends; keeps the durations in seconds."""

    clock: Clock
    write: Callable[[str], None]
    started: float = field(init=False)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.started = self.clock.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the first step could begin."""
        return self.clock.monotonic() - self.started

    def say(self, text: str) -> None:
        """One line, with the seconds since the start."""
        self.write(f"{self.elapsed:6.1f} s  {text}")

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A step called `name`; its duration counts also when it fails."""
        began = self.clock.monotonic()
        self.say(f"{name} ...")
        try:
            yield
        finally:
            self.seconds[name] = self.clock.monotonic() - began
        self.say(f"{name}: done in {self.seconds[name]:.1f} s")


def plain(text: str) -> str:
    """`text` on one line without control characters, so that data cannot send commands to the terminal."""
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def make_table(headings: Sequence[str], rows: Sequence[Sequence[str]] = (), *, title: str = "") -> Table:
    """A table of `rows`. Titles and cells are plain text: neither markup of rich nor control characters have an effect.

    A heading that starts with ``!`` is of a column of numbers.
    """
    table = Table(
        title=Text(title, style="table.title") if title else None,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for heading in headings:
        numeric = heading.startswith("!")
        table.add_column(heading.removeprefix("!"), justify="right" if numeric else "left", no_wrap=numeric)
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    return table


def print_table(table: Table) -> None:
    """Write `table` to stdout: as wide as the terminal, or as wide as it needs to be in a file or a pipe."""
    console = Console(file=sys.stdout)
    if not console.is_terminal:
        console.width = max(Measurement.get(console, console.options.update(max_width=10_000), table).maximum, 1)
    console.print(table)


def columns(rows: Sequence[Sequence[str]], *, gap: int = 2) -> list[str]:
    """Lines of left-aligned columns, which a narrow terminal does not wrap and `grep` finds."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [(" " * gap).join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
