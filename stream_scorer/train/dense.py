"""Dense members: logistic regression and a small neural network, fitted with scikit-learn, written as `dense-json`.

The predictions of the written member are compared with those of scikit-learn before the member is returned.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_scorer.ensemble.manifest import Input
from stream_scorer.ensemble.members.dense_json import Activation, Dense, DenseMember, Layer, encode_dense
from stream_scorer.errors import StreamScorerError

HIDDEN = (32, 16)
# An epoch over 120,000 rows takes about a second; the loss is flat after twelve.
EPOCHS = 12
# Hyperparameters and their defaults, by the names of scikit-learn except for the first three of the network.
LOGISTIC: dict[str, Any] = {"C": 0.1, "max_iter": 300}
NEURAL: dict[str, Any] = {"hidden_layers": list(HIDDEN), "epochs": EPOCHS, "batch_size": 256, "alpha": 1e-3}
# Inputs are clipped at these quantiles: one extreme amount must not outweigh all other inputs.
_CLIP = (0.001, 0.999)
_AGREEMENT = 1e-9

_log = logging.getLogger(__name__)


def standardise(x: NDArray[np.float64]) -> list[Input]:
    """The preprocess of each column of ``(n, k)``: impute the median, clip at rare quantiles, centre and scale.

    A column without any value is 0 for every row.
    """
    out = []
    for column in x.T:
        present = column[np.isfinite(column)]
        if len(present) == 0:
            # A value that first occurs in live traffic must not reach weights that no row has fitted.
            out.append(Input(impute=0.0, low=0.0, high=0.0))
            continue
        median = float(np.median(present))
        low, high = (float(value) for value in np.quantile(present, _CLIP))
        filled = np.clip(np.where(np.isnan(column), median, column), low, high)
        scale = float(filled.std())
        out.append(
            Input(impute=median, low=low, high=high, offset=float(filled.mean()), scale=scale if scale > 0.0 else 1.0)
        )
    return out


def warn_without_values(names: Sequence[str], x: NDArray[np.float64], rows: NDArray[np.intp]) -> None:
    """Warn about the columns `names` of ``(n, k)`` that have no value in any of `rows`: members cannot use them."""
    empty = [name for name, column in zip(names, x.T, strict=True) if not np.isfinite(column[rows]).any()]
    if empty:
        _log.warning(
            "no training row has a value of %s: members ignore it, also when live transactions have one. Does the "
            "history lack a column?",
            ", ".join(empty),
        )


def train_logistic(
    x: NDArray[np.float64],
    y: NDArray[np.bool_],
    seed: int,
    parameters: Mapping[str, Any] = LOGISTIC,
    weight: NDArray[np.float64] | None = None,
) -> bytes:
    """Logistic regression over standardised inputs ``(n, k)``, labels ``(n,)`` and row weights ``(n,)``."""
    from sklearn.linear_model import LogisticRegression

    with one_thread():
        model = LogisticRegression(**parameters, random_state=seed).fit(x, y, sample_weight=weight)
        layers = [Layer(model.coef_.T.tolist(), model.intercept_.tolist(), "logistic")]
        return _checked(Dense(layers), model, x)


def train_neural(
    x: NDArray[np.float64],
    y: NDArray[np.bool_],
    seed: int,
    parameters: Mapping[str, Any] = NEURAL,
    weight: NDArray[np.float64] | None = None,
) -> bytes:
    """A network of hidden layers (ReLU) over standardised inputs ``(n, k)``."""
    from sklearn.neural_network import MLPClassifier

    rest = dict(parameters)
    epochs, batch = int(rest.pop("epochs")), int(rest.pop("batch_size"))
    hidden = tuple(rest.pop("hidden_layers"))
    with one_thread():
        model = MLPClassifier(
            hidden, activation="relu", batch_size=min(batch, len(x)), max_iter=epochs, random_state=seed, **rest
        ).fit(x, y, sample_weight=weight)
        last = len(model.coefs_) - 1
        layers = []
        for index, (weights, bias) in enumerate(zip(model.coefs_, model.intercepts_, strict=True)):
            activation: Activation = "logistic" if index == last else "relu"
            layers.append(Layer(weights.tolist(), bias.tolist(), activation))
        return _checked(Dense(layers), model, x)


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit BLAS and OpenMP of the process to one thread, because sums and so weights depend on the number of threads.

    Also ignores that networks reach their number of epochs: it is a budget. Both apply to the whole process: fits that
    run in parallel share one outer block, so that none of them ends the limits of another.
    """
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def _checked(dense: Dense, model: Any, x: NDArray[np.float64]) -> bytes:
    data = encode_dense(dense)
    sample = np.ascontiguousarray(x[:2048])
    difference = np.abs(DenseMember(data, x.shape[1]).predict(sample) - model.predict_proba(sample)[:, 1]).max()
    if not difference <= _AGREEMENT:
        raise StreamScorerError(
            f"the dense-json form of {type(model).__name__} differs from scikit-learn's predictions by {difference:.3g}"
        )
    return data
