"""How the watch reads `score-summaries`: the interface, where reading begins, and what an unreadable record raises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from stream_scorer.records import NOT_A_RECORD

# How far before the command of a comparison reading begins. Longer than clocks of different machines differ.
BEFORE_MS = 10 * 60_000
# Errors of a record that is not a summary, or whose counts are not four.
UNREADABLE = (*NOT_A_RECORD, ValueError, IndexError)


class SummaryRecord(Protocol):
    """A record of `score-summaries`."""

    @property
    def value(self) -> bytes | None: ...

    @property
    def timestamp_ms(self) -> int: ...


class SummaryReader(Protocol):
    """The interface of `kafka.follower.BacklogFollower`."""

    def poll(self, max_records: int, timeout_s: float) -> Sequence[SummaryRecord]:
        """Raises `ReaderLost` if another reader must read again."""
        ...

    def caught_up(self) -> bool:
        """Whether `poll` has come to the end that each partition had when the reader was opened.

        A poll that returns few records, or none, does not show that: more may wait, on any partition.
        """
        ...

    def close(self) -> None: ...
