"""Verify: what was published comes again, and whatever is altered is found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.errors import UsageError
from stream_scorer.kafka.topics import Topics
from stream_scorer.positions import SourcePartition
from stream_scorer.records import Contribution, MemberContribution, Score, Source
from stream_scorer.replay.verify import Verifier, VerifyReport, verify_topics
from tests.support.ensembles import compose, reference

N = 50
replace = msgspec.structs.replace


@pytest.fixture
def served(tmp_path: Path) -> tuple[Ensemble, list[Score], list[Contribution]]:
    """What a scorer would have published of some rows; of a few without the second member, of one without quorum."""
    compose(tmp_path / "e", quorum=0.5)
    ensemble = Ensemble.load(tmp_path / "e", version="7")
    rows = reference(N)
    answers = [ensemble.ask(index, rows) for index in range(3)]
    answers[1].raw[:5] = np.nan
    for answer in answers:
        answer.raw[5] = np.nan
    scored = ensemble.combine(answers)
    thresholds = ensemble.manifest.thresholds
    scores, lineages = [], []
    for i in range(N):
        score = float(scored.score[i])
        stands = score == score
        decision: Any = "block" if score >= thresholds.block else "review" if score >= thresholds.review else "approve"
        members = [
            MemberContribution(name, *map(float, values), "ok")
            for name, *values in zip(
                ensemble.member_names, scored.member_scores[i], scored.weights[i], scored.contributions[i], strict=True
            )
        ]
        common = (f"e{i}", "cards", "7", "champion")
        scores.append(
            Score(
                common[0],
                0,
                0,
                score,
                decision,
                "model" if stands else "fallback",
                *common[1:],
                "p",
                float(scored.coverage[i]),
                False,
                [],
                0,
                100,
            )
        )
        lineages.append(
            Contribution(
                *common,
                ensemble.manifest.link,
                float(scored.base[i]),
                float(scored.z[i]),
                score,
                members,
                [],
                rows[i].tolist(),
                [0] * rows.shape[1],
                ensemble.manifest.feature_hash,
                "s",
                Source("t", 0, i, i),
                [],
                "0",
            )
        )
    return ensemble, scores, lineages


def verify(ensemble: Ensemble, scores: list[Score], lineages: list[Contribution]) -> VerifyReport:
    def of_version(name: str, version: str) -> Ensemble:
        assert (name, version) == ("cards", "7")
        return ensemble

    # As it comes from the topics: NaN is null.
    texts = msgspec.json.encode(scores), msgspec.json.encode(lineages)
    verifier = Verifier(of_version, 0.0)
    verifier.add(
        msgspec.json.decode(texts[0], type=list[Score]), msgspec.json.decode(texts[1], type=list[Contribution])
    )
    return verifier.report()


def test_what_was_published_comes_again(served: tuple[Ensemble, list[Score], list[Contribution]]) -> None:
    report = verify(*served)
    assert (report.scores, report.by_version, report.different, report.by_what) == (N, {"cards 7": N}, 0, {})


def one_member(lineage: Contribution, **changes: Any) -> Contribution:
    return replace(lineage, members=[replace(lineage.members[0], **changes), *lineage.members[1:]])


LINEAGE: dict[str, Callable[[Contribution], Contribution]] = {
    "contribution": lambda c: one_member(c, contribution=c.members[0].contribution + 1e-6),
    "weight": lambda c: one_member(c, weight=c.members[0].weight + 1e-6),
    "member score": lambda c: one_member(c, score=(c.members[0].score or 0) + 1e-6),
    "z": lambda c: replace(c, z=(c.z or 0) + 1e-6),
    "base": lambda c: replace(c, base=(c.base or 0) + 1e-6),
    "score": lambda c: replace(c, score=(c.score or 0) + 1e-6),
    "features, link or members": lambda c: replace(c, feature_hash="0" * 64),
}


@pytest.mark.parametrize("what", LINEAGE)
@pytest.mark.parametrize("row", [2, 20])
def test_an_altered_lineage_is_found(
    served: tuple[Ensemble, list[Score], list[Contribution]], what: str, row: int
) -> None:
    ensemble, scores, lineages = served
    lineages[row] = LINEAGE[what](lineages[row])
    report = verify(ensemble, scores, lineages)
    assert report.different == 1
    assert what in report.by_what
    assert report.examples[0].startswith(f"event e{row}: ")


def test_an_altered_feature_is_found(served: tuple[Ensemble, list[Score], list[Contribution]]) -> None:
    ensemble, scores, lineages = served
    features = [value if value is None else value * 1.0001 for value in lineages[9].features]
    lineages[9] = replace(lineages[9], features=features)
    assert verify(ensemble, scores, lineages).different == 1


@pytest.mark.parametrize("changes", [{"score": 0.1234}, {"coverage": 0.5}, {"decision_source": "fallback"}])
def test_an_altered_score_is_found(
    served: tuple[Ensemble, list[Score], list[Contribution]], changes: dict[str, Any]
) -> None:
    ensemble, scores, lineages = served
    scores[30] = replace(scores[30], **changes)
    assert verify(ensemble, scores, lineages).different == 1


def test_another_decision_is_found(served: tuple[Ensemble, list[Score], list[Contribution]]) -> None:
    ensemble, scores, lineages = served
    scores[30] = replace(scores[30], decision="block" if scores[30].decision != "block" else "approve")
    report = verify(ensemble, scores, lineages)
    assert report.by_what == {"decision": 1}


class Kept:
    """A reader of what retention has left: by topic the first offset, and the values of one partition."""

    def __init__(self, scores: list[Any], contributions: list[Any], cut: tuple[int, int]) -> None:
        self._held = {"scores": (cut[0], scores), "contributions": (cut[1], contributions)}

    def bounds(self, topic: str) -> dict[SourcePartition, tuple[int, int]]:
        low, values = self._held[topic]
        return {SourcePartition(topic, 0): (low, len(values))}

    def read(self, source: SourcePartition, start: int, stop: int) -> Iterator[Any]:
        values = [msgspec.json.encode(value) for value in self._held[source.topic][1]]
        for low in range(start, stop, 7):
            yield SimpleNamespace(value=values[low : min(low + 7, stop)])


@pytest.mark.parametrize(("cut", "left"), [((0, 0), N), ((12, 0), N - 12), ((0, 31), N - 31), ((8, 9), N - 9)])
def test_what_only_one_topic_still_has_is_passed_over(
    served: tuple[Ensemble, list[Score], list[Contribution]], cut: tuple[int, int], left: int
) -> None:
    ensemble, scores, lineages = served
    verifier = Verifier(lambda *_: ensemble, 0.0)
    report = verify_topics(Kept(scores, lineages, cut), Topics(), verifier)  # type: ignore[arg-type]
    assert (report.scores, report.different) == (left, 0)


def test_topics_that_hold_other_events_are_told(served: tuple[Ensemble, list[Score], list[Contribution]]) -> None:
    ensemble, scores, lineages = served
    foreign = [replace(c, event_id="x") for c in lineages]
    for mine in ([*lineages[:20], *foreign[20:]], lineages[:-1], foreign):
        with pytest.raises(UsageError, match="hold other events"):
            verify_topics(Kept(scores, mine, (0, 0)), Topics(), Verifier(lambda *_: ensemble, 0.0))  # type: ignore[arg-type]
