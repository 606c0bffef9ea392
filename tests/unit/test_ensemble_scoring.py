"""Scoring: order of computation, missing members, additivity, batch independence, decisions."""

from __future__ import annotations

import dataclasses
import errno
import math
from pathlib import Path

import lightgbm
import msgspec
import numpy as np
import pytest
import xgboost

from stream_scorer.ensemble.combine import decide
from stream_scorer.ensemble.compare import compare
from stream_scorer.ensemble.compose import Draft, choose_ranks
from stream_scorer.ensemble.ensemble import Ensemble, left_out_scores
from stream_scorer.ensemble.manifest import (
    LINKS,
    CombinerSpec,
    Input,
    Link,
    Median,
    NoCalibrator,
    Platt,
    Stacking,
    TrimmedMean,
    WeightedMean,
    manifest_bytes,
)
from stream_scorer.ensemble.members.dense_json import Dense, Layer, encode_dense
from stream_scorer.ensemble.reweigh import reweigh
from stream_scorer.errors import ArtifactError, UsageError
from tests.support.ensembles import FEATURES, compose, drafts, logistic, reference


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("combiner", [WeightedMean(), Median(), TrimmedMean(0.34), Stacking(0.2, [0.5, 0.7, 0.1])])
def test_every_combiner_is_composed_loaded_and_centred_on_the_reference(
    tmp_path: Path, combiner: CombinerSpec, link: Link
) -> None:
    if isinstance(combiner, Stacking) and link != "logit":
        with pytest.raises(ArtifactError, match="stacking"):
            compose(tmp_path / "e", combiner=combiner, link=link)
        return
    manifest = compose(tmp_path / "e", combiner=combiner, link=link)
    ensemble = Ensemble.load(tmp_path / "e", version="1")
    assert ensemble.manifest == manifest
    scored = ensemble.score(reference())
    linked = ensemble.linked(scored.member_scores)
    assert np.nanmean(linked, axis=0) == pytest.approx([member.baseline for member in manifest.members], abs=1e-12)
    if link == "rank":
        assert [member.baseline for member in manifest.members] == pytest.approx([0.5] * 3, abs=0.02)
        assert all(len(member.ranks) == 500 for member in manifest.members)
    assert scored.base + scored.contributions.sum(axis=1) == pytest.approx(scored.z, abs=1e-9)
    assert len(set(scored.base.tolist())) == 1
    assert link == "logit" or ((scored.z >= 0) & (scored.z <= 1)).all()
    # A member that is missing: somebody else decides, and scores stand.
    alone = ensemble._combiner.combine(np.where([True, False, True], scored.member_scores, np.nan))
    assert not np.isnan(alone[5]).any()


def test_ranks_keep_an_even_choice_of_many_scores() -> None:
    chosen = choose_ranks(np.random.default_rng(1).permutation(5_000) / 5_000)
    assert len(chosen) == 1_000
    assert chosen == sorted(chosen)
    assert (chosen[0], chosen[-1]) == (0.0, 0.9998)


@pytest.mark.parametrize(
    ("combiner", "says"),
    [
        (Stacking(0.0, [1.0]), "1 coefficients for 3 members"),
        (Stacking(math.nan, [1.0, 1.0, 1.0]), "not a finite number"),
    ],
)
def test_a_combiner_that_does_not_fit_is_refused(tmp_path: Path, combiner: CombinerSpec, says: str) -> None:
    with pytest.raises(ArtifactError, match=says):
        compose(tmp_path / "e", combiner=combiner)


def test_a_median_of_too_many_members_is_refused(tmp_path: Path) -> None:
    one = drafts()[1]
    many = [Draft(f"m{i}", one.format, one.data, one.inputs, one.preprocess, one.calibrator, 1.0) for i in range(11)]
    with pytest.raises(ArtifactError, match="at most 10"):
        compose(tmp_path / "e", many, combiner=Median())
    compose(tmp_path / "e", many, combiner=WeightedMean())


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    directory = tmp_path_factory.mktemp("ensemble") / "cards"
    compose(directory)
    return Ensemble.load(directory, version="3")


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def logit(p: float) -> float:
    p = min(max(p, 1e-6), 1 - 1e-6)
    return math.log(p / (1 - p))


def test_a_score_is_what_the_manifest_says_by_hand(ensemble: Ensemble) -> None:
    row = np.array([[4.0, np.nan, 1.0, 6.0]])
    scored = ensemble.score(row)
    one = sigmoid(0.8 * logit(sigmoid(0.5 * 4 - 0.25 * 0 - 1.0)) - 0.1)
    two = sigmoid(1.5 - 2.0)
    raw = sigmoid(0.3 * 6 + 0.2 * 4 - 1.5)
    three = 0.3 + (raw - 0.5) / 0.4 * 0.65
    assert scored.member_scores[0] == pytest.approx([one, two, three], abs=1e-12)
    z = 0.5 * logit(one) + 0.3 * logit(two) + 0.2 * logit(three)
    assert scored.z[0] == pytest.approx(z, abs=1e-12)
    assert scored.score[0] == pytest.approx(sigmoid(1.2 * z + 0.3), abs=1e-12)
    assert scored.coverage[0] == 1.0
    assert not scored.failures
    assert ensemble.version == "3"
    assert ensemble.member_names == ["one", "two", "three"]


def test_contributions_are_centred_on_the_reference(ensemble: Ensemble) -> None:
    scored = ensemble.score(reference())
    assert np.abs(scored.contributions.mean(axis=0)).max() < 1e-9
    assert np.abs(scored.base + scored.contributions.sum(axis=1) - scored.z).max() < 1e-9


class Broken:
    """A member that raises or returns `answer`."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        if isinstance(self.answer, Exception):
            raise self.answer
        return np.resize(np.asarray(self.answer, dtype=float), len(inputs))


def with_member(ensemble: Ensemble, index: int, answer: object) -> Ensemble:
    members = [loaded.member for loaded in ensemble._members]
    members[index] = Broken(answer)
    return Ensemble(ensemble.manifest, members, version="3")


def test_a_member_that_raises_is_missing_and_reported(ensemble: Ensemble) -> None:
    whole = ensemble.score(reference(8))
    scored = with_member(ensemble, 1, RuntimeError("out of luck")).score(reference(8))
    assert scored.failures == {"two": "RuntimeError: out of luck"}
    assert np.isnan(scored.member_scores[:, 1]).all()
    assert (scored.contributions[:, 1] == 0).all()
    assert (scored.weights[:, 1] == 0).all()
    assert scored.weights[:, 0] == pytest.approx(0.5 / 0.7)
    assert scored.coverage == pytest.approx(0.7)
    assert scored.base + scored.contributions.sum(axis=1) == pytest.approx(scored.z, abs=1e-12)
    assert np.array_equal(scored.member_scores[:, 0], whole.member_scores[:, 0])
    assert not np.array_equal(scored.score, whole.score)


@pytest.mark.parametrize("bad", [np.nan, -0.1, 1.00001, np.inf])
def test_a_value_that_is_no_probability_is_missing_in_its_row_only(ensemble: Ensemble, bad: float) -> None:
    scored = with_member(ensemble, 2, [0.5, bad, 0.5, 0.5]).score(reference(4))
    assert np.isnan(scored.member_scores[:, 2]).tolist() == [False, True, False, False]
    assert "1 of 4 rows" in scored.failures["three"]
    assert scored.coverage == pytest.approx([1.0, 0.8, 1.0, 1.0])


def test_under_the_quorum_there_is_no_score(ensemble: Ensemble) -> None:
    answers = with_member(ensemble, 0, [0.5, np.nan])
    answers._members[1] = with_member(ensemble, 1, [np.nan, np.nan])._members[1]
    scored = answers.score(reference(2))
    assert scored.coverage == pytest.approx([0.7, 0.2])
    for values in (scored.z, scored.base, scored.score):
        assert np.isnan(values).tolist() == [False, True]
    assert decide(scored.score, 0.0, 0.0, "review").tolist() == [2, 1]


def test_coverage_equal_to_the_quorum_stands(tmp_path: Path) -> None:
    made = [
        Draft(n, "dense-json", logistic([1.0], 0.0), FEATURES[:1], [Input(impute=0.0)], NoCalibrator(), w)
        for n, w in (("a", 0.05), ("b", 0.35), ("c", 0.6))  # a and b: 0.39999999999999997
    ]
    compose(tmp_path / "e", made, quorum=0.4)
    ensemble = with_member(Ensemble.load(tmp_path / "e", version="1"), 2, np.nan)
    assert not np.isnan(ensemble.score(reference(3)).score).any()


def test_leaving_a_member_out_equals_scoring_without_it(ensemble: Ensemble) -> None:
    rows = reference(64)
    scored = ensemble.score(rows)
    left_out = left_out_scores(scored, ensemble.manifest)
    for index in range(3):
        without = with_member(ensemble, index, np.nan).score(rows)
        assert left_out[:, index] == pytest.approx(without.score, abs=1e-12)
    assert np.array_equal(left_out, ensemble.left_out_scores(scored))
    missing = with_member(ensemble, 1, np.nan).score(rows)
    assert np.array_equal(left_out_scores(missing, ensemble.manifest)[:, 1], missing.score)


def test_decisions_are_at_or_above_their_threshold() -> None:
    decision = decide(np.array([0.0, 0.29, 0.3, 0.79, 0.8, 1.0, np.nan]), 0.3, 0.8, "block")
    assert decision.dtype == np.int8
    assert decision.tolist() == [0, 0, 1, 1, 2, 2, 2]


def test_a_matrix_of_other_columns_is_refused(ensemble: Ensemble) -> None:
    with pytest.raises(ValueError, match="4 features"):
        ensemble.score(np.zeros((2, 3)))


def test_an_empty_batch_is_scored(ensemble: Ensemble) -> None:
    scored = ensemble.score(np.empty((0, 4)))
    assert (scored.score.shape, scored.member_scores.shape, scored.failures) == ((0,), (0, 3), {})


def five_formats() -> list[Draft]:
    random = np.random.default_rng(5)
    x = reference(3_000, seed=7)
    y = np.nan_to_num(x[:, 1] - 100) / 20 + x[:, 2] * 2 + random.normal(size=len(x)) > 2
    tree = {"objective": "binary", "num_threads": 1, "verbose": -1, "seed": 1, "deterministic": True}
    rf = tree | {
        "objective": "regression",
        "boosting": "rf",
        "bagging_freq": 1,
        "bagging_fraction": 0.6,
        "num_leaves": 15,
    }
    gbdt = lightgbm.train(tree | {"num_leaves": 15}, lightgbm.Dataset(x, y), 20)
    forest = lightgbm.train(rf, lightgbm.Dataset(x, y.astype(float)), 10)
    xgb = xgboost.train({"objective": "binary:logistic", "nthread": 1, "max_depth": 4}, xgboost.DMatrix(x, y), 20)
    network = Dense(
        [
            Layer(random.normal(size=(4, 32)).tolist(), random.normal(size=32).tolist(), "relu"),
            Layer(random.normal(size=(32, 16)).tolist(), random.normal(size=16).tolist(), "tanh"),
            Layer((random.normal(size=(16, 1)) / 4).tolist(), [0.0], "logistic"),
        ]
    )
    keep = [Input()] * 4
    scaled = [Input(impute=0.0, offset=o, scale=s) for o, s in ((3, 2), (100, 20), (0, 1), (4, 1))]
    none = NoCalibrator()
    return [
        Draft("gbdt", "lightgbm-text", gbdt.model_to_string().encode(), FEATURES, keep, Platt(1.1, 0.1), 0.3),
        Draft("xgb", "xgboost-ubj", bytes(xgb.save_raw("ubj")), FEATURES, keep, none, 0.3),
        Draft("forest", "lightgbm-text", forest.model_to_string().encode(), FEATURES, keep, none, 0.2),
        Draft("logistic", "dense-json", logistic([0.1, 0.4, 0.5, -0.2], -2.0), FEATURES, scaled, none, 0.1),
        Draft("neural", "dense-json", encode_dense(network), FEATURES, scaled, none, 0.1),
    ]


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    directory = tmp_path_factory.mktemp("five") / "cards"
    compose(directory, five_formats())
    return Ensemble.load(directory, version="1")


@pytest.mark.parametrize("size", [1, 7, 256])
def test_a_row_has_the_same_bits_in_any_batch(five: Ensemble, size: int) -> None:
    rows = reference(256 if size == 1 else 1024, seed=11)
    whole = five.score(rows)
    assert not whole.failures
    for name in ("member_scores", "weights", "contributions", "base", "z", "score", "coverage"):
        parts = [getattr(five.score(rows[at : at + size]), name) for at in range(0, len(rows), size)]
        assert np.array_equal(np.concatenate(parts), getattr(whole, name)), name


def test_members_answer_like_the_libraries_that_made_them(five: Ensemble) -> None:
    rows = reference(300, seed=13)
    by_name = {draft.name: draft for draft in five_formats()}
    scored = five.score(rows)
    booster = xgboost.Booster()
    booster.load_model(bytearray(by_name["xgb"].data))
    assert scored.member_scores[:, 1] == pytest.approx(booster.predict(xgboost.DMatrix(rows)), abs=1e-6)
    forest = lightgbm.Booster(model_str=by_name["forest"].data.decode())
    assert scored.member_scores[:, 2] == pytest.approx(forest.predict(rows), abs=1e-12)


def test_another_spec_is_refused(ensemble: Ensemble) -> None:
    ensemble.check_features(FEATURES, "b" * 64)
    with pytest.raises(ArtifactError, match="their order differs"):
        ensemble.check_features(FEATURES[::-1], "b" * 64)
    with pytest.raises(ArtifactError, match="extra"):
        ensemble.check_features([*FEATURES, "extra"], "b" * 64)
    with pytest.raises(ArtifactError, match="other definitions"):
        ensemble.check_features(FEATURES, "c" * 64)


def test_the_self_test_refuses_an_ensemble_that_scores_otherwise(tmp_path: Path) -> None:
    manifest = compose(tmp_path / "e")
    altered = msgspec.structs.replace(
        manifest, members=[msgspec.structs.replace(manifest.members[0], weight=0.7), *manifest.members[1:]]
    )
    (tmp_path / "e" / "manifest.json").write_bytes(manifest_bytes(altered))
    with pytest.raises(ArtifactError, match=r"fails its self-test.*final score"):
        Ensemble.load(tmp_path / "e", version="1")


def test_the_folder_may_be_on_another_file_system_and_a_mixture_of_two_writers_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.replace

    def within(self: Path, target: Path) -> Path:
        """As if `out` were a mount point."""
        if (tmp_path / "out" in self.parents) != (tmp_path / "out" in target.parents):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", within)
    compose(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "manifest.json", "one.json", "three.json", "two.json",
    ]  # fmt: skip

    def late(self: Path, target: Path) -> Path:
        """Another writer replaces the first member before this one replaces its last file."""
        if target.name == "manifest.json":
            (target.parent / "one.json").write_text("{}")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", late)
    with pytest.raises(ArtifactError, match="another process writes an ensemble to"):
        compose(tmp_path / "out")


def test_other_weights_make_another_version_that_scores_by_them(tmp_path: Path) -> None:
    compose(tmp_path / "e")
    before = Ensemble.load(tmp_path / "e", version="1")
    reweigh(tmp_path / "e", {"two": 0.0}, tmp_path / "new", 9)
    after = Ensemble.load(tmp_path / "new", version="2")
    assert after.member_keys == before.member_keys
    assert after.digest != before.digest
    rows = reference(64)
    answers = [before.predict_member(index, rows) for index in range(3)]
    answers[1] = type(answers[1]).none(64, "gone")
    assert np.allclose(after.score(rows).score, before.combine(answers).score, atol=1e-12)
    for weights, what in (
        ({"four": 1.0}, "four"),
        ({"two": -1.0}, "at least 0"),
        (dict.fromkeys(before.member_names, 0.0), "at least one"),
        ({"two": math.nan}, "at least 0"),
    ):
        with pytest.raises(UsageError, match=what):
            reweigh(tmp_path / "e", weights, tmp_path / "bad", 9)
    compose(tmp_path / "median", combiner=Median())
    with pytest.raises(UsageError, match="does not use weights"):
        reweigh(tmp_path / "median", {"two": 1.0}, tmp_path / "bad", 9)


def test_a_comparison_names_the_member_that_changed_and_what_in_it(tmp_path: Path) -> None:
    compose(tmp_path / "e")
    other = drafts()
    other[1] = dataclasses.replace(
        other[1], preprocess=[replace_input(each) for each in other[1].preprocess], weight=9.0
    )
    compose(tmp_path / "new", [*other[:2], dataclasses.replace(other[2], name="four")])
    before, after = (Ensemble.load(tmp_path / name, version=name) for name in ("e", "new"))
    found = compare(before, after)
    assert {m.name: m.changed for m in found.members} == {
        "one": [], "two": ["preprocess"], "four": ["new"], "three": ["gone"]
    }  # fmt: skip
    of = {m.name: m for m in found.members}
    assert of["one"].moved == 0.0
    assert of["two"].moved > 0.0
    assert math.isnan(of["four"].moved)
    assert of["two"].weight_after > of["two"].weight_before
    assert (of["three"].weight_after, of["four"].weight_before) == (0.0, 0.0)
    assert found.moved > 0.0
    same = compare(before, before)
    assert (same.facts, same.moved, [m.changed for m in same.members]) == ({}, 0.0, [[], [], []])


def replace_input(given: Input) -> Input:
    return msgspec.structs.replace(given, offset=given.offset + 1.0)
