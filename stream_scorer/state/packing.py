"""Packs commands with many arguments for the wire.

A micro-batch reads and writes hundreds of rows with one command each. redis-py packs an argument in about 0.4 us, which
was a third of the CPU that the scorer spent on Redis. Joining headers and arguments in one step takes 0.1 us.
"""

from __future__ import annotations

from typing import Any

from redis.connection import HiredisRespSerializer

# Commands with fewer arguments gain nothing.
MIN_ARGUMENTS = 16
# Headers of longer arguments are made each time, so that the table stays small.
_MAX_CACHED = 4_096
_MIXED = 3


class _Headers(dict[int, bytes]):
    """What stands before an argument of this length, the end of the argument before it included."""

    def __missing__(self, length: int) -> bytes:
        header = b"\r\n$%d\r\n" % length
        if length <= _MAX_CACHED:
            self[length] = header
        return header


class CommandPacker:
    """Encodes commands in the Redis protocol (RESP), as ``command_packer`` of a redis-py connection."""

    def __init__(self) -> None:
        self._redis_py = HiredisRespSerializer()
        self._header = _Headers().__getitem__

    def pack(self, *args: Any) -> list[bytes]:
        """The bytes of one command. Arguments are bytes, text or numbers; `DataError` for what redis-py refuses."""
        if len(args) >= MIN_ARGUMENTS:
            # The name of a command, the digest of a script and its number of keys are usually no bytes; all else is.
            name, *mixed = map(_encoded, args[:_MIXED])
            try:
                return [self._join((*name.split(), *mixed, *args[_MIXED:]))]
            except TypeError:
                pass
        packed: list[bytes] = self._redis_py.pack(*args)
        return packed

    def _join(self, args: tuple[bytes, ...]) -> bytes:
        parts = [b"\r\n"] * (2 * len(args) + 2)
        parts[0] = b"*%d" % len(args)
        parts[1:-1:2] = map(self._header, map(len, args))
        parts[2:-1:2] = args
        return b"".join(parts)


def _encoded(arg: Any) -> Any:
    """Text and integers as redis-py encodes them; anything else as it is."""
    if isinstance(arg, str):
        return arg.encode()
    return b"%d" % arg if type(arg) is int else arg
