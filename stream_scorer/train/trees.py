"""Tree members: gradient boosting and a random forest with LightGBM, gradient boosting with XGBoost.

Fraud is rare, but rows are not reweighted: the calibrators would have to undo the weights, and trees rank without them.
Sizes are moderate because trees dominate the scoring time. One thread and a fixed seed give the same bytes for the same
data. Missing values stay missing, because trees split on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

GBDT_TREES = 100
XGB_TREES = 100
FOREST_TREES = 60

_LIGHTGBM: dict[str, object] = {
    "objective": "binary",
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
    # At 1 % fraud, a leaf of 50 rows contains half a fraud; smaller leaves overfit.
    "min_data_in_leaf": 50,
}


def train_gbdt(x: NDArray[np.float64], y: NDArray[np.bool_], names: Sequence[str], seed: int) -> bytes:
    """Train boosted trees; returns LightGBM text, from ``(n, n_inputs)`` and ``(n,)``."""
    parameters = {"num_leaves": 31, "learning_rate": 0.06, "feature_fraction": 0.8, "lambda_l2": 5.0}
    return _lightgbm(parameters, GBDT_TREES, x, y, names, seed)


def train_forest(x: NDArray[np.float64], y: NDArray[np.bool_], names: Sequence[str], seed: int) -> bytes:
    """Train a random forest (averaged, bagged trees); returns LightGBM text."""
    parameters = {
        "boosting": "rf",
        # On labels of 0 and 1, so that the value of a leaf is its fraud rate; see `members.lightgbm_text`.
        "objective": "regression",
        "num_leaves": 63,
        "bagging_freq": 1,
        "bagging_fraction": 0.632,
        "feature_fraction_bynode": 0.5,
        # Equals ten rows at the overall rate in every leaf, so that no leaf predicts 0.
        "lambda_l2": 10.0,
        "min_data_in_leaf": 20,
    }
    return _lightgbm(parameters, FOREST_TREES, x, y, names, seed)


def _lightgbm(
    parameters: Mapping[str, object],
    trees: int,
    x: NDArray[np.float64],
    y: NDArray[np.bool_],
    names: Sequence[str],
    seed: int,
) -> bytes:
    import lightgbm

    data = lightgbm.Dataset(x, y.astype(np.float64), feature_name=list(names), params={"verbose": -1})
    booster = lightgbm.train(_LIGHTGBM | {"seed": seed, **parameters}, data, num_boost_round=trees)
    return booster.model_to_string().encode("ascii")


def train_xgb(x: NDArray[np.float64], y: NDArray[np.bool_], names: Sequence[str], seed: int) -> bytes:
    """Train boosted trees; returns XGBoost UBJSON, from ``(n, n_inputs)`` and ``(n,)``."""
    import xgboost

    parameters = {
        "objective": "binary:logistic",
        "tree_method": "hist",
        "nthread": 1,
        "seed": seed,
        "max_depth": 5,
        "eta": 0.08,
        "min_child_weight": 2.0,
        "colsample_bytree": 0.8,
        "reg_lambda": 5.0,
    }
    data = xgboost.DMatrix(x, y.astype(np.float64), feature_names=list(names), nthread=1)
    return bytes(xgboost.train(parameters, data, num_boost_round=XGB_TREES).save_raw("ubj"))
