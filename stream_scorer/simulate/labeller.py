"""Simulated label sources: analysts on alerts, a random review, late chargebacks. No I/O, no wall clock.

The closed loop biases labels as in reality (see `Labeller`): blocked transactions never get a chargeback, only a random
sample of the approved ones is reviewed, and some fraud is never reported.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from stream_scorer.arrays import Bools, Floats, Ints
from stream_scorer.errors import SettingsError
from stream_scorer.records import Decision
from stream_scorer.simulate.config import DAY_MS, HOUR_MS
from stream_scorer.simulate.labels import ANALYST, CHARGEBACK, RANDOM_REVIEW, SOURCES, Labels
from stream_scorer.simulate.transactions import Transactions


@dataclass(frozen=True)
class LabellerConfig:
    """Parameters of the label sources. Durations are milliseconds of event time, shares are in [0, 1].

    Attributes:
        seed: seed of every random choice.
        capacity_per_hour: maximum number of analyst labels per hour of event time.
        blocked_share: share of that capacity that is reserved for blocked transactions.
        analyst_delay_ms: from the end of the hour of the alert to the hour in which the analysts label it.
        analyst_miss, analyst_false: probability that a reviewer calls fraud genuine, and genuine fraud.
        review_probability: in a history without a scorer, share of transactions chosen at random for review.
        review_delay_ms: mean time to a random review (exponential, after one hour).
        unreported: share of the fraud whose victims never complain.
        chargeback_median_ms, chargeback_sigma: of the lognormal time to a chargeback.
        chargeback_min_ms: no chargeback is earlier.
        memory_ms: alerts on transactions older than this are ignored.
    """

    seed: int = 1
    capacity_per_hour: int = 30
    blocked_share: float = 0.2
    analyst_delay_ms: int = 2 * HOUR_MS
    analyst_miss: float = 0.05
    analyst_false: float = 0.01
    review_probability: float = 0.001
    review_delay_ms: int = 5 * HOUR_MS
    unreported: float = 0.2
    chargeback_median_ms: int = 36 * HOUR_MS
    chargeback_sigma: float = 0.7
    chargeback_min_ms: int = 6 * HOUR_MS
    memory_ms: int = 3 * DAY_MS

    def __post_init__(self) -> None:
        """Raises `SettingsError` if a value is out of range."""
        for name in ("blocked_share", "analyst_miss", "analyst_false", "review_probability", "unreported"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise SettingsError(f"{name} must be between 0 and 1")
        if self.capacity_per_hour < 0:
            raise SettingsError("capacity_per_hour must be at least 0")


class Labeller:
    """Follows transactions and alerts in event time and returns the labels that become available.

    Call `observe` with transactions in order of event time, `alerted` with decisions and `sampled` with the scorer's
    review sample as they arrive, and `advance` to move the clock of event time. `advance` returns labels in order of
    `labelled_at`, up to the clock.

    The rules:

    1. Alerts (decision review or block) of one hour of event time form a pool. The analysts draw from it at random,
       held ones first, up to their capacity, and record the probability of being drawn.
    2. The approved transactions that the scorer draws at random are reviewed. Without a scorer (a history) the labeller
       draws a sample of all transactions itself; alerted ones leave it.
    3. A chargeback comes only for fraud that went through: approved, or held and cleared by an analyst by mistake.
       A blocked or still held transaction stays silent unless an analyst labels it.
    4. So a label can change: a chargeback can turn a reviewer's "genuine" into "fraud".

    If an alert arrives after its transaction got a label as an approved one, the label stays and `late_alerts` counts
    the alert.
    """

    def __init__(self, config: LabellerConfig) -> None:
        self._config = config
        # One random stream per kind of choice, so that choices do not depend on the chunks of transactions.
        streams = np.random.SeedSequence(config.seed, spawn_key=(3,)).spawn(6)
        self._sample, self._wait, self._verdict, self._report, self._delay, self._second = map(
            np.random.default_rng, streams
        )
        self._clock_ms = -(2**62)
        # Ordinal of each remembered event, and chunks of transactions by the ordinal of their first.
        self._ordinals: dict[str, int] = {}
        self._firsts: list[int] = []
        self._chunks: list[Transactions] = []
        self._observed = 0
        self._forgot_at_ms = self._clock_ms
        # A heap by the earliest due time, so that most moves of the clock touch nothing.
        self._due: list[tuple[int, int, _Candidates]] = []
        self._order = itertools.count()
        self._decisions: dict[str, Decision] = {}
        self._pools: dict[int, list[tuple[str, Decision, Transactions]]] = {}
        self._reviews: dict[int, list[tuple[str, float, Transactions]]] = {}
        self._drawn: set[str] = set()
        self._labelled_as_approved: set[str] = set()
        self.late_alerts = 0
        self.unknown_alerts = 0
        self.alerts: Counter[str] = Counter()

    def observe(self, transactions: Transactions, *, own_sample: bool = True) -> None:
        """Add transactions, with their hidden truth, in order of event time.

        With `own_sample`, as in a history without a scorer, draw some for review.
        """
        count = len(transactions)
        if not count:
            return
        config = self._config
        fraud = transactions.fraud_kind > 0
        ordinals = range(self._observed, self._observed + count)
        self._ordinals.update(zip(transactions.event_id.tolist(), ordinals, strict=True))
        self._firsts.append(self._observed)
        self._chunks.append(transactions)
        self._observed += count
        rows = np.flatnonzero(self._sample.random(count) < config.review_probability if own_sample else np.zeros(count))
        if len(rows):
            wait = HOUR_MS + config.review_delay_ms * self._wait.exponential(size=len(rows))
            self._await(
                _Candidates(
                    transactions.take(rows),
                    transactions.event_time[rows] + wait.astype(np.int64),
                    _reviewed(config, self._verdict, fraud[rows]),
                    RANDOM_REVIEW,
                    np.full(len(rows), config.review_probability),
                )
            )
        rows = np.flatnonzero(fraud)
        rows = rows[self._report.random(len(rows)) >= config.unreported]
        if len(rows):
            due = transactions.event_time[rows] + _chargeback_delay(config, self._delay, len(rows))
            self._await(
                _Candidates(
                    transactions.take(rows), due, np.ones(len(rows), np.bool_), CHARGEBACK, np.full(len(rows), np.nan)
                )
            )

    def alerted(self, event_ids: Iterable[str], decisions: Iterable[Decision]) -> None:
        """Add alerts. The first decision on an event counts; "approve" is no alert and is ignored."""
        for event_id, decision in zip(event_ids, decisions, strict=True):
            if decision == "approve" or event_id in self._decisions:
                continue
            found = self._find(event_id)
            if found is None:
                self.unknown_alerts += 1
                continue
            self.alerts[decision] += 1
            event_time = int(found.event_time[0])
            self._decisions[event_id] = decision
            if event_id in self._labelled_as_approved:
                self.late_alerts += 1
                continue
            hour = max(event_time, self._clock_ms) // HOUR_MS
            self._pools.setdefault(hour, []).append((event_id, decision, found))

    def sampled(self, event_ids: Iterable[str], probabilities: Iterable[float]) -> None:
        """Add approved transactions that the scorer drew for review, each with its probability."""
        for event_id, probability in zip(event_ids, probabilities, strict=True):
            found = self._find(event_id)
            if found is None or event_id in self._drawn:
                continue
            self._drawn.add(event_id)
            hour = max(int(found.event_time[0]), self._clock_ms) // HOUR_MS
            self._reviews.setdefault(hour, []).append((event_id, probability, found))

    def advance(self, to_ms: int) -> Labels:
        """Advance event time to `to_ms` and return the new labels."""
        if to_ms < self._clock_ms:
            raise ValueError(f"event time cannot go back from {self._clock_ms} to {to_ms}")
        self._clock_ms = to_ms
        for hour in sorted(h for h in self._pools if (h + 1) * HOUR_MS <= to_ms):
            self._work(hour, self._pools.pop(hour))
        for hour in sorted(h for h in self._reviews if (h + 1) * HOUR_MS <= to_ms):
            self._review(hour, self._reviews.pop(hour))
        known: list[Labels] = []
        while self._due and self._due[0][0] <= to_ms:
            _, _, candidates = heappop(self._due)
            ripe = candidates.due <= to_ms
            if not ripe.all():
                self._await(candidates.take(~ripe))
            known.append(self._admitted(candidates.take(ripe)))
        self._forget()
        if not known:
            return Labels.none()
        labels = Labels.concat(known)
        return labels.take(np.lexsort((labels.event_id, labels.labelled_at)))

    @property
    def waiting(self) -> int:
        """Number of scheduled labels, unless alerts prevent them."""
        return sum(len(candidates.due) for _, _, candidates in self._due)

    @property
    def remembered(self) -> int:
        """Transactions that an alert may still refer to."""
        return len(self._ordinals)

    def _await(self, candidates: _Candidates) -> None:
        heappush(self._due, (int(candidates.due.min()), next(self._order), candidates))

    def _find(self, event_id: str) -> Transactions | None:
        ordinal = self._ordinals.get(event_id)
        if ordinal is None:
            return None
        chunk = bisect_right(self._firsts, ordinal) - 1
        return self._chunks[chunk].take(np.array([ordinal - self._firsts[chunk]]))

    def _work(self, hour: int, pool: list[tuple[str, Decision, Transactions]]) -> None:
        """Sample the alerts of one hour up to the analysts' capacity, and spread the labels over their hour of work."""
        config = self._config
        rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(4, hour)))
        pool.sort(key=lambda alert: alert[0])
        held = [alert for alert in pool if alert[1] == "review"]
        blocked = [alert for alert in pool if alert[1] == "block"]
        kept = min(len(blocked), int(np.ceil(config.capacity_per_hour * config.blocked_share)))
        for_held = min(len(held), config.capacity_per_hour - kept)
        for_blocked = min(len(blocked), config.capacity_per_hour - for_held)
        drawn: list[Transactions] = []
        probability: list[float] = []
        clearable: list[bool] = []
        for alerts, places in ((held, for_held), (blocked, for_blocked)):
            for index in rng.permutation(len(alerts))[:places]:
                drawn.append(alerts[index][2])
                probability.append(places / len(alerts))
                clearable.append(alerts[index][1] == "review")
        if not drawn:
            return
        transactions = Transactions.concat(drawn)
        count = len(transactions)
        order = rng.permutation(count)
        due = (hour + 1) * HOUR_MS + config.analyst_delay_ms + (order * HOUR_MS) // count
        fraud = transactions.fraud_kind > 0
        labelled_fraud = _reviewed(config, rng, fraud)
        self._await(_Candidates(transactions, due, labelled_fraud, ANALYST, np.array(probability)))
        cleared = np.flatnonzero(fraud & ~labelled_fraud & np.array(clearable))
        cleared = cleared[self._second.random(len(cleared)) >= config.unreported]
        if len(cleared):
            later = due[cleared] + _chargeback_delay(config, self._second, len(cleared))
            self._await(
                _Candidates(
                    transactions.take(cleared),
                    later,
                    np.ones(len(cleared), np.bool_),
                    CHARGEBACK,
                    np.full(len(cleared), np.nan),
                    after_clearing=True,
                )
            )

    def _review(self, hour: int, drawn: list[tuple[str, float, Transactions]]) -> None:
        """Schedule the reviews of the transactions that the scorer drew in one hour."""
        config = self._config
        rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(6, hour)))
        drawn.sort(key=lambda one: one[0])
        transactions = Transactions.concat([found for _, _, found in drawn])
        wait = config.review_delay_ms * rng.exponential(size=len(drawn))
        due = (hour + 1) * HOUR_MS + wait.astype(np.int64)
        labelled_fraud = _reviewed(config, rng, transactions.fraud_kind > 0)
        probability = np.array([p for _, p, _ in drawn])
        self._await(_Candidates(transactions, due, labelled_fraud, RANDOM_REVIEW, probability))

    def _admitted(self, candidates: _Candidates) -> Labels:
        """Labels of ripe candidates, without those that an alert prevents."""
        if candidates.source != ANALYST and not candidates.after_clearing:
            ids = candidates.transactions.event_id.tolist()
            through = np.fromiter((i not in self._decisions for i in ids), np.bool_, len(ids))
            if not through.all():
                candidates = candidates.take(through)
            self._labelled_as_approved.update(candidates.transactions.event_id.tolist())
        return candidates.labels()

    def _forget(self) -> None:
        """Drop entries that no alert and no chargeback can refer to any more."""
        if self._clock_ms < self._forgot_at_ms + HOUR_MS:
            return
        self._forgot_at_ms = self._clock_ms
        oldest = self._clock_ms - self._config.memory_ms
        count = 0
        while count < len(self._chunks) and self._chunks[count].event_time[-1] < oldest:
            for event_id in self._chunks[count].event_id.tolist():
                del self._ordinals[event_id]
            count += 1
        if not count:
            return
        del self._chunks[:count], self._firsts[:count]
        # A decision is needed as long as a chargeback may still be waiting for it.
        waiting = {i for _, _, candidates in self._due for i in candidates.transactions.event_id.tolist()}
        self._decisions = {i: d for i, d in self._decisions.items() if i in waiting or i in self._ordinals}
        self._labelled_as_approved &= self._ordinals.keys()
        self._drawn &= self._ordinals.keys()


def history_labels(transactions: Transactions, as_of_ms: int, config: LabellerConfig | None = None) -> Labels:
    """The labels available at `as_of_ms` for a history in which everything was approved, for training.

    They are reported frauds and a random review; a transaction without a label is presumed genuine. Labels and
    transactions later than `as_of_ms` are left out.
    """
    labeller = Labeller(config or LabellerConfig())
    past = int(np.searchsorted(transactions.event_time, as_of_ms, side="right"))
    labeller.observe(transactions.slice(0, past))
    return labeller.advance(as_of_ms)


@dataclass(frozen=True)
class _Candidates:
    """Labels scheduled for `due` unless an alert prevents them; columns ``(n,)``."""

    transactions: Transactions
    due: Ints
    labelled_fraud: Bools
    source: int
    probability: Floats
    after_clearing: bool = False

    def take(self, rows: Bools) -> _Candidates:
        return _Candidates(
            self.transactions.take(rows),
            self.due[rows],
            self.labelled_fraud[rows],
            self.source,
            self.probability[rows],
            self.after_clearing,
        )

    def labels(self) -> Labels:
        t = self.transactions
        words = np.array(["genuine", "fraud"], dtype=object)
        return Labels(
            event_id=t.event_id,
            event_time=t.event_time,
            label=words[self.labelled_fraud.astype(np.int64)],
            labelled_at=self.due,
            source=np.full(len(t), SOURCES[self.source], dtype=object),
            review_probability=self.probability,
            customer_id=t.customer_id,
            terminal_id=t.terminal_id,
            device_id=t.device_id,
            network_id=t.network_id,
        )


def _reviewed(config: LabellerConfig, rng: np.random.Generator, fraud: Bools) -> Bools:
    """A reviewer's labels of transactions, with errors."""
    luck = rng.random(len(fraud))
    return np.where(fraud, luck >= config.analyst_miss, luck < config.analyst_false)


def _chargeback_delay(config: LabellerConfig, rng: np.random.Generator, count: int) -> Ints:
    delay = config.chargeback_median_ms * np.exp(config.chargeback_sigma * rng.standard_normal(count))
    return np.asarray(np.maximum(delay, config.chargeback_min_ms), dtype=np.int64)
