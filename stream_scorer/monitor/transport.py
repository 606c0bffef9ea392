"""Extends Faust to count a transactional topic exactly: it reads committed records only, from our own positions.

Faust 0.15 reads ``read_uncommitted`` unless its own exactly-once mode is on, and seeks to the committed offsets of the
group, which lag or stop on transactional topics because control records look like gaps. Faust has no setting for
either. So this module sets the isolation level of the consumer thread, and every seek uses the app's applied offsets in
Redis.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol, cast

import aiokafka
import faust
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from stream_scorer.errors import StreamScorerError

READ_COMMITTED = "read_committed"
# The predecessor of a message is unknown, because Faust fetched it before the last seek.
UNLINKED = -1
# Time that the consumer thread has for its end. Faust itself waits without a limit.
THREAD_END_S = 2.0

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

    previous: int = UNLINKED


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
    """Faust's consumer thread with isolation level ``read_committed``."""

    Worker = AbandonableWorker

    def _create_worker_consumer(self, transport: Transport) -> aiokafka.AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        if not hasattr(consumer, "_isolation_level"):
            raise StreamScorerError(
                "this version of aiokafka stores its isolation level elsewhere, so aborted records would be counted",
                hint="Install the versions in requirements/.",
            )
        consumer._isolation_level = READ_COMMITTED
        return consumer


class MarkedConsumer(Consumer):
    """Faust's consumer; it seeks to our positions and links each message to its predecessor."""

    app: MonitorFaust

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._follows: dict[TP, int] = {}

    def _new_consumer_thread(self) -> AIOKafkaConsumerThread:
        return ReadCommittedThread(self, loop=self.loop, beacon=self.beacon)

    async def perform_seek(self) -> None:
        """Seek to our positions. Faust calls this after every assignment, while consumption is paused."""
        try:
            positions = await self.app.positions(self.assignment(), self.earliest_offsets, self.highwaters)
            self._follows = dict(positions)
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
        follows = self._follows.get(tp, UNLINKED)
        if record.offset >= follows >= 0:
            linked.previous = follows
            self._follows[tp] = record.offset + 1
        return linked


class MarkedTransport(Transport):
    """A transport whose consumers are `MarkedConsumer`s."""

    Consumer = MarkedConsumer


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

    def _new_transport(self) -> MarkedTransport:
        return MarkedTransport(self.conf.broker_consumer, self)
