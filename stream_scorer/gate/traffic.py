"""One pass over recent traffic: a sample of feature rows, and the comparison with recorded features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stream_scorer.errors import UsageError
from stream_scorer.features.engine import FeatureEngine
from stream_scorer.gate.result import RuleResult, at_most, not_measured
from stream_scorer.parquet import import_pyarrow, readable
from stream_scorer.pipeline.batch import MicroBatch
from stream_scorer.pipeline.decode import Decode
from stream_scorer.positions import Span
from stream_scorer.replay.pieces import Positions
from stream_scorer.replay.skew import ServedFeatures, SkewMeter, SkewReport
from stream_scorer.replay.sources import ReplayInput
from stream_scorer.spec.gate_rules import Skew
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.state.rows import MemoryRowStore

F64 = NDArray[np.float64]
OnProgress = Callable[[int], None]
# Rows of the sample: the distance of two equal distributions on 20 bins is about 0.01.
SAMPLE_ROWS = 20_000
_NAMED = 3


class RowSample:
    """An even sample of rows: every k-th one, where k doubles whenever the sample is twice as large as `limit`."""

    def __init__(self, columns: int, limit: int = SAMPLE_ROWS) -> None:
        self._limit, self._stride, self._seen = limit, 1, 0
        self._rows = np.zeros((0, columns))

    def add(self, rows: F64) -> None:
        """Add rows (n, k)."""
        first = -self._seen % self._stride
        self._rows = np.concatenate([self._rows, rows[first :: self._stride]])
        self._seen += len(rows)
        while len(self._rows) >= 2 * self._limit:
            self._rows = np.ascontiguousarray(self._rows[::2])
            self._stride *= 2

    @property
    def rows(self) -> F64:
        """The sample (m, k), in order of time."""
        return self._rows


@dataclass(frozen=True, slots=True)
class Traffic:
    """Recent traffic: the number of transactions, a sample of their features (m, k), and the skew if measured."""

    transactions: int
    features: F64
    skew: SkewReport | None


def read_traffic(
    checked: CheckedSpec, source: ReplayInput, meter: SkewMeter | None, on_progress: OnProgress | None = None
) -> Traffic:
    """Compute the features of `source` in the order of a replay."""
    engine, store, decode = FeatureEngine(checked), MemoryRowStore(), Decode(checked)
    engine.warm()
    positions, sample = Positions(source.start), RowSample(len(checked.features))
    transactions = done = 0
    for piece in source.pieces:
        covered = positions.advance(piece.labels) | positions.advance(piece.transactions)
        spans = [Span(at, low, high, -1) for at, (low, high) in covered.items()]
        batch = MicroBatch(piece.transactions, piece.labels, spans, None, piece.scoring)
        decode.process(batch)
        assert batch.events is not None
        enriched = engine.enrich(batch.events, store)
        store.apply(enriched.update)
        if piece.scoring:
            transactions += len(batch.events.transactions)
            sample.add(enriched.matrix)
            if meter is not None:
                rows = batch.events.transactions.row
                meter.add(piece.transactions.partition[rows], piece.transactions.offset[rows], enriched.matrix)
        done += len(piece)
        if on_progress is not None:
            on_progress(done)
    return Traffic(transactions, sample.rows, None if meter is None else meter.report())


def skew(rule: Skew, report: SkewReport | None, read: list[str]) -> RuleResult:
    """The largest share of scores in which a feature of `read` was recorded with another value."""
    if report is None or report.scores == 0:
        return not_measured(
            "skew", rule.max_share, "no recorded features in the range; read the topics, or give --served"
        )
    if report.scores < rule.min_scores:
        return not_measured(
            "skew", rule.max_share, f"{report.scores:,} recorded scores, {rule.min_scores:,} are needed"
        )
    found = sorted(
        ((f.different / f.compared, f.name) for f in report.features if f.compared and f.name in read), reverse=True
    )
    if not found:
        return not_measured("skew", rule.max_share, "no score recorded a feature that the candidate reads")
    different = ", ".join(f"{name} {share:.2%}" for share, name in found[:_NAMED] if share > 0.0)
    reason = f"{report.scores:,} scores; {f'differs: {different}' if different else 'no feature differs'}"
    return at_most("skew", found[0][0], rule.max_share, reason)


def served_from_file(path: Path, checked: CheckedSpec) -> Callable[[int], Iterator[ServedFeatures]]:
    """The features in a file ``lineage.parquet`` (docs/replay.md), by partition, in the order of their offsets.

    Raises (while reading):
        UsageError: the file cannot be read, or has the features of another spec.
    """

    def of(partition: int) -> Iterator[ServedFeatures]:
        _, pq = import_pyarrow("replay")
        with readable(path), pq.ParquetFile(path) as file:
            missing = {"source", "features", "feature_status", "feature_hash"} - set(file.schema_arrow.names)
            if missing:
                raise UsageError(f"{path} has no column {min(missing)!r}", hint="Give the lineage.parquet of a replay.")
            for batch in file.iter_batches(16_384, columns=["source", "features", "feature_status", "feature_hash"]):
                for row in batch.to_pylist():
                    if row["source"]["partition"] != partition:
                        continue
                    if row["feature_hash"] != checked.feature_hash:
                        raise UsageError(f"{path} has features other than those of the spec")
                    values = np.array([np.nan if v is None else v for v in row["features"]], np.float64)
                    yield row["source"]["offset"], values, np.array(row["feature_status"], np.int8)

    return of
