"""Schedules of faults: generated from a seed before a run, saved, replayed, and shrunk to the part that fails.

Everything here is pure: the same seed gives the same schedule, and `shrink` calls only the function that it is given.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

# Mean time between the starts of two actions. 12 seeds of 300 s then have about 2,500 actions, of which some find that
# their target is gone.
EVERY_MS = 1_400
# No action starts in the first seconds, in which scorers join their group, and all end before the run does.
QUIET_MS = 3_000


class Kind(msgspec.Struct, frozen=True):
    """One kind of action.

    Attributes:
        targets: what it may act on, one of them per action; empty if there is no choice.
        min_ms, max_ms: bounds of its duration.
        weight: how often it occurs, relative to other kinds.
        choices: parameters and the values that each may have.
    """

    name: str
    group: str
    targets: tuple[str, ...] = ()
    min_ms: int = 0
    max_ms: int = 0
    weight: int = 2
    choices: dict[str, tuple[float | int | str, ...]] = {}


class Action(msgspec.Struct, frozen=True):
    """One action: it starts `at_ms` after the start of the run and heals by itself after `duration_ms`.

    `seed` is for whatever it draws, so an action does the same without the other ones of its schedule.
    """

    at_ms: int
    kind: str
    target: str
    duration_ms: int
    seed: int
    parameters: dict[str, float | int | str] = {}

    def __str__(self) -> str:
        parameters = "".join(f" {name}={value}" for name, value in self.parameters.items())
        target = f" {self.target}" if self.target else ""
        return f"{self.at_ms / 1_000:7.2f} s  {self.kind}{target} for {self.duration_ms / 1_000:.2f} s{parameters}"


class Schedule(msgspec.Struct, frozen=True):
    """All actions of one run of `duration_ms`, with `rate` transactions per second of traffic made from `seed`."""

    seed: int
    duration_ms: int
    rate: int
    actions: list[Action]


def generate(seed: int, duration_ms: int, rate: int, kinds: Sequence[Kind], every_ms: int = EVERY_MS) -> Schedule:
    """The schedule of `seed`.

    Kinds come from a bag that holds each of them `weight` times and is refilled when it is empty. So a run that is long
    enough has every kind.
    """
    rng = random.Random(f"storm {seed}")
    bag: list[Kind] = []
    actions = []
    at = float(QUIET_MS)
    while True:
        at += rng.expovariate(1 / every_ms)
        if at >= duration_ms - QUIET_MS:
            return Schedule(seed, duration_ms, rate, actions)
        if not bag:
            bag = [kind for kind in kinds for _ in range(kind.weight)]
            rng.shuffle(bag)
        kind = bag.pop()
        longest = min(kind.max_ms, duration_ms - int(at))
        actions.append(
            Action(
                int(at),
                kind.name,
                rng.choice(kind.targets) if kind.targets else "",
                rng.randint(min(kind.min_ms, longest), longest),
                rng.randrange(1 << 32),
                {name: rng.choice(values) for name, values in kind.choices.items()},
            )
        )


def save(schedule: Schedule, path: Path) -> None:
    """Write it as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(schedule), indent=1))


def load(path: Path) -> Schedule:
    """Read what `save` wrote. Raises `msgspec.DecodeError` or `OSError`."""
    return msgspec.json.decode(path.read_bytes(), type=Schedule)


def overlapping(spans: Sequence[tuple[float, float]]) -> int:
    """How many of the spans (start, end) have a time in common with another one."""
    ordered = sorted(spans)
    found = 0
    latest = float("-inf")
    for index, (start, end) in enumerate(ordered):
        follows = index + 1 < len(ordered) and ordered[index + 1][0] <= end
        found += start <= latest or follows
        latest = max(latest, end)
    return found


def counts(actions: Sequence[Action]) -> dict[str, int]:
    """Number of actions by kind."""
    return dict(sorted(Counter(action.kind for action in actions).items()))


def shrink(actions: Sequence[Action], fails: Callable[[list[Action]], bool], max_runs: int) -> tuple[list[Action], int]:
    """The smallest list of actions found that still fails, and the number of runs, at most `max_runs`.

    Delta debugging (Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002): first no action
    at all, then parts of the list and what remains without a part, with ever smaller parts.
    """
    left, runs = list(actions), 0

    def attempt(candidate: list[Action]) -> bool:
        nonlocal runs
        runs += 1
        return fails(candidate)

    if left and max_runs and attempt([]):
        return [], runs
    parts = 2
    while len(left) > 1 and runs < max_runs:
        chunks = _split(left, parts)
        candidates = [(chunk, 2) for chunk in chunks]
        if parts > 2:
            candidates += [(rest, parts - 1) for rest in _complements(left, chunks)]
        smaller = next((found for found in candidates if runs < max_runs and attempt(found[0])), None)
        if smaller is not None:
            left, parts = smaller
        elif parts >= len(left):
            break
        else:
            parts = min(2 * parts, len(left))
    return left, runs


def _split(actions: list[Action], parts: int) -> list[list[Action]]:
    edges = [len(actions) * i // parts for i in range(parts + 1)]
    return [actions[low:high] for low, high in zip(edges[:-1], edges[1:], strict=True) if high > low]


def _complements(actions: list[Action], chunks: list[list[Action]]) -> list[list[Action]]:
    out, low = [], 0
    for chunk in chunks:
        out.append(actions[:low] + actions[low + len(chunk) :])
        low += len(chunk)
    return out
