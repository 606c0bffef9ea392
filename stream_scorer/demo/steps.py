"""The demo's steps on stderr: what is being done, since when, and how long it took."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from stream_scorer.clock import Clock


@dataclass
class Steps:
    """Says each step as it begins and ends; keeps the durations in seconds for the report."""

    clock: Clock
    write: Callable[[str], None]
    started: float = field(init=False)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.started = self.clock.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the demo began."""
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
