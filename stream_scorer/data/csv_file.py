"""Reads a CSV file as columns of text, with names that a pipeline spec accepts."""

from __future__ import annotations

import codecs
import csv
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stream_scorer.errors import UsageError
from stream_scorer.parquet import import_pyarrow

# Name of the generated id of a file without an id column: the row number.
ROW_ID = "row_id"
# Of a name in a spec.
MAX_NAME_LENGTH = 41
# First bytes of files that are no text: what they are, and what to do.
_NO_TEXT = (
    (b"\x1f\x8b", "is compressed with gzip", "Decompress it first: gunzip, or gzip -d -c FILE > orders.csv."),
    (b"PK\x03\x04", "is a zip archive or an Excel file", "Take the CSV file out (unzip), or save the sheet as CSV."),
)


@dataclass(frozen=True, slots=True)
class CsvFile:
    """Columns (arrow strings, as written) by spec name, in the order of the file. `original` maps to its names."""

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

    def field(self, name: str) -> Any:
        """The cells of a field of the spec. Raises `UsageError` if the file lacks its column."""
        return self.columns[self.column(name, "a field of the spec")]


def read_csv(path: Path, encoding: str = "utf-8", delimiter: str = ",") -> CsvFile:
    """Read the whole file. Every cell is text as written, so that ids and codes keep their zeros; an empty one is null.

    Raises:
        UsageError: the file is unreadable, compressed or in another encoding, has one column or no rows, or two columns
            map to the same name.
        SettingsError: pyarrow is not installed.
    """
    names, table = _read(path, encoding, delimiter)
    if not len(table):
        raise UsageError(f"{path} has no rows")
    original: dict[str, str] = {}
    for name in names:
        spec_name = spec_name_of(name)
        if spec_name in original:
            raise UsageError(f"{path}: columns {original[spec_name]!r} and {name!r} both map to {spec_name!r}")
        original[spec_name] = name
    columns = {name: table.column(place) for place, name in enumerate(original)}
    return CsvFile(path, columns, original, len(table))


def _read(path: Path, encoding: str, delimiter: str) -> tuple[list[str], Any]:
    pa, _ = import_pyarrow()
    from pyarrow import csv as arrow

    try:
        if codecs.lookup(encoding).name == "utf-8":
            encoding = "utf-8-sig"
        _require_text(path)
        names = _header(path, encoding, delimiter)
        table = arrow.read_csv(
            path,
            # Arrow reads UTF-8 itself, and the beginning of such a file may have a byte order mark.
            read_options=arrow.ReadOptions(encoding="utf-8" if encoding == "utf-8-sig" else encoding),
            parse_options=arrow.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=arrow.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
                null_values=[""],
            ),
        )
        return table.column_names, table
    except LookupError:
        raise UsageError(
            f"there is no encoding {encoding!r}", hint="Such as: utf-8, cp1252, latin-1, utf-16."
        ) from None
    except (OSError, UnicodeError, csv.Error, pa.ArrowException) as error:
        if isinstance(error, UnicodeError) or "invalid UTF8" in str(error):
            raise UsageError(
                f"{path} is not a text file in {encoding.removesuffix('-sig')}",
                hint="Give its encoding, such as --encoding cp1252 (Windows, Western Europe) or --encoding utf-16.",
            ) from None
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error).splitlines()[0]
        raise UsageError(f"cannot read {path}: {reason}") from None


def _require_text(path: Path) -> None:
    """Raise `UsageError` for a compressed file."""
    with path.open("rb") as file:
        first = file.read(4)
    for magic, what, hint in _NO_TEXT:
        if first.startswith(magic):
            raise UsageError(f"{path} {what}", hint=hint)


def _header(path: Path, encoding: str, delimiter: str) -> list[str]:
    """The names of the columns: the first line that is not empty. Raises `UsageError` for another delimiter."""
    with path.open(encoding=encoding, newline="") as lines:
        names = next((names for names in csv.reader(lines, delimiter=delimiter) if names), [])
    if len(names) == 1:
        for other, flag in ((";", "';'"), ("\t", "tab"), ("|", "'|'"), (",", "','")):
            if other in names[0]:
                raise UsageError(
                    f"{path} has one column only, {names[0]!r}", hint=f"Give its delimiter: --delimiter {flag}."
                )
    return names


def spec_name_of(name: str) -> str:
    """`name` as a spec accepts it: lower case letters, digits and underscores, with a letter first."""
    plain = re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")
    if not plain or not plain[0].isalpha():
        plain = "c_" + plain
    return plain[:MAX_NAME_LENGTH].rstrip("_")
