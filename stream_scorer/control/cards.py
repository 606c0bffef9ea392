"""Counts alerted cards, each card once: by both versions, by the candidate only, or by the baseline only.

A card is counted by its first alert of either version. Its class is fixed when event time on its partition has passed
that alert by the grace period: `both` if the other version alerted it as well by then. So a burst on one card is one
observation, and so is a card that one version alerts a moment before the other.

All events of a card are on one partition, whose summaries are in order. So the counts depend only on the log, and a
restart leads to the same ones.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from stream_scorer.records import CardAlerts, CommonAlert, Disagreement

# Bounds the memory of one pair: about 30 MB. By then, a change of 1 % is visible.
MAX_CARDS = 250_000
# Cards that only one version alerts, of each version, that are kept for a comparison by labels. Hundreds decide it.
MAX_DISAGREEMENTS = 500
# Cards that both versions alert that are kept for the same purpose.
MAX_COMMON = 1_000


@dataclass(slots=True)
class CardCounts:
    """Number of cards by which version alerts them: the version under test, and the one that it is compared with."""

    both: int = 0
    candidate_only: int = 0
    baseline_only: int = 0

    @property
    def total(self) -> int:
        """All cards that either version alerts."""
        return self.both + self.candidate_only + self.baseline_only

    @property
    def rise(self) -> float:
        """Relative change of alerted cards from the baseline to the candidate; NaN if the baseline alerts none."""
        alerts = self.both + self.baseline_only
        return (self.both + self.candidate_only) / alerts - 1.0 if alerts else float("nan")


_Event = tuple[int, str, int, bool]


@dataclass(slots=True)
class _Partition:
    """The cards of one partition that wait for their class: by hash, the first alert by each version.

    `newest` is the newest event time. `due` is a heap of (first alert, hash); an entry with a later time than the
    card's first alert is outdated. `events` has time, event id and value of the first alert, if they are known, and
    whether the candidate was a shadow.
    """

    newest: int = -1
    waiting: dict[int, tuple[int | None, int | None]] = field(default_factory=dict)
    due: list[tuple[int, int]] = field(default_factory=list)
    events: dict[int, _Event] = field(default_factory=dict)


class AlertedCards:
    """See the module.

    Attributes:
        counts: the cards whose class is fixed.
        first, newest: event times of the first alert and of the newest transaction, ms; None before one.
        disagreements: the first cards that only one version alerts, at most `MAX_DISAGREEMENTS` of each.
        common: the first cards that both alert, at most `MAX_COMMON`.
    """

    def __init__(self, grace_ms: int, max_cards: int = MAX_CARDS) -> None:
        self.counts = CardCounts()
        self.first: int | None = None
        self.newest: int | None = None
        self.disagreements: list[Disagreement] = []
        self.common: list[CommonAlert] = []
        self._grace_ms, self._max_cards = grace_ms, max_cards
        self._kept = {True: 0, False: 0}
        self._partitions: dict[int, _Partition] = {}
        self._counted: set[int] = set()

    @property
    def waiting(self) -> int:
        """Number of cards whose class is not fixed yet."""
        return sum(len(partition.waiting) for partition in self._partitions.values())

    @property
    def full(self) -> bool:
        """Whether further cards are ignored."""
        return len(self._counted) + self.waiting >= self._max_cards

    def add(self, number: int, cards: CardAlerts, newest: int | None, *, shadow: bool = False) -> None:
        """Add the cards of one summary of the candidate for partition `number`, whose newest event time is `newest`.

        `shadow`: the candidate only scored them.
        """
        partition = self._partitions.setdefault(number, _Partition())
        for card, candidate, baseline in zip(cards.card, cards.this, cards.other, strict=True):
            self._alert(partition, int(card, 16), candidate, baseline)
        for card, event, value, candidate, baseline in zip(
            cards.card, cards.event, cards.value, cards.this, cards.other, strict=False
        ):
            at = _earlier(candidate, baseline)
            if event and at is not None and int(card, 16) in partition.waiting:
                first = partition.events.get(int(card, 16), (at, event, value, shadow))
                partition.events[int(card, 16)] = min(first, (at, event, value, shadow))
        if newest is not None:
            partition.newest = max(partition.newest, newest)
            self.newest = newest if self.newest is None else max(self.newest, newest)
        self._settle(partition)

    def _alert(self, partition: _Partition, card: int, candidate: int | None, baseline: int | None) -> None:
        if card in self._counted or (candidate is None and baseline is None):
            return
        if self.full and card not in partition.waiting:
            return
        before = partition.waiting.get(card, (None, None))
        now = _earlier(before[0], candidate), _earlier(before[1], baseline)
        partition.waiting[card] = now
        at = _first(now)
        self.first = at if self.first is None else min(self.first, at)
        if before == (None, None) or at < _first(before):
            heapq.heappush(partition.due, (at, card))

    def _settle(self, partition: _Partition) -> None:
        """Fix the class of the cards whose grace period is over."""
        while partition.due and partition.due[0][0] + self._grace_ms < partition.newest:
            at, card = heapq.heappop(partition.due)
            times = partition.waiting.get(card)
            if times is None or _first(times) != at:
                continue
            del partition.waiting[card]
            self._counted.add(card)
            candidate, baseline = (time is not None and time - at <= self._grace_ms for time in times)
            event = partition.events.pop(card, None)
            if event is not None and event[0] == at:
                self._keep(event, candidate=candidate, baseline=baseline)
            if candidate and baseline:
                self.counts.both += 1
            elif candidate:
                self.counts.candidate_only += 1
            else:
                self.counts.baseline_only += 1

    def _keep(self, event: _Event, *, candidate: bool, baseline: bool) -> None:
        """Keep the first alert of a card for a comparison by labels."""
        if candidate and baseline:
            if len(self.common) < MAX_COMMON:
                self.common.append(CommonAlert(*event[:3]))
        elif self._kept[candidate] < MAX_DISAGREEMENTS:
            self._kept[candidate] += 1
            self.disagreements.append(Disagreement(*event[:3], candidate, event[3]))


class ArmShare:
    """Distinct cards that the champion alerts, by arm: whether the canary decides the share of cards that it should.

    The champion scores every transaction, and the arm of a card does not depend on its transactions. So the cards in
    the canary's arm are a random `share` of them.
    """

    def __init__(self, share: float, until: int | None, max_cards: int = MAX_CARDS) -> None:
        self.share, self._until, self._max_cards = share, until, max_cards
        self._seen: tuple[set[int], set[int]] = (set(), set())

    @property
    def inside(self) -> int:
        """Number of cards in the canary's arm."""
        return len(self._seen[1])

    @property
    def total(self) -> int:
        """Number of cards in both arms."""
        return len(self._seen[0]) + len(self._seen[1])

    def add(self, cards: list[str], alerted: list[int | None], *, canary: bool) -> None:
        """Add cards of one arm with the event times of their first alert by the champion, None without one."""
        for card, at in zip(cards, alerted, strict=True):
            if at is not None and (self._until is None or at < self._until) and self.total < self._max_cards:
                self._seen[canary].add(int(card, 16))


def _earlier(one: int | None, two: int | None) -> int | None:
    if one is None or two is None:
        return one if two is None else two
    return min(one, two)


def _first(times: tuple[int | None, int | None]) -> int:
    earlier = _earlier(*times)
    assert earlier is not None
    return earlier
