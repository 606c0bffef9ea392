"""Bad input of all kinds, made from good records, for tests that no bad record stops a scorer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

# Above the 5 MB expected of a hostile record, below the broker's limit of 10 MB.
OVERSIZED_BYTES = 5_000_000
_YEAR_9999_MS = 253_370_764_800_000

_encode = msgspec.json.encode


@dataclass(frozen=True)
class _Good:
    """The good record from which a bad one is made."""

    value: bytes
    fields: dict[str, Any]
    rng: np.random.Generator


def _truncated(good: _Good) -> bytes:
    return good.value[: int(good.rng.integers(1, len(good.value)))]


def _not_json(good: _Good) -> bytes:
    return bytes(good.rng.integers(0, 256, int(good.rng.integers(1, 200)), dtype=np.uint8))


def _not_an_object(good: _Good) -> bytes:
    return (b"[" + good.value + b"]", b"null", b"42", b'"text"')[int(good.rng.integers(0, 4))]


def _wrong_type(good: _Good) -> bytes:
    changes: tuple[dict[str, Any], ...] = (
        {"amount": "12.50"}, {"amount": [1]}, {"amount": None}, {"amount": 12.5}, {"event_time": "yesterday"},
        {"customer_id": 7}, {"terminal_id": {}}, {"channel": "carrier pigeon"}, {"currency": 978}, {"event_id": False},
    )  # fmt: skip
    return _encode(good.fields | changes[int(good.rng.integers(0, len(changes)))])


def _missing_field(good: _Good) -> bytes:
    required = ("event_id", "event_time", "customer_id", "terminal_id", "amount", "currency", "channel")
    missing = required[int(good.rng.integers(0, len(required)))]
    return _encode({name: content for name, content in good.fields.items() if name != missing})


def _not_a_number(good: _Good) -> bytes:
    # JSON has no NaN, but some writers emit it.
    word = (b"NaN", b"Infinity", b"-Infinity")[int(good.rng.integers(0, 3))]
    return _encode(good.fields | {"amount": 0}).replace(b'"amount":0', b'"amount":' + word)


def _huge_number(good: _Good) -> bytes:
    digits = (b"1e400", b"9" * 400, b"-1", b"9223372036854775808", b"1e308")[int(good.rng.integers(0, 5))]
    return _encode(good.fields | {"amount": 0}).replace(b'"amount":0', b'"amount":' + digits)


def _absurd_time(good: _Good) -> bytes:
    times = (0, -1, good.fields["event_time"] // 1_000, _YEAR_9999_MS, 2**63 - 1)
    return _encode(good.fields | {"event_time": times[int(good.rng.integers(0, len(times)))]})


def _empty(good: _Good) -> bytes:
    return (b"", b" ", b"\x00")[int(good.rng.integers(0, 3))]


def _latin_1(good: _Good) -> bytes:
    return good.value.replace(b'"terminal_id":"', b'"terminal_id":"caf\xe9 ')


def _utf_16(good: _Good) -> bytes:
    return good.value.decode().encode("utf-16")


def _long_text(good: _Good) -> bytes:
    return _encode(good.fields | {"customer_id": "c" * 5_000})


def _deep(good: _Good) -> bytes:
    return good.value[:-1] + b',"note":' + b"[" * 20_000


def _oversized(good: _Good) -> bytes:
    return good.value[:-1] + b',"note":"' + b"x" * OVERSIZED_BYTES + b'"}'


_MAKERS: dict[str, Callable[[_Good], bytes]] = {
    "truncated": _truncated,
    "not_json": _not_json,
    "not_an_object": _not_an_object,
    "wrong_type": _wrong_type,
    "missing_field": _missing_field,
    "not_a_number": _not_a_number,
    "huge_number": _huge_number,
    "absurd_time": _absurd_time,
    "empty": _empty,
    "latin_1": _latin_1,
    "utf_16": _utf_16,
    "long_text": _long_text,
    "deep": _deep,
    "oversized": _oversized,
}
GARBAGE_KINDS = tuple(_MAKERS)


class GarbageMaker:
    """Makes bad values, every kind in turn; after `max_oversized` records of 5 MB each, that kind is left out."""

    def __init__(self, rng: np.random.Generator, *, max_oversized: int = 5) -> None:
        self._rng = rng
        self._oversized_left = max_oversized
        self._made = 0

    def make(self, good: bytes) -> tuple[str, bytes]:
        """The kind and the bytes of a bad value, made from the good value `good`."""
        kind = GARBAGE_KINDS[self._made % len(GARBAGE_KINDS)]
        self._made += 1
        if kind == "oversized":
            if self._oversized_left <= 0:
                return self.make(good)
            self._oversized_left -= 1
        return kind, garbage(kind, good, self._rng)


def garbage(kind: str, good: bytes, rng: np.random.Generator) -> bytes:
    """A bad value of one of `GARBAGE_KINDS`. A decoder for `cards.yaml` must reject it."""
    return _MAKERS[kind](_Good(good, msgspec.json.decode(good), rng))
