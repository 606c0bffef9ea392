"""Scores of stacked ensembles with a missing member: z is the weighted mean, and has a final calibrator of its own."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from proofs.additivity import Vote
from stream_scorer.ensemble.combination import Combination, matched
from stream_scorer.ensemble.combine import Combiner, Scenarios
from stream_scorer.ensemble.compare import compare
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.links import logit, sigmoid
from stream_scorer.ensemble.manifest import (
    CombinerSpec,
    Manifest,
    Median,
    Platt,
    Stacking,
    TrimmedMean,
    WeightedMean,
    manifest_bytes,
    manifest_digest,
    parse_manifest,
    read_manifest,
)
from stream_scorer.ensemble.pair import PairPlan
from stream_scorer.errors import ArtifactError
from stream_scorer.monitor.drift_series import describe
from stream_scorer.spec.load import parse_spec
from stream_scorer.spec.training import parse_training
from stream_scorer.train import provenance
from stream_scorer.train.stack import Stack, fit_stack
from tests.support.ensembles import compose
from tests.support.specs import numbers_spec

SPEC = parse_spec(numbers_spec("ab", "policy: {version: p1, review: 0.3, block: 0.8, quorum: 0.4}\n"))
ROWS, REVIEW_RATE = 20_000, 0.01
OWN = Platt(2.5, -0.7)
HOW = Stacking(-0.2, [0.5, 0.9, 0.4])
KEPT = sorted((Path(__file__).parent / "data" / "archive" / "ensembles").iterdir())


def simulated() -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of three independent members, and labels: each member adds much to the others."""
    random = np.random.default_rng(1)
    label = random.random(ROWS) < 0.01
    shown = 2.2 * label[:, None] + random.normal(size=(ROWS, 3))
    raw = sigmoid((2.2 * shown - 7.0).ravel()).reshape(shown.shape)
    return raw, label


RAW, LABEL = simulated()


@pytest.fixture(scope="module")
def stack() -> Stack:
    return fit(RAW, LABEL, "stacking")


def fit(raw: np.ndarray, label: np.ndarray, method: str) -> Stack:
    members = "".join(f"  - {{name: m{i}, algorithm: lightgbm}}\n" for i in range(raw.shape[1]))
    rates = f"{{review_rate: {REVIEW_RATE}, block_rate: 0.002}}"
    text = f"members:\n{members}combination: {{method: {method}}}\nthresholds: {rates}\n"
    return fit_stack(raw, label, parse_training(text).spec, SPEC)


def review(stack: Stack, raw: np.ndarray, incomplete: object) -> tuple[float, float]:
    """Alert rate and recall at the review threshold, with this calibrator of incomplete scores."""
    used = Combiner(stack.votes, stack.how, stack.link, stack.final, 0.4, incomplete)  # type: ignore[arg-type]
    alert = used.combine(stack.member_scores(raw))[5] >= stack.thresholds.review
    return float(alert.mean()), float(alert[LABEL].mean())


def test_recall_stays_near_what_the_other_members_allow(stack: Stack) -> None:
    whole = review(stack, RAW, stack.incomplete)
    assert whole == review(stack, RAW, msgspec.UNSET)
    for member in range(3):
        without = RAW.copy()
        without[:, member] = np.nan
        before, after = (review(stack, without, each) for each in (msgspec.UNSET, stack.incomplete))
        # What two members allow, at the rate of the threshold and at the rate of these alerts.
        falling = np.argsort(-logit(np.delete(RAW, member, 1).ravel()).reshape(-1, 2).sum(axis=1))
        possible = [LABEL[falling[: round(rate * ROWS)]].sum() / LABEL.sum() for rate in (REVIEW_RATE, after[0])]
        assert before[1] < 0.3 < possible[0] - 0.3
        assert possible[0] - 0.02 < after[1] < whole[1]
        assert after[1] == pytest.approx(possible[1], abs=0.03)
        assert REVIEW_RATE < after[0] < 2 * REVIEW_RATE


def test_only_stacking_has_a_calibrator_of_incomplete_scores(stack: Stack) -> None:
    mean = fit(RAW, LABEL, "weighted-mean")
    assert mean.incomplete is msgspec.UNSET
    # It equals the final calibrator of the same members with the weighted mean.
    assert stack.incomplete == mean.final != stack.final


def rows() -> tuple[np.ndarray, np.ndarray]:
    """Scores of four members, of which the last has no weight, and where one with weight is missing."""
    random = np.random.default_rng(5)
    raw = random.random((400, 4))
    raw[random.random(raw.shape) < 0.2] = np.nan
    return raw, np.isnan(raw[:, :3]).any(axis=1)


def combiner(how: CombinerSpec, incomplete: object) -> Combiner:
    votes = [Vote(weight, -2.0) for weight in (0.5, 0.3, 0.2, 0.0)]
    return Combiner(votes, how, "logit", Platt(1.3, 0.4), 0.0, incomplete)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", [WeightedMean(), Median(), TrimmedMean(0.34), Stacking(-0.2, [0.5, 0.9, 0.4, 3.0])])
def test_no_bit_of_other_rows_changes(how: CombinerSpec) -> None:
    raw, missing = rows()
    without, own = (combiner(how, each) for each in (msgspec.UNSET, OWN))
    before, after = without.combine(raw), own.combine(raw)
    concerned = missing & isinstance(how, Stacking) & ~np.isnan(before[4])
    assert np.array_equal(own.incomplete(raw), missing & isinstance(how, Stacking))
    for place, (one, two) in enumerate(zip(before, after, strict=True)):
        same = np.equal(one, two) | (np.isnan(one) & np.isnan(two))
        assert (same if place != 5 else same[~concerned]).all()
    again = OWN.slope * logit(sigmoid(after[4][concerned])) + OWN.intercept
    assert after[5][concerned] == pytest.approx(sigmoid(again), abs=1e-12)
    assert isinstance(how, Stacking) == bool(concerned.any())


def test_all_that_recomputes_a_score_follows_the_same_rule() -> None:
    raw, _ = rows()
    own = combiner(Stacking(-0.2, [0.5, 0.9, 0.4, 3.0]), OWN)
    scores, _, _, _, z, score, _ = own.combine(raw)
    assert np.array_equal(own.finish(z, own.incomplete(scores)), score, equal_nan=True)
    nobody, weights = np.zeros((1, 4), np.bool_), np.array([[0.5, 0.3, 0.2, 0.0]])
    scenario = Scenarios(nobody, weights, np.array([[0.5, 0.9, 0.4, 3.0]]))
    assert np.array_equal(own.what_if(scores, scores, scenario)[:, 0], score, equal_nan=True)
    left_out = own.left_out(scores, score)
    for member in range(4):
        without = np.where(np.arange(4) == member, np.nan, raw)
        expected = np.where(np.isnan(score), np.nan, own.combine(without)[5])
        assert np.array_equal(left_out[:, member], expected, equal_nan=True)


def stacked(folder: Path, incomplete: object) -> Ensemble:
    compose(folder, combiner=HOW, incomplete=incomplete)  # type: ignore[arg-type]
    return Ensemble.load(folder, version=folder.name)


def test_versions_that_differ_in_it_differ_in_policy(tmp_path: Path) -> None:
    before, after = stacked(tmp_path / "1", msgspec.UNSET), stacked(tmp_path / "2", OWN)
    plan = PairPlan.between(after.manifest, before.manifest)
    assert (plan.policy, plan.members, plan.combination) == (True, [], None)
    assert Combination.between(after.manifest, before.manifest, matched(after.manifest, before.manifest)) is None
    assert compare(before, after).facts == {"final calibrator if a member is missing": ("the same", str(OWN))}
    raw = np.random.default_rng(3).random((200, 3))
    raw[::2, 1] = np.nan
    mine, theirs = (each._combiner.combine(raw) for each in (after, before))
    assert np.array_equal(before.finish(mine[4], after.incomplete(mine[0])), theirs[5])
    assert (mine[5] == theirs[5]).tolist() == [False, True] * 100
    keys = [describe(SPEC, each.manifest)["score"].key for each in (before, after)]
    assert keys[0] != keys[1]


def test_the_manifest_keeps_it_and_another_combiner_may_not_have_it(tmp_path: Path) -> None:
    manifest = stacked(tmp_path / "1", OWN).manifest
    assert read_manifest(tmp_path / "1").incomplete_calibrator == OWN
    mean = msgspec.structs.replace(manifest, combiner=WeightedMean())
    with pytest.raises(ArtifactError, match="incomplete_calibrator: only stacking uses one"):
        parse_manifest(manifest_bytes(mean))


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name[:8])
def test_manifests_from_before_keep_their_digests(folder: Path) -> None:
    """The kept manifests have no such calibrator; the name of a folder is the digest."""
    data = (folder / "manifest.json").read_bytes()
    manifest: Manifest = parse_manifest(data)
    assert manifest.incomplete_calibrator is msgspec.UNSET
    assert (manifest_bytes(manifest), manifest_digest(manifest)) == (data, folder.name)


def test_a_stacked_manifest_from_before_keeps_its_digest() -> None:
    manifest = msgspec.structs.replace(read_manifest(KEPT[0]), combiner=Stacking(-0.2, [0.5] * 3))
    assert manifest_digest(manifest) == "128198f04093cc4427ef8da2d2678d003c25dce7ecd20cee16874ceb70d59432"


def test_a_stacked_ensemble_of_an_earlier_release_is_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = stacked(tmp_path / "1", msgspec.UNSET).manifest.training.run_id
    stacked(tmp_path / "2", OWN)
    monkeypatch.setattr(provenance, "set_digest", lambda _data: "")
    monkeypatch.setattr(provenance, "_run_id", lambda *_: run_id)
    found = [provenance.find_trained(tmp_path / name, None, "") is not None for name in "12"]  # type: ignore[arg-type]
    assert found == [False, True]
