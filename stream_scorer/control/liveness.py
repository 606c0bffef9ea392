"""Which scorers run and which follow a command, by the topic `scorer-status`.

All times are record timestamps that the broker assigns, so the clocks of operators and scorers do not matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from stream_scorer.control.follower import HEARTBEAT_S
from stream_scorer.records import NOT_A_RECORD, ScorerStatus

# A scorer without a heartbeat for this time is silent. Longer than a busy machine or a rebalance delays heartbeats.
SILENT_MS = 15_000
# A scorer that is silent for this time no longer counts: it was killed, and its instance does not return.
FORGOTTEN_MS = 600_000
# Longest wait for the next heartbeat of any scorer; scorers of older versions write one every 5 s.
HEARTBEAT_WAIT_S = HEARTBEAT_S + 4.0


@dataclass(frozen=True, slots=True)
class Seen:
    """The newest status of a scorer, and the broker's time of its record (ms)."""

    status: ScorerStatus
    at: int

    def silent_ms(self, now: int) -> int:
        """Time without a heartbeat at the broker's time `now`; 0 if the scorer counts as running."""
        return now - self.at if now - self.at > SILENT_MS else 0

    def settled(self, offset: int) -> bool:
        """Whether the scorer has read the command at `offset` and finished to load, successfully or not."""
        return self.status.wanted_offset >= offset and not self.status.loading

    def missing(self, offset: int, now: int) -> str:
        """What is missing until the scorer has applied the command at `offset`; empty if nothing is."""
        status, silent = self.status, self.silent_ms(now)
        if self.settled(offset):
            return status.problem
        if silent:
            return f"silent for {silent // 1_000} s"
        if status.wanted_offset < offset:
            return status.problem or "has not read the command yet"
        return f"still loads {', '.join(status.loading)}"


class Scorers:
    """The statuses of the scorers of the ensemble `name` (None: of all), from the records of the topic.

    Attributes:
        now: the newest time of the broker, ms. count: number of records.
    """

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._seen: dict[str, Seen] = {}
        self.now = self.count = 0

    def add(self, key: str, value: bytes | None, timestamp: int) -> None:
        """Add the next record. A record without a value means that the scorer has stopped."""
        self.now = max(self.now, timestamp)
        self.count += 1
        self._seen.pop(key, None)
        if value is None:
            return
        try:
            status = msgspec.json.decode(value, type=ScorerStatus)
        except NOT_A_RECORD:
            return
        if self._name in (None, status.ensemble):
            self._seen[key] = Seen(status, timestamp)

    def known(self) -> list[Seen]:
        """The scorers that have not stopped, by instance, except those that were silent for `FORGOTTEN_MS`."""
        recent = [seen for seen in self._seen.values() if self.now - seen.at < FORGOTTEN_MS]
        return sorted(recent, key=lambda seen: seen.status.instance)
