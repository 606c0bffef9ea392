"""Which rows go: what the log still holds decides, and markers of Kafka's transactions are no records."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from stream_scorer.errors import ExpireRefused, StateUnavailable, UsageError
from stream_scorer.observability import metrics as m
from stream_scorer.pipeline.housekeeping import Housekeeping, expire_rows
from stream_scorer.positions import SourcePartition
from stream_scorer.serde.raw import RawRecords
from stream_scorer.state.rows import WITNESS_PERIOD_MS, AppliedOffsets

BUSY, IDLE = SourcePartition("transactions", 0), SourcePartition("transactions", 1)
NOW = 10 * WITNESS_PERIOD_MS


class Rows:
    """Applied offsets, and the arguments of `expire`."""

    def __init__(self, applied: AppliedOffsets | None) -> None:
        self.applied, self.ends = applied, None
        self.kept = self.turns = 0
        self.was_refused = False  # shared by all scorers

    def open(self) -> AppliedOffsets | None:
        return self.applied

    def keep(self) -> None:
        self.kept += 1

    def check_eviction_policy(self) -> bool:
        if self.turns in (3, 4):
            raise UsageError("Redis runs with maxmemory-policy allkeys-lru")
        return True

    def take_turn(self, every_ms: int) -> bool:
        self.turns += 1
        if self.turns == 1:
            raise StateUnavailable("Redis is away")
        if self.turns == 6:
            self.was_refused = False  # the pass of another scorer, or of a command
        return self.turns in (2, 3)

    def record_expiry(self, *, refused: bool) -> None:
        self.was_refused = refused

    def expiry_refused(self) -> bool:
        return self.was_refused

    def expire(
        self, ends: Mapping[SourcePartition, int], stop: threading.Event, *, now_ms: int, max_share: float
    ) -> int:
        assert abs(now_ms - time.time() * 1e3) < 60_000
        self.ends = dict(ends)
        if self.turns == 3:
            raise ExpireRefused("most rows would be deleted")
        return 5


class Log:
    """A partition that is busy, and one whose last offsets hold `left` records; it begins at `low`."""

    def __init__(self, left: int, low: int = 0) -> None:
        self.left, self.low, self.closed = left, low, False

    def bounds(self, topic: str) -> dict[SourcePartition, tuple[int, int]]:
        return {BUSY: (0, 100), IDLE: (self.low, 12)}

    def read(self, source: SourcePartition, start: int, stop: int) -> Iterator[RawRecords]:
        assert source == IDLE
        assert (start, stop) == (max(10, self.low), 12)
        assert start < stop
        if self.left:
            yield RawRecords("transactions", np.ones(1, np.int32), np.array([10]), np.zeros(1), [b""], [b""], [None])

    def retention_ms(self, topic: str) -> int | None:
        return None

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(("left", "low", "end"), [(0, 0, 10), (1, 0, 12), (0, 12, 10), (0, 11, 10), (1, 11, 12)])
def test_a_partition_with_nothing_but_markers_left_is_at_its_end(left: int, low: int, end: int) -> None:
    rows, log = Rows(AppliedOffsets({BUSY: 90, IDLE: 10}, {BUSY: NOW, IDLE: 0})), Log(left, low)
    assert expire_rows(rows, lambda: log, ["transactions"], threading.Event()) == 5
    assert rows.ends == {BUSY: 100, IDLE: end}
    assert log.closed


def test_a_pass_records_whether_it_was_refused() -> None:
    rows = Rows(AppliedOffsets({BUSY: 90, IDLE: 10}, {BUSY: NOW, IDLE: 0}))
    rows.turns = 3
    with pytest.raises(ExpireRefused):
        expire_rows(rows, lambda: Log(0), ["transactions"], threading.Event())
    assert rows.was_refused
    rows.turns = 4
    cut_short = threading.Event()
    cut_short.set()
    expire_rows(rows, lambda: Log(0), ["transactions"], cut_short, max_share=1.0)
    assert rows.was_refused
    expire_rows(rows, lambda: Log(0), ["transactions"], threading.Event(), max_share=1.0)
    assert not rows.was_refused


def test_without_rows_there_is_nothing_to_do() -> None:
    rows, log = Rows(None), Log(0)
    assert expire_rows(rows, lambda: log, ["transactions"], threading.Event()) == 0
    assert log.closed


@pytest.mark.parametrize(("ends", "settled"), [((100, 10), NOW - 5), ((90, 12), 7), ((90, 10), NOW - 5)])
def test_who_is_behind_holds_back_and_who_is_at_the_end_does_not(ends: tuple[int, int], settled: int) -> None:
    applied = AppliedOffsets({BUSY: 90, IDLE: 10}, {BUSY: NOW - 5, IDLE: 7})
    assert applied.settled(dict(zip((BUSY, IDLE), ends, strict=True))) == settled


def test_the_thread_takes_its_turn_counts_and_outlives_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    rows, metrics = Rows(AppliedOffsets({BUSY: 90, IDLE: 12}, {BUSY: NOW, IDLE: 0})), m.Metrics()
    housekeeping = Housekeeping(rows, lambda: Log(0), ["transactions"], metrics, ask_s=0.005)
    housekeeping.start()
    assert rows.kept == 1
    refused: set[float | None] = set()
    evicts: set[float | None] = set()
    deadline = time.monotonic() + 10
    while rows.turns < 7 and time.monotonic() < deadline:
        time.sleep(0.002)
        refused.add(metrics.registry.get_sample_value("stream_scorer_expire_refused"))
        evicts.add(metrics.registry.get_sample_value("stream_scorer_redis_evicts"))
    housekeeping.close()
    assert metrics.registry.get_sample_value("stream_scorer_expired_keys_total") == 5
    assert refused == {0, 1}
    assert metrics.registry.get_sample_value("stream_scorer_expire_refused") == 0
    assert evicts == {0, 1}
    assert metrics.registry.get_sample_value("stream_scorer_redis_evicts") == 0
    assert caplog.text.count("maxmemory-policy allkeys-lru") == 1
