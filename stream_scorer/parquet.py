"""Reading and writing Parquet with pyarrow: what every module does alike.

Times of JSON lines are checked here, too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stream_scorer.errors import SettingsError, UsageError


def import_pyarrow() -> tuple[Any, Any]:
    """`pyarrow` and `pyarrow.parquet`. Raises `SettingsError` without them."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        hint = "stream-scorer depends on it: install stream-scorer again."
        raise SettingsError("pyarrow is not installed, or cannot be imported", hint=hint) from None
    return pyarrow, pyarrow.parquet


# The end of the year 9999: microseconds of today are beyond it.
_MAX_TIME = 253_402_300_799_999
# Characters of a value in a message.
_SHOWN = 60


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what goes wrong while reading `path` into one `UsageError`."""
    try:
        yield
    except Exception as error:
        # Without an import of pyarrow: JSON lines are read without it.
        if isinstance(error, OSError) or type(error).__module__.startswith("pyarrow"):
            raise UsageError(f"cannot read {path}: {error}") from None
        raise


def read_rows(
    path: Path, columns: Sequence[str], required: Collection[str], times: Collection[str], chunk: int
) -> Iterator[list[dict[str, Any]]]:
    """The rows of `path` as dicts of `columns`, at most `chunk` at a time; an absent optional column is left out.

    Columns named in `times` are epoch milliseconds, also where the file has timestamps (see `milliseconds`).

    Raises:
        UsageError: the file cannot be read, or a required column is missing.
        SettingsError: pyarrow is not installed.
    """
    _, pq = import_pyarrow()
    with readable(path), pq.ParquetFile(path) as file:
        present = set(file.schema_arrow.names)
        require_columns(path, present, (name for name in columns if name in required))
        wanted = [name for name in columns if name in present]
        for batch in file.iter_batches(chunk, columns=wanted):
            for name in times:
                if name in wanted:
                    place = batch.schema.get_field_index(name)
                    batch = batch.set_column(place, name, milliseconds(batch.column(place)))
            yield batch.to_pylist()


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
    return 0 <= value <= _MAX_TIME and value == int(value)


def whole_time(value: object) -> int:
    """`value` as epoch milliseconds; 0 for what is no time, such as text or NaN: the decoder rejects the record."""
    return int(value) if isinstance(value, int | float) and abs(value) < 1 << 62 else 0


def require_columns(path: Path, present: Collection[str], required: Iterable[str], hint: str = "") -> None:
    """Raise `UsageError` for the first of `required` that is not a column of the file `path`."""
    for name in required:
        if name not in present:
            raise UsageError(f"{path} has no column {name!r}", hint=hint)
