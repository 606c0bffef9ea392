"""Verify: what was published comes again, and whatever is altered is found."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from stream_scorer.bench.material import CARDS_SPEC
from stream_scorer.cli.decided import Decided
from stream_scorer.cli.verify import verify as verify_command
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.errors import ArtifactError, CheckFailed, UsageError
from stream_scorer.kafka.topics import Topics
from stream_scorer.positions import SourcePartition
from stream_scorer.records import (
    CONTRIBUTION_DECIMALS,
    WEIGHT_DECIMALS,
    AppliedOffset,
    Contribution,
    LineageRow,
    Members,
    Score,
    SegmentThresholds,
    Source,
)
from stream_scorer.replay import alignment
from stream_scorer.replay.alignment import WINDOW, Range, common_start
from stream_scorer.replay.compare import served_records
from stream_scorer.replay.recorded import Recorded
from stream_scorer.replay.verify import Verifier, VerifyReport, verify_topics
from stream_scorer.serde.fat_contribution import decode_contribution
from stream_scorer.serde.lineage import (
    EncodedLineage,
    LineageColumns,
    LineageHeader,
    LineageVersion,
    encode_lineage,
)
from stream_scorer.spec import CheckedSpec, load_spec
from stream_scorer.spec.model import Condition, EntityList, Policy, Segment
from tests.support.ensembles import compose, reference

N = 50
replace = msgspec.structs.replace
Served = tuple[Ensemble, list[Score], list[Recorded]]


@pytest.fixture
def served(tmp_path: Path) -> Served:
    """What a scorer would have published of some rows; of a few without the second member, of one without quorum."""
    compose(tmp_path / "e", quorum=0.5)
    ensemble = Ensemble.load(tmp_path / "e", version="7")
    rows = reference(N)
    answers = [ensemble.predict_member(index, rows) for index in range(3)]
    answers[1].raw[:5] = np.nan
    for answer in answers:
        answer.raw[5] = np.nan
    scored = ensemble.combine(answers)
    thresholds = ensemble.manifest.thresholds
    alerts = (scored.member_scores >= thresholds.review) @ np.array([1, 2, 4])
    scores, found = [], []
    for i in range(N):
        score = float(scored.score[i])
        stands = score == score
        decision: Any = "block" if score >= thresholds.block else "review" if score >= thresholds.review else "approve"
        members = Members(
            ensemble.member_names, scored.member_scores[i].tolist(),
            np.round(scored.weights[i], WEIGHT_DECIMALS).tolist(),
            np.round(scored.contributions[i], CONTRIBUTION_DECIMALS).tolist(),
        )  # fmt: skip
        common = (f"e{i}", "cards", "7", "champion")
        missing = zip(ensemble.member_names, np.isnan(scored.member_scores[i]).tolist(), strict=True)
        degraded = [f"member:{name}" for name, absent in missing if absent]
        scores.append(
            Score(
                common[0], 0, 0, score, decision, "model" if stands else "fallback", *common[1:], "p1",
                float(scored.coverage[i]), False, degraded, int(alerts[i]), 100,
            )
        )  # fmt: skip
        source = Source("transactions", 0, i)
        contribution = Contribution(
            *common, float(scored.base[i]), float(scored.z[i]), score, members, source, [], degraded
        )
        lineage = LineageRow(
            *common, ensemble.manifest.link, source, i, rows[i].tolist(), [0] * rows.shape[1],
            ensemble.manifest.feature_hash, "s", [AppliedOffset("transactions", 0, i - i % 10)], "0",
            manifest_sha256=ensemble.digest,
        )  # fmt: skip
        found.append(Recorded(contribution, lineage))
    return ensemble, scores, found


def verify(ensemble: Ensemble, scores: list[Score], found: list[Recorded]) -> VerifyReport:
    def of_version(*version: str) -> Ensemble:
        assert version == ("cards", "7", ensemble.digest)
        return ensemble

    # As it comes from the topics: NaN is null.
    verifier = Verifier(of_version, 0.0)
    verifier.add(
        msgspec.json.decode(msgspec.json.encode(scores), type=list[Score]),
        [
            Recorded(
                msgspec.json.decode(msgspec.json.encode(contribution), type=Contribution),
                msgspec.json.decode(msgspec.json.encode(lineage), type=LineageRow | None),
            )
            for contribution, lineage in found
        ],
    )
    return verifier.report()


def test_what_was_published_comes_again(served: Served) -> None:
    report = verify(*served)
    assert (report.scores, report.by_version, report.different, report.by_what) == (N, {"cards 7": N}, 0, {})


@pytest.mark.parametrize("change", [{"ensemble": "other"}, {"version": "8"}, {"arm": "canary"}])
def test_a_score_that_names_another_version_is_found(served: Served, change: dict[str, Any]) -> None:
    ensemble, scores, found = served
    report = verify(ensemble, [msgspec.structs.replace(scores[0], **change), *scores[1:]], found)
    assert (report.different, report.by_what) == (1, {"version on `scores`": 1})


@pytest.mark.parametrize("part", ["score", "weight", "contribution"])
def test_a_record_with_too_few_numbers_is_a_difference(served: Served, part: str) -> None:
    ensemble, scores, found = served
    contribution = replace(found[7].contribution, members=replace(found[7].contribution.members, **{part: [0.5]}))
    report = verify(ensemble, scores, [*found[:7], Recorded(contribution, found[7].lineage), *found[8:]])
    assert (report.different, report.by_what) == (1, {"features, link or members": 1})


def test_decisions_that_need_the_spec_are_counted_and_with_it_compared(served: Served) -> None:
    ensemble, scores, found = served
    segment, thresholds = Segment("web", {"channel": Condition(["online"])}, 0.0, 0.0), SegmentThresholds(0.0, 0.0)
    stolen = EntityList("stolen", "device", "block", ["d"])
    policy = Policy("p2", 0.3, 0.8, "approve", segments=[segment], lists=[stolen])
    checked = CheckedSpec(replace(load_spec(CARDS_SPEC).spec, policy=policy), "s")
    by_list: dict[str, Any] = {"rule": "stolen", "decision_source": "list", "policy_version": "p2"}
    scores[6] = replace(scores[6], decision="block", **by_list)
    scores[7] = replace(scores[7], decision="block", rule="web", policy_version="p2", member_alerts=0b111)
    found[7] = Recorded(found[7].contribution, replace(found[7].lineage, thresholds=thresholds))

    def judged(specs: list[CheckedSpec], place: int = 0, lineage: Any = None, **change: Any) -> VerifyReport:
        verifier = Verifier(lambda *_: ensemble, 0.0, policies=specs)
        altered, records = list(scores), list(found)
        altered[place] = replace(altered[place], **change)
        records[place] = Recorded(found[place].contribution, replace(found[place].lineage, **(lineage or {})))
        verifier.add(altered, records)
        return verifier.report()

    report = judged([])
    assert (report.different, report.not_recomputed) == (0, {"fallback": 1, "list": 1, "segment thresholds": 1})
    report = judged([checked])
    assert (report.different, report.not_recomputed) == (0, {"list membership": 1, "segment conditions": 1})
    low = {"thresholds": SegmentThresholds(0.0, -1.0)}
    altered: list[tuple[int, Any, dict[str, Any]]] = [
        (5, None, {"decision": "block"}), (6, None, {"decision": "approve"}), (6, None, {"rule": "staff"}),
        (7, low, {}), (7, None, {"rule": "shop"}), (7, None, {"policy_version": "p1"}), (7, None, {"rule": None}),
    ]  # fmt: skip
    for place, lineage, change in altered:
        # Without a rule, it is the policy of the version that decides.
        other: dict[str, int] = {"policy version": 1} if "rule" in change and change["rule"] is None else {}
        assert judged([checked], place, lineage, **change).by_what == {"decision": 1} | other, change
        assert judged([], place, lineage, **change).by_what == other


def test_another_review_sample_is_found(served: Served) -> None:
    ensemble, scores, found = served
    spec = load_spec(CARDS_SPEC)
    policy = replace(spec.spec.policy, fallback="approve")
    rules = replace(spec.spec, monitor=replace(spec.spec.monitor, review_sample=1.0), policy=policy)
    approved = [place for place, score in enumerate(scores) if score.decision == "approve"]
    drawn = [
        msgspec.structs.replace(score, review_propensity=1.0) if place in approved else score
        for place, score in enumerate(scores)
    ]

    def differences(published: list[Score], spec_hash: str = "s") -> dict[str, int]:
        verifier = Verifier(lambda *_: ensemble, 0.0, CheckedSpec(rules, spec_hash))
        verifier.add(published, found)
        return verifier.report().by_what

    assert approved
    assert differences(drawn) == {}
    assert differences(scores) == {"review sample": len(approved)}
    assert differences(scores, "of another spec") == {}
    assert differences([*drawn[:-1], msgspec.structs.replace(drawn[-1], review_propensity=0.5)]) == {"review sample": 1}


def first_member(found: Recorded, column: str) -> Recorded:
    members = found.contribution.members
    first, *rest = getattr(members, column)
    changed = replace(members, **{column: [(first or 0) + 1e-6, *rest]})
    return found._replace(contribution=replace(found.contribution, members=changed))


def number(found: Recorded, name: str) -> Recorded:
    value = (getattr(found.contribution, name) or 0) + 1e-6
    return found._replace(contribution=replace(found.contribution, **{name: value}))


def lineage(found: Recorded, **changes: Any) -> Recorded:
    assert found.lineage is not None
    return found._replace(lineage=replace(found.lineage, **changes))


ALTERED: dict[str, Callable[[Recorded], Recorded]] = {
    "contribution": lambda found: first_member(found, "contribution"),
    "weight": lambda found: first_member(found, "weight"),
    "member score": lambda found: first_member(found, "score"),
    "z": lambda found: number(found, "z"),
    "base": lambda found: number(found, "base"),
    "score": lambda found: number(found, "score"),
    "features, link or members": lambda found: lineage(found, feature_hash="0" * 64),
    "no lineage": lambda found: found._replace(lineage=None),
}


@pytest.mark.parametrize("what", ALTERED)
@pytest.mark.parametrize("row", [2, 20])
def test_an_altered_record_is_found(served: Served, what: str, row: int) -> None:
    ensemble, scores, found = served
    found[row] = ALTERED[what](found[row])
    report = verify(ensemble, scores, found)
    assert report.different == 1
    assert what in report.by_what
    assert report.examples[0].startswith(f"event e{row}: ")


def test_an_altered_feature_is_found(served: Served) -> None:
    ensemble, scores, found = served
    row = found[9].lineage
    assert row is not None
    features = [value if value is None else value * 1.0001 for value in row.features]
    found[9] = lineage(found[9], features=features)
    assert verify(ensemble, scores, found).different == 1


def test_lineage_of_another_event_is_found(served: Served) -> None:
    ensemble, scores, found = served
    found[9] = lineage(found[9], event_id="another")
    assert verify(ensemble, scores, found).by_what == {"features, link or members": 1}


@pytest.mark.parametrize("changes", [{"score": 0.1234}, {"coverage": 0.5}, {"decision_source": "fallback"}])
def test_an_altered_score_is_found(served: Served, changes: dict[str, Any]) -> None:
    ensemble, scores, found = served
    scores[30] = replace(scores[30], **changes)
    assert verify(ensemble, scores, found).different == 1


@pytest.mark.parametrize(
    ("what", "on_score", "on_contribution", "on_lineage"),
    [
        ("member alerts", {"member_alerts": 5}, {}, {}),
        ("policy version", {"policy_version": "p2"}, {}, {}),
        ("source", {}, {"source": Source("transactions", 3, 30)}, {}),
        ("degraded", {"degraded": ["features_unavailable"]}, {"degraded": ["features_unavailable"]}, {}),
        ("degraded", {"degraded": ["member:gbdt"]}, {"degraded": ["member:gbdt"]}, {}),
        ("degraded", {"degraded": ["features_stale"]}, {}, {"feature_status": [1] * 3}),
        ("degraded", {}, {}, {"feature_status": [4] * 3}),
        ("degraded", {}, {}, {"applied_offsets": []}),
        ("", {"degraded": ["features_stale"]}, {"degraded": ["features_stale"]}, {"feature_status": [1] * 3}),
        ("", *[{"degraded": ["features_catching_up"]}] * 2, {"applied_offsets": []}),
    ],
)
def test_fields_that_other_records_contradict_are_found(
    served: Served, what: str, on_score: Any, on_contribution: Any, on_lineage: Any
) -> None:
    ensemble, scores, found = served
    if "member_alerts" in on_score:
        on_score = {"member_alerts": scores[30].member_alerts ^ 1}
    scores[30] = replace(scores[30], **on_score)
    found[30] = lineage(found[30], **on_lineage)
    found[30] = found[30]._replace(contribution=replace(found[30].contribution, **on_contribution))
    assert verify(ensemble, scores, found).by_what == ({what: 1} if what else {})


def test_another_decision_is_found(served: Served) -> None:
    ensemble, scores, found = served
    scores[30] = replace(scores[30], decision="block" if scores[30].decision != "block" else "approve")
    report = verify(ensemble, scores, found)
    assert report.by_what == {"decision": 1}


class Kept:
    """A reader of what retention has left: by topic the first offset, and the records of one partition."""

    def __init__(
        self, ensemble: Ensemble, scores: list[Score], found: list[Recorded], cut: tuple[int, int, int]
    ) -> None:
        lineage = list(encoded(ensemble, found))
        self.passed: Counter[str] = Counter()
        self._held: dict[str, tuple[int, list[tuple[bytes, Any]]]] = {
            "scores": (cut[0], [(msgspec.json.encode(s), None) for s in scores]),
            "contributions": (cut[1], [(msgspec.json.encode(f.contribution), None) for f in found]),
            "lineage": (cut[2], [(record.value, record.headers) for record in lineage]),
        }

    def bounds(self, topic: str) -> dict[SourcePartition, tuple[int, int]]:
        low, records = self._held[topic]
        return {SourcePartition(topic, 0): (low, len(records))}

    def read(self, source: SourcePartition, start: int, stop: int) -> Iterator[Any]:
        records = self._held[source.topic][1]
        for low in range(start, stop, 7):
            part = records[low : min(low + 7, stop)]
            offset = np.arange(low, low + len(part))
            self.passed[source.topic] += len(part)
            yield SimpleNamespace(
                value=[value for value, _ in part], headers=[headers for _, headers in part],
                offset=offset, timestamp=1_000 * offset,
            )  # fmt: skip


def encoded(ensemble: Ensemble, found: list[Recorded], batch: int = 10) -> Iterator[EncodedLineage]:
    """The lineage records of micro-batches of `batch` transactions."""
    own = ensemble.manifest.thresholds
    for low in range(0, len(found), batch):
        number = found[low].contribution.version
        version = LineageVersion(
            "cards", number, "champion", ensemble.manifest.link, ensemble.digest, "p1", own.review, own.block
        )
        rows = [f.lineage for f in found[low : low + batch] if f.lineage is not None]
        header = LineageHeader(
            "transactions", ensemble.manifest.feature_hash, "s", "0", [version], None, {"transactions": [low]}, [],
            ensemble.feature_names,
        )  # fmt: skip
        n, unknown = len(rows), np.full(len(rows), -1, np.int64)
        columns = LineageColumns(
            np.zeros(n, np.int32), np.array([r.source.offset for r in rows]), [r.event_id for r in rows],
            np.zeros(n, np.int8), np.array([r.features for r in rows], np.float64),
            np.array([r.feature_status for r in rows], np.int8), unknown, unknown, np.full(n, np.nan),
            np.full(n, np.nan),
        )  # fmt: skip
        yield from encode_lineage(header, columns)


@pytest.mark.parametrize(
    ("cut", "left"),
    [((0, 0, 0), N), ((12, 0, 0), N - 12), ((0, 31, 0), N - 31), ((8, 9, 0), N - 9), ((3, 0, 2), N - 20)],
)
def test_what_not_all_topics_still_have_is_counted(served: Served, cut: tuple[int, int, int], left: int) -> None:
    ensemble, scores, found = served
    verifier = Verifier(lambda *_: ensemble, 0.0)
    report = verify_topics(Kept(ensemble, scores, found, cut), Topics(), verifier)
    assert (report.scores, report.different, report.unverified) == (left, 0, [])
    assert report.skipped == sum(report.by_missing.values()) == N - cut[0] - left


@pytest.mark.parametrize("topic", ["scores", "contributions"])
@pytest.mark.parametrize("value", [b"{}", b"\xff", None])
def test_a_record_of_another_program_is_a_difference(served: Served, topic: str, value: bytes | None) -> None:
    ensemble, scores, found = served
    reader = Kept(ensemble, scores, found, (0, 0, 0))
    reader._held[topic][1][20] = (value, None)  # type: ignore[call-overload]
    with pytest.raises(CheckFailed, match=rf"{topic}\[0\]@20 is no record of a scorer"):
        verify_topics(reader, Topics(), Verifier(lambda *_: ensemble, 0.0))


@pytest.mark.parametrize(
    ("headers", "message"),
    [(True, "the lineage of offsets 20 to 29 is no record"), (False, r"lineage\[0\]@2 is no record")],
)
def test_lineage_of_another_program_is_a_difference(served: Served, headers: bool, message: str) -> None:
    ensemble, scores, found = served
    reader = Kept(ensemble, scores, found, (0, 0, 0))
    reader._held["lineage"][1][2] = (b"{}", reader._held["lineage"][1][2][1] if headers else None)
    with pytest.raises(CheckFailed, match=message):
        verify_topics(reader, Topics(), Verifier(lambda *_: ensemble, 0.0))


@pytest.mark.parametrize(
    ("cut", "missing"), [((5, 0, 5), {"lineage": N - 5}), ((0, N, 0), {"contribution": N}), ((N, 0, 0), {})]
)
def test_a_partition_of_which_nothing_can_be_verified_fails_the_check(
    served: Served, cut: tuple[int, int, int], missing: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble, scores, found = served
    reader = Kept(ensemble, scores, found, cut)
    report = verify_topics(reader, Topics(), Verifier(lambda *_: ensemble, 0.0))
    assert (report.scores, report.by_missing, report.unverified) == (0, missing, [0] if missing else [])

    decided = nullcontext(Decided(reader, Topics(), lambda *_: Path()))  # type: ignore[arg-type]
    monkeypatch.setattr("stream_scorer.cli.verify.open_decided", lambda *_: decided)
    result = CliRunner().invoke(verify_command, [])
    assert isinstance(result.exception, CheckFailed)
    for what, count in missing.items():
        assert f"{count} scores skipped: {count} have no {what}" in result.stdout
        assert f"in the partitions 0: {count} have no {what}" in result.exception.message
    assert missing or "contain no scores" in result.exception.message


@pytest.mark.parametrize("ids", [["e0"] + [f"e{i}" for i in range(N - 1)], [f"e{i % 25}" for i in range(N)]])
@pytest.mark.parametrize("cut", [(0, 25, 0), (25, 0, 0), (1, 0, 0), (0, 1, 0), (0, 27, 0)])
def test_an_event_that_occurs_twice_is_paired_with_its_own_copy(
    served: Served, ids: list[str], cut: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment, "CLOCK_SKEW_MS", 10_000)
    ensemble, scores, found = served
    scores = [replace(s, event_id=name) for s, name in zip(scores, ids, strict=True)]
    found = [
        lineage(f._replace(contribution=replace(f.contribution, event_id=name)), event_id=name)
        for f, name in zip(found, ids, strict=True)
    ]
    report = verify_topics(Kept(ensemble, scores, found, cut), Topics(), Verifier(lambda *_: ensemble, 0.0))
    assert (report.scores, report.different) == (N - max(cut), 0)


def test_only_the_longer_topic_is_read_on_and_nothing_of_it_is_kept(served: Served) -> None:
    ensemble, scores, found = served
    scores = [replace(s, event_id=f"{n}-{s.event_id}") for n in range(100) for s in scores]
    reader = Kept(ensemble, scores, found, (0, 0, 0))
    contributions = [msgspec.json.encode(replace(found[0].contribution, event_id=s.event_id)) for s in scores]
    reader._held["contributions"] = 4_900, [(value, None) for value in contributions]
    one, other = (
        Range(SourcePartition(t, 0), *reader.bounds(t)[SourcePartition(t, 0)]) for t in ("scores", "contributions")
    )
    tracemalloc.start()
    assert common_start(reader, one, other) == (4_900, 4_900)
    assert tracemalloc.get_traced_memory()[1] < 200_000
    tracemalloc.stop()
    assert reader.passed["contributions"] <= 2 * WINDOW
    swapped = common_start(reader, other, one)
    assert swapped == (4_900, 4_900)


def test_lineage_that_is_gone_in_the_middle_is_a_difference(served: Served) -> None:
    ensemble, scores, found = served
    reader = Kept(ensemble, scores, found, (0, 0, 0))
    del reader._held["lineage"][1][2]
    report = verify_topics(reader, Topics(), Verifier(lambda *_: ensemble, 0.0))
    assert (report.scores, report.different, report.by_what) == (N, 10, {"no lineage": 10})


def test_topics_that_hold_other_events_are_refused(served: Served) -> None:
    ensemble, scores, found = served
    foreign = [f._replace(contribution=replace(f.contribution, event_id="x")) for f in found]
    for mine in ([*found[:20], *foreign[20:]], foreign):
        reader = Kept(ensemble, scores, mine, (0, 0, 0))
        with pytest.raises(UsageError, match="have different events"):
            verify_topics(reader, Topics(), Verifier(lambda *_: ensemble, 0.0))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("artifact_digest", "is not the version that scored: no such model"),
        ("artifact_self_test", "is not the version that scored: no such model"),
        ("artifact_missing", "20 scores are not recomputed: cards 8 (20 scores) is not found: no such model"),
    ],
)
def test_a_version_that_was_altered_is_a_difference_and_one_that_is_gone_is_counted(
    served: Served, code: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensemble, scores, found = served
    for i in range(20, 40):  # whole micro-batches
        scores[i] = replace(scores[i], version="8")
        row = found[i].lineage
        assert row is not None
        found[i] = Recorded(replace(found[i].contribution, version="8"), replace(row, version="8"))

    def folder_of(_name: str, version: str, manifest_sha256: str) -> Path:
        assert manifest_sha256 == ensemble.digest
        if version == "8":
            raise ArtifactError("no such model", code=code, hint="Export it.")
        return Path()

    decided = nullcontext(Decided(Kept(*served, (0, 0, 0)), Topics(), folder_of))  # type: ignore[arg-type]
    monkeypatch.setattr("stream_scorer.cli.verify.open_decided", lambda *_: decided)
    monkeypatch.setattr(Ensemble, "load", lambda *_, **__: ensemble)
    done = CliRunner().invoke(verify_command, [])
    error = done.exception
    assert isinstance(error, CheckFailed) and message in error.message and error.hint == "Export it."
    gone = code == "artifact_missing"
    assert ("30 scores recomputed" in done.stdout, "cards 8 is not found" in done.stdout) == (gone, gone)


def test_event_ids_cannot_send_commands_to_the_terminal(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble, scores, found = served
    scores[0] = replace(scores[0], event_id="e\x1b[2J", ensemble="other")
    found[0] = lineage(found[0]._replace(contribution=replace(found[0].contribution, event_id="e\x1b[2J")))
    decided = nullcontext(Decided(Kept(ensemble, scores, found, (0, 0, 0)), Topics(), lambda *_: Path()))  # type: ignore[arg-type]
    monkeypatch.setattr("stream_scorer.cli.verify.open_decided", lambda *_: decided)
    monkeypatch.setattr(Ensemble, "load", lambda *_, **__: ensemble)
    stdout = CliRunner().invoke(verify_command, []).stdout
    assert "event e\\u001b[2J: " in stdout and "\x1b" not in stdout


class Live(Kept):
    """A scorer goes on: with each look-up, every topic has three more records."""

    def __init__(self, ensemble: Ensemble, scores: list[Score], found: list[Recorded]) -> None:
        super().__init__(ensemble, scores, found, (0, 0, 0))
        self._end = 20
        self.read_before = False

    def bounds(self, topic: str) -> dict[SourcePartition, tuple[int, int]]:
        assert topic == "lineage" or not self.read_before
        self._end += 3
        return {SourcePartition(topic, 0): (0, len(self._held[topic][1]) if topic == "lineage" else self._end)}

    def read(self, source: SourcePartition, start: int, stop: int) -> Iterator[Any]:
        self.read_before = True
        return super().read(source, start, stop)


def test_topics_of_a_system_that_is_scoring_are_read_to_the_end_of_the_shorter_one(served: Served) -> None:
    ensemble, scores, found = served
    report = verify_topics(Live(ensemble, scores, found), Topics(), Verifier(lambda *_: ensemble, 0.0))
    assert 20 < report.scores < N
    assert report.different == 0
    assert 20 < len(list(served_records(Live(ensemble, scores, found), Topics())(0))) < N
    shorter = Kept(ensemble, scores, found[:-1], (0, 0, 0))
    assert verify_topics(shorter, Topics(), Verifier(lambda *_: ensemble, 0.0)).scores == N - 1


def test_a_record_of_the_old_form_is_read() -> None:
    """Recorded by the last version that wrote them; on topics of that time there is no lineage."""
    value = (Path(__file__).parent / "data" / "fat_contribution.json").read_bytes().strip()
    contribution, row = decode_contribution(value)
    old = json.loads(value)
    assert row is not None
    assert [m["contribution"] for m in old["members"]] == contribution.members.contribution
    assert contribution.members.rows()[1]._asdict() == old["members"][1]
    assert contribution.base is not None
    assert contribution.base + sum(contribution.members.contribution) == pytest.approx(contribution.z, abs=1e-9)
    assert (row.features, row.feature_status) == (old["features"], old["feature_status"])
    assert [msgspec.to_builtins(a) for a in row.applied_offsets] == old["marks"]
    assert (row.place, row.source.offset) == (old["source"]["place"], old["source"]["offset"])
    assert (row.event_id, row.feature_hash, row.link) == (old["event_id"], old["feature_hash"], old["link"])


@pytest.mark.parametrize("where", ["event_id", "member"])
def test_a_text_of_a_user_does_not_decide_the_form_of_a_record(served: Served, where: str) -> None:
    _, _, found = served
    contribution = found[7].contribution
    if where == "event_id":
        contribution = replace(contribution, event_id="feature_hash")
    else:
        names = ["feature_hash", *contribution.members.name[1:]]
        contribution = replace(contribution, members=replace(contribution.members, name=names))
    assert decode_contribution(msgspec.json.encode(contribution)) == (contribution, None)
    with pytest.raises(msgspec.ValidationError, match="event_id"):
        decode_contribution(b'{"feature_hash": 1}')
