"""The usual share of a partition in the transactions of its topic, and whether its present pause is one by chance."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

# A pause is silence if its probability is below e^-50, about 1 in 10^21. With a share that is known exactly, the
# partition then missed 50 transactions.
EVIDENCE = 50.0
HOUR_MS = 3_600_000
# The share comes from the present hour and the one before, and from earlier ones while these have fewer transactions.
ENOUGH, MAX_HOURS = 200, 24


@dataclass(slots=True)
class _Hour:
    """One hour of record timestamps: transactions of the partition, and of the others up to its last one."""

    start: int
    own: int = 0
    others: int = 0


class UsualShare:
    """One partition of a topic. Minutes in which it delivers nothing count, once the pause that they belong to is over.

    So a partition that stopped is not learnt as a sparse one.

    If every transaction of the topic belongs to the partition with a constant probability, then `own` of them come
    within `others` transactions of the other partitions, and the next pause is longer than `pause` of those with the
    probability (1 + pause / others)^-own (beta prime distribution). That includes that the share is only estimated.

    Attributes:
        pause: transactions of the other partitions since its last one.
        own, others: the transactions from which the share is estimated.
    """

    def __init__(self, evidence: float = EVIDENCE) -> None:
        self._evidence = evidence
        self._hours: deque[_Hour] = deque()
        self._gap = 0
        self.own = self.others = self.pause = 0

    @property
    def share(self) -> float:
        """The share of the topic's transactions; 0 if it is not known."""
        return self.own / (self.own + self.others) if self.own else 0.0

    @property
    def per_other(self) -> float:
        """Its transactions per transaction of the other partitions; 0 if it is not known."""
        return self.own / self.others if self.others else 0.0

    @property
    def missed(self) -> float:
        """Transactions that it would usually have delivered during the pause."""
        return self.per_other * self.pause

    @property
    def limit(self) -> float:
        """`missed` from which the pause is silence."""
        return self.own * math.expm1(self._evidence / self.own) if self.own else math.inf

    def add_delivery(self, minute: int, own: int, others: int) -> None:
        """Add a minute (its beginning, ms) in which it delivered `own` transactions and the others `others`."""
        start = minute // HOUR_MS * HOUR_MS
        if not self._hours:
            own -= 1  # The pause before its first transaction is not known.
        if not self._hours or self._hours[-1].start != start:
            self._hours.append(_Hour(start))
        self._hours[-1].own += own
        self._hours[-1].others += others + self._gap
        self._gap = self.pause = 0
        while self._hours[0].start < start - MAX_HOURS * HOUR_MS:
            self._hours.popleft()
        self.own = self.others = 0
        for hour in reversed(self._hours):
            if self.own >= ENOUGH and hour.start < start - HOUR_MS:
                break
            self.own, self.others = self.own + hour.own, self.others + hour.others

    def add_silence(self, others: int, *, waits: bool) -> None:
        """Add a minute in which it delivered nothing and the others `others`.

        Args:
            waits: whether its transactions wait for a scorer. Then the minute says nothing about the pause.
        """
        self._gap += others
        self.pause += 0 if waits else others
