"""Fits the steps between members and score: calibrators, weights and stacking."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_scorer.ensemble.links import EPSILON
from stream_scorer.ensemble.manifest import Beta, Isotonic, Platt, Stacking

# Every member gets some weight: a member without weight costs as much to run, but can neither be monitored nor replace
# a missing member.
MIN_WEIGHT = 0.05
# Penalty for unequal weights, in units of summed log loss: 140 frauds separate five correlated members only roughly.
_RIDGE = 2.0
_SLOPE_BOUNDS = (1e-3, 20.0)


def fit_platt(logit: NDArray[np.float64], label: NDArray[np.bool_]) -> Platt:
    """The slope (above 0) and intercept that minimise log loss over clipped logits ``(n,)`` and labels ``(n,)``."""
    from scipy.optimize import minimize

    y = label.astype(np.float64)

    def loss(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z = theta[0] * logit + theta[1]
        residual = _probability(z) - y
        return _log_loss(z, y), np.array([residual @ logit, residual.sum()])

    result = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[_SLOPE_BOUNDS, (None, None)])
    return Platt(slope=float(result.x[0]), intercept=float(result.x[1]))


def fit_beta(probability: NDArray[np.float64], label: NDArray[np.bool_]) -> Beta:
    """The a and b (not below 0) and c that minimise log loss over probabilities ``(n,)`` and labels ``(n,)``."""
    from scipy.optimize import minimize

    y, p = label.astype(np.float64), np.clip(probability, EPSILON, 1.0 - EPSILON)
    terms = np.column_stack([np.log(p), -np.log1p(-p), np.ones(len(p))])

    def loss(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z = terms @ theta
        return _log_loss(z, y), (_probability(z) - y) @ terms

    bounds = [(0.0, _SLOPE_BOUNDS[1])] * 2 + [(None, None)]
    result = minimize(loss, np.array([1.0, 1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=bounds)
    return Beta(*(float(value) for value in result.x))


def fit_isotonic(probability: NDArray[np.float64], label: NDArray[np.bool_]) -> Isotonic:
    """The ascending steps closest to labels ``(n,)`` over probabilities ``(n,)``, joined by lines."""
    from sklearn.isotonic import IsotonicRegression

    result = IsotonicRegression(y_min=0.0, y_max=1.0).fit(probability, label.astype(np.float64))
    return Isotonic(result.X_thresholds_.tolist(), result.y_thresholds_.tolist())


def fit_weights(logits: NDArray[np.float64], label: NDArray[np.bool_], max_weight: float) -> NDArray[np.float64]:
    """Weights ``(m,)`` that sum to 1, from calibrated logits ``(n, m)`` and labels ``(n,)``.

    They minimise the log loss of ``sigmoid(scale * weighted mean + intercept)``. Scale and intercept belong to the
    final calibrator; fitting them too keeps the weights from compensating for them. Each weight is between `MIN_WEIGHT`
    and `max_weight`, if m allows. With a `max_weight` of at most one minus the quorum, any one member may be missing.
    """
    from scipy.optimize import LinearConstraint, minimize

    y = label.astype(np.float64)
    members = logits.shape[1]
    min_weight, max_weight = min(MIN_WEIGHT, 1.0 / members), max(max_weight, 1.0 / members)

    # Over v = scale * weights, so that only the shares are constrained; divided by n for numerical scaling.
    def loss(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        v = theta[:members]
        z = logits @ v + theta[members]
        residual = _probability(z) - y
        spread = v - v.mean()
        gradient = np.append(residual @ logits + 2 * _RIDGE * spread, residual.sum())
        return (_log_loss(z, y) + _RIDGE * float(spread @ spread)) / len(y), gradient / len(y)

    shares = np.vstack([np.eye(members) - min_weight, max_weight - np.eye(members)])
    result = minimize(
        loss,
        np.append(np.full(members, 1.0 / members), 0.0),
        jac=True,
        method="SLSQP",
        bounds=[(1e-6, None)] * members + [(None, None)],
        constraints=[LinearConstraint(np.hstack([shares, np.zeros((2 * members, 1))]), 0.0, np.inf)],
        options={"maxiter": 500, "ftol": 1e-12},
    )
    v = result.x[:members]
    return np.asarray(v / v.sum(), np.float64)


def fit_stacking(logits: NDArray[np.float64], label: NDArray[np.bool_]) -> Stacking:
    """Logistic regression of labels ``(n,)`` on calibrated logits ``(n, m)``, shrunk towards their mean by `_RIDGE`.

    No coefficient is below 0: a higher score of a member must not lower the final score.
    """
    from scipy.optimize import minimize

    y, members = label.astype(np.float64), logits.shape[1]

    def loss(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z = logits @ theta[:members] + theta[members]
        residual, spread = _probability(z) - y, theta[:members] - 1.0 / members
        gradient = np.append(residual @ logits + 2 * _RIDGE * spread, residual.sum())
        return (_log_loss(z, y) + _RIDGE * float(spread @ spread)) / len(y), gradient / len(y)

    start = np.append(np.full(members, 1.0 / members), 0.0)
    bounds = [(0.0, None)] * members + [(None, None)]
    result = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500, "ftol": 1e-12})
    return Stacking(float(result.x[members]), [float(value) for value in result.x[:members]])


def _probability(z: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * z)), np.float64)


def _log_loss(z: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Summed log loss of log-odds `z`, without overflow."""
    return float(np.sum(np.logaddexp(0.0, z) - y * z))
