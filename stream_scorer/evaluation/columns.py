"""Transactions of a Parquet file as columns, without JSON in between where all rows of a chunk are plainly valid.

A chunk that fails any check, or has a column of an unusual type, is read as in a replay: each row becomes JSON and
passes the decoder of the scorer. Both ways reject the same rows and give the same columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from stream_scorer.arrays import Bools, Floats, Ints
from stream_scorer.errors import UsageError
from stream_scorer.parquet import (
    TimeColumns,
    columns_of,
    import_pyarrow,
    readable,
    require_columns,
    rows_of,
    whole_time,
)
from stream_scorer.records import EXACT_INTEGERS
from stream_scorer.serde.columns import join_transactions
from stream_scorer.serde.decoder import TransactionDecoder, Transactions
from stream_scorer.serde.files import transaction_kinds
from stream_scorer.spec.model import MAX_VALUE, CheckedSpec, Field

# More bytes than a JSON record of one field needs besides its text, and the most that one character can need.
_FIELD_BYTES, _CHARACTER_BYTES = 64, 12


class _Unusual(Exception):
    """A chunk needs the decoder."""


class TransactionFile:
    """The transactions of one Parquet file, in chunks. Raises `UsageError` if a required column is missing."""

    def __init__(self, path: Path, checked: CheckedSpec) -> None:
        if not path.is_file():
            raise UsageError(f"no file at {path}")
        self._pa, self._pq = import_pyarrow()
        self._path = path
        self._shape = shape = checked.spec.transaction
        self._kinds = transaction_kinds(checked)
        self._decoder = TransactionDecoder(checked)
        with readable(path), self._pq.ParquetFile(path) as file:
            self._names = set(file.schema_arrow.names)
            self.rows = int(file.metadata.num_rows)
        require_columns(path, self._names, (name for name, field in shape.fields.items() if not field.optional))
        self._entity_fields = {entity.field for entity in checked.spec.entities.values()}
        self._present = {d.of[0] for d in checked.spec.derived if d.function == "present"}
        lengths = sum(_FIELD_BYTES + field.max_length * _CHARACTER_BYTES for field in shape.fields.values())
        self._short = lengths <= checked.spec.limits.max_value_bytes
        # The converted value must stay in range, see the decoder.
        rates = list(shape.rates.values())
        self._most = int(MAX_VALUE / max(1.0, *rates)) if rates else MAX_VALUE

    def chunks(self, rows: int) -> Iterator[tuple[int, Transactions]]:
        """Per chunk of at most `rows` rows: the number of rows, and the valid ones as columns.

        Raises:
            UsageError: the file cannot be read or, after the last chunk, its column of event times has none.
        """
        checked = TimeColumns(self._path, [self._shape.time])
        with readable(self._path), self._pq.ParquetFile(self._path) as file:
            for batch in file.iter_batches(rows, columns=self._wanted()):
                yield batch.num_rows, self._decode(batch, checked)
        checked.require()

    def block(self, first: int, stop: int, rows: int) -> tuple[Ints, Transactions]:
        """The valid ones of the rows ``[first, stop)``: their numbers in the file (n,), and their columns.

        Only the row groups of these rows are read, at most `rows` rows at a time.
        """
        numbers, parts = [], []
        checked = TimeColumns(self._path, [self._shape.time])  # other blocks may have times
        with readable(self._path), self._pq.ParquetFile(self._path) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
            ends = np.cumsum([0, *sizes])
            groups = np.flatnonzero((ends[:-1] < stop) & (ends[1:] > first)).tolist()
            at = int(ends[groups[0]]) if groups else stop
            for batch in file.iter_batches(rows, row_groups=groups, columns=self._wanted()):
                low, high = max(first - at, 0), min(stop - at, batch.num_rows)
                if low < high:
                    part = self._decode(batch.slice(low, high - low), checked)
                    numbers.append(at + low + part.row)
                    parts.append(part)
                at += batch.num_rows
                if at >= stop:
                    break
        return np.concatenate([np.zeros(0, np.int64), *numbers]), join_transactions(parts)

    def _wanted(self) -> list[str]:
        return [name for name in self._shape.fields if name in self._names]

    def _decode(self, batch: Any, checked: TimeColumns) -> Transactions:
        columns = columns_of(self._path, batch, self._kinds)
        try:
            found = self._fast(batch.num_rows, columns)
            if len(found):
                checked.take([{self._shape.time: int(found.event_time.min())}])
            return found
        except (_Unusual, self._pa.ArrowInvalid):
            rows = rows_of(columns, self._kinds)
            checked.take(rows)
            times = np.array([whole_time(row.get(self._shape.time)) for row in rows], np.int64)
            return self._decoder.decode([msgspec.json.encode(row) for row in rows], times)[0]

    def _fast(self, n: int, columns: dict[str, Any]) -> Transactions:
        """Columns of a chunk of plainly valid rows. Raises `_Unusual` for any other."""
        if not self._short:
            raise _Unusual
        shape = self._shape
        numeric: dict[str, Floats] = {}
        ids: dict[str, list[Any]] = {}
        value = time = np.zeros(0, np.int64)
        for name, field in shape.fields.items():
            column = columns.get(name)
            if column is None:
                numeric[name] = np.full(n, np.nan)
                if name in self._entity_fields:
                    ids[name] = [None] * n
                continue
            if column.null_count and not field.optional:
                raise _Unusual
            if field.type == "string":
                self._check_text(column, field)
                if name == shape.id or name in self._entity_fields:
                    ids[name] = column.to_pylist()
                if name in self._present:
                    numeric[name] = np.where(_valid(column), 1.0, np.nan)
                continue
            if name in (shape.time, shape.value):
                whole = self._integers(column, field, self._most if name == shape.value else EXACT_INTEGERS)
                if name == shape.time:
                    time = whole
                    numeric[name] = whole.astype(np.float64)
                else:
                    value = whole
                continue
            numeric[name] = self._numbers(column, field)
        strings = [name for name, field in shape.fields.items() if field.type == "string" and name not in self._present]
        for name in strings:
            numeric.pop(name, None)
        return self._decoder.assemble(np.arange(n), time, value, numeric, ids)

    def _check_text(self, column: Any, field: Field) -> None:
        import pyarrow.compute as pc

        if not (self._pa.types.is_string(column.type) or self._pa.types.is_large_string(column.type)):
            raise _Unusual
        if len(column) > column.null_count:
            lengths = pc.min_max(pc.utf8_length(column)).as_py()
            if lengths["min"] < 1 or lengths["max"] > field.max_length:
                raise _Unusual

    def _integers(self, column: Any, field: Field, most: int) -> Ints:
        if not (self._pa.types.is_integer(column.type) or self._pa.types.is_floating(column.type)):
            raise _Unusual
        # Refuses what is not whole, see `_decode`.
        found: Ints = column.cast(self._pa.int64()).to_numpy(zero_copy_only=False)
        if column.null_count:
            raise _Unusual
        low, high = (0, most) if field.type == "time" else (-most, most)
        if field.type == "integer":
            low = low if field.min is None else max(int(field.min), low)
            high = high if field.max is None else min(int(field.max), high)
        if len(found) and (found.min() < low or found.max() > high):
            raise _Unusual
        return found

    def _numbers(self, column: Any, field: Field) -> Floats:
        """A category, boolean, number, time or integer as (n,) float64, NaN for null."""
        import pyarrow.compute as pc

        types = self._pa.types
        if field.type == "category":
            if types.is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            if not (types.is_string(column.type) or types.is_large_string(column.type)):
                raise _Unusual
            values = self._pa.array(field.values or [], column.type)
            codes = pc.index_in(column, value_set=values)
            if codes.null_count != column.null_count:
                raise _Unusual
            return _floats(codes)
        if field.type == "boolean":
            if not types.is_boolean(column.type):
                raise _Unusual
            return _floats(column.cast(self._pa.int8()))
        is_whole = field.type != "number" and types.is_integer(column.type)
        if not (is_whole or types.is_floating(column.type)):
            raise _Unusual
        found = _floats(column)
        finite = found[_valid(column)]
        if field.type != "number" and not is_whole and not np.array_equal(finite, np.rint(finite)):
            raise _Unusual
        limit = 1.7e308 if field.type == "number" else float(EXACT_INTEGERS)
        least = 0.0 if field.type == "time" else -limit
        low = least if field.min is None else max(float(field.min), least)
        high = limit if field.max is None else min(float(field.max), limit)
        if len(finite) and not (finite.min() >= low and finite.max() <= high):
            raise _Unusual
        return found


def _floats(column: Any) -> Floats:
    values: Floats = column.cast("float64").to_numpy(zero_copy_only=False)
    return values


def _valid(column: Any) -> Bools:
    valid: Bools = column.is_valid().to_numpy(zero_copy_only=False)
    return valid
