"""Training specs, folds and the record of opened holdouts: what needs no fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

import stream_scorer.simulate
from stream_scorer.clock import build_clock
from stream_scorer.ensemble.manifest import Training
from stream_scorer.errors import SettingsError, SpecError, UsageError
from stream_scorer.records import Incident
from stream_scorer.spec.load import load_spec, parse_spec
from stream_scorer.spec.training import Folds, load_training, parse_training, training_yaml
from stream_scorer.train.algorithms import resolve_members, sampled
from stream_scorer.train.defaults import default_training, find_training
from stream_scorer.train.due import training_due
from stream_scorer.train.folds import DAY_MS, compromised, known_label, make_folds, make_windows
from stream_scorer.train.from_spec import Options
from stream_scorer.train.holdout import Opening, read_openings, record_opening
from stream_scorer.train.metrics import card_precision
from stream_scorer.train.recipe import TrainingSet
from stream_scorer.train.search import Holdout, evaluate_holdout

CARDS = Path(stream_scorer.simulate.__file__).with_name("cards.yaml")
PIPELINE = parse_spec(
    """
name: tiny
version: 1
transaction:
  id: event_id
  time: event_time
  value: amount
  fields:
    event_id: {type: string}
    event_time: {type: time}
    amount: {type: integer}
derived:
  - {name: amount_value, function: value, of: [amount]}
  - {name: hour, function: hour, of: [event_time]}
feature_sets: {history: [amount_value]}
policy: {version: p1, review: 0.3, block: 0.8}
labels: {horizon: 7d}
"""
)
MEMBER = "members: [{name: a, algorithm: lightgbm, features: history"


def days(*numbers: float) -> np.ndarray:
    return (np.array(numbers) * DAY_MS).astype(np.int64)


def test_the_shipped_training_spec_is_read_and_written_back_the_same() -> None:
    cards = load_spec(CARDS)
    checked = load_training(CARDS.with_name("cards-training.yaml"))
    assert [member.name for member in checked.spec.members] == ["gbdt", "xgb", "forest", "logistic", "neural"]
    assert parse_training(training_yaml(checked.spec)) == checked
    assert checked.spec.members == default_training(cards).spec.members
    assert find_training(Path("default"), cards) == default_training(cards)
    with pytest.raises(SpecError, match="no training spec at mine.yaml"):
        find_training(Path("mine.yaml"), cards)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("members: []", "members"),
        (MEMBER + "}, {name: a, algorithm: xgboost}]", "two members are named 'a'"),
        (MEMBER + ", colour: red}]", "unknown field `colour`"),
        (MEMBER + ", grid: {eta: []}}]", "grid"),
        (MEMBER + ", parameters: {C: 1e-3}}]", r"members\[0\].parameters.C: '1e-3' is text, not a number\n.*1.0e-3"),
        (MEMBER + ", grid: {C: [0.1, 1e-3]}}]", r"members\[0\].grid.C: '1e-3' is text"),
        (MEMBER + "}]\ncombination: {method: stacking, link: rank}", "stacking needs the link logit"),
        (MEMBER + "}]\nrefit: window", "length of the window"),
        (MEMBER + "}]\nthresholds: {review_rate: 0.01, block_rate: 0.02}", "block_rate is above"),
        ("members: [", "not valid YAML"),
    ],
)
def test_a_wrong_training_spec_is_refused_with_the_node(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_training(text)


def test_members_are_checked_against_pipeline_spec_and_algorithm() -> None:
    (recipe,) = resolve_members(parse_training(MEMBER + ", parameters: {num_leaves: 7}}]"), PIPELINE)
    assert (recipe.inputs, recipe.parameters["num_leaves"], recipe.parameters["trees"]) == (["amount_value"], 7, 100)
    for text, message in (
        ("parameters: {max_leaves: 7}", "lightgbm has no hyperparameter 'max_leaves'"),
        ("grid: {nthread: [7]}", "no hyperparameter 'nthread'"),
        ("features: device", "no feature set 'device'"),
        ("features: [hour, nothing_*]", "no feature matches"),
    ):
        with pytest.raises(SpecError, match=message):
            resolve_members(parse_training(f"members: [{{name: a, algorithm: lightgbm, {text}}}]"), PIPELINE)


def test_folds_are_those_of_the_handbooks_chapter_5() -> None:
    # Chapter 5: training week, a week of delay, test week; each fold a week earlier. Days since 2018-04-01.
    folds = Folds(count=2, train="7d", test="7d", delay="7d")
    windows = make_windows(folds, 0, int(days(135.5)[0]), 7 * DAY_MS)
    assert [
        (w.train_start // DAY_MS, w.train_end // DAY_MS, w.test_start // DAY_MS, w.test_end // DAY_MS) for w in windows
    ] == [(108, 115, 122, 129), (115, 122, 129, 136)]
    with pytest.raises(UsageError, match="days of labelled history"):
        make_windows(folds, int(days(110)[0]), int(days(135.5)[0]), 7 * DAY_MS)
    automatic = make_windows(Folds(count=4), 0, 1_000, 100)
    assert [(w.train_start, w.train_end, w.test_start) for w in automatic] == [
        (0, 500, 600), (0, 600, 700), (0, 700, 800), (0, 800, 900),
    ]  # fmt: skip


def small_set() -> TrainingSet:
    n = 2_000
    random = np.random.default_rng(1)
    time = np.sort(random.integers(0, 40 * DAY_MS, n))
    label = random.random(n) < 0.2
    return TrainingSet(np.zeros((n, 2)), PIPELINE.features, label, time, entity=random.integers(0, 50, n))


def test_training_rows_end_before_the_delay_and_labels_are_as_known_then() -> None:
    data = small_set()
    late = data.event_time + np.where(np.arange(len(data.label)) % 2, 3, 30) * DAY_MS
    data = replace(data, labelled_at=late)
    folds = Folds(count=2, train="10d", test="5d")
    windows = make_windows(folds, 0, int(days(40)[0]), 7 * DAY_MS)
    for fold in make_folds(windows, data, folds, 7 * DAY_MS):
        assert data.event_time[fold.train].max() < fold.window.test_start - 7 * DAY_MS
        assert fold.window.test_start <= data.event_time[fold.test].min()
        # Labels of the odd rows are known, those of the even rows are given after the test window begins.
        assert np.array_equal(fold.label, data.label[fold.train] & (fold.train % 2 == 1))
    assert known_label(data, np.arange(10), int(days(100)[0]), 0).tolist() == data.label[:10].tolist()
    rare = replace(data, label=data.label & (data.event_time > windows[0].test_end))
    with pytest.raises(UsageError, match="the training window of fold 1 has 0 frauds"):
        make_folds(windows, rare, folds, 7 * DAY_MS)


def test_compromised_cards_are_those_with_a_fraud_known_at_the_beginning_of_the_day() -> None:
    time = days(1.5, 9.2, 9.7, 8.9, 9.5)
    label = np.array([True, False, False, False, False])
    data = TrainingSet(np.zeros((5, 2)), PIPELINE.features, label, time, entity=np.array([0, 0, 0, 0, 1]))
    # The fraud of day 1.5 is known at 8.5, so on day 9.
    assert compromised(data, np.arange(5), 0, 7 * DAY_MS).tolist() == [False, True, True, False, False]
    assert not compromised(data, np.arange(5), int(days(2)[0]), 7 * DAY_MS).any()
    with pytest.raises(UsageError, match="needs entities"):
        compromised(replace(data, entity=None), np.arange(5), 0, 7 * DAY_MS)


def test_card_precision_counts_cards_by_their_highest_score_and_each_found_card_once() -> None:
    #                 day 0: card 0 (fraud, low then high), 1, 2        day 1: cards 0 (found), 1 (fraud), 2
    score = np.array([0.1, 0.9, 0.8, 0.2, 0.99, 0.5, 0.7])
    label = np.array([False, True, False, False, True, True, False])
    entity = np.array([0, 0, 1, 2, 0, 1, 2])
    day = np.array([0, 0, 0, 0, 1, 1, 1])
    assert card_precision(score, label, entity, day, k=1) == 0.5
    assert card_precision(score, label, entity, day, k=2) == 0.5
    assert card_precision(1.0 - score, label, entity, day, k=1) == 1.0


def test_sampling_keeps_all_frauds_and_the_same_rows_for_the_same_seed() -> None:
    (recipe,) = resolve_members(parse_training(MEMBER + ", sampling: {genuine: 0.25}}]"), PIPELINE)
    label = np.arange(4_000) % 10 == 0
    rows = sampled(recipe, label)
    assert label[rows].sum() == 400
    assert len(rows) == pytest.approx(400 + 900, abs=100)
    assert np.array_equal(rows, sampled(recipe, label))
    assert not np.array_equal(rows, sampled(replace(recipe, seed=2), label))


def opening(start: float, end: float, reason: str = "", pipeline: str = "tiny") -> Opening:
    low, high = days(start, end).tolist()
    return Opening(0, "me", pipeline, low, high, 10, "a" * 64, "b" * 64, reason)


def test_a_holdout_is_opened_once_without_a_reason(tmp_path: Path) -> None:
    record = tmp_path / "openings.jsonl"
    assert record_opening(record, opening(10, 20)) == []
    for again in (opening(10, 20), opening(19, 30), opening(5, 11, " ")):
        with pytest.raises(UsageError, match="was opened on 1970-01-01 by me"):
            record_opening(record, again)
    assert len(read_openings(record)) == 1
    assert record_opening(record, opening(20, 30)) == []
    assert record_opening(record, opening(10, 20, pipeline="other")) == []
    assert len(record_opening(record, opening(12, 22, "a label source was wrong"))) == 2
    assert [each.reason for each in read_openings(record)] == ["", "", "", "a label source was wrong"]
    record.write_text("{}\n")
    with pytest.raises(UsageError, match="line 1 is not the record"):
        read_openings(record)


def test_a_training_is_due_by_age_and_by_drift_that_the_members_have_not_seen() -> None:
    training = Training(0, 10 * DAY_MS, 100, 10, "run", "d" * 64, {})

    class Trained:
        def __init__(self) -> None:
            self.name, self.training = "cards", training

    def drift(began: int, kind: str = "drift") -> Incident:
        return Incident(
            id="i", ensemble="cards", opened=99 * DAY_MS, why="amounts doubled", kind=kind, opened_event=began,
            field="amount", subject="amount", closed=100 * DAY_MS,
        )  # fmt: skip

    def due(now: int, max_age: int | None, *incidents: Incident) -> list[str]:
        return [reason.kind for reason in training_due(Trained(), now * DAY_MS, max_age, incidents)]

    assert due(20, 10 * DAY_MS) == []
    assert due(21, 10 * DAY_MS) == ["age"]
    assert due(21, None, drift(10 * DAY_MS)) == []
    assert due(21, 10 * DAY_MS, drift(11 * DAY_MS), drift(11 * DAY_MS, "feed")) == ["age", "drift"]
    # A composed ensemble is as old as its members, not as the history on which it was composed.
    training = msgspec.structs.replace(training, trained_until=5 * DAY_MS)
    assert due(16, 10 * DAY_MS, drift(6 * DAY_MS)) == ["age", "drift"]
    training = msgspec.structs.replace(training, trained_until=None)
    with pytest.raises(UsageError, match="unknown until when") as caught:
        due(16, 10 * DAY_MS)
    assert "trained_until" in caught.value.hint


def test_the_time_of_an_artifact_can_be_fixed() -> None:
    assert build_clock({"SOURCE_DATE_EPOCH": "1700000000"}).now_ms() == 1_700_000_000_000
    assert build_clock({}).now_ms() > 1_700_000_000_000
    with pytest.raises(SettingsError, match="SOURCE_DATE_EPOCH"):
        build_clock({"SOURCE_DATE_EPOCH": "today"})


def test_yaml_that_python_refuses_is_an_error_of_the_spec() -> None:
    for text, message in (("holdout: 2026-02-30", "not valid YAML: day"), ("[" * 1_000, "not valid YAML")):
        with pytest.raises(SpecError, match=message):
            parse_training(text)
    with pytest.raises(SpecError, match=r"members\[0\]\.class_weight: must be finite"):
        parse_training("members: [{name: a, algorithm: lightgbm, class_weight: .inf}]")


def test_a_holdout_whose_frauds_do_not_count_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    day = np.arange(20)
    fraud = (day == 2) | (day == 19)
    data = TrainingSet(
        np.zeros((20, 0)), [], fraud, day * DAY_MS, entity=np.where(fraud, 1, 0), labelled_at=day * DAY_MS
    )
    training = parse_training(
        "{holdout: 5d, folds: {delay: 1d, exclude_compromised: true}, members: [{name: a, algorithm: lightgbm}]}"
    )
    opened: list[Holdout] = []
    monkeypatch.setattr("stream_scorer.train.search.fit_ensemble", lambda *_, **__: None)
    with pytest.raises(UsageError, match="0 frauds in the 4 rows that count"):
        evaluate_holdout(data, PIPELINE, training, Options(1), opened.append)
    assert opened == []
