"""Submit a command: read the log to its end, append the command for the next offset, and check whether it counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from stream_scorer.control.state import Entry, History
from stream_scorer.errors import BrokerUnavailable
from stream_scorer.record_log import MAX_IDLE, READ_WAIT_S, LogRecord, RecordLog, another_log
from stream_scorer.records import Command


class LogEntry(LogRecord, Protocol):
    """A record of the log of commands; `timestamp` is in milliseconds."""

    @property
    def timestamp(self) -> int: ...


class CommandLog(RecordLog, Protocol):
    """A `RecordLog` whose records have timestamps."""

    def read(self, wait_s: float) -> Sequence[LogEntry]: ...


def catch_up(log: CommandLog, history: History, end: int) -> None:
    """Read the log up to the offset `end`.

    The last offsets may be transaction markers or aborted records, which are never returned. So the position of the
    reader decides, and not the last record.

    Raises:
        ReaderLost: the log was created again or has lost records. `history` is not its history.
        BrokerUnavailable: nothing more comes before `end`.
    """
    if end < history.next_offset:
        _read(log, history)  # a new leader knows the end a moment late; a log that was cut raises its own error
        end = log.end()
        if end < history.next_offset:
            raise another_log(f"commands ends at offset {end}, and offset {history.next_offset - 1} was read")
    idle = 0
    while (before := history.next_offset) < end:
        _read(log, history)
        idle = idle + 1 if history.next_offset <= before else 0
        if idle >= MAX_IDLE:
            raise BrokerUnavailable(f"the broker does not send the topic of commands from offset {before} on")


def _read(log: CommandLog, history: History) -> None:
    for record in log.read(READ_WAIT_S):
        history.add(record.offset, record.value, record.timestamp)
    history.next_offset = max(history.next_offset, log.position())


def submit(log: CommandLog, history: History, make: Callable[[int], Command]) -> Entry:
    """Append the command that `make` returns for the offset it must expect, and read `history` up to it.

    The entry that is returned has an empty `refused` if the command counts.

    Raises:
        BrokerUnavailable: the broker does not confirm the command. It may or may not be in the log: read the log before
            a retry.
        ReaderLost: the command was written to another log than the one that was read.
    """
    read = history.next_offset
    command = make(read)
    value = msgspec.json.encode(command)
    offset = log.append(command.ensemble, value)
    if offset < read:
        raise another_log(f"commands took a command at offset {offset}, and offset {read - 1} was read")
    catch_up(log, history, offset + 1)
    entry = next((entry for entry in reversed(history.entries) if entry.offset == offset), None)
    if entry is None or entry.command != msgspec.json.decode(value, type=Command):
        raise another_log(f"commands has another record at offset {offset}, where a command was written")
    return entry
