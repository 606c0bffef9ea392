"""Budgets of latency and errors, and the breakers of members, from `scorer-status` and `score-summaries`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from stream_scorer.incidents.detector import DetectedConditions, Flow, percent
from stream_scorer.incidents.log import Condition, Subject
from stream_scorer.incidents.minutes import ByMinute, Episode, EpisodeRules, Extent
from stream_scorer.records import Affected, MemberHealth, ScorerStatus, ScoreSummary

P95 = 0.95
BREAKER_OPEN = 2
# A scorer without a status for this long is gone: in Kubernetes each start has a new name.
FORGET_AFTER_MS = 3_600_000
# Micro-batches that make the failures of a member a share.
MIN_BATCHES = 20


@dataclass(frozen=True, slots=True)
class ServiceRules:
    """Limits: `latency_ms` of the P95, and `errors`, a share of the transactions or of a member's micro-batches."""

    latency_ms: float = 200.0
    errors: float = 0.01
    episodes: EpisodeRules = field(default_factory=EpisodeRules)


@dataclass(slots=True)
class Latencies:
    """The latencies of one ensemble in one minute: a histogram, see `ScorerHealth`."""

    bounds: Sequence[float] = ()
    counts: list[int] = field(default_factory=list)

    def add(self, bounds: Sequence[float], counts: Sequence[int]) -> None:
        """Add a histogram. One with other bounds, of another release, is left out."""
        if not self.counts:
            self.bounds, self.counts = bounds, [0] * len(counts)
        if list(self.bounds) == list(bounds):
            self.counts = [a + b for a, b in zip(self.counts, counts, strict=True)]

    @property
    def total(self) -> int:
        """Number of transactions."""
        return sum(self.counts)

    def quantile(self, share: float) -> float:
        """The latency that `share` of the transactions do not exceed, ms; linear within a bin, as in Prometheus."""
        wanted, seen, low = share * self.total, 0, 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if count and seen + count >= wanted:
                return low + (bound - low) * (wanted - seen) / count
            seen, low = seen + count, bound
        return low

    def above(self, limit: float) -> int:
        """Number of transactions in the bins that begin at `limit` or above."""
        lows = [0.0, *self.bounds]
        return sum(count for low, count in zip(lows, self.counts, strict=False) if low >= limit)


@dataclass(slots=True)
class MemberMinute:
    """One member in one minute, in all scorers: micro-batches, failures, and whether its breaker was open.

    Failures and breaker are those in versions that decide.
    """

    batches: int = 0
    failed: int = 0
    is_open: bool = False


@dataclass(slots=True)
class _Level:
    """A subject: its episode, the figures of its last bad minute, and, of a member, what its last good minute shows."""

    episode: Episode
    statistics: dict[str, float | int | None] = field(default_factory=dict)
    ended: str = ""


class ServiceDetector:
    """See the module. `add_status` and `add_summary` take what is read; `advance` decides."""

    def __init__(self, rules: ServiceRules | None = None) -> None:
        self._rules = rules or ServiceRules()
        episodes = self._rules.episodes
        self._flows: ByMinute[Flow] = ByMinute(episodes, Flow)
        self._latencies: ByMinute[Latencies] = ByMinute(episodes, Latencies)
        self._members: ByMinute[MemberMinute] = ByMinute(episodes, MemberMinute)
        self._before: dict[str, tuple[int, ScorerStatus]] = {}
        self._latency: dict[str, _Level] = {}
        self._errors: dict[str, _Level] = {}
        self._member: dict[tuple[str, str], _Level] = {}
        self._breaker: dict[tuple[str, str], _Level] = {}

    def add_summary(self, summary: ScoreSummary, at: int) -> None:
        """Add a summary with its record timestamp, ms."""
        self._flows.at(at, summary.ensemble).add(summary)

    def add_status(self, status: ScorerStatus, at: int) -> None:
        """Add a status with its record timestamp, ms. The first one of a scorer only gives the counts before it."""
        _, before = self._before.pop(status.instance, (0, None))
        self._before[status.instance] = at, status
        self._forget(at - FORGET_AFTER_MS)
        if before is None or before.health is None or status.health is None or before.ensemble != status.ensemble:
            return
        now, then = status.health, before.health
        counts = _since(now.latency, then.latency if then.bounds == now.bounds else [])
        self._latencies.at(at, status.ensemble).add(now.bounds, counts)
        known = {member.name: member for member in then.members}
        for member in now.members:
            self._add_member(status.ensemble, member, known.get(member.name), at)

    def _forget(self, before: int) -> None:
        """Forget the scorers whose last status is older; the oldest come first."""
        while self._before and next(iter(self._before.values()))[0] < before:
            del self._before[next(iter(self._before))]

    def _add_member(self, ensemble: str, member: MemberHealth, before: MemberHealth | None, at: int) -> None:
        old = (0, 0) if before is None or before.batches > member.batches else (before.batches, before.failed)
        minute = self._members.at(at, (ensemble, member.name))
        minute.batches += member.batches - old[0]
        minute.failed += member.failed - old[1]
        # A member that is not called fails in every micro-batch. One that left the lineup keeps its last state, and
        # the failures of one that no version that decides uses are not counted.
        minute.is_open = minute.is_open or (member.breaker == BREAKER_OPEN and member.failed > old[1])

    def advance(self, now: int) -> DetectedConditions:
        """Evaluate the minutes that are complete at `now` (ms) and return what holds."""
        flows, latencies = dict(self._flows.complete(now)), dict(self._latencies.complete(now))
        members = dict(self._members.complete(now))
        for minute in sorted({*flows, *latencies, *members}):
            of_minute = {str(ensemble): flow for ensemble, flow in flows.get(minute, {}).items()}
            for ensemble, flow in of_minute.items():
                self._add_errors(minute, ensemble, flow)
            for key, latency in latencies.get(minute, {}).items():
                self._add_latency(minute, str(key), latency, of_minute.get(str(key), Flow()))
            reported = {ensemble for ensemble in map(str, latencies.get(minute, {})) if ensemble in of_minute}
            # A member that no scorer of its ensemble reports any more has left the lineup with their restart.
            of_member: dict[object, MemberMinute] = {k: MemberMinute() for k in self._member if k[0] in reported}
            for key, member in (of_member | members.get(minute, {})).items():
                assert isinstance(key, tuple)
                self._add_members(minute, key, member, of_minute.get(key[0], Flow()))
        found = DetectedConditions()
        for ensemble, level in sorted(self._latency.items()):
            self._find_latency(ensemble, level, found)
        for ensemble, level in sorted(self._errors.items()):
            self._find_errors(ensemble, level, found)
        for (ensemble, name), level in sorted(self._member.items()):
            self._find_member(ensemble, name, level, found)
        for (ensemble, name), level in sorted(self._breaker.items()):
            self._find_breaker(ensemble, name, level, found)
        return found

    def _level(self, levels: dict[str, _Level], ensemble: str) -> _Level:
        return levels.setdefault(ensemble, _Level(Episode(self._rules.episodes)))

    def _add_latency(self, minute: int, ensemble: str, latency: Latencies, flow: Flow) -> None:
        if latency.total < self._rules.episodes.min_rows:
            return
        level, p95 = self._level(self._latency, ensemble), latency.quantile(P95)
        bad = p95 > self._rules.latency_ms
        slow = latency.above(self._rules.latency_ms)
        level.episode.add(minute, _part(flow, slow / latency.total, slow), bad=bad)
        if bad:
            level.statistics = {
                "p50_ms": round(latency.quantile(0.5), 1),
                "p95_ms": round(p95, 1),
                "p99_ms": round(latency.quantile(0.99), 1),
                "transactions": latency.total,
            }

    def _add_errors(self, minute: int, ensemble: str, flow: Flow) -> None:
        if flow.rows < self._rules.episodes.min_rows:
            return
        level = self._level(self._errors, ensemble)
        share = flow.fallback / flow.rows
        level.episode.add(minute, _part(flow, share, flow.fallback), bad=share > self._rules.errors)
        if share > self._rules.errors:
            level.statistics = {"share": round(share, 6), "fallback": flow.fallback, "transactions": flow.rows}

    def _add_members(self, minute: int, key: tuple[str, str], member: MemberMinute, flow: Flow) -> None:
        share = member.failed / member.batches if member.batches else 0.0
        extent = _part(flow, share, round(share * flow.rows))
        figures: dict[str, float | int | None] = {
            "share": round(share, 6), "failed": member.failed, "batches": member.batches,
        }  # fmt: skip
        # An open breaker is certain, so one minute is enough.
        certain = replace(self._rules.episodes, open_after=1)
        breaker = self._breaker.setdefault(key, _Level(Episode(certain)))
        # A minute without micro-batches says nothing about the breaker.
        if member.batches or flow.rows:
            breaker.episode.add(minute, extent, bad=member.is_open)
            breaker.ended = _ended(member)
        if member.is_open:
            breaker.statistics = figures
        # While the member is not called, its failures are those of the breaker: one condition, one incident.
        failures = self._member.setdefault(key, _Level(Episode(self._rules.episodes)))
        # A member that is never called, although its ensemble scores, has left the lineup: its failures are over.
        left = not member.batches and flow.rows >= self._rules.episodes.min_rows
        if breaker.episode.start is not None or (member.batches < MIN_BATCHES and not left):
            return
        bad = share > self._rules.errors
        failures.episode.add(minute, extent, bad=bad)
        failures.ended = _ended(member)
        if bad:
            failures.statistics = figures

    def _find_latency(self, ensemble: str, level: _Level, found: DetectedConditions) -> None:
        subject, limit = Subject(ensemble), self._rules.latency_ms
        if level.episode.open:
            p95 = level.statistics["p95_ms"]
            why = f"P95 of the time from arrival to the committed score is {p95:,.0f} ms; the limit is {limit:,.0f} ms"
            how = "transactions slower than the limit; money: their share of the amounts in these minutes"
            done = "no command: scores are late, not wrong"
            found.conditions.append(_condition("latency", subject, level, why, how, done, {"p95_ms": limit}))
        elif level.episode.healthy:
            found.end("latency", subject, "P95 is below its limit", level.episode.extent.event_time)

    def _find_errors(self, ensemble: str, level: _Level, found: DetectedConditions) -> None:
        subject, limit = Subject(ensemble), self._rules.errors
        if level.episode.open:
            share = level.statistics["share"] or 0.0
            why = f"{percent(share)} of the transactions have no score of the model; the limit is {percent(limit)}"
            how = "transactions that the fallback rules decided; money: their share of the amounts in these minutes"
            done = "the fallback rules of the spec decide these transactions"
            found.conditions.append(_condition("errors", subject, level, why, how, done, {"share": limit}))
        elif level.episode.healthy:
            found.end("errors", subject, "the model scores the transactions again", level.episode.extent.event_time)

    def _find_member(self, ensemble: str, name: str, level: _Level, found: DetectedConditions) -> None:
        subject, limit = Subject(ensemble, member=name), self._rules.errors
        if level.episode.open:
            share = level.statistics["share"] or 0.0
            why = f"member {name} fails in {percent(share)} of its micro-batches; the limit is {percent(limit)}"
            done = "where it fails, the other members decide with renormalised weights"
            found.conditions.append(_condition("errors", subject, level, why, _WITHOUT_MEMBER, done, {"share": limit}))
        elif level.episode.healthy:
            found.end("errors", subject, level.ended, level.episode.extent.event_time)

    def _find_breaker(self, ensemble: str, name: str, level: _Level, found: DetectedConditions) -> None:
        subject = Subject(ensemble, member=name)
        if level.episode.open:
            share = level.statistics["share"] or 0.0
            why = f"member {name} is not called: its breaker is open; {percent(share)} of the micro-batches lack it"
            done = "the breaker leaves the member out; the other members decide with renormalised weights"
            found.conditions.append(_condition("breaker", subject, level, why, _WITHOUT_MEMBER, done, {}))
        elif level.episode.healthy:
            found.end("breaker", subject, level.ended, level.episode.extent.event_time)


_WITHOUT_MEMBER = "estimated: the share of micro-batches without the member, of the transactions in these minutes"


def _ended(member: MemberMinute) -> str:
    """What a minute without failures shows, if the incident of the member ends with it."""
    return "no decision lacks the member any more" if member.batches else "the member has left the lineup"


def _condition(
    kind: str, subject: Subject, level: _Level, why: str, how: str, done: str, limits: dict[str, float]
) -> Condition:
    extent = level.episode.extent
    assert level.episode.start is not None
    return Condition(
        kind=kind,  # type: ignore[arg-type]
        subject=subject,
        start=level.episode.start,
        why=why,
        event_time=extent.event_time,
        opened_event=level.episode.opened_event,
        first=extent.sources,
        affected=Affected(extent.transactions, money=extent.money, how=how),
        done=done,
        statistics=level.statistics,
        limits=limits,
        began=level.episode.start,
    )


def _since(now: Sequence[int], then: Sequence[int]) -> list[int]:
    """The difference of two cumulative histograms; `now` itself if the counts started again from 0."""
    if len(then) != len(now) or any(a < b for a, b in zip(now, then, strict=True)):
        return list(now)
    return [a - b for a, b in zip(now, then, strict=True)]


def _part(flow: Flow, share: float, transactions: int) -> Extent:
    """A part of a minute's transactions, with the same share of their money."""
    return Extent(transactions, round(share * flow.money), flow.event_time, dict(flow.first))
