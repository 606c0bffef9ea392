"""Tree members: gradient boosting and a random forest with LightGBM, gradient boosting with XGBoost.

Fraud is rare and rows are not reweighted: weights would have to be undone by the calibrators, and trees do not need
them to rank. Sizes are moderate because trees are where scoring time goes. One thread and a seed: the same data give
the same bytes. Missing values stay missing, trees split on them.
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
    # A leaf of 50 rows at 1 % fraud holds half a fraud: smaller ones memorise.
    "min_data_in_leaf": 50,
}


def train_gbdt(x: NDArray[np.float64], y: NDArray[np.bool_], names: Sequence[str], seed: int) -> bytes:
    """LightGBM text of boosted trees, from ``(n, n_inputs)`` and ``(n,)``."""
    parameters = {"num_leaves": 31, "learning_rate": 0.06, "feature_fraction": 0.8, "lambda_l2": 5.0}
    return _lightgbm(parameters, GBDT_TREES, x, y, names, seed)


def train_forest(x: NDArray[np.float64], y: NDArray[np.bool_], names: Sequence[str], seed: int) -> bytes:
    """LightGBM text of a random forest: bagged trees whose leaves are averaged."""
    parameters = {
        "boosting": "rf",
        # Labels of 0 and 1, so that a leaf holds its fraud rate; see `members.lightgbm_text`.
        "objective": "regression",
        "num_leaves": 63,
        "bagging_freq": 1,
        "bagging_fraction": 0.632,
        "feature_fraction_bynode": 0.5,
        # Ten rows' worth of the overall rate in every leaf, so that none says never.
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
    """XGBoost UBJSON of boosted trees, from ``(n, n_inputs)`` and ``(n,)``."""
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
