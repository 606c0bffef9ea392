"""Converts a CSV file to the Parquet files that `train` and `replay` read, as the spec declares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_scorer.data.amounts import AmountRange, minor_units
from stream_scorer.data.cells import (
    UnreadableCell,
    booleans,
    integers,
    is_numeric,
    kind_of,
    missing,
    numbers,
    timestamps,
)
from stream_scorer.data.csv_file import ROW_ID, CsvFile
from stream_scorer.errors import UsageError
from stream_scorer.parquet import MAX_TIME_MS
from stream_scorer.spec.model import CheckedSpec, FieldType, duration_ms

# 2024-01-01, the day of second 0 if the user gives none.
DEFAULT_START_MS = 1_704_067_200_000
# 115 days: numbers from here on are more likely seconds since 1970, milliseconds or dates such as 20250131.
_MAX_OFFSET_S = 10_000_000


@dataclass(frozen=True, slots=True)
class Interpretation:
    """How to read the cells.

    Attributes:
        label: the column with the fraud label. fraud: its value for fraud.
        start_ms: epoch ms of time 0, if the time column holds seconds; None is 2024-01-01, for offsets only.
        minor_units: minor units per unit of the value, or by currency; None is 100 if the values have decimals.
        label_delay_ms: time between a transaction and its label; None is the label horizon of the spec.
    """

    label: str | None = None
    fraud: str = "1"
    start_ms: int | None = None
    minor_units: int | Mapping[str, int] | None = None
    label_delay_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written.

    Attributes:
        transactions, labels, frauds: their numbers. unlabelled: rows whose label is missing.
        repeated_ids: ids that several rows have. amounts: the range of each currency.
        first_ms, last_ms: epoch ms of the first and the last transaction.
    """

    transactions: int
    labels: int
    frauds: int
    unlabelled: int
    repeated_ids: int
    amounts: list[AmountRange]
    first_ms: int
    last_ms: int


def convert(file: CsvFile, checked: CheckedSpec, interpretation: Interpretation, out: Path) -> Converted:
    """Write ``out/transactions.parquet`` in order of time, and ``out/labels.parquet`` if there is a label column.

    Raises:
        UsageError: the file lacks a column of the spec, or a time, value or label is unreadable.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    shape = checked.spec.transaction
    columns: dict[str, Any] = {}
    amounts: list[AmountRange] = []
    for name, field in shape.fields.items():
        if name == ROW_ID and name not in file.columns:
            columns[name] = pa.array([f"row-{number}" for number in range(1, file.rows + 1)])
        elif field.type == "time":
            columns[name] = _times(file, name, interpretation.start_ms, required=name == shape.time)
        elif name == shape.value:
            columns[name], amounts = minor_units(file, shape, interpretation.minor_units)
        else:
            columns[name] = _cells(file, name, field.type)
    order = np.argsort(np.asarray(columns[shape.time]), kind="stable")
    table = pa.table(columns).take(pa.array(order))
    labels = None if interpretation.label is None else _labels(file, checked, interpretation, table, order)
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, out / "transactions.parquet", compression="zstd")
    if labels is not None:
        pq.write_table(labels, out / "labels.parquet", compression="zstd")
    times = table.column(shape.time)
    return Converted(
        transactions=len(table),
        labels=0 if labels is None else len(labels),
        frauds=0 if labels is None else labels.column("label").to_pylist().count("fraud"),
        unlabelled=0 if labels is None else len(table) - len(labels),
        repeated_ids=_repeated(table.column(shape.id)),
        amounts=amounts,
        first_ms=times[0].as_py(),
        last_ms=times[-1].as_py(),
    )


def _labels(file: CsvFile, checked: CheckedSpec, interpretation: Interpretation, table: Any, order: Any) -> Any:
    """The labels of `table`, the transactions in `order`; none for an empty cell."""
    import pyarrow as pa

    delay, instant = interpretation.label_delay_ms, checked.instant_label_views
    delay = duration_ms(checked.spec.labels.horizon) if delay is None else delay
    if delay == 0 and instant:
        raise UsageError(
            "labels without a delay would be in the features of their own transactions: the views "
            f"{', '.join(instant)} count a label from the time on at which it is given",
            hint="Give --label-delay, the time after which your labels are usually known, such as 7d.",
        )
    shape = checked.spec.transaction
    owners = sorted({entity.field for entity in checked.spec.entities.values()})
    fraud, given = (cells[order] for cells in _fraud(file, interpretation))
    kept = table.filter(pa.array(given))
    times = np.asarray(kept.column(shape.time))
    return pa.table(
        {
            "event_id": kept.column(shape.id),
            "event_time": times,
            "label": np.where(fraud[given], "fraud", "genuine"),
            "labelled_at": times + delay,
            "source": ["import"] * len(kept),
        }
        | {name: kept.column(name) for name in owners}
    )


def _repeated(ids: Any) -> int:
    """How many ids occur in several rows."""
    counts = ids.drop_null().value_counts()
    return int((np.asarray(counts.field("counts")) > 1).sum())


def _cells(file: CsvFile, name: str, kind: FieldType) -> Any:
    """A column as its type in the spec. Texts and categories stay as written."""
    text = file.field(name)
    if kind in ("string", "category"):
        return text
    read = {"integer": integers, "number": numbers, "boolean": booleans, "time": timestamps}[kind]
    try:
        return read(text)
    except UnreadableCell as error:
        hint = f"Correct the row, or change the type of {name!r} in the spec."
        if kind == "time":
            hint = "Write timestamps such as 2025-01-31T10:00:00 (a time of day needs its date), or seconds."
        raise UsageError(
            f"{file.path}: row {error.row} of column {file.original[name]!r} cannot be read as {kind}", hint=hint
        ) from None


def _times(file: CsvFile, name: str, start_ms: int | None, *, required: bool) -> Any:
    """Epoch ms of timestamps (UTC if they have no zone), or of seconds since `start_ms`."""
    import pyarrow as pa

    text = file.field(name)
    absent = missing(text)
    if required and absent.any():
        raise UsageError(f"{file.path}: {absent.sum()} rows have no value in column {file.original[name]!r}")
    if not is_numeric(text):
        return _cells(file, name, "time")
    seconds = np.asarray(numbers(text).fill_null(0), dtype=np.float64)
    _check_seconds(f"{file.path}: column {file.original[name]!r}", np.abs(seconds).max(), start_ms)
    start_ms = DEFAULT_START_MS if start_ms is None else start_ms
    return pa.array(start_ms + np.rint(seconds * 1_000).astype(np.int64), mask=absent)


def _check_seconds(column: str, longest: float, start_ms: int | None) -> None:
    if start_ms is None and longest >= _MAX_OFFSET_S:
        raise UsageError(
            f"{column} has numbers of {longest:,.0f} and less, which are too great for seconds since 2024-01-01",
            hint="Give --start 1970-01-01 for seconds since 1970 (divide milliseconds by 1000), or another day; "
            "write dates as 2025-01-31, not as 20250131.",
        )
    if (start_ms or 0) + longest * 1_000 > MAX_TIME_MS:
        raise UsageError(
            f"{column} has seconds that are after the year 9999", hint="Divide milliseconds by 1000, and keep --start."
        )


def _fraud(file: CsvFile, interpretation: Interpretation) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """``(n,)`` each: which rows are fraud, and which have a label at all."""
    import pyarrow.compute as pc

    assert interpretation.label is not None
    text = file.columns[file.column(interpretation.label, "the label")]
    absent = np.asarray(text.is_null()) if kind_of(text) == "text" else missing(text)
    cells = pc.utf8_trim_whitespace(text)
    fraud = np.asarray(pc.equal(cells, interpretation.fraud.strip()).fill_null(False)) & ~absent
    if not fraud.any():
        some = ", ".join(sorted(value for value in pc.unique(cells).to_pylist() if value)[:5])
        raise UsageError(
            f"{file.path}: no row of {interpretation.label!r} is {interpretation.fraud!r}",
            hint=f"Set --fraud to one of: {some}." if some else "All of its cells are empty.",
        )
    return fraud, ~absent
