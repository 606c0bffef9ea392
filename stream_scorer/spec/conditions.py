"""Compiles conditions of the spec for columns: for the `where` of views and of policy segments."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from stream_scorer.spec.model import Condition, Field

# Per field: name, bounds, and the codes of allowed categories.
Conditions = tuple[tuple[str, float, float, tuple[float, ...]], ...]


def compile_conditions(fields: Mapping[str, Field], where: Mapping[str, Condition]) -> Conditions:
    """`where` compiled for numeric columns, by field name."""
    out = []
    for name, condition in sorted(where.items()):
        low = -np.inf if condition.min is None else float(condition.min)
        high = np.inf if condition.max is None else float(condition.max)
        declared = fields[name].values
        values: list[str | bool] = [False, True] if declared is None else [*declared]
        codes = tuple(sorted(float(values.index(value)) for value in condition.values or ()))
        out.append((name, low, high, codes))
    return tuple(out)


def unmet(conditions: Conditions, columns: Mapping[str, NDArray[np.float64]], rows: int) -> NDArray[np.bool_]:
    """``(rows,) bool``: rows that violate at least one condition. A missing value (NaN) violates every condition."""
    out = np.zeros(rows, np.bool_)
    for name, low, high, codes in conditions:
        column = columns[name]
        out |= ~(np.isin(column, codes) if codes else (column >= low) & (column <= high))
    return out
