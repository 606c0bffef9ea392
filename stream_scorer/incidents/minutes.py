"""Time in minutes of record timestamps, and episodes: bad minutes that become one condition, and good ones that end it.

Minutes of record timestamps are the same for every reader of a topic, so a detector that reads the topic again reaches
the same state. A minute is complete some seconds after its end, because the clocks of scorers and brokers differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from stream_scorer.errors import StreamScorerError
from stream_scorer.records import Source

T = TypeVar("T")
# Older minutes are left out: longer than any detector reads back. A record, or a clock, of 1970 would give millions.
MAX_SPAN_MS = 19 * 86_400_000


class ClockWentBack(StreamScorerError):
    """The clock shows a time before a minute that was evaluated, so that it was ahead: read the topics again."""

    def __init__(self, by_ms: int) -> None:
        super().__init__(
            f"the clock of this machine went back by at least {by_ms / 60_000:.0f} minutes; conditions are derived "
            "from the topics again",
            hint="Check its time synchronization (NTP).",
        )


@dataclass(frozen=True, slots=True)
class EpisodeRules:
    """When minutes become a condition.

    Attributes:
        minute_ms: length of a minute. slack_ms: how long after its end a minute is complete.
        open_after: bad minutes in a row that open a condition. close_after: good minutes in a row that end it.
        min_rows: fewest transactions that make a minute good or bad.
        keep: number of minutes from which usual rates are taken.
    """

    minute_ms: int = 60_000
    slack_ms: int = 10_000
    open_after: int = 2
    close_after: int = 5
    min_rows: int = 100
    keep: int = 60


@dataclass(slots=True)
class Extent:
    """How far something reaches: `transactions`, their `money` in minor units, the newest `event_time` (ms), and the
    `first` offset of each input partition."""

    transactions: int = 0
    money: int = 0
    event_time: int | None = None
    first: dict[tuple[str, int], int] = field(default_factory=dict)

    def add(self, other: Extent) -> None:
        """Extend this by `other`."""
        self.transactions += other.transactions
        self.money += other.money
        self.event_time = newest(self.event_time, other.event_time)
        for place, offset in other.first.items():
            self.first[place] = min(offset, self.first.get(place, offset))

    @property
    def sources(self) -> list[Source]:
        """The first offsets, as a record has them."""
        return [Source(topic, partition, offset) for (topic, partition), offset in sorted(self.first.items())]


def newest(one: int | None, other: int | None) -> int | None:
    """The later of two times, either of which may be unknown."""
    if one is None or other is None:
        return other if one is None else one
    return max(one, other)


class Episode:
    """The minutes of one subject::

        QUIET ──bad──► SUSPECTED ──bad minutes in a row──► OPEN ──good minutes in a row──► QUIET
                           └──good──► QUIET

    Attributes:
        open: whether there is a condition. start: its first bad minute (ms), also while it is only suspected.
        opened_event: the event time at which it began. extent: what the bad minutes affected.
        healthy: whether enough good minutes in a row show that there is no condition.
    """

    def __init__(self, rules: EpisodeRules) -> None:
        self._rules = rules
        self.open = False
        self.start: int | None = None
        self.opened_event: int | None = None
        self.extent = Extent()
        self._bad = self._good = 0

    @property
    def healthy(self) -> bool:
        """See the class."""
        return not self.open and self._good >= self._rules.close_after

    def add(self, minute: int, extent: Extent, *, bad: bool) -> None:
        """Add a minute (its beginning, ms); `extent` is what it affected, if it is bad."""
        if not bad:
            self._good, self._bad = self._good + 1, 0
            if not self.open or self._good >= self._rules.close_after:
                self.open, self.start = False, None
            return
        self._good, self._bad = 0, self._bad + 1
        if self.start is None:
            self.start, self.opened_event, self.extent = minute, extent.event_time, Extent()
        self.extent.add(extent)
        self.open = self.open or self._bad >= self._rules.open_after


class ByMinute(Generic[T]):
    """Values by minute and key, until the minute is complete."""

    def __init__(self, rules: EpisodeRules, make: type[T]) -> None:
        self._rules = rules
        self._make = make
        self._values: dict[int, dict[object, T]] = {}
        self._done: int | None = None

    def at(self, timestamp: int, key: object) -> T:
        """The value of `key` in the minute of `timestamp` (ms), or in the first minute that is not complete."""
        minute = timestamp // self._rules.minute_ms * self._rules.minute_ms
        if self._done is not None:
            minute = max(minute, self._done + self._rules.minute_ms)
        values = self._values.setdefault(minute, {})
        if key not in values:
            values[key] = self._make()
        return values[key]

    def complete(self, now: int) -> Iterator[tuple[int, dict[object, T]]]:
        """The minutes that are complete at `now` (ms), in order, with their values. Each is returned once.

        Minutes without values are returned too, but none before the first value.

        Raises:
            ClockWentBack: `now` is before a minute that was complete. Nothing would be complete until it comes again.
        """
        if self._done is not None and now < self._done - self._rules.minute_ms:
            raise ClockWentBack(self._done - now)
        end = (now - self._rules.slack_ms) // self._rules.minute_ms * self._rules.minute_ms
        minute = min(self._values, default=end) if self._done is None else self._done + self._rules.minute_ms
        oldest = end - MAX_SPAN_MS // self._rules.minute_ms * self._rules.minute_ms
        if minute < oldest:
            minute, self._values = oldest, {at: found for at, found in self._values.items() if at >= oldest}
        while minute < end:
            self._done = minute
            yield minute, self._values.pop(minute, {})
            minute += self._rules.minute_ms
