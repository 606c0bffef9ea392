"""A broker for the contract suites: in memory and a real Kafka, with topics and a group of its own for each test."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from confluent_kafka import Producer

from stream_scorer.kafka.config import producer_config
from stream_scorer.kafka.range_reader import RangeReader
from stream_scorer.kafka.reader import GroupMember, InputReader
from stream_scorer.kafka.topics import TopicAdmin
from stream_scorer.kafka.transactions import TransactionPair
from stream_scorer.pipeline.ports import LogEnds, Producers, Reader
from stream_scorer.positions import SourcePartition
from stream_scorer.serde.raw import Headers
from tests.support.broker import MemoryBroker, MemoryLog, MemoryProducers, MemoryReader
from tests.support.failpoints import Failpoints

PARTITIONS = 2
# Kafka soon deletes records that look older than its retention.
NOW_MS = int(time.time() * 1_000)
# How long suites wait for what must come.
PATIENCE_S = 20.0
Assigned = Callable[[list[SourcePartition]], dict[SourcePartition, int]]
Revoked = Callable[[bool], None]
_serial = itertools.count()


def from_start(sources: list[SourcePartition]) -> dict[SourcePartition, int]:
    """Every partition from its first offset on."""
    return dict.fromkeys(sources, 0)


def ignore(_lost: bool) -> None:
    """A member that has nothing to finish."""


class Broker(Protocol):
    """An input and an output topic of two partitions each, and one consumer group.

    Attributes:
        inputs, outputs: the partitions of the two topics.
    """

    inputs: Sequence[SourcePartition]
    outputs: Sequence[SourcePartition]

    def append(
        self,
        source: SourcePartition,
        values: Sequence[bytes | None],
        *,
        key: bytes | None = None,
        timestamp: int = NOW_MS,
        headers: Headers | None = None,
    ) -> None:
        """Write records outside any transaction."""
        ...

    def reader(self, name: str = "one", *, on_assigned: Assigned = ..., on_revoked: Revoked = ...) -> Reader:
        """A member of the group that reads the input."""
        ...

    def producers(self, name: str = "writer") -> Producers:
        """Producers of that name; older ones of the same name are fenced."""
        ...

    def log(self) -> LogEnds:
        """A reader of ranges."""
        ...

    def close(self) -> None:
        """Close all of them."""
        ...


class _Closing:
    """Closes what it made, last first."""

    def __init__(self) -> None:
        self._made: list[Any] = []

    def close(self) -> None:
        for part in reversed(self._made):
            part.close()
        self._made.clear()


class MemoryParts(_Closing):
    """`Broker` in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.broker = MemoryBroker({"in": PARTITIONS, "out": PARTITIONS}, ["in"])
        self.inputs = [SourcePartition("in", p) for p in range(PARTITIONS)]
        self.outputs = [SourcePartition("out", p) for p in range(PARTITIONS)]

    def append(
        self,
        source: SourcePartition,
        values: Sequence[bytes | None],
        *,
        key: bytes | None = None,
        timestamp: int = NOW_MS,
        headers: Headers | None = None,
    ) -> None:
        for value in values:
            self.broker.append(source, key, value, timestamp, headers)

    def reader(
        self, name: str = "one", *, on_assigned: Assigned = from_start, on_revoked: Revoked = ignore
    ) -> MemoryReader:
        reader = MemoryReader(
            self.broker,
            name,
            Failpoints(),
            random.Random(1),
            lambda: None,
            on_assigned=on_assigned,
            on_revoked=on_revoked,
        )
        self._made.append(reader)
        return reader

    def producers(self, name: str = "writer") -> MemoryProducers:
        made = MemoryProducers(self.broker, name, Failpoints())
        self._made.append(made)
        return made

    def log(self) -> MemoryLog:
        return MemoryLog(self.broker, Failpoints())


class KafkaParts(_Closing):
    """`Broker` on a real Kafka."""

    def __init__(self, bootstrap: str) -> None:
        super().__init__()
        self._bootstrap = bootstrap
        self._name = f"contract-{next(_serial)}"
        self._plain = Producer(producer_config(bootstrap, "contract"))
        names = [f"{self._name}-in", f"{self._name}-out"]
        TopicAdmin(bootstrap).create(names, PARTITIONS)
        self.inputs, self.outputs = ([SourcePartition(name, p) for p in range(PARTITIONS)] for name in names)

    def append(
        self,
        source: SourcePartition,
        values: Sequence[bytes | None],
        *,
        key: bytes | None = None,
        timestamp: int = NOW_MS,
        headers: Headers | None = None,
    ) -> None:
        for value in values:
            more: dict[str, Any] = {} if headers is None else {"headers": list(headers)}
            self._plain.produce(source.topic, value, key, source.partition, timestamp=timestamp, **more)
        assert self._plain.flush(10.0) == 0

    def reader(
        self, name: str = "one", *, on_assigned: Assigned = from_start, on_revoked: Revoked = ignore
    ) -> InputReader:
        reader = InputReader(
            self._bootstrap,
            GroupMember(self._name, name, static=False),  # one that leaves is gone at once
            [self.inputs[0].topic],
            on_assigned=on_assigned,
            on_revoked=on_revoked,
            stopping=lambda: False,
            times_of={},
        )
        self._made.append(reader)
        return reader

    def producers(self, name: str = "writer") -> TransactionPair:
        made = TransactionPair(self._bootstrap, f"{self._name}-{name}")
        self._made.append(made)
        return made

    def log(self) -> RangeReader:
        made = RangeReader(self._bootstrap, client_id="contract")
        self._made.append(made)
        return made
