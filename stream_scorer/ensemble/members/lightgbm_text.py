"""LightGBM models in their text format: gradient boosting, and random forests.

A random forest is `boosting=rf` with the objective `regression` on labels of 0 and 1: its answer is the mean over the
trees of the fraud rate in a leaf. Not `binary`: there a forest averages single Newton steps in log-odds, which for a
rare class are so long (a leaf of half fraud at 1 % overall: +50) that its best rows all end at probability 1.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_scorer.errors import ArtifactError

_FORMAT = "lightgbm-text"
_ROUNDING = 1e-12


class LightGBMMember:
    """A LightGBM binary classifier. Raises `ArtifactError` if `data` is not a whole one of `n_inputs` inputs."""

    def __init__(self, data: bytes, n_inputs: int) -> None:
        import lightgbm

        text, self._forest = _checked_text(data, n_inputs)
        try:
            self._booster = lightgbm.Booster(model_str=text)
        except lightgbm.basic.LightGBMError as error:
            raise ArtifactError(f"{_FORMAT}: {error}") from None

    def predict(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `Member.predict`. Not `raw_score`: for a forest LightGBM leaves the raw sum of leaves unaveraged."""
        out: Any = self._booster.predict(inputs, num_threads=1)
        probability = np.asarray(out, dtype=np.float64)
        if self._forest:
            # A mean of rates may miss 0 or 1 by rounding; what misses by more is not repaired.
            probability[np.abs(probability) < _ROUNDING] = 0.0
            probability[np.abs(probability - 1.0) < _ROUNDING] = 1.0
        return probability


def _checked_text(data: bytes, n_inputs: int) -> tuple[str, bool]:
    """The model text, once it is known to be whole and its trees well-formed, and whether it is a forest.

    LightGBM trusts its input: a text cut in half makes 4.7 read past its end and abort the process, and a child
    pointing upwards would loop for ever. So the blocks, their sizes and every tree's links are checked first.
    """
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        raise ArtifactError(f"{_FORMAT}: not ASCII text") from None
    header, blank, body = text.partition("\n\n")
    fields = dict(line.partition("=")[::2] for line in header.splitlines())
    if not blank or not header.startswith("tree\n") or "tree_sizes" not in fields:
        raise ArtifactError(f"{_FORMAT}: not a LightGBM model")
    forest = "average_output" in fields
    if fields.get("objective", "").partition(" ")[0] != ("regression" if forest else "binary"):
        raise ArtifactError(
            f"{_FORMAT}: the objective is {fields.get('objective')!r}",
            mend="Boosted trees are `binary`; a random forest (boosting=rf) is `regression` on labels of 0 and 1.",
        )
    if fields.get("num_class") != "1" or fields.get("num_tree_per_iteration") != "1":
        raise ArtifactError(f"{_FORMAT}: more than one output")
    if fields.get("max_feature_idx") != str(n_inputs - 1):
        raise ArtifactError(
            f"{_FORMAT}: last input is {fields.get('max_feature_idx')}, the manifest says {n_inputs - 1}"
        )
    body = body.lstrip("\n")
    position = 0
    for index, size in enumerate(_integers(fields["tree_sizes"])):
        block = body[position : position + size]
        if size <= 0 or not block.startswith(f"Tree={index}\n") or len(block) != size:
            raise ArtifactError(f"{_FORMAT}: tree {index} is cut short or misplaced")
        _check_tree(block, index, n_inputs)
        position += size
    rest = body[position:].lstrip("\n")
    if not rest.startswith("end of trees") or "\nend of parameters" not in rest:
        raise ArtifactError(f"{_FORMAT}: the end of the model is missing")
    return text, forest


def _check_tree(block: str, index: int, n_inputs: int) -> None:
    fields = dict(line.partition("=")[::2] for line in block.splitlines())
    problem = ArtifactError(f"{_FORMAT}: tree {index} is malformed")
    if fields.get("is_linear", "0") != "0" or fields.get("num_cat", "0") != "0":
        raise ArtifactError(f"{_FORMAT}: tree {index} has linear leaves or categorical splits, which are not supported")
    leaves = _integers(fields.get("num_leaves", ""))
    if len(leaves) != 1 or leaves[0] < 1 or len(fields.get("leaf_value", "").split()) != leaves[0]:
        raise problem
    nodes = leaves[0] - 1
    if nodes == 0:
        return
    for name in ("threshold", "decision_type"):
        if len(fields.get(name, "").split()) != nodes:
            raise problem
    features = _integers(fields.get("split_feature", ""))
    left, right = _integers(fields.get("left_child", "")), _integers(fields.get("right_child", ""))
    if not len(features) == len(left) == len(right) == nodes:
        raise problem
    if any(not 0 <= feature < n_inputs for feature in features):
        raise problem
    # A split's children come after it; a leaf is the complement of its number.
    for children in (left, right):
        if any(not (parent < child < nodes or -leaves[0] <= child < 0) for parent, child in enumerate(children)):
            raise problem


def _integers(text: str) -> list[int]:
    if not re.fullmatch(r"[-0-9 ]*", text):
        return []
    try:
        return [int(part) for part in text.split()]
    except ValueError:
        return []
