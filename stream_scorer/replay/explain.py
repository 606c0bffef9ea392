"""One published score explained from its record: the members, and the inputs inside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from stream_scorer.ensemble.attribution import Explainer, strongest
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.errors import UsageError
from stream_scorer.kafka.range_reader import RangeReader
from stream_scorer.kafka.topics import Topics
from stream_scorer.records import Contribution, Record, Score

STATUSES = ("fresh", "stale", "missing", "default")


class FeaturePart(Record, frozen=True):
    """One input of a member: its value as recorded, its status, and what it added to the member's own margin."""

    feature: str
    value: float | None
    status: str
    contribution: float


class MemberPart(Record, frozen=True):
    """One member's part in the score. `score_again` is its score computed anew from the recorded features.

    `inside` are its strongest inputs, by `how`; where that is empty, `how` says why. `inside_base` is what the member
    says of an average row. Units are the member's own margin, before its calibrator.
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
    """A score with its lineage and its members' parts, the strongest first; not `same` if one scores otherwise now."""

    score: Score
    lineage: Contribution
    review: float
    block: float
    members: list[MemberPart]
    copies: int
    same: bool


def find_event(
    reader: RangeReader, topics: Topics, event_id: str, on_progress: Callable[[int], None] | None = None
) -> tuple[Score, Contribution, int]:
    """The score of `event_id`, its lineage, and how many scores bear that id; the first one counts.

    Raises:
        UsageError: there is none.
    """
    decode_score = msgspec.json.Decoder(Score).decode
    decode_lineage = msgspec.json.Decoder(Contribution).decode
    # A record that does not hold the id's bytes is not worth decoding.
    wanted, done = msgspec.json.encode(event_id), 0
    scores: list[Score] = []
    lineages: list[Contribution] = []
    for topic in (topics.scores, topics.contributions):
        for source, (low, high) in sorted(reader.bounds(topic).items()):
            for chunk in reader.read(source, low, high):
                for value in chunk.value:
                    if value is None or wanted not in value:
                        continue
                    if topic == topics.scores:
                        scores += [s for s in [decode_score(value)] if s.event_id == event_id]
                    else:
                        lineages += [c for c in [decode_lineage(value)] if c.event_id == event_id]
                done += len(chunk)
                if on_progress is not None:
                    on_progress(done)
    if not scores or not lineages:
        raise UsageError(
            f"no score of event {event_id!r} on {topics.scores} and {topics.contributions}",
            hint="Is the id right, and the topic prefix? A bad record is on the dead-letter topic: dlq list.",
        )
    first = min(scores, key=lambda s: s.scored_at)
    same = [c for c in lineages if (c.version, c.score) == (first.version, first.score)]
    return first, (same or lineages)[0], len(scores)


def explain(
    score: Score, lineage: Contribution, copies: int, ensemble: Ensemble, folder: Path, tolerance: float, features: int
) -> Explanation:
    """Explain by `ensemble`, whose files are in `folder`; at most `features` inputs a member.

    Raises:
        UsageError: the record is not of this ensemble.
    """
    manifest = ensemble.manifest
    if len(lineage.features) != len(manifest.features) or [m.name for m in lineage.members] != ensemble.member_names:
        raise UsageError(f"event {score.event_id} was not scored by {ensemble.name} {ensemble.version}")
    row = np.array([lineage.features], dtype=np.float64)
    again, insight = ensemble.score(row).member_scores[0], Explainer(folder, manifest)
    column = {name: place for place, name in enumerate(manifest.features)}
    parts, same = [], True
    for place, told in enumerate(lineage.members):
        found, margin = (values[0] for values in insight.look(place, row))
        base, value = float(margin - found.sum()), float(again[place])
        if told.score is not None and not abs(told.score - value) <= tolerance:
            same = False
        parts.append(
            MemberPart(
                told.name,
                told.status,
                told.score,
                None if np.isnan(value) else value,
                told.weight,
                told.contribution,
                insight.lenses[place].how,
                None if np.isnan(base) else base,
                [
                    FeaturePart(
                        name := insight.inputs[place][index],
                        lineage.features[column[name]],
                        STATUSES[lineage.feature_status[column[name]]],
                        float(found[index]),
                    )
                    for index in strongest(found, features)
                ],
            )
        )
    parts.sort(key=lambda part: -abs(part.contribution))
    own = lineage.thresholds or manifest.thresholds
    return Explanation(score, lineage, own.review, own.block, parts, copies, same)
