"""Verify: recomputes published scores from their lineage, with the recorded ensemble version.

The recorded features are used as they are (`features skew` and `features check` verify them). The ensemble of the
recorded version recomputes everything that follows: members, weights, contributions, base, z, score and decision.
Decisions that need the spec are checked against it, and counted without it (`replay.decisions`). With the spec, the
review sample is drawn again. A member that was missing stays missing, because the reason is not recorded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import msgspec
import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from stream_scorer.ensemble.ensemble import Ensemble, MemberOutput
from stream_scorer.errors import UsageError
from stream_scorer.kafka.topics import Topics
from stream_scorer.pipeline.sampling import Sampling
from stream_scorer.positions import SourcePartition
from stream_scorer.records import (
    CONTRIBUTION_DECIMALS,
    DECISIONS,
    WEIGHT_DECIMALS,
    Record,
    Score,
)
from stream_scorer.replay.alignment import Range, common_start
from stream_scorer.replay.contradictions import contradictions
from stream_scorer.replay.decisions import Decisions, Served
from stream_scorer.replay.recorded import Recorded, TopicRanges, bounds_of, recorded, served_scores
from stream_scorer.serde.decoder import hash_ids
from stream_scorer.spec.model import CheckedSpec

_EXAMPLES = 10
_BATCH = 4_096
# What is missing of scores that are skipped.
NO_CONTRIBUTION, NO_LINEAGE = "contribution", "lineage"
_Skipped = Counter[str]


class VerifyReport(Record, frozen=True):
    """`scores` counts the recomputed scores, also by version; `different` those that differ, also by what differs.

    `unavailable` counts scores by version that are not recomputed because their version is not found.
    `skipped` counts scores that cannot be recomputed because retention removed other records of them, also by what is
    missing. `unverified` are the partitions in which this holds for all scores.
    `not_recomputed` counts decisions that were not, or not completely, computed again, see `replay.decisions`.
    """

    scores: int
    by_version: dict[str, int]
    different: int
    by_what: dict[str, int]
    examples: list[str]
    not_recomputed: dict[str, int] = msgspec.field(default_factory=dict)
    unavailable: dict[str, int] = msgspec.field(default_factory=dict)
    skipped: int = 0
    by_missing: dict[str, int] = msgspec.field(default_factory=dict)
    unverified: list[int] = msgspec.field(default_factory=list)


class Verifier:
    """Recomputes scores and collects the differences.

    Args:
        ensemble_of: returns the ensemble of a name, version and manifest digest (empty if it is not recorded), its
            digests checked; None if it is not found.
        tolerance: tolerated difference of numbers; only the same machine gives the same bits.
        checked: the spec, to draw the review sample again and to check the policy, for the scores that it decided.
        policies: more specs, whose policies are checked for the scores that each decided.
    """

    def __init__(
        self,
        ensemble_of: Callable[[str, str, str], Ensemble | None],
        tolerance: float,
        checked: CheckedSpec | None = None,
        policies: Sequence[CheckedSpec] = (),
    ) -> None:
        self._ensemble_of = ensemble_of
        self._tolerance = tolerance
        self._spec_hash = "" if checked is None else checked.sha256
        self._decisions = Decisions([*policies, *([] if checked is None else [checked])])
        self._sampling = None if checked is None else Sampling(checked)
        self._versions: Counter[str] = Counter()
        self._unavailable: Counter[str] = Counter()
        self._what: Counter[str] = Counter()
        self._different = 0
        self._examples: list[str] = []

    def add(self, scores: list[Score], records: list[Recorded]) -> None:
        """Recompute and compare `scores` (n), with their `records` (n) in the same order."""
        groups: dict[tuple[str, str, str], list[Served]] = {}
        for score, (contribution, lineage) in zip(scores, records, strict=True):
            if lineage is None:
                self._versions[f"{contribution.ensemble} {contribution.version}"] += 1
                self._note(np.array([True]), "no lineage", [score])
                continue
            served = Served(score, contribution, lineage)
            key = contribution.ensemble, contribution.version, lineage.manifest_sha256
            groups.setdefault(key, []).append(served)
        for key, rows in groups.items():
            name, ensemble = f"{key[0]} {key[1]}", self._ensemble_of(*key)
            if ensemble is None:
                self._unavailable[name] += len(rows)
                continue
            self._versions[name] += len(rows)
            self._compare(ensemble, rows)

    def report(self) -> VerifyReport:
        """The report on all added scores."""
        return VerifyReport(
            self._versions.total(), dict(self._versions), self._different, dict(self._what), self._examples,
            dict(self._decisions.unchecked), dict(self._unavailable),
        )  # fmt: skip

    def _compare(self, ensemble: Ensemble, served: list[Served]) -> None:
        fits = np.array([_fits(ensemble, row) for row in served])
        self._note(~fits, "features, link or members", [row.score for row in served])
        served = [row for row, fit in zip(served, fits.tolist(), strict=True) if fit]
        if not served:
            return
        scores, contributions = [row.score for row in served], [row.contribution for row in served]
        features = ensemble.checked(_numbers([row.lineage.features for row in served]))
        members = _numbers([c.members.score for c in contributions])
        outputs = []
        for index in range(len(ensemble.member_names)):
            output = ensemble.predict_member(index, features)
            outputs.append(MemberOutput(np.where(np.isnan(members[:, index]), np.nan, output.raw), output.reason, 0.0))
        scored = ensemble.combine(outputs)
        column = {
            "base": (_numbers([[c.base] for c in contributions])[:, 0], scored.base),
            "z": (_numbers([[c.z] for c in contributions])[:, 0], scored.z),
            "score": (_numbers([[c.score] for c in contributions])[:, 0], scored.score),
            "score on `scores`": (_numbers([[s.score] for s in scores])[:, 0], scored.score),
            "coverage": (_numbers([[s.coverage] for s in scores])[:, 0], scored.coverage),
            "member score": (members, scored.member_scores),
        }
        wrong = {
            what: _differs(published, recomputed, self._tolerance) for what, (published, recomputed) in column.items()
        }
        rounded = {
            "weight": (_numbers([c.members.weight for c in contributions]), scored.weights, WEIGHT_DECIMALS),
            "contribution": (
                _numbers([c.members.contribution for c in contributions]), scored.contributions, CONTRIBUTION_DECIMALS,
            ),
        }  # fmt: skip
        for what, (published, recomputed, decimals) in rounded.items():
            # Records in the old format are not rounded.
            exact = _differs(published, recomputed, self._tolerance)
            wrong[what] = exact & _differs(published, np.round(recomputed, decimals), self._tolerance)
        wrong["version on `scores`"] = np.array(
            [(s.ensemble, s.version, s.arm) != (c.ensemble, c.version, c.arm) for s, c, _ in served], np.bool_
        )
        wrong["decision"] = self._decisions.differ(ensemble.manifest.thresholds, served, scored.score)
        wrong["review sample"] = self._other_sample(served)
        wrong |= contradictions(ensemble.manifest.thresholds, served, members)
        for what, rows in wrong.items():
            self._note(rows, what, scores, count=False)
        self._different += int(np.logical_or.reduce(list(wrong.values())).sum())

    def _other_sample(self, served: list[Served]) -> NDArray[np.bool_]:
        """(n,) bool: whether the spec's review sample has other transactions, or another share."""
        scores = [row.score for row in served]
        stated = [None if s.review_propensity is UNSET else s.review_propensity for s in scores]
        if self._sampling is None:
            return np.zeros(len(served), np.bool_)
        decision = np.array([DECISIONS.index(s.decision) for s in scores], np.int8)
        drawn = self._sampling.draw(hash_ids([s.event_id for s in scores]), decision)
        expected = [
            self._sampling.share if d and not s.duplicate else None for d, s in zip(drawn.tolist(), scores, strict=True)
        ]
        ours = np.array([row.lineage.spec_hash == self._spec_hash for row in served], np.bool_)
        return ours & np.array([a != b for a, b in zip(stated, expected, strict=True)], np.bool_)

    def _note(self, rows: NDArray[np.bool_], what: str, scores: list[Score], *, count: bool = True) -> None:
        if rows.any():
            self._what[what] += int(rows.sum())
            self._different += int(rows.sum()) * count
            for row in np.flatnonzero(rows)[: _EXAMPLES - len(self._examples)].tolist():
                self._examples.append(f"event {scores[row].event_id}: {what}")


def verify_topics(
    reader: TopicRanges, topics: Topics, verifier: Verifier, on_progress: Callable[[int], None] | None = None
) -> VerifyReport:
    """Verify everything on the topics `scores`, `contributions` and `lineage`; they are written together.

    Retention may have shortened one of them more than the others; scores whose other records are missing are skipped
    and counted. A partition ends where the first of both topics ends.

    Raises:
        UsageError: the topics do not contain the same events. CheckFailed: a record is not one of a scorer.
    """
    done, skipped = 0, _Skipped()
    unverified = []
    for partition in sorted(
        {s.partition for s in (*reader.bounds(topics.scores), *reader.bounds(topics.contributions))}
    ):
        before = done, skipped.total()
        pairs = _pairs(reader, topics, partition, skipped)
        while batch := list(islice(pairs, _BATCH)):
            verifier.add([s for s, _ in batch], [c for _, c in batch])
            done += len(batch)
            if on_progress is not None:
                on_progress(done + skipped.total())
        if done == before[0] and skipped.total() > before[1]:
            unverified.append(partition)
    return msgspec.structs.replace(
        verifier.report(), skipped=skipped.total(), by_missing=dict(+skipped), unverified=unverified
    )


def _pairs(reader: TopicRanges, topics: Topics, partition: int, skipped: _Skipped) -> Iterator[tuple[Score, Recorded]]:
    """The pairs of one partition from the first event with lineage, to the end of the shorter topic.

    Adds to `skipped` the scores of the partition that are in no pair.
    """
    # The ends of both before anything is read: a scorer that goes on writes to both all the time.
    scores, records = (
        Range(SourcePartition(topic, partition), *bounds_of(reader, topic, partition))
        for topic in (topics.scores, topics.contributions)
    )
    starts = common_start(reader, scores, records)
    if starts is None:
        raise _different_events(topics, partition)
    earlier = reader.read(scores.source, scores.start, starts[0])
    skipped[NO_CONTRIBUTION] += sum(len(chunk.value) for chunk in earlier)
    rest = served_scores(reader, scores.source, (starts[0], scores.stop))
    began = False
    for record in recorded(reader, topics, partition, (starts[1], records.stop)):
        score = next(rest, None)
        if score is None:
            return
        if score.event_id != record.contribution.event_id:
            raise _different_events(topics, partition)
        began = began or record.lineage is not None
        if began:
            yield score, record
        else:
            skipped[NO_LINEAGE] += 1
    skipped[NO_CONTRIBUTION] += sum(1 for _ in rest)


def _different_events(topics: Topics, partition: int) -> UsageError:
    return UsageError(
        f"partition {partition} of {topics.scores} and of {topics.contributions} have different events",
        hint="Scorers write both together: did another program write to one of them?",
    )


def _fits(ensemble: Ensemble, row: Served) -> bool:
    """Whether the record belongs to this ensemble, and its parts to one transaction."""
    lineage, contribution, manifest = row.lineage, row.contribution, ensemble.manifest
    parts = contribution.members
    return (
        lineage.feature_hash == manifest.feature_hash
        and lineage.link == manifest.link
        and len(lineage.features) == len(ensemble.feature_names)
        and parts.name == ensemble.member_names
        and all(len(part) == len(parts.name) for part in (parts.score, parts.weight, parts.contribution))
        and (lineage.event_id, lineage.ensemble, lineage.version)
        == (contribution.event_id, contribution.ensemble, contribution.version)
    )


def _numbers(rows: Sequence[Sequence[float | None]]) -> NDArray[np.float64]:
    return np.array(rows, dtype=np.float64)


def _differs(published: NDArray[np.float64], recomputed: NDArray[np.float64], tolerance: float) -> NDArray[np.bool_]:
    """(n,) bool: rows that differ; NaN equals NaN."""
    same = (np.abs(published - recomputed) <= tolerance) | (np.isnan(published) & np.isnan(recomputed))
    return np.asarray(~same.reshape(len(same), -1).all(axis=1), np.bool_)
