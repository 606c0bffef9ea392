"""Inside a member: what each of its inputs added to its own answer, where that can be said exactly.

Trees by the TreeSHAP of the library that grew them (Lundberg et al. 2020, path-dependent), logistic regression by
``weight * (input - mean)`` against the rows of the self-test. For networks of several layers, and for what comes as
ONNX or skops, nothing exact is at hand, and nothing is made up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_scorer.ensemble.manifest import Manifest, MemberSpec, read_members
from stream_scorer.ensemble.members.dense_json import Dense
from stream_scorer.ensemble.preprocess import Preprocess

Matrix = NDArray[np.float64]
# Prepared rows (n, k) to parts (n, k) and margins (n,).
_Look = Callable[[Matrix], tuple[Matrix, Matrix]]
_EXTRA = "needs the libraries that trained it: install stream-scorer[train]"


@dataclass(frozen=True, slots=True)
class Lens:
    """Looks into one member. `how` says by what; where nothing can be said (`look` is None), why not.

    `look` takes prepared rows ``(n, k)`` and gives parts ``(n, k)`` and margins ``(n,)``, before the calibrator: a
    base, the same for every row, plus the sum of a row's parts is its margin.
    """

    how: str
    look: _Look | None = None


class Explainer:
    """Looks into the members of one ensemble.

    Raises:
        ArtifactError: a file is not what its digest says.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        rows = np.array(manifest.self_test.features, dtype=np.float64)
        self.names = manifest.member_names
        self.inputs = [spec.inputs for spec in manifest.members]
        self._prepare = [Preprocess(manifest.features, spec.inputs, spec.preprocess) for spec in manifest.members]
        self.lenses = [
            _lens(spec, data, prepare.apply(rows))
            for spec, data, prepare in zip(manifest.members, read_members(folder, manifest), self._prepare, strict=True)
        ]

    def look(self, member: int, features: Matrix) -> tuple[Matrix, Matrix]:
        """Parts ``(n, k)`` and margins ``(n,)`` of `features` ``(n, n_features)``; k is 0 where nothing is known."""
        look = self.lenses[member].look
        if look is None:
            return np.zeros((len(features), 0)), np.full(len(features), np.nan)
        return look(self._prepare[member].apply(features))


def strongest(parts: Matrix, most: int) -> list[int]:
    """Places of the `most` largest of ``(k,)`` parts, whatever their sign."""
    order: list[int] = np.argsort(-np.abs(parts), kind="stable")[:most].tolist()
    return order


def _lens(spec: MemberSpec, data: bytes, reference: Matrix) -> Lens:
    if spec.format == "lightgbm-text":
        return _lightgbm(data)
    if spec.format == "xgboost-ubj":
        return _xgboost(data)
    if spec.format == "dense-json":
        layers = msgspec.json.decode(data, type=Dense).layers
        if len(layers) > 1:
            return Lens("a network of several layers has no exact shares")
        weights, bias, middle = np.array(layers[0].weights)[:, 0], layers[0].bias[0], reference.mean(axis=0)
        return Lens("exact, in log-odds", lambda rows: (weights * (rows - middle), rows @ weights + bias))
    return Lens(f"of {spec.format} nothing exact is known")


def _lightgbm(data: bytes) -> Lens:
    try:
        import lightgbm
    except ImportError:
        return Lens(_EXTRA)
    booster = lightgbm.Booster(model_str=data.decode())
    # Of a bagged forest the library gives sums where the forest takes the mean; and it is a regression on labels of 0
    # and 1, so its margin is the probability itself.
    trees = booster.num_trees() if b"\naverage_output" in data else 1
    unit = "probability" if b"\nobjective=regression" in data else "log-odds"

    def look(rows: Matrix) -> tuple[Matrix, Matrix]:
        found = np.asarray(booster.predict(rows, pred_contrib=True, num_threads=1), np.float64) / trees
        return found[:, :-1], found.sum(axis=1)

    return Lens(f"TreeSHAP, in {unit}", look)


def _xgboost(data: bytes) -> Lens:
    try:
        import xgboost
    except ImportError:
        return Lens(_EXTRA)
    booster = xgboost.Booster({"nthread": 1}, model_file=bytearray(data))

    def look(rows: Matrix) -> tuple[Matrix, Matrix]:
        found = booster.predict(xgboost.DMatrix(rows, nthread=1), pred_contribs=True, validate_features=False)
        whole = np.asarray(found, np.float64)
        return whole[:, :-1], whole.sum(axis=1)

    return Lens("TreeSHAP, in log-odds", look)
