"""A finished run, as the demo hands it to its report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_scorer.reports.recording import Recording


@dataclass(frozen=True)
class Truth:
    """The hidden truth about the live transactions: event ids, and kinds of fraud as indices (0: genuine)."""

    event_id: list[str]
    event_time: NDArray[np.int64]
    kind: NDArray[np.int8]


@dataclass(frozen=True)
class Check:
    """Something that must hold for the run to be called good, and what was found."""

    name: str
    holds: bool
    found: str


@dataclass(frozen=True)
class Update:
    """The version that goes wrong in the second act.

    `member` reads `input` at `scale` times its scale; `share_before` and `share_after` are its shares of the weight.
    `rise` is by how much it raises alerts on the history, as a share.
    """

    version: str
    member: str
    input: str
    scale: float
    share_before: float
    share_after: float
    rise: float

    @property
    def told(self) -> str:
        """What was changed, in a few words."""
        return (
            f"{self.member} reads {self.input} at {self.scale:g} times its scale, with {self.share_after:.0%} of the "
            f"weight in place of {self.share_before:.0%}"
        )


@dataclass
class Story:
    """Everything the report is made of.

    Attributes:
        title: of the page. recording: what was seen from outside. truth: read by the report only.
        ensemble, version: as registered. review, block: thresholds on the score.
        pane_ms, horizon_ms: of the spec. calendar: its columns that are functions of the time alone.
        labels: by source, as sent live. kinds: names of the kinds of fraud.
        sent: transactions, duplicates and garbage as the simulator counted them. rate: asked for, a second.
        training: the train command's report. steps: seconds by step. machine: what it ran on.
        update: the version of the second act; None if there was none.
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
