"""Dense layers as JSON: logistic regression (one layer) and small neural networks (a few).

Evaluated by one loop in a fixed order, not by BLAS: the order of summation in a matrix product depends on the batch
size, so the last bits would depend on the micro-batches. The loop evaluates 32 rows at once, each in the same order
(ADR 0049).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from stream_scorer.compiled import njit
from stream_scorer.ensemble.links import sigmoid_of
from stream_scorer.ensemble.members.vectors import (
    DOUBLES,
    all_doubles,
    negative_to_zero,
    plus_product,
    store_doubles,
)
from stream_scorer.errors import ArtifactError
from stream_scorer.structs import prepare

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

    own_loops = True

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
        probabilities: NDArray[np.float64] = _forward(inputs, self._parameters, self._widths, self._activations)
        return probabilities


@njit(cache=True, nogil=True, fastmath=False)
def _forward(inputs, parameters, widths, activations):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """``(n,)``: the output of each row of ``(n, widths[0])``. Values of a unit for `DOUBLES` rows are adjacent."""
    out = np.empty(inputs.shape[0], np.float64)
    width = widths[0]
    for place in range(1, widths.shape[0]):
        width = max(width, widths[place])
    x, y = np.zeros(DOUBLES * width, np.float64), np.empty(DOUBLES * width, np.float64)
    for low in range(0, inputs.shape[0], DOUBLES):
        rows = min(DOUBLES, inputs.shape[0] - low)
        for i in range(widths[0]):
            for r in range(rows):
                x[DOUBLES * i + r] = inputs[low + r, i]
        start = 0
        for layer in range(activations.shape[0]):
            n_in, n_out, kind = widths[layer], widths[layer + 1], activations[layer]
            bias = start + n_in * n_out
            for unit in range(n_out):
                # Inputs are summed in order, starting from the bias.
                total = all_doubles(parameters[bias + unit])
                for i in range(n_in):
                    total = plus_product(total, x, DOUBLES * i, parameters[start + i * n_out + unit])
                if kind == 1:
                    total = negative_to_zero(total)
                store_doubles(total, y, DOUBLES * unit)
            if kind >= 2:
                for place in range(DOUBLES * n_out):
                    y[place] = math.tanh(y[place]) if kind == 2 else sigmoid_of(y[place])
            x, y = y, x
            start = bias + n_out
        for r in range(rows):
            out[low + r] = x[r]
    return out


prepare(globals())
