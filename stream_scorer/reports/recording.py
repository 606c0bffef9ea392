"""The records of a run, read from outside, as columns; every figure of a report is a function of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from stream_scorer.arrays import Bools, Floats, Ints
from stream_scorer.records import Alert, Command, Incident, MonitorMetric


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
class Contributions:
    """Records on `contributions`, in order of output partition and offset.

    Attributes:
        partition: output partition ``(n,)``. source: place of the transaction.
        event_id: ``(n,)``. arrival: time of reading, epoch ms ``(n,)``.
        base, z, score: ``(n,)``, NaN where null. member_score, weight, contribution: ``(n, n_members)``.
        members: names in the order of the columns.
        version: the deciding version, an index of `versions` ``(n,)``.
        other: decision of the other version, an index of `DECISIONS`, -1 without one ``(n,)``.
        card: number of the card, by record key ``(n,)``.
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
    card: Ints

    def by(self, version: str) -> Bools:
        """Mask ``(n,)`` of the records that `version` decided."""
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
    """Dead letters of `transactions`: places of the rejected records, and error codes."""

    places: Places
    code: list[str]


@dataclass(frozen=True)
class ControlRecord:
    """A record on `control`: its offset, its broker timestamp (epoch ms), and the command."""

    offset: int
    at: int
    command: Command

    @property
    def version(self) -> str:
        """The version in the command; empty without one."""
        return self.command.version.version if self.command.version is not None else ""


@dataclass(frozen=True)
class Recording:
    """All records of one run; of each incident, the newest record."""

    inputs: Inputs
    contributions: Contributions
    scores: Scores
    dead: DeadLetters
    alerts: list[Alert]
    metrics: list[MonitorMetric] = field(default_factory=list)
    commands: list[ControlRecord] = field(default_factory=list)
    incidents: list[Incident] = field(default_factory=list)
