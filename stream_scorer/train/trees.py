"""Tree members: gradient boosting and a random forest with LightGBM, gradient boosting with XGBoost.

Fraud is rare, but rows are not reweighted: the calibrators would have to undo the weights, and trees rank without them.
Sizes are moderate because trees dominate the scoring time. One thread and a fixed seed give the same bytes for the same
data. Missing values stay missing, because trees split on them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A number, a name, or a list of numbers.
Parameter = Any

GBDT_TREES = 100
XGB_TREES = 100
FOREST_TREES = 60
_FLOAT32 = float(np.finfo(np.float32).max)

_LIGHTGBM: dict[str, object] = {
    "objective": "binary",
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
    # At 1 % fraud, a leaf of 50 rows contains half a fraud; smaller leaves overfit.
    "min_data_in_leaf": 50,
}


# Hyperparameters and their defaults, by the names of the libraries; `trees` is the number of rounds.
GBDT: dict[str, Parameter] = {
    "trees": GBDT_TREES,
    "num_leaves": 31,
    "learning_rate": 0.06,
    "feature_fraction": 0.8,
    "lambda_l2": 5.0,
}
FOREST: dict[str, Parameter] = {
    "trees": FOREST_TREES,
    "num_leaves": 63,
    "bagging_fraction": 0.632,
    "feature_fraction_bynode": 0.5,
    # Equals ten rows at the overall rate in every leaf, so that no leaf predicts 0.
    "lambda_l2": 10.0,
    "min_data_in_leaf": 20,
}
XGB: dict[str, Parameter] = {
    "trees": XGB_TREES,
    "max_depth": 5,
    "eta": 0.08,
    "min_child_weight": 2.0,
    "colsample_bytree": 0.8,
    "reg_lambda": 5.0,
}


def train_gbdt(
    x: NDArray[np.float64],
    y: NDArray[np.bool_],
    names: Sequence[str],
    seed: int,
    parameters: Mapping[str, Parameter] = GBDT,
    weight: NDArray[np.float64] | None = None,
) -> bytes:
    """Train boosted trees; returns LightGBM text, from ``(n, n_inputs)``, ``(n,)`` and row weights ``(n,)``."""
    return _lightgbm(parameters, _Rows(x, y, weight), names, seed)


def train_forest(
    x: NDArray[np.float64],
    y: NDArray[np.bool_],
    names: Sequence[str],
    seed: int,
    parameters: Mapping[str, Parameter] = FOREST,
    weight: NDArray[np.float64] | None = None,
) -> bytes:
    """Train a random forest (averaged, bagged trees); returns LightGBM text."""
    # On labels of 0 and 1, so that the value of a leaf is its fraud rate; see `members.lightgbm_text`.
    fixed: dict[str, Parameter] = {"boosting": "rf", "objective": "regression", "bagging_freq": 1}
    model = _lightgbm(fixed | dict(parameters), _Rows(x, y, weight), names, seed)
    return _with_rate(model, float(np.average(y, weights=weight)))


# A tree without a split in LightGBM's text.
_UNSPLIT = re.compile(rb"(Tree=\d+\nnum_leaves=1\n(?:.*\n)*?leaf_value=)(.*)")


def _with_rate(model: bytes, rate: float) -> bytes:
    """`model` with trees that predict the fraud rate where LightGBM found no split.

    In a random forest, LightGBM gives such a tree about 0, where the leaves of all others are rates: a forest on inputs
    that say nothing would predict values around 0, some of them negative.
    """
    header, trees, rest = re.split(rb"(?<=\n)(?=Tree=0\n|end of trees\n)", model, maxsplit=2)
    blocks = re.split(rb"(?<=\n)(?=Tree=\d+\n)", trees)
    blocks = [_UNSPLIT.sub(rb"\g<1>" + repr(rate).encode(), block, count=1) for block in blocks]
    sizes = b" ".join(b"%d" % len(block) for block in blocks)
    return re.sub(rb"(?m)^tree_sizes=.*$", b"tree_sizes=" + sizes, header) + b"".join(blocks) + rest


@dataclass(frozen=True, slots=True)
class _Rows:
    """Training rows: ``(n, n_inputs)``, labels ``(n,)`` and weights ``(n,)``."""

    x: NDArray[np.float64]
    y: NDArray[np.bool_]
    weight: NDArray[np.float64] | None


def _lightgbm(parameters: Mapping[str, Parameter], rows: _Rows, names: Sequence[str], seed: int) -> bytes:
    import lightgbm

    rest = dict(parameters)
    trees = int(rest.pop("trees"))
    # The bins of the data set are made before training, so it needs their number too.
    bins = {name: rest[name] for name in ("max_bin",) if name in rest}
    data = lightgbm.Dataset(
        rows.x, rows.y.astype(np.float64), weight=rows.weight, feature_name=list(names), params={"verbose": -1} | bins
    )
    booster = lightgbm.train(_LIGHTGBM | {"seed": seed, **rest}, data, num_boost_round=trees)
    return booster.model_to_string().encode("ascii")


def train_xgb(
    x: NDArray[np.float64],
    y: NDArray[np.bool_],
    names: Sequence[str],
    seed: int,
    parameters: Mapping[str, Parameter] = XGB,
    weight: NDArray[np.float64] | None = None,
) -> bytes:
    """Train boosted trees; returns XGBoost UBJSON, from ``(n, n_inputs)``, ``(n,)`` and row weights ``(n,)``."""
    import xgboost

    rest = dict(parameters)
    trees = int(rest.pop("trees"))
    fixed = {"objective": "binary:logistic", "tree_method": "hist", "nthread": 1, "seed": seed}
    # The library refuses what float32 cannot hold; a split treats the largest float32 as it treats infinity.
    x = np.clip(x, -_FLOAT32, _FLOAT32)
    data = xgboost.DMatrix(x, y.astype(np.float64), weight=weight, feature_names=list(names), nthread=1)
    return bytes(xgboost.train(fixed | rest, data, num_boost_round=trees).save_raw("ubj"))
