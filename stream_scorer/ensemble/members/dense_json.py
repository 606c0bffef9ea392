"""Dense layers as JSON: logistic regression (one layer) and small neural networks (a few).

Evaluated by one loop in a fixed order, not by BLAS: the order of summation in a matrix product depends on the batch
size, so the last bits would depend on the micro-batches.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numba import njit
from numpy.typing import NDArray

from stream_scorer.ensemble.links import sigmoid_of
from stream_scorer.errors import ArtifactError

_FORMAT = "dense-json"
# A wider layer would cost more than the trees.
MAX_UNITS = 1024

Activation = Literal["identity", "relu", "tanh", "logistic"]
_ACTIVATIONS: dict[str, int] = {"identity": 0, "relu": 1, "tanh": 2, "logistic": 3}


class Layer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``activation(x @ weights + bias)``; `weights` is ``(n_in, n_out)``, `bias` ``(n_out,)``."""

    weights: Annotated[list[list[float]], Meta(min_length=1, max_length=4096)]
    bias: Annotated[list[float], Meta(min_length=1, max_length=MAX_UNITS)]
    activation: Activation


class Dense(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of the file. The last layer has one unit and the activation `logistic`."""

    layers: Annotated[list[Layer], Meta(min_length=1, max_length=8)]
    dense_version: Literal[1] = 1


def encode_dense(dense: Dense) -> bytes:
    """Encode `dense` as the content of a member file."""
    return msgspec.json.encode(dense, order="deterministic") + b"\n"


class DenseMember:
    """A stack of dense layers. Raises `ArtifactError` unless `data` has `n_inputs` inputs and one output."""

    def __init__(self, data: bytes, n_inputs: int) -> None:
        try:
            dense = msgspec.json.decode(data, type=Dense)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ArtifactError(f"{_FORMAT}: {error}") from None
        widths = [n_inputs]
        blocks: list[NDArray[np.float64]] = []
        for index, layer in enumerate(dense.layers):
            units = len(layer.bias)
            if len(layer.weights) != widths[-1] or any(len(row) != units for row in layer.weights):
                raise ArtifactError(f"{_FORMAT}: layers[{index}].weights is not {widths[-1]} x {units}")
            widths.append(units)
            blocks += [np.array(layer.weights, np.float64).ravel(), np.array(layer.bias, np.float64)]
        if widths[-1] != 1 or dense.layers[-1].activation != "logistic":
            raise ArtifactError(f"{_FORMAT}: the last layer is not one logistic unit")
        self._parameters = np.concatenate(blocks)
        if not np.isfinite(self._parameters).all():
            raise ArtifactError(f"{_FORMAT}: a weight is not finite")
        self._widths = np.array(widths, np.int64)
        self._activations = np.array([_ACTIVATIONS[layer.activation] for layer in dense.layers], np.int64)

    def predict(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `Member.predict`. A NaN input gives NaN, so the preprocess must impute."""
        if inputs.shape[1] != self._widths[0]:
            raise ValueError(f"{inputs.shape[1]} inputs for a model of {self._widths[0]}")
        return _forward(inputs, self._parameters, self._widths, self._activations)


@njit(cache=True, nogil=True, fastmath=False)
def _forward(
    inputs: NDArray[np.float64],
    parameters: NDArray[np.float64],
    widths: NDArray[np.int64],
    activations: NDArray[np.int64],
) -> NDArray[np.float64]:  # pragma: no cover - compiled
    rows = inputs.shape[0]
    out = np.empty(rows, np.float64)
    width = widths[0]
    for place in range(1, widths.shape[0]):
        width = max(width, widths[place])
    x = np.empty(width, np.float64)
    y = np.empty(width, np.float64)
    for row in range(rows):
        for i in range(widths[0]):
            x[i] = inputs[row, i]
        at = 0
        for layer in range(activations.shape[0]):
            n_in = widths[layer]
            n_out = widths[layer + 1]
            bias = at + n_in * n_out
            for j in range(n_out):
                y[j] = parameters[bias + j]
            # Units are independent, so the compiler may vectorise this loop; inputs are summed in order.
            for i in range(n_in):
                value = x[i]
                start = at + i * n_out
                for j in range(n_out):
                    y[j] += value * parameters[start + j]
            kind = activations[layer]
            for j in range(n_out):
                value = y[j]
                if kind == 1:
                    # In this order a NaN stays NaN: a missing input must not become a score.
                    value = max(value, 0.0)
                elif kind == 2:
                    value = math.tanh(value)
                elif kind == 3:
                    value = sigmoid_of(value)
                x[j] = value
            at = bias + n_out
        out[row] = x[0]
    return out
