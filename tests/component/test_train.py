"""Training: splits, plans, fits, and an ensemble that scores as it was judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pytest

from stream_scorer.ensemble.calibrate import calibrate
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.links import logit, sigmoid
from stream_scorer.ensemble.manifest import Beta, Platt, manifest_bytes
from stream_scorer.ensemble.members import load_member
from stream_scorer.ensemble.preprocess import Preprocess
from stream_scorer.errors import UsageError
from stream_scorer.spec.load import parse_spec
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.train.algorithms import require_probabilities
from stream_scorer.train.calibration import MIN_WEIGHT, fit_beta, fit_isotonic, fit_platt, fit_stacking, fit_weights
from stream_scorer.train.dense import standardise, warn_without_values
from stream_scorer.train.metrics import score_figures
from stream_scorer.train.plan import feature_sets, plan_members
from stream_scorer.train.recipe import AlertRates, Recipe, TrainingSet
from stream_scorer.train.report import member_lines
from stream_scorer.train.split import split_by_time
from stream_scorer.train.train import train_ensemble
from stream_scorer.train.trees import FOREST, train_forest
from tests.support.specs import numbers_spec

SPEC = numbers_spec(
    "abcd",
    """\
feature_sets:
  history: [a_value, b_value]
  device: ["c_*"]
  network: ["*_value"]
policy: {version: p1, review: 0.3, block: 0.8}
""",
)
ROWS = 6_000


class FixedClock:
    def now_ms(self) -> int:
        return 1_700_000_000_000

    def monotonic(self) -> float:
        return 0.0


@pytest.fixture(scope="module")
def spec() -> CheckedSpec:
    return parse_spec(SPEC)


def data(seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.normal(size=(ROWS, 4)) * [1, 10, 1, 1] + [0, 50, 0, 0]
    z = 1.5 * x[:, 0] + (x[:, 1] - 50) / 10 + x[:, 2] * (x[:, 3] > 0) - 4.5
    x[random.random(x.shape) < 0.05] = np.nan
    return x, random.random(ROWS) < sigmoid(z), np.sort(random.integers(0, 10**9, ROWS))


@pytest.fixture(scope="module")
def trained(spec: CheckedSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "tiny"
    x, y, t = data()
    train_ensemble(TrainingSet(x, spec.features, y, t), spec, out, Recipe(3), clock=FixedClock())
    return out


def test_a_trained_ensemble_loads_and_says_what_it_is(trained: Path, spec: CheckedSpec) -> None:
    ensemble = Ensemble.load(trained, version="1")
    manifest = ensemble.manifest
    ensemble.check_features(spec.features, spec.feature_hash)
    assert ensemble.member_names == ["gbdt", "xgb", "forest", "logistic", "neural"]
    assert [member.inputs for member in manifest.members] == [
        ["a_value", "b_value"], spec.features, spec.features, ["c_value"], spec.features,
    ]  # fmt: skip
    assert (manifest.created_at, manifest.thresholds.review, manifest.thresholds.block) == (1_700_000_000_000, 0.3, 0.8)
    assert manifest.training.rows == ROWS
    weights = [member.weight for member in manifest.members]
    assert sum(weights) == pytest.approx(1.0)
    assert min(weights) >= MIN_WEIGHT - 1e-9
    assert max(weights) <= 0.45 + 1e-9


def test_the_ensemble_is_as_good_as_its_best_member_and_calibrated(trained: Path) -> None:
    metrics = Ensemble.load(trained, version="1").manifest.training.metrics
    members = [metrics[name]["average_precision"] for name in ("gbdt", "xgb", "forest", "logistic", "neural")]
    # Three times what chance gives, as far as the noise in the labels allows.
    assert metrics["ensemble"]["average_precision"] > max(0.95 * max(members), 0.3)
    assert metrics["ensemble"]["calibration_error"] < 0.04


def test_the_figures_are_those_of_what_is_served(trained: Path, spec: CheckedSpec) -> None:
    x, y, t = data()
    holdout = split_by_time(t, y).holdout
    ensemble = Ensemble.load(trained, version="1")
    scored = ensemble.score(x[holdout])
    assert not scored.failures
    metrics = ensemble.manifest.training.metrics
    assert score_figures(scored.score, y[holdout])["average_precision"] == pytest.approx(
        metrics["ensemble"]["average_precision"]
    )
    for index, name in enumerate(ensemble.member_names):
        figures = score_figures(scored.member_scores[:, index], y[holdout])
        assert figures["log_loss"] == pytest.approx(metrics[name]["log_loss"])
    lines = member_lines(trained, spec)
    assert [line.feature_set for line in lines] == ["history", "network", "network", "device", "network", ""]
    assert all(line.microseconds > 0 for line in lines)


def test_the_same_rows_and_seed_give_the_same_bytes(trained: Path, spec: CheckedSpec, tmp_path: Path) -> None:
    x, y, t = data()
    stages: list[str] = []
    manifest = train_ensemble(
        TrainingSet(x, spec.features, y, t),
        spec,
        tmp_path / "again",
        Recipe(3),
        on_progress=lambda stage, *_: stages.append(stage),
        clock=FixedClock(),
    )
    assert manifest_bytes(manifest) == (trained / "manifest.json").read_bytes()
    assert stages[-1] == "done"


def test_thresholds_are_fitted_to_alert_rates(spec: CheckedSpec, tmp_path: Path) -> None:
    x, y, t = data()
    manifest = train_ensemble(
        TrainingSet(x, spec.features, y, t), spec, tmp_path / "rates", Recipe(3, "rated", AlertRates(0.10, 0.02))
    )
    assert manifest.name == "rated"
    assert manifest.thresholds.policy_version == "p1-fitted"
    rows = split_by_time(t, y).weights
    score = Ensemble.load(tmp_path / "rates", version="1").score(x[rows]).score
    assert 0.09 < (score >= manifest.thresholds.review).mean() <= 0.10
    assert 0.01 < (score >= manifest.thresholds.block).mean() <= 0.02
    with pytest.raises(UsageError, match="alert rates"):
        AlertRates(0.01, 0.02)


@pytest.mark.parametrize(
    ("combiner", "link"), [("stacking", "logit"), ("median", "rank"), ("trimmed-mean", "probability")]
)
def test_every_combiner_can_be_trained(spec: CheckedSpec, tmp_path: Path, combiner: Any, link: Any) -> None:
    x, y, t = data()
    recipe = Recipe(3, combiner=combiner, link=link)
    manifest = train_ensemble(TrainingSet(x, spec.features, y, t), spec, tmp_path / "e", recipe)
    assert manifest.link == link
    assert combiner.partition("-")[0] in manifest.formula.replace("mean of", "trimmed mean of")
    assert manifest.training.metrics["ensemble"]["average_precision"] > 0.3
    assert manifest.training.metrics["ensemble"]["calibration_error"] < 0.04
    assert isinstance(manifest.incomplete_calibrator, Platt) == (combiner == "stacking")
    if combiner == "stacking":
        with pytest.raises(UsageError, match="stacking"):
            Recipe(3, combiner=combiner, link="rank")


def test_what_does_not_fit_is_refused_before_any_work(spec: CheckedSpec, tmp_path: Path) -> None:
    x, y, t = data()
    with pytest.raises(UsageError, match="spec's features"):
        train_ensemble(TrainingSet(x, spec.features[::-1], y, t), spec, tmp_path / "no", Recipe(1))
    with pytest.raises(UsageError, match="do not fit"):
        train_ensemble(TrainingSet(x, spec.features, y[:-1], t), spec, tmp_path / "no", Recipe(1))
    with pytest.raises(UsageError, match="at least 10 frauds"):
        train_ensemble(TrainingSet(x, spec.features, y & (t < t[ROWS // 2]), t), spec, tmp_path / "no", Recipe(1))
    assert not (tmp_path / "no").exists()


def test_slices_follow_each_other_in_time_and_share_no_instant() -> None:
    random = np.random.default_rng(2)
    t = random.integers(0, 50, 5_000)
    split = split_by_time(t, random.random(5_000) < 0.3)
    parts = [split.train, split.calibration, split.weights, split.holdout]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(5_000))
    for before, after in zip(parts, parts[1:], strict=False):
        assert t[before].max() < t[after].min()
    assert len(split.train) == pytest.approx(3_000, abs=150)


def test_a_spec_without_feature_sets_gives_everybody_everything() -> None:
    text = SPEC[: SPEC.index("feature_sets")] + SPEC[SPEC.index("policy") :]
    bare = parse_spec(text)
    assert all(plan.inputs == bare.features for plan in plan_members(bare))


def test_the_shipped_specs_three_sets_each_have_a_member(spec: CheckedSpec) -> None:
    assert {"history", "device", "network"} <= {
        plan.feature_set for plan in plan_members(parse_spec(SPEC.replace("*_value", "d_*")))
    }
    assert feature_sets(spec)["all"] == spec.features


def test_trees_of_a_forest_without_a_split_predict_the_fraud_rate() -> None:
    random = np.random.default_rng(0)
    y, weight = random.random(3_000) < 0.15, random.uniform(0.5, 2.0, 3_000)
    x = random.normal(size=(3_000, 1))
    for gain, weights in ((0.4, None), (5.0, None), (5.0, weight)):
        model = train_forest(x, y, ["a"], 1, FOREST | {"min_gain_to_split": gain}, weights)
        assert b"num_leaves=1\n" in model
        got = load_member("lightgbm-text", model, 1).predict(x)
        rate = float(np.average(y, weights=weights))
        assert got.mean() == pytest.approx(rate, rel=0.02)  # LightGBM itself: 0.09 with the first gain, then below 0
        assert lightgbm.Booster(model_str=model.decode()).predict(x) == pytest.approx(got, abs=1e-12)


def test_a_forest_of_pure_leaves_predicts_probabilities() -> None:
    random = np.random.default_rng(1)
    x = random.normal(size=(20_000, 5))
    pure = {"num_leaves": 1_000, "min_data_in_leaf": 1, "min_sum_hessian_in_leaf": 0.0, "lambda_l2": 0.0}
    seen = []
    for least in (3.2, 2.6, 3.6):
        y = x[:, 0] + x[:, 1] > least
        model = train_forest(x, y, list("abcde"), 1, FOREST | pure)
        theirs = lightgbm.Booster(model_str=model.decode()).predict(x)
        got = require_probabilities("forest", load_member("lightgbm-text", model, 5).predict(x))
        assert got == pytest.approx(theirs, abs=1e-7)
        assert ((got >= 0.0) & (got <= 1.0)).all()
        seen += [theirs.min(), theirs.max()]
    assert min(seen) < 0.0 or max(seen) > 1.0


def test_infinite_and_very_large_features_do_not_end_a_training(spec: CheckedSpec, tmp_path: Path) -> None:
    x, y, t = data()
    x[::50, 1], x[1::50, 2] = np.inf, -1e60
    manifest = train_ensemble(TrainingSet(x, spec.features, y, t), spec, tmp_path / "tiny", Recipe(3))
    scored = Ensemble.load(tmp_path / "tiny", version="").score(x)
    assert not np.isnan(scored.score).any()
    assert manifest.training.metrics["xgb"]["roc_auc"] > 0.75


def test_platt_finds_the_truth_it_was_made_from() -> None:
    random = np.random.default_rng(3)
    z = random.normal(-3, 2, 200_000)
    label = random.random(len(z)) < sigmoid(0.7 * z + 0.5)
    found = fit_platt(z, label)
    assert found.slope == pytest.approx(0.7, abs=0.03)
    assert found.intercept == pytest.approx(0.5, abs=0.06)


def test_beta_finds_the_truth_it_was_made_from() -> None:
    random = np.random.default_rng(3)
    p = random.beta(1, 4, 200_000)
    label = random.random(len(p)) < calibrate(p, Beta(0.6, 1.7, -0.5))
    found = fit_beta(p, label)
    assert (found.a, found.b, found.c) == pytest.approx((0.6, 1.7, -0.5), abs=0.1)


def test_isotonic_follows_any_ascending_shape_and_never_descends() -> None:
    random = np.random.default_rng(3)
    p = random.random(50_000)
    found = fit_isotonic(p, random.random(len(p)) < np.where(p < 0.5, 0.1, 0.7))
    assert calibrate(np.array([0.1, 0.4, 0.6, 0.9]), found) == pytest.approx([0.1, 0.1, 0.7, 0.7], abs=0.05)
    assert found.y == sorted(found.y)


def test_stacking_believes_who_knows_and_nobody_backwards() -> None:
    random = np.random.default_rng(4)
    truth = random.normal(-2, 2, 20_000)
    label = random.random(len(truth)) < sigmoid(truth)
    members = np.column_stack([truth + random.normal(size=len(truth)), random.normal(size=len(truth)), -truth])
    found = fit_stacking(members, label)
    assert found.coefficients[0] > 0.5
    assert found.coefficients[1] < 0.1
    assert found.coefficients[2] == 0.0


def test_weights_prefer_who_knows_and_keep_their_bounds() -> None:
    random = np.random.default_rng(4)
    truth = random.normal(-2, 2, 20_000)
    label = random.random(len(truth)) < sigmoid(truth)
    members = np.column_stack([truth + random.normal(size=len(truth)) * noise for noise in (0.5, 2.0, 1.0, 50.0)])
    weights = fit_weights(members, label, 0.9)
    assert weights.sum() == pytest.approx(1.0)
    assert weights[0] > weights[2] > weights[1] > weights[3] >= MIN_WEIGHT - 1e-9
    capped = fit_weights(members, label, 0.4)
    assert capped.max() == pytest.approx(0.4, abs=1e-6)
    assert fit_weights(members[:, :1], label, 0.4).tolist() == [1.0]


def test_standardised_inputs_are_centred_whole_and_bounded() -> None:
    random = np.random.default_rng(5)
    x = np.column_stack([random.lognormal(3, 2, 5_000), np.full(5_000, 7.0), np.full(5_000, np.nan)])
    x[::10, 0] = np.nan
    x[5, 0] = np.inf
    preprocess = standardise(x)
    got = Preprocess(["a", "b", "c"], ["a", "b", "c"], preprocess).apply(x)
    assert np.isfinite(got).all()
    assert got[:, 0].mean() == pytest.approx(0.0, abs=1e-9)
    assert got[:, 0].std() == pytest.approx(1.0)
    assert (got[:, 1:] == 0.0).all()


def test_an_input_that_had_no_value_in_training_stays_without_effect(caplog: pytest.LogCaptureFixture) -> None:
    x = np.column_stack([np.arange(3.0), np.full(3, np.nan), np.full(3, np.inf)])
    names = ["a", "b", "c"]
    live = np.array([[1.0, 1e6, -1e6]])
    assert Preprocess(names, names, standardise(x)).apply(live)[:, 1:].tolist() == [[0.0, 0.0]]
    warn_without_values(names, x, np.arange(len(x)))
    assert "no training row has a value of b, c: members ignore it" in caplog.text


def test_links_are_each_others_inverse_inside_the_clip() -> None:
    p = np.linspace(1e-6, 1 - 1e-6, 1_001)
    assert sigmoid(logit(p)) == pytest.approx(p, rel=1e-12)
    assert logit(np.array([0.0, 1.0])) == pytest.approx([-13.8155, 13.8155], abs=1e-4)
    assert sigmoid(np.array([-800.0, 800.0])).tolist() == [0.0, 1.0]
