"""The age of features: how far their input lags behind the transaction, in event time (ADR 0012).

Features of the partition key's entity never lag, because its events arrive in the order of the log, unless record keys
are not its ids. Features of other entities lag when other partitions lag, and label features lag when labels do. A feed
that stops makes features old, and then stale.

The same watermarks tell which transactions are late: compaction and trimming may have dropped what their windows
contain (ADR 0052).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stream_scorer.arrays import Bools, Ints
from stream_scorer.compiled import njit
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.state.rows import AppliedOffsets, RowUpdate

# Later than every event.
_AHEAD = int(np.iinfo(np.int64).max)


@dataclass(frozen=True, slots=True)
class Ages:
    """Per transaction, in ms of event time; -1 if it is unknown or no feature needs it.

    Attributes:
        partitions: (n,) int64, how far the slowest other partition of the transactions lags behind.
        labels: (n,) int64, how long ago the newest label of any partition was given.
    """

    partitions: Ints
    labels: Ints

    @classmethod
    def unknown(cls, n: int) -> Ages:
        """Unknown ages of `n` transactions."""
        return cls(np.full(n, -1, dtype=np.int64), np.full(n, -1, dtype=np.int64))


def watermarks(applied: AppliedOffsets, in_flight: Sequence[RowUpdate]) -> dict[SourcePartition, int]:
    """The newest event time of each source partition, in the rows and the updates in flight; -1 for none."""
    seen = dict(applied.watermark)
    for update in in_flight:
        for span in update.spans:
            seen[span.source] = max(seen.get(span.source, -1), span.watermark)
    return seen


class Lateness(NamedTuple):
    """When a transaction is late: `allowed_ms` behind what all partitions have passed.

    Attributes:
        allowed_ms: ``time.allowed_lateness``. passed, now_ms: as in `AppliedOffsets`, and used as compaction uses them:
            the rows may be cut behind `passed`, whatever watermarks say, and never behind a time after `now_ms`.
    """

    allowed_ms: int
    passed: int = -1
    now_ms: int = _AHEAD


class Progress(NamedTuple):
    """How far partitions were when each of n transactions came.

    Attributes:
        lag: (n,) int64 ms, how far the slowest other partition lagged behind it.
        late: (n,) bool, whether it came so late that rows may lack what its windows contain; see `Lateness`.
    """

    lag: Ints
    late: Bools


def progress(
    time: Ints, span_of: Ints, spans: list[Span], seen: dict[SourcePartition, int], lateness: Lateness
) -> Progress:
    """How far partitions of transactions were, judged by what came before each transaction.

    The transactions of a batch count one by one, so the result does not depend on the batch size. A partition without
    any transaction does not count; without another partition the lag is 0. Labels do not count, although they can hold
    back compaction: how they lie between the transactions of a batch is not known. The first transaction of a partition
    is late only behind `Lateness.passed`, as those after it are.

    Args:
        time, span_of: (n,) int64, in batch order. seen: from `watermarks`, before the batch.
    """
    if not len(time):
        return Progress(time, np.zeros(0, dtype=np.bool_))
    topic = spans[int(span_of[0])].source.topic
    present = np.bincount(span_of, minlength=len(spans)).tolist()
    here = {span.source for span, count in zip(spans, present, strict=True) if count}
    still = [w for source, w in seen.items() if source.topic == topic and source not in here and w >= 0]
    reached = [seen.get(span.source, -1) if span.source in here else -1 for span in spans]
    # As for the kernel, the times of a Parquet file are made writable: numba compiles again for others.
    time = np.require(time, requirements="W")
    # One by one: numba takes microseconds to look at a named tuple.
    allowed_ms, passed, now_ms = lateness
    still_at, at = min(still, default=_AHEAD), np.array(reached, dtype=np.int64)
    return Progress(*_progress(time, span_of, at, still_at, allowed_ms, passed, now_ms))


@njit(cache=True, nogil=True)
def _progress(
    time: Ints, span_of: Ints, reached: Ints, still: int, allowed_ms: int, passed: int, now_ms: int
) -> tuple[Ints, Bools]:
    """`Progress`. `reached` is the newest event time of each span, -1 for none; it advances with the events."""
    lags, late = np.zeros_like(time), np.zeros(time.shape[0], dtype=np.bool_)
    for i in range(time.shape[0]):
        own, slowest = reached[span_of[i]], still
        for span in range(reached.shape[0]):
            if span != span_of[i] and reached[span] >= 0:
                slowest = min(slowest, reached[span])
        lags[i] = max(time[i] - min(slowest, time[i]), 0)
        late[i] = time[i] < min(max(min(slowest, own), passed), now_ms) - allowed_ms
        reached[span_of[i]] = max(own, time[i])
    return lags, late


def warm() -> None:
    """Compile, or load from the cache."""
    one = np.zeros(1, dtype=np.int64)
    _progress(one, one, one.copy(), _AHEAD, *Lateness(0))


def labels_age(
    time: Ints, span_of: Ints, spans: list[Span], seen: dict[SourcePartition, int], labelled_at: Ints, label_span: Ints
) -> Ints:
    """(n,) int64 ms: how long before each transaction the newest label was given; -1 if there never was one.

    The batch's own labels count if they come before the transaction in event-time order; labels of one partition keep
    the order of the log. So the result does not depend on the batch size.

    Args:
        labelled_at, label_span: (k,) int64 of the batch's labels. Others as in `progress`.
    """
    if not len(time):
        return time
    topic = spans[int(span_of[0])].source.topic
    newest = np.full(len(time), max((w for s, w in seen.items() if s.topic != topic), default=-1), dtype=np.int64)
    if len(labelled_at):
        begun = max((w for s, w in seen.items() if s.topic == topic), default=-1)
        given = np.empty_like(labelled_at)
        for index in np.unique(label_span).tolist():
            mine = label_span == index
            given[mine] = np.maximum.accumulate(np.maximum(labelled_at[mine], seen.get(spans[index].source, -1)))
        given.sort()
        by = np.searchsorted(given, np.maximum(np.maximum.accumulate(time), begun), side="right")
        np.maximum(newest, np.where(by > 0, given[by - 1], -1), out=newest)
    return np.where(newest < 0, -1, np.maximum(time - newest, 0))
