"""LightGBM models in their text format: gradient boosting, and random forests.

A random forest is `boosting=rf` with the objective `regression` on labels of 0 and 1: it predicts the mean over the
trees of the fraud rate in a leaf. With `binary`, a forest averages single Newton steps in log-odds. For a rare class
these are so large (a leaf of half fraud at 1 % overall: +50) that its highest rows all get probability 1.
"""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

from stream_scorer.ensemble.links import sigmoid
from stream_scorer.ensemble.members.trees import Forest, Tree
from stream_scorer.errors import ArtifactError

_FORMAT = "lightgbm-text"
_ROUNDING = 1e-12
# Bits of `decision_type` of a split: one for missing values that go left, two for the values that count as missing.
_DEFAULT_LEFT, _MISSING_SHIFT, _MISSING_ZERO, _MISSING_NAN = 2, 2, 1, 2


class LightGBMMember:
    """A LightGBM binary classifier. Raises `ArtifactError` unless `data` is complete and has `n_inputs` inputs."""

    own_loops = True

    def __init__(self, data: bytes, n_inputs: int) -> None:
        trees, self._forest, self._steepness = _read_model(data, n_inputs)
        self._trees = Forest(trees, np.float64)
        self._count = len(trees)
        self._n_inputs = n_inputs

    def predict(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `Member.predict`. A forest predicts the mean of its trees, boosting the sigmoid of their sum."""
        if inputs.shape[1] != self._n_inputs:
            raise ValueError(f"{inputs.shape[1]} inputs for a model of {self._n_inputs}")
        total = self._trees.sums(inputs).astype(np.float64)
        if not self._forest:
            return sigmoid(self._steepness * total)
        probability = total / self._count
        # A mean of rates may leave [0, 1] by rounding errors; larger deviations are not corrected.
        probability[np.abs(probability) < _ROUNDING] = 0.0
        probability[np.abs(probability - 1.0) < _ROUNDING] = 1.0
        return probability


def _read_model(data: bytes, n_inputs: int) -> tuple[list[Tree], bool, float]:
    """Parse a model: its trees, whether it is a random forest, and the factor of the sigmoid."""
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        raise ArtifactError(f"{_FORMAT}: not ASCII text") from None
    header, blank, body = text.partition("\n\n")
    fields = _fields(header)
    if not blank or not header.startswith("tree\n") or "tree_sizes" not in fields:
        raise ArtifactError(f"{_FORMAT}: not a LightGBM model")
    forest = "average_output" in fields
    objective, *parameters = fields.get("objective", "").split(" ")
    if objective != ("regression" if forest else "binary"):
        raise ArtifactError(
            f"{_FORMAT}: the objective is {fields.get('objective')!r}",
            hint="Boosted trees are `binary`; a random forest (boosting=rf) is `regression` on labels of 0 and 1.",
        )
    if fields.get("num_class") != "1" or fields.get("num_tree_per_iteration") != "1":
        raise ArtifactError(f"{_FORMAT}: more than one output")
    if fields.get("max_feature_idx") != str(n_inputs - 1):
        raise ArtifactError(
            f"{_FORMAT}: last input is {fields.get('max_feature_idx')}, but the manifest expects {n_inputs - 1}"
        )
    steepness = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition(":")
        numbers = _numbers(value)
        steepness = numbers[0] if len(numbers) == 1 else math.nan
        if name != "sigmoid" or forest or not 0.0 < steepness < math.inf:
            raise ArtifactError(f"{_FORMAT}: the objective's {parameter!r} is not supported")
    body = body.lstrip("\n")
    position = 0
    trees = []
    for index, size in enumerate(_integers(fields["tree_sizes"])):
        block = body[position : position + size]
        if size <= 0 or not block.startswith(f"Tree={index}\n") or len(block) != size:
            raise ArtifactError(f"{_FORMAT}: tree {index} is truncated or misplaced")
        trees.append(_read_tree(_fields(block), index, n_inputs))
        position += size
    rest = body[position:].lstrip("\n")
    if not rest.startswith("end of trees") or "\nend of parameters" not in rest:
        raise ArtifactError(f"{_FORMAT}: the end of the model is missing")
    if not trees:
        raise ArtifactError(f"{_FORMAT}: no trees")
    return trees, forest, steepness


def _fields(block: str) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in block.splitlines())


def _read_tree(fields: dict[str, str], index: int, n_inputs: int) -> Tree:
    """One tree, its leaves numbered after its splits."""
    problem = ArtifactError(f"{_FORMAT}: tree {index} is malformed")
    if fields.get("is_linear", "0") != "0" or fields.get("num_cat", "0") != "0":
        raise ArtifactError(f"{_FORMAT}: tree {index} has linear leaves or categorical splits, which are not supported")
    leaves = _integers(fields.get("num_leaves", ""))
    values = _numbers(fields.get("leaf_value", ""))
    if len(leaves) != 1 or leaves[0] < 1 or len(values) != leaves[0] or not np.isfinite(values).all():
        raise problem
    nodes = leaves[0] - 1
    splits = {
        name: _integers(fields.get(name, ""))
        for name in ("split_feature", "decision_type", "left_child", "right_child")
    }
    threshold = _numbers(fields.get("threshold", ""))
    if nodes == 0:
        splits, threshold = {name: [] for name in splits}, []
    lengths = {len(threshold), *map(len, splits.values())}
    if lengths != {nodes} or np.isnan(threshold).any():
        raise problem
    if any(not 0 <= feature < n_inputs for feature in splits["split_feature"]):
        raise problem
    # Children follow their parent; a leaf is the complement of its number. Every node except the root has one parent.
    for children in (splits["left_child"], splits["right_child"]):
        if any(not (parent < child < nodes or -leaves[0] <= child < 0) for parent, child in enumerate(children)):
            raise problem
    left, right = (
        np.array([child if child >= 0 else nodes + ~child for child in splits[name]] + [-1] * leaves[0], np.int64)
        for name in ("left_child", "right_child")
    )
    if sorted(left[:nodes].tolist() + right[:nodes].tolist()) != list(range(1, nodes + leaves[0])):
        raise problem
    missing_left = []
    for kind, at in zip(splits["decision_type"], threshold, strict=True):
        missing = kind >> _MISSING_SHIFT
        if missing == _MISSING_ZERO:
            raise ArtifactError(f"{_FORMAT}: tree {index} treats zero as missing, which is not supported")
        # If training had no missing values, LightGBM treats a missing value as 0.
        missing_left.append(bool(kind & _DEFAULT_LEFT) if missing == _MISSING_NAN else at >= 0.0)
    none = [0.0] * leaves[0]
    return Tree(
        left=left,
        right=right,
        feature=np.array(splits["split_feature"] + [0] * leaves[0], np.int64),
        threshold=np.array([*threshold, *none], np.float64),
        missing_left=np.array(missing_left + [True] * leaves[0], np.bool_),
        value=np.array([0.0] * nodes + values, np.float64),
    )


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split()]
    except ValueError:
        return [math.nan]


def _integers(text: str) -> list[int]:
    if not re.fullmatch(r"[-0-9 ]*", text):
        return []
    try:
        return [int(part) for part in text.split()]
    except ValueError:
        return []
