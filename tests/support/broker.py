"""A broker in memory: logs with transactions and control records, one consumer group, fenced producers.

What it keeps of Kafka: offsets with holes, reading only what is committed, transactions that carry output and input
offsets all or nothing, an older producer of the same name fenced by a newer one, a commit with the group metadata of an
earlier generation refused, partitions handed on only when their old owner has given them up or was expelled.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stream_scorer.errors import StreamScorerError, TransactionAborted, UsageError
from stream_scorer.positions import SourcePartition
from stream_scorer.serde.raw import Headers, RawRecords, Read
from tests.support.failpoints import Failpoints

_log = logging.getLogger(__name__)
# As for producers on Kafka, see `stream_scorer.kafka.transactions`.
MAX_REBUILDS_IN_A_ROW = 5
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
    headers: Headers | None = None


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

    def append(
        self,
        source: SourcePartition,
        key: bytes | None,
        value: bytes | None,
        timestamp: int,
        headers: Headers | None = None,
    ) -> int:
        """Put one record outside any transaction; its offset."""
        with self.lock:
            self.log[source].append(Entry(key, value, timestamp, headers=headers))
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

    def end(self, source: SourcePartition) -> int:
        """The offset after the last that a reader of committed records may reach: open transactions hold it back."""
        with self.lock:
            for offset, entry in enumerate(self.log[source]):
                if entry.transaction and self._transactions[entry.transaction].state == "open":
                    return offset
            return len(self.log[source])

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

    def produce(
        self,
        number: int,
        source: SourcePartition,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None = None,
    ) -> None:
        """One record into the open transaction `number`."""
        with self.lock:
            transaction = self._open(number)
            transaction.touched.add(source)
            self.log[source].append(Entry(key, value, 0, number, headers=headers))

    def commit(self, number: int, offsets: Mapping[SourcePartition, int], metadata: tuple[str, int] | None) -> None:
        """Commit records and offsets, all or nothing. Raises `TransactionAborted` for a stale member or producer.

        The group is checked only if there are offsets, as in Kafka.
        """
        with self.lock:
            transaction = self._open(number)
            if offsets and (metadata is None or not self.is_current(*metadata)):
                self._end(transaction, "aborted")
                raise TransactionAborted(f"{metadata} is no longer current")
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

    def is_newest(self, name: str, epoch: int) -> bool:
        """Whether no newer producer of this name has registered."""
        with self.lock:
            return self._epochs.get(name) == epoch

    def _require_newest(self, name: str, epoch: int) -> None:
        if not self.is_newest(name, epoch):
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
        """A member is gone, or its heartbeat is late: its partitions go to the others at once."""
        with self.lock:
            self.generation += 1
            self._members.pop(name, None)
            self._holding.pop(name, None)

    def is_current(self, name: str, generation: int | None) -> bool:
        """Whether the group takes offsets from `name` as of `generation`."""
        with self.lock:
            return generation is not None and self._holding.get(name) == generation

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
        self._owned: list[SourcePartition] = []
        self._generation: int | None = None
        broker.join(name)

    @property
    def owned(self) -> list[SourcePartition]:
        """The partitions now assigned."""
        return list(self._owned)

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
        """`read`, and at most `most` records more."""
        return _join(read, self._read(most)) if most > 0 else read

    def committed(self, partitions: list[SourcePartition]) -> dict[SourcePartition, int | None]:
        """Committed offsets."""
        self._life.point("open")
        with self._broker.lock:
            return {source: self._broker.offsets.get(source) for source in partitions}

    def offset_bounds(self, source: SourcePartition) -> tuple[int, int]:
        """First and next offset."""
        return 0, self._broker.end(source)

    def commit(self, offsets: dict[SourcePartition, int]) -> None:
        """Commit where a new group starts. Raises `StreamScorerError` for a stale member."""
        self._life.point("open")
        with self._broker.lock:
            if not self._broker.is_current(self._name, self._generation):
                raise StreamScorerError(f"{self._name} is no longer of generation {self._generation}")
            self._broker.offsets.update(offsets)

    def find_refusal(self) -> None:
        """No client is refused."""

    def seek_all(self, offsets: dict[SourcePartition, int]) -> None:
        """Read on from these offsets."""
        self._position.update(offsets)

    def lag(self) -> int:
        """Offsets not yet read."""
        return sum(max(0, self._broker.end(source) - at) for source, at in self._position.items())

    def close(self) -> None:
        """Give up the partitions and leave the group; the dead leave nothing."""
        if self._life.dead:
            return
        if self._generation is not None:
            self._give_up(lost=False)
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
            self._owned = sources

    def _give_up(self, *, lost: bool) -> None:
        try:
            self._on_revoked(lost)
        except StreamScorerError as error:
            _log.warning("while giving up partitions: %s", error.message)
        finally:
            self._broker.release(self._name)
            self._position, self._owned, self._generation = {}, [], None

    def _read(self, most: int) -> Read:
        sources = sorted(self._position)
        self._shuffle.shuffle(sources)
        by_topic: dict[str, list[tuple[int, int, Entry]]] = {}
        positions: dict[SourcePartition, tuple[int, int]] = {}
        left = self._shuffle.randint(1, most)
        for source in sources:
            start = self._position[source]
            if start > len(self._broker.log[source]):
                raise StreamScorerError(f"{source.topic}[{source.partition}] has no offset {start}")
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
    """`pipeline.ports.LogEnds` on a `MemoryBroker`."""

    def __init__(self, broker: MemoryBroker, life: Failpoints) -> None:
        self._broker, self._life = broker, life

    def bounds(self, topic: str) -> dict[SourcePartition, tuple[int, int]]:
        """First and next offset of each partition. Raises `UsageError` when there is no such topic."""
        found = {source: (0, self._broker.end(source)) for source in self._broker.log if source.topic == topic}
        if not found:
            raise UsageError(f"there is no topic {topic}")
        return found

    def read(self, source: SourcePartition, start: int, stop: int) -> Iterator[RawRecords]:
        """What lies between the two offsets, in one chunk."""
        self._life.point("read")
        found = self._broker.read_committed(source, start, stop - start)
        rows = [(source.partition, offset, entry) for offset, entry in found if offset < stop]
        if rows:
            yield _columns(source.topic, rows)

    def retention_ms(self, topic: str) -> int | None:
        """Not known: this broker deletes nothing."""
        return None

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
        [e.headers for _, _, e in rows],
    )


def _join(first: Read, second: Read) -> Read:
    by_topic = {records.topic: records for records in first.records}
    for more in second.records:
        had = by_topic.get(more.topic)
        by_topic[more.topic] = more if had is None else had.concatenate(more)
    positions = dict(first.positions)
    for source, (start, stop) in second.positions.items():
        positions[source] = (positions.get(source, (start, stop))[0], stop)
    return Read(list(by_topic.values()), positions, second.group_metadata or first.group_metadata)


class MemoryTransaction:
    """`pipeline.ports.OpenTransaction` on a `MemoryBroker`."""

    def __init__(self, broker: MemoryBroker, slot: _Slot, life: Failpoints) -> None:
        self._broker, self._slot, self._life = broker, slot, life
        self._number = 0

    def begin(self) -> None:
        """Begin."""
        self._life.point("begin")
        with self._slot.renewed_if_fenced():
            self._number = self._broker.begin(self._slot.name, self._slot.epoch)

    def produce(
        self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Headers | None = None
    ) -> None:
        """One record."""
        self._life.point("produce")
        with self._slot.renewed_if_fenced():
            self._broker.produce(self._number, SourcePartition(topic, partition), key, value, headers)

    def flush(self) -> None:
        """Everything is there at once."""
        self._life.point("flush")

    def commit(self, offsets: Mapping[SourcePartition, int], group_metadata: Any) -> None:
        """All or nothing. Raises `TransactionAborted`."""
        self._life.point("offsets")
        with self._slot.renewed_if_fenced():
            self._broker.commit(self._number, offsets, group_metadata)
        self._slot.renewals = 0
        self._life.point("committed")

    def abort(self) -> None:
        """Abort; the dead abort nothing."""
        if not self._life.dead and self._number:
            self._broker.abort(self._number)


class _Slot:
    """One producer name and the epoch that the process holds it with."""

    def __init__(self, broker: MemoryBroker, name: str) -> None:
        self._broker, self.name = broker, name
        self.epoch = broker.register(name)
        self.renewals = 0

    @contextmanager
    def renewed_if_fenced(self) -> Iterator[None]:
        """Register again after a call that found the producer fenced: the next transaction may fence the other one."""
        try:
            yield
        except TransactionAborted:
            if not self._broker.is_newest(self.name, self.epoch):
                self.renewals += 1
                if self.renewals > MAX_REBUILDS_IN_A_ROW:
                    raise StreamScorerError(f"{self.name} was fenced {self.renewals} times in a row") from None
                self.epoch = self._broker.register(self.name)
            raise


class MemoryProducers:
    """`pipeline.ports.Producers` on a `MemoryBroker`."""

    def __init__(self, broker: MemoryBroker, name: str, life: Failpoints) -> None:
        self._broker, self._life = broker, life
        self._slots = [_Slot(broker, f"{name}-{turn}") for turn in range(2)]

    def next(self) -> MemoryTransaction:
        """The next transaction, not yet begun."""
        self._slots.reverse()
        return MemoryTransaction(self._broker, self._slots[0], self._life)

    def restore(self) -> None:
        """A producer that was fenced was registered again at once."""

    def close(self) -> None:
        """What is open is left to `register`."""
