"""Python and Lua read and write the same row format, on a real Redis."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stream_scorer.positions import SourcePartition, Span
from stream_scorer.state import row_format, scripts
from stream_scorer.state.redis_rows import RedisRowStore
from stream_scorer.state.row_format import APPLIED, ENTRY_BYTES, HEADER, KIND, NEVER, PANE, PANE_CODES, TIME
from stream_scorer.state.rows import BEGINS, RowUpdate

pytestmark = pytest.mark.integration
A = SourcePartition("transactions", 0)
DAY = 86_400_000
_READ = """
local row, fields = redis.call('GET', KEYS[1]), {}
for at = 1, #row, ENTRY_BYTES do
  local entry = {struct.unpack(ENTRY_PATTERN, row, at)}
  for field = 1, ENTRY_BYTES / FIELD_BYTES do fields[#fields + 1] = string.format('%.0f', entry[field]) end
end
return fields
"""
_APPLIED = """
return {struct.unpack(APPLIED_PATTERN, redis.call('GET', KEYS[1]))}
"""


def entries_of(rng: np.random.Generator, count: int) -> np.ndarray:
    """A row as it may be stored: perhaps a header and panes, then transactions and labels."""
    entries = np.empty((count, row_format.FIELDS), np.int64)
    entries[:, TIME] = rng.integers(0, 1_000, count)
    entries[:, 1:KIND] = rng.integers(-(2**50), 2**50, (count, KIND - 1))
    entries[:, KIND] = rng.integers(0, 2, count) * rng.integers(1, 2_000, count)
    panes = int(rng.integers(0, count)) if rng.random() < 0.7 else 0
    if panes:
        entries[0, TIME], entries[0, KIND] = NEVER, HEADER
        entries[1:panes, KIND] = PANE - rng.integers(0, 9, panes - 1) - PANE_CODES * rng.integers(0, 500, panes - 1)
    return entries


def test_lua_reads_the_fields_that_python_packs(redis_client: Any) -> None:
    entries = row_format.pack(np.array([5, 6]), np.array([-7, 2**40]), np.array([9, -(2**52)]))
    redis_client.set("row", row_format.to_bytes(entries))
    fields = redis_client.eval(scripts.with_constants(_READ), 1, "row")
    assert [int(field) for field in fields] == entries.ravel().tolist()
    assert len(row_format.to_bytes(entries)) == 2 * ENTRY_BYTES


def test_python_reads_the_rows_and_offsets_that_lua_writes(redis_client: Any) -> None:
    redis_client.flushdb()
    store = RedisRowStore(redis_client, "test", [A], labels_topic="labels", horizon_ms=1_000)
    store.open()
    assert store.init({A: 3}, {A: 11})
    entries = row_format.pack(np.arange(40) * 100, np.arange(40), np.arange(40))
    zero, opens = np.zeros(40, np.int64), np.full(40, BEGINS, np.int8)
    half = [Span(A, 3, 23, 1_900)], [Span(A, 23, 43, 3_900)]
    for spans, part in zip(half, (slice(0, 20), slice(20, 40)), strict=True):
        store.read([b"0:a"])  # the store learns the watermark, and so what to trim
        store.apply(
            RowUpdate.group(spans, [b"0:a"], zero[part], entries[part], zero[part], np.arange(3, 43)[part], opens[part])
        )
    (row,), applied = store.read([b"0:a"])
    assert row is not None
    # The watermark of the read is 1,900: entries more than the horizon older were trimmed.
    np.testing.assert_array_equal(row_format.unpack(row), entries[9:])
    assert (applied.next_offset, applied.watermark, applied.target) == ({A: 43}, {A: 3_900}, {A: 11})
    (key,) = redis_client.keys("*:mark:*")
    packed = APPLIED.unpack(redis_client.get(key))
    assert redis_client.eval(scripts.with_constants(_APPLIED), 1, key)[:-1] == list(packed)


def test_lua_finds_the_same_latest_time_as_python(redis_client: Any) -> None:
    """A row expires if and only if its latest time is older."""
    rng = np.random.default_rng(1)
    expire = redis_client.register_script(scripts.load("expire_rows"))
    kept = deleted = 0
    for _ in range(300):
        entries = entries_of(rng, int(rng.integers(1, 12)))
        if entries[-1, KIND] < 0:  # a stored row ends with a transaction or a label
            continue
        latest = row_format.latest(entries)
        for before, expired in ((latest, 0), (latest + 1, 1)):
            redis_client.set("row", row_format.to_bytes(entries))
            assert expire(keys=["expired", "row"], args=[before, 1_000]) == expired
            assert redis_client.exists("row") == 1 - expired
            kept, deleted = kept + 1 - expired, deleted + expired
    assert min(kept, deleted) > 100


def test_every_script_is_valid_lua_with_its_constants(redis_client: Any) -> None:
    for path in (scripts.files("stream_scorer.state") / "lua").iterdir():
        assert redis_client.script_load(scripts.load(path.name.removesuffix(".lua")))
