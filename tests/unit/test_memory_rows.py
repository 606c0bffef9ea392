"""Rows in memory: the same rows as appended to plain bytes, whatever moves in the array that holds them."""

from __future__ import annotations

import numpy as np

from stream_scorer.positions import SourcePartition, Span
from stream_scorer.state.row_format import ENTRY_BYTES, FIELDS, TIME, unpack
from stream_scorer.state.rows import Compaction, MemoryRowStore, RowUpdate

SOURCE = SourcePartition("transactions", 0)


def update(rng: np.random.Generator, keys: list[bytes], n: int) -> RowUpdate:
    entries = rng.integers(0, 1 << 40, (n, FIELDS))
    zeros = np.zeros(n, np.int64)
    key_of = rng.integers(0, len(keys), n)
    return RowUpdate.group([Span(SOURCE, 0, n, 0)], keys, key_of, entries, zeros, zeros, zeros.astype(np.int8))


def test_rows_are_those_of_plain_bytes_after_growth_moves_and_compaction() -> None:
    rng, store, plain = np.random.default_rng(1), MemoryRowStore(), dict[bytes, bytes]()
    for turn in range(40):
        keys = [b"%d" % k for k in rng.permutation(30 + 10 * turn)[:60]]
        given = update(rng, keys, 150)
        for key in [key for key in keys if len(plain.get(key, b"")) > 320][:9]:
            # Some become longer than the room that they have.
            after = rng.bytes(32 * int(rng.integers(1, 3 * len(plain[key]) // 32)))
            given.compactions[key] = Compaction(plain[key][:64], after)
            plain[key] = after + plain[key][64:]
        store.apply(given)
        for key, payload in zip(given.keys, given.payloads, strict=True):
            plain[key] = plain.get(key, b"") + payload
        assert store.read([*keys, b"none"])[0] == [*map(plain.get, keys), None]
    assert store.rows() == plain
    other = MemoryRowStore()
    other.restore(store.rows())
    assert other.rows() == plain


def test_rows_in_place_are_those_that_are_read_and_more_entries_do_not_change_them() -> None:
    rng, store, keys = np.random.default_rng(2), MemoryRowStore(), [b"a", b"b", b"new", b"c"]
    store.apply(update(rng, [b"c", b"a", b"b"], 100))
    stored, before = store.read(keys)[0], store.rows()
    resident, _ = store.read_in_place(keys)
    assert list(resident) == list(resident[:4]) == stored
    assert resident[1:][0] == stored[1]
    key_of = np.array([2, 0, 2, 0, 0])
    more = rng.integers(0, 1 << 40, (5, FIELDS))
    entries, start, end = resident.entries_with(key_of, more)
    assert not entries.flags.writeable
    for place, row in enumerate(stored):
        wanted = np.concatenate([unpack(row or b""), more[key_of == place]])
        assert np.array_equal(entries[start[place] : end[place]], wanted)
    assert store.read(keys)[0] == stored
    assert store.rows() == before


def test_old_entries_are_trimmed_from_the_beginning_of_rows_and_rows_without_others_are_removed() -> None:
    rng, store, plain = np.random.default_rng(3), MemoryRowStore(), dict[bytes, bytes]()
    for turn in range(30):
        given = update(rng, [b"%d" % k for k in rng.permutation(60)[:20]], 90)
        given.entries[:, TIME] = 100 * turn + rng.integers(-300, 100, 90)
        store.apply(given)
        for key, payload in zip(given.keys, given.payloads, strict=True):
            plain[key] = plain.get(key, b"") + payload
        if turn % 7 == 6:
            before = 100 * turn - 350
            store.trim(before)
            for key, row in list(plain.items()):
                entries = unpack(row)
                new = np.flatnonzero(entries[:, TIME] >= before)
                plain[key] = row[new[0] * ENTRY_BYTES :] if len(new) else b""
            removed = [key for key, row in plain.items() if not row]
            plain = {key: row for key, row in plain.items() if row}
            assert store.read(removed)[0] == [None] * len(removed)
        assert store.rows() == plain
        assert store.read([*plain])[0] == list(plain.values())
    assert store._arena.count < 60
