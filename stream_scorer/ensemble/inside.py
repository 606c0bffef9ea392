"""Inside a member: what each of its inputs added to its own answer, where that can be said exactly.

Trees by the TreeSHAP of the library that grew them (Lundberg et al. 2020, path-dependent), logistic regression by
``weight * (input - mean)`` against the rows of the self-test. For networks of several layers, and for what comes as
ONNX or skops, nothing exact is at hand, and nothing is made up.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_scorer.ensemble.manifest import MemberSpec
from stream_scorer.ensemble.members.dense_json import Dense

_EXTRA = "needs the libraries that trained it: install stream-scorer[train]"


@dataclass(frozen=True, slots=True)
class Inside:
    """``base + sum(parts) == margin`` of one row, before the calibrator.

    `parts` ``(k,)`` are in the order of the member's inputs. `how` says by what; where nothing can be said, it says why
    not, and the rest is empty.
    """

    how: str
    base: float
    parts: NDArray[np.float64]
    margin: float

    @classmethod
    def unknown(cls, why: str) -> Inside:
        """Nothing can be said, because of `why`."""
        return cls(why, np.nan, np.zeros(0), np.nan)


def look_inside(spec: MemberSpec, data: bytes, row: NDArray[np.float64], reference: NDArray[np.float64]) -> Inside:
    """What made the member's answer to one prepared `row` ``(k,)``; `reference` ``(n, k)`` are prepared rows too."""
    if spec.format == "lightgbm-text":
        try:
            import lightgbm
        except ImportError:
            return Inside.unknown(_EXTRA)
        booster = lightgbm.Booster(model_str=data.decode())
        # Of a bagged forest the library gives sums where the forest takes the mean.
        trees = booster.num_trees() if b"\naverage_output" in data else 1
        found = booster.predict(row[None], pred_contrib=True, num_threads=1)[0] / trees
        margin = float(booster.predict(row[None], raw_score=True, num_threads=1)[0]) / trees
        # It is a regression on labels of 0 and 1: its margin is the probability itself.
        unit = "probability" if b"\nobjective=regression" in data else "log-odds"
        return Inside(f"TreeSHAP, in {unit}", float(found[-1]), np.asarray(found[:-1], np.float64), margin)
    if spec.format == "xgboost-ubj":
        try:
            import xgboost
        except ImportError:
            return Inside.unknown(_EXTRA)
        model = xgboost.Booster({"nthread": 1}, model_file=bytearray(data))
        matrix = xgboost.DMatrix(row[None])
        found = model.predict(matrix, pred_contribs=True, validate_features=False)[0].astype(np.float64)
        margin = float(model.predict(matrix, output_margin=True, validate_features=False)[0])
        return Inside("TreeSHAP, in log-odds", float(found[-1]), found[:-1], margin)
    if spec.format == "dense-json":
        layers = msgspec.json.decode(data, type=Dense).layers
        if len(layers) == 1:
            weights, bias = np.array(layers[0].weights)[:, 0], layers[0].bias[0]
            middle = reference.mean(axis=0)
            return Inside(
                "exact, in log-odds",
                float(weights @ middle + bias),
                weights * (row - middle),
                float(weights @ row + bias),
            )
        return Inside.unknown("a network of several layers has no exact shares")
    return Inside.unknown(f"of {spec.format} nothing exact is known")
