"""A parser for the part of Universal Binary JSON (draft 12) that XGBoost writes. Every step checks bounds.

Source: https://ubjson.org and XGBoost's `src/common/json.cc`; numbers are big-endian.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

# XGBoost's documents have a depth of six.
_MAX_DEPTH = 32
_NUMBERS = {b"i": "b", b"U": "B", b"I": ">h", b"l": ">i", b"L": ">q", b"d": ">f", b"D": ">d"}
_ARRAYS = {b"i": "i1", b"U": "u1", b"I": ">i2", b"l": ">i4", b"L": ">i8", b"d": ">f4", b"D": ">f8"}
_CONSTANTS = {b"T": True, b"F": False, b"Z": None}


class MalformedUBJSON(ValueError):
    """The bytes are truncated or are not UBJSON."""


def read_ubjson(data: bytes) -> Any:
    """Parse the document in `data`: dicts, lists, strings, numbers; arrays of one number type as numpy arrays.

    Raises:
        MalformedUBJSON: `data` is not exactly one complete document.
    """
    reader = _Reader(data)
    document = reader.value(reader.take(1), 0)
    if reader.at != len(data):
        raise MalformedUBJSON(f"{len(data) - reader.at} bytes after the end")
    return document


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        if count < 0 or count > len(self._data) - self.at:
            raise MalformedUBJSON("truncated")
        self.at += count
        return self._data[self.at - count : self.at]

    def value(self, kind: bytes, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise MalformedUBJSON("nested too deeply")
        if kind == b"{":
            return self._object(depth)
        if kind == b"[":
            return self._array(depth)
        if kind == b"S":
            return self._text()
        if kind in _NUMBERS:
            return self._number(kind)
        if kind in _CONSTANTS:
            return _CONSTANTS[kind]
        raise MalformedUBJSON(f"unknown type {kind!r}")

    def _number(self, kind: bytes) -> int | float:
        code = _NUMBERS[kind]
        number: int | float = struct.unpack(code, self.take(struct.calcsize(code)))[0]
        return number

    def _length(self) -> int:
        kind = self.take(1)
        if kind not in _NUMBERS or kind in b"dD":
            raise MalformedUBJSON(f"a length of type {kind!r}")
        return int(self._number(kind))

    def _text(self) -> str:
        try:
            return self.take(self._length()).decode("utf-8")
        except UnicodeDecodeError:
            raise MalformedUBJSON("text is not UTF-8") from None

    def _object(self, depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        while (self._data[self.at : self.at + 1]) != b"}":
            name = self._text()
            if name in out:
                raise MalformedUBJSON("duplicate key")
            out[name] = self.value(self.take(1), depth + 1)
        self.at += 1
        return out

    def _array(self, depth: int) -> Any:
        first = self._data[self.at : self.at + 1]
        if first == b"$":
            self.at += 1
            kind = self.take(1)
            if kind not in _ARRAYS or self.take(1) != b"#":
                raise MalformedUBJSON("a typed array without a length")
            width = np.dtype(_ARRAYS[kind])
            return np.frombuffer(self.take(self._length() * width.itemsize), width)
        if first == b"#":
            self.at += 1
            # Every value takes at least one byte, which limits the cost of a wrong length.
            count = self._length()
            if count > len(self._data) - self.at:
                raise MalformedUBJSON("truncated")
            return [self.value(self.take(1), depth + 1) for _ in range(count)]
        out = []
        while (kind := self.take(1)) != b"]":
            out.append(self.value(kind, depth + 1))
        return out
