"""Files as input: Parquet (columns as in the spec) or JSON lines (values as on the topics), as one partition each.

The number of a row is its offset. A file has no Kafka timestamps, so each event time is checked against itself. Rows
must be in log order: a replay does not sort them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from stream_scorer.errors import UsageError
from stream_scorer.parquet import TimeColumns, import_pyarrow, is_parquet, read_rows, readable, whole_time
from stream_scorer.records import NOT_A_RECORD
from stream_scorer.serde.files import (
    LABEL_TIMES,
    label_kinds,
    labels_required,
    transaction_kinds,
    transactions_required,
)
from stream_scorer.serde.raw import RawRecords
from stream_scorer.spec.model import CheckedSpec

CHUNK = 5_000


class FileInput:
    """The transactions or the labels in one file."""

    def __init__(self, path: Path, topic: str, checked: CheckedSpec, *, is_label: bool) -> None:
        """Raises `UsageError` if there is no such file."""
        if not path.is_file():
            raise UsageError(f"no file at {path}")
        self._path, self._topic = path, topic
        self._is_parquet = is_parquet(path)
        shape = checked.spec.transaction
        owner = checked.spec.entities[checked.spec.partition_entity or ""].field if checked.spec.entities else None
        self._key_field = owner
        self._time = "labelled_at" if is_label else shape.time
        self._checked_times: Collection[str] = LABEL_TIMES if is_label else [shape.time]
        self._kinds = label_kinds(checked) if is_label else transaction_kinds(checked)
        self._required = labels_required(checked) if is_label else transactions_required(checked)
        self._is_label = is_label

    def count(self) -> int:
        """The number of rows."""
        if self._is_parquet:
            _, pq = import_pyarrow()
            with readable(self._path), pq.ParquetFile(self._path) as file:
                return int(file.metadata.num_rows)
        with readable(self._path), self._path.open("rb") as lines:
            return sum(1 for _ in lines)

    def chunks(self) -> Iterator[RawRecords]:
        """The rows, in chunks.

        Raises:
            UsageError: the file is malformed or lacks a column or, after the last chunk, a column of times has none.
        """
        at = 0
        checked = TimeColumns(self._path, self._checked_times)
        with readable(self._path):
            rows = self._parquet(checked) if self._is_parquet else self._lines(checked)
            for keys, times, values in rows:
                n = len(values)
                yield RawRecords(
                    self._topic,
                    np.zeros(n, dtype=np.int32),
                    np.arange(at, at + n),
                    np.array(times, dtype=np.int64),
                    keys,
                    values,
                    [None] * n,
                )
                at += n
        checked.require()

    def _parquet(self, checked: TimeColumns) -> Iterator[tuple[list[bytes | None], list[int], list[bytes | None]]]:
        for rows in read_rows(self._path, self._kinds, self._required, CHUNK):
            checked.take(rows)
            for row in rows:
                if self._is_label:
                    row["source"] = row.get("source") or ""
            yield (
                [self._key(row) for row in rows],
                [whole_time(row[self._time]) for row in rows],
                [msgspec.json.encode(row) for row in rows],
            )

    def _lines(self, checked: TimeColumns) -> Iterator[tuple[list[bytes | None], list[int], list[bytes | None]]]:
        keys: list[bytes | None] = []
        times: list[int] = []
        values: list[bytes | None] = []
        with self._path.open("rb") as lines:
            for line in lines:
                value = line.rstrip(b"\r\n")
                try:
                    row = msgspec.json.decode(value)
                except NOT_A_RECORD:
                    row = None  # the decode stage rejects it
                fields = row if isinstance(row, dict) else {}
                if fields:
                    checked.take([fields])
                time = fields.get(self._time)
                keys.append(self._key(fields))
                times.append(whole_time(time))
                values.append(value)
                if len(values) == CHUNK:
                    yield keys, times, values
                    keys, times, values = [], [], []
        if values:
            yield keys, times, values

    def _key(self, row: dict[str, Any]) -> bytes | None:
        key = row.get(self._key_field) if self._key_field else None
        return key.encode() if isinstance(key, str) else None
