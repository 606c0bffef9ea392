"""Reading and writing Parquet with pyarrow, which belongs to the extra `files`: what every module does alike."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
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

    Columns named in `times` are epoch milliseconds, also where the file has timestamps.

    Raises:
        UsageError: the file cannot be read, or a required column is missing.
        SettingsError: pyarrow is not installed.
    """
    pa, pq = import_pyarrow()
    with readable(path), pq.ParquetFile(path) as file:
        present = set(file.schema_arrow.names)
        missing = [name for name in columns if name in required and name not in present]
        if missing:
            raise UsageError(f"{path} has no column {missing[0]!r}")
        wanted = [name for name in columns if name in present]
        for batch in file.iter_batches(chunk, columns=wanted):
            yield _milliseconds(pa, batch, [name for name in times if name in wanted]).to_pylist()


def _milliseconds(pa: Any, batch: Any, times: Collection[str]) -> Any:
    """Columns of a timestamp type as integers of epoch milliseconds; integers stand as they are."""
    for name in times:
        place = batch.schema.get_field_index(name)
        if pa.types.is_timestamp(batch.schema.field(place).type):
            column = batch.column(place).cast(pa.timestamp("ms")).cast(pa.int64())
            batch = batch.set_column(place, name, column)
    return batch
