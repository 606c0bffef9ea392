"""Dense members: logistic regression and a small neural network, fitted with scikit-learn, written as `dense-json`.

The predictions of the written member are compared with those of scikit-learn before the member is returned.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from stream_scorer.ensemble.manifest import Input
from stream_scorer.ensemble.members.dense_json import Activation, Dense, DenseMember, Layer, encode_dense
from stream_scorer.errors import StreamScorerError

HIDDEN = (32, 16)
# An epoch over 120,000 rows takes about a second; the loss is flat after twelve.
EPOCHS = 12
# Inputs are clipped at these quantiles: one extreme amount must not outweigh all other inputs.
_CLIP = (0.001, 0.999)
_AGREEMENT = 1e-9


def standardise(x: NDArray[np.float64]) -> list[Input]:
    """The preprocess of each column of ``(n, k)``: impute the median, clip at rare quantiles, centre and scale."""
    out = []
    for column in x.T:
        present = column[np.isfinite(column)]
        if len(present) == 0:
            out.append(Input(impute=0.0))
            continue
        median = float(np.median(present))
        low, high = (float(value) for value in np.quantile(present, _CLIP))
        filled = np.clip(np.where(np.isnan(column), median, column), low, high)
        scale = float(filled.std())
        out.append(
            Input(impute=median, low=low, high=high, offset=float(filled.mean()), scale=scale if scale > 0.0 else 1.0)
        )
    return out


def train_logistic(x: NDArray[np.float64], y: NDArray[np.bool_], seed: int) -> bytes:
    """Logistic regression over standardised inputs ``(n, k)``."""
    from sklearn.linear_model import LogisticRegression

    with _one_thread():
        model = LogisticRegression(C=0.1, max_iter=300, random_state=seed).fit(x, y)
        layers = [Layer(model.coef_.T.tolist(), model.intercept_.tolist(), "logistic")]
        return _checked(Dense(layers), model, x)


def train_neural(x: NDArray[np.float64], y: NDArray[np.bool_], seed: int) -> bytes:
    """A network of two hidden layers (ReLU) over standardised inputs ``(n, k)``."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    with _one_thread(), warnings.catch_warnings():
        # The number of epochs is a budget; reaching it is not a failure.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = MLPClassifier(
            HIDDEN, activation="relu", alpha=1e-3, batch_size=min(256, len(x)), max_iter=EPOCHS, random_state=seed
        ).fit(x, y)
        last = len(model.coefs_) - 1
        layers = []
        for index, (weights, bias) in enumerate(zip(model.coefs_, model.intercepts_, strict=True)):
            activation: Activation = "logistic" if index == last else "relu"
            layers.append(Layer(weights.tolist(), bias.tolist(), activation))
        return _checked(Dense(layers), model, x)


def _one_thread() -> AbstractContextManager[Any]:
    """Limit BLAS to one thread, because sums and so weights depend on the number of threads."""
    from threadpoolctl import threadpool_limits

    return cast("AbstractContextManager[Any]", threadpool_limits(1))


def _checked(dense: Dense, model: Any, x: NDArray[np.float64]) -> bytes:
    data = encode_dense(dense)
    sample = np.ascontiguousarray(x[:2048])
    difference = np.abs(DenseMember(data, x.shape[1]).predict(sample) - model.predict_proba(sample)[:, 1]).max()
    if not difference <= _AGREEMENT:
        raise StreamScorerError(
            f"the dense-json form of {type(model).__name__} differs from scikit-learn's predictions by {difference:.3g}"
        )
    return data
