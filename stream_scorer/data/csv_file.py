"""A CSV file as columns, under names that a pipeline spec takes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stream_scorer.errors import SettingsError, UsageError

# The name of the id that a file without one gets: its rows, numbered.
ROW_ID = "row_id"
_LONGEST_NAME = 41


@dataclass(frozen=True, slots=True)
class CsvFile:
    """Columns (arrow arrays) by spec name, in the order of the file; `original` gives what the file calls them."""

    path: Path
    columns: dict[str, Any]
    original: dict[str, str]
    rows: int

    def column(self, name: str, purpose: str) -> str:
        """The spec name of the column that a person calls `name`. Raises `UsageError` if there is none."""
        for spec_name, original in self.original.items():
            if name in (original, spec_name):
                return spec_name
        raise UsageError(
            f"{self.path} has no column {name!r} ({purpose})", hint=f"It has: {', '.join(self.original.values())}."
        )


def read_csv(path: Path) -> CsvFile:
    """The whole file. Types are inferred; an empty cell is missing.

    Raises:
        UsageError: it cannot be read, has no rows, or two columns come to one name.
        SettingsError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow import csv
    except ImportError:
        raise SettingsError("CSV files need pyarrow", hint="Install stream-scorer[files].") from None
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
            raise UsageError(f"{path}: columns {original[spec_name]!r} and {name!r} both come to {spec_name!r}")
        original[spec_name] = name
    columns = {name: table.column(place) for place, name in enumerate(original)}
    return CsvFile(path, columns, original, len(table))


def spec_name_of(name: str) -> str:
    """`name` in the form that a spec takes: lower case, digits and underscores, beginning with a letter."""
    plain = re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")
    if not plain or not plain[0].isalpha():
        plain = "c_" + plain
    return plain[:_LONGEST_NAME].rstrip("_")
