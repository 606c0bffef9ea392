"""Parquet files as records: what the topics get, without a broker."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_scorer.clock import SystemClock
from stream_scorer.data.publish import publish_file
from stream_scorer.errors import UsageError
from stream_scorer.kafka.open_loop import OpenLoopProducer, _places
from stream_scorer.kafka.partitioner import partitions_of
from stream_scorer.kafka.topics import Topics
from stream_scorer.spec import parse_spec

SPEC = parse_spec("""
name: x
version: 1
transaction:
  {id: id, time: at, value: price, fields: {id: {type: string}, at: {type: time}, price: {type: integer},
  seen: {type: time, optional: true}, buyer: {type: string, optional: true}}}
entities: {buyer: {field: buyer}}
partition_entity: buyer
policy: {version: x, review: 0.3, block: 0.8}
""")
NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)
NOON_MS = 1_735_732_800_000


class Topic:
    """A producer that keeps what it is given."""

    def __init__(self) -> None:
        self.keys: list[bytes | None] = []
        self.values: list[Any] = []

    def publish(self, topic: str, keys: list[bytes | None], values: list[bytes], *, schedule: None) -> None:
        self.keys += keys
        self.values += map(msgspec.json.decode, values)


def published(folder: Path, columns: dict[str, Any], *, labels: bool = False) -> Topic:
    path, topic = folder / "rows.parquet", Topic()
    pq.write_table(pa.table(columns), path)
    publish_file(path, SPEC, cast(OpenLoopProducer, topic), Topics(), labels=labels)
    return topic


@pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.timestamp("ns", "Europe/Berlin"), pa.timestamp("s", "UTC")])
def test_times_are_milliseconds_and_only_fields_of_the_spec_are_published(tmp_path: Path, kind: Any) -> None:
    ids = {"id": ["a", "b"], "buyer": ["b1", None]}
    ns = NOON_MS * 1_000_000 + (999_999 if kind.unit == "ns" else 0)
    at = pa.array([ns, ns], pa.timestamp("ns", kind.tz)).cast(kind)
    more = {"price": [1, 2], "seen": pa.array([None, NOON], kind), "paid": [Decimal("1.5")] * 2, "raw": [b"x"] * 2}
    topic = published(tmp_path, ids | {"at": at} | more)
    assert topic.keys == [b"b1", None]
    assert topic.values == [
        {"id": "a", "at": NOON_MS, "price": 1, "buyer": "b1"},
        {"id": "b", "at": NOON_MS, "price": 2, "seen": NOON_MS},
    ]
    written_by_databases = {"id": [b"a", b"b"], "price": [Decimal("1.00"), Decimal("2.00")]}
    assert published(tmp_path, ids | {"at": at} | more | written_by_databases).values == topic.values
    times = {"event_time": at, "labelled_at": at}
    topic = published(tmp_path, times | {"event_id": ["a", "b"], "label": ["fraud"] * 2} | ids, labels=True)
    assert topic.values[1] == {
        "event_id": "b", "event_time": NOON_MS, "label": "fraud", "labelled_at": NOON_MS, "source": "",
    }  # fmt: skip


def test_a_file_without_times_or_without_keys_is_refused_before_the_first_record(tmp_path: Path) -> None:
    for columns, message in [
        ({"id": ["a"], "at": ["2025-01-01"], "price": [1], "buyer": ["b"]}, "'at' has no times"),
        ({"id": ["a"], "at": [NOON_MS], "price": [1]}, "no column 'buyer'"),
    ]:
        with pytest.raises(UsageError, match=message):
            published(tmp_path, columns)


def test_records_without_a_key_go_to_the_partitions_in_turn() -> None:
    keys = [b"a", None, b"b", None, None]
    places = _places(keys, 3)
    assert places[[1, 3, 4]].tolist() == [1, 0, 1]
    assert np.array_equal(places[[0, 2]], partitions_of([b"a", b"b"], 3))
    producer = OpenLoopProducer("127.0.0.1:1", client_id="test", clock=SystemClock(), sleep=time.sleep)
    producer._counts["t"] = 3
    try:
        assert producer.publish("t", keys, [b"v"] * 5).tolist() == places.tolist()
        assert producer.sent == 5
    finally:
        producer.close()
