"""Publishes Parquet files of transactions and labels to the topics, as the user's own producer would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from stream_scorer.kafka.open_loop import OpenLoopProducer, Schedule
from stream_scorer.kafka.topics import Topics
from stream_scorer.parquet import TimeColumns, read_rows
from stream_scorer.serde.files import (
    LABEL_TIMES,
    label_kinds,
    labels_required,
    transaction_kinds,
    transactions_required,
)
from stream_scorer.spec.model import CheckedSpec

_CHUNK = 20_000


def publish_file(
    path: Path,
    checked: CheckedSpec,
    producer: OpenLoopProducer,
    topics: Topics,
    *,
    labels: bool,
    schedule: Schedule | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> int:
    """Publish the rows of `path` to `transactions` (or `labels`) in order, and return their number.

    Values are the fields of the spec, read as `train` and `replay` read them. The key is the partition entity, or the
    event id if the spec has no entities; a row without this id has no key. Records are due by `schedule`.

    Raises:
        UsageError: the file is unreadable, lacks a column or has no times, or the topic does not exist.
        BrokerUnavailable: the broker does not accept the records.
    """
    spec = checked.spec
    key = spec.entities[spec.partition_entity].field if spec.partition_entity else None
    key = key or ("event_id" if labels else spec.transaction.id)
    topic = topics.labels if labels else topics.transactions
    encode = msgspec.json.Encoder().encode
    sent = 0
    for rows in _rows(path, checked, key, labels=labels):
        keys = [None if row[key] is None else str(row[key]).encode() for row in rows]
        # A missing cell becomes an absent field; the scorer validates the record.
        values = [encode({name: value for name, value in row.items() if value is not None}) for row in rows]
        producer.publish(topic, keys, values, schedule=schedule)
        sent += len(rows)
        if on_progress is not None:
            on_progress(sent)
    return sent


def _rows(path: Path, checked: CheckedSpec, key: str, *, labels: bool) -> Iterator[list[dict[str, Any]]]:
    kinds = label_kinds(checked) if labels else transaction_kinds(checked)
    required = labels_required(checked) if labels else transactions_required(checked)
    seen = TimeColumns(path, LABEL_TIMES if labels else [checked.spec.transaction.time])
    for rows in read_rows(path, kinds, {key: ""} | required, _CHUNK):
        seen.take(rows)
        seen.require()  # before the first record of a file without times is published
        if labels:
            for row in rows:
                row["source"] = row.get("source") or ""
        yield rows
