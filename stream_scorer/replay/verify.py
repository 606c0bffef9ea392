"""Verify: published scores computed again from what their records say, with the members that they name.

Features are taken as recorded (whether they were right, `features skew` and `features check` tell). Everything that
follows from them is computed again by the ensemble of the recorded version: members, weights, contributions, base, z,
score and decision; one that a list made is taken as it is. A member that was missing is left out again: why it was, no
record can tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain, islice, zip_longest
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_scorer.ensemble.combine import decide
from stream_scorer.ensemble.ensemble import Ensemble, MemberOutput
from stream_scorer.errors import UsageError
from stream_scorer.kafka.range_reader import RangeReader
from stream_scorer.kafka.topics import Topics
from stream_scorer.positions import SourcePartition
from stream_scorer.records import DECISIONS, Contribution, Record, Score

_EXAMPLES = 10
_BATCH = 4_096


class VerifyReport(Record, frozen=True):
    """`scores` were computed again, `by_version` of each version; `different` of them, by what, with some examples."""

    scores: int
    by_version: dict[str, int]
    different: int
    by_what: dict[str, int]
    examples: list[str]


class Verifier:
    """Collects what differs.

    Args:
        ensemble_of: from name and version to the ensemble, its digests checked.
        tolerance: what numbers may differ by: the same bits are expected of the same machine only.
    """

    def __init__(self, ensemble_of: Callable[[str, str], Ensemble], tolerance: float) -> None:
        self._ensemble_of = ensemble_of
        self._tolerance = tolerance
        self._versions: Counter[str] = Counter()
        self._what: Counter[str] = Counter()
        self._different = 0
        self._examples: list[str] = []

    def add(self, scores: list[Score], lineages: list[Contribution]) -> None:
        """Compute again and compare; `scores` and `lineages` (n each) belong together."""
        groups: dict[tuple[str, str], list[int]] = {}
        for row, lineage in enumerate(lineages):
            groups.setdefault((lineage.ensemble, lineage.version), []).append(row)
        for (name, version), rows in groups.items():
            self._versions[f"{name} {version}"] += len(rows)
            ensemble = self._ensemble_of(name, version)
            self._compare(ensemble, [scores[row] for row in rows], [lineages[row] for row in rows])

    def report(self) -> VerifyReport:
        """What was found."""
        return VerifyReport(
            self._versions.total(), dict(self._versions), self._different, dict(self._what), self._examples
        )

    def _compare(self, ensemble: Ensemble, scores: list[Score], lineages: list[Contribution]) -> None:
        fits = [
            lineage.feature_hash == ensemble.manifest.feature_hash
            and lineage.link == ensemble.manifest.link
            and len(lineage.features) == len(ensemble.feature_names)
            and [member.name for member in lineage.members] == ensemble.member_names
            for lineage in lineages
        ]
        self._note(~np.array(fits), "features, link or members", scores)
        scores = [score for score, fit in zip(scores, fits, strict=True) if fit]
        lineages = [lineage for lineage, fit in zip(lineages, fits, strict=True) if fit]
        if not scores:
            return
        features = ensemble.checked(_numbers([lineage.features for lineage in lineages]))
        members = _numbers([[m.score for m in lineage.members] for lineage in lineages])
        answers = []
        for index in range(len(ensemble.member_names)):
            answer = ensemble.ask(index, features)
            answers.append(MemberOutput(np.where(np.isnan(members[:, index]), np.nan, answer.raw), answer.reason, 0.0))
        again = ensemble.combine(answers)
        column = {
            "base": (_numbers([[c.base] for c in lineages])[:, 0], again.base),
            "z": (_numbers([[c.z] for c in lineages])[:, 0], again.z),
            "score": (_numbers([[c.score] for c in lineages])[:, 0], again.score),
            "score on `scores`": (_numbers([[s.score] for s in scores])[:, 0], again.score),
            "coverage": (_numbers([[s.coverage] for s in scores])[:, 0], again.coverage),
            "member score": (members, again.member_scores),
            "weight": (_numbers([[m.weight for m in c.members] for c in lineages]), again.weights),
            "contribution": (_numbers([[m.contribution for m in c.members] for c in lineages]), again.contributions),
        }
        wrong = {what: _unlike(told, found, self._tolerance) for what, (told, found) in column.items()}
        own = ensemble.manifest.thresholds
        review, block = (
            np.array([getattr(c.thresholds or own, name) for c in lineages]) for name in ("review", "block")
        )
        decision = decide(again.score, review, block, DECISIONS[0])
        told = np.array([DECISIONS.index(s.decision) for s in scores])
        by_model = np.array([s.decision_source == "model" for s in scores])
        by_list = np.array([s.decision_source == "list" for s in scores])
        wrong["decision"] = (by_model & (told != decision)) | (~by_list & (by_model != ~np.isnan(again.score)))
        for what, rows in wrong.items():
            self._note(rows, what, scores, count=False)
        self._different += int(np.logical_or.reduce(list(wrong.values())).sum())

    def _note(self, rows: NDArray[np.bool_], what: str, scores: list[Score], *, count: bool = True) -> None:
        if rows.any():
            self._what[what] += int(rows.sum())
            self._different += int(rows.sum()) * count
            for row in np.flatnonzero(rows)[: _EXAMPLES - len(self._examples)].tolist():
                self._examples.append(f"event {scores[row].event_id}: {what}")


def verify_topics(
    reader: RangeReader, topics: Topics, verifier: Verifier, on_progress: Callable[[int], None] | None = None
) -> VerifyReport:
    """Verify everything on the topics `scores` and `contributions`; they are written together, record by record.

    Retention may have cut one of them further than the other: what only one still has is passed over.

    Raises:
        UsageError: the two topics do not hold the same events.
    """
    done = 0
    for source in sorted(reader.bounds(topics.contributions)):
        partition = source.partition
        lineages = _records(reader, topics.contributions, partition, Contribution)
        scores = _records(reader, topics.scores, partition, Score)
        pairs = _side_by_side(scores, lineages)
        while batch := list(islice(pairs, _BATCH)):
            if any(s is None or c is None or s.event_id != c.event_id for s, c in batch):
                raise UsageError(
                    f"partition {partition} of {topics.scores} and of {topics.contributions} hold other events",
                    hint="They are written together: was something else written to one of them?",
                )
            verifier.add([s for s, _ in batch], [c for _, c in batch])
            done += len(batch)
            if on_progress is not None:
                on_progress(done)
    return verifier.report()


def _side_by_side(scores: Iterator[Any], lineages: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
    """Both in step, from the first event that both have; None where one ends before the other."""
    ours: list[Any] = list(islice(scores, 1))
    theirs: list[Any] = list(islice(lineages, 1))
    while ours and theirs and ours[0].event_id != theirs[0].event_id:
        # Whichever was cut less still has, somewhere ahead, the event that the other begins with.
        more, also = list(islice(scores, 1)), list(islice(lineages, 1))
        if not more and not also:
            break
        ours.extend(more)
        theirs.extend(also)
        if more and more[0].event_id == theirs[0].event_id:
            ours = more
        elif also and also[0].event_id == ours[0].event_id:
            theirs = also
    yield from zip_longest(chain(ours, scores), chain(theirs, lineages))


def _records(reader: RangeReader, topic: str, partition: int, kind: type[Any]) -> Iterator[Any]:
    """The records of one partition."""
    source = SourcePartition(topic, partition)
    decode = msgspec.json.Decoder(kind).decode
    for chunk in reader.read(source, *reader.bounds(topic).get(source, (0, 0))):
        for value in chunk.value:
            yield decode(value or b"")


def _numbers(rows: list[list[float | None]]) -> NDArray[np.float64]:
    return np.array(rows, dtype=np.float64)


def _unlike(told: NDArray[np.float64], found: NDArray[np.float64], tolerance: float) -> NDArray[np.bool_]:
    """(n,) bool: rows that differ; NaN equals NaN."""
    same = (np.abs(told - found) <= tolerance) | (np.isnan(told) & np.isnan(found))
    return np.asarray(~same.reshape(len(same), -1).all(axis=1), np.bool_)
