"""The input reader: one consumer of the input topics in a group. It keeps its positions itself.

Its rules come from tests against a real broker. Positions are set in `assign()`, because a seek inside the callback
fails. One `consume()` may run a callback and return messages, so a message is kept only if its partition is owned and
its offset is at or past our position. The group metadata is taken in the reading thread, with the batch: with fresh
metadata, an owner that lost its partition could commit over the new owner. A consumer joins its group at the first
read: once subscribed, it gets partitions whether it reads or not, and while models load nobody would read them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, Message, TopicPartition

from stream_scorer.errors import AccessDenied, LogTruncated, RecordsDeleted, Stopped, StreamScorerError
from stream_scorer.kafka.backlog import Backlog, TimesOf
from stream_scorer.kafka.clients import find_refusal, open_consumer
from stream_scorer.kafka.config import SHORT_FETCH_WAIT, consumer_config
from stream_scorer.kafka.errors import COORDINATOR_MOVES, NO_ANSWER, NO_LEADER, NO_OFFSET, as_domain_error, kafka_error
from stream_scorer.kafka.messages import records_of
from stream_scorer.kafka.stall import EndQuery, StallWatch
from stream_scorer.positions import SourcePartition
from stream_scorer.serde.raw import Read

_log = logging.getLogger(__name__)
# Two scorers with the same instance name fence each other in turn. After so many replacements the scorer ends.
MAX_REPLACED, REPLACED_WITHIN_S = 3, 120.0
# How often and how long to wait for a partition that lags, before the others go on without it.
_TRIES, _TRY_S = 5, 0.01
# Records kept per partition meanwhile. A fetch returns whole producer batches, some thousand records of a partition.
_MAX_WAITING = 4_000
# The broker notices a dead member after this time. Its partitions stand still until then.
SESSION_TIMEOUT_MS = 10_000
# The broker waits this long for members that do not rejoin, and no scorer of the group scores meanwhile (ADR 0053). A
# scorer that takes longer between two reads gives up its partitions and joins again. Longer than its wait for a commit.
REBALANCE_TIMEOUT_MS = 120_000
# `committed()` waits for pending transactions, at most their timeout of 10 s.
COMMITTED_DEADLINE_S = 25.0
# A broker that restarts does not answer for seconds. Errors that are retried are not logged one by one.
_PASSING = {
    *NO_ANSWER,
    *NO_LEADER,
    *COORDINATOR_MOVES,
    KafkaError._PARTITION_EOF,
    KafkaError._MAX_POLL_EXCEEDED,
    KafkaError.REQUEST_TIMED_OUT,
}


@dataclass(frozen=True, slots=True)
class GroupMember:
    """A member of a consumer group. A static one keeps its partitions while it restarts."""

    group: str
    instance: str
    static: bool


class InputReader:
    """Reads the input topics as a member of a consumer group, which it joins at the first `read`.

    Args:
        on_assigned: returns the offset to read each new partition from (runs inside `read`). If it returns none,
            nothing is read before `seek_all`.
        on_revoked: called before partitions are given up, to finish or abort what is in flight. With `lost` it is too
            late to commit.
        stopping: whether to give up lookups that wait for the broker, by raising `Stopped`.
        times_of: by topic, event times of its values: while more records wait than fit a batch, the oldest come first.
    """

    def __init__(
        self,
        bootstrap: str,
        member: GroupMember,
        topics: list[str],
        *,
        on_assigned: Callable[[list[SourcePartition]], dict[SourcePartition, int]],
        on_revoked: Callable[[bool], None],
        stopping: Callable[[], bool],
        times_of: Mapping[str, TimesOf],
    ) -> None:
        config = (
            consumer_config(bootstrap, member.instance, member.group)
            | SHORT_FETCH_WAIT
            | {
                "partition.assignment.strategy": "range",
                "session.timeout.ms": SESSION_TIMEOUT_MS,
                "heartbeat.interval.ms": 2_000,
                "max.poll.interval.ms": REBALANCE_TIMEOUT_MS,
                # Fetch little of one partition at a time, so that the others are not late. Larger messages still come.
                "fetch.message.max.bytes": 262_144,
            }
        )
        if member.static:
            config["group.instance.id"] = member.instance
        self._bootstrap = bootstrap
        self._instance = member.instance
        self._topics = topics
        self._config = config
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._stopping = stopping
        self._fatal: KafkaError | None = None
        self._replaced_at: list[float] = []
        self._owned: list[SourcePartition] = []
        # The position after the last record returned, and after the last fetched one, which may wait in the backlog.
        self._position: dict[SourcePartition, int] = {}
        self._fetched: dict[SourcePartition, int] = {}
        self._backlog = Backlog(times_of)
        self._generation = 0
        self._callback_error: BaseException | None = None
        self._subscriptions = 0
        self._consumer = open_consumer(self._config)
        self._stalls = StallWatch(self._known_end, EndQuery(bootstrap, member.instance))

    @property
    def owned(self) -> list[SourcePartition]:
        """The partitions now assigned. Those without a position are not read before `seek_all`."""
        return list(self._owned)

    def read(self, max_records: int, wait_s: float) -> Read:
        """At most `max_records` records, waiting at most `wait_s` for the first. May run the rebalance callbacks."""
        if stalled := self._stalls.stalled(self._fetched):
            names = ", ".join(f"{source.topic}[{source.partition}]" for source in stalled)
            self._replace_consumer(f"no records arrive from {names}, although the broker has more")
        messages = self._consume(1, 0 if len(self._backlog) else wait_s)
        if messages:
            generation = self._generation
            more = self._consume(max_records - 1, 0)
            messages = messages + more if generation == self._generation else []
        self._keep(messages)
        tries = _TRIES
        while tries and max_records <= len(self._backlog) < max_records + _MAX_WAITING * len(self._fetched):
            if all(self._backlog.holds(source) for source in self._lagging()):
                break
            more = self._consume(max_records, _TRY_S)
            self._keep(more)
            tries -= not more
        return self._sort(self._take(max_records))

    def read_more(self, read: Read, max_records: int) -> Read:
        """`read` and the records that have arrived since. After a rebalance in between, `read` is dropped."""
        generation = self._generation
        self._keep(self._consume(max_records, 0))
        more = self._sort(self._take(max_records))
        return _join(read, more) if generation == self._generation else more

    def committed(self, partitions: list[SourcePartition]) -> dict[SourcePartition, int | None]:
        """Committed offsets after pending transactions have ended; None where nothing was ever committed."""
        wanted = [TopicPartition(s.topic, s.partition) for s in partitions]
        deadline = time.monotonic() + COMMITTED_DEADLINE_S
        while True:
            try:
                found = self._consumer.committed(wanted, timeout=5.0)
                for partition in found:
                    if partition.error is not None:
                        raise KafkaException(partition.error)
                break
            except KafkaException as exception:
                self._retry(kafka_error(exception), "read the committed offsets", deadline)
        return {
            SourcePartition(p.topic, p.partition): (None if p.offset == OFFSET_INVALID or p.offset < 0 else p.offset)
            for p in found
        }

    def offset_bounds(self, source: SourcePartition) -> tuple[int, int]:
        """The first offset that the broker still has, and the offset after the last one."""
        deadline = time.monotonic() + COMMITTED_DEADLINE_S
        while True:
            try:
                low, high = self._consumer.get_watermark_offsets(TopicPartition(*source), timeout=5.0)
                return low, high
            except KafkaException as exception:
                self._retry(kafka_error(exception), "read offsets", deadline)

    def _retry(self, error: KafkaError, doing: str, deadline: float) -> None:
        """Pause before another attempt. Raises `error` after `deadline`, and `Stopped`."""
        if self._stopping():
            raise Stopped
        if time.monotonic() > deadline:
            raise as_domain_error(error, doing, self._bootstrap)
        time.sleep(0.05)

    def commit(self, offsets: dict[SourcePartition, int]) -> None:
        """Commit where a new group starts. Later offsets are committed inside transactions."""
        try:
            self._consumer.commit(
                offsets=[TopicPartition(s.topic, s.partition, o) for s, o in offsets.items()], asynchronous=False
            )
        except KafkaException as exception:
            raise as_domain_error(kafka_error(exception), "commit the start", self._bootstrap) from exception

    def seek_all(self, offsets: dict[SourcePartition, int]) -> None:
        """Continue from these offsets of owned partitions. Records read past them are read again."""
        self._set_positions(self._position | offsets)
        self._consumer.assign([TopicPartition(s.topic, s.partition, o) for s, o in self._position.items()])

    def lag(self) -> int:
        """Records not yet read, over the owned partitions, according to the last fetches.

        Markers of transactions and aborted records count until they have been at the end for half a minute.
        """
        behind = 0
        for source, position in self._position.items():
            fetched = self._fetched[source]
            end = fetched if self._stalls.at_end(source, fetched) else self._known_end(source)
            behind += max(0, end - position)
        return behind

    def find_refusal(self) -> AccessDenied | None:
        """Why brokers that do not answer refuse this client, which waiting cannot cure; None if they do not."""
        return find_refusal(self._bootstrap)

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close()

    def _consume(self, max_records: int, wait_s: float) -> list[Message]:
        if max_records <= 0:
            return []
        if self._fatal is not None:
            self._replace_consumer(self._fatal.str())
        if not self._subscriptions:
            self._subscribe()
        generation = self._generation
        try:
            messages = self._consumer.consume(max_records, wait_s)
        except KafkaException as exception:
            raise as_domain_error(kafka_error(exception), "read the input", self._bootstrap) from exception
        if len(messages) < max_records:
            self._stalls.note_drained()
        if self._callback_error is not None:
            error, self._callback_error = self._callback_error, None
            raise error
        faults = [fault for message in messages if (fault := message.error()) is not None]
        # librdkafka reports a fatal error only once; if we miss it, we never read again.
        if fatal := [fault for fault in faults if fault.code() == KafkaError._FATAL]:
            self._fatal = fatal[0]
            return []
        if generation != self._generation:
            # Offsets do not show which messages are from before the rebalance: read again from our positions, which the
            # callback has just set.
            if messages and self._position:
                self.seek_all({})
            return []
        for message in messages:
            fault = message.error()
            if fault is not None and fault.code() not in _PASSING and not fault.retriable():
                raise self._refusal(message, fault)
        return [message for message in messages if message.error() is None] if faults else messages

    def _refusal(self, message: Message, fault: KafkaError) -> StreamScorerError:
        if fault.code() not in NO_OFFSET:
            return as_domain_error(fault, "read the input", self._bootstrap)
        topic, partition = message.topic(), message.partition()
        where, at = f"{topic}[{partition}]", "that is read next"
        if topic is not None and partition is not None:
            source = SourcePartition(topic, partition)
            at = str(self._fetched.get(source, at))
            # librdkafka also compares leader epochs, which shows a loss that new records cover.
            if "truncation" in fault.str() or self._fetched.get(source, 0) > self.offset_bounds(source)[1]:
                return LogTruncated(
                    where, f"no longer has the records before the offset {at}, up to which they were read"
                )
        return RecordsDeleted(
            f"{where} no longer has the offset {at}: {fault.str()}",
            hint="If retention has deleted it, restart: reading goes on from the first record that is left. "
            "If the topic was created again, restart all scorers: it is read from its beginning.",
        )

    def _set_positions(self, positions: dict[SourcePartition, int]) -> None:
        self._position, self._fetched = dict(positions), dict(positions)
        self._backlog.clear()

    def _keep(self, messages: list[Message]) -> None:
        by_place: dict[tuple[str | None, int | None], list[Message]] = {}
        for message in messages:
            by_place.setdefault((message.topic(), message.partition()), []).append(message)
        for (topic, partition), found in by_place.items():
            assert topic is not None and partition is not None
            source = SourcePartition(topic, partition)
            expected = self._fetched.get(source)
            if expected is None:
                continue
            offsets = np.array([message.offset() for message in found], dtype=np.int64)
            # A record below the offsets before it was read already.
            new = offsets > np.maximum.accumulate(np.concatenate([[expected - 1], offsets[:-1]]))
            if not new.all():
                found = [message for message, is_new in zip(found, new.tolist(), strict=True) if is_new]
            self._fetched[source] = max(expected, int(offsets.max()) + 1)
            self._backlog.keep(source, found)

    def _take(self, max_records: int) -> list[Message]:
        return self._backlog.take(max_records, self._lagging() if len(self._backlog) > max_records else ())

    def _lagging(self) -> set[SourcePartition]:
        """Partitions with more records than were fetched, and those without any fetch so far."""
        lagging = set()
        for source, fetched in self._fetched.items():
            high = self._known_end(source)
            # The last offset may be a transaction marker, which is never returned.
            if high < 0 or high - 1 > fetched:
                lagging.add(source)
        return lagging

    def _known_end(self, source: SourcePartition) -> int:
        """The end according to the last fetch; negative before the first."""
        _, high = self._consumer.get_watermark_offsets(TopicPartition(*source), cached=True)
        return high

    def _sort(self, messages: list[Message]) -> Read:
        by_topic: dict[str, list[Message]] = {}
        for message in messages:
            by_topic.setdefault(cast(str, message.topic()), []).append(message)
        records = [records_of(topic, found) for topic, found in by_topic.items()]
        positions: dict[SourcePartition, tuple[int, int]] = {}
        for columns in records:
            # Records of a partition are in log order: the last one in the batch has the highest offset.
            partitions, from_end = np.unique(columns.partition[::-1], return_index=True)
            for partition, stop in zip(partitions.tolist(), columns.offset[::-1][from_end].tolist(), strict=True):
                source = SourcePartition(columns.topic, partition)
                positions[source] = (self._position[source], stop + 1)
                self._position[source] = stop + 1
        return Read(records, positions, self._consumer.consumer_group_metadata() if records else None)

    def _subscribe(self) -> None:
        """Join the group. Callbacks of the consumers before, which may still be closing, have no effect."""
        self._subscriptions += 1
        number = self._subscriptions

        def assigned(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            if number == self._subscriptions:
                self._assigned(consumer, partitions)

        def released(lost: bool) -> None:
            if number == self._subscriptions:
                self._release(lost=lost)

        self._consumer.subscribe(
            self._topics,
            on_assign=assigned,
            on_revoke=lambda _consumer, _partitions: released(False),
            on_lost=lambda _consumer, _partitions: released(True),
        )

    def _replace_consumer(self, why: str) -> None:
        """Join the group again. After a crash, a broker may take our old membership for that of another scorer."""
        now = time.monotonic()
        self._replaced_at = [at for at in self._replaced_at if now - at < REPLACED_WITHIN_S] + [now]
        if len(self._replaced_at) > MAX_REPLACED:
            raise StreamScorerError(
                f"the consumer {self._instance!r} was replaced {len(self._replaced_at)} times in a row: {why}",
                hint="Does another scorer run with the same `scorer.instance`? If not, see the broker's log.",
            )
        _log.warning("the consumer is replaced: %s", why)
        self._fatal = None
        self._release(lost=True)
        old, self._consumer = self._consumer, open_consumer(self._config)
        self._subscribe()  # before the old one closes, so that its callbacks do not count
        # Closing waits for a broker that may not answer.
        threading.Thread(target=old.close, name="closing", daemon=True).start()

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        sources = [SourcePartition(p.topic, p.partition) for p in partitions]
        self._generation += 1
        try:
            offsets = self._on_assigned(sources)
            self._owned = sources
            self._set_positions(offsets)
            consumer.assign([TopicPartition(s.topic, s.partition, o) for s, o in offsets.items()])
        except BaseException as error:  # C code swallows exceptions of callbacks: `read` raises it
            self._give_up()
            self._callback_error = error

    def _release(self, *, lost: bool) -> None:
        self._generation += 1
        try:
            self._on_revoked(lost)
        except StreamScorerError as error:
            _log.warning("while giving up partitions: %s", error.message)
        except BaseException as error:  # see `_assigned`
            self._callback_error = error
        self._give_up()

    def _give_up(self) -> None:
        self._owned = []
        self._set_positions({})


def _join(first: Read, second: Read) -> Read:
    by_topic = {records.topic: records for records in first.records}
    for more in second.records:
        had = by_topic.get(more.topic)
        by_topic[more.topic] = more if had is None else had.concatenate(more)
    positions = dict(first.positions)
    for source, (start, stop) in second.positions.items():
        positions[source] = (positions.get(source, (start, stop))[0], stop)
    return Read(list(by_topic.values()), positions, second.group_metadata or first.group_metadata)
