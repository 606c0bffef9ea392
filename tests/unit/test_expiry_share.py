"""Whether a pass may delete most rows: what rows of short windows do every two weeks, and a wrong time does not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from stream_scorer.errors import ExpireRefused
from stream_scorer.state import expire as module
from stream_scorer.state.expire import expire
from stream_scorer.state.keys import EpochKeys, NamespaceKeys
from stream_scorer.state.row_format import pack, to_bytes
from stream_scorer.state.rows import MAX_EXPIRED_SHARE, WITNESS_PERIOD_MS

DAY = 86_400_000
KEYS = EpochKeys(NamespaceKeys("stream-scorer:rows:0123456789abcdef"), b"epoch", [])
# A border between two witness periods.
BORDER = 1_400 * WITNESS_PERIOD_MS


class _Redis:
    """A server with one row per time of `last`, whose only entry has this time. It counts what is deleted."""

    def __init__(self, last: list[int]) -> None:
        rows = ((KEYS.rows + b"0:%d" % i, np.array([i])) for i in range(len(last)))
        self.rows = {key: to_bytes(pack(np.array([at]), i, i)) for at, (key, i) in zip(last, rows, strict=True)}
        self.deleted = 0

    def register_script(self, _text: str) -> Any:
        return self._expire_rows

    def _expire_rows(self, keys: list[bytes], args: list[int]) -> int:
        old = [key for key in keys[1:] if int.from_bytes(self.rows[key][:8], "little") < args[0]]
        self.deleted += len(old)
        return len(old)

    def mget(self, keys: tuple[bytes, bytes]) -> list[bytes | None]:
        return [b"epoch", None]

    def scan_iter(self, match: str, count: int) -> Iterator[bytes]:
        return iter(sorted(self.rows, key=hash))

    def pipeline(self, transaction: bool) -> _Pipeline:
        return _Pipeline(self.rows)


class _Pipeline:
    def __init__(self, rows: dict[bytes, bytes]) -> None:
        self._rows = rows
        self._found: list[bytes] = []

    def getrange(self, key: bytes, start: int, stop: int) -> None:
        row = self._rows[key]
        self._found.append(row[len(row) + start : len(row) + stop + 1])

    def execute(self) -> list[bytes]:
        return self._found


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.0)


def _pass(last: list[int], now: int, horizon_ms: int) -> int:
    """The number of deleted rows when all partitions have reached `now`."""
    server = _Redis(last)
    expire(server, [KEYS], [now - horizon_ms], horizon_ms, threading.Event(), MAX_EXPIRED_SHARE)
    return server.deleted


@pytest.mark.parametrize("horizon_ms", [3_600_000, DAY, 3 * DAY, 7 * DAY, 13 * DAY])
@pytest.mark.parametrize("missed", [0, 3])  # passes at borders that did not run
def test_rows_that_grow_old_two_weeks_at_a_time_are_deleted(horizon_ms: int, missed: int) -> None:
    now = BORDER + horizon_ms + 3_600_000
    first = BORDER - (1 + missed) * WITNESS_PERIOD_MS
    last = np.linspace(first, now, 60 * (now - first) // DAY).astype(np.int64).tolist()  # 60 new ids a day
    assert _pass(last, now, horizon_ms) == sum(at < BORDER for at in last)


@pytest.mark.parametrize("wrong", [1, 20])
@pytest.mark.parametrize("ahead", [20 * DAY, 400 * DAY])
def test_a_few_rows_with_a_wrong_time_delete_nothing(wrong: int, ahead: int) -> None:
    """History is read again, and some of its records have the time of today."""
    last = np.linspace(BORDER - 10 * DAY, BORDER, 600).astype(np.int64).tolist() + [BORDER + ahead] * wrong
    with pytest.raises(ExpireRefused, match="nothing was deleted"):
        _pass(last, BORDER + ahead, DAY)
