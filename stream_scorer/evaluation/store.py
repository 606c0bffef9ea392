"""The folder of an evaluation: pieces of results per transaction as Parquet, and the state to continue from.

A piece is complete when it is listed in ``checkpoint.json``, which is replaced in one step. The feature rows are saved
with it (``rows-N.parquet``), unless that would take too large a share of the time: a resumed evaluation then repeats
the pieces since the last saved rows, and writes the same bytes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_scorer.clock import Clock
from stream_scorer.errors import UsageError
from stream_scorer.parquet import import_pyarrow, readable
from stream_scorer.positions import SourcePartition
from stream_scorer.records import Record
from stream_scorer.state.rows import AppliedOffsets, MemoryRowStore

FORMAT = 2
CHECKPOINT, LOCK = "checkpoint.json", "evaluation.lock"
# Columns of the digest of the outcomes; the others belong to that of the scores.
OUTCOMES = ("label", "labelled_at")
# Saving the feature rows may take this share of the time between two saves.
MAX_SAVE_SHARE = 0.05
_ROWS_PER_PART = 4_096

Columns = dict[str, Any]


class Counts(Record, frozen=True):
    """Counts from the start of the range: `scored` includes `duplicates`; `warmed` transactions only update features.

    `missing` counts scores that are missing because the quorum failed, over all versions.
    """

    records: int = 0
    warmed: int = 0
    scored: int = 0
    duplicates: int = 0
    refused: int = 0
    labels: int = 0
    missing: int = 0

    def with_records(self, records: int, refused: int) -> Counts:
        """The counts with more records, and of these, rejected transactions in the range."""
        return msgspec.structs.replace(self, records=self.records + records, refused=self.refused + refused)


class PieceRecord(Record, frozen=True):
    """A complete piece: its rows, digests, the position after it, and the counts up to it.

    The digests are sha256 of the features, of ids, member outputs, scores and decisions, and of the outcomes.
    """

    rows: int
    features: str
    scores: str
    outcomes: str
    transactions: int
    counts: Counts


class Checkpoint(Record, frozen=True):
    """What is complete. `saved`: after which piece the feature rows were saved, 0 for never."""

    format: int
    fingerprint: str
    complete: bool
    pieces: list[PieceRecord]
    counts: Counts
    saved: int
    applied: list[tuple[str, int, int, int]]


class Store:
    """See the module.

    Args:
        fingerprint: of everything that determines the pieces. A folder of another evaluation is emptied.

    Attributes:
        pieces: the complete ones. complete: whether all are. counts: up to the last complete piece, or of everything.
        resumed: how many pieces an earlier run has completed.
    """

    def __init__(self, folder: Path, fingerprint: str, clock: Clock, *, with_rows: bool = True) -> None:
        """Open `folder`. Without `with_rows`, feature rows are neither saved nor necessary to keep a complete piece.

        Raises:
            UsageError: the folder cannot be used, or has files that only look like pieces.
        """
        self._with_rows = with_rows
        self._pa, self._pq = import_pyarrow()
        self._folder, self._fingerprint, self._clock = folder, fingerprint, clock
        self.pieces: list[PieceRecord] = []
        self.complete = False
        self.counts = Counts()
        self._saved = 0
        self._applied = AppliedOffsets({}, {})
        self._saved_at, self._save_seconds = clock.monotonic(), 0.0
        with usable(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._load()
            # A folder that cannot be written to fails now, not after the first piece.
            self._write_checkpoint()
        self.resumed = len(self.pieces)

    def _load(self) -> None:
        path = self._folder / CHECKPOINT
        found = None
        old = [*self._folder.glob("piece-*.parquet"), *self._folder.glob("rows-*.parquet")]
        if old and not path.exists():
            raise UsageError(
                f"{self._folder} has {old[0].name}, but no evaluation wrote it: there is no {CHECKPOINT}",
                hint="Give another --out: an evaluation replaces files with such names.",
            )
        if path.exists():
            try:
                found = msgspec.json.decode(path.read_bytes(), type=Checkpoint)
            except msgspec.MsgspecError:
                found = None
        if found is None or (found.format, found.fingerprint) != (FORMAT, self._fingerprint):
            for each in [*old, path]:
                each.unlink(missing_ok=True)
            return
        self.complete = found.complete
        self._saved = found.saved
        self.pieces = found.pieces if found.complete or not self._with_rows else found.pieces[: found.saved]
        self.counts = found.counts if found.complete or not self.pieces else self.pieces[-1].counts
        for topic, partition, offset, watermark in found.applied:
            self._applied.next_offset[SourcePartition(topic, partition)] = offset
            self._applied.watermark[SourcePartition(topic, partition)] = watermark

    def feature_rows(self) -> MemoryRowStore:
        """The feature rows at the end of the last complete piece; empty before the first one."""
        applied = AppliedOffsets(dict(self._applied.next_offset), dict(self._applied.watermark))
        rows = MemoryRowStore(applied)
        if self._saved and not self.complete:
            path = self._folder / f"rows-{self._saved}.parquet"
            with readable(path):
                table = self._pq.read_table(path)
                keys, values = table.column("key").to_pylist(), table.column("row").to_pylist()
            rows.restore(dict(zip(keys, values, strict=True)))
        return rows

    def finish(self, counts: Counts) -> None:
        """Mark the evaluation as complete. Raises `UsageError` if the folder cannot be written to."""
        self.complete, self.counts = True, counts
        with usable(self._folder):
            self._write_checkpoint()

    def add(self, columns: Columns, record: PieceRecord, rows: MemoryRowStore | None) -> None:
        """Write a piece; `rows` are the feature rows after it. Raises `UsageError` if that fails, as on a full disk."""
        with usable(self._folder):
            self._add(columns, record, rows)

    def _add(self, columns: Columns, record: PieceRecord, rows: MemoryRowStore | None) -> None:
        number = len(self.pieces) + 1
        path = self._folder / f"piece-{number:06}.parquet"
        table = self._pa.table(columns)
        self._pq.write_table(table, path, compression="lz4", use_dictionary=False, write_statistics=False)
        self.pieces.append(record)
        self.counts = record.counts
        now = self._clock.monotonic()
        if rows is not None and self._save_seconds <= MAX_SAVE_SHARE * (now - self._saved_at):
            self._save_rows(number, rows)
        self._write_checkpoint()

    def _save_rows(self, number: int, rows: MemoryRowStore) -> None:
        began = self._clock.monotonic()
        _, applied = rows.read([])
        path = self._folder / f"rows-{number}.parquet"
        schema = self._pa.schema({"key": self._pa.binary(), "row": self._pa.large_binary()})
        # Part by part: a copy of all rows would be most of the memory that an evaluation needs.
        with self._pq.ParquetWriter(
            path, schema, compression="lz4", use_dictionary=False, write_statistics=False
        ) as file:
            for part in rows.parts(_ROWS_PER_PART):
                file.write_table(self._pa.table([list(part), list(part.values())], schema=schema))
        before, self._saved = self._saved, number
        self._applied = AppliedOffsets(dict(applied.next_offset), dict(applied.watermark))
        self._write_checkpoint()
        if before:
            (self._folder / f"rows-{before}.parquet").unlink(missing_ok=True)
        self._saved_at = self._clock.monotonic()
        self._save_seconds = self._saved_at - began

    def _write_checkpoint(self) -> None:
        applied = [
            (source.topic, source.partition, offset, self._applied.watermark.get(source, -1))
            for source, offset in self._applied.next_offset.items()
        ]
        record = Checkpoint(FORMAT, self._fingerprint, self.complete, self.pieces, self.counts, self._saved, applied)
        path = self._folder / CHECKPOINT
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_bytes(msgspec.json.encode(record))
        unfinished.replace(path)
        if self.complete and self._saved:
            (self._folder / f"rows-{self._saved}.parquet").unlink(missing_ok=True)

    def read(self, names: Sequence[str] | None = None) -> Iterator[Columns]:
        """The columns of each piece, in order; text as lists, numbers as (n,) arrays.

        Raises `UsageError` if a piece cannot be read or, without `names`, is not the one that its digests are of.
        """
        for number in range(1, len(self.pieces) + 1):
            path = self._folder / f"piece-{number:06}.parquet"
            with readable(path):
                table = self._pq.read_table(path, columns=names, use_threads=False)
            columns = {
                name: column.to_pylist()
                if self._pa.types.is_string(column.type)
                else column.to_numpy(zero_copy_only=False)
                for name, column in zip(table.column_names, table.columns, strict=True)
            }
            record = self.pieces[number - 1]
            if names is None and piece_digests(columns) != (record.scores, record.outcomes):
                raise UsageError(
                    f"{path} is not as the evaluation wrote it",
                    hint="Remove the folder or give another --out, to evaluate from the beginning.",
                )
            yield columns

    def digest(self, part: str) -> str:
        """sha256 over the digests of all pieces; `part` is ``features``, ``scores`` or ``outcomes``."""
        return hashlib.sha256("".join(getattr(piece, part) for piece in self.pieces).encode()).hexdigest()


@contextmanager
def usable(folder: Path) -> Iterator[None]:
    """Turn an error of the file system into a `UsageError`."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot use {folder}: {error}", hint="Check its permissions and the disk.") from None


def fingerprint_of(facts: dict[str, Any]) -> str:
    """The digest of `facts`, which must be JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Create `folder`, and hold it: two evaluations at once would replace each other's pieces. Raises `UsageError`."""
    with usable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a")
    with file:
        with usable(folder):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"another evaluation is writing to {folder}", hint="Wait until it ends, or give another --out."
                ) from None
        yield


def piece_digests(columns: Columns) -> tuple[str, str]:
    """The digests of the scores, with everything that is not an outcome, and of the outcomes of a piece."""
    results = [column for name, column in columns.items() if name not in ("event_id", *OUTCOMES)]
    return digest_of(columns["event_id"], *results), digest_of(*(columns[name] for name in OUTCOMES))


def digest_of(*columns: NDArray[np.generic] | list[str]) -> str:
    """sha256 of columns, one after the other."""
    digest = hashlib.sha256()
    for column in columns:
        if isinstance(column, list):
            digest.update("\n".join(column).encode())
        else:
            digest.update(np.ascontiguousarray(column).tobytes())
    return digest.hexdigest()
