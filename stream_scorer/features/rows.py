"""The layout of an entity's row: 32-byte little-endian entries in log order.

An entry is four int64: event time (ms), value, hash of the event id, and kind. Kind 0 is a transaction and its value
is the amount. Any other kind is a label and holds when the label was given (ms); its value is then the change of the
transaction's fraud count: +1 when it becomes fraud, -1 when fraud becomes genuine. So the fraud count of a window is a
plain sum, whatever the order in which labels of different transactions arrive.

A row that has grown long begins with a header (kind -1; as value how many panes it has and, 32 bits higher, how many
labels it kept when folded; as hash how many entries were ever folded), then panes: start of the pane (ms), sum of
values, number of entries, and kind ``-2 - (2 * level + of labels) - 256 * (latest time - start)``. ADR 0011 says what
counts.

The layout's version stands in the key (see `row_key`), not in the row: an append needs no header check, and two
versions can live side by side during an upgrade.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LAYOUT_VERSION = 2
ENTRY_BYTES = 32
TIME, VALUE, HASH, KIND = 0, 1, 2, 3
# A header's time: later than any event, so that no reader counts it and no trimming takes it.
NEVER = 1 << 62


def pack(event_time: NDArray[np.int64], value: NDArray[np.int64], id_hash: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n, 4) int64 entries of transactions."""
    entries = np.zeros((len(event_time), 4), dtype="<i8")
    entries[:, TIME] = event_time
    entries[:, VALUE] = value
    entries[:, HASH] = id_hash
    return entries


def latest(entries: NDArray[np.int64]) -> int:
    """The newest event time (ms) in the `entries` (k, 4) of a row, panes included; -1 for none."""
    kind = entries[:, KIND]
    # A header holds no time.
    times = (entries[:, TIME] + np.where(kind < -1, (-2 - kind) // 256, 0))[kind != -1]
    return int(times.max(initial=-1))


def unpack(row: bytes) -> NDArray[np.int64]:
    """(n, 4) int64 entries of a stored row."""
    return np.frombuffer(row, dtype="<i8").reshape(-1, 4)
