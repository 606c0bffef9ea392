"""Converts amounts in units of a currency to the integers of minor units that the scorer computes with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_scorer.data.cells import UnreadableCell, is_whole, numbers
from stream_scorer.data.csv_file import CsvFile
from stream_scorer.errors import UsageError
from stream_scorer.spec.model import MAX_VALUE, TransactionShape

# Of an amount with decimals, if the user gives none.
_CENTS = 100
# Within this distance of a whole number of minor units, decimals are rounding errors of an export (12.340000000000002).
# A double of many digits is less exact: there, it is four times the distance to the next double.
_ROUNDING, _NEIGHBOURS = 1e-6, 4


@dataclass(frozen=True, slots=True)
class AmountRange:
    """The least and the greatest amount, as written and in minor units; `currency` is '' unless there are several."""

    currency: str
    low: str
    high: str
    low_units: int
    high_units: int


def amounts_of(file: CsvFile, name: str) -> NDArray[np.float64]:
    """``(n,)``: the amounts as written. Raises `UsageError` if one is missing or no number."""
    try:
        data = numbers(file.field(name))
    except UnreadableCell as error:
        row: int | None = error.row
    else:
        if not data.null_count:
            return np.asarray(data, dtype=np.float64)
        row = int(np.argmax(np.asarray(data.is_null()))) + 1
    raise UsageError(
        f"{file.path}: column {file.original[name]!r} must be a number in every row, as it is the value, "
        f"and row {row} is not",
        hint="Numbers have a decimal point and no separators: 1234.50.",
    )


def minor_units(
    file: CsvFile, shape: TransactionShape, units: int | Mapping[str, int] | None
) -> tuple[NDArray[np.int64], list[AmountRange]]:
    """``(n,)`` amounts in minor units of their currency, and the range of each currency.

    Args:
        units: minor units per unit, or by currency; None is 100 if the amounts have decimals.

    Raises:
        UsageError: an amount is unreadable, too large or has more decimals, or `units` does not suit the spec.
    """
    amounts = amounts_of(file, shape.value)
    currencies = (shape.fields[shape.currency].values or []) if shape.currency else []
    if len(currencies) > 1:
        rows = _currency_of_rows(file, shape, currencies)
        table = _units_by_currency(file, currencies, units)
        factors = np.array([table[currency] for currency in currencies], dtype=np.float64)[rows]
    else:
        rows = np.zeros(len(amounts), dtype=np.int64)
        factors = np.full(len(amounts), _one_factor(file, shape.value, currencies, units), dtype=np.float64)
    scaled = amounts * factors
    whole = np.rint(scaled)
    _refuse(file, np.abs(whole) > MAX_VALUE, f"a value of more than {MAX_VALUE:,} minor units", "Correct the row.")
    finer = np.abs(scaled - whole) > np.maximum(_ROUNDING, _NEIGHBOURS * np.spacing(np.abs(scaled)))
    hint = "Give --minor-units: 100 for cents, 1000 for three decimals."
    _refuse(file, finer, "a value with more decimals than minor units", hint)
    result = whole.astype(np.int64)
    return result, _ranges(file.field(shape.value), result, rows, currencies)


def _one_factor(file: CsvFile, name: str, currencies: list[str], units: int | Mapping[str, int] | None) -> int:
    if isinstance(units, Mapping):
        if set(units) != set(currencies):
            expected = f"only {currencies[0]}" if currencies else "no currency (transaction.currency)"
            raise UsageError(f"--minor-units names {', '.join(units)}, but the spec has {expected}")
        return units[currencies[0]]
    if units is None and is_whole(file.field(name)):
        raise UsageError(
            f"{file.path}: column {file.original[name]!r} has whole numbers only, which can be cents or full units",
            hint="Give --minor-units 1 if they are minor units already, and --minor-units 100 if they are full units.",
        )
    return _CENTS if units is None else units


def _units_by_currency(
    file: CsvFile, currencies: list[str], units: int | Mapping[str, int] | None
) -> Mapping[str, int]:
    if isinstance(units, Mapping) and set(units) == set(currencies):
        return units
    raise UsageError(
        f"{file.path}: the spec has the currencies {', '.join(currencies)}, so each of them needs its minor units",
        hint="Give all of them, such as --minor-units EUR=100,JPY=1.",
    )


def _currency_of_rows(file: CsvFile, shape: TransactionShape, currencies: list[str]) -> NDArray[np.int64]:
    """``(n,)``: the place of each row's currency in `currencies`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    assert shape.currency is not None
    places = np.asarray(pc.index_in(file.field(shape.currency), pa.array(currencies)).fill_null(-1), dtype=np.int64)
    hint = f"The currencies of the spec: {', '.join(currencies)}."
    _refuse(file, places < 0, f"no currency of the spec in column {file.original[shape.currency]!r}", hint)
    return places


def _refuse(file: CsvFile, bad: NDArray[np.bool_], what: str, hint: str) -> None:
    if bad.any():
        raise UsageError(f"{file.path}: row {int(np.argmax(bad)) + 1} has {what}", hint=hint)


def _ranges(text: Any, units: NDArray[np.int64], rows: NDArray[np.int64], currencies: list[str]) -> list[AmountRange]:
    out = []
    for place in np.unique(rows).tolist():
        of_currency = np.flatnonzero(rows == place)
        low, high = (int(of_currency[find(units[of_currency])]) for find in (np.argmin, np.argmax))
        first, last = (str(text[row].as_py()).strip() for row in (low, high))
        currency = currencies[place] if len(currencies) > 1 else ""
        out.append(AmountRange(currency, first, last, int(units[low]), int(units[high])))
    return out
