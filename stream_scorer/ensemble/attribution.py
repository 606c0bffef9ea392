"""Feature attribution within a member: the contribution of each input to the member's own output, where it is exact.

Trees use the TreeSHAP of the library that trained them (Lundberg et al. 2020, path-dependent). Logistic regression uses
``weight * (input - mean)`` with the means of the self-test rows. Networks of several layers and members in the formats
ONNX and skops have no exact attribution here, and get none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from stream_scorer.arrays import Floats
from stream_scorer.ensemble.manifest import Manifest, MemberSpec, read_members
from stream_scorer.ensemble.members.dense_json import Dense
from stream_scorer.ensemble.preprocess import Preprocess

# Prepared rows (n, k) to parts (n, k) and margins (n,).
_Attribute = Callable[[Floats], tuple[Floats, Floats]]
_EXTRA = "needs the libraries that trained the member: pip install '.[train]' in a checkout of the release"


@dataclass(frozen=True, slots=True)
class AttributionMethod:
    """How one member is explained. `how` names the method and unit; if `attribute` is None, it gives the reason.

    `attribute` maps prepared rows ``(n, k)`` to parts ``(n, k)`` and margins ``(n,)``, before the calibrator. The
    margin of a row is the sum of its parts plus a base that is the same for every row.
    """

    how: str
    attribute: _Attribute | None = None


class Explainer:
    """Explains the members of one ensemble.

    Raises:
        ArtifactError: a file does not match its digest.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        rows = np.array(manifest.self_test.features, dtype=np.float64)
        self.names = manifest.member_names
        self.inputs = [spec.inputs for spec in manifest.members]
        self._prepare = [Preprocess(manifest.features, spec.inputs, spec.preprocess) for spec in manifest.members]
        self.methods = [
            _method(spec, data, prepare.apply(rows))
            for spec, data, prepare in zip(manifest.members, read_members(folder, manifest), self._prepare, strict=True)
        ]

    def attribute(self, member: int, features: Floats) -> tuple[Floats, Floats]:
        """Parts ``(n, k)`` and margins ``(n,)`` of `features` ``(n, n_features)``; without a method, k is 0."""
        attribute = self.methods[member].attribute
        if attribute is None:
            return np.zeros((len(features), 0)), np.full(len(features), np.nan)
        return attribute(self._prepare[member].apply(features))


def strongest(parts: Floats, limit: int) -> list[int]:
    """Indices of the at most `limit` parts of ``(k,)`` with the largest absolute values, in descending order."""
    order: list[int] = np.argsort(-np.abs(parts), kind="stable")[:limit].tolist()
    return order


def _method(spec: MemberSpec, data: bytes, reference: Floats) -> AttributionMethod:
    if spec.format == "lightgbm-text":
        return _lightgbm(data)
    if spec.format == "xgboost-ubj":
        return _xgboost(data)
    if spec.format == "dense-json":
        layers = msgspec.json.decode(data, type=Dense).layers
        if len(layers) > 1:
            return AttributionMethod("a network of several layers has no exact attribution")
        weights, bias, means = np.array(layers[0].weights)[:, 0], layers[0].bias[0], reference.mean(axis=0)
        return AttributionMethod("exact, in log-odds", lambda rows: (weights * (rows - means), rows @ weights + bias))
    return AttributionMethod(f"the format {spec.format} has no exact attribution")


def _lightgbm(data: bytes) -> AttributionMethod:
    try:
        import lightgbm
    except ImportError:
        return AttributionMethod(_EXTRA)
    booster = lightgbm.Booster(model_str=data.decode())
    # For a bagged forest, the library returns sums, but the forest predicts the mean. The forest is a regression on
    # labels of 0 and 1, so its margin is the probability itself.
    trees = booster.num_trees() if b"\naverage_output" in data else 1
    unit = "probability" if b"\nobjective=regression" in data else "log-odds"

    def attribute(rows: Floats) -> tuple[Floats, Floats]:
        shap = np.asarray(booster.predict(rows, pred_contrib=True, num_threads=1), np.float64) / trees
        return shap[:, :-1], shap.sum(axis=1)

    return AttributionMethod(f"TreeSHAP, in {unit}", attribute)


def _xgboost(data: bytes) -> AttributionMethod:
    try:
        import xgboost
    except ImportError:
        return AttributionMethod(_EXTRA)
    booster = xgboost.Booster({"nthread": 1}, model_file=bytearray(data))

    def attribute(rows: Floats) -> tuple[Floats, Floats]:
        raw = booster.predict(xgboost.DMatrix(rows, nthread=1), pred_contribs=True, validate_features=False)
        shap = np.asarray(raw, np.float64)
        return shap[:, :-1], shap.sum(axis=1)

    return AttributionMethod("TreeSHAP, in log-odds", attribute)
