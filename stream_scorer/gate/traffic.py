"""One pass over recent traffic: a sample of feature rows, and the comparison with recorded features."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stream_scorer.arrays import Floats, Int8s
from stream_scorer.errors import UsageError
from stream_scorer.gate.result import RuleResult, at_most, not_measured
from stream_scorer.parquet import import_pyarrow, readable, require_columns
from stream_scorer.replay.skew import Served, ServedFeatures, SkewMeter, SkewReport, recompute_features
from stream_scorer.replay.sources import ReplayInput
from stream_scorer.spec.gate_rules import Skew
from stream_scorer.spec.model import CheckedSpec

OnProgress = Callable[[int], None]
# Rows of the sample: the distance of two equal distributions on 20 bins is about 0.01.
SAMPLE_ROWS = 20_000
_NAMED = 3
# Rows of a file that are decoded together.
_CHUNK = 16_384
# Offsets (n), features (n, k) and their status (n, k) of one partition.
_Chunk = tuple[list[int], Floats, Int8s]


class RowSample:
    """An even sample of rows: every k-th one, where k doubles whenever the sample is twice as large as `limit`."""

    def __init__(self, columns: int, limit: int = SAMPLE_ROWS) -> None:
        self._limit, self._stride, self._seen = limit, 1, 0
        self._rows = np.zeros((0, columns))

    def add(self, rows: Floats) -> None:
        """Add rows (n, k)."""
        first = -self._seen % self._stride
        self._rows = np.concatenate([self._rows, rows[first :: self._stride]])
        self._seen += len(rows)
        while len(self._rows) >= 2 * self._limit:
            self._rows = np.ascontiguousarray(self._rows[::2])
            self._stride *= 2

    @property
    def rows(self) -> Floats:
        """The sample (m, k), in order of time."""
        return self._rows


@dataclass(frozen=True, slots=True)
class Traffic:
    """Recent traffic: the number of transactions, a sample of their features (m, k), and the skew if measured.

    `rejected` transactions cannot be read.
    """

    transactions: int
    rejected: int
    features: Floats
    skew: SkewReport | None


def read_traffic(
    checked: CheckedSpec, source: ReplayInput, meter: SkewMeter | None, on_progress: OnProgress | None = None
) -> Traffic:
    """Compute the features of `source` in the order of a replay."""
    sample, transactions, rejected = RowSample(len(checked.features)), 0, 0
    for found in recompute_features(checked, source.pieces, source.start, on_progress):
        transactions += len(found.features)
        rejected += found.rejected
        sample.add(found.features)
        if meter is not None:
            meter.add(found)
    return Traffic(transactions, rejected, sample.rows, None if meter is None else meter.report())


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
    wanted = [feature for feature in report.features if feature.name in read]
    if not wanted:
        return not_measured("skew", rule.max_share, "no score recorded a feature that the candidate reads")
    # Without its rows, a score records a feature as missing.
    rarest = min(wanted, key=lambda feature: feature.compared)
    if rarest.compared < rule.min_scores:
        few = f"{rarest.name} is in {rarest.compared:,} of {report.scores:,} recorded scores"
        return not_measured("skew", rule.max_share, f"{few}, {rule.min_scores:,} are needed")
    found = sorted(((f.different / f.compared, f.name) for f in wanted), reverse=True)
    different = ", ".join(f"{name} {share:.2%}" for share, name in found[:_NAMED] if share > 0.0)
    reason = f"{report.scores:,} scores; {f'differs: {different}' if different else 'no feature differs'}"
    return at_most("skew", found[0][0], rule.max_share, reason)


def served_from_file(path: Path, checked: CheckedSpec) -> Served:
    """The features in a file ``lineage.parquet`` (docs/replay.md).

    The file is read once for all partitions, as far as they are read. Each partition can be read once.

    Raises (while reading):
        UsageError: the file cannot be read, or has the features of another spec.
    """
    chunks = _served_chunks(path, checked)
    waiting: defaultdict[int, deque[_Chunk]] = defaultdict(deque)

    def of(partition: int, _first: int) -> Iterator[ServedFeatures]:
        while True:
            while waiting[partition]:
                yield from zip(*waiting[partition].popleft(), strict=True)
            chunk = next(chunks, None)
            if chunk is None:
                return
            for one, served in chunk:
                waiting[one].append(served)

    return of


def _served_chunks(path: Path, checked: CheckedSpec) -> Iterator[list[tuple[int, _Chunk]]]:
    """Per chunk of the file, the served features of each partition in it."""
    _, pq = import_pyarrow()
    columns = ["feature_hash", "feature_status", "features", "source"]
    with readable(path), pq.ParquetFile(path) as file:
        require_columns(path, file.schema_arrow.names, columns, hint="Give the lineage.parquet of a replay.")
        for batch in file.iter_batches(_CHUNK, columns=columns):
            if set(batch.column("feature_hash").unique().to_pylist()) - {checked.feature_hash}:
                raise UsageError(f"{path} has features other than those of the spec")
            source = batch.column("source")
            partition, offset = (source.field(name).to_numpy() for name in ("partition", "offset"))
            values, status = (batch.column(name).flatten() for name in ("features", "feature_status"))
            shape = batch.num_rows, len(checked.features)
            if not len(values) == len(status) == shape[0] * shape[1]:
                raise UsageError(f"{path} has rows that do not have {shape[1]} features")
            values = values.to_numpy(zero_copy_only=False).astype(np.float64).reshape(shape)
            status = status.to_numpy(zero_copy_only=False).astype(np.int8).reshape(shape)
            places = ((one, np.flatnonzero(partition == one)) for one in np.unique(partition).tolist())
            yield [(one, (offset[rows].tolist(), values[rows], status[rows])) for one, rows in places]
