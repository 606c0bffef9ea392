"""Reading and writing Parquet with pyarrow: what every module does alike.

Times of JSON lines are checked here, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from stream_scorer.errors import SettingsError, UsageError
from stream_scorer.records import EXACT_INTEGERS


def import_pyarrow() -> tuple[Any, Any]:
    """`pyarrow` and `pyarrow.parquet`. Raises `SettingsError` without them."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        hint = "stream-scorer depends on it: install stream-scorer again."
        raise SettingsError("pyarrow is not installed, or cannot be imported", hint=hint) from None
    return pyarrow, pyarrow.parquet


def is_parquet(path: Path) -> bool:
    """Whether `path` is a Parquet file, by its name or by its first bytes."""
    if path.suffix == ".parquet":
        return True
    with readable(path), path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


class UnfinishedFile:
    """A file that gets its name when it is complete. A file of that name from before is removed at once.

    So whoever finds a file after a failure knows that it is complete, and not of an earlier run.

    Attributes:
        path: where to write, until `complete`.
    """

    def __init__(self, path: Path) -> None:
        self._name = path
        self.path = path.with_name(f"{path.name}.unfinished")
        path.unlink(missing_ok=True)

    def complete(self) -> None:
        """Give it its name."""
        self.path.replace(self._name)

    def discard(self) -> None:
        """Remove what was written."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)


# The end of the year 9999: microseconds of today are beyond it.
MAX_TIME_MS = 253_402_300_799_999
# Characters of a value in a message.
_SHOWN = 60
# The first bytes of every Parquet file.
_MAGIC = b"PAR1"


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what goes wrong while reading `path` into one `UsageError`."""
    try:
        yield
    except Exception as error:
        # Without an import of pyarrow: JSON lines are read without it.
        if isinstance(error, OSError) or type(error).__module__.startswith("pyarrow"):
            csv = path.suffix.lower() in (".csv", ".tsv")
            hint = "`stream-scorer data convert` makes Parquet files of a CSV file (docs/own-data.md)." if csv else ""
            raise UsageError(f"cannot read {path}: {_reason(error)}", hint=hint) from None
        raise


def _reason(error: Exception) -> str:
    """Why a file cannot be read. pyarrow's errors of the operating system repeat the path and the number."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    text = str(error)
    return "it is not a complete Parquet file" if "magic bytes" in text or "size is 0 bytes" in text else text


def read_rows(
    path: Path, kinds: Mapping[str, str], required: Mapping[str, str], chunk: int
) -> Iterator[list[dict[str, Any]]]:
    """The rows of `path` as dicts, at most `chunk` at a time; an absent optional column is left out.

    `kinds` has the types of the columns in the spec, see `columns_of` and `rows_of`. `required` has the columns that
    must not be missing, each with a hint.

    Raises:
        UsageError: the file cannot be read, a required column is missing, or binary values are not text.
        SettingsError: pyarrow is not installed.
    """
    _, pq = import_pyarrow()
    with readable(path), pq.ParquetFile(path) as file:
        present = set(file.schema_arrow.names)
        for name, hint in required.items():
            require_columns(path, present, [name], hint)
        for batch in file.iter_batches(chunk, columns=[name for name in kinds if name in present]):
            yield rows_of(columns_of(path, batch, kinds), kinds)


def columns_of(path: Path, batch: Any, kinds: Mapping[str, str]) -> dict[str, Any]:
    """The columns of an Arrow batch: times as `milliseconds`, and binary columns as text, as Hive and Impala write it.

    Raises:
        UsageError: binary values are not UTF-8.
    """
    columns = {name: batch.column(place) for place, name in enumerate(batch.schema.names)}
    for name, column in columns.items():
        if kinds[name] == "time":
            columns[name] = milliseconds(column)
        columns[name] = _text(path, name, columns[name])
    return columns


def _text(path: Path, name: str, column: Any) -> Any:
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(column.type) and _is_bytes(column.type.value_type):
        column = column.dictionary_decode()
    if not _is_bytes(column.type):
        return column
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        raise UsageError(
            f"{path}: the column {name!r} has binary values that are not UTF-8 text",
            hint="Write the column as text, for example in hexadecimal.",
        ) from None


def _is_bytes(kind: Any) -> bool:
    from pyarrow import types

    return bool(
        types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
        or types.is_binary_view(kind)
    )  # fmt: skip


def rows_of(columns: Mapping[str, Any], kinds: Mapping[str, str]) -> list[dict[str, Any]]:
    """Arrow columns as rows for a decoder, without what only the type of the column says.

    Libraries write integers with nulls as floating-point numbers, booleans as 0 and 1, and databases write decimals. A
    value that is exactly one of its field's type becomes one; any other stands as it is, for the decoder to reject.
    """
    import pyarrow as pa

    if not columns:
        return []
    rows: list[dict[str, Any]] = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns)).to_pylist()
    for name, column in columns.items():
        convert = _conversion(kinds[name], column.type)
        if convert is not None:
            for row in rows:
                if row[name] is not None:
                    row[name] = convert(row[name])
    return rows


def _conversion(kind: str, given: Any) -> Callable[[Any], object] | None:
    """What makes a value of the Arrow type `given` one of a field of type `kind`; `None` for nothing."""
    from pyarrow import types

    is_decimal = types.is_decimal(given)
    if kind in ("integer", "time"):
        return _whole if is_decimal or types.is_floating(given) else None
    if kind == "number":
        return float if is_decimal else None
    if kind == "boolean":
        return _flag if is_decimal or types.is_floating(given) or types.is_integer(given) else None
    return None


def _whole(value: Any) -> int | float:
    # Larger numbers are not exact, see the decoder; the comparison is false for NaN.
    return int(value) if abs(value) <= EXACT_INTEGERS and value == int(value) else float(value)


def _flag(value: Any) -> bool | float:
    return bool(value) if value in (0, 1) else float(value)


def milliseconds(column: Any) -> Any:
    """An Arrow column of times as int64 of epoch milliseconds; integers and other types stand as they are.

    What is finer than a millisecond is cut off, as in the times of records. Raises `pyarrow.ArrowInvalid` for a time
    that epoch milliseconds cannot represent.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_timestamp(column.type):
        return column
    return column.cast(options=pc.CastOptions(pa.timestamp("ms"), allow_time_truncate=True)).cast(pa.int64())


class TimeColumns:
    """Whether the columns of times of a file contain any time.

    A record without a time is rejected, as it is live. A file without any time, such as one with dates as text, would
    be read as an empty history, and one with microseconds as a history of another age: both are errors of the user.
    """

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        self._path = path
        self._missing = list(names)
        self._first: dict[str, object] = {}

    def take(self, rows: Sequence[dict[str, Any]]) -> None:
        """Rows of the file, in order."""
        for name in list(self._missing):
            for row in rows:
                value = row.get(name)
                if _is_time(value):
                    self._missing.remove(name)
                    break
                self._first.setdefault(name, value)

    def require(self) -> None:
        """Raise `UsageError`, after the last row, for a column without any time. A file without rows passes."""
        for name in self._missing:
            if name in self._first:
                first = repr(self._first[name])
                raise UsageError(
                    f"{self._path}: the column {name!r} has no times; the first value is {first[:_SHOWN]}",
                    hint="Write timestamps, or integers of epoch milliseconds.",
                )


def _is_time(value: object) -> bool:
    """Whether `value` is a plausible time in epoch milliseconds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value <= MAX_TIME_MS and value == int(value)


def whole_time(value: object) -> int:
    """`value` as epoch milliseconds; 0 for what is no time, such as text or NaN: the decoder rejects the record."""
    return int(value) if isinstance(value, int | float) and abs(value) < 1 << 62 else 0


def require_columns(path: Path, present: Collection[str], required: Iterable[str], hint: str = "") -> None:
    """Raise `UsageError` for the first of `required` that is not a column of the file `path`."""
    for name in required:
        if name not in present:
            raise UsageError(f"{path} has no column {name!r}", hint=hint)
