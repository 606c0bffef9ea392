"""A finished run: the input of the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_scorer.reports.recording import Recording


@dataclass(frozen=True)
class Truth:
    """The hidden truth of the live transactions: event ids, and kinds of fraud as indices (0: genuine)."""

    event_id: list[str]
    event_time: NDArray[np.int64]
    kind: NDArray[np.int8]


@dataclass(frozen=True)
class Check:
    """A condition that must hold for the run to pass, and what was found."""

    name: str
    holds: bool
    found: str


@dataclass(frozen=True)
class Update:
    """The faulty version of the incident.

    `member` reads `input` at `scale` times its scale; `share_before` and `share_after` are its shares of the weight.
    `rise` is the relative rise of alerts on the history, as a share.
    """

    version: str
    member: str
    input: str
    scale: float
    share_before: float
    share_after: float
    rise: float

    @property
    def summary(self) -> str:
        """The change as text."""
        return (
            f"{self.member} reads {self.input} at {self.scale:g} times its scale, with {self.share_after:.0%} of the "
            f"weight instead of {self.share_before:.0%}"
        )


@dataclass
class Story:
    """The data of a report.

    Attributes:
        title: page title. recording: records read from outside. truth: only the report reads it.
        ensemble, version: registered name and version. review, block: thresholds on the score.
        pane_ms, horizon_ms: from the spec. calendar: feature columns that depend only on the time.
        labels: number of live labels by source. kinds: names of the kinds of fraud.
        sent: transactions, duplicates and garbage, counted by the simulator. rate: target transactions per second.
        training: the train command's report. steps: seconds by step. machine: description of the machine.
        update: the faulty version; None without an incident.
    """

    title: str
    recording: Recording
    truth: Truth
    ensemble: str
    version: str
    review: float
    block: float
    pane_ms: int
    horizon_ms: int
    calendar: frozenset[str]
    labels: dict[str, int]
    kinds: tuple[str, ...]
    sent: dict[str, int]
    rate: float
    training: dict[str, Any]
    steps: dict[str, float]
    total_s: float
    machine: str
    checks: list[Check] = field(default_factory=list)
    update: Update | None = None
