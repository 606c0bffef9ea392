"""Figures of the incident: alerts of the new version and of the previous one on the same transactions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream_scorer.control.probation import log_evidence
from stream_scorer.reports.quality import Judged
from stream_scorer.reports.recording import Bools, ControlRecord, Floats, Ints
from stream_scorer.reports.story import Story, Update


@dataclass(frozen=True)
class PairedAlerts:
    """Number of transactions that two versions scored, and alerts of each version."""

    rows: int
    served: int
    other: int

    @property
    def rise(self) -> float:
        """Relative rise of alerts, as a share; NaN if the other version has no alerts."""
        return self.served / self.other - 1 if self.other else float("nan")

    @property
    def rise_text(self) -> str:
        """The rise in percent as text."""
        return f"{self.rise:+.0%}" if self.other else "-"


@dataclass(frozen=True)
class Incident:
    """The alerts of the updated version compared with those of the previous version.

    Attributes:
        promoted, rollback: the commands that promoted the version and rolled it back; None if there was none.
        overall, genuine: all transactions that both versions scored; the genuine ones, by the hidden truth.
        seconds: time of reading of each transaction since the promotion ``(n,)``.
        served, other: cumulative alerts of the updated and of the previous version ``(n,)``.
        evidence: evidence for a rise above 5 %, as powers of ten, up to each transaction ``(n,)``.
    """

    update: Update
    promoted: ControlRecord | None
    rollback: ControlRecord | None
    overall: PairedAlerts
    genuine: PairedAlerts
    seconds: Floats
    served: Ints
    other: Ints
    evidence: Floats

    @property
    def rollback_s(self) -> float | None:
        """Seconds from promotion to rollback, by the broker's clock; None without a rollback."""
        return (self.rollback.at - self.promoted.at) / 1_000 if self.promoted and self.rollback else None

    @property
    def last_score_s(self) -> float | None:
        """Seconds from the rollback to the reading of the version's last score; None without either."""
        if self.promoted is None or self.rollback_s is None or not len(self.seconds):
            return None
        return float(self.seconds.max()) - self.rollback_s


def incident_of(story: Story, events: Judged) -> Incident | None:
    """The incident of `story`; None if it has none."""
    update = story.update
    if update is None:
        return None
    recording = story.recording
    contributions, decision = recording.contributions, recording.scores.decision
    promoted = next(
        (g for g in recording.commands if g.command.action == "promote" and g.version == update.version), None
    )
    rollback = next(
        (
            g
            for g in recording.commands
            if promoted is not None and g.offset > promoted.offset and g.command.action == "rollback"
        ),
        None,
    )
    mine = contributions.by(update.version) & (contributions.other >= 0)
    genuine = np.zeros(len(mine), dtype=np.bool_)
    genuine[events.row] = ~events.fraud

    def paired(rows: Bools) -> PairedAlerts:
        return PairedAlerts(
            int(rows.sum()), int((decision[rows] > 0).sum()), int((contributions.other[rows] > 0).sum())
        )

    rows = np.flatnonzero(mine)
    rows = rows[np.argsort(contributions.arrival[rows], kind="stable")]
    ours, theirs = decision[rows] > 0, contributions.other[rows] > 0
    both, only, lacking = (np.cumsum(each, dtype=np.int64) for each in (ours & theirs, ours & ~theirs, ~ours & theirs))
    began = promoted.at if promoted is not None else 0
    return Incident(
        update=update,
        promoted=promoted,
        rollback=rollback,
        overall=paired(mine),
        genuine=paired(mine & genuine),
        seconds=(contributions.arrival[rows] - began) / 1_000,
        served=both + only,
        other=both + lacking,
        evidence=log_evidence(both, only, lacking) / np.log(10),
    )
