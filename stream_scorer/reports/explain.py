"""Explanations of a few alerts: base, contribution per member, score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream_scorer.records import DECISIONS
from stream_scorer.reports.quality import Judged
from stream_scorer.reports.story import Story

SHOWN = 3


@dataclass(frozen=True)
class Part:
    """One member: its score, its share of the weight, and its contribution to the log-odds."""

    name: str
    score: float
    weight: float
    contribution: float


@dataclass(frozen=True)
class Explained:
    """One alert: ``base + sum of contributions == z``; the final calibrator maps z to the score.

    `unit` is the scale of z: that of the ensemble's link.
    """

    event_id: str
    event_time: int
    value: int
    decision: str
    kind: str
    base: float
    parts: list[Part]
    z: float
    score: float
    unit: str = "log-odds"

    @property
    def residual(self) -> float:
        """Absolute difference between z and base plus contributions; the contract allows 1e-9."""
        return abs(self.base + sum(part.contribution for part in self.parts) - self.z)


def explained_alerts(story: Story, events: Judged, shown: int = SHOWN) -> list[Explained]:
    """The true alerts with the largest sum of contributions; first one per kind of fraud, then the rest."""
    recording = story.recording
    contributions, scores = recording.contributions, recording.scores
    true = np.flatnonzero(events.alert & events.fraud & ~np.isnan(contributions.z[events.row]))
    raised = contributions.contribution[events.row[true]].sum(axis=1)
    order = true[np.argsort(-raised, kind="stable")].tolist()
    chosen: list[int] = []
    for place in order:
        if events.kind[place] not in {events.kind[other] for other in chosen}:
            chosen.append(place)
    chosen = [*chosen, *(place for place in order if place not in chosen)][:shown]
    found = []
    for place in chosen:
        row = int(events.row[place])
        parts = [
            Part(name, float(score), float(weight), float(contribution))
            for name, score, weight, contribution in zip(
                contributions.members, contributions.member_score[row], contributions.weight[row],
                contributions.contribution[row],
                strict=True,
            )
        ]  # fmt: skip
        found.append(
            Explained(
                event_id=contributions.event_id[row],
                event_time=int(scores.event_time[row]),
                value=int(scores.value[row]),
                decision=DECISIONS[int(scores.decision[row])],
                kind=story.kinds[int(events.kind[place])],
                base=float(contributions.base[row]),
                parts=sorted(parts, key=lambda part: -abs(part.contribution)),
                z=float(contributions.z[row]),
                score=float(contributions.score[row]),
            )
        )
    return found
