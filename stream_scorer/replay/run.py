"""Runs pieces through the scorer's stages `decode -> enrich -> score -> publish`, with feature rows in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from stream_scorer.clock import Clock
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.lineup import Lineup
from stream_scorer.features.engine import FeatureEngine
from stream_scorer.features.plan import reach_ms
from stream_scorer.kafka.topics import Topics
from stream_scorer.observability.metrics import Metrics
from stream_scorer.pipeline.batch import MicroBatch
from stream_scorer.pipeline.decode import Decode
from stream_scorer.pipeline.enrich import EnrichInProcess
from stream_scorer.pipeline.publish import OutputWriter
from stream_scorer.pipeline.score import Scoring
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.records import DECISIONS, AppliedOffset, LineageRow
from stream_scorer.replay.lineage import Lineage, restate
from stream_scorer.replay.pieces import Piece, Positions, trim, with_trims
from stream_scorer.replay.quality import EffectiveLabels, ScoredRows
from stream_scorer.serde.lineage import LineageBatch
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.state.rows import AppliedOffsets, MemoryRowStore

# Called for every score, with the bytes of score and contribution, and the row of lineage.
Emit = Callable[[bytes, bytes, LineageRow], None]
# Called with the number of processed records.
OnProgress = Callable[[int], None]


@dataclass(slots=True)
class Totals:
    """Counts: `warmed` transactions only updated features; `decisions` of the `scored` ones, by name."""

    transactions: int = 0
    labels: int = 0
    warmed: int = 0
    scored: int = 0
    dead_letters: int = 0
    duplicates: int = 0
    batches: int = 0
    decisions: dict[str, int] | None = None


class _Outputs:
    """A `Sink` that joins each score with its contribution and lineage; other outputs of a scorer are dropped."""

    def __init__(self, topics: Topics, emit: Emit) -> None:
        self._topics = topics.scores, topics.contributions, topics.lineage
        self._emit = emit
        self._scores: list[bytes] = []
        self._contributions: list[bytes] = []
        self._rows: list[LineageRow] = []

    def produce(self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Any = None) -> None:
        """See `Sink.produce`."""
        scores, contributions, lineage = self._topics
        if topic == scores:
            self._scores.append(value or b"")
        elif topic == contributions:
            self._contributions.append(value or b"")
        elif topic == lineage:
            self._rows += LineageBatch(value or b"").rows()

    def finish(self, positions: Iterator[tuple[int, list[AppliedOffset]]]) -> None:
        """Emit the scores of one batch with their places and applied offsets in `positions`."""
        rows = sorted(self._rows, key=lambda row: row.place)
        for score, contribution, row, (place, applied) in zip(
            self._scores, self._contributions, rows, positions, strict=True
        ):
            self._emit(score, contribution, restate(row, place, applied))
        self._scores, self._contributions, self._rows = [], [], []


class Replay:
    """Runs pieces through the stages.

    Args:
        start: first offset of every input partition, also of the applied offsets.
        emit: called for every score.
        labels: by which `rows` are to be evaluated.
    """

    def __init__(
        self,
        checked: CheckedSpec,
        ensemble: Ensemble,
        topics: Topics,
        clock: Clock,
        *,
        start: dict[SourcePartition, int],
        emit: Emit,
        labels: EffectiveLabels | None = None,
    ) -> None:
        self._engine = FeatureEngine(checked)
        self._engine.warm()
        self._reach_ms = reach_ms(checked)
        self._store = MemoryRowStore(AppliedOffsets({}, {}, labels_topic=topics.labels))
        self._decode = Decode(checked)
        self._enrich = EnrichInProcess(self._engine, self._store)
        lineup = Lineup.of(ensemble)
        self._score = Scoring(lambda: lineup, checked, Metrics())
        self._writer = OutputWriter(topics, checked, clock)
        self._outputs = _Outputs(topics, emit)
        self._positions = Positions(start)
        self._lineage = Lineage(start)
        self._decisions = np.zeros(len(DECISIONS), dtype=np.int64)
        self.totals = Totals()
        self.rows = ScoredRows(labels)

    def run(self, pieces: Iterable[Piece], on_progress: OnProgress | None = None) -> Totals:
        """Replay `pieces` in order. The calls of `emit` do not depend on the size of the pieces."""
        for piece, trims in with_trims(pieces):
            if len(piece):
                self._process(piece)
            elif piece.batch_start:  # an empty served micro-batch still advances the applied offsets
                self._exhaust(piece, np.zeros(0, dtype=np.int64))
            if trims:
                trim(self._store, self._reach_ms)
            if on_progress is not None:
                on_progress(self.totals.transactions + self.totals.labels)
        self.totals.decisions = dict(zip(DECISIONS, self._decisions.tolist(), strict=True))
        return self.totals

    def _process(self, piece: Piece) -> None:
        covered = self._positions.advance(piece.labels) | self._positions.advance(piece.transactions)
        spans = [Span(source, start, stop, -1) for source, (start, stop) in covered.items()]
        batch = MicroBatch(piece.transactions, piece.labels, spans, None, piece.scoring)
        self._decode.process(batch)
        assert batch.events is not None
        self._enrich.process(batch)
        assert batch.enriched is not None
        rows = batch.events.transactions.row
        if piece.scoring:
            self._score.process(batch)
            self._writer.write(batch, self._outputs)
            self._outputs.finish(self._lineage.follow(piece, rows))
            self._record(batch)
        else:
            self._exhaust(piece, rows)
        self._store.apply(batch.enriched.update)
        self._count(batch)

    def _exhaust(self, piece: Piece, rows: Any) -> None:
        for _ in self._lineage.follow(piece, rows):
            raise AssertionError("a piece that is not scored has no scores")

    def _record(self, batch: MicroBatch) -> None:
        assert batch.events is not None and batch.enriched is not None and batch.decided is not None
        scored = batch.decided.results[0].scored
        self.rows.add(batch.events.transactions.event_id, scored.score, scored.member_scores, batch.enriched.duplicate)
        self._decisions += np.bincount(batch.decided.decision, minlength=len(DECISIONS))

    def _count(self, batch: MicroBatch) -> None:
        assert batch.events is not None and batch.enriched is not None
        totals, n = self.totals, len(batch.events.transactions)
        totals.batches += 1
        totals.transactions += len(batch.transactions)
        totals.labels += len(batch.labels)
        totals.dead_letters += len(batch.dead)
        if batch.scoring:
            totals.scored += n
            totals.duplicates += int(batch.enriched.duplicate.sum())
        else:
            totals.warmed += n
