"""Undecoded input records as columns, as they come from a topic or a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_scorer.positions import SourcePartition

Headers = Sequence[tuple[str, bytes | None]]
# Most bytes of a record's key and headers. Both are copied to every output of the record.
MAX_ENVELOPE_BYTES = 65_536
# A header has two lengths, of one or two bytes each up to 8 kB: a record may consist of empty headers only.
_HEADER_BYTES = 4


def headers_size(headers: Headers | None) -> int:
    """Bytes of names and values, and of their lengths."""
    return sum(_HEADER_BYTES + len(name.encode()) + len(value or b"") for name, value in headers or ())


@dataclass(slots=True)
class RawRecords:
    """`n` records of one topic, in log order within each partition.

    Attributes:
        partition: (n,) int32. offset: (n,) int64. timestamp: (n,) int64, Kafka timestamps in epoch ms.
        key, value, headers: the original bytes; the value of a tombstone is None.
    """

    topic: str
    partition: NDArray[np.int32]
    offset: NDArray[np.int64]
    timestamp: NDArray[np.int64]
    key: list[bytes | None]
    value: list[bytes | None]
    headers: list[Headers | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.value)

    def take(self, index: NDArray[np.int64]) -> RawRecords:
        """The records at `index` (k,), in that order."""
        rows = index.tolist()
        return RawRecords(
            self.topic,
            self.partition[index],
            self.offset[index],
            self.timestamp[index],
            [self.key[i] for i in rows],
            [self.value[i] for i in rows],
            [self.headers[i] for i in rows],
        )

    def concatenate(self, other: RawRecords) -> RawRecords:
        """These records followed by `other`, of the same topic."""
        return RawRecords(
            self.topic,
            np.concatenate([self.partition, other.partition]),
            np.concatenate([self.offset, other.offset]),
            np.concatenate([self.timestamp, other.timestamp]),
            self.key + other.key,
            self.value + other.value,
            self.headers + other.headers,
        )

    @classmethod
    def empty(cls, topic: str) -> RawRecords:
        """No records."""
        nothing = np.empty(0, np.int64)
        return cls(topic, nothing.astype(np.int32), nothing, nothing, [], [], [])


@dataclass(slots=True)
class Read:
    """The result of one poll: records by topic, the positions after them, and the group metadata at that time."""

    records: list[RawRecords]
    positions: dict[SourcePartition, tuple[int, int]]  # source -> (start, stop): [start, stop) was read
    group_metadata: Any

    def __len__(self) -> int:
        return sum(len(records) for records in self.records)
