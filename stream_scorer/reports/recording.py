"""What was seen of a run from outside, as columns; every figure of a report is a function of this."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stream_scorer.records import Alert, Command, MonitorMetric

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Places:
    """Records by place: `partition` and `offset`, both ``(n,) int64``."""

    partition: Ints
    offset: Ints

    @staticmethod
    def of(pairs: list[tuple[int, int]]) -> Places:
        """Places of ``(partition, offset)`` pairs."""
        table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        return Places(table[:, 0], table[:, 1])

    def __len__(self) -> int:
        return len(self.partition)

    @property
    def number(self) -> Ints:
        """``(n,)``: one integer for each place, in order of partition and offset (offsets below 2**48)."""
        return (self.partition << 48) + self.offset


@dataclass(frozen=True)
class Inputs:
    """Records on `transactions`: their places and Kafka timestamps ``(n,)``, epoch ms."""

    places: Places
    timestamp: Ints


@dataclass(frozen=True)
class Lineages:
    """Records on `contributions`, in order of output partition and offset.

    Attributes:
        partition: output partition ``(n,)``. source: where the transaction came from.
        event_id: n of them. arrival: when they were read here, epoch ms ``(n,)``.
        base, z, score: ``(n,)``, NaN where null. member_score, weight, contribution: ``(n, n_members)``.
        members: their names, in the order of the columns.
        version: which version decided, an index of `versions` ``(n,)``.
        other: what the version beside it would have decided, an index of `DECISIONS`, -1 where there was none ``(n,)``.
    """

    partition: Ints
    source: Places
    event_id: list[str]
    arrival: Ints
    base: Floats
    z: Floats
    score: Floats
    member_score: Floats
    weight: Floats
    contribution: Floats
    members: list[str]
    version: Ints
    versions: list[str]
    other: Ints

    def by(self, version: str) -> Bools:
        """Which ``(n,)`` of them `version` decided."""
        number = self.versions.index(version) if version in self.versions else -1
        return np.asarray(self.version == number, dtype=np.bool_)


@dataclass(frozen=True)
class Scores:
    """Records on `scores`, in order of output partition and offset; columns ``(n,)``.

    `decision` is an index of `DECISIONS`, `member_alerts` a bit mask, times are epoch ms, `value` is minor units.
    """

    partition: Ints
    event_id: list[str]
    event_time: Ints
    scored_at: Ints
    decision: Ints
    member_alerts: Ints
    duplicate: Bools
    degraded: Bools
    value: Ints
    versions: list[tuple[str, str]]


@dataclass(frozen=True)
class DeadLetters:
    """Records on the dead-letter topic that came from `transactions`: where from, and their error codes."""

    places: Places
    code: list[str]


@dataclass(frozen=True)
class Given:
    """A record on `control`: its place in the log, when the broker took it (epoch ms), and the command."""

    offset: int
    at: int
    command: Command

    @property
    def version(self) -> str:
        """The version it names; empty for none."""
        return self.command.version.version if self.command.version is not None else ""


@dataclass(frozen=True)
class Recording:
    """Everything that was seen of one run."""

    inputs: Inputs
    lineages: Lineages
    scores: Scores
    dead: DeadLetters
    alerts: list[Alert]
    metrics: list[MonitorMetric] = field(default_factory=list)
    commands: list[Given] = field(default_factory=list)
