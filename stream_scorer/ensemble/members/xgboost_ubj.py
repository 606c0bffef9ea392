"""XGBoost models in their UBJSON format."""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from stream_scorer.ensemble.links import sigmoid
from stream_scorer.errors import ArtifactError

_FORMAT = "xgboost-ubj"


class XGBoostMember:
    """An XGBoost `binary:logistic` classifier. Raises `ArtifactError` if `data` is not one of `n_inputs` inputs."""

    def __init__(self, data: bytes, n_inputs: int) -> None:
        import xgboost

        # The library also reads a deprecated binary form and JSON; a UBJSON model is an object whose keys have lengths.
        if not data.startswith(b"{L"):
            raise ArtifactError(f"{_FORMAT}: not UBJSON")
        try:
            booster = xgboost.Booster({"nthread": 1})
            booster.load_model(bytearray(data))
            booster.set_param({"nthread": 1})
            objective = json.loads(booster.save_config())["learner"]["objective"]["name"]
            inputs = booster.num_features()
        except (xgboost.core.XGBoostError, ValueError, KeyError) as error:
            raise ArtifactError(f"{_FORMAT}: not a model: {str(error).splitlines()[0]}") from None
        if objective != "binary:logistic":
            raise ArtifactError(f"{_FORMAT}: the objective is {objective!r}, not 'binary:logistic'")
        if inputs != n_inputs:
            raise ArtifactError(f"{_FORMAT}: takes {inputs} inputs, the manifest says {n_inputs}")
        self._booster = booster
        self._n_inputs = n_inputs

    def predict(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `Member.predict`. From the margin: the library's own probability is float32 and saturates at 1 - 6e-8."""
        if inputs.shape[1] != self._n_inputs:
            raise ValueError(f"{inputs.shape[1]} inputs for a model of {self._n_inputs}")
        margin = self._booster.inplace_predict(inputs, predict_type="margin", validate_features=False)
        return sigmoid(margin.astype(np.float64))
