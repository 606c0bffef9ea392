"""The second act in figures: what the new version did, against what the one before would have done."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream_scorer.control.probation import log_evidence
from stream_scorer.reports.quality import Judged
from stream_scorer.reports.recording import Bools, Floats, Given, Ints
from stream_scorer.reports.story import Story, Update


@dataclass(frozen=True)
class Square:
    """Transactions that two versions were asked about: how many each alerts."""

    rows: int
    served: int
    other: int

    @property
    def rise(self) -> float:
        """By how much the first alerts more, as a share; NaN if the other alerts nothing."""
        return self.served / self.other - 1 if self.other else float("nan")

    @property
    def more(self) -> str:
        """The rise in percent, for people."""
        return f"{self.rise:+.0%}" if self.other else "-"


@dataclass(frozen=True)
class Incident:
    """What the updated version did.

    Attributes:
        promoted, back: the commands that put it into service and took it out; None if there was none.
        everyone, genuine: all transactions it decided beside the version before; genuine ones, by the hidden truth.
        seconds: since the promotion, when a reader had each of them ``(n,)``.
        served, other: alerts up to then ``(n,)``.
        evidence: powers of ten of evidence for a rise above 5 %, up to then ``(n,)``.
    """

    update: Update
    promoted: Given | None
    back: Given | None
    everyone: Square
    genuine: Square
    seconds: Floats
    served: Ints
    other: Ints
    evidence: Floats

    @property
    def took_s(self) -> float | None:
        """Seconds from promotion to rollback, by the broker's clock; None if it was not rolled back."""
        return (self.back.at - self.promoted.at) / 1_000 if self.promoted and self.back else None

    @property
    def last_s(self) -> float | None:
        """Seconds from the rollback until a reader had the last score of the version; None without either."""
        if self.promoted is None or self.took_s is None or not len(self.seconds):
            return None
        return float(self.seconds.max()) - self.took_s


def incident_of(story: Story, events: Judged) -> Incident | None:
    """The second act of `story`; None if it had none."""
    update = story.update
    if update is None:
        return None
    recording = story.recording
    lineages, decision = recording.lineages, recording.scores.decision
    promoted = next(
        (g for g in recording.commands if g.command.action == "promote" and g.version == update.version), None
    )
    back = next(
        (
            g
            for g in recording.commands
            if promoted is not None and g.offset > promoted.offset and g.command.action == "rollback"
        ),
        None,
    )
    mine = lineages.by(update.version) & (lineages.other >= 0)
    genuine = np.zeros(len(mine), dtype=np.bool_)
    genuine[events.row] = ~events.fraud

    def square(rows: Bools) -> Square:
        return Square(int(rows.sum()), int((decision[rows] > 0).sum()), int((lineages.other[rows] > 0).sum()))

    rows = np.flatnonzero(mine)
    rows = rows[np.argsort(lineages.arrival[rows], kind="stable")]
    ours, theirs = decision[rows] > 0, lineages.other[rows] > 0
    both, only, lacking = (np.cumsum(each, dtype=np.int64) for each in (ours & theirs, ours & ~theirs, ~ours & theirs))
    began = promoted.at if promoted is not None else 0
    return Incident(
        update=update,
        promoted=promoted,
        back=back,
        everyone=square(mine),
        genuine=square(mine & genuine),
        seconds=(lineages.arrival[rows] - began) / 1_000,
        served=both + only,
        other=both + lacking,
        evidence=log_evidence(both, only, lacking) / np.log(10),
    )
