"""Figures of scores against labels, in plain numpy: what a scorer has installed is enough to judge a replay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stream_scorer.records import Record
from stream_scorer.serde.decoder import LabelDecoder
from stream_scorer.serde.raw import RawRecords
from stream_scorer.spec.model import CheckedSpec

F64 = NDArray[np.float64]
Bools = NDArray[np.bool_]


def average_precision(score: F64, label: Bools) -> float | None:
    """Area under the precision-recall steps of ``(n,)`` scores, ties as one threshold; None without a fraud."""
    hits, falls = _ranked(score, label)
    total = hits[-1] if len(hits) else 0.0
    if not total:
        return None
    gained = np.diff(hits, prepend=0.0)
    return float(np.sum(gained * hits / (hits + falls)) / total)


def roc_auc(score: F64, label: Bools) -> float | None:
    """Probability that a fraud scores above a genuine transaction, ties half; None unless there are both."""
    hits, falls = _ranked(score, label)
    if not len(hits) or not hits[-1] or not falls[-1]:
        return None
    area = np.sum(np.diff(falls, prepend=0.0) * (hits + np.concatenate(([0.0], hits[:-1]))) / 2.0)
    return float(area / (hits[-1] * falls[-1]))


def _ranked(score: F64, label: Bools) -> tuple[F64, F64]:
    """Frauds and genuine transactions at or above each distinct score, falling; NaN scores are left out."""
    known = ~np.isnan(score)
    score, label = score[known], label[known]
    order = np.argsort(-score, kind="stable")
    score, label = score[order], label[order]
    last = np.flatnonzero(np.append(np.diff(score) != 0, True)) if len(score) else np.zeros(0, dtype=np.int64)
    hits = np.cumsum(label)[last].astype(np.float64)
    return hits, last + 1.0 - hits


class AtThreshold(Record, frozen=True):
    """What alerting at or above a threshold comes to; null where nothing is alerted, or there is nothing to find."""

    threshold: float
    alerts: int
    precision: float | None
    recall: float | None
    false_positive_rate: float | None


class Figures(Record, frozen=True):
    """One member's, or the ensemble's, figures over `rows` rows that have a score."""

    name: str
    rows: int
    average_precision: float | None
    roc_auc: float | None
    review: AtThreshold
    block: AtThreshold


class Quality(Record, frozen=True):
    """Scores against labels. Rows without a label are presumed genuine; duplicates are left out.

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
        """How many rows have labels, in one sentence."""
        return (
            f"{self.labelled:,} of {self.rows:,} rows have a label ({self.frauds:,} fraud); "
            f"the other {self.rows - self.labelled:,} are presumed genuine"
        )


def at_threshold(score: F64, label: Bools, threshold: float) -> AtThreshold:
    """See `AtThreshold`; a NaN score raises no alert."""
    alert = score >= threshold
    caught, alerts, frauds = int((alert & label).sum()), int(alert.sum()), int(label.sum())
    genuine = len(label) - frauds
    return AtThreshold(
        threshold,
        alerts,
        caught / alerts if alerts else None,
        caught / frauds if frauds else None,
        (alerts - caught) / genuine if genuine else None,
    )


class EffectiveLabels:
    """The labels by event id: the last by (source rank, labelled_at, order of arrival) stands."""

    def __init__(self, checked: CheckedSpec) -> None:
        self._decoder = LabelDecoder(checked)
        self._rank = checked.spec.labels.source_rank
        self._verdict: dict[str, tuple[int, int, bool]] = {}

    def __len__(self) -> int:
        return len(self._verdict)

    def add(self, records: RawRecords) -> None:
        """Take note of labels; what cannot be read is no label."""
        import msgspec

        labels, _ = self._decoder.decode(records.value)
        source = msgspec.json.Decoder(_SourceOnly).decode
        known = self._verdict
        for row, event_id, at, fraud in zip(
            labels.row.tolist(), labels.event_id, labels.labelled_at.tolist(), labels.fraud.tolist(), strict=True
        ):
            rank = self._rank.get(source(records.value[row] or b"").source, 0)
            before = known.get(event_id)
            if before is None or (rank, at) >= before[:2]:
                known[event_id] = (rank, at, fraud)

    def of(self, event_ids: Sequence[str]) -> tuple[Bools, Bools]:
        """(n,) bool each: whether there is a label, and whether it says fraud."""
        found = [self._verdict.get(event_id) for event_id in event_ids]
        labelled = np.array([f is not None for f in found], dtype=np.bool_)
        return labelled, np.array([f is not None and f[2] for f in found], dtype=np.bool_)


class _SourceOnly(Record, frozen=True):
    source: str


@dataclass
class ScoredRows:
    """What is kept of every scored row to be judged: ids, final and member scores, duplicates."""

    event_id: list[str] = field(default_factory=list)
    score: list[F64] = field(default_factory=list)
    members: list[F64] = field(default_factory=list)
    duplicate: list[Bools] = field(default_factory=list)

    def add(self, event_id: list[str], score: F64, members: F64, duplicate: Bools) -> None:
        """Append a batch: ``(n,)``, ``(n, m)``, ``(n,)``."""
        self.event_id += event_id
        self.score.append(score)
        self.members.append(members)
        self.duplicate.append(duplicate)


def judge(
    rows: ScoredRows, verdicts: EffectiveLabels, member_names: Sequence[str], review: float, block: float
) -> Quality | None:
    """Figures of `rows` at the thresholds that decide; None when there is no row or no label."""
    if not rows.event_id or not len(verdicts):
        return None
    labelled, fraud = verdicts.of(rows.event_id)
    duplicate = np.concatenate(rows.duplicate)
    once = ~duplicate
    labelled, fraud = labelled[once], fraud[once]
    score, members = np.concatenate(rows.score)[once], np.concatenate(rows.members)[once]

    def figures(name: str, of: F64) -> Figures:
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
        int(duplicate.sum()),
        figures("ensemble", score),
        [figures(name, members[:, i]) for i, name in enumerate(member_names)],
    )
