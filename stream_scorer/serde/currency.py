"""Amounts of several currencies as amounts of the reference currency of the spec (ADR 0028)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_scorer.spec.model import TransactionShape


class Currencies:
    """The conversion that a spec declares. Without rates, all amounts are of one currency and stay as they are."""

    def __init__(self, shape: TransactionShape) -> None:
        self._field = shape.currency
        values = shape.fields[shape.currency].values or [] if shape.currency else []
        self._rates = np.array([shape.rates[value] for value in values]) if shape.rates else None

    def convert(self, value: NDArray[np.int64], columns: dict[str, NDArray[np.float64]]) -> NDArray[np.int64]:
        """`value` (n,) in minor units of the reference currency, rounded half to even.

        `columns` holds the codes of the currency by the name of its field.
        """
        if self._rates is None or self._field is None:
            return value
        rates = self._rates[columns[self._field].astype(np.int64)]
        converted: NDArray[np.int64] = np.rint(value * rates).astype(np.int64)
        return converted
