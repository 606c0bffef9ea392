"""What Faust lacks for counting a transactional topic exactly: committed records only, and positions of our own.

Faust 0.15 reads ``read_uncommitted`` unless its own exactly-once is on, and seeks to the group's committed offsets,
which crawl or freeze on transactional topics (control records look like gaps). Both have no setting. Here the consumer
thread is told the isolation level, and every seek goes to the positions the app gives (its marks in Redis).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol, cast

import aiokafka
import faust
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from stream_scorer.errors import StreamScorerError

READ_COMMITTED = "read_committed"
# An event whose predecessor is unknown: it was fetched before the last seek.
UNLINKED = -1


class Positions(Protocol):
    """Where to read from; asked after each assignment, while nothing flows."""

    def __call__(
        self,
        partitions: Iterable[TP],
        first: Callable[..., Awaitable[Any]],
        end: Callable[..., Awaitable[Any]],
    ) -> Awaitable[dict[TP, int]]:
        """The next offset to count of each partition; `first` and `end` look up what the broker has."""
        ...


class LinkedMessage(ConsumerMessage):
    """A message that names the offset it follows: ``[previous, offset]`` holds no other record of its partition.

    Offsets on a transactional topic have holes, so a missing record cannot be told from them alone.
    """

    previous: int = UNLINKED


class ReadCommittedThread(AIOKafkaConsumerThread):
    """Faust's consumer thread, with the isolation level set."""

    def _create_worker_consumer(self, transport: Transport) -> aiokafka.AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        if not hasattr(consumer, "_isolation_level"):
            raise StreamScorerError(
                "this aiokafka keeps its isolation level elsewhere: aborted records would be counted",
                hint="Install the versions in requirements/.",
            )
        consumer._isolation_level = READ_COMMITTED
        return consumer


class MarkedConsumer(Consumer):
    """Faust's consumer, seeking to our positions and linking each message to the one before."""

    app: MonitorFaust

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._follows: dict[TP, int] = {}

    def _new_consumer_thread(self) -> AIOKafkaConsumerThread:
        return ReadCommittedThread(self, loop=self.loop, beacon=self.beacon)

    async def perform_seek(self) -> None:
        """Called by Faust after every assignment, with flow paused, instead of seeking to committed offsets."""
        try:
            positions = await self.app.positions(self.assignment(), self.earliest_offsets, self.highwaters)
            self._follows = dict(positions)
            await self.seek_wait(positions)
        except Exception as error:
            # Faust logs this and reads on from anywhere.
            self.app.fail(error)
            raise

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        message = super()._to_message(tp, record)
        # The class has no slots of its own to fill: same layout, one more attribute.
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
    """A Faust app that reads committed records from positions of our own, and tells when it breaks."""

    positions: Positions
    fail: Callable[[BaseException], None]

    def _new_transport(self) -> MarkedTransport:
        return MarkedTransport(self.conf.broker_consumer, self)
