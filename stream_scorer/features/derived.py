"""The functions of derived columns: a closed list of vectorized functions of fields and view features."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stream_scorer.arrays import Floats
from stream_scorer.spec.model import CheckedSpec

_HOUR_MS = 3_600_000
_DAY_MS = 86_400_000


def _hour(time: Floats) -> Floats:
    return np.floor(np.mod(time, _DAY_MS) / _HOUR_MS)


def _weekday(time: Floats) -> Floats:
    # 1970-01-01 was a Thursday; Monday is 0.
    weekday: Floats = np.mod(np.floor(time / _DAY_MS) + 3, 7)
    return weekday


def _ratio(a: Floats, b: Floats) -> Floats:
    out = np.full(len(a), np.nan)
    np.divide(a, b, out=out, where=b != 0)
    return out


FUNCTIONS: dict[str, Callable[..., Floats]] = {
    "value": lambda a: a,
    "log1p": lambda a: np.log1p(np.maximum(a, 0)),
    "ratio": _ratio,
    "difference": lambda a, b: a - b,
    "code": lambda a: a,
    "hour": _hour,
    "weekday": _weekday,
    "is_weekend": lambda a: np.where(np.isnan(a), np.nan, _weekday(a) >= 5),
    # Hours 0 to 6 UTC: night as the Fraud Detection Handbook defines it.
    "is_night": lambda a: np.where(np.isnan(a), np.nan, _hour(a) <= 6),
    "present": lambda a: np.where(np.isnan(a), 0.0, 1.0),
}


def without_views(spec: CheckedSpec, features: Floats) -> Floats:
    """A copy of `features` ``(n, k)``, in the order of `spec.features`, as a scorer has them without its rows.

    Features of views are missing, and so are derived columns that read them.
    """
    missing, out = {feature.name for feature in spec.view_features} - set(spec.spec.transaction.fields), features.copy()
    column = {name: index for index, name in enumerate(spec.features)}
    out[:, [column[feature.name] for feature in spec.view_features]] = np.nan
    for derived in spec.spec.derived:
        if missing.intersection(derived.of):
            out[:, column[derived.name]] = np.nan
            missing |= {derived.name} - set(spec.spec.transaction.fields)
    return out
