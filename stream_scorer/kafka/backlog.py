"""Orders fetched records by event time across partitions while a backlog drains.

One fetch returns thousands of records of one partition, which are days of traffic if they are old. In that order, the
features of a terminal would miss the transactions of the same days in other partitions. So if more than a batch waits,
records are returned in the order of event time across partitions. The order uses the running maximum of event time, so
records of one partition keep their log order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import islice

import numpy as np
from confluent_kafka import Message

from stream_scorer.arrays import Ints
from stream_scorer.clock import SystemClock
from stream_scorer.positions import SourcePartition

NEVER = 1 << 62
# A time that is further ahead of the wall clock, or in another unit, does not count: as a maximum, it would hold back
# all later records of its partition until the backlog is drained. One day.
AHEAD_MS = 24 * 3_600_000
# Event times (n,) of n values of a topic, ms; -1 if a value has none.
TimesOf = Callable[[Sequence[bytes | None]], Ints]


class Backlog:
    """Messages by partition, each in log order.

    Args:
        times_of: by topic. Records of other topics get the event time of the preceding record.
    """

    def __init__(self, times_of: Mapping[str, TimesOf]) -> None:
        self._times_of = times_of
        self._messages: dict[SourcePartition, deque[Message]] = {}
        self._times: dict[SourcePartition, deque[int]] = {}
        self._newest: dict[SourcePartition, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self._messages.values()))

    def holds(self, source: SourcePartition) -> bool:
        """Whether records of `source` wait."""
        return bool(self._messages.get(source))

    def clear(self) -> None:
        """Discard everything: the reader will read it again."""
        self._messages.clear()
        self._times.clear()
        self._newest.clear()

    def keep(self, source: SourcePartition, messages: Sequence[Message]) -> None:
        """Add the next messages of a partition."""
        self._messages.setdefault(source, deque()).extend(messages)

    def take(self, max_records: int, lagging: Collection[SourcePartition] = ()) -> list[Message]:
        """At most `max_records` messages: the first ones in event time, or all if fewer wait.

        Partitions in `lagging` have more records on the broker, so nothing later than their newest message is returned.
        """
        if len(self) <= max_records:
            found = [message for waiting in self._messages.values() for message in waiting]
            self.clear()
            return found
        sources = sorted(source for source, waiting in self._messages.items() if waiting)
        times = [self._running(source, max_records) for source in sources]
        of = np.repeat(np.arange(len(sources)), [len(each) for each in times])
        together = np.concatenate(times)
        # These are the first ones of each partition, because its running maximum never decreases.
        order = np.argsort(together, kind="stable")[:max_records]
        upto = min((self._newest[source] for source in sources if source in lagging), default=NEVER)
        found = []
        for place in of[order[together[order] <= upto]].tolist():
            source = sources[place]
            found.append(self._messages[source].popleft())
            self._times[source].popleft()
        return found

    def _running(self, source: SourcePartition, max_records: int) -> Ints:
        """The running maximum of event time of the first `max_records` waiting messages of `source`."""
        waiting, known = self._messages[source], self._times.setdefault(source, deque())
        new = [waiting[i].value() for i in range(len(known), len(waiting))]
        if new:
            read_times = self._times_of.get(source.topic)
            times = read_times(new) if read_times is not None else np.full(len(new), -1, dtype=np.int64)
            times[times > SystemClock().now_ms() + AHEAD_MS] = -1
            running = np.maximum.accumulate(np.concatenate([[self._newest.get(source, -1)], times]))[1:]
            known.extend(running.tolist())
            self._newest[source] = int(running[-1])
        return np.fromiter(islice(known, max_records), dtype=np.int64, count=min(len(known), max_records))
