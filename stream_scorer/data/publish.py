"""Publishes Parquet files of transactions and labels to the topics, as the user's own producer would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from stream_scorer.errors import UsageError
from stream_scorer.kafka.load import OpenLoopProducer, Schedule
from stream_scorer.kafka.topics import Topics
from stream_scorer.parquet import import_pyarrow, readable
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

    The key is the partition entity, or the event id if the spec has no entities. Records are due by `schedule`.

    Raises:
        UsageError: the file is unreadable or lacks a column, or the topic does not exist.
        BrokerUnavailable: the broker does not accept the records.
    """
    spec = checked.spec
    key = spec.entities[spec.partition_entity].field if spec.partition_entity else None
    key = key or ("event_id" if labels else spec.transaction.id)
    topic = topics.labels if labels else topics.transactions
    encode = msgspec.json.Encoder().encode
    sent = 0
    for rows in _rows(path, key):
        keys = [str(row[key] or "").encode() for row in rows]
        # A missing cell becomes an absent field; the scorer validates the record.
        values = [encode({name: value for name, value in row.items() if value is not None}) for row in rows]
        producer.publish(topic, keys, values, schedule=schedule)
        sent += len(rows)
        if on_progress is not None:
            on_progress(sent)
    return sent


def _rows(path: Path, key: str) -> Iterator[list[dict[str, object]]]:
    _, pq = import_pyarrow()
    with readable(path), pq.ParquetFile(path) as file:
        if key not in file.schema_arrow.names:
            raise UsageError(f"{path} has no column {key!r}, which is the record key")
        for batch in file.iter_batches(_CHUNK):
            yield batch.to_pylist()
