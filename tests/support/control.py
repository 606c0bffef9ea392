"""A control log in memory."""

from __future__ import annotations

import time
from typing import NamedTuple

from stream_scorer.control.state import History

# An offset that holds no record, as a transactional writer leaves it.
MARKER = b"\0marker"


class ControlRecord(NamedTuple):
    offset: int
    value: bytes | None
    timestamp: int = 0
    key: str = ""

    @property
    def timestamp_ms(self) -> int:
        """The name of the same in records of other topics."""
        return self.timestamp


class MemoryControlLog:
    """A log that several may write to; each reads from its own place."""

    def __init__(self, records: list[bytes] | None = None) -> None:
        self.records: list[bytes] = [] if records is None else records
        self.at = 0
        self.fails: Exception | None = None

    def end(self) -> int:
        return len(self.records)

    def read(self, wait_s: float) -> list[ControlRecord]:
        if self.fails is not None:
            raise self.fails
        if self.at >= len(self.records):
            time.sleep(min(wait_s, 0.005))
        end = len(self.records)
        offsets = [offset for offset in range(self.at, end) if self.records[offset] != MARKER]
        found = [ControlRecord(offset, self.records[offset]) for offset in offsets]
        self.at = max(self.at, end)  # as that of a reader whose log was cut
        return found

    def position(self) -> int:
        return self.at

    def append(self, key: str, value: bytes) -> int:
        self.records.append(value)
        return len(self.records) - 1

    @property
    def history(self) -> History:
        """The states that the commands lead to."""
        history = History()
        for offset, value in enumerate(self.records):
            history.add(offset, value)
        return history

    def close(self) -> None:
        pass
