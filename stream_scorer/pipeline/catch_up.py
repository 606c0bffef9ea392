"""Catch-up: brings the rows up to date from the log, in a thread of its own, while scoring goes on.

After a loss it builds all rows again; after an outage of Redis it closes the gap. It reads what the group has
committed, in event-time order across partitions, passes it through the same decoder and engine as live records, and
applies it. Live scoring does not touch the rows meanwhile. When little is left, the processor resyncs: it reads the
last few records again as after any restart.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np

from stream_scorer.clock import Deadline
from stream_scorer.errors import StateGap
from stream_scorer.features.engine import FeatureEngine
from stream_scorer.pipeline.batch import MicroBatch
from stream_scorer.pipeline.decode import Decode
from stream_scorer.pipeline.ports import LogReader
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.serde.raw import RawRecords
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.state.rows import AppliedOffsets, AppliedRowStore

_log = logging.getLogger(__name__)
# Records per step of one partition: small enough that partitions advance together and live scoring is not delayed.
PIECE = 1_000
# With less than this to go, the processor reads the rest again itself, in a fraction of a second.
CLOSE = 5_000
# How often to look for more committed records, and at partitions that other scorers bring up.
POLL_S = 0.2
PROGRESS_EVERY_S = 5.0
# How often to log what other scorers still have to rebuild, and how many of their partitions.
WAIT_EVERY_S, MAX_NAMED = 30.0, 5
_WAITS = "features of this scorer's partitions are rebuilt; other scorers have %d records to go: %s"
_PROGRESS = "features catch up: %d records brought in, %d to go, %d/s"


class CatchUp:
    """See the module. Starts at once.

    Args:
        store: a store that no other thread uses. log: read by this thread only.
        committed: per owned partition, the offset up to which the group has scored.
        transactions_topic: which of the inputs carries transactions; the others carry labels.
        on_progress: called with the number of records brought in, and the number that remain.

    Attributes:
        ready: set when so little is left that the processor can read it again itself.
        failure: what ended it.
    """

    def __init__(
        self,
        checked: CheckedSpec,
        engine: FeatureEngine,
        store: AppliedRowStore,
        log: LogReader,
        committed: dict[SourcePartition, int],
        transactions_topic: str,
        on_progress: Callable[[int, int], None],
        piece: int = PIECE,
    ) -> None:
        self._decode = Decode(checked)
        self._engine, self._store, self._log = engine, store, log
        self._committed = dict(committed)
        self._transactions_topic = transactions_topic
        self._on_progress = on_progress
        self._piece = piece
        self._reads: dict[SourcePartition, tuple[Generator[RawRecords], int]] = {}
        self._wait_logged_at = time.monotonic() - WAIT_EVERY_S + PROGRESS_EVERY_S
        self._stop = threading.Event()
        self.ready = threading.Event()
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._guarded, name="catch-up", daemon=True)
        self._thread.start()

    def committed(self, spans: Sequence[Span]) -> None:
        """The group has scored `spans`: the catch-up has to reach their ends."""
        for span in spans:
            if span.source in self._committed:
                self._committed[span.source] = max(span.stop, self._committed[span.source])

    def stop(self, deadline: Deadline) -> bool:
        """End the thread; false if it has not ended before `deadline`. What it applied stays."""
        self._stop.set()
        self._thread.join(deadline.remaining_s)
        return not self._thread.is_alive()

    def _guarded(self) -> None:
        try:
            self._run()
        except BaseException as error:  # the scoring thread raises it
            self.failure = error
        finally:
            for records, _ in self._reads.values():
                records.close()
            self._log.close()

    def _run(self) -> None:
        applied = self._store.open()
        if applied is None:
            raise StateGap("Redis has lost features again")
        if not applied.complete:
            self._store.delete_old_epochs()
        position = {source: applied.next_offset[source] for source in self._committed}
        watermark = {source: applied.watermark[source] for source in self._committed}
        began, reported, done = time.monotonic(), time.monotonic(), 0
        while not self._stop.is_set():
            remaining = sum(max(self._committed[s] - at, 0) for s, at in position.items())
            self._on_progress(0, remaining)
            if remaining < CLOSE and not self.ready.is_set() and self._complete():
                _log.info(_PROGRESS, done, remaining, done / (time.monotonic() - began))
                self.ready.set()
            behind = [s for s, at in position.items() if at < self._committed[s]]
            if not behind:
                self._stop.wait(POLL_S)
                continue
            source = min(behind, key=lambda s: watermark[s])
            piece, upto = self._next(source, position[source])
            watermark[source] = max(watermark[source], self._apply(source, piece, position[source], upto))
            position[source] = upto
            done += len(piece)
            self._on_progress(len(piece), max(remaining - len(piece), 0))
            if time.monotonic() - reported > PROGRESS_EVERY_S:
                reported = time.monotonic()
                _log.info(_PROGRESS, done, remaining, done / (reported - began))

    def _complete(self) -> bool:
        """Whether the rows are rebuilt, for the partitions of all scorers. Logs now and then which ones are not."""
        applied = self._store.read([])[1]
        now = time.monotonic()
        if not applied.complete and now - self._wait_logged_at >= WAIT_EVERY_S:
            missing = _missing(applied)
            if missing.keys().isdisjoint(self._committed):
                self._wait_logged_at = now
                named = ", ".join(f"{lacks} of {s.topic}[{s.partition}]" for s, lacks in [*missing.items()][:MAX_NAMED])
                more = f" and {len(missing) - MAX_NAMED} more partitions" if len(missing) > MAX_NAMED else ""
                _log.info(_WAITS, sum(missing.values()), named + more)
        return applied.complete

    def _next(self, source: SourcePartition, start: int) -> tuple[RawRecords, int]:
        """The next records of `source`, and the offset up to which they are complete."""
        if source not in self._reads:
            stop = self._committed[source]
            self._reads[source] = _pieces(self._log.read(source, start, stop), self._piece), stop
        records, stop = self._reads[source]
        piece = next(records, None)
        if piece is not None:
            return piece, int(piece.offset[-1]) + 1
        # The rest of the range holds no record, only transaction markers.
        del self._reads[source]
        return RawRecords.empty(source.topic), stop

    def _apply(self, source: SourcePartition, records: RawRecords, start: int, stop: int) -> int:
        """Apply `records`, the complete content of ``[start, stop)``. Returns their newest event time, ms."""
        nothing = RawRecords.empty(source.topic)
        is_transaction = source.topic == self._transactions_topic
        transactions, labels = (records, nothing) if is_transaction else (nothing, records)
        batch = MicroBatch(transactions, labels, [Span(source, start, stop, -1)], None, scoring=False)
        self._decode.process(batch)
        assert batch.events is not None
        self._store.apply(self._engine.enrich(batch.events, self._store).update)
        return batch.spans[0].watermark


def _missing(applied: AppliedOffsets) -> dict[SourcePartition, int]:
    """How many records each partition lacks that the rows held before they were lost; the largest number first."""
    lacks = {s: target - applied.next_offset[s] for s, target in applied.target.items()}
    return {s: lacks[s] for s in sorted(lacks, key=lambda s: -lacks[s]) if lacks[s] > 0}


def _pieces(chunks: Iterator[RawRecords], size: int) -> Generator[RawRecords]:
    for chunk in chunks:
        for low in range(0, len(chunk), size):
            yield chunk.take(np.arange(low, min(low + size, len(chunk))))
