"""Trees walked by our own loop add up to what the library that grew them adds up to, bit for bit."""

from __future__ import annotations

from typing import Any

import lightgbm
import numpy as np
import pytest
import xgboost
from numpy.typing import NDArray

from stream_scorer.ensemble.members import load_member
from stream_scorer.errors import ArtifactError

QUIET = {"verbose": -1, "num_threads": 1, "seed": 1, "deterministic": True, "max_bin": 63}
LIGHTGBM: dict[str, dict[str, Any]] = {
    "boosting": {"objective": "binary", "num_leaves": 31},
    "lopsided": {"objective": "binary", "num_leaves": 63, "min_data_in_leaf": 1},
    "another sigmoid": {"objective": "binary", "num_leaves": 8, "sigmoid": 0.7},
    "forest": {"objective": "regression", "boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5},
    "stumps": {"objective": "binary", "num_leaves": 2},
    "nothing to learn": {"objective": "binary", "min_data_in_leaf": 100_000},
}
XGBOOST: dict[str, dict[str, Any]] = {
    "boosting": {"max_depth": 6},
    "deep": {"max_depth": 14, "min_child_weight": 0.0},
    "two at a time": {"max_depth": 3, "num_parallel_tree": 2, "subsample": 0.5},
    "a base": {"max_depth": 4, "base_score": 0.03},
    "nothing to learn": {"max_depth": 3, "min_child_weight": 1e9},
}


def training(missing: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    random = np.random.default_rng(1)
    x = np.column_stack([random.normal(size=2_000), random.integers(0, 9, 2_000), random.lognormal(5, 3, 2_000)])
    y = (x[:, 0] + 0.3 * x[:, 1] + random.normal(size=2_000) > 2.5).astype(float)
    if missing:
        x[random.random(x.shape) < 0.1] = np.nan
    return x, y


def rows(x: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows as trained on, rows that lie exactly on thresholds and just beside, and rows at the ends of the numbers."""
    random = np.random.default_rng(2)
    edges = random.choice(thresholds, (400, x.shape[1]))
    extremes = random.choice([0.0, -0.0, np.nan, 1e-300, -1e300, 1e300, np.inf, -np.inf, 1e-35], (203, x.shape[1]))
    beside = [np.nextafter(edges, -np.inf), np.nextafter(edges, np.inf)]
    near = [np.nextafter(edges.astype(np.float32), np.float32(way)).astype(float) for way in (-np.inf, np.inf)]
    return np.concatenate([x[:500], edges, *beside, *near, extremes])


@pytest.mark.kernels
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("kind", LIGHTGBM)
def test_lightgbm(kind: str, missing: bool) -> None:
    x, y = training(missing)
    booster = lightgbm.train(QUIET | LIGHTGBM[kind], lightgbm.Dataset(x, y), 12)
    text = booster.model_to_string()
    thresholds = [float(v) for line in text.splitlines() if line.startswith("threshold=") for v in line[10:].split()]
    inputs = rows(x, np.array(thresholds or [0.0]))
    member: Any = load_member("lightgbm-text", text.encode(), 3)
    if kind == "forest":
        assert np.array_equal(member.predict(inputs), booster.predict(inputs))
    else:
        assert np.array_equal(member._trees.sums(inputs), booster.predict(inputs, raw_score=True))
        assert member.predict(inputs) == pytest.approx(booster.predict(inputs), abs=1e-15)


@pytest.mark.kernels
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("kind", XGBOOST)
def test_xgboost(kind: str, missing: bool) -> None:
    x, y = training(missing)
    settings = {"objective": "binary:logistic", "nthread": 1, "seed": 1, **XGBOOST[kind]}
    booster = xgboost.train(settings, xgboost.DMatrix(x, y), 12)
    frame = [
        line.split("<")[1].split("]")[0] for text in booster.get_dump() for line in text.splitlines() if "<" in line
    ]
    inputs = rows(x, np.array([float(v) for v in frame] or [0.0]))
    member: Any = load_member("xgboost-ubj", bytes(booster.save_raw("ubj")), 3)
    margin = booster.inplace_predict(inputs, predict_type="margin", validate_features=False).astype(float)
    with np.errstate(over="ignore"):
        narrowed = inputs.astype(np.float32).astype(float)
    assert np.array_equal(member._trees.sums(narrowed, member._base), margin)


def test_zero_as_missing_is_refused() -> None:
    x, y = training(False)
    x[::3] = 0.0
    booster = lightgbm.train(QUIET | {"objective": "binary", "zero_as_missing": True}, lightgbm.Dataset(x, y), 2)
    with pytest.raises(ArtifactError, match="zero as missing"):
        load_member("lightgbm-text", booster.model_to_string().encode(), 3)
