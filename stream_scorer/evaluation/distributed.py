"""The pass over a Parquet file on several workers, with the results of `scoring.Pass`, byte for byte (ADR 0045).

The file is processed in blocks of `BLOCK` rows. Each block passes four stages, and several blocks are on the way:

    read         a worker reads the rows itself and splits them by the shards of each entity
    cut          this process cuts them into micro-batches, which needs times, and the ids of entities with labels
    features     the shards of the partition entity, which also find the duplicates; then those of the other entities
    score        a worker joins the columns of a piece, calls the members and computes the digests

This process writes the pieces in order.
"""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from stream_scorer.arrays import Bools, Floats, Ints
from stream_scorer.clock import Clock, SystemClock
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.manifest import MANIFEST_FILE, read_manifest, read_members
from stream_scorer.errors import UsageError
from stream_scorer.evaluation.batches import Batch, Batches
from stream_scorer.evaluation.columns import TransactionFile
from stream_scorer.evaluation.labels import Outcomes
from stream_scorer.evaluation.piece import CompletePiece, Piece, Scorer, Timing, count_batch
from stream_scorer.evaluation.scoring import OnFeatures, OnProgress
from stream_scorer.evaluation.sources import CHUNK, Chunk, FileSource, Source
from stream_scorer.evaluation.store import Counts, PieceRecord, Store
from stream_scorer.features.shards import Batching, EntityShard, Joiner, Part, Splitter, Values, entities_with_features
from stream_scorer.parquet import TimeColumns, readable
from stream_scorer.serde.columns import join_labels, slice_transactions
from stream_scorer.serde.decoder import Labels, Transactions
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.workers import Actor, Workers

# Rows of the file that one call reads: a multiple of the rows that are decoded together.
BLOCK = 8 * CHUNK
_END_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Artifact:
    """The files of an ensemble by path, for a worker on another machine."""

    version: str
    files: dict[str, bytes]

    @classmethod
    def read(cls, folder: Path, version: str) -> Artifact:
        """The ensemble in `folder`. Raises `ArtifactError`."""
        manifest = read_manifest(folder)
        members = zip(manifest.members, read_members(folder, manifest), strict=True)
        return cls(version, {MANIFEST_FILE: (folder / MANIFEST_FILE).read_bytes()} | {m.path: d for m, d in members})

    def load(self) -> Ensemble:
        """The ensemble, after its self-test. Raises `ArtifactError`."""
        with tempfile.TemporaryDirectory(prefix="stream-scorer-") as name:
            for path, data in self.files.items():
                place = Path(name) / path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(data)
            return Ensemble.load(Path(name), version=self.version)


@dataclass(frozen=True, slots=True)
class Job:
    """What workers need once. `identity` is that of the file, `rows` the transactions per call of the members."""

    checked: CheckedSpec
    transactions: Path
    identity: str
    artifacts: list[Artifact]
    segments: list[str]
    outcomes: Outcomes
    shards: int
    rows: int


@dataclass(frozen=True, slots=True)
class Index:
    """What this process needs of a block to cut it.

    Attributes:
        rows: (n,) int64, the place of each valid transaction in the file, ascending.
        event_time: (n,) int64. ids: n ids of every entity with labels.
    """

    rows: Ints
    event_time: Ints
    ids: dict[str, list[str | None]]


@dataclass(frozen=True, slots=True)
class ScoredPiece:
    """A complete piece, and how many of its transactions are duplicates and how many scores are missing."""

    piece: CompletePiece
    duplicates: int
    missing: int


class BlockWorker:
    """Reads blocks and scores pieces; keeps nothing of them."""

    def __init__(self, job: Job) -> None:
        self._job, self._clock = job, SystemClock()
        checked = job.checked
        self._file = TransactionFile(job.transactions, checked)
        if identity_of(job.transactions) != job.identity:
            raise UsageError(
                f"the worker on {socket.gethostname()} has another file at {job.transactions}",
                hint="Copy the input to the same path on every machine.",
            )
        own, others = entities_with_features(checked)
        self._own = None if own is None else Splitter(checked, own, job.shards)
        self._others = {name: Splitter(checked, name, job.shards) for name in others}
        self._joiner = Joiner(checked)
        versions = [artifact.load() for artifact in job.artifacts]
        self._scorer = Scorer(checked, versions, job.segments, self._clock)

    def read(self, number: int) -> tuple[Any, ...]:
        """Block `number`: its `Index`, its transactions, and for each shard, its part of the partition entity (None
        without one), and its parts by name of the other entities."""
        began = self._clock.monotonic()
        first = number * BLOCK
        stop = min(first + BLOCK, self._file.rows)
        numbers, transactions = self._file.block(first, stop, CHUNK)
        ids = {name: transactions.entity_ids[name] for name in self._job.checked.label_entities}
        index = Index(numbers, transactions.event_time, ids)
        shards = range(self._job.shards)
        own = [None for _ in shards] if self._own is None else self._own.split(transactions)
        split = {name: splitter.split(transactions) for name, splitter in self._others.items()}
        others = [{name: parts[shard] for name, parts in split.items()} for shard in shards]
        self._scorer.timing.stages["read"] += self._clock.monotonic() - began
        return index, transactions, *own, *others

    def score(self, segments: list[tuple[int, int, int]], time: Ints, width: int, *inputs: Any) -> ScoredPiece:
        """A piece: per segment, the place of its block among `inputs`, and its transactions ``[low, high)`` there.

        Args:
            time: (n,) int64, see `ColumnRun`. width: the number of inputs per block: its transactions, and what each
                shard computed.
        """
        job, piece, at, missing, duplicates = self._job, Piece(), 0, 0, 0
        blocks: dict[int, tuple[Transactions, Floats, Bools]] = {}
        for place, first, last in segments:
            if place not in blocks:
                began = self._clock.monotonic()
                transactions, *values = inputs[place * width : (place + 1) * width]
                flat = [value for each in values for value in (each if isinstance(each, list) else [each])]
                blocks[place] = transactions, *self._joiner.join(transactions, flat)
                self._scorer.timing.stages["features"] += self._clock.monotonic() - began
            transactions, matrix, duplicate = blocks[place]
            for low in range(first, last, job.rows):
                high = min(low + job.rows, last)
                batch = slice_transactions(transactions, low, high)
                columns, absent = self._scorer.results(
                    batch, time[at : at + high - low], matrix[low:high], duplicate[low:high], job.outcomes
                )
                piece.add(columns, batch.event_id, matrix[low:high])
                missing, at = missing + absent, at + high - low
                duplicates += int(np.count_nonzero(duplicate[low:high]))
        return ScoredPiece(piece.complete(), duplicates, missing)

    def timing(self) -> Timing:
        """What the calls took so far."""
        return self._scorer.timing


class ShardWorker:
    """The feature rows of one shard, of all entities. Blocks must come in order."""

    def __init__(self, checked: CheckedSpec, number: int, count: int) -> None:
        own, others = entities_with_features(checked)
        self._own = None if own is None else EntityShard(checked, own, number, count)
        self._others = {name: EntityShard(checked, name, number, count) for name in others}
        self._clock, self._timing = SystemClock(), Timing()

    def own(self, batching: Batching, labels: Labels, part: Part) -> tuple[Values, Ints]:
        """The features of the partition entity, and the rows of the block that are duplicates."""
        assert self._own is not None
        began = self._clock.monotonic()
        values = self._own.features(batching, labels, part)
        self._timing.stages["features"] += self._clock.monotonic() - began
        return values, values.rows[values.duplicate]

    def others(self, batching: Batching, labels: Labels, parts: dict[str, Part], *duplicates: Ints) -> list[Values]:
        """The features of the other entities; `duplicates` are those that each shard found."""
        began = self._clock.monotonic()
        rows = np.concatenate([np.zeros(0, np.int64), *duplicates])
        found = [
            self._others[name].features(batching, labels, part, np.isin(part.rows, rows))
            for name, part in parts.items()
        ]
        self._timing.stages["features"] += self._clock.monotonic() - began
        return found

    def timing(self) -> Timing:
        """What the calls took so far."""
        return self._timing


@dataclass(frozen=True, slots=True)
class Distribution:
    """Where a distributed evaluation runs.

    Attributes:
        folders: of the versions, in the same order. shard: the kind of the workers that have feature rows.
    """

    workers: Workers
    folders: Sequence[Path]
    shard: type[ShardWorker] = ShardWorker


@dataclass(slots=True)
class _Block:
    """A block on its way: the handles of what `BlockWorker.read` returned, its batches, and its features.

    `first` is the place of its first transaction among the valid ones of the file.
    """

    index: Any
    transactions: Any
    own: list[Any]
    others: list[Any]
    first: int = 0
    batches: list[Batch] = field(default_factory=list)
    batching: Any = None
    labels: Any = None
    duplicates: list[Any] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    def bounds(self) -> list[tuple[int, int]]:
        """The transactions ``[low, high)`` of each batch."""
        found, high = [], 0
        for batch in self.batches:
            rows = batch.events.transactions.row
            low = int(rows[0]) - self.first if len(rows) else high
            high = low + len(rows)
            found.append((low, high))
        return found


@dataclass(slots=True)
class _Piece:
    """The piece that is being filled."""

    blocks: list[_Block] = field(default_factory=list)
    segments: list[tuple[int, int, int]] = field(default_factory=list)
    time: list[Ints] = field(default_factory=list)

    def add(self, block: _Block, low: int, high: int, time: Ints) -> None:
        if not self.blocks or self.blocks[-1] is not block:
            self.blocks.append(block)
        place = len(self.blocks) - 1
        if self.segments and self.segments[-1][0] == place and self.segments[-1][2] == low:
            self.segments[-1] = place, self.segments[-1][1], high
        else:
            self.segments.append((place, low, high))
        self.time.append(time)


class DistributedPass:
    """As `scoring.Pass`, on the workers of `where`. `timing` is the sum over all workers."""

    def __init__(
        self,
        checked: CheckedSpec,
        versions: Sequence[Ensemble],
        segments: Sequence[str],
        store: Store,
        clock: Clock,
        where: Distribution,
        *,
        rows: int,
        piece_rows: int,
    ) -> None:
        self._checked, self._store, self._clock, self._where = checked, store, clock, where
        self._segments, self._rows, self._piece_rows = list(segments), rows, piece_rows
        self._versions = list(versions)
        self.timing = Timing()
        self.counts = Counts()
        self._readers: list[Actor] = []
        self._shards: list[Actor] = []
        self._current: _Block | None = None
        self._featured: deque[_Block] = deque()
        self._piece = _Piece()
        self._position = self._pieces = self._duplicates = self._missing = 0
        # Pieces that are being scored: the handle, the position after each, and the counts without what scoring finds.
        self._scoring: deque[tuple[Any, int, Counts]] = deque()
        self._on_progress: OnProgress | None = None

    def run(
        self, source: Source, on_progress: OnProgress | None = None, on_features: OnFeatures | None = None
    ) -> Counts:
        """Score what is not complete yet; return the counts. Features are always computed from the beginning.

        Features stay with the workers: `on_features` is not called.
        """
        self.counts, self._on_progress = self._store.counts, on_progress
        if self._store.complete:
            return self.counts
        assert isinstance(source, FileSource)
        self.counts = Counts()
        self._start(source)
        batches, last = Batches(self._checked, self._rows, self._piece_rows), None
        for batch in batches.of(source.runs_of(self._chunks(source))):
            if last is not None and last is not self._current:
                self._compute_features(last)
            last = self._current
            assert last is not None
            last.batches.append(batch)
        if last is not None:
            self._compute_features(last)
        while self._featured:
            self._complete_features(self._featured.popleft())
        self._finish_piece()
        while self._scoring:
            self._collect()
        final = msgspec.structs.replace(self.counts, duplicates=self._duplicates, missing=self._missing)
        self.counts = final.with_records(*batches.uncounted)
        for actor in [*self._readers, *self._shards]:
            self.timing.add(self._where.workers.get(actor.call("timing")[0]))
        self._store.finish(self.counts)
        return self.counts

    def _start(self, source: FileSource) -> None:
        workers = self._where.workers
        artifacts = [
            Artifact.read(folder, version.version)
            for folder, version in zip(self._where.folders, self._versions, strict=True)
        ]
        job = Job(
            self._checked, source.transactions.resolve(), identity_of(source.transactions), artifacts, self._segments,
            source.labels.outcomes, workers.count, self._rows,
        )  # fmt: skip
        shared, spec = workers.put(job), workers.put(self._checked)
        self._readers = [workers.start(BlockWorker, shared) for _ in range(workers.count)]
        # Shards wait for readers most of the time, and do not count as occupied cores.
        self._shards = [
            workers.start(self._where.shard, spec, number, workers.count, cores=0) for number in range(workers.count)
        ]

    def _chunks(self, source: FileSource) -> Iterator[Chunk]:
        """The chunks of the file as `FileSource.runs_of` takes them; blocks are read ahead."""
        total, first, time = source.total, 0, self._checked.spec.transaction.time
        plausible = TimeColumns(source.transactions, [time])
        blocks = -(-total // BLOCK)
        ahead: deque[_Block] = deque()
        for number in range(blocks):
            while len(ahead) <= len(self._readers) and number + len(ahead) < blocks:
                ahead.append(self._read(number + len(ahead)))
            self._current = block = ahead.popleft()
            index: Index = self._where.workers.get(block.index)
            block.first = first
            if len(index.event_time):
                plausible.take([{time: int(index.event_time.min())}])
            for at in range(number * BLOCK, min((number + 1) * BLOCK, total), CHUNK):
                low, high = np.searchsorted(index.rows, (at, at + CHUNK)).tolist()
                yield min(CHUNK, total - at), index.rows[low:high] - at, _light(index, low, high, first)
            first += len(index.event_time)
        if not first:
            # The error of a file without any time needs the whole file.
            yield from source.empty_chunks()
        plausible.require()

    def _read(self, number: int) -> _Block:
        shards = len(self._shards)
        reader = self._readers[number % len(self._readers)]
        index, transactions, *parts = reader.call("read", number, returns=2 + 2 * shards)
        return _Block(index, transactions, parts[:shards], parts[shards:])

    def _compute_features(self, block: _Block) -> None:
        """Begin the features of a block whose batches are known, and complete those of the block before it."""
        bounds = np.array(block.bounds(), np.int64)
        labels = [batch.events.labels for batch in block.batches]
        spans = [batch.events.spans for batch in block.batches]
        batching = Batching(
            bounds[:, 0],
            bounds[:, 1],
            np.cumsum([len(each) for each in labels]),
            np.array([transactions.watermark for transactions, _ in spans], np.int64),
            np.array([given.watermark for _, given in spans], np.int64),
            np.array([batch.trims for batch in block.batches], np.bool_),
        )
        put = self._where.workers.put
        block.batching, block.labels = put(batching), put(join_labels(labels))
        if self._checked.spec.entities:
            for shard, part in zip(self._shards, block.own, strict=True):
                values, duplicates = shard.call("own", block.batching, block.labels, part, returns=2)
                block.values.append(values)
                block.duplicates.append(duplicates)
        # One block later, so that no shard waits for the others.
        self._featured.append(block)
        if len(self._featured) > 1:
            self._complete_features(self._featured.popleft())

    def _complete_features(self, block: _Block) -> None:
        """The features of the other entities, and the pieces that end in the block."""
        for shard, parts in zip(self._shards, block.others, strict=True):
            block.values += shard.call("others", block.batching, block.labels, parts, *block.duplicates)
        for batch, (low, high) in zip(block.batches, block.bounds(), strict=True):
            self.counts = count_batch(self.counts, batch)
            self._position = batch.stop[0]
            if batch.scored:
                self._piece.add(block, low, high, batch.time)
            if batch.ends_piece:
                self._finish_piece()

    def _finish_piece(self) -> None:
        """Score the piece, unless an earlier run has completed it."""
        piece, self._piece = self._piece, _Piece()
        if not piece.segments:
            return
        number, self._pieces = self._pieces, self._pieces + 1
        if number < self._store.resumed:
            done = self._store.pieces[number].counts
            self._duplicates, self._missing = done.duplicates, done.missing
            return
        inputs = [[block.transactions, *block.values] for block in piece.blocks]
        reader = self._readers[number % len(self._readers)]
        (handle,) = reader.call(
            "score",
            piece.segments,
            np.concatenate(piece.time),
            len(inputs[0]),
            *(each for one in inputs for each in one),
        )
        self._scoring.append((handle, self._position, self.counts))
        while len(self._scoring) > len(self._readers):
            self._collect()

    def _collect(self) -> None:
        """Write the oldest piece that is being scored."""
        handle, position, counts = self._scoring.popleft()
        scored: ScoredPiece = self._where.workers.get(handle)
        began, piece = self._clock.monotonic(), scored.piece
        self._duplicates += scored.duplicates
        self._missing += scored.missing
        counts = msgspec.structs.replace(counts, duplicates=self._duplicates, missing=self._missing)
        record = PieceRecord(len(piece), piece.features, piece.scores, piece.outcomes, position, counts)
        self._store.add(piece.columns, record, None)
        self.timing.stages["write"] += self._clock.monotonic() - began
        if self._on_progress is not None:
            self._on_progress(counts.records)


def require_parquet(source: Source) -> None:
    """Raise `UsageError` unless `source` is a Parquet file, which workers can read by themselves."""
    if not isinstance(source, FileSource):
        raise UsageError(
            "--engine ray reads Parquet files only",
            hint="Give --transactions FILE.parquet, or use --engine local for topics and JSON lines.",
        )


def identity_of(path: Path) -> str:
    """The size of a Parquet file, and the digest of its end, which has the places and statistics of all columns."""
    with readable(path), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _END_BYTES, 0))
        return f"{size} {hashlib.sha256(file.read()).hexdigest()}"


def _light(index: Index, low: int, high: int, first: int) -> Transactions:
    """The transactions ``[low, high)`` of a block, only with what cutting needs. `row` is their place in the file."""
    n = high - low
    none = np.zeros(n, np.int64)
    ids = {name: values[low:high] for name, values in index.ids.items()}
    return Transactions(np.arange(first + low, first + high), [""] * n, none, index.event_time[low:high], none, ids, {})
