"""What the processor asks of a broker. Kafka meets it in `kafka/`, a broker in memory in `tests/support`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from stream_scorer.errors import StreamScorerError
from stream_scorer.positions import SourcePartition
from stream_scorer.serde.raw import Headers, RawRecords, Read


class Reader(Protocol):
    """A member of the consumer group, with positions it keeps itself; see `stream_scorer.kafka.reader.InputReader`."""

    @property
    def owned(self) -> list[SourcePartition]: ...

    def read(self, max_records: int, wait_s: float) -> Read: ...

    def read_more(self, read: Read, max_records: int) -> Read: ...

    def committed(self, partitions: list[SourcePartition]) -> dict[SourcePartition, int | None]: ...

    def offset_bounds(self, source: SourcePartition) -> tuple[int, int]: ...

    def commit(self, offsets: dict[SourcePartition, int]) -> None: ...

    def seek_all(self, offsets: dict[SourcePartition, int]) -> None: ...

    def lag(self) -> int: ...

    def find_refusal(self) -> StreamScorerError | None: ...

    def close(self) -> None: ...


class LogReader(Protocol):
    """Reads ranges of the inputs in no group; see `stream_scorer.kafka.range_reader.RangeReader`."""

    def read(self, source: SourcePartition, start: int, stop: int) -> Iterator[RawRecords]: ...

    def close(self) -> None: ...


class LogEnds(LogReader, Protocol):
    """A log reader that also returns the bounds of the log; see `stream_scorer.kafka.range_reader.RangeReader`."""

    def bounds(self, topic: str) -> dict[SourcePartition, tuple[int, int]]: ...

    def retention_ms(self, topic: str) -> int | None: ...


class OpenTransaction(Protocol):
    """One transaction; see `stream_scorer.kafka.transactions.Transaction`."""

    def begin(self) -> None: ...

    def produce(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Headers | None = None
    ) -> None: ...

    def flush(self) -> None: ...

    def commit(self, offsets: Mapping[SourcePartition, int], group_metadata: Any) -> None: ...

    def abort(self) -> None: ...


class Producers(Protocol):
    """Hands out transactions in turn; see `stream_scorer.kafka.transactions.TransactionPair`."""

    def next(self) -> OpenTransaction: ...

    def restore(self) -> None: ...

    def close(self) -> None: ...
