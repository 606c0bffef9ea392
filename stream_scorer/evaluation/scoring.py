"""The pass over the input: features once, each distinct member once, a formula per version, results in pieces."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_scorer.clock import Clock
from stream_scorer.ensemble.ensemble import Ensemble, MemberOutput
from stream_scorer.ensemble.lineup import MemberPool
from stream_scorer.evaluation.batches import Batch, Batches
from stream_scorer.evaluation.labels import KnownLabels
from stream_scorer.evaluation.sources import Source
from stream_scorer.evaluation.store import Columns, Counts, PieceRecord, Store, digest_of
from stream_scorer.features.engine import FeatureEngine
from stream_scorer.pipeline.policy import Policy
from stream_scorer.serde.decoder import Transactions, hash_ids
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.state.rows import MemoryRowStore

I64 = NDArray[np.int64]
# Called with the number of input records that are done.
OnProgress = Callable[[int], None]
# Called with the features (n, k) of each batch in the range.
OnFeatures = Callable[[NDArray[np.float64]], None]
OUTCOMES = ("label", "labelled_at")
STAGES = ("read", "features", "members", "formulas", "write")


@dataclass(slots=True)
class Timing:
    """Wall-clock seconds: `stages` by name, `members` by member."""

    stages: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    members: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Piece:
    """Columns of the piece that is being filled, as lists of batches."""

    columns: dict[str, list[NDArray[np.generic]]] = field(default_factory=dict)
    event_id: list[str] = field(default_factory=list)
    features: hashlib._Hash = field(default_factory=hashlib.sha256)

    def add(self, columns: dict[str, NDArray[np.generic]], event_id: list[str], matrix: NDArray[np.float64]) -> None:
        for name, column in columns.items():
            self.columns.setdefault(name, []).append(column)
        self.event_id += event_id
        self.features.update(np.ascontiguousarray(matrix).tobytes())

    def joined(self) -> Columns:
        return {name: np.concatenate(parts) for name, parts in self.columns.items()}


class Pass:
    """Scores the transactions of a source with several versions.

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
        self.pool = MemberPool(versions)
        self.timing = Timing(members=dict.fromkeys(self.pool.names, 0.0))
        self._checked, self._versions, self._segments = checked, versions, segments
        self._store, self._clock = store, clock
        self._rows, self._piece_rows = rows, piece_rows
        self._engine = FeatureEngine(checked)
        self._engine.warm()
        self._policy = Policy(checked)
        self.counts = Counts()

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
        piece = _Piece()
        position = skip
        for batch in self._read(batches.of(source.runs())):
            self._process(batch, rows, piece, source.labels, on_features)
            position = batch.stop[0]
            if batch.ends_piece:
                self._finish(piece, rows, position)
                piece = _Piece()
            if on_progress is not None:
                on_progress(self.counts.records)
        self._finish(piece, rows, position)
        records, refused = batches.uncounted
        counts = self.counts
        self.counts = msgspec.structs.replace(
            counts, records=counts.records + records, refused=counts.refused + refused
        )
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
        piece: _Piece,
        labels: KnownLabels,
        on_features: OnFeatures | None,
    ) -> None:
        stages, began = self.timing.stages, self._clock.monotonic()
        enriched = self._engine.enrich(batch.events, rows)
        rows.apply(enriched.update)
        stages["features"] += self._clock.monotonic() - began
        transactions, missing, duplicates = batch.events.transactions, 0, 0
        if batch.scored:
            if on_features is not None:
                on_features(enriched.matrix)
            began = self._clock.monotonic()
            features = self.pool.checked(enriched.matrix)
            outputs = [self.pool.predict_member(index, features) for index in range(len(self.pool))]
            for name, output in zip(self.pool.names, outputs, strict=True):
                self.timing.members[name] += output.seconds
            stages["members"] += self._clock.monotonic() - began
            began = self._clock.monotonic()
            columns = self._facts(batch, enriched.duplicate, labels)
            results, missing = self._results(transactions, outputs)
            piece.add(columns | results, transactions.event_id, enriched.matrix)
            duplicates = int(enriched.duplicate.sum())
            stages["formulas"] += self._clock.monotonic() - began
        self._count(batch, duplicates, missing)

    def _count(self, batch: Batch, duplicates: int, missing: int) -> None:
        c, n = self.counts, len(batch)
        self.counts = Counts(
            records=c.records + batch.records,
            warmed=c.warmed + (0 if batch.scored else n),
            scored=c.scored + (n if batch.scored else 0),
            duplicates=c.duplicates + duplicates,
            refused=c.refused + batch.refused,
            labels=c.labels + len(batch.events.labels),
            missing=c.missing + missing,
        )

    def _facts(self, batch: Batch, duplicate: NDArray[np.bool_], labels: KnownLabels) -> dict[str, NDArray[np.generic]]:
        """What does not depend on the versions."""
        transactions = batch.events.transactions
        label, labelled_at = labels.of(transactions.id_hash)
        columns: dict[str, NDArray[np.generic]] = {
            "event_time": transactions.event_time,
            "time": batch.time,
            "value": transactions.value,
            "card": self._cards(transactions),
            "duplicate": duplicate,
            "label": label,
            "labelled_at": labelled_at,
        }
        for name in self._segments:
            codes = transactions.columns[name]
            columns[f"segment_{name}"] = np.where(np.isnan(codes), -1, codes).astype(np.int16)
        return columns

    def _cards(self, transactions: Transactions) -> I64:
        """(n,) int64: the hash of the partition entity; that of the transaction if it has none."""
        ids = transactions.entity_ids.get(self._checked.spec.partition_entity or "")
        if ids is None:
            return transactions.id_hash
        absent = np.array([i is None for i in ids], np.bool_)
        return np.where(absent, transactions.id_hash, hash_ids([i or "" for i in ids]))

    def _results(
        self, transactions: Transactions, outputs: Sequence[MemberOutput]
    ) -> tuple[dict[str, NDArray[np.generic]], int]:
        """Member outputs, and scores and decisions of every version; the number of missing scores."""
        columns: dict[str, NDArray[np.generic]] = {f"m{i}": output.raw for i, output in enumerate(outputs)}
        rules, missing = self._policy.rules(transactions), 0
        if rules is not None:
            columns["rule_review"] = rules.review
        for index, version in enumerate(self._versions):
            scored = version.combine(self.pool.outputs_of(index, outputs))
            columns[f"s{index}"] = scored.score
            columns[f"d{index}"] = self._policy.decide(scored.score, version.manifest.thresholds, rules)
            missing += int(np.isnan(scored.score).sum())
        return columns, missing

    def _finish(self, piece: _Piece, rows: MemoryRowStore, position: int) -> None:
        if not piece.event_id:
            return
        began = self._clock.monotonic()
        columns = piece.joined()
        outcomes = [columns[name] for name in OUTCOMES]
        results = [column for name, column in columns.items() if name not in OUTCOMES]
        record = PieceRecord(
            rows=len(piece.event_id),
            features=piece.features.hexdigest(),
            scores=digest_of(piece.event_id, *results),
            outcomes=digest_of(*outcomes),
            transactions=position,
            counts=self.counts,
        )
        self._store.add({"event_id": piece.event_id, **columns}, record, rows)
        self.timing.stages["write"] += self._clock.monotonic() - began
