"""Explains one published score from its contribution and lineage, by members and by the inputs of each member."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from stream_scorer.ensemble.attribution import Explainer, strongest
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.errors import UsageError
from stream_scorer.kafka.topics import Topics
from stream_scorer.records import NOT_A_RECORD, Contribution, LineageRow, Record, Score
from stream_scorer.replay.recorded import Recorded, TimedRanges, find_lineage, not_written_by_a_scorer
from stream_scorer.serde.fat_contribution import decode_contribution

STATUSES = ("fresh", "stale", "missing", "default", "partial")


class FeaturePart(Record, frozen=True):
    """One input of a member: its recorded value and status, and its contribution to the member's margin."""

    feature: str
    value: float | None
    status: str
    contribution: float


class MemberPart(Record, frozen=True):
    """One member's part in the score. `score_again` is its score recomputed from the recorded features.

    `inside` lists its strongest inputs by the method `how`; if it is empty, `how` is the reason. `inside_base` is the
    base of the attribution. Both are in units of the member's margin, before its calibrator.
    """

    name: str
    status: str
    score: float | None
    score_again: float | None
    weight: float
    contribution: float
    how: str
    inside_base: float | None
    inside: list[FeaturePart]


class Explanation(Record, frozen=True):
    """A score, its records and its members' parts, strongest first; `same` is false if a recomputed score differs."""

    score: Score
    contribution: Contribution
    lineage: LineageRow
    review: float
    block: float
    members: list[MemberPart]
    copies: int
    same: bool


def find_event(
    reader: TimedRanges, topics: Topics, event_id: str, on_progress: Callable[[int], None] | None = None
) -> tuple[Score, Contribution, LineageRow, int]:
    """The first score of `event_id`, its contribution and lineage, and the number of scores with that id.

    Raises:
        UsageError: the score or its lineage does not exist. CheckFailed: a record with this id is not one of a scorer.
    """
    decode_score = msgspec.json.Decoder(Score).decode
    # Records that do not contain the bytes of the id are not decoded.
    wanted, done = msgspec.json.encode(event_id), 0
    scores: list[Score] = []
    contributions: list[Recorded] = []
    for topic in (topics.scores, topics.contributions):
        for source, (low, high) in sorted(reader.bounds(topic).items()):
            for chunk in reader.read(source, low, high):
                for offset, value in zip(chunk.offset.tolist(), chunk.value, strict=True):
                    if value is None or wanted not in value:
                        continue
                    try:
                        if topic == topics.scores:
                            scores += [s for s in [decode_score(value)] if s.event_id == event_id]
                        else:
                            recorded = Recorded(*decode_contribution(value))
                            contributions += [recorded] if recorded.contribution.event_id == event_id else []
                    except NOT_A_RECORD as error:
                        raise not_written_by_a_scorer(source, offset, error) from None
                done += len(chunk)
                if on_progress is not None:
                    on_progress(done)
    if not scores or not contributions:
        raise UsageError(
            f"no score of event {event_id!r} on {topics.scores} and {topics.contributions}",
            hint="Is the id right, and the topic prefix? A bad record is on the dead-letter topic: dlq list.",
        )
    first = min(scores, key=lambda s: s.scored_at)
    same = [c for c in contributions if (c.contribution.version, c.contribution.score) == (first.version, first.score)]
    contribution, lineage = (same or contributions)[0]
    if lineage is None:
        at = contribution.source
        lineage = find_lineage(reader, topics, at.partition, at.offset, event_id, first.scored_at)
    if lineage is None:
        raise UsageError(
            f"no lineage of event {event_id!r} ({at.topic}[{at.partition}]@{at.offset}) on {topics.lineage}",
            hint="Retention may have removed it: keep that topic as long as scores must be explainable.",
        )
    return first, contribution, lineage, len(scores)


def explain(
    score: Score,
    contribution: Contribution,
    lineage: LineageRow,
    copies: int,
    ensemble: Ensemble,
    folder: Path,
    tolerance: float,
    features: int,
) -> Explanation:
    """Explain with `ensemble`, whose files are in `folder`; at most `features` inputs per member.

    Raises:
        UsageError: the record is not of this ensemble.
    """
    manifest = ensemble.manifest
    if len(lineage.features) != len(manifest.features) or contribution.members.name != ensemble.member_names:
        raise UsageError(f"event {score.event_id} was not scored by {ensemble.name} {ensemble.version}")
    row = np.array([lineage.features], dtype=np.float64)
    again, explainer = ensemble.score(row).member_scores[0], Explainer(folder, manifest)
    column = {name: place for place, name in enumerate(manifest.features)}
    parts, same = [], True
    for place, member in enumerate(contribution.members.rows()):
        attributed, margin = (values[0] for values in explainer.attribute(place, row))
        base, value = float(margin - attributed.sum()), float(again[place])
        if member.score is not None and not abs(member.score - value) <= tolerance:
            same = False
        parts.append(
            MemberPart(
                member.name,
                member.status,
                member.score,
                None if np.isnan(value) else value,
                member.weight,
                member.contribution,
                explainer.methods[place].how,
                None if np.isnan(base) else base,
                [
                    FeaturePart(
                        name := explainer.inputs[place][index],
                        lineage.features[column[name]],
                        STATUSES[lineage.feature_status[column[name]]],
                        float(attributed[index]),
                    )
                    for index in strongest(attributed, features)
                ],
            )
        )
    parts.sort(key=lambda part: -abs(part.contribution))
    own = lineage.thresholds or manifest.thresholds
    return Explanation(score, contribution, lineage, own.review, own.block, parts, copies, same)
