"""Training by a training spec, cross-validation and the holdout, on small simulated rows."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from string import ascii_lowercase
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from stream_scorer.cli.main import cli
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.links import sigmoid
from stream_scorer.ensemble.manifest import read_manifest
from stream_scorer.errors import CheckFailed, SpecError, UsageError
from stream_scorer.spec.load import parse_spec
from stream_scorer.spec.training import check_training, load_training, parse_training
from stream_scorer.train.algorithms import fit_member, predict, resolve_members
from stream_scorer.train.folds import DAY_MS
from stream_scorer.train.from_spec import Options, find_equal, fit_ensemble, train_from_spec
from stream_scorer.train.holdout import read_openings
from stream_scorer.train.recipe import TrainingSet
from stream_scorer.train.search import Holdout, cross_validate, evaluate_holdout
from tests.support.specs import numbers_spec

TEXT = numbers_spec(
    "ab",
    """\
feature_sets: {first: [a_value]}
policy: {version: p1, review: 0.3, block: 0.8, quorum: 0.4}
labels: {horizon: 2d}
""",
)
SPEC = parse_spec(TEXT)
TRAINING = """
seed: 7
folds: {count: 3, test: 5d}
members:
  - {name: boost, algorithm: lightgbm, parameters: {trees: 12, num_leaves: 4}, class_weight: balanced}
  - {name: forest, algorithm: lightgbm-forest, features: [a_*], parameters: {trees: 8}}
  - {name: linear, algorithm: logistic-regression, features: first, sampling: {genuine: 0.5}}
thresholds: {review_rate: 0.1, block_rate: 0.02}
"""
ROWS, DAYS = 4_000, 40


class FixedClock:
    def now_ms(self) -> int:
        return 1_700_000_000_000

    def monotonic(self) -> float:
        return 0.0


@pytest.fixture(scope="module")
def data() -> TrainingSet:
    random = np.random.default_rng(1)
    x = random.normal(size=(ROWS, 2))
    x[random.random(x.shape) < 0.05] = np.nan
    label = random.random(ROWS) < sigmoid(1.5 * np.nan_to_num(x[:, 0]) + np.nan_to_num(x[:, 1]) - 2.5)
    time = np.sort(random.integers(0, DAYS * DAY_MS, ROWS))
    return TrainingSet(x, SPEC.features, label, time, entity=random.integers(0, 300, ROWS))


def train(data: TrainingSet, out: Path, jobs: int, text: str = TRAINING) -> Path:
    train_from_spec(data, SPEC, parse_training(text), out, Options(jobs, clock=FixedClock()))
    return out


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_result_does_not_depend_on_the_number_of_jobs_but_on_the_seed(data: TrainingSet, tmp_path: Path) -> None:
    one = files(train(data, tmp_path / "one", 1))
    assert one == files(train(data, tmp_path / "three", 3))
    other = files(train(data, tmp_path / "other", 3, TRAINING.replace("seed: 7", "seed: 8")))
    assert one["boost.txt"] != other["boost.txt"]


def test_an_ensemble_of_the_same_training_is_found_and_a_damaged_one_is_not(data: TrainingSet, tmp_path: Path) -> None:
    training = parse_training(TRAINING)
    assert find_equal(data, SPEC, training, tmp_path / "none") is None
    out = train(data, tmp_path / "out", 2)
    assert find_equal(data, SPEC, training, out) == read_manifest(out)
    assert find_equal(data, SPEC, parse_training(TRAINING.replace("seed: 7", "seed: 8")), out) is None
    assert find_equal(replace(data, label=~data.label), SPEC, training, out) is None
    # Folds depend on when labels were given, and on which rows have one card, but not on its number.
    assert data.entity is not None
    assert find_equal(replace(data, labelled_at=data.event_time + 1), SPEC, training, out) is None
    assert find_equal(replace(data, entity=data.entity // 2), SPEC, training, out) is None
    assert find_equal(replace(data, entity=299 - data.entity), SPEC, training, out) == read_manifest(out)
    (out / "boost.txt").write_bytes(b"")
    assert find_equal(data, SPEC, training, out) is None


def test_serving_members_learn_from_all_rows_and_the_rest_from_rows_that_members_did_not_see(
    data: TrainingSet, tmp_path: Path
) -> None:
    whole = Ensemble.load(train(data, tmp_path / "whole", 2), version="1")
    manifest = whole.manifest
    assert (manifest.training.rows, manifest.training.last_event_time) == (ROWS, int(data.event_time[-1]))
    # The newest row reaches the members: without the last 100, they are others.
    newest = np.arange(ROWS) < ROWS - 100
    rest = TrainingSet(data.features[newest], data.names, data.label[newest], data.event_time[newest], entity=None)
    assert files(tmp_path / "whole")["boost.txt"] != files(train(rest, tmp_path / "rest", 2))["boost.txt"]
    # Profile and thresholds describe the test windows of the folds, scored out of fold: 15 days.
    tested = int((data.event_time >= (DAYS - 15) * DAY_MS).sum())
    assert sum(manifest.reference_profile["score"].counts) == tested
    scores = whole.score(data.features).score
    assert 0.05 < (scores >= manifest.thresholds.review).mean() < 0.15
    assert manifest.training.metrics["ensemble"]["average_precision"] > 0.3
    assert manifest.training.metrics["ensemble"]["calibration_error"] < 0.08


def test_compromised_cards_do_not_count_in_cv_but_thresholds_are_of_all_transactions(data: TrainingSet) -> None:
    text, options = TRAINING.replace("test: 5d", "test: 5d, exclude_compromised: true"), Options(2, clock=FixedClock())
    data = replace(data, entity=np.random.default_rng(2).integers(0, 1_500, ROWS))
    filtered, plain = (fit_ensemble(data, SPEC, parse_training(each), options) for each in (text, TRAINING))
    assert filtered.stack.calibrators == plain.stack.calibrators
    assert filtered.stack.weights.tolist() == plain.stack.weights.tolist()
    assert filtered.stack.thresholds == plain.stack.thresholds
    assert np.array_equal(filtered.out_of_fold.rows, plain.out_of_fold.rows)
    assert filtered.metrics == plain.metrics
    counted, whole = (cross_validate(data, SPEC, parse_training(each), options)[0] for each in (text, TRAINING))
    for few, all_rows in zip(counted.folds, whole.folds, strict=True):
        assert 0 < few.test_rows < 0.95 * all_rows.test_rows
    assert counted.members[0].candidates[0].mean != whole.members[0].candidates[0].mean
    assert counted.ensemble != whole.ensemble


def test_a_fit_copies_only_the_rows_and_columns_that_it_uses() -> None:
    policy = "policy: {version: p1, review: 0.3, block: 0.8}\nlabels: {horizon: 2d}\n"
    spec = parse_spec(numbers_spec(ascii_lowercase, policy))
    random = np.random.default_rng(1)
    features, at = random.normal(size=(50_000, 26)), np.arange(25_000, dtype=np.int64)
    text = "members: [{name: one, algorithm: logistic-regression, features: [a_value, b_value]}]"
    (recipe,) = resolve_members(parse_training(text), spec)
    fit_member(recipe, features, at, features[at, 0] > 0)  # imports scikit-learn
    tracemalloc.start()
    fitted = fit_member(recipe, features, at, features[at, 0] > 0)
    predict(recipe, fitted, features, at)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < features[at].nbytes / 2


def test_nothing_learns_from_a_fraud_that_is_reported_after_the_holdout_begins(data: TrainingSet) -> None:
    late = data.label & (np.arange(ROWS) % 2 == 0)
    labelled_at = data.event_time + np.where(late, 100, 2) * DAY_MS
    training, options = parse_training(TRAINING), Options(2, clock=FixedClock())
    reported, absent = (
        fit_ensemble(replace(data, labelled_at=labelled_at, label=label), SPEC, training, options, before=30 * DAY_MS)
        for label in (data.label, data.label & ~late)
    )
    assert [each.data for each in reported.members] == [each.data for each in absent.members]
    assert reported.stack.thresholds == absent.stack.thresholds
    assert reported.stack.calibrators == absent.stack.calibrators
    assert reported.stack.weights.tolist() == absent.stack.weights.tolist()
    # Neither does the search.
    training = parse_training(TRAINING.replace("seed: 7", "seed: 7\nholdout: 5d"))
    reported, absent = (
        cross_validate(replace(data, labelled_at=labelled_at, label=label), SPEC, training, options)[0]
        for label in (data.label, np.where(data.event_time < (DAYS - 5) * DAY_MS, data.label & ~late, data.label))
    )
    assert reported == absent


def test_cross_validation_selects_from_the_grid_before_the_holdout(data: TrainingSet, tmp_path: Path) -> None:
    grid = TRAINING.replace(
        "parameters: {trees: 12, num_leaves: 4}",
        "parameters: {trees: 12}, grid: {num_leaves: [2, 4], lambda_l2: [0, 500]}",
    ).replace("seed: 7", "seed: 7\nholdout: 5d")
    training = parse_training(grid)
    result, selected = cross_validate(data, SPEC, training, Options(2))
    boost = result.members[0]
    assert [candidate.parameters["num_leaves"] for candidate in boost.candidates] == [2, 2, 4, 4]
    assert boost.candidates[boost.best].mean.average_precision == max(
        candidate.mean.average_precision for candidate in boost.candidates
    )
    assert [len(member.candidates) for member in result.members] == [4, 1, 1]
    assert len(result.folds) == 3
    assert len(result.ensemble) == 2
    assert result.ensemble_mean.average_precision > 0.3
    # Five days of holdout, and two days of label delay before it.
    assert result.folds[-1].test_end == (DAYS - 7) * DAY_MS
    # Rows of the holdout change nothing.
    changed = TrainingSet(
        data.features, data.names, data.label ^ (data.event_time >= 35 * DAY_MS), data.event_time, entity=data.entity
    )
    assert cross_validate(changed, SPEC, training, Options(1)) == (result, selected)
    with pytest.raises(SpecError, match="grid"):
        train(data, tmp_path / "no", 1, grid)
    opened: list[Holdout] = []
    report = evaluate_holdout(data, SPEC, check_training(selected), Options(2), opened.append)
    assert (report.rows, report.frauds) == (len(opened[0].rows), int(data.label[opened[0].rows].sum()))
    assert report.metrics["ensemble"]["average_precision"] > 0.3
    assert 0.0 < report.metrics["boost"]["card_precision"] <= 1.0

    def refuse(_holdout: Holdout) -> None:
        raise UsageError("opened before")

    with pytest.raises(UsageError, match="opened before"):
        evaluate_holdout(data, SPEC, check_training(selected), Options(2), refuse)


def test_windows_of_whole_days_do_not_reach_into_a_holdout_that_begins_within_a_day(data: TrainingSet) -> None:
    text = TRAINING.replace("test: 5d", "test: 5d, delay: 1h").replace("seed: 7", "seed: 7\nholdout: 36h")
    training, opened = parse_training(text), list[Holdout]()
    evaluate_holdout(data, SPEC, training, Options(2), opened.append)
    assert opened[-1].start % DAY_MS
    changed = replace(data, label=data.label ^ (data.event_time >= opened[-1].start))
    result, selected = cross_validate(data, SPEC, training, Options(2))
    assert result.folds[-1].test_end <= opened[-1].start - DAY_MS // 24
    assert cross_validate(changed, SPEC, training, Options(2)) == (result, selected)
    before, after = (
        fit_ensemble(each, SPEC, training, Options(2), before=opened[-1].start - DAY_MS // 24).stack.thresholds
        for each in (data, changed)
    )
    assert before == after


def test_hyperparameters_that_a_library_refuses_are_one_message(data: TrainingSet, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="logistic-regression cannot fit member 'linear'"):
        train(data, tmp_path / "no", 1, TRAINING.replace("features: first", "features: first, parameters: {C: -1}"))


def test_a_member_that_learns_from_one_class_or_gives_no_probability_is_refused(
    data: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = TRAINING.replace("class_weight: balanced", "sampling: {genuine: 1.0e-6}")
    with pytest.raises(UsageError, match="'boost': its [0-9]+ training rows are all frauds"):
        train(data, tmp_path / "no", 1, few)
    broken = SimpleNamespace(predict=lambda x: np.where(np.arange(len(x)) % 9 == 0, np.nan, 0.5))
    monkeypatch.setattr("stream_scorer.train.algorithms.load_member", lambda *_: broken)
    with pytest.raises(UsageError, match=r"'boost' gives no probability in \[0, 1\] for [0-9]+ of "):
        train(data, tmp_path / "no", 1)


def test_the_bootstrap_of_the_handbook_proof_weighs_customers_like_scikit_learn() -> None:
    from sklearn.metrics import average_precision_score

    from proofs.handbook_table import Ranked, bootstrap

    random = np.random.default_rng(3)
    n = 2_000
    score, customer = random.integers(0, 50, n) / 50, random.integers(0, 80, n)
    label = random.random(n) < score * 0.3
    times = random.integers(0, 4, 80).astype(np.float64)
    expected = average_precision_score(label, score, sample_weight=times[customer])
    assert Ranked(score, label, customer).average_precision(times) == pytest.approx(expected)
    assert (bootstrap(score, score, label, customer, 5, random) == 0.0).all()
    assert (bootstrap(score, -score, label, customer, 5, random) > 0.0).all()


def test_cv_and_train_read_a_training_spec_from_the_command_line(
    data: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, training = tmp_path / "spec.yaml", tmp_path / "training.yaml"
    pipeline.write_text(TEXT)
    training.write_text(TRAINING.replace("seed: 7", "seed: 7\nholdout: 5d"))
    monkeypatch.setattr("stream_scorer.train.dataset.read_training_set", lambda *_: data)
    files_of = ["--transactions", "t", "--labels", "l", "--spec", str(pipeline), "--training", str(training)]

    def call(*arguments: str) -> Any:
        return CliRunner().invoke(cli, [*arguments, *files_of], standalone_mode=False)

    searched = call("cv", "--json", "--select", str(tmp_path / "selected.yaml"))
    assert searched.exception is None
    assert [fold["test_rows"] > 0 for fold in json.loads(searched.stdout)["folds"]] == [True] * 3
    assert load_training(tmp_path / "selected.yaml") == load_training(training)
    assert "All folds but the oldest" in call("cv").stdout
    opened = call("cv", "--open-holdout")
    assert "Holdout 1970-02-05 00:00" in opened.stdout
    again = call("cv", "--open-holdout")
    assert isinstance(again.exception, UsageError)
    assert "was opened on" in str(again.exception)
    assert call("cv", "--open-holdout", "--reason", "labels were corrected", "--json").exception is None
    assert len(read_openings(tmp_path / "holdout-openings.jsonl")) == 2
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    trained = call("train", "--out", str(tmp_path / "out"), "--name", "named", "--json")
    assert json.loads(trained.stdout)["name"] == "named"
    assert read_manifest(tmp_path / "out").created_at == 1_700_000_000_000
    # Registered under the name in the manifest.
    monkeypatch.setattr("stream_scorer.ensemble.registry.register", lambda *_: "1")
    registered = ["--register", "payments", "--mlflow", "http://127.0.0.1:1"]
    called = call("train", "--out", str(tmp_path / "payments"), *registered, "--json")
    assert json.loads(called.stdout)["name"] == read_manifest(tmp_path / "payments").name == "payments"
    assert isinstance(call("train", "--out", "out", "--seed", "3").exception, click.UsageError)
    # Before the history is read: what cannot be written or registered.
    monkeypatch.setattr("stream_scorer.train.dataset.read_training_set", None)
    below = str(training / "out")
    for wrong, message in (
        (["train", "--out", below], "is not a folder"),
        (["train", "--out", "out", "--save-set", below], "is not a folder"),
        (["cv", "--select", below], "is not a folder"),
        (["train", "--out", "out", "--name", "my ensemble"], "--name 'my ensemble'"),
        (["train", "--out", "out", "--register", "my ensemble"], "cannot be registered"),
        (["train", "--out", "out", "--name", "cards", *registered], "Give --name payments, or --register cards."),
    ):
        assert message in str(call(*wrong).exception)
    due = CliRunner().invoke(cli, ["ensemble", "due", str(tmp_path / "out"), "--max-age", "30d"], standalone_mode=False)
    assert "its newest training row is of 1970-02-09" in due.stdout
    assert isinstance(due.exception, CheckFailed)
