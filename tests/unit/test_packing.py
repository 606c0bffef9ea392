"""Commands are packed as redis-py packs them."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import pytest
from redis.connection import HiredisRespSerializer
from redis.exceptions import DataError

from stream_scorer.state.packing import MIN_ARGUMENTS, CommandPacker


class Number(IntEnum):
    ONE = 1


MANY = [b"key-%d" % i for i in range(600)]


@pytest.mark.parametrize(
    "command",
    [
        ("MGET", *MANY),
        (b"MGET", *MANY),
        ("EVALSHA", "0" * 40, 600, *MANY, b"", b"x" * 10_000, b"\r\n$3\r\n"),
        ("MSET", *MANY, 1, -2.5, "text é", bytearray(b"array"), memoryview(b"view"), 1 << 70),
        ("CONFIG GET", "maxmemory"),
        ("SCRIPT EXISTS", *MANY),
        (b"SCRIPT EXISTS", "0" * 40, *MANY, 1.5),
        ("MSET", "key", 1.5, *MANY),
        ("GET", b"key"),
    ],
)
def test_a_command_is_packed_as_redis_py_packs_it(command: tuple[Any, ...]) -> None:
    assert b"".join(CommandPacker().pack(*command)) == b"".join(HiredisRespSerializer().pack(*command))


@pytest.mark.parametrize("refused", [None, object(), Number.ONE])
def test_what_redis_cannot_hold_is_refused(refused: Any) -> None:
    with pytest.raises(DataError):
        CommandPacker().pack("MSET", *MANY[:MIN_ARGUMENTS], refused)
