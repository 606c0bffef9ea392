"""What was read and not yet handed on: while a backlog drains, partitions go side by side in event time.

A fetch brings thousands of records of one partition, days of its traffic when they are old. Handed on as they come, a
terminal's features would miss what the other partitions hold of the same days. So what is more than a batch is handed
on in the order of event time across partitions (their running maximum; within a partition the log's order stays).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import islice

import numpy as np
from confluent_kafka import Message
from numpy.typing import NDArray

from stream_scorer.positions import SourcePartition

NEVER = 1 << 62
I64 = NDArray[np.int64]
# Event times (n,) of n values of a topic, ms; -1 where a value does not tell.
TimesOf = Callable[[Sequence[bytes | None]], I64]


class Backlog:
    """Messages by partition, each in log order.

    Args:
        times_of: by topic. A topic without is taken to be of the time of what stands before it.
    """

    def __init__(self, times_of: Mapping[str, TimesOf]) -> None:
        self._times_of = times_of
        self._messages: dict[SourcePartition, deque[Message]] = {}
        self._times: dict[SourcePartition, deque[int]] = {}
        self._newest: dict[SourcePartition, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self._messages.values()))

    def holds(self, source: SourcePartition) -> bool:
        """Whether there is something of `source`."""
        return bool(self._messages.get(source))

    def clear(self) -> None:
        """Forget everything: it will be read again."""
        self._messages.clear()
        self._times.clear()
        self._newest.clear()

    def keep(self, source: SourcePartition, message: Message) -> None:
        """One more, the next of its partition."""
        self._messages.setdefault(source, deque()).append(message)

    def take(self, most: int, lagging: Collection[SourcePartition] = ()) -> list[Message]:
        """At most `most`: all if there are no more, else those first in event time.

        Of `lagging` partitions more is to come: then nothing is taken that is later than what is here of them.
        """
        if len(self) <= most:
            found = [message for waiting in self._messages.values() for message in waiting]
            self.clear()
            return found
        sources = sorted(source for source, waiting in self._messages.items() if waiting)
        times = [self._running(source, most) for source in sources]
        of = np.repeat(np.arange(len(sources)), [len(each) for each in times])
        together = np.concatenate(times)
        # Of each partition the first ones, because its times never go back.
        order = np.argsort(together, kind="stable")[:most]
        upto = min((self._newest[source] for source in sources if source in lagging), default=NEVER)
        found = []
        for place in of[order[together[order] <= upto]].tolist():
            source = sources[place]
            found.append(self._messages[source].popleft())
            self._times[source].popleft()
        return found

    def _running(self, source: SourcePartition, most: int) -> I64:
        """The running maximum of event time of what waits of `source`, of the first `most`."""
        waiting, known = self._messages[source], self._times.setdefault(source, deque())
        new = [waiting[i].value() for i in range(len(known), len(waiting))]
        if new:
            look = self._times_of.get(source.topic)
            times = look(new) if look is not None else np.full(len(new), -1, dtype=np.int64)
            running = np.maximum.accumulate(np.concatenate([[self._newest.get(source, -1)], times]))[1:]
            known.extend(running.tolist())
            self._newest[source] = int(running[-1])
        return np.fromiter(islice(known, most), dtype=np.int64, count=min(len(known), most))
