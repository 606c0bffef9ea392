"""Figures of the incident: alerts of the new version and of the previous one on the same transactions and cards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream_scorer.arrays import Bools, Floats, Ints
from stream_scorer.control.cards import AlertedCards
from stream_scorer.control.probation import GRACE_MS
from stream_scorer.control.verdict import Tolerances, log_evidences
from stream_scorer.records import CardAlerts
from stream_scorer.records import Incident as IncidentRecord
from stream_scorer.reports.quality import Judged
from stream_scorer.reports.recording import ControlRecord, Recording
from stream_scorer.reports.story import Story, Update

_NO_CARDS = CardAlerts(0, 0, [], [], [])


@dataclass(frozen=True)
class PairedAlerts:
    """Number of transactions that two versions scored, and alerts of each version."""

    rows: int
    candidate: int
    baseline: int

    @property
    def rise(self) -> float:
        """Relative rise of alerts, as a share; NaN if the baseline has no alerts."""
        return self.candidate / self.baseline - 1 if self.baseline else float("nan")

    @property
    def rise_text(self) -> str:
        """The rise in percent as text."""
        return f"{self.rise:+.0%}" if self.baseline else "-"


@dataclass(frozen=True)
class Incident:
    """The alerts of the updated version compared with those of the previous version.

    Attributes:
        promoted, rollback: the commands that promoted the version and rolled it back; None if there was none.
        record: what the monitor published about the version on `incidents`; None if nothing.
        overall, genuine: all transactions that both versions scored; the genuine ones, by the hidden truth.
        seconds: time of reading of each transaction since the promotion ``(n,)``.
        candidate, baseline: cumulative alerts of the updated and of the previous version ``(n,)``.
        cards: alerted cards counted up to each transaction ``(n, 3)``: by both versions, only by the updated one, and
            only by the previous one.
        evidence: evidence for a rise of alerted cards above 5 %, as powers of ten, up to each transaction ``(n,)``.
    """

    update: Update
    promoted: ControlRecord | None
    rollback: ControlRecord | None
    record: IncidentRecord | None
    overall: PairedAlerts
    genuine: PairedAlerts
    seconds: Floats
    candidate: Ints
    baseline: Ints
    cards: Ints
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
    cards = _counted_cards(recording, rows, ours, theirs)
    began = promoted.at if promoted is not None else 0
    return Incident(
        update=update,
        promoted=promoted,
        rollback=rollback,
        record=next((r for r in recording.incidents if r.kind == "verdict" and r.version == update.version), None),
        overall=paired(mine),
        genuine=paired(mine & genuine),
        seconds=(contributions.arrival[rows] - began) / 1_000,
        candidate=np.cumsum(ours, dtype=np.int64),
        baseline=np.cumsum(theirs, dtype=np.int64),
        cards=cards,
        evidence=log_evidences(cards[:, 0], cards[:, 1], cards[:, 2], Tolerances())[0] / np.log(10),
    )


def _counted_cards(recording: Recording, rows: Ints, ours: Bools, theirs: Bools) -> Ints:
    """``(n, 3)``: the cards that the monitor has counted after each of `rows`, in order of arrival."""
    contributions, scores = recording.contributions, recording.scores
    cards = AlertedCards(GRACE_MS)
    out = np.zeros((len(rows), 3), dtype=np.int64)
    columns = (contributions.partition, contributions.card, scores.event_time, scores.duplicate)
    listed = zip(*(column[rows].tolist() for column in columns), ours.tolist(), theirs.tolist(), strict=True)
    for row, (partition, card, at, duplicate, our, their) in enumerate(listed):
        alerted = (our or their) and not duplicate
        one = CardAlerts(1, 0, [f"{card:x}"], [at if our else None], [at if their else None])
        cards.add(partition, one if alerted else _NO_CARDS, at)
        counts = cards.counts
        out[row] = counts.both, counts.candidate_only, counts.baseline_only
    return out
