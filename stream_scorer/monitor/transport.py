"""Extends Faust to count a transactional topic exactly: it reads committed records only, from our own positions.

Faust 0.15 reads ``read_uncommitted`` unless its own exactly-once mode is on, and seeks to the committed offsets of the
group, which lag or stop on transactional topics because control records look like gaps. Faust has no setting for
either. So this module sets the isolation level of the consumer thread, and every seek uses the app's applied offsets in
Redis.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import aiokafka
import faust
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from stream_scorer.errors import StreamScorerError

READ_COMMITTED = "read_committed"
# Time that the consumer thread has for its end. Faust itself waits without a limit.
THREAD_END_S = 2.0
# Pause between two looks whether a reassignment has ended.
REASSIGNED_S = 0.05

_log = logging.getLogger("stream_scorer.monitor")


class Positions(Protocol):
    """Returns the positions to read from. Faust calls it after each assignment, while consumption is paused."""

    def __call__(
        self,
        partitions: Iterable[TP],
        first: Callable[..., Awaitable[Any]],
        end: Callable[..., Awaitable[Any]],
    ) -> Awaitable[dict[TP, int]]:
        """The next offset to count of each partition; `first` and `end` look up the offset bounds on the broker."""
        ...


class LinkedMessage(ConsumerMessage):
    """A message with the offset after its predecessor: ``[previous, offset)`` contains no record of the partition.

    Offsets on a transactional topic have gaps, so a missing record cannot be detected from offsets alone.
    """

    previous: int


@dataclass(slots=True)
class _Read:
    """The position of aiokafka after a fetch, and the offset after the last record: markers can lie between."""

    position: int
    follows: int


class Links:
    """Links each fetched record to its predecessor by the positions that aiokafka had before and after the fetch.

    So a record that is lost after the fetch, or was fetched before a seek, does not seem to follow another one.
    """

    def __init__(self) -> None:
        self._read: dict[TP, _Read] = {}

    def reached(self) -> dict[TP, tuple[int, int]]:
        """By partition, the offset after the last record, and the position: only markers lie between them."""
        return {tp: (read.follows, read.position) for tp, read in self._read.items()}

    def add(self, before: Mapping[TP, int], after: Mapping[TP, int], found: Mapping[TP, list[Any]]) -> None:
        """Set `previous` of every record in `found`, which one fetch returned between these positions."""
        for tp, start in before.items():
            read = self._read.get(tp)
            if read is None or read.position != start:  # a seek
                read = self._read[tp] = _Read(start, start)
            for record in found.get(tp, ()):
                record.previous = read.follows
                read.follows = record.offset + 1
            read.position = after.get(tp, start)


class AbandonableWorker(AIOKafkaConsumerThread.Worker):  # type: ignore[misc, valid-type]
    """Faust's thread of a service: whoever stops it waits for a bounded time, and it does not outlive the process."""

    def __init__(self, service: Any, **kwargs: Any) -> None:
        super().__init__(service, **kwargs)
        self.daemon = True

    def stop(self) -> None:
        """Wait for the end, at most `THREAD_END_S`. Blocks the event loop, as Faust's own method does."""
        if not self.is_stopped.wait(THREAD_END_S):
            _log.warning("Faust's consumer thread does not end and is abandoned")


class ReadCommittedThread(AIOKafkaConsumerThread):
    """Faust's consumer thread with isolation level ``read_committed``; it links each record to its predecessor.

    Attributes:
        fetched: by partition, the offset after the last record that was fetched since the last seek.
        reached: by partition, what `Links.reached` returned after the last fetch; replaced as a whole.
    """

    Worker = AbandonableWorker

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._links = Links()
        self.fetched: dict[TP, int] = {}
        self.reached: dict[TP, tuple[int, int]] = {}

    async def _fetch_records(
        self,
        consumer: aiokafka.AIOKafkaConsumer,
        active_partitions: set[TP],
        timeout: float | None = None,
        max_records: int | None = None,
    ) -> Mapping[TP, list[Any]]:
        """As Faust's method, but it drains without a pause, so that no seek comes between the positions and records."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (timeout or 0.0)
        while True:
            if consumer._subscription.reassignment_in_progress:
                await asyncio.sleep(REASSIGNED_S)
                return {}
            before = _positions(consumer)
            found = await super()._fetch_records(consumer, active_partitions, timeout=0, max_records=max_records)
            self._links.add(before, _positions(consumer), found)
            self.reached = self._links.reached()
            self.fetched |= {tp: records[-1].offset + 1 for tp, records in found.items()}
            left = deadline - loop.time()
            if found or left <= 0 or not self.consumer.flow_active:
                return found
            waiter = consumer._fetcher._create_fetch_waiter()
            await asyncio.wait([waiter], timeout=left)
            if not waiter.done():
                waiter.cancel()
                return found
            waiter.result()  # raises what stopped the fetcher

    async def on_thread_stop(self) -> None:
        """Stop the consumer, also if a fetch is waiting after an error.

        aiokafka cancels that fetch and raises its `CancelledError`. Faust would end this thread without reporting it,
        and the part of the monitor that stops the thread would wait for 60 s.
        """
        try:
            await super().on_thread_stop()
        except asyncio.CancelledError:
            await cast(aiokafka.AIOKafkaConsumer, self._consumer)._client.close()

    def _create_worker_consumer(self, transport: Transport) -> aiokafka.AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        if not hasattr(consumer, "_isolation_level"):
            raise StreamScorerError(
                "this version of aiokafka stores its isolation level elsewhere, so aborted records would be counted",
                hint="Install the versions in requirements/.",
            )
        consumer._isolation_level = READ_COMMITTED
        return consumer


def _positions(consumer: aiokafka.AIOKafkaConsumer) -> dict[TP, int]:
    """The position of each assigned partition that has one."""
    subscription = consumer._subscription.subscription
    assignment = None if subscription is None else subscription.assignment
    if assignment is None:
        return {}
    states = {tp: assignment.state_value(tp) for tp in assignment.tps}
    return {tp: state.position for tp, state in states.items() if state.has_valid_position}


class SeekingConsumer(Consumer):
    """Faust's consumer; it seeks to our positions, and its messages know their predecessors."""

    app: MonitorFaust
    _thread: ReadCommittedThread

    @property
    def fetched(self) -> dict[TP, int]:
        """By assigned partition, the offset after the last record that was fetched since the last seek."""
        assigned = self.assignment()
        return {tp: offset for tp, offset in list(self._thread.fetched.items()) if tp in assigned}

    @property
    def reached(self) -> dict[TP, tuple[int, int]]:
        """By assigned partition, the offset after the last fetched record, and the position, after its markers."""
        assigned = self.assignment()
        return {tp: at for tp, at in self._thread.reached.items() if tp in assigned}

    def _new_consumer_thread(self) -> AIOKafkaConsumerThread:
        return ReadCommittedThread(self, loop=self.loop, beacon=self.beacon)

    async def perform_seek(self) -> None:
        """Seek to our positions. Faust calls this after every assignment, while consumption is paused."""
        try:
            positions = await self.app.positions(self.assignment(), self.earliest_offsets, self.highwaters)
            self._thread.fetched.clear()
            await self.seek_wait(positions)
        except Exception as error:
            # Faust only logs the exception and continues at an arbitrary position.
            self.app.fail(error)
            raise

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        message = super()._to_message(tp, record)
        # Both classes have the same layout, so the class of the instance can be replaced.
        message.__class__ = LinkedMessage
        linked = cast(LinkedMessage, message)
        linked.previous = record.previous
        return linked


class SeekingTransport(Transport):
    """A transport whose consumers are `SeekingConsumer`s."""

    Consumer = SeekingConsumer


class MonitorFaust(faust.App):
    """A Faust app that reads committed records from our own positions and reports failures through `fail`.

    Attributes:
        joined: whether the group has assigned partitions to this app, or none, since its start.
    """

    positions: Positions
    fail: Callable[[BaseException], None]
    joined: bool = False

    async def _on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        await super()._on_partitions_assigned(assigned, generation_id)
        self.joined = True

    def _new_transport(self) -> SeekingTransport:
        return SeekingTransport(self.conf.broker_consumer, self)
