"""XGBoost models in their UBJSON format."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_scorer.ensemble.links import sigmoid
from stream_scorer.ensemble.members.trees import Forest, Tree
from stream_scorer.ensemble.members.ubjson import MalformedUBJSON, read_ubjson
from stream_scorer.errors import ArtifactError

_FORMAT = "xgboost-ubj"
# The arrays of a tree and their types.
_NODE_ARRAYS = {
    "left_children": ">i4",
    "right_children": ">i4",
    "parents": ">i4",
    "split_indices": ">i4",
    "split_conditions": ">f4",
    "split_type": "u1",
    "default_left": "u1",
    "base_weights": ">f4",
    "loss_changes": ">f4",
    "sum_hessian": ">f4",
}


class XGBoostMember:
    """An XGBoost `binary:logistic` classifier. Raises `ArtifactError` unless `data` has `n_inputs` inputs."""

    own_loops = True

    def __init__(self, data: bytes, n_inputs: int) -> None:
        trees, self._base = _read_model(data, n_inputs)
        self._trees = Forest(trees, np.float32)
        self._n_inputs = n_inputs

    def predict(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `Member.predict`. Computed from the margin: the library's float32 probability saturates at 1 - 6e-8."""
        if inputs.shape[1] != self._n_inputs:
            raise ValueError(f"{inputs.shape[1]} inputs for a model of {self._n_inputs}")
        # The library compares in float32; thresholds and inputs rounded to float32 give the same result in float64.
        with np.errstate(over="ignore"):
            narrowed = inputs.astype(np.float32).astype(np.float64)
        return sigmoid(self._trees.sums(narrowed, self._base).astype(np.float64))


def _read_model(data: bytes, n_inputs: int) -> tuple[list[Tree], float]:
    """Parse a model: its trees and its base margin."""
    try:
        learner = read_ubjson(data)["learner"]
        objective = learner["objective"]["name"]
        parameters = learner["learner_model_param"]
        booster = learner["gradient_booster"]
        kind = booster["name"]
        if kind != "gbtree":
            raise ArtifactError(f"{_FORMAT}: the booster is {kind!r}, not 'gbtree'")
        if objective != "binary:logistic":
            raise ArtifactError(f"{_FORMAT}: the objective is {objective!r}, not 'binary:logistic'")
        if parameters["num_class"] != "0" or parameters.get("num_target", "1") != "1":
            raise ArtifactError(f"{_FORMAT}: more than one output")
        if parameters["num_feature"] != str(n_inputs):
            raise ArtifactError(f"{_FORMAT}: takes {parameters['num_feature']} inputs, the manifest expects {n_inputs}")
        trees = booster["model"]["trees"]
        _check_forest(booster["model"], len(trees))
        for index, tree in enumerate(trees):
            if not _is_tree(tree, n_inputs):
                raise ArtifactError(f"{_FORMAT}: tree {index} is malformed")
        return [_tree(tree) for tree in trees], _base_margin(parameters["base_score"])
    except (MalformedUBJSON, LookupError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{_FORMAT}: not a model: {type(error).__name__}: {error}") from None


def _base_margin(text: str) -> float:
    """The logit of ``base_score``, in float32 as in the library."""
    base = np.float32(text.strip("[]"))
    if not 0.0 < base < 1.0:
        raise ArtifactError(f"{_FORMAT}: the base score {text} is not between 0 and 1")
    one = np.float32(1.0)
    return float(-np.log(one / base - one))


def _tree(tree: dict[str, Any]) -> Tree:
    left = tree["left_children"].astype(np.int64)
    condition = tree["split_conditions"].astype(np.float32)
    return Tree(
        left=left,
        right=tree["right_children"].astype(np.int64),
        feature=tree["split_indices"].astype(np.int64),
        # The library goes left below the condition, that is, up to the preceding float32.
        threshold=np.nextafter(condition, np.float32(-np.inf)).astype(np.float64),
        missing_left=tree["default_left"].astype(np.bool_),
        value=condition,  # the condition of a leaf is its value
    )


def _check_forest(model: dict[str, Any], trees: int) -> None:
    bounds = [int(bound) for bound in model["iteration_indptr"]]
    ascending = all(a <= b for a, b in pairwise(bounds))
    groups = [int(group) for group in model["tree_info"]]
    if model["gbtree_model_param"]["num_trees"] != str(trees) or groups != [0] * trees:
        raise ArtifactError(f"{_FORMAT}: the number of trees is inconsistent")
    if not bounds or bounds[0] != 0 or bounds[-1] != trees or not ascending:
        raise ArtifactError(f"{_FORMAT}: the iterations do not cover the trees")


def _is_tree(tree: dict[str, Any], n_inputs: int) -> bool:
    """Whether all arrays have equal length, and every split reads an existing input and leads to later nodes."""
    nodes = len(tree["left_children"])
    parameters = tree["tree_param"]
    if nodes == 0 or parameters["num_nodes"] != str(nodes) or parameters["num_feature"] != str(n_inputs):
        return False
    if parameters["size_leaf_vector"] not in ("0", "1"):
        return False
    for name, dtype in _NODE_ARRAYS.items():
        array = tree[name]
        if not isinstance(array, np.ndarray) or array.dtype != np.dtype(dtype) or len(array) != nodes:
            return False
    if tree["split_type"].any() or len(tree["categories"]):
        return False
    left, right = tree["left_children"], tree["right_children"]
    split = left != -1
    number = np.arange(nodes)
    for child in (left, right):
        if ((child != -1) != split).any() or (split & ((child <= number) | (child >= nodes))).any():
            return False
    # Every node except the root has one parent.
    if sorted(left[split].tolist() + right[split].tolist()) != number[1:].tolist():
        return False
    if not np.isfinite(tree["split_conditions"]).all():
        return False
    read = tree["split_indices"][split]
    return bool(((read >= 0) & (read < n_inputs)).all())
