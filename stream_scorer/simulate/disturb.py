"""Disturbances of a real topic: duplicate records, and bad records in between."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream_scorer.simulate.garbage import GarbageMaker

# A duplicate follows its original by up to this many transactions.
DUPLICATE_GAP = 500


@dataclass(frozen=True)
class Mixed:
    """Records in sending order. `bad` has the index and the kind of each bad record."""

    keys: list[bytes]
    values: list[bytes]
    bad: list[tuple[int, str]]
    duplicates: int


class Disturber:
    """Mixes duplicates and garbage into batches of good records; a duplicate may come in a later batch."""

    def __init__(self, rng: np.random.Generator, *, duplicates: float, garbage: float) -> None:
        """`duplicates` and `garbage` are shares of the good records, added to them."""
        self._rng = rng
        self._duplicates = duplicates
        self._garbage = garbage
        self._maker = GarbageMaker(rng)
        self._seen = 0
        self._held: list[tuple[int, bytes, bytes]] = []

    def mix(self, keys: list[bytes], values: list[bytes]) -> Mixed:
        """The good records in order, with the extra ones in between."""
        if not self._duplicates and not self._garbage:
            return Mixed(keys, values, [], 0)
        count, rng = len(keys), self._rng
        doubled = np.flatnonzero(rng.random(count) < self._duplicates)
        gaps = rng.integers(0, DUPLICATE_GAP, len(doubled))
        for row, gap in zip(doubled.tolist(), gaps.tolist(), strict=True):
            self._held.append((self._seen + row + gap, keys[row], values[row]))
        now = [held for held in self._held if held[0] < self._seen + count]
        self._held = [held for held in self._held if held[0] >= self._seen + count]
        # Extras go right behind the good record they wait for: after, row, key, value, kind.
        extras = [(after - self._seen, key, value, "") for after, key, value in now]
        for row in np.flatnonzero(rng.random(count) < self._garbage).tolist():
            kind, value = self._maker.make(values[row])
            extras.append((row, keys[row], value, kind))
        self._seen += count
        extras.sort(key=lambda extra: extra[0])
        return _woven(keys, values, extras, len(now))

    def rest(self) -> Mixed:
        """The remaining duplicates."""
        held, self._held = self._held, []
        return Mixed([key for _, key, _ in held], [value for _, _, value in held], [], len(held))


def _woven(
    keys: list[bytes], values: list[bytes], extras: list[tuple[int, bytes, bytes, str]], duplicates: int
) -> Mixed:
    all_keys: list[bytes] = []
    all_values: list[bytes] = []
    bad: list[tuple[int, str]] = []
    done = 0
    for after, key, value, kind in extras:
        all_keys += keys[done : after + 1]
        all_values += values[done : after + 1]
        done = max(done, after + 1)
        if kind:
            bad.append((len(all_keys), kind))
        all_keys.append(key)
        all_values.append(value)
    return Mixed(all_keys + keys[done:], all_values + values[done:], bad, duplicates)
