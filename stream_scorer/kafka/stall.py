"""Partitions that are owned, have more on the broker, and yet bring nothing: a client may cease to fetch in silence.

Others have seen it with librdkafka (its #4492 and #5591, quixio/quix-streams#1124), after broker failures and at a
start. There is no error and no event, and the lag that the client reports stands still too; so the broker is asked.

A client whose queue is full fetches nothing either (`queued.max.messages.kbytes`): in a backlog over many partitions
one of them may stand still for a minute. So a partition counts only if the queue was empty at least once between two
looks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from typing import Any, Protocol

from confluent_kafka import IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from stream_scorer.kafka.clients import open_admin
from stream_scorer.kafka.config import client_config
from stream_scorer.positions import SourcePartition

# How often to look. A partition is stalled if it stood still over three looks, and the broker had more at the second.
LOOK_S = 10.0
QUERY_TIMEOUT_S = 5.0


class Ends(Protocol):
    """Asks the broker where partitions end, without waiting for the answer."""

    def ask(self, sources: Collection[SourcePartition]) -> None:
        """Send the question; an earlier one counts no longer."""
        ...

    def answers(self) -> dict[SourcePartition, int]:
        """The ends that have arrived since `ask`."""
        ...


class EndQuery:
    """`Ends` by one admin request per broker. librdkafka's threads wait for the answers, the reading thread never."""

    def __init__(self, bootstrap: str, client_id: str) -> None:
        self._config = client_config(bootstrap, f"{client_id}-ends")
        self._client: AdminClient | None = None
        self._asked: dict[SourcePartition, Future[Any]] = {}

    def ask(self, sources: Collection[SourcePartition]) -> None:
        """See `Ends.ask`."""
        self._asked = {}
        if not sources:
            return
        if self._client is None:
            self._client = open_admin(self._config)
        latest = {TopicPartition(*source): OffsetSpec.latest() for source in sources}  # type: ignore[no-untyped-call]
        found = self._client.list_offsets(
            latest, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=QUERY_TIMEOUT_S
        )
        self._asked = {SourcePartition(p.topic, p.partition): future for p, future in found.items()}

    def answers(self) -> dict[SourcePartition, int]:
        """See `Ends.answers`. A partition whose question failed has none."""
        ends = {}
        for source, future in self._asked.items():
            if future.done():
                try:
                    ends[source] = int(future.result().offset)
                except KafkaException:
                    continue
        return ends


class StallWatch:
    """See the module.

    Args:
        known: the end of a partition according to its last fetch; negative before the first.
        ends: asks the broker. look_s: how often to look.
    """

    def __init__(
        self,
        known: Callable[[SourcePartition], int],
        ends: Ends,
        clock: Callable[[], float] = time.monotonic,
        *,
        look_s: float = LOOK_S,
    ) -> None:
        self._known = known
        self._ends = ends
        self._clock = clock
        self._look_s = look_s
        self._next_at = clock() + look_s
        # By partition, the offsets fetched and known at the last look.
        self._before: dict[SourcePartition, tuple[int, int]] = {}
        # The same, of partitions that the client has fetched to their end.
        self._at_end: dict[SourcePartition, tuple[int, int]] = {}
        self._drained = False

    def note_drained(self) -> None:
        """The client's queue was empty, so it could fetch more."""
        self._drained = True

    def stalled(self, fetched: Mapping[SourcePartition, int]) -> list[SourcePartition]:
        """Those of the owned partitions that stand still. Looks every `look_s`, and never waits.

        Args:
            fetched: by owned partition, the offset after the last fetched record.
        """
        if self._clock() < self._next_at:
            return []
        now = {source: (offset, self._known(source)) for source, offset in fetched.items()}
        still = [source for source, at in now.items() if self._drained and self._before.get(source) == at]
        ends = self._ends.answers()
        found = [source for source in still if ends.get(source, -1) > max(now[source])]
        ended = {source for source in still if source in ends and source not in found}
        self._at_end = {s: at for s, at in now.items() if s in ended or self._at_end.get(s) == at}
        self._ends.ask(still)
        self._before, self._drained = now, False
        self._next_at = self._clock() + self._look_s
        return found

    def at_end(self, source: SourcePartition, fetched: int) -> bool:
        """Whether no record follows `fetched`: only transaction markers, or records of aborted or open transactions.

        The client does not report such offsets. So this is False until the partition has stood still for some looks.
        """
        return self._at_end.get(source) == (fetched, self._known(source))
