"""The format of a stored row: the only definition, shared by Python, numba and Lua.

A row is a sequence of entries in log order. An entry has four little-endian int64 fields: event time (ms), value, hash
of the event id, and kind. The kind decides how the other fields are read:

==================== ===============================================================================================
kind                 entry
==================== ===============================================================================================
``TRANSACTION`` (0)  A transaction. The value is its amount, or another field for features that count distinct values.
above 0              A label; the kind is the time at which it was given (ms). The value is the change of the fraud
                     count of the labelled transaction: +1 when it becomes fraud, -1 when fraud becomes genuine. The
                     fraud count of a window is therefore a plain sum, in whatever order labels arrive.
``HEADER`` (-1)      The first entry of a compacted row. The value is the number of panes plus, ``LABELS_SHIFT`` bits
                     higher, the number of labels kept; the hash is the number of entries that were ever compacted.
                     Its time is ``NEVER``, so that no reader counts it and no trimming removes it.
``PANE`` (-2) or     A pane: the sum of old entries (ADR 0011). The time is the start of the pane (ms), the value the
below                sum of values, the hash the number of entries. The kind is ``PANE - code - (latest time - start) *
                     PANE_CODES``, where the code is twice the level of the pane, plus 1 for a pane of labels.
==================== ===============================================================================================

The offsets applied to the rows are stored beside them, per source partition, as three little-endian int64 (`APPLIED`):
next offset, event-time watermark (ms), and target offset of a rebuild.

Python and numba import the constants. Lua scripts receive them from `stream_scorer.state.scripts`.
Kernels that contain them are compiled again after a change (ADR 0055).

`LAYOUT_VERSION` is part of the namespace of the keys and not of the row, so an append needs no header check. Increase
it with every change of this format: features are then rebuilt in another namespace, as for another spec
(docs/operations.md).
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from stream_scorer.arrays import Ints

LAYOUT_VERSION = 2

FIELD_BYTES = 8
FIELDS = 4
ENTRY_BYTES = FIELDS * FIELD_BYTES
# The columns of an entry.
TIME, VALUE, HASH, KIND = range(FIELDS)
# numpy's name and Lua's pattern of one field.
FIELD_DTYPE = "<i8"
FIELD_PATTERN = "<i8"
ENTRY_PATTERN = FIELD_PATTERN + "i8" * (FIELDS - 1)

TRANSACTION, HEADER, PANE = 0, -1, -2
# Later than any event time.
NEVER = 1 << 62
# A header's value: panes below this bit, kept labels above it.
LABELS_SHIFT = 32
# A pane's code takes the lowest bits of ``PANE - kind``: 128 levels, transactions and labels.
PANE_CODE_BITS = 8
PANE_CODES = 1 << PANE_CODE_BITS

# Next offset, watermark, target.
APPLIED = struct.Struct("<qqq")
APPLIED_PATTERN = "<i8i8i8"


def pack(event_time: Ints, value: Ints, id_hash: Ints) -> Ints:
    """(n, 4) int64 entries of transactions."""
    entries = np.zeros((len(event_time), FIELDS), dtype=FIELD_DTYPE)
    entries[:, TIME] = event_time
    entries[:, VALUE] = value
    entries[:, HASH] = id_hash
    entries[:, KIND] = TRANSACTION
    return entries


def unpack(row: bytes) -> Ints:
    """(n, 4) int64 entries of a stored row, read-only."""
    return np.frombuffer(row, dtype=FIELD_DTYPE).reshape(-1, FIELDS)


def to_bytes(entries: Ints) -> bytes:
    """The stored form of `entries` (n, 4)."""
    return np.ascontiguousarray(entries, dtype=FIELD_DTYPE).tobytes()


def latest(entries: Ints) -> int:
    """The newest event time (ms) in the `entries` (n, 4) of a row, panes included; -1 for none."""
    kind = entries[:, KIND]
    # Only panes have a kind of `PANE` or below; a header has no event time.
    times = (entries[:, TIME] + np.where(kind <= PANE, pane_delay(kind), 0))[kind != HEADER]
    return int(times.max(initial=-1))


def pane_kind(level: int, of_labels: int, delay_ms: int) -> int:
    """The kind of a pane of transactions (0) or labels (1), whose latest entry is `delay_ms` after its start."""
    return PANE - (2 * level + of_labels) - (delay_ms << PANE_CODE_BITS)


def pane_level(kind: Any) -> Any:
    """The level of a pane; of one kind or an array."""
    return ((PANE - kind) & (PANE_CODES - 1)) >> 1


def pane_is_of_labels(kind: Any) -> Any:
    """Whether a pane counts labels, not transactions; of one kind or an array."""
    return (PANE - kind) & 1 == 1


def pane_delay(kind: Any) -> Any:
    """How long after the start of a pane its latest entry is (ms); of one kind or an array."""
    return (PANE - kind) >> PANE_CODE_BITS


def lua_constants() -> dict[str, int | str]:
    """The constants that a Lua script may use, by name. Columns count from 1, as in Lua."""
    return {
        "FIELD_BYTES": FIELD_BYTES,
        "ENTRY_BYTES": ENTRY_BYTES,
        "TIME_START": TIME * FIELD_BYTES,
        "FIELD_PATTERN": FIELD_PATTERN,
        "ENTRY_PATTERN": ENTRY_PATTERN,
        "HEADER": HEADER,
        "PANE": PANE,
        "PANE_CODES": PANE_CODES,
        "APPLIED_PATTERN": APPLIED_PATTERN,
    }
