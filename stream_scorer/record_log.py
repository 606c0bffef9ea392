"""Logs of one partition that are read whole, such as `control` and `incidents`: the interface and how to read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from stream_scorer.errors import BrokerUnavailable, ReaderLost

READ_WAIT_S = 0.2
# Waits in a row without progress, 40 s in all: a restarting broker answers again within half a minute.
MAX_IDLE = 200


class LogRecord(Protocol):
    """A record of the log."""

    @property
    def offset(self) -> int: ...

    @property
    def value(self) -> bytes | None: ...


class RecordLog(Protocol):
    """The interface of `kafka.control_log.ControlLog`."""

    def end(self) -> int: ...

    def read(self, wait_s: float) -> Sequence[LogRecord]: ...

    def position(self) -> int:
        """The offset up to which `read` has passed the log, including offsets without a record."""
        ...

    def append(self, key: str, value: bytes) -> int: ...

    def close(self) -> None: ...


def read_to_end(log: RecordLog, add: Callable[[LogRecord], object], topic: str) -> None:
    """Pass the records of `log` that are not read yet to `add`, up to its present end. `topic` is for messages.

    Raises:
        BrokerUnavailable: the broker does not answer, or nothing more comes before the end.
        ReaderLost: the log ends before what was read. The object reads nothing any more.
    """
    end = log.end()
    if end < log.position():
        _read(log, add)  # a new leader knows the end a moment late; a log that was cut raises its own error
        end = log.end()
        if end < log.position():
            raise another_log(f"{topic} ends at offset {end}, and offset {log.position() - 1} was read")
    idle = 0
    while (before := log.position()) < end:
        _read(log, add)
        idle = idle + 1 if log.position() <= before else 0
        if idle >= MAX_IDLE:
            raise BrokerUnavailable(f"the broker does not send the topic of {topic} from offset {before} on")


def _read(log: RecordLog, add: Callable[[LogRecord], object]) -> None:
    for record in log.read(READ_WAIT_S):
        add(record)


def another_log(what: str) -> ReaderLost:
    """The error of a log that is not the one that was read."""
    return ReaderLost(
        f"the topic of {what}: it was created again or has lost records",
        hint="Restart this process, so that it reads the topic from its start.",
    )
