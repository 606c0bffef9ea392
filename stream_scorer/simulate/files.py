"""Parquet files: transactions, their hidden truth (which the product never reads), and labels."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from stream_scorer.errors import SettingsError
from stream_scorer.parquet import import_pyarrow, readable
from stream_scorer.simulate.labels import Labels
from stream_scorer.simulate.transactions import Transactions

# Live traffic arrives in batches of a few dozen rows; one row group per batch would be mostly metadata.
ROW_GROUP = 65_536

_TRANSACTION_TYPES = {
    "event_id": "string", "event_time": "int64", "customer_id": "string", "terminal_id": "string",
    "device_id": "string", "network_id": "string", "card_number": "string", "amount": "int64",
    "currency": "string", "channel": "string",
}  # fmt: skip
_TRUTH_TYPES = {"event_id": "string", "event_time": "int64", "amount": "int64", "fraud_kind": "int8"}
_LABEL_TYPES = {
    "event_id": "string", "event_time": "int64", "label": "string", "labelled_at": "int64", "source": "string",
    "review_probability": "float64", "customer_id": "string", "terminal_id": "string", "device_id": "string",
    "network_id": "string",
}  # fmt: skip


class ColumnWriter:
    """Appends rows to one Parquet file, in row groups of `ROW_GROUP`. A context manager: `close` makes it readable."""

    def __init__(self, path: Path, types: dict[str, str]) -> None:
        """Raises `SettingsError` if pyarrow is missing or the file cannot be made."""
        pa, pq = import_pyarrow()
        self._schema = pa.schema([(name, pa.type_for_alias(alias)) for name, alias in types.items()])
        self._parts: list[Any] = []
        self._rows = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = pq.ParquetWriter(path, self._schema, compression="zstd")
        except OSError as error:
            raise SettingsError(f"cannot write {path}: {error}") from None
        # pyarrow's first conversion imports pandas if installed, which takes a second or two: do it before live
        # traffic starts.
        pa.array([], self._schema[0].type, from_pandas=True)

    def write(self, rows: Transactions | Labels) -> None:
        """Append `rows`, restricted to the columns of the file; NaN becomes null."""
        pa, _ = import_pyarrow()
        if len(rows):
            arrays = [pa.array(getattr(rows, f.name), f.type, from_pandas=True) for f in self._schema]
            self._parts.append(pa.Table.from_arrays(arrays, schema=self._schema))
            self._rows += len(rows)
        if self._rows >= ROW_GROUP:
            self._flush()

    def close(self) -> None:
        """Write the remaining rows and the footer."""
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        if self._parts:
            pa, _ = import_pyarrow()
            self._file.write_table(pa.concat_tables(self._parts).combine_chunks())
            self._parts, self._rows = [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def transactions_writer(path: Path) -> ColumnWriter:
    """A file of transactions, without truth."""
    return ColumnWriter(path, _TRANSACTION_TYPES)


def truth_writer(path: Path) -> ColumnWriter:
    """A file of the truth: ``event_id, event_time, amount, fraud_kind``."""
    return ColumnWriter(path, _TRUTH_TYPES)


def labels_writer(path: Path) -> ColumnWriter:
    """A file of labels."""
    return ColumnWriter(path, _LABEL_TYPES)


def read_truth(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The columns of a truth file, for the evaluation of a run; the product itself never reads them.

    Raises `UsageError` if the file is missing or malformed.
    """
    pa, pq = import_pyarrow()
    with readable(path):
        table = pq.read_table(path, columns=list(_TRUTH_TYPES))
        table = table.cast(pa.schema([(name, pa.type_for_alias(alias)) for name, alias in _TRUTH_TYPES.items()]))
    return {name: table.column(name).to_numpy() for name in _TRUTH_TYPES}
