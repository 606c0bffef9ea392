"""Each member's prediction by the library that trained it, on one thread: what our own loops are compared with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import msgspec
import numpy as np
import xgboost

from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.manifest import read_members
from stream_scorer.ensemble.members.dense_json import Dense


def library_predictions(folder: Path, ensemble: Ensemble) -> list[Callable[[Any], Any]]:
    """Of each member in `folder`: the sums of its trees, or the network's output, for prepared inputs (n, k).

    numpy's matrix product uses all cores, unless `threadpool_limits` says otherwise.
    """
    out: list[Callable[[Any], Any]] = []
    for spec, data in zip(ensemble.manifest.members, read_members(folder, ensemble.manifest), strict=True):
        if spec.format == "lightgbm-text":
            out.append(_lightgbm(data))
        elif spec.format == "xgboost-ubj":
            out.append(_xgboost(data))
        else:
            out.append(_numpy(data))
    return out


def _lightgbm(data: bytes) -> Callable[[Any], Any]:
    booster = lightgbm.Booster(model_str=data.decode())
    return lambda x: booster.predict(x, raw_score=True, num_threads=1)


def _xgboost(data: bytes) -> Callable[[Any], Any]:
    booster = xgboost.Booster()
    booster.load_model(bytearray(data))
    booster.set_param({"nthread": 1})
    return lambda x: booster.inplace_predict(x, predict_type="margin", validate_features=False)


def _numpy(data: bytes) -> Callable[[Any], Any]:
    layers = [
        (np.array(a.weights), np.array(a.bias), a.activation) for a in msgspec.json.decode(data, type=Dense).layers
    ]

    def predict(x: Any) -> Any:
        for weights, bias, activation in layers:
            x = x @ weights + bias
            x = np.maximum(x, 0.0) if activation == "relu" else 1.0 / (1.0 + np.exp(-x))
        return x

    return predict
