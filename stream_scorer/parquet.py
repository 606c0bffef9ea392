"""Reading and writing Parquet with pyarrow, which belongs to the extra `files`: what every module does alike."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stream_scorer.errors import SettingsError, UsageError


def import_pyarrow(extra: str = "files") -> tuple[Any, Any]:
    """`pyarrow` and `pyarrow.parquet`. Raises `SettingsError`, which names the extra to install, without them."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise SettingsError("Parquet files need pyarrow", hint=f"Install stream-scorer[{extra}].") from None
    return pyarrow, pyarrow.parquet


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


def require_columns(path: Path, present: Collection[str], required: Iterable[str], hint: str = "") -> None:
    """Raise `UsageError` for the first of `required` that is not a column of the file `path`."""
    for name in required:
        if name not in present:
            raise UsageError(f"{path} has no column {name!r}", hint=hint)
