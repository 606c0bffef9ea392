"""Uniform traffic for measurements of the feature path, with rows that are written directly where there are many."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proofs.feature_path import BATCH, HOUR_MS, START_MS, Path, made
from stream_scorer.state.client import connect
from stream_scorer.state.row_format import ENTRY_BYTES, pack
from stream_scorer.state.rows import WITNESS_PERIOD_MS

SHIFTS = 64
# Longest horizon of the rows that are written directly.
HORIZON_MS = 8 * 24 * HOUR_MS
GROWN_BY = 300_000
# ARGV: bytes per entry, number of rows to choose from, these rows; then for each key: which row, bytes to skip.
_SEED = """
local width, rows = tonumber(ARGV[1]), tonumber(ARGV[2])
for k = 1, #KEYS do
  local row, skipped = ARGV[2 + tonumber(ARGV[1 + rows + 2 * k])], tonumber(ARGV[2 + rows + 2 * k])
  redis.call('SET', KEYS[k], string.sub(row, skipped + 1, -1 - width))
  redis.call('APPEND', KEYS[k], string.sub(row, -width))
end
"""


class Traffic:
    """Uniform traffic on `entities` customers and as many terminals, at a rate that keeps `held` entries in each row.

    `apart`: no entity occurs twice in a micro-batch.
    """

    def __init__(self, path: Path, rng: np.random.Generator, *, entities: int, held: int, apart: bool = False) -> None:
        self._path, self._rng, self._entities, self._held = path, rng, entities, held
        self._apart = apart
        self._now, self._made = START_MS, 0
        self._step_ms = HORIZON_MS / (entities * held)

    def turn(self, n: int) -> Counter[str]:
        """CPU microseconds per transaction of `n` more transactions, by part."""
        at = self._now + np.sort(self._rng.uniform(0, n * self._step_ms, n)).astype(np.int64)
        self._now += int(n * self._step_ms)
        who, where = (self._drawn(n).tolist() for _ in range(2))
        transactions = made(self._path.checked, [f"c{i}" for i in who], [f"t{i}" for i in where], at, self._made)
        self._made += n
        return self._path.measure(transactions)

    def _drawn(self, n: int) -> NDArray[np.int64]:
        if not self._apart:
            return self._rng.integers(0, self._entities, n)
        batches = [self._rng.choice(self._entities, BATCH, replace=False, shuffle=False) for _ in range(-(-n // BATCH))]
        return np.concatenate(batches)[:n]

    def fill(self) -> None:
        """Send traffic until the rows have their final length."""
        for _ in range(2):
            self.turn(int(1.1 * self._entities * self._held))

    def seed(self) -> None:
        """Write rows of their final length directly to Redis, because millions would take too long to grow.

        Rows have all lengths from `held` entries up to the length at which they are trimmed, and are shifted in time by
        less than one step. The last entry is appended, so that Redis has allocated room for the next one, as in live
        rows. The clock is set so that as many rows begin a witness period as in a steady stream.
        """
        step = HORIZON_MS // self._held
        first_of_period = step / WITNESS_PERIOD_MS * (1 - math.exp(-WITNESS_PERIOD_MS / step))
        self._now = START_MS // WITNESS_PERIOD_MS * WITNESS_PERIOD_MS + int(step * (1 - first_of_period))
        client = connect(self._path.url)
        write = client.register_script(_SEED)
        most = 2 * self._held - 1
        ids = np.arange(most, dtype=np.int64)
        shifts = np.arange(SHIFTS, dtype=np.int64) * step // SHIFTS
        rows = [pack(self._now - step * (most - 1 - ids) - shift, 100 + ids, ids).tobytes() for shift in shifts]
        prefix = self._path.row_prefix
        for entity, letter in enumerate("ct"):
            for low in range(0, self._entities, 5_000):
                n = min(5_000, self._entities - low)
                keys = [prefix + b"%d:%s%d" % (entity, letter.encode(), i) for i in range(low, low + n)]
                skipped = self._rng.integers(0, self._held, n) * ENTRY_BYTES
                shift = self._rng.integers(0, SHIFTS, n) + 1
                write(keys, [ENTRY_BYTES, SHIFTS, *rows, *np.column_stack([shift, skipped]).ravel().tolist()])

    def row_length(self) -> float:
        """Mean number of entries of 200 random rows of each entity."""
        ids = self._rng.integers(0, self._entities, 200).tolist()
        rows, _ = self._path.store.read(
            [b"%d:%s%d" % (e, letter, i) for e, letter in enumerate((b"c", b"t")) for i in ids]
        )
        return round(float(np.mean([len(row or b"") / ENTRY_BYTES for row in rows])), 1)


def grow_tables(client: Any) -> None:
    """Make Redis double its hash table now, if it is close to doing so.

    Otherwise it would do so during a measurement, and each command of any case would then move a bucket of all keys.
    """
    names = [b"grow-%d" % i for i in range(GROWN_BY)]
    write = client.register_script(_SEED)
    for low in range(0, GROWN_BY, 5_000):
        write(names[low : low + 5_000], [1, 1, b"row", *[1, 0] * 5_000])
    while b"rehashing" in client.execute_command("DEBUG", "HTSTATS", 0):
        client.mget(names[:10_000])
    for low in range(0, GROWN_BY, 10_000):
        client.delete(*names[low : low + 10_000])
