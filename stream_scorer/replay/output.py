"""The output of a replay: `scores`, `contributions` and `lineage` as Parquet files, columns as the records' fields."""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import NoneType, TracebackType, UnionType
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

import msgspec

from stream_scorer.errors import UsageError
from stream_scorer.parquet import UnfinishedFile, import_pyarrow
from stream_scorer.records import Contribution, LineageRow, Record, Score

# Rows per write: a row group large enough to compress well and small enough for memory (about 30 MB of JSON).
ROW_GROUP = 16_384


class RecordFile:
    """Appends encoded records of one type to a Parquet file. A context manager: leaving it completes the file.

    After an exception there is no file.
    """

    def __init__(self, path: Path, kind: type[Record]) -> None:
        """Raises `UsageError` if the file cannot be created, `SettingsError` if pyarrow is missing."""
        self._pa, self._pq = import_pyarrow()
        self._json = importlib.import_module("pyarrow.json")
        self._schema = self._pa.schema(_fields(self._pa, kind))
        self._path = path
        self._options = self._json.ParseOptions(explicit_schema=self._schema, unexpected_field_behavior="error")
        self._pending: list[bytes] = []
        self.rows = 0
        with self._writable():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._unfinished = UnfinishedFile(path)
            self._file = self._pq.ParquetWriter(self._unfinished.path, self._schema, compression="zstd")

    def add(self, value: bytes) -> None:
        """Append one record. Raises `UsageError` if the file cannot be written, as on a full disk."""
        self._pending.append(value)
        self.rows += 1
        if len(self._pending) >= ROW_GROUP:
            self._flush()

    def close(self) -> None:
        """Write the remaining records and the footer. Raises `UsageError` as `add` does."""
        try:
            self._flush()
            with self._writable():
                self._file.close()
                self._unfinished.complete()
        except BaseException:
            self._discard()
            raise

    def _discard(self) -> None:
        with suppress(OSError):
            self._file.close()
        self._unfinished.discard()

    def _flush(self) -> None:
        if not self._pending:
            return
        data = b"\n".join(self._pending)
        # One block, so that no record spans two blocks.
        read = self._json.ReadOptions(use_threads=False, block_size=len(data) + 1)
        table = self._json.read_json(io.BytesIO(data), read_options=read, parse_options=self._options)
        with self._writable():
            self._file.write_table(table.select(self._schema.names).cast(self._schema))
        self._pending = []

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UsageError(
                f"cannot write {self._path}: {error}", hint="Check its permissions and the disk."
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._discard()


def scores_file(folder: Path) -> RecordFile:
    """``scores.parquet`` in `folder`."""
    return RecordFile(folder / "scores.parquet", Score)


def encode_complete(contribution: Contribution) -> bytes:
    """`contribution` as JSON with all fields, including empty ones that the topic omits."""
    fields = msgspec.structs.asdict(contribution)
    return msgspec.json.encode(fields | {"members": msgspec.structs.asdict(contribution.members)})


def contributions_file(folder: Path) -> RecordFile:
    """``contributions.parquet`` in `folder`."""
    return RecordFile(folder / "contributions.parquet", Contribution)


def lineage_file(folder: Path) -> RecordFile:
    """``lineage.parquet`` in `folder`: one row per transaction."""
    return RecordFile(folder / "lineage.parquet", LineageRow)


def _fields(pa: Any, kind: type[msgspec.Struct]) -> list[Any]:
    hints = get_type_hints(kind)
    return [pa.field(name, _type(pa, hints[name])) for name in kind.__struct_fields__]


def _type(pa: Any, hint: Any) -> Any:
    if hint is str or get_origin(hint) is Literal:
        return pa.string()
    if hint is bool:
        return pa.bool_()
    if hint is int:
        return pa.int64()
    if hint is float:
        return pa.float64()
    if isinstance(hint, UnionType) and (inner := [kind for kind in get_args(hint) if kind is not NoneType]):
        return _type(pa, inner[0])
    if get_origin(hint) is list:
        return pa.list_(_type(pa, get_args(hint)[0]))
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return pa.struct(_fields(pa, hint))
    raise TypeError(f"no Parquet type for {hint!r}")
