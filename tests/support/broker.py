"""A broker in memory: logs with transactions and control records, one consumer group, fenced producers.

What it keeps of Kafka: offsets with holes, reading only what is committed, transactions that carry output and input
offsets all or nothing, an older producer of the same name fenced by a newer one, a commit with the group metadata of an
earlier generation refused, partitions handed on only when their old owner has given them up or was expelled.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stream_scorer.errors import TransactionAborted
from stream_scorer.positions import SourcePartition
from stream_scorer.serde.raw import Headers, RawRecords, Read
from tests.support.failpoints import Failpoints

# How long a reader without work waits: long enough to let another thread run.
_IDLE_S = 0.0005


@dataclass(slots=True)
class Entry:
    """One offset of a log: a record, or a control record (`value` and `key` None, `control`)."""

    key: bytes | None
    value: bytes | None
    timestamp: int
    transaction: int = 0
    control: bool = False


@dataclass(slots=True)
class _Transaction:
    number: int
    owner: str
    epoch: int
    state: str = "open"
    touched: set[SourcePartition] = field(default_factory=set)


class MemoryBroker:
    """See the module. `topics` gives the number of partitions of each; `inputs` are read by the group."""

    def __init__(self, topics: Mapping[str, int], inputs: list[str]) -> None:
        self.log: dict[SourcePartition, list[Entry]] = {
            SourcePartition(topic, p): [] for topic, count in topics.items() for p in range(count)
        }
        self.inputs = [source for source in self.log if source.topic in inputs]
        self.offsets: dict[SourcePartition, int] = {}
        self.aborted = 0
        self.generation = 0
        self.lock = threading.RLock()
        self._members: dict[str, int] = {}  # name -> the generation it has joined
        self._holding: dict[str, int] = {}  # name -> the generation whose partitions it may still work on
        self._transactions: dict[int, _Transaction] = {}
        self._epochs: dict[str, int] = {}

    def append(self, source: SourcePartition, key: bytes | None, value: bytes | None, timestamp: int) -> int:
        """Put one record outside any transaction; its offset."""
        with self.lock:
            self.log[source].append(Entry(key, value, timestamp))
            return len(self.log[source]) - 1

    def append_hole(self, source: SourcePartition) -> None:
        """Put a control record, as a transactional writer of the input leaves it."""
        with self.lock:
            self.log[source].append(Entry(None, None, 0, control=True))

    def read_committed(self, source: SourcePartition, start: int, most: int) -> list[tuple[int, Entry]]:
        """Records from `start` on that are committed, up to the first of an open transaction."""
        with self.lock:
            found: list[tuple[int, Entry]] = []
            entries = self.log[source]
            for offset in range(start, len(entries)):
                entry = entries[offset]
                state = self._transactions[entry.transaction].state if entry.transaction else "committed"
                if state == "open" or len(found) == most:
                    break
                if state == "committed" and not entry.control:
                    found.append((offset, entry))
            return found

    def drained(self) -> bool:
        """Whether the group has committed every record of the inputs."""
        with self.lock:
            return all(
                all(entry.control for entry in self.log[source][self.offsets.get(source, 0) :])
                for source in self.inputs
            )

    # Producers

    def register(self, name: str) -> int:
        """A new producer of this name: the older is fenced, and its open transactions are aborted. Its epoch."""
        with self.lock:
            self._epochs[name] = self._epochs.get(name, 0) + 1
            for transaction in self._transactions.values():
                if transaction.owner == name and transaction.state == "open":
                    self._end(transaction, "aborted")
            return self._epochs[name]

    def begin(self, name: str, epoch: int) -> int:
        """Begin a transaction; its number."""
        with self.lock:
            self._require_newest(name, epoch)
            number = len(self._transactions) + 1
            self._transactions[number] = _Transaction(number, name, epoch)
            return number

    def produce(self, number: int, source: SourcePartition, key: bytes | None, value: bytes | None) -> None:
        """One record into the open transaction `number`."""
        with self.lock:
            transaction = self._open(number)
            transaction.touched.add(source)
            self.log[source].append(Entry(key, value, 0, number))

    def commit(self, number: int, offsets: Mapping[SourcePartition, int], metadata: tuple[str, int]) -> None:
        """Commit records and offsets, all or nothing. Raises `TransactionAborted` for a stale member or producer."""
        with self.lock:
            transaction = self._open(number)
            name, generation = metadata
            if self._holding.get(name) != generation:
                self._end(transaction, "aborted")
                raise TransactionAborted(f"{name} is no longer of generation {generation}")
            self.offsets.update(offsets)
            self._end(transaction, "committed")

    def abort(self, number: int) -> None:
        """Abort an open transaction; one that has ended stays as it is."""
        with self.lock:
            if self._transactions[number].state == "open":
                self._end(self._transactions[number], "aborted")

    def _open(self, number: int) -> _Transaction:
        transaction = self._transactions[number]
        self._require_newest(transaction.owner, transaction.epoch)
        if transaction.state != "open":
            raise TransactionAborted(f"transaction {number} was {transaction.state}")
        return transaction

    def _require_newest(self, name: str, epoch: int) -> None:
        if self._epochs.get(name) != epoch:
            raise TransactionAborted(f"producer {name} was fenced")

    def _end(self, transaction: _Transaction, state: str) -> None:
        transaction.state = state
        self.aborted += state == "aborted" and bool(transaction.touched)
        for source in transaction.touched:
            self.log[source].append(Entry(None, None, 0, transaction.number, control=True))

    # The group

    def join(self, name: str) -> None:
        """A new member, or one that was started again."""
        with self.lock:
            self.expel(name)
            self._members[name] = self.generation

    def expel(self, name: str) -> None:
        """A member is gone, or has not been heard of in time: its partitions go to the others at once."""
        with self.lock:
            self.generation += 1
            self._members.pop(name, None)
            self._holding.pop(name, None)

    def release(self, name: str) -> None:
        """A member has given up what it held."""
        with self.lock:
            self._holding.pop(name, None)

    def is_member(self, name: str) -> bool:
        """Whether `name` still counts."""
        with self.lock:
            return name in self._members

    def take_up(self, name: str) -> tuple[int, list[SourcePartition]] | None:
        """The generation and partitions of a member, once nobody works on those of an earlier generation."""
        with self.lock:
            if name not in self._members or any(held != self.generation for held in self._holding.values()):
                return None
            self._holding[name] = self.generation
            names = sorted(self._members)
            place = names.index(name)
            return self.generation, [s for s in self.inputs if s.partition % len(names) == place]


class MemoryReader:
    """`pipeline.ports.Reader` on a `MemoryBroker`; see `InputReader` for what each call means.

    Args:
        shuffle: decides how many records of which partition come next, as a fetch does.
        on_idle: called when there is nothing to read.
    """

    def __init__(
        self,
        broker: MemoryBroker,
        name: str,
        life: Failpoints,
        shuffle: random.Random,
        on_idle: Callable[[], None],
        *,
        on_assigned: Callable[[list[SourcePartition]], dict[SourcePartition, int]],
        on_revoked: Callable[[bool], None],
    ) -> None:
        self._broker, self._name, self._life = broker, name, life
        self._shuffle = shuffle
        self._on_idle, self._on_assigned, self._on_revoked = on_idle, on_assigned, on_revoked
        self._position: dict[SourcePartition, int] = {}
        self._generation: int | None = None
        broker.join(name)

    @property
    def owned(self) -> list[SourcePartition]:
        """The partitions now assigned."""
        return list(self._position)

    def read(self, most: int, wait_s: float) -> Read:
        """At most `most` records. May run the rebalance callbacks."""
        self._life.point("read")
        self._rebalance()
        found = self._read(most)
        if not len(found):
            self._on_idle()
            time.sleep(_IDLE_S)
        return found

    def read_more(self, read: Read, most: int) -> Read:
        """What was read: nothing arrives meanwhile."""
        return read

    def committed(self, partitions: list[SourcePartition]) -> dict[SourcePartition, int | None]:
        """Committed offsets."""
        self._life.point("open")
        with self._broker.lock:
            return {source: self._broker.offsets.get(source) for source in partitions}

    def offset_bounds(self, source: SourcePartition) -> tuple[int, int]:
        """First and next offset."""
        with self._broker.lock:
            return 0, len(self._broker.log[source])

    def commit(self, offsets: dict[SourcePartition, int]) -> None:
        """Commit where a new group starts."""
        self._life.point("open")
        with self._broker.lock:
            for source, offset in offsets.items():
                self._broker.offsets.setdefault(source, offset)

    def seek_all(self, offsets: dict[SourcePartition, int]) -> None:
        """Read on from these offsets."""
        self._position.update(offsets)

    def lag(self) -> int:
        """Offsets not yet read."""
        return sum(self.offset_bounds(source)[1] - at for source, at in self._position.items())

    def close(self) -> None:
        """Leave the group; the dead leave nothing."""
        if not self._life.dead:
            self._broker.expel(self._name)

    def _rebalance(self) -> None:
        broker = self._broker
        if not broker.is_member(self._name):
            self._give_up(lost=True)
            broker.join(self._name)
        elif self._generation is not None and self._generation != broker.generation:
            self._give_up(lost=False)
        if self._generation is None and (taken := broker.take_up(self._name)) is not None:
            self._generation, sources = taken
            self._position = self._on_assigned(sources)

    def _give_up(self, *, lost: bool) -> None:
        self._on_revoked(lost)
        self._broker.release(self._name)
        self._position, self._generation = {}, None

    def _read(self, most: int) -> Read:
        sources = sorted(self._position)
        self._shuffle.shuffle(sources)
        by_topic: dict[str, list[tuple[int, int, Entry]]] = {}
        positions: dict[SourcePartition, tuple[int, int]] = {}
        left = self._shuffle.randint(1, most)
        for source in sources:
            start = self._position[source]
            found = self._broker.read_committed(source, start, self._shuffle.randint(0, left))
            if not found:
                continue
            left -= len(found)
            self._position[source] = found[-1][0] + 1
            positions[source] = (start, self._position[source])
            by_topic.setdefault(source.topic, []).extend((source.partition, offset, e) for offset, e in found)
        metadata = (self._name, self._generation)
        return Read([_columns(topic, rows) for topic, rows in by_topic.items()], positions, metadata)


class MemoryLog:
    """`pipeline.ports.LogReader` on a `MemoryBroker`."""

    def __init__(self, broker: MemoryBroker, life: Failpoints) -> None:
        self._broker, self._life = broker, life

    def read(self, source: SourcePartition, start: int, stop: int) -> Iterator[RawRecords]:
        """What lies between the two offsets, in one chunk."""
        self._life.point("read")
        found = self._broker.read_committed(source, start, stop - start)
        rows = [(source.partition, offset, entry) for offset, entry in found if offset < stop]
        if rows:
            yield _columns(source.topic, rows)

    def close(self) -> None:
        """There is nothing to let go of."""


def _columns(topic: str, rows: list[tuple[int, int, Entry]]) -> RawRecords:
    return RawRecords(
        topic,
        np.array([p for p, _, _ in rows], np.int32),
        np.array([o for _, o, _ in rows], np.int64),
        np.array([e.timestamp for _, _, e in rows], np.int64),
        [e.key for _, _, e in rows],
        [e.value for _, _, e in rows],
        [None] * len(rows),
    )


class MemoryTransaction:
    """`pipeline.ports.OpenTransaction` on a `MemoryBroker`."""

    def __init__(self, broker: MemoryBroker, name: str, epoch: int, life: Failpoints) -> None:
        self._broker, self._name, self._epoch, self._life = broker, name, epoch, life
        self._number = 0

    def begin(self) -> None:
        """Begin."""
        self._life.point("begin")
        self._number = self._broker.begin(self._name, self._epoch)

    def produce(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Headers | None = None
    ) -> None:
        """One record; headers are not kept."""
        self._life.point("produce")
        self._broker.produce(self._number, SourcePartition(topic, partition), key, value)

    def flush(self) -> None:
        """Everything is there at once."""
        self._life.point("flush")

    def commit(self, offsets: Mapping[SourcePartition, int], group_metadata: Any) -> None:
        """All or nothing. Raises `TransactionAborted`."""
        self._life.point("offsets")
        self._broker.commit(self._number, offsets, group_metadata)
        self._life.point("committed")

    def abort(self) -> None:
        """Abort; the dead abort nothing."""
        if not self._life.dead and self._number:
            self._broker.abort(self._number)


class MemoryProducers:
    """`pipeline.ports.Producers` on a `MemoryBroker`."""

    def __init__(self, broker: MemoryBroker, name: str, life: Failpoints) -> None:
        self._broker, self._life = broker, life
        self._names = [f"{name}-{turn}" for turn in range(2)]
        self._epochs = {one: broker.register(one) for one in self._names}

    def next(self) -> MemoryTransaction:
        """The next transaction, not yet begun."""
        self._names.reverse()
        name = self._names[0]
        return MemoryTransaction(self._broker, name, self._epochs[name], self._life)

    def close(self) -> None:
        """What is open is left to `register`."""
