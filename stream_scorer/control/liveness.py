"""Which scorers run and which follow a command, by the topic `scorer-status`.

All times are record timestamps that the broker assigns, so the clocks of operators and scorers do not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from stream_scorer.clock import Deadline
from stream_scorer.control.follower import HEARTBEAT_S
from stream_scorer.errors import BrokerUnavailable, StreamScorerError
from stream_scorer.record_log import RecordLog, read_to_end
from stream_scorer.records import NOT_A_RECORD, ScorerStatus

# A scorer without a heartbeat for this time is silent. Longer than a busy machine or a rebalance delays heartbeats.
SILENT_MS = 15_000
# A scorer that is silent for this time no longer counts: it was killed, and its instance does not return.
FORGOTTEN_MS = 600_000
# Longest wait for the next heartbeat of any scorer; scorers of older versions write one every 5 s.
HEARTBEAT_WAIT_S = HEARTBEAT_S + 4.0
# `StatusReader` reads on this long after its last read: a status changes at heartbeats.
READ_EVERY_S = 3.0
_READ_WAIT_S = 0.2
# Longest time of one read, for statuses that the broker has. The caller has other things to do.
_READ_DEADLINE_S = 2.0


@dataclass(frozen=True, slots=True)
class Seen:
    """The newest status of a scorer, and the broker's time of its record (ms)."""

    status: ScorerStatus
    at: int

    def silent_ms(self, now: int) -> int:
        """Time without a heartbeat at the broker's time `now`; 0 if the scorer counts as running."""
        return now - self.at if now - self.at > SILENT_MS else 0

    def serves(self, offset: int, versions: Collection[str]) -> bool:
        """Whether the command at `offset`, or a later one, is in force at the scorer, with all of `versions`."""
        return self.status.control_offset >= offset and set(versions) <= set(self.status.in_play)

    def settled(self, offset: int) -> bool:
        """Whether the scorer has read the command at `offset` and finished to load, successfully or not."""
        return self.status.wanted_offset >= offset and not self.status.loading

    def missing(self, offset: int, now: int, versions: Collection[str] = ()) -> str:
        """What is missing until the scorer has applied the command at `offset`; empty if nothing is.

        `versions` are those that the command put in play. Problems of other versions do not count.
        """
        status, silent = self.status, self.silent_ms(now)
        if self.serves(offset, versions):
            return ""
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

    def running(self) -> list[Seen]:
        """Those of `known` that are not silent."""
        return [seen for seen in self.known() if not seen.silent_ms(self.now)]


class StatusRecord(Protocol):
    """A record of `scorer-status`."""

    @property
    def key(self) -> str: ...

    @property
    def value(self) -> bytes | None: ...

    @property
    def timestamp(self) -> int: ...


class StatusLog(Protocol):
    """The interface of `kafka.control_log.ControlLog`."""

    def end(self) -> int: ...

    def read(self, wait_s: float) -> Sequence[StatusRecord]: ...

    def position(self) -> int: ...

    def close(self) -> None: ...


class RunningScorers:
    """Finds the scorers that run, for a command: reads `scorer-status`, from where `log` stands, to its end.

    Attributes:
        scorers: those of the ensemble `name` (None: of all), as far as the topic has been read.
    """

    def __init__(self, log: RecordLog, name: str | None) -> None:
        self._log = log
        self.scorers = Scorers(name)

    def read(self) -> None:
        """Read to the end of the topic, or wait a moment for the next record. Raises like `read_to_end`."""
        for record in self._log.read(_READ_WAIT_S):
            self._add(record)
        read_to_end(self._log, self._add, "statuses")

    def find(self) -> list[Seen]:
        """The scorers that run. Waits for the next heartbeat of any scorer, which has the broker's time."""
        self.read()
        before, deadline = self.scorers.count, Deadline(HEARTBEAT_WAIT_S)
        while self.scorers.known() and self.scorers.count == before and deadline.remaining_s:
            self.read()
        if self.scorers.count == before:
            return []
        return self.scorers.running()

    def _add(self, record: Any) -> None:
        self.scorers.add(record.key, record.value, record.timestamp)


class StatusReader:
    """Reads `scorer-status` while it is asked which scorers lack a command, at most every `READ_EVERY_S`.

    `open_log` opens the topic at its start. It stays open between reads, also after one that did not come to the end.
    """

    def __init__(self, open_log: Callable[[], StatusLog], monotonic: Callable[[], float]) -> None:
        self._open_log, self._monotonic = open_log, monotonic
        self._log: StatusLog | None = None
        self._scorers = Scorers(None)
        self._due_s = float("-inf")
        # Why the last read did not come to the end of the topic; empty if it did.
        self._problem = ""

    def lacking(self, ensemble: str, offset: int, versions: Collection[str]) -> list[str]:
        """The running scorers of `ensemble` at which the command at `offset` is not in force, or lacks a version.

        Raises:
            BrokerUnavailable: the broker does not answer, or not all statuses have come yet.
        """
        if self._monotonic() >= self._due_s:
            self._problem = self._read()
            self._due_s = self._monotonic() + READ_EVERY_S
        if self._problem:
            raise BrokerUnavailable(self._problem)
        running = [seen for seen in self._scorers.running() if seen.status.ensemble == ensemble]
        return [seen.status.instance for seen in running if not seen.serves(offset, versions)]

    def _read(self) -> str:
        """Read on to the end, and return what prevented that. An error closes the log."""
        try:
            if self._log is None:
                self._log, self._scorers = self._open_log(), Scorers(None)
            end, deadline = self._log.end(), Deadline(_READ_DEADLINE_S)
            if self._log.position() > end:
                raise BrokerUnavailable("the topic of statuses ends before what was read: it was created again")
            while self._log.position() < end:
                if not deadline.remaining_s:
                    return "the statuses of scorers do not come"
                for record in self._log.read(_READ_WAIT_S):
                    self._scorers.add(record.key, record.value, record.timestamp)
        except StreamScorerError as error:
            self.close()
            return error.message
        return ""

    def close(self) -> None:
        """Close the log. The next read begins at its start."""
        if self._log is not None:
            self._log.close()
        self._log = None
