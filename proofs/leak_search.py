"""Looks for planted card numbers and secrets in whatever a run has left, and counts what it has looked at."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import xxhash

CARD_DIGITS = 16
_DIGITS = re.compile(rb"\d{%d,}" % CARD_DIGITS)
_JOINED = 4_000_000


def card_numbers(count: int, seed: int) -> list[str]:
    """`count` distinct card numbers of 16 digits with valid check digits (ISO/IEC 7812-1)."""
    bodies = np.random.default_rng(seed).choice(10**13, count, replace=False).tolist()
    return [f"4{body:014d}{_check_digit(f'4{body:014d}')}" for body in bodies]


def _basic(user: str, charset: str, secret: str) -> str:
    """The credentials of basic authentication (RFC 7617); some clients encode them in Latin-1."""
    return base64.b64encode(f"{user}:{secret}".encode(charset)).decode()


# How a secret with quotes, backslashes and other letters is written: in JSON with and without escapes, by Python and in
# pages.
_WRITTEN: tuple[Callable[[str], str], ...] = (
    str,
    lambda s: quote(s, safe=""),
    quote,
    lambda s: json.dumps(s)[1:-1],
    lambda s: json.dumps(s, ensure_ascii=False)[1:-1],
    lambda s: repr(s)[1:-1],
    lambda s: json.dumps(json.dumps(s)[1:-1])[1:-1],
    html.escape,
)


def _common_prefix(forms: list[bytes]) -> bytes:
    low, high = min(forms), max(forms)
    return low[: next((i for i, pair in enumerate(zip(low, high, strict=False)) if pair[0] != pair[1]), len(low))]


def _check_digit(body: str) -> int:
    total = 0
    for place, digit in enumerate(map(int, reversed(body))):
        double = digit * 2 if place % 2 == 0 else digit
        total += double - 9 if double > 9 else double
    return -total % 10


@dataclass(slots=True)
class Area:
    """What was searched in one place, and the names of what was found there."""

    items: int = 0
    size: int = 0
    cards: set[str] = field(default_factory=set)
    secrets: set[str] = field(default_factory=set)


class Search:
    """Searches named areas for `cards`, and for `secrets` by name.

    A card number counts in decimal digits, and in binary areas also as an integer of 8 bytes or as its hash without a
    key (xxh3), which anybody can reverse by trying all numbers. A secret counts as it is, quoted for a URL,
    escaped for JSON, Python or HTML, or as basic authentication of one of `users`.
    """

    def __init__(self, cards: Sequence[str], secrets: Mapping[str, str], users: Iterable[str]) -> None:
        self.areas: dict[str, Area] = {}
        self._cards = {card.encode() for card in cards}
        numbers = [int(card) for card in cards]
        hashes = [xxhash.xxh3_64_intdigest(card.encode()) for card in cards]
        self._integers = np.unique(np.array([*numbers, *hashes], dtype=np.uint64).view(np.int64))
        # By what all forms of one kind begin with: a text without it is searched once for all secrets.
        self._secrets: dict[bytes, dict[bytes, str]] = {}
        kinds: list[Callable[[str], str]] = [*_WRITTEN]
        kinds += [partial(_basic, user, charset) for user in users for charset in ("utf-8", "latin-1")]
        for form in kinds:
            forms = {form(secret).encode(): name for name, secret in secrets.items()}
            self._secrets.setdefault(_common_prefix(list(forms)), {}).update(forms)

    def look(self, name: str, blobs: Iterable[bytes | None], *, binary: bool = False) -> None:
        """Search all of `blobs`."""
        area = self.areas.setdefault(name, Area())
        waiting: list[bytes] = []
        for blob in blobs:
            if blob is None:
                continue
            area.items += 1
            area.size += len(blob)
            waiting.append(blob)
            if len(blob) > _JOINED or len(waiting) >= 5_000:
                self._search(area, waiting, binary)
                waiting = []
        self._search(area, waiting, binary)

    def look_at_files(self, name: str, files: Iterable[Path], *, binary: bool = False) -> None:
        """Search the contents and names of `files`."""
        for file in files:
            self.look(name, [file.name.encode(), file.read_bytes()], binary=binary)

    def found(self, what: str) -> int:
        """How many different ``cards`` or ``secrets`` were found."""
        return len(set().union(*(getattr(area, what) for area in self.areas.values())))

    def _search(self, area: Area, blobs: list[bytes], binary: bool) -> None:
        text = b"\n".join(blobs)
        for digits in _DIGITS.findall(text):
            for low in range(len(digits) - CARD_DIGITS + 1):
                if digits[low : low + CARD_DIGITS] in self._cards:
                    area.cards.add(digits[low : low + CARD_DIGITS].decode())
        for prefix, forms in self._secrets.items():
            if prefix in text:
                area.secrets |= {name for form, name in forms.items() if form in text}
        if binary:
            for shift in range(8):
                whole = text[shift : len(text) - (len(text) - shift) % 8]
                for order in ("<i8", ">i8"):
                    values = np.frombuffer(whole, order).astype(np.int64)
                    place = np.minimum(np.searchsorted(self._integers, values), len(self._integers) - 1)
                    area.cards |= {f"binary {value}" for value in values[self._integers[place] == values].tolist()}


def redis_content(client: Any) -> Iterable[bytes]:
    """Every key and every value of the database, as they are stored."""
    readers = {
        b"string": lambda key: [client.get(key)],
        b"hash": lambda key: [part for pair in client.hgetall(key).items() for part in pair],
        b"set": lambda key: list(client.smembers(key)),
        b"zset": lambda key: client.zrange(key, 0, -1),
        b"list": lambda key: client.lrange(key, 0, -1),
        b"none": lambda _key: [],  # expired since it was found
    }
    for key in client.scan_iter(count=2_000):
        yield key
        # Members of sets of hashes are decimal integers: as 8 bytes too, for the search of hashes.
        for part in readers[client.type(key)](key):
            if part is None:
                continue
            yield part
            if part.isdigit() and int(part) < 2**63:
                yield int(part).to_bytes(8, "little")
