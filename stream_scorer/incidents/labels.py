"""Label sources that stop: transactions go on, and no label of a source arrives any more.

Labels of chargebacks arrive in daily files, those of reviewers in office hours. So a source has stopped only if,
at its usual rate, 50 labels were expected since the last one, and its pause is three times as long as its longest one
in the eight days before its last label. That includes pauses that were incidents. A source is judged once it was
observed for three times that limit, or for a week: then nights, weekends and daily files are known as pauses. Minutes
without transactions do not count: then there is nothing to label.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from stream_scorer.incidents.detector import NO_ACTION, DetectedConditions, Flow, seconds
from stream_scorer.incidents.log import Condition, Subject
from stream_scorer.incidents.minutes import ByMinute, EpisodeRules, newest
from stream_scorer.records import Affected, Outcome, ScoreSummary

# At the usual rate, so many labels were expected since the last one.
EXPECTED = 50.0
# How much longer than the longest pause a pause must be, and for how many times its limit a source must be observed.
FACTOR = 3.0
DAY_MS = 86_400_000
# Pauses and rates come from this long before the last label: more than a week, to include the pauses at weekends.
MEMORY_MS = 8 * DAY_MS
# After a week of observation, every usual pause is known.
WEEK_MS = 7 * DAY_MS


@dataclass(frozen=True, slots=True)
class LabelRules:
    """Limits.

    Attributes:
        silent_ms: shortest pause that can be an incident. min_labels: fewest labels from which the usual rate and the
            pauses of a source are known.
    """

    silent_ms: int = 6 * 3_600_000
    min_labels: int = 100
    episodes: EpisodeRules = field(default_factory=EpisodeRules)


@dataclass(slots=True)
class _Source:
    """One label source. Times are those of minutes (record timestamps, ms).

    Attributes:
        last: minute of the last label. counts: minutes with labels, and their number. labels: the sum. pauses: the
            minutes that ended a pause, and its length; only those than which no later one is longer. `counts` and
            `pauses` cover `MEMORY_MS` up to `last`.
        labelled_at: the newest time at which a label was given. event_time: of the transactions at the last label.
        idle_ms, rows, money: minutes without transactions, transactions, and their amounts, since the last label.
    """

    last: int
    counts: deque[tuple[int, int]] = field(default_factory=deque)
    labels: int = 0
    pauses: deque[tuple[int, int]] = field(default_factory=deque)
    labelled_at: int = 0
    event_time: int | None = None
    idle_ms: int = 0
    rows: int = 0
    money: int = 0

    @property
    def span_ms(self) -> int:
        """Time from its first to its last label."""
        return self.last - self.counts[0][0]

    @property
    def longest_ms(self) -> int:
        """Its longest pause."""
        return self.pauses[0][1]

    def add(self, minute: int, count: int) -> None:
        """Add a minute with `count` labels, which ends a pause."""
        pause, self.last = minute - self.last, minute
        while self.pauses and self.pauses[-1][1] <= pause:
            self.pauses.pop()
        self.pauses.append((minute, pause))
        self.counts.append((minute, count))
        self.labels += count
        while self.pauses[0][0] < minute - MEMORY_MS:
            self.pauses.popleft()
        while self.counts[0][0] < minute - MEMORY_MS:
            self.labels -= self.counts.popleft()[1]


@dataclass(slots=True)
class _Labels:
    """The labels of one minute by source: number, and the newest time at which one was given."""

    sources: dict[str, tuple[int, int]] = field(default_factory=dict)


class LabelDetector:
    """See the module. `add_summary` and `add_outcome` take what is read; `advance` decides."""

    def __init__(self, rules: LabelRules | None = None) -> None:
        self._rules = rules or LabelRules()
        self._flows: ByMinute[Flow] = ByMinute(self._rules.episodes, Flow)
        self._labels: ByMinute[_Labels] = ByMinute(self._rules.episodes, _Labels)
        self._sources: dict[str, _Source] = {}
        self._event_time: int | None = None
        self._minute = 0

    def add_summary(self, summary: ScoreSummary, at: int) -> None:
        """Add a summary with its record timestamp, ms."""
        self._flows.at(at, "").add(summary)

    def add_outcome(self, outcome: Outcome, at: int) -> None:
        """Add an outcome with its record timestamp, ms."""
        minute = self._labels.at(at, "").sources
        count, labelled_at = minute.get(outcome.source, (0, 0))
        minute[outcome.source] = count + 1, max(labelled_at, outcome.labelled_at)

    def advance(self, now: int) -> DetectedConditions:
        """Evaluate the minutes that are complete at `now` (ms) and return what holds."""
        flows, labels = dict(self._flows.complete(now)), dict(self._labels.complete(now))
        for minute in sorted({*flows, *labels}):
            self._minute = minute + self._rules.episodes.minute_ms
            if minute in flows:
                self._count(flows[minute].get("", Flow()))
            for name, (count, labelled_at) in labels.get(minute, {}).get("", _Labels()).sources.items():
                self._add(name, count, labelled_at, minute)
        found = DetectedConditions()
        for name, source in sorted(self._sources.items()):
            self._find(name, source, found)
        return found

    def _count(self, flow: Flow) -> None:
        self._event_time = newest(self._event_time, flow.event_time)
        for source in self._sources.values():
            source.rows += flow.rows
            source.money += flow.money
            source.idle_ms += 0 if flow.rows else self._rules.episodes.minute_ms

    def _add(self, name: str, count: int, labelled_at: int, minute: int) -> None:
        source = self._sources.setdefault(name, _Source(minute))
        source.add(minute, count)
        source.event_time = self._event_time
        source.labelled_at = max(source.labelled_at, labelled_at)
        source.idle_ms = source.rows = source.money = 0

    def _pause(self, source: _Source) -> int:
        return max(self._minute - source.last - source.idle_ms, 0)

    def _expected(self, source: _Source) -> float:
        return source.labels * self._pause(source) / max(source.span_ms, self._rules.episodes.minute_ms)

    def _limit(self, source: _Source) -> float:
        return max(self._rules.silent_ms, FACTOR * source.longest_ms)

    def _stopped(self, source: _Source) -> bool:
        limit = self._limit(source)
        known = source.labels >= self._rules.min_labels and source.span_ms >= min(FACTOR * limit, WEEK_MS)
        return known and source.rows > 0 and self._expected(source) >= EXPECTED and self._pause(source) > limit

    def _find(self, name: str, source: _Source, found: DetectedConditions) -> None:
        subject = Subject(source=name)
        pause = self._pause(source)
        if not self._stopped(source):
            if pause < self._rules.silent_ms:
                found.end("labels", subject, "labels arrive again", self._event_time)
            return
        expected = self._expected(source)
        found.conditions.append(
            Condition(
                "labels",
                subject,
                source.labelled_at,
                f"no label of source {name} for {seconds(pause)}; about {expected:,.0f} were expected, and its "
                f"longest pause before was {seconds(source.longest_ms)}",
                event_time=self._event_time,
                opened_event=source.event_time,
                affected=Affected(
                    source.rows, money=source.money, how="transactions since the last label of this source"
                ),
                done=f"{NO_ACTION}; false-positive rates of these windows stay open",
                statistics={"pause_s": pause / 1_000, "expected": round(expected), "labels": source.labels},
                limits={"pause_s": self._limit(source) / 1_000},
                began=source.last,
            )
        )
