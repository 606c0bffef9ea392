"""The quality of a replay: its scores against the effective labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stream_scorer.arrays import Bools, Floats
from stream_scorer.quality import alert_quality, average_precision, roc_auc
from stream_scorer.records import Record
from stream_scorer.serde.decoder import LabelDecoder
from stream_scorer.serde.label_ranks import label_ranks
from stream_scorer.serde.raw import RawRecords
from stream_scorer.serde.rejections import Rejections
from stream_scorer.spec.model import CheckedSpec


class AtThreshold(Record, frozen=True):
    """Metrics of alerts at or above a threshold; null where a rate is undefined."""

    threshold: float
    alerts: int
    precision: float | None
    recall: float | None
    false_positive_rate: float | None


class Figures(Record, frozen=True):
    """Metrics of one member or of the ensemble over the `rows` rows with a score."""

    name: str
    rows: int
    average_precision: float | None
    roc_auc: float | None
    review: AtThreshold
    block: AtThreshold


class Quality(Record, frozen=True):
    """Scores against labels. Rows without a label are presumed genuine; duplicates are excluded.

    `labelled` of the `rows` have a label, `frauds` of them fraud. `members` in manifest order.
    """

    rows: int
    labelled: int
    frauds: int
    duplicates: int
    ensemble: Figures
    members: list[Figures]

    @property
    def statement(self) -> str:
        """The number of rows with labels, as a sentence."""
        return (
            f"{self.labelled:,} of {self.rows:,} rows have a label ({self.frauds:,} fraud); "
            f"the other {self.rows - self.labelled:,} are presumed genuine"
        )


def at_threshold(score: Floats, label: Bools, threshold: float) -> AtThreshold:
    """See `AtThreshold`; a NaN score raises no alert."""
    alerts = alert_quality(score >= threshold, label)
    return AtThreshold(threshold, alerts.alerts, alerts.precision, alerts.recall, alerts.false_positive_rate)


class EffectiveLabels:
    """The labels by event id: the last one by (source rank, labelled_at, order of arrival) is effective.

    Attributes:
        refused: labels that cannot be read.
    """

    def __init__(self, checked: CheckedSpec) -> None:
        self._decoder = LabelDecoder(checked)
        self._rank = checked.spec.labels.source_rank
        self._effective: dict[str, tuple[int, int, bool]] = {}
        self.refused = Rejections("labels")

    def __len__(self) -> int:
        return len(self._effective)

    def add(self, records: RawRecords) -> None:
        """Add labels; records that cannot be decoded are counted."""
        labels, rejected = self._decoder.decode(records.value, records.timestamp)
        self.refused.add(rejected, len(records))
        ranks = label_ranks(self._rank, labels, records.value).tolist()
        known = self._effective
        for rank, event_id, at, fraud in zip(
            ranks, labels.event_id, labels.labelled_at.tolist(), labels.fraud.tolist(), strict=True
        ):
            before = known.get(event_id)
            if before is None or (rank, at) >= before[:2]:
                known[event_id] = (rank, at, fraud)

    def of(self, event_ids: Sequence[str]) -> tuple[Bools, Bools]:
        """(n,) bool each: whether there is a label, and whether it is fraud."""
        effective = [self._effective.get(event_id) for event_id in event_ids]
        labelled = np.array([e is not None for e in effective], dtype=np.bool_)
        return labelled, np.array([e is not None and e[2] for e in effective], dtype=np.bool_)


class ScoredRows:
    """What the evaluation needs of every scored row: scores and label, without an id. Nothing if there are no labels.

    Args:
        labels: all labels, also those given after the range.
    """

    def __init__(self, labels: EffectiveLabels | None = None) -> None:
        self._labels = labels
        self._parts: list[tuple[Floats, Floats, Bools, Bools]] = []
        self.duplicates = 0

    def __len__(self) -> int:
        return sum(len(score) for score, *_ in self._parts) + self.duplicates

    def add(self, event_id: list[str], score: Floats, members: Floats, duplicate: Bools) -> None:
        """Append a batch: ``(n,)``, ``(n, m)``, ``(n,)``. Duplicates are only counted."""
        if not self._labels:
            return
        unique = ~duplicate
        self.duplicates += int(duplicate.sum())
        labelled, fraud = self._labels.of(event_id)
        self._parts.append((score[unique], members[unique], labelled[unique], fraud[unique]))

    def columns(self) -> tuple[Floats, Floats, Bools, Bools]:
        """Score ``(n,)``, member scores ``(n, m)``, whether there is a label, and whether it is fraud ``(n,)``."""
        score, members, labelled, fraud = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        return score, members, labelled, fraud


def evaluate(rows: ScoredRows, member_names: Sequence[str], review: float, block: float) -> Quality | None:
    """Evaluate `rows` at the decision thresholds; None if there is no row or no label."""
    if not len(rows):
        return None
    score, members, labelled, fraud = rows.columns()

    def figures(name: str, of: Floats) -> Figures:
        return Figures(
            name,
            int((~np.isnan(of)).sum()),
            average_precision(of, fraud),
            roc_auc(of, fraud),
            at_threshold(of, fraud, review),
            at_threshold(of, fraud, block),
        )

    return Quality(
        len(fraud),
        int(labelled.sum()),
        int(fraud.sum()),
        rows.duplicates,
        figures("ensemble", score),
        [figures(name, members[:, i]) for i, name in enumerate(member_names)],
    )
