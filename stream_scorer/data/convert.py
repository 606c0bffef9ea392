"""Converts a CSV file to the Parquet files that `train` and `replay` read, as the spec declares."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from stream_scorer.data.csv_file import ROW_ID, CsvFile
from stream_scorer.errors import UsageError
from stream_scorer.parquet import milliseconds
from stream_scorer.spec.model import CheckedSpec


@dataclass(frozen=True, slots=True)
class Interpretation:
    """How to read the cells.

    Attributes:
        label: the column with the fraud label. fraud: its value for fraud.
        start_ms: epoch ms of time 0, if the time column holds seconds.
        minor_units: factor from a value to an integer of minor units.
        label_delay_ms: time between a transaction and its label.
    """

    label: str | None = None
    fraud: str = "1"
    start_ms: int = 0
    minor_units: int = 100
    label_delay_ms: int = 0


@dataclass(frozen=True, slots=True)
class Converted:
    """Numbers of written transactions and labels, and of fraud labels."""

    transactions: int
    labels: int
    frauds: int


def convert(file: CsvFile, checked: CheckedSpec, interpretation: Interpretation, out: Path) -> Converted:
    """Write ``out/transactions.parquet`` in order of time, and ``out/labels.parquet`` if there is a label column.

    Raises:
        UsageError: the file lacks a column of the spec, or a time, value or label is unreadable.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    shape = checked.spec.transaction
    columns: dict[str, Any] = {}
    for name, field in shape.fields.items():
        if name == ROW_ID and name not in file.columns:
            columns[name] = pa.array([f"row-{number}" for number in range(1, file.rows + 1)])
        elif name == shape.time:
            columns[name] = _times(file, name, interpretation.start_ms)
        elif name == shape.value:
            columns[name] = _minor_units(file, name, interpretation.minor_units)
        elif field.type in ("string", "category"):
            columns[name] = _column(file, name).cast(pa.string())
        else:
            columns[name] = _column(file, name)
    order = np.argsort(np.asarray(columns[shape.time]), kind="stable")
    table = pa.table(columns).take(pa.array(order))
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, out / "transactions.parquet", compression="zstd")
    if interpretation.label is None:
        return Converted(len(table), 0, 0)
    fraud = _fraud(file, interpretation)[order]
    owners = sorted({entity.field for entity in checked.spec.entities.values()})
    times = np.asarray(table.column(shape.time))
    labels = pa.table(
        {
            "event_id": table.column(shape.id),
            "event_time": times,
            "label": np.where(fraud, "fraud", "genuine"),
            "labelled_at": times + interpretation.label_delay_ms,
            "source": ["import"] * len(table),
        }
        | {name: table.column(name) for name in owners}
    )
    pq.write_table(labels, out / "labels.parquet", compression="zstd")
    return Converted(len(table), len(labels), int(fraud.sum()))


def _column(file: CsvFile, name: str) -> Any:
    return file.columns[file.column(name, "a field of the spec")]


def _times(file: CsvFile, name: str, start_ms: int) -> Any:
    """Epoch ms of timestamps (UTC if they have no zone), or of seconds since `start_ms`."""
    import pyarrow as pa

    data = _column(file, name)
    if data.null_count:
        raise UsageError(f"{file.path}: {data.null_count} rows have no value in column {file.original[name]!r}")
    if pa.types.is_timestamp(data.type):
        return milliseconds(data).combine_chunks()
    if pa.types.is_temporal(data.type):
        return data.cast(pa.timestamp("ms")).cast(pa.int64()).combine_chunks()
    if pa.types.is_integer(data.type) or pa.types.is_floating(data.type):
        return pa.array(start_ms + np.rint(np.asarray(data, dtype=np.float64) * 1_000).astype(np.int64))
    try:
        times = [datetime.fromisoformat(text) for text in data.to_pylist()]
    except ValueError as error:
        raise UsageError(f"{file.path}: column {file.original[name]!r} is not a time: {error}") from None
    aware = [moment if moment.tzinfo else moment.replace(tzinfo=UTC) for moment in times]
    return pa.array([round(moment.timestamp() * 1_000) for moment in aware])


def _minor_units(file: CsvFile, name: str, minor_units: int) -> Any:
    import pyarrow as pa

    data = _column(file, name)
    if data.null_count or not (pa.types.is_integer(data.type) or pa.types.is_floating(data.type)):
        raise UsageError(
            f"{file.path}: column {file.original[name]!r} must be a number in every row, as it is the value"
        )
    scaled = np.asarray(data, dtype=np.float64) * minor_units
    whole = np.rint(scaled)
    off = np.abs(scaled - whole) > 1e-6 * np.maximum(np.abs(whole), 1.0)
    if off.any():
        raise UsageError(
            f"{file.path}: row {int(np.argmax(off)) + 1} has a value with more decimals than minor units",
            hint="Give --minor-units: 100 for cents, 1000 for three decimals.",
        )
    return pa.array(whole.astype(np.int64))


def _fraud(file: CsvFile, interpretation: Interpretation) -> np.ndarray[Any, np.dtype[np.bool_]]:
    assert interpretation.label is not None
    data = file.columns[file.column(interpretation.label, "the label")].to_pylist()
    values = {str(value) for value in data}
    fraud = np.array([str(value) == interpretation.fraud for value in data])
    if not fraud.any():
        some = ", ".join(sorted(values)[:5])
        raise UsageError(
            f"{file.path}: no row of {interpretation.label!r} is {interpretation.fraud!r}",
            hint=f"Set --fraud to one of: {some}.",
        )
    return fraud
