"""Housekeeping: once an hour one scorer of the group deletes the rows that no reader needs any more (ADR 0020).

Each scorer also checks again and again that Redis evicts nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from stream_scorer.errors import ExpireRefused, StreamScorerError, UsageError
from stream_scorer.observability import metrics as m
from stream_scorer.pipeline.ports import LogEnds
from stream_scorer.state.rows import IDLE_MS, MAX_EXPIRED_SHARE, FeatureRows

_log = logging.getLogger(__name__)
EVERY_MS = 3_600_000
ASK_S = 60.0
STOP_S = 5.0


class Housekeeping:
    """Maintains rows in its own thread until `close`.

    Args:
        rows: a store that no other thread uses. open_log: called once per pass. topics: the inputs.
        ask_s: how often to check whether it is this scorer's turn, and the policy of Redis.
    """

    def __init__(
        self,
        rows: FeatureRows,
        open_log: Callable[[], LogEnds],
        topics: list[str],
        metrics: m.Metrics,
        ask_s: float = ASK_S,
    ) -> None:
        self._ask_s = ask_s
        self._rows, self._open_log, self._topics, self._metrics = rows, open_log, topics, metrics
        self._evicts = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End the thread; a pass under way ends early."""
        self._stop.set()
        self._thread.join(STOP_S)

    def _run(self) -> None:
        try:
            self._rows.keep()
        except StreamScorerError as error:
            _log.warning("Redis does not accept a note that these features are in use: %s", error.message)
        while not self._stop.wait(self._ask_s):
            try:
                self._check_eviction_policy()
                if self._rows.take_turn(EVERY_MS):
                    self._expire()
                # The last pass may be that of another scorer, or of `stream-scorer features expire`.
                self._metrics.set(m.EXPIRE_REFUSED, self._rows.expiry_refused())
            except StreamScorerError as error:
                _log.warning("old features are kept until the next pass: %s", error.message)
            except Exception:  # scoring must not suffer from a failure here
                _log.exception("old features are kept until the next pass")

    def _check_eviction_policy(self) -> None:
        """A changed policy does not end a scorer: features stay in use until rows are missing, which is noticed."""
        try:
            self._rows.check_eviction_policy()
        except UsageError as error:
            if not self._evicts:
                _log.error("%s", error)
            self._evicts = True
        else:
            self._evicts = False
        self._metrics.set(m.REDIS_EVICTS, self._evicts)

    def _expire(self) -> None:
        try:
            deleted = expire_rows(self._rows, self._open_log, self._topics, self._stop)
        except ExpireRefused as error:
            _log.error("%s", error)
        else:
            self._metrics.count(m.EXPIRED, deleted)


def expire_rows(
    rows: FeatureRows,
    open_log: Callable[[], LogEnds],
    topics: list[str],
    stop: threading.Event,
    max_share: float = MAX_EXPIRED_SHARE,
) -> int:
    """One pass. Returns the number of deleted keys. Raises `ExpireRefused`, `StateUnavailable`, `BrokerUnavailable`."""
    log = open_log()
    try:
        bounds = {source: ends for topic in topics for source, ends in log.bounds(topic).items()}
        ends = {source: end for source, (_, end) in bounds.items()}
        applied = rows.open()
        if applied is None:
            return 0
        newest = max(applied.watermark.values(), default=-1)
        for source, at in applied.next_offset.items():
            idle = applied.watermark[source] < newest - IDLE_MS
            # The last offsets of a partition may be Kafka's transaction markers. They delay nothing, nor does what
            # retention has deleted.
            if idle and at < ends[source]:
                first = max(at, bounds[source][0])
                if first >= ends[source] or next(log.read(source, first, ends[source]), None) is None:
                    ends[source] = at
    finally:
        log.close()
    try:
        gone = rows.expire(ends, stop, now_ms=round(time.time() * 1e3), max_share=max_share)
    except ExpireRefused:
        rows.record_expiry(refused=True)
        raise
    if not stop.is_set():  # a pass that was cut short may have judged few rows
        rows.record_expiry(refused=False)
    if gone:
        _log.info("deleted %d keys of features that no reader needs any more", gone)
    return gone
