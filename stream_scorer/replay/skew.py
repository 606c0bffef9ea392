"""Feature skew: compares recorded features with features recomputed from the log, and with the training profile.

The log is read in the order of a replay and passed through the serving engine. The records of a live scorer can differ
from that for legitimate reasons: it saw a label earlier or later than a replay in event-time order, it processed a
backlog in which the partitions of a terminal were at different times, or a late transaction met a row that was cut at
another time (its status is partial). Wrongly served features also appear as skew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from stream_scorer.arrays import Floats, Int8s, Ints
from stream_scorer.ensemble.manifest import Series
from stream_scorer.ensemble.profile import Binner
from stream_scorer.errors import UsageError
from stream_scorer.features.engine import FeatureEngine
from stream_scorer.features.plan import reach_ms
from stream_scorer.kafka.topics import Topics
from stream_scorer.pipeline.batch import MicroBatch
from stream_scorer.pipeline.decode import Decode
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.records import MISSING, Record
from stream_scorer.replay.pieces import Piece, Positions, trim, with_trims
from stream_scorer.replay.recorded import TopicRanges, stored_lineage
from stream_scorer.replay.run import OnProgress
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.state.rows import MemoryRowStore

# One served score: its offset in the input, its features and their status; None if these are features of another spec.
ServedFeatures = tuple[int, Floats | None, Int8s | None]
# The served scores of a partition, at least those from an offset on, in the order of offsets.
Served = Callable[[int, int], Iterator[ServedFeatures]]
# The status of a score that was not served, and of one with features of another spec.
_NOT_SERVED, _OTHER_SPEC = -1, -2


class FeatureSkew(Record, frozen=True):
    """One feature over the scores of a period.

    `compared` counts the scores that recorded it, and `different` those with another recomputed value. The means are of
    the existing values, None if there are none; `largest` is the largest absolute difference. `counts` are the recorded
    values in the bins of the training profile; the last bin counts missing values.
    """

    name: str
    compared: int
    different: int
    mean_recorded: float | None
    mean_recomputed: float | None
    largest: float
    counts: list[int]


class SkewReport(Record, frozen=True):
    """`scores` counts the served scores of the period, `without` those that lacked some features."""

    scores: int
    without: int
    features: list[FeatureSkew]


def measure_skew(
    checked: CheckedSpec,
    pieces: Iterable[Piece],
    start: dict[SourcePartition, int],
    served: Served,
    profile: Mapping[str, Series],
    on_progress: OnProgress | None = None,
) -> SkewReport:
    """Compare the features of all `pieces` that are scored.

    Args:
        start: first offset of every input partition.
        served: see `Served`.
        profile: the training profile, which contains every feature.

    Raises:
        UsageError: a score has the features of another spec.
    """
    meter = SkewMeter(checked.features, served, profile)
    for found in recompute_features(checked, pieces, start, on_progress):
        meter.add(found)
    return meter.report()


@dataclass(frozen=True, slots=True)
class Recomputed:
    """Features (n, k) of transactions that are scored, recomputed, and where and when (ms) these are, (n,) each.

    `rejected` others cannot be read.
    """

    partition: NDArray[np.int32]
    offset: Ints
    event_time: Ints
    features: Floats
    rejected: int


def recompute_features(
    checked: CheckedSpec,
    pieces: Iterable[Piece],
    start: dict[SourcePartition, int],
    on_progress: OnProgress | None = None,
) -> Iterator[Recomputed]:
    """Pass `pieces` through the serving engine, in the order of a replay; the features of those that are scored.

    Args:
        start: first offset of every input partition.
        on_progress: is called with the number of records so far.
    """
    engine, store, decode = FeatureEngine(checked), MemoryRowStore(), Decode(checked)
    engine.warm()
    positions, done = Positions(start), 0
    for piece, trims in with_trims(pieces):
        covered = positions.advance(piece.labels) | positions.advance(piece.transactions)
        spans = [Span(source, low, high, -1) for source, (low, high) in covered.items()]
        batch = MicroBatch(piece.transactions, piece.labels, spans, None, piece.scoring)
        decode.process(batch)
        assert batch.events is not None
        enriched = engine.enrich(batch.events, store)
        store.apply(enriched.update)
        if trims:
            trim(store, reach_ms(checked))
        if piece.scoring:
            found, records = batch.events.transactions, piece.transactions
            yield Recomputed(
                records.partition[found.row],
                records.offset[found.row],
                found.event_time,
                enriched.matrix,
                rejected=len(records) - len(found),
            )
        done += len(piece)
        if on_progress is not None:
            on_progress(done)


class SkewMeter:
    """Compares recomputed features with the served ones, for any pass in the order of a replay.

    Args:
        names: the features. served, profile: see `measure_skew`.
    """

    def __init__(self, names: list[str], served: Served, profile: Mapping[str, Series]) -> None:
        self._served, self._width = served, len(names)
        self._sums = _Sums(names, profile)
        self._cursors: dict[int, _Cursor] = {}
        # Scores with the features of another spec: how many, and the time (ms) at which the last one was in order.
        self._other, self._other_until = 0, -1

    def add(self, found: Recomputed) -> None:
        """Add recomputed features."""
        for one in np.unique(found.partition).tolist():
            rows = np.flatnonzero(found.partition == one)
            offsets = found.offset[rows].tolist()
            if one not in self._cursors:
                self._cursors[one] = _Cursor(self._served(one, offsets[0]))
            recorded, status = self._cursors[one].take(offsets, self._width)
            newest = self._cursors[one].advance(found.event_time[rows])
            other = (status == _OTHER_SPEC).any(axis=1)
            self._other += int(other.sum())
            self._other_until = max(self._other_until, int(newest[other].max(initial=-1)))
            self._sums.add(recorded, status, found.features[rows])

    def report(self) -> SkewReport:
        """The report on all added transactions.

        Raises:
            UsageError: a score has the features of another spec.
        """
        found = self._sums.report()
        if not self._other:
            return found
        message = f"{self._other:,} of {found.scores + self._other:,} scores have features other than those of the spec"
        if not found.scores:
            raise UsageError(message, hint="Give the spec of that time, or a range in which this spec was served.")
        after = datetime.fromtimestamp((self._other_until + 1) / 1_000, UTC).isoformat(timespec="milliseconds")
        raise UsageError(
            f"{message}, the last one just before {after}",
            hint=f"Compare only later ones: --start {after}; for a promotion, a shorter `traffic` in the gate's rules.",
        )


def served_features(reader: TopicRanges, topics: Topics, feature_hash: str) -> Served:
    """The features that live scorers recorded."""

    def of(partition: int, first: int) -> Iterator[ServedFeatures]:
        for stored in stored_lineage(reader, topics, partition):
            if stored.next_offset <= first:
                continue
            record = stored.decode()
            if record.header.feature_hash == feature_hash:
                yield from zip(record.offset.tolist(), record.features, record.status, strict=True)
            else:
                yield from ((offset, None, None) for offset in record.offset.tolist())

    return of


class _Cursor:
    """A forward cursor over the served records of one partition, and its newest event time (ms)."""

    def __init__(self, served: Iterator[ServedFeatures]) -> None:
        self._served = served
        self._ahead = next(served, None)
        self._newest = -1

    def take(self, offsets: list[int], features: int) -> tuple[Floats, Ints]:
        """Recorded features (n, features) at `offsets`, and their status (n, features), or one of those above."""
        values = np.full((len(offsets), features), np.nan)
        status = np.full((len(offsets), features), _NOT_SERVED, dtype=np.int64)
        for row, offset in enumerate(offsets):
            while self._ahead is not None and self._ahead[0] < offset:
                self._ahead = next(self._served, None)
            if self._ahead is not None and self._ahead[0] == offset:
                _, served, of = self._ahead
                values[row] = np.nan if served is None else served
                status[row] = _OTHER_SPEC if of is None else of
        return values, status

    def advance(self, event_time: Ints) -> Ints:
        """The running maximum of the event time (n,) of the next transactions, which orders a replay."""
        newest = np.maximum.accumulate(np.maximum(event_time, self._newest))
        self._newest = int(newest[-1])
        return newest


class _Sums:
    """Sums per feature."""

    def __init__(self, names: list[str], profile: Mapping[str, Series]) -> None:
        self._names = names
        self._binner = Binner(profile, names)
        k = len(names)
        self._scores = self._without = 0
        self._compared, self._different = np.zeros(k, dtype=np.int64), np.zeros(k, dtype=np.int64)
        self._sum, self._number = np.zeros((2, k)), np.zeros((2, k), dtype=np.int64)
        self._largest = np.zeros(k)
        self._counts = np.zeros((k, self._binner.max_bins), dtype=np.int64)

    def add(self, recorded: Floats, status: Ints, recomputed: Floats) -> None:
        """Add a batch of scores: (n, k) each."""
        served = status[:, 0] >= 0 if status.shape[1] else np.zeros(len(status), dtype=np.bool_)
        recorded, status, recomputed = recorded[served], status[served], recomputed[served]
        available = status != MISSING
        self._scores += len(recorded)
        self._without += int((~available).any(axis=1).sum())
        self._compared += available.sum(axis=0)
        different = available & (recorded != recomputed) & ~(np.isnan(recorded) & np.isnan(recomputed))
        self._different += different.sum(axis=0)
        for side, values in enumerate((recorded, recomputed)):
            known = available & ~np.isnan(values)
            self._sum[side] += np.where(known, values, 0.0).sum(axis=0)
            self._number[side] += known.sum(axis=0)
        difference = np.abs(np.where(different, recorded - recomputed, 0.0))
        self._largest = np.fmax(self._largest, np.nan_to_num(difference).max(axis=0, initial=0.0))
        self._counts += self._binner.count(recorded, np.zeros(len(recorded), dtype=np.int64), 1)[0]

    def report(self) -> SkewReport:
        """The report on all added scores."""
        means = np.divide(self._sum, self._number, out=np.full_like(self._sum, np.nan), where=self._number > 0)
        features = [
            FeatureSkew(
                name=name,
                compared=int(self._compared[i]),
                different=int(self._different[i]),
                mean_recorded=None if np.isnan(means[0, i]) else float(means[0, i]),
                mean_recomputed=None if np.isnan(means[1, i]) else float(means[1, i]),
                largest=float(self._largest[i]),
                counts=self._counts[i, : int(self._binner.bins[i])].tolist(),
            )
            for i, name in enumerate(self._names)
        ]
        return SkewReport(self._scores, self._without, features)
