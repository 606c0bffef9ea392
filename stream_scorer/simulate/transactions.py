"""Transactions as columns, and fixed-width ids made in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_scorer.arrays import Int8s, Ints

Strings = NDArray[np.object_]


@dataclass(frozen=True)
class Transactions:
    """Card transactions in order of event time, ties in the order they were generated.

    Every column has shape ``(n,)``; strings are `object` arrays of `str`, with None where a field is absent.

    Attributes:
        event_id: unique, 19 characters.
        event_time: int64, epoch milliseconds, not decreasing.
        customer_id, terminal_id: str.
        device_id, network_id: str for channel ``online``, else None.
        card_number: str, 16 digits with a wrong check digit, so it is no real card number. Sensitive.
        amount: int64 minor units.
        currency, channel: str.
        fraud_kind: int8, 0 for genuine, else an index of `FRAUD_KINDS`. The hidden truth: it is never encoded.
    """

    event_id: Strings
    event_time: Ints
    customer_id: Strings
    terminal_id: Strings
    device_id: Strings
    network_id: Strings
    card_number: Strings
    amount: Ints
    currency: Strings
    channel: Strings
    fraud_kind: Int8s

    def __len__(self) -> int:
        return len(self.event_time)

    def slice(self, start: int, stop: int) -> Transactions:
        """Rows ``[start, stop)``, sharing memory."""
        return Transactions(*(getattr(self, field.name)[start:stop] for field in fields(self)))

    def take(self, rows: NDArray[Any]) -> Transactions:
        """The rows a mask or an index array picks, copied."""
        return Transactions(*(getattr(self, field.name)[rows] for field in fields(self)))

    @staticmethod
    def concat(parts: Sequence[Transactions]) -> Transactions:
        """The rows of `parts` (at least one), one after the other."""
        return Transactions(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Transactions)))


def fixed_ids(prefix: str, numbers: NDArray[np.integer[Any]], width: int) -> Strings:
    """`prefix` and each number in `width` decimal digits, zero-padded, as an object array of `str`.

    Raises ValueError if a number is negative or does not fit: an id must stay unique.
    """
    rest = np.asarray(numbers, dtype=np.int64).copy()
    if len(rest) and (rest.min() < 0 or rest.max() >= 10**width):
        raise ValueError(f"an id of {width} digits cannot hold {rest.max()}")
    start = len(prefix)
    cells = np.empty((len(rest), start + width), dtype=np.uint32)
    cells[:, :start] = [ord(letter) for letter in prefix]
    for column in range(start + width - 1, start - 1, -1):
        rest, digit = np.divmod(rest, 10)
        cells[:, column] = digit + ord("0")
    # numpy stores fixed-width text as UCS-4, so the array cells are the characters.
    return cells.view(f"<U{start + width}")[:, 0].astype(object)
