"""Quality of the decisions against the hidden truth; each event counts once, by its first copy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream_scorer.arrays import Bools, Floats, Ints
from stream_scorer.quality import AlertQuality, alert_quality, average_precision, roc_auc
from stream_scorer.reports.story import Story

ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class Judged:
    """Scored events with their truth, columns ``(n,)``; `row` indexes the recording's scores and contributions."""

    row: Ints
    kind: Ints
    alert: Bools
    blocked: Bools

    @property
    def fraud(self) -> Bools:
        return self.kind > 0


@dataclass(frozen=True)
class Quality:
    """Metrics of the ensemble or of a single member; `alerts` at the review threshold."""

    name: str
    average_precision: float | None
    roc_auc: float | None
    alerts: AlertQuality


def judged(story: Story) -> Judged:
    """The scored events of a story that the truth contains, without second copies."""
    scores = story.recording.scores
    kind_of = dict(zip(story.truth.event_id, story.truth.kind.tolist(), strict=True))
    kinds = np.array([kind_of.get(event_id, -1) for event_id in scores.event_id], dtype=np.int64)
    row = np.flatnonzero((kinds >= 0) & ~scores.duplicate)
    decision = scores.decision[row]
    return Judged(row, kinds[row], decision > 0, decision == 2)


def qualities(story: Story, events: Judged) -> list[Quality]:
    """Metrics of the ensemble, then of every single member."""
    contributions = story.recording.contributions
    found = [_quality(ENSEMBLE, contributions.score[events.row], events.alert, events.fraud)]
    for m, name in enumerate(contributions.members):
        score = contributions.member_score[events.row, m]
        # As `member_alerts` counts them: the member's calibrated score at the ensemble's threshold.
        found.append(_quality(name, score, score >= story.review, events.fraud))
    return found


def recall_by_kind(story: Story, events: Judged) -> list[tuple[str, int, int]]:
    """Per kind of fraud that occurred: its name, how many were alerted, how many there were."""
    found = []
    for kind in range(1, len(story.kinds)):
        mine = events.kind == kind
        if mine.any():
            found.append((story.kinds[kind], int((mine & events.alert).sum()), int(mine.sum())))
    return found


def _quality(name: str, score: Floats, alert: Bools, fraud: Bools) -> Quality:
    return Quality(name, average_precision(score, fraud), roc_auc(score, fraud), alert_quality(alert, fraud))
