"""Trees evaluated by our own loops add up to what the library that grew them adds up to, bit for bit."""

from __future__ import annotations

from typing import Any

import lightgbm
import numpy as np
import pytest
import xgboost
from numpy.typing import NDArray

from stream_scorer.ensemble.members import load_member
from stream_scorer.ensemble.members.bit_vectors import MAX_LEAVES
from stream_scorer.ensemble.members.trees import Forest, Tree
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
        margin = booster.predict(inputs, raw_score=True)
        assert np.array_equal(member._trees.sums(inputs), margin)
        assert np.array_equal(member._trees.walked_sums(inputs), margin)
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
    assert np.array_equal(member._trees.walked_sums(narrowed, member._base), margin)


SHAPES = ("random", "left", "right")


def grown(random: np.random.Generator, leaves: int, shape: str, levels: NDArray[np.float64]) -> Tree:
    """A tree of `leaves` leaves over three inputs; a chain to one side, or split at a random leaf each time."""
    left, right, open_leaves = [-1], [-1], [0]
    for _ in range(leaves - 1):
        place = {"random": int(random.integers(len(open_leaves))), "left": 0, "right": -1}[shape]
        node = open_leaves.pop(place)
        left[node], right[node] = len(left), len(left) + 1
        children = [left[node], right[node]]
        open_leaves = children + open_leaves if shape == "left" else open_leaves + children
        left += [-1, -1]
        right += [-1, -1]
    k = len(left)
    return Tree(
        left=np.array(left),
        right=np.array(right),
        feature=random.integers(0, 3, k),
        threshold=random.choice(levels, k),
        missing_left=random.random(k) < 0.5,
        value=random.normal(size=k),
    )


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("levels", [3, 255, 256, 2_000])
def test_bit_vectors_reach_the_leaves_of_the_walk(levels: int, dtype: type[Any]) -> None:
    random = np.random.default_rng(levels)
    thresholds = np.concatenate([random.normal(size=levels - 2), [0.0, np.inf]])
    sizes = [1, 2, 8, 9, 64, 65, MAX_LEAVES, *random.integers(1, MAX_LEAVES, 25).tolist()]
    trees = [grown(random, size, SHAPES[place % 3], thresholds) for place, size in enumerate(sizes)]
    forest = Forest(trees, dtype)
    assert forest._bit_vectors is not None
    odd = np.array([np.nan, np.inf, -np.inf, -0.0])
    x = random.choice(np.concatenate([thresholds, np.nextafter(thresholds, np.inf), odd, odd]), (200, 3))
    walked = forest.walked_sums(x, 0.5)
    assert len(np.unique(walked)) > 50
    for n in (0, 1, 63, 64, 65, 200):
        assert np.array_equal(forest.sums(x[:n], 0.5), walked[:n])
    assert np.array_equal(forest.sums(np.asfortranarray(x), 0.5), walked)


def test_a_tree_of_too_many_leaves_is_walked() -> None:
    random = np.random.default_rng(1)
    trees = [grown(random, size, "random", random.normal(size=50)) for size in (9, MAX_LEAVES + 1)]
    forest = Forest(trees, np.float64)
    assert forest._bit_vectors is None
    x = random.normal(size=(70, 3))
    assert np.array_equal(forest.sums(x), forest.walked_sums(x))


def test_a_forest_of_leaves_only_adds_their_values() -> None:
    leaf = grown(np.random.default_rng(1), 1, "random", np.zeros(1))
    assert np.array_equal(Forest([leaf, leaf], np.float64).sums(np.zeros((3, 2))), np.full(3, 2 * leaf.value[0]))


def test_zero_as_missing_is_refused() -> None:
    x, y = training(False)
    x[::3] = 0.0
    booster = lightgbm.train(QUIET | {"objective": "binary", "zero_as_missing": True}, lightgbm.Dataset(x, y), 2)
    with pytest.raises(ArtifactError, match="zero as missing"):
        load_member("lightgbm-text", booster.model_to_string().encode(), 3)


@pytest.mark.parametrize("factor", ["e", "--", "", "nan", "1e999", "-1", "0", "1\t2"])
def test_a_sigmoid_of_lightgbm_needs_a_positive_factor(factor: str) -> None:
    x, y = training(False)
    text = lightgbm.train(QUIET | {"objective": "binary"}, lightgbm.Dataset(x, y), 2).model_to_string()
    assert "sigmoid:1\n" in text
    with pytest.raises(ArtifactError, match="is not supported"):
        load_member("lightgbm-text", text.replace("sigmoid:1\n", f"sigmoid:{factor}\n").encode(), 3)
