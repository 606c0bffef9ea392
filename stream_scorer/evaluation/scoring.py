"""The pass over the input: features once, each distinct member once, a formula per version, results in pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_scorer.clock import Clock
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.evaluation.batches import Batch, Batches
from stream_scorer.evaluation.labels import KnownLabels
from stream_scorer.evaluation.piece import Piece, Scorer, Timing, count_batch
from stream_scorer.evaluation.sources import Source
from stream_scorer.evaluation.store import Counts, PieceRecord, Store
from stream_scorer.features.engine import FeatureEngine
from stream_scorer.features.plan import reach_ms
from stream_scorer.features.shards import trim_time
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.state.rows import MemoryRowStore

# Called with the number of input records that are done.
OnProgress = Callable[[int], None]
# Called with the features (n, k) of each batch in the range.
OnFeatures = Callable[[NDArray[np.float64]], None]


class Pass:
    """Scores the transactions of a source with several versions, in this process.

    Args:
        versions: the champion first. segments: names of fields whose values the pieces contain as codes.
    """

    def __init__(
        self,
        checked: CheckedSpec,
        versions: Sequence[Ensemble],
        segments: Sequence[str],
        store: Store,
        clock: Clock,
        *,
        rows: int,
        piece_rows: int,
    ) -> None:
        self._scorer = Scorer(checked, versions, segments, clock)
        self._checked, self._store, self._clock = checked, store, clock
        self._rows, self._piece_rows = rows, piece_rows
        self._engine = FeatureEngine(checked)
        self._engine.warm()
        self._reach_ms = reach_ms(checked)
        self.counts = Counts()

    @property
    def timing(self) -> Timing:
        """The seconds that each stage and each member took."""
        return self._scorer.timing

    def run(
        self, source: Source, on_progress: OnProgress | None = None, on_features: OnFeatures | None = None
    ) -> Counts:
        """Score what is not complete yet; return the counts."""
        store = self._store
        self.counts = store.counts
        if store.complete:
            return self.counts
        rows = store.feature_rows()
        skip = store.pieces[-1].transactions if store.pieces else 0
        batches = Batches(self._checked, self._rows, self._piece_rows, skip=skip)
        piece = Piece()
        position = skip
        for batch in self._read(batches.of(source.runs())):
            self._process(batch, rows, piece, source.labels, on_features)
            position = batch.stop[0]
            if batch.ends_piece:
                self._finish(piece, rows, position)
                piece = Piece()
            if on_progress is not None:
                on_progress(self.counts.records)
        self._finish(piece, rows, position)
        self.counts = self.counts.with_records(*batches.uncounted)
        store.finish(self.counts)
        return self.counts

    def _read(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            began = self._clock.monotonic()
            batch = next(batches, None)
            self.timing.stages["read"] += self._clock.monotonic() - began
            if batch is None:
                return
            yield batch

    def _process(
        self,
        batch: Batch,
        rows: MemoryRowStore,
        piece: Piece,
        labels: KnownLabels,
        on_features: OnFeatures | None,
    ) -> None:
        began = self._clock.monotonic()
        enriched = self._engine.enrich(batch.events, rows)
        rows.apply(enriched.update)
        if batch.trims:
            rows.trim(trim_time(rows, self._reach_ms))
        self.timing.stages["features"] += self._clock.monotonic() - began
        transactions, missing, duplicates = batch.events.transactions, 0, 0
        if batch.scored:
            if on_features is not None:
                on_features(enriched.matrix)
            columns, missing = self._scorer.results(
                transactions, batch.time, enriched.matrix, enriched.duplicate, labels.outcomes
            )
            began = self._clock.monotonic()
            piece.add(columns, transactions.event_id, enriched.matrix)
            duplicates = int(np.count_nonzero(enriched.duplicate))
            self.timing.stages["formulas"] += self._clock.monotonic() - began
        counts = count_batch(self.counts, batch)
        self.counts = msgspec.structs.replace(
            counts, duplicates=counts.duplicates + duplicates, missing=counts.missing + missing
        )

    def _finish(self, piece: Piece, rows: MemoryRowStore, position: int) -> None:
        if not piece.event_id:
            return
        began = self._clock.monotonic()
        found = piece.complete()
        record = PieceRecord(
            rows=len(found),
            features=found.features,
            scores=found.scores,
            outcomes=found.outcomes,
            transactions=position,
            counts=self.counts,
        )
        self._store.add(found.columns, record, rows)
        self.timing.stages["write"] += self._clock.monotonic() - began
