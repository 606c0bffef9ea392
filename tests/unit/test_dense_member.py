"""A dense member gives each row what a plain loop over its layers gives, bit for bit, whatever the other rows are."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stream_scorer.ensemble.links import sigmoid_of
from stream_scorer.ensemble.members.dense_json import Dense, DenseMember, Layer, encode_dense
from stream_scorer.ensemble.members.vectors import DOUBLES

ACTIVATIONS: dict[str, Any] = {
    "identity": lambda x: x,
    "relu": lambda x: max(x, 0.0),
    "tanh": math.tanh,
    "logistic": sigmoid_of.py_func,
}


def dense(random: np.random.Generator, widths: list[int], activations: list[Any]) -> Dense:
    return Dense(
        [
            Layer(random.normal(size=(n_in, n_out)).tolist(), random.normal(size=n_out).tolist(), activation)
            for (n_in, n_out), activation in zip(pairwise(widths), activations, strict=True)
        ]
    )


def plain(network: Dense, row: NDArray[np.float64]) -> float:
    x = row.tolist()
    for layer in network.layers:
        y = list(layer.bias)
        for value, weights in zip(x, layer.weights, strict=True):
            y = [total + value * weight for total, weight in zip(y, weights, strict=True)]
        x = [ACTIVATIONS[layer.activation](total) for total in y]
    return float(x[0])


@pytest.mark.kernels
@pytest.mark.parametrize(
    ("widths", "activations"),
    [
        ([3, 1], ["logistic"]),
        ([5, 7, 1], ["relu", "logistic"]),
        ([4, 9, 2, 1], ["tanh", "identity", "logistic"]),
        ([2, 3, 1], ["logistic", "logistic"]),
    ],
)
def test_each_row_is_summed_in_order(widths: list[int], activations: list[Any]) -> None:
    random = np.random.default_rng(1)
    network = dense(random, widths, activations)
    member = DenseMember(encode_dense(network), widths[0])
    x = random.normal(size=(DOUBLES + 3, widths[0]))
    x[4], x[5, 0], x[6, 0], x[7, 0] = 0.0, np.nan, 1e300, -1e300
    expected = np.array([plain(network, row) for row in x])
    assert np.isnan(expected[5])
    for n in (1, DOUBLES - 1, DOUBLES, DOUBLES + 3):
        assert np.array_equal(member.predict(x[:n].copy()), expected[:n], equal_nan=True)
    assert np.array_equal(member.predict(x[3:].copy()), expected[3:], equal_nan=True)
