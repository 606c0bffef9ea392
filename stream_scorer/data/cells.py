"""Reads the text of cells as numbers, truth values and times, and finds out which of these a column holds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np

from stream_scorer.parquet import milliseconds
from stream_scorer.records import EXACT_INTEGERS

Kind = Literal["missing", "integer", "number", "boolean", "time", "text"]

_INTEGER = r"^[+-]?[0-9]+$"
# Such a cell is a code: as a number it would lose the zero.
_LEADING_ZERO = r"^[+-]?0[0-9]+$"
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_BOOLEAN = r"^([Tt]rue|[Ff]alse|TRUE|FALSE)$"
# What a number, a truth value or a time may be if it is missing. A text is missing only if its cell is empty.
_MISSING = ["", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null"]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class UnreadableCell(ValueError):
    """A cell is not what its column should hold. `row` counts from 1."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row}")
        self.row = row


def kind_of(text: Any) -> Kind:
    """What all cells of the column `text` (arrow strings) can be read as without loss.

    Integers with a leading zero, or beyond 2^53, are codes and therefore text.
    """
    import pyarrow.compute as pc

    values = _present(text)
    if text.null_count == len(text):
        return "missing"
    if values.null_count == len(values):
        return "text"
    if pc.all(pc.match_substring_regex(values, _NUMBER)).as_py():
        if pc.any(pc.match_substring_regex(values, _LEADING_ZERO)).as_py():
            return "text"
        if not pc.all(pc.match_substring_regex(values, _INTEGER)).as_py():
            return "number"
        return "text" if np.nanmax(np.abs(_floats(values))) >= EXACT_INTEGERS else "integer"
    if pc.all(pc.match_substring_regex(values, _BOOLEAN)).as_py():
        return "boolean"
    return "text" if _arrow_times(values) is None else "time"


def is_whole(text: Any) -> bool:
    """Whether no cell has a decimal point or an exponent."""
    import pyarrow.compute as pc

    return bool(pc.all(pc.match_substring_regex(_present(text), _INTEGER)).as_py())


def is_numeric(text: Any) -> bool:
    """Whether all cells are numbers or missing."""
    import pyarrow.compute as pc

    return bool(pc.all(pc.match_substring_regex(_present(text), _NUMBER)).as_py())


def missing(text: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """``(n,) bool``: which cells are missing, if the column holds anything but text."""
    return np.asarray(_present(text).is_null())


def numbers(text: Any) -> Any:
    """The column as float64. Raises `UnreadableCell` for what is no finite number."""
    import pyarrow as pa

    values = _present(text)
    _require(values, _NUMBER)
    floats = _floats(values)
    if np.isinf(floats).any():
        raise UnreadableCell(int(np.argmax(np.isinf(floats))) + 1)
    return pa.array(floats, from_pandas=True)


def integers(text: Any) -> Any:
    """The column as int64; 5.0 is 5. Raises `UnreadableCell` for what is no integer, or beyond 2^53."""
    import pyarrow as pa

    floats = np.asarray(numbers(text).fill_null(0))
    bad = (floats != np.rint(floats)) | (np.abs(floats) >= EXACT_INTEGERS)
    if bad.any():
        raise UnreadableCell(int(np.argmax(bad)) + 1)
    return pa.array(floats.astype(np.int64), mask=missing(text))


def booleans(text: Any) -> Any:
    """The column as booleans (true, false, 1, 0). Raises `UnreadableCell` for anything else."""
    import pyarrow as pa

    values = _present(text)
    _require(values, rf"{_BOOLEAN}|^[01]$")
    return values.cast(pa.bool_())


def timestamps(text: Any) -> Any:
    """ISO 8601 times as int64 of epoch ms, UTC if they have no zone. Raises `UnreadableCell` for anything else."""
    import pyarrow as pa

    values = _present(text)
    found = _arrow_times(values)
    if found is not None:
        return found
    out: list[int | None] = []
    for row, cell in enumerate(values.to_pylist(), 1):
        try:
            moment = None if cell is None else datetime.fromisoformat(cell)
        except ValueError:
            raise UnreadableCell(row) from None
        if moment is not None and moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        out.append(None if moment is None else (moment - _EPOCH) // timedelta(milliseconds=1))
    return pa.array(out, pa.int64())


def _present(text: Any) -> Any:
    """The column without white space around the cells; what means missing is null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    trimmed = pc.utf8_trim_whitespace(text)
    return pc.if_else(pc.is_in(trimmed, pa.array(_MISSING)), pa.scalar(None, pa.string()), trimmed)


def _require(values: Any, pattern: str) -> None:
    import pyarrow.compute as pc

    fits = np.asarray(pc.match_substring_regex(values, pattern).fill_null(True))
    if not fits.all():
        raise UnreadableCell(int(np.argmin(fits)) + 1)


def _floats(values: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """``(n,) float64``, NaN if missing. Arrow accepts no plus sign for integers, so all are read as floats."""
    import pyarrow as pa

    return np.asarray(values.cast(pa.float64()), dtype=np.float64)


def _arrow_times(values: Any) -> Any | None:
    """Epoch ms, if all times have a zone or none has, and all are within the range of nanoseconds; else None."""
    import pyarrow as pa

    for zone in (None, "UTC"):
        try:
            return milliseconds(values.cast(pa.timestamp("ns", zone)))
        except pa.ArrowInvalid:
            continue
    return None
