"""Labels of transactions as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_scorer.arrays import Floats, Ints
from stream_scorer.simulate.transactions import Strings

SOURCES = ("analyst", "random_review", "chargeback")
ANALYST, RANDOM_REVIEW, CHARGEBACK = range(3)


@dataclass(frozen=True)
class Labels:
    """Labels in order of `labelled_at`; every column has shape ``(n,)``.

    Attributes:
        event_id, customer_id, terminal_id: str, of the transaction.
        device_id, network_id: str or None, of the transaction.
        event_time: int64, of the transaction. labelled_at: int64, time of the label. Epoch milliseconds.
        label: str, ``fraud`` or ``genuine``. source: str, one of `SOURCES`.
        review_probability: float64, the probability with which the transaction was chosen for review; NaN if none.
    """

    event_id: Strings
    event_time: Ints
    label: Strings
    labelled_at: Ints
    source: Strings
    review_probability: Floats
    customer_id: Strings
    terminal_id: Strings
    device_id: Strings
    network_id: Strings

    def __len__(self) -> int:
        return len(self.event_time)

    def take(self, rows: NDArray[Any]) -> Labels:
        """The rows a mask or an index array picks, copied."""
        return Labels(*(getattr(self, field.name)[rows] for field in fields(self)))

    @staticmethod
    def concat(parts: Sequence[Labels]) -> Labels:
        """The rows of `parts`, one after the other."""
        return Labels(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Labels)))

    @staticmethod
    def none() -> Labels:
        """Empty columns."""
        text, whole = np.empty(0, dtype=object), np.empty(0, dtype=np.int64)
        return Labels(text, whole, text, whole, text, np.empty(0), text, text, text, text)
