"""handbook-table: the Fraud Detection Handbook's published figures, by the product's own training.

Population and features are those of its chapter 3 (see examples/handbook), by the kernel that serves. The newest of
four prequential folds is its split: training 2018-07-25..07-31, test 08-08..08-14, labels after 7 days, without cards
that are known to be compromised. `stream_scorer.train.search.cross_validate` fits its three models by a training spec;
ROC AUC, average precision and card precision at 100 must be within 0.01 of the published figures. The four windows must
be those of its chapter 5.

Then five members are trained twice for the same test week as a holdout: with default hyperparameters, and with those
that `cv` selects on four weeks before the holdout's label delay. A paired bootstrap over customers compares the average
precision of the ensemble with that of the member that is best on the test week, a choice that favours the member. The
proof demands that the ensemble is at most 0.01 worse, with 97.5 % confidence.

The data are not part of the project: STREAM_SCORER_HANDBOOK names the Parquet file. BREAK=1 shuffles the terminals'
features among the test rows. `N` is the number of bootstrap samples.
"""

from __future__ import annotations

import time
from datetime import date
from typing import Any

import msgspec
import numpy as np

from examples.handbook.load import DAY_MS, LABEL_DELAY_MS, SPEC, START_MS, day_number, read
from proofs.handbook_live import data_file, offline_features
from proofs.kit import Context, Result
from stream_scorer.quality import average_precision
from stream_scorer.spec import CheckedSpec, load_spec
from stream_scorer.spec.training import CheckedTraining, check_training, load_training
from stream_scorer.train.from_spec import Options
from stream_scorer.train.parallel import available_cores
from stream_scorer.train.recipe import TrainingSet
from stream_scorer.train.search import cross_validate, score_holdout

# The Handbook's chapter 3, "Baseline fraud detection system": AUC ROC, average precision, card precision at 100.
PUBLISHED = {
    "logistic": (0.871, 0.606, 0.291),
    "forest": (0.867, 0.658, 0.287),
    "xgboost": (0.862, 0.639, 0.273),
}
TOLERANCE = 0.01
# Average precision by which the ensemble may be worse than its best member.
MARGIN = 0.01
TRAIN_START, TEST_END = day_number(date(2018, 7, 25)), day_number(date(2018, 8, 15))
# The oldest training window begins on 06-20; windows of 30 days that lie 7 days back reach further.
FIRST_DAY = day_number(date(2018, 6, 20)) - 37
FOLDS, WEEK, SAMPLES = 4, 7, 1_000
MIN_TEST_ROWS, MIN_TEST_FRAUDS = 50_000, 300


def run(context: Context) -> Result:
    """See the module."""
    result = Result()
    path, checked = data_file(), load_spec(SPEC)
    started = time.monotonic()
    whole = read(path, days=TEST_END)
    data = whole.take(whole.day >= FIRST_DAY)
    history = offline_features(checked, data)
    assert history.event_id == data.event_id
    context.say(f"features of {len(data):,} transactions in {time.monotonic() - started:.0f} s")
    matrix = history.matrix
    if context.broken:
        test = np.flatnonzero(data.day >= TEST_END - WEEK)
        terminal = [i for i, name in enumerate(checked.features) if name.startswith("terminal.")]
        matrix[np.ix_(test, terminal)] = matrix[np.ix_(np.random.default_rng(1).permutation(test), terminal)]
    customers = np.unique(np.array(data.customer_id), return_inverse=True)[1].astype(np.int64)
    labelled = data.event_time + LABEL_DELAY_MS
    rows = TrainingSet(matrix, checked.features, data.fraud, data.event_time, entity=customers, labelled_at=labelled)
    options = Options(available_cores())
    _table(context, result, rows, checked, options)
    _ensemble(context, result, rows, checked, options)
    result.figures["seconds"] = round(time.monotonic() - started, 1)
    return result


def _seeded(name: str, seed: int) -> CheckedTraining:
    training = load_training(SPEC.with_name(name))
    return check_training(msgspec.structs.replace(training.spec, seed=seed))


def _table(context: Context, result: Result, rows: TrainingSet, checked: CheckedSpec, options: Options) -> None:
    found, _ = cross_validate(rows, checked, _seeded("baselines.yaml", context.seed), options)
    # Chapter 5: start_date_training - fold * delta_assessment, then delta_train, delta_delay, delta_test.
    expected = []
    for fold in range(FOLDS):
        begin = TRAIN_START - fold * WEEK
        expected.append([begin, begin + WEEK, begin + 2 * WEEK, begin + 3 * WEEK])
    times = [(f.train_start, f.train_end, f.test_start, f.test_end) for f in reversed(found.folds)]
    result.check(
        "the folds are those of chapter 5", [[(t - START_MS) // DAY_MS for t in window] for window in times] == expected
    )
    newest = found.folds[-1]
    result.at_least("test_rows", newest.test_rows, MIN_TEST_ROWS)
    result.at_least("test_frauds", newest.test_frauds, MIN_TEST_FRAUDS)
    for search in found.members:
        quality = search.candidates[0].folds[-1]
        got = (quality.roc_auc, quality.average_precision, quality.card_precision or 0.0)
        published = PUBLISHED[search.name]
        result.figures[search.name] = {
            "published": published,
            "found": [round(value, 4) for value in got],
            "mean_of_4_folds": _rounded(search.candidates[0].mean),
            "ap_by_fold": [round(each.average_precision, 4) for each in search.candidates[0].folds],
        }
        for what, value, target in zip(("AUC", "AP", "CP@100"), got, published, strict=True):
            result.check(f"{search.name}: {what} within {TOLERANCE} of {target}", abs(value - target) <= TOLERANCE)
        context.say(f"{search.name}: found {got}, published {published}")


def _ensemble(context: Context, result: Result, rows: TrainingSet, checked: CheckedSpec, options: Options) -> None:
    grid = _seeded("ensemble.yaml", context.seed)
    bare = [msgspec.structs.replace(member, grid={}) for member in grid.spec.members]
    plain = check_training(msgspec.structs.replace(grid.spec, members=bare))
    found, selected = cross_validate(rows, checked, grid, options)
    result.figures["selected"] = {
        search.name: search.candidates[search.best].parameters for search in found.members
    } | {"candidates": sum(len(search.candidates) for search in found.members)}
    last_day = (max(fold.test_end for fold in found.folds) - START_MS) // DAY_MS
    result.check("cv ends before the label delay of the test week", last_day <= TEST_END - 2 * WEEK)
    rng = np.random.default_rng(context.seed)
    for name, training in (("without_cv", plain), ("with_cv", check_training(selected))):
        _holdout, test, scores = score_holdout(rows, checked, training, options, lambda _holdout: None)
        assert rows.entity is not None
        label, customer = rows.label[test], rows.entity[test]
        precision = {member: average_precision(score, label) or 0.0 for member, score in scores.items()}
        best = max((member for member in scores if member != "ensemble"), key=lambda member: precision[member])
        draws = bootstrap(scores["ensemble"], scores[best], label, customer, context.n or SAMPLES, rng)
        low, high = np.quantile(draws, [0.025, 0.975]).tolist()
        result.figures[name] = {
            "ap": {member: round(value, 4) for member, value in precision.items()},
            "best_member": best,
            "difference": round(precision["ensemble"] - precision[best], 4),
            "interval_95": [round(low, 4), round(high, 4)],
            "share_of_samples_above_0": round(float((draws > 0).mean()), 3),
        }
        context.say(f"{name}: {result.figures[name]}")
        result.check(f"{name}: the ensemble is at most {MARGIN} worse than its best member", low >= -MARGIN)


def bootstrap(
    one: np.ndarray[Any, Any],
    other: np.ndarray[Any, Any],
    label: np.ndarray[Any, Any],
    customer: np.ndarray[Any, Any],
    samples: int,
    rng: np.random.Generator,
) -> np.ndarray[Any, Any]:
    """``(samples,)``: difference of average precision, both on the same customers, drawn with replacement."""
    n = int(customer.max()) + 1
    present = np.unique(customer)
    ranked = [Ranked(score, label, customer) for score in (one, other)]
    out = np.empty(samples)
    for number in range(samples):
        times = np.bincount(rng.choice(present, len(present)), minlength=n).astype(np.float64)
        out[number] = ranked[0].average_precision(times) - ranked[1].average_precision(times)
    return out


class Ranked:
    """Rows from the highest score to the lowest, for average precision under many weights of customers."""

    def __init__(
        self, score: np.ndarray[Any, Any], label: np.ndarray[Any, Any], customer: np.ndarray[Any, Any]
    ) -> None:
        order = np.argsort(-score, kind="stable")
        self._label, self._customer = label[order].astype(np.float64), customer[order]
        falling = score[order]
        # Equal scores are one threshold: only the last row of each counts.
        self._last = np.append(np.flatnonzero(falling[1:] != falling[:-1]), len(falling) - 1)

    def average_precision(self, times: np.ndarray[Any, Any]) -> float:
        weight = times[self._customer]
        hits = np.cumsum(weight * self._label)[self._last]
        seen = np.cumsum(weight)[self._last]
        gained = np.diff(hits, prepend=0.0)
        return float((gained * hits / np.maximum(seen, 1.0)).sum() / max(hits[-1], 1.0))


def _rounded(quality: Any) -> dict[str, float]:
    return {name: round(value, 4) for name, value in msgspec.structs.asdict(quality).items() if value is not None}
