"""Reads a CSV file as columns, with names that a pipeline spec accepts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stream_scorer.errors import UsageError
from stream_scorer.parquet import import_pyarrow

# Name of the generated id of a file without an id column: the row number.
ROW_ID = "row_id"
_MAX_NAME_LENGTH = 41


@dataclass(frozen=True, slots=True)
class CsvFile:
    """Columns (arrow arrays) by spec name, in the order of the file. `original` maps to the names in the file."""

    path: Path
    columns: dict[str, Any]
    original: dict[str, str]
    rows: int

    def column(self, name: str, purpose: str) -> str:
        """The spec name of the column `name`, given as in the file or the spec.

        Raises `UsageError` if it is missing.
        """
        for spec_name, original in self.original.items():
            if name in (original, spec_name):
                return spec_name
        raise UsageError(
            f"{self.path} has no column {name!r} ({purpose})", hint=f"Its columns: {', '.join(self.original.values())}."
        )


def read_csv(path: Path) -> CsvFile:
    """Read the whole file. Infers types; an empty cell is a missing value.

    Raises:
        UsageError: the file is unreadable, has no rows, or two columns map to the same name.
        SettingsError: pyarrow is not installed.
    """
    pa, _ = import_pyarrow()
    from pyarrow import csv

    try:
        table = csv.read_csv(path, convert_options=csv.ConvertOptions(strings_can_be_null=True))
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"cannot read {path}: {str(error).splitlines()[0]}") from None
    if not len(table):
        raise UsageError(f"{path} has no rows")
    original: dict[str, str] = {}
    for name in table.column_names:
        spec_name = spec_name_of(name)
        if spec_name in original:
            raise UsageError(f"{path}: columns {original[spec_name]!r} and {name!r} both map to {spec_name!r}")
        original[spec_name] = name
    columns = {name: table.column(place) for place, name in enumerate(original)}
    return CsvFile(path, columns, original, len(table))


def spec_name_of(name: str) -> str:
    """`name` as a spec accepts it: lower case letters, digits and underscores, with a letter first."""
    plain = re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")
    if not plain or not plain[0].isalpha():
        plain = "c_" + plain
    return plain[:_MAX_NAME_LENGTH].rstrip("_")
