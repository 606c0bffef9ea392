"""The inputs: a partition or topic that is silent or late, transactions that wait unscored, and dead letters.

What is silent is decided by transactions, not by time alone: a partition whose share is 1 % of the traffic is silent
once the others have delivered so many transactions that it should have delivered 50, or more if its share is known from
few transactions (by chance, one pause in 10^21 is as long). At night, when all partitions slow down, nothing is silent.
"""

from __future__ import annotations

import statistics
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from stream_scorer.incidents.detector import NO_ACTION, DetectedConditions, Flow, percent, seconds
from stream_scorer.incidents.log import Condition, Subject
from stream_scorer.incidents.minutes import ByMinute, Episode, EpisodeRules, Extent, newest
from stream_scorer.incidents.shares import UsualShare
from stream_scorer.records import Affected, ScoreSummary, Source

Place = tuple[str, int]
# Offsets of an input that may hold no transaction: markers of transactions, aborted records.
MARKERS = 10


@dataclass(frozen=True, slots=True)
class FeedRules:
    """Limits.

    Attributes:
        silent_ms: silence of a whole topic. late_ms: how much later than usual the event times of a partition may be,
            compared with the other partitions. dead_letters: share of dead letters.
    """

    silent_ms: int = 900_000
    late_ms: int = 900_000
    dead_letters: float = 0.01
    episodes: EpisodeRules = field(default_factory=EpisodeRules)


@dataclass(slots=True)
class DeadLetters:
    """Dead letters of one minute: by error code and field path, and the first offset by partition of each pair."""

    causes: Counter[tuple[str, str]] = field(default_factory=Counter)
    first: dict[tuple[str, str], dict[Place, int]] = field(default_factory=dict)


class _Partition:
    """What is known of one partition.

    Attributes:
        usual: its usual share of the traffic, and its present pause. missed, limit: of `usual`, in the last minute of
            silence. at: time of its last record, ms.
        lag, lags: distance of its event times behind the newest of the topic, ms: now, and usually.
        next_offset: the highest of the summaries. last_offset: that of the newest summary.
        ends_before: clock, ms, since which the input ends before `next_offset`; None if it does not.
        seen: `next_offset` at the last evaluation. waits_since: clock, ms, at which this stopped to advance although
            transactions wait; None if none wait.
    """

    def __init__(self, rules: EpisodeRules) -> None:
        self.usual = UsualShare()
        self.missed, self.limit = 0, 0.0
        self.lags: deque[int] = deque(maxlen=rules.keep)
        self.at = 0
        self.next_offset = self.last_offset = 0
        self.ends_before: int | None = None
        self.event_time: int | None = None
        self.silent = Episode(rules)
        self.late = Episode(rules)
        self.lag = 0
        self.seen: int | None = None
        self.waits_since: int | None = None


class FeedDetector:
    """See the module. `add_summary`, `add_dead_letter` and `set_ends` take what is read; `advance` decides."""

    def __init__(self, rules: FeedRules | None = None) -> None:
        self._rules = rules or FeedRules()
        episodes = self._rules.episodes
        self._flows: ByMinute[Flow] = ByMinute(episodes, Flow)
        self._letters: ByMinute[DeadLetters] = ByMinute(episodes, DeadLetters)
        self._partitions: dict[Place, _Partition] = {}
        self._ends: dict[Place, int] = {}
        self._dead: dict[str, Episode] = {}
        self._causes: dict[str, DeadLetters] = {}
        self._shares: dict[str, tuple[int, int]] = {}
        self._minutes: list[tuple[int, dict[object, DeadLetters]]] = []
        self._now = 0

    def add_summary(self, summary: ScoreSummary, at: int) -> None:
        """Add a summary with its record timestamp, ms."""
        place = summary.topic, summary.partition
        self._flows.at(at, place).add(summary)
        known = self._partitions.setdefault(place, _Partition(self._rules.episodes))
        known.next_offset, known.last_offset = max(known.next_offset, summary.next_offset), summary.next_offset
        known.event_time = newest(known.event_time, summary.newest)
        if summary.panes or summary.dead_letters:
            known.at = max(known.at, at)

    def seed(self, summary: ScoreSummary, at: int) -> None:
        """Add the last summary of a partition that has none in the time that is read, with its record timestamp, ms."""
        known = self._partitions.setdefault((summary.topic, summary.partition), _Partition(self._rules.episodes))
        known.next_offset = known.last_offset = summary.next_offset
        known.event_time, known.at = summary.newest, at

    def add_dead_letter(self, code: str, path: str, source: Source, at: int) -> None:
        """Add a dead letter: its error code, the path of the field, and where it came from."""
        letters = self._letters.at(at, source.topic)
        letters.causes[code, path] += 1
        first = letters.first.setdefault((code, path), {})
        place = source.topic, source.partition
        first[place] = min(source.offset, first.get(place, source.offset))

    def set_ends(self, ends: Mapping[Place, int]) -> None:
        """Set the ends of the input partitions, as the broker reports them."""
        self._ends = dict(ends)

    def advance(self, now: int) -> DetectedConditions:
        """Evaluate the minutes that are complete at `now` (ms) and return what holds."""
        self._now = now
        for place, known in self._partitions.items():
            # A record from a clock that is ahead is as old as its reading.
            known.at = min(known.at, now)
            self._start_over(known, self._ends.get(place))
        self._minutes += self._letters.complete(now)
        for minute, flows in self._flows.complete(now):
            by_place = {place: flow for place, flow in flows.items() if isinstance(place, tuple)}
            self._silent_and_late(minute, by_place)
            self._dead_letters(minute, by_place)
        found = DetectedConditions()
        for place, known in sorted(self._partitions.items()):
            self._find_partition(place, known, found)
            self._find_unscored(place, known, found)
        for topic in sorted({topic for topic, _ in self._partitions}):
            self._find_topic(topic, found)
            self._find_dead_letters(topic, found)
        return found

    def _start_over(self, known: _Partition, end: int | None) -> None:
        """Forget the offsets of an input that ends before them: its topic was deleted and created again.

        After a fail-over, a leader may report an earlier end for a moment.
        """
        advanced = known.seen is not None and known.next_offset > known.seen
        if end is None or end >= known.next_offset or advanced:
            known.ends_before = None
            return
        if known.ends_before is None:
            known.ends_before = self._now
        if self._now - known.ends_before >= self._rules.episodes.minute_ms * self._rules.episodes.open_after:
            known.next_offset = known.last_offset if known.last_offset <= end else 0
            known.seen = known.ends_before = None

    def _waiting(self, place: Place) -> int:
        """Records of the input that no summary covers."""
        known = self._partitions.get(place)
        end = self._ends.get(place)
        return 0 if known is None or end is None else max(end - known.next_offset, 0)

    def _silent_and_late(self, minute: int, flows: Mapping[Place, Flow]) -> None:
        newest_of: dict[str, int] = {}
        for (topic, _), flow in flows.items():
            if flow.event_time is not None:
                newest_of[topic] = max(newest_of.get(topic, flow.event_time), flow.event_time)
        totals: Counter[str] = Counter()
        for (topic, _), flow in flows.items():
            totals[topic] += flow.total
        for place, known in self._partitions.items():
            flow, total = flows.get(place, Flow()), totals[place[0]]
            if flow.total:
                known.usual.add_delivery(minute, flow.total, total - flow.total)
                known.silent.add(minute, Extent(), bad=False)
                self._add_lag(minute, known, flow, newest_of.get(place[0]))
            elif total:
                waits = self._waiting(place) > MARKERS
                known.usual.add_silence(total, waits=waits)
                if not waits and known.usual.missed >= known.usual.limit:
                    self._add_silence(minute, place, known, [f for other, f in flows.items() if other[0] == place[0]])

    @staticmethod
    def _add_silence(minute: int, place: Place, known: _Partition, others: list[Flow]) -> None:
        per_other, event_time = known.usual.per_other, None
        for flow in others:
            event_time = newest(event_time, flow.event_time)
        rows, money = sum(flow.total for flow in others), sum(flow.money for flow in others)
        extent = Extent(round(per_other * rows), round(per_other * money), event_time, {place: known.next_offset})
        known.silent.add(minute, extent, bad=True)
        known.missed, known.limit = round(known.usual.missed), known.usual.limit

    def _add_lag(self, minute: int, known: _Partition, flow: Flow, newest_event: int | None) -> None:
        if flow.event_time is None or newest_event is None:
            return
        known.lag = newest_event - flow.event_time
        usual = statistics.median(known.lags) if known.lags else None
        if usual is None or len(known.lags) < self._rules.episodes.close_after:
            known.lags.append(known.lag)
            return
        bad = known.lag > usual + self._rules.late_ms
        extent = Extent(flow.rows, flow.money, flow.event_time, dict(flow.first))
        known.late.add(minute, extent, bad=bad)
        if not bad:
            known.lags.append(known.lag)

    def _find_partition(self, place: Place, known: _Partition, found: DetectedConditions) -> None:
        topic, partition = place
        silent = Subject(topic=topic, partition=partition, aspect="silent")
        episode = known.silent
        if episode.open:
            found.conditions.append(
                Condition(
                    "feed", silent, known.next_offset,
                    f"partition {partition} of {topic} delivers nothing while the others go on; by its share of "
                    f"{percent(known.usual.share)} it missed about {known.missed:,} transactions",
                    event_time=episode.extent.event_time,
                    opened_event=known.event_time,
                    first=[Source(topic, partition, known.next_offset)],
                    affected=Affected(
                        known.missed, money=episode.extent.money,
                        how="estimated: transactions that did not arrive, by the usual share of the partition",
                    ),
                    done=NO_ACTION,
                    statistics={"missed": known.missed, "usual_share": round(known.usual.share, 6)},
                    limits={"missed": round(known.limit, 1)},
                    began=known.at,
                )
            )  # fmt: skip
        elif episode.healthy:
            found.end("feed", silent, "transactions arrive again", known.event_time)
        self._find_late(place, known, found)

    def _find_late(self, place: Place, known: _Partition, found: DetectedConditions) -> None:
        topic, partition = place
        late, episode = Subject(topic=topic, partition=partition, aspect="late"), known.late
        if not episode.open:
            if episode.healthy:
                found.end("feed", late, "event times are as close to those of the others as before", known.event_time)
            return
        assert episode.start is not None
        usual = statistics.median(known.lags)
        found.conditions.append(
            Condition(
                "feed", late, episode.start,
                f"event times of partition {partition} of {topic} are {seconds(known.lag)} behind those of the other "
                f"partitions, usually {seconds(usual)}",
                event_time=episode.extent.event_time,
                opened_event=episode.opened_event,
                first=episode.extent.sources,
                affected=Affected(
                    episode.extent.transactions, money=episode.extent.money, how="transactions of the late partition"
                ),
                done=NO_ACTION,
                statistics={"lag_s": known.lag / 1_000, "usual_lag_s": usual / 1_000},
                limits={"lag_s": (usual + self._rules.late_ms) / 1_000},
                began=episode.start,
            )
        )  # fmt: skip

    def _find_unscored(self, place: Place, known: _Partition, found: DetectedConditions) -> None:
        """Transactions of one partition wait, although those of others are scored."""
        if place not in self._ends:
            return
        topic, partition = place
        waiting, advanced = self._waiting(place), known.seen is not None and known.next_offset > known.seen
        known.seen = known.next_offset
        unscored = Subject(topic=topic, partition=partition, aspect="not scored")
        if waiting <= MARKERS or advanced:
            known.waits_since = None
            # After a fail-over, a leader may report an earlier end for a moment: that nothing waits is not enough.
            scored = None if advanced else Source(topic, partition, known.next_offset)
            found.end("latency", unscored, "its transactions are scored again", known.event_time, scored)
        if waiting <= MARKERS:
            return
        if known.waits_since is None:
            known.waits_since = self._now
        # If the others stop too, it is a condition of the topic.
        others = max(each.at for (name, _), each in self._partitions.items() if name == topic)
        limit = self._rules.episodes.minute_ms * self._rules.episodes.open_after
        if others - known.waits_since < limit:
            return
        waited = self._now - known.waits_since
        found.conditions.append(
            Condition(
                "latency", unscored, known.next_offset,
                f"{waiting:,} transactions wait on partition {partition} of {topic}, and none of it was scored for "
                f"{seconds(waited)}, while others are scored",
                known.event_time, known.event_time, [Source(topic, partition, known.next_offset)],
                Affected(waiting, how="transactions that wait"), NO_ACTION,
                {"waiting": waiting, "waiting_s": waited / 1_000}, {"waiting_s": limit / 1_000},
                began=known.at,
            )
        )  # fmt: skip

    def _find_topic(self, topic: str, found: DetectedConditions) -> None:
        """A whole topic is silent, or has transactions that wait unscored: only time shows both."""
        places = [place for place in self._partitions if place[0] == topic]
        last = max(self._partitions[place].at for place in places)
        waiting = sum(self._waiting(place) for place in places)
        quiet_ms = self._now - last
        silent, unscored = Subject(topic=topic, aspect="silent"), Subject(topic=topic, aspect="not scored")
        event_time = max((self._partitions[p].event_time or 0 for p in places), default=0) or None
        first = [Source(*place, self._partitions[place].next_offset) for place in sorted(places)]
        start = sum(self._partitions[place].next_offset for place in places)
        # A minute is evaluated up to two minutes after its beginning.
        flows = quiet_ms < 2 * self._rules.episodes.minute_ms
        if flows:
            found.end("feed", silent, "transactions arrive again", event_time)
        if waiting <= MARKERS * len(places) and flows:
            found.end("latency", unscored, "transactions are scored again", event_time)
        if waiting <= MARKERS * len(places) and quiet_ms >= self._rules.silent_ms:
            why = f"no transaction arrives on {topic} for {seconds(quiet_ms)}"
            found.conditions.append(
                Condition(
                    "feed", silent, start, why, event_time, event_time, first, done=NO_ACTION,
                    statistics={"silent_s": quiet_ms / 1_000}, limits={"silent_s": self._rules.silent_ms / 1_000},
                    began=last,
                )
            )  # fmt: skip
        limit = self._rules.episodes.minute_ms * self._rules.episodes.open_after
        if waiting > MARKERS * len(places) and quiet_ms >= limit:
            why = f"{waiting:,} transactions wait on {topic}, and none was scored for {seconds(quiet_ms)}"
            found.conditions.append(
                Condition(
                    "latency", unscored, start, why, event_time, event_time, first,
                    Affected(waiting, how="transactions that wait"), NO_ACTION,
                    {"waiting": waiting, "waiting_s": quiet_ms / 1_000}, {"waiting_s": limit / 1_000},
                    began=last,
                )
            )  # fmt: skip

    def _dead_letters(self, minute: int, flows: Mapping[Place, Flow]) -> None:
        topics = {topic for topic, _ in flows}
        for topic in topics:
            of_topic = [flow for place, flow in flows.items() if place[0] == topic]
            total, dead = sum(f.total for f in of_topic), sum(f.dead for f in of_topic)
            episode = self._dead.setdefault(topic, Episode(self._rules.episodes))
            if total < self._rules.episodes.min_rows:
                continue
            event_time = None
            for flow in of_topic:
                event_time = newest(event_time, flow.event_time)
            bad = dead > self._rules.dead_letters * total
            if bad and episode.start is None:
                self._causes[topic], self._shares[topic] = DeadLetters(), (0, 0)
            episode.add(minute, Extent(dead, 0, event_time), bad=bad)
            if bad:
                before = self._shares[topic]
                self._shares[topic] = before[0] + dead, before[1] + total
        # Dead letters carry their causes in headers of their own records, whose minutes may differ slightly.
        for at, letters in self._minutes:
            for key, found in letters.items():
                episode_of = self._dead.get(str(key))
                if episode_of is None or episode_of.start is None or at < episode_of.start:
                    continue
                causes = self._causes[str(key)]
                causes.causes.update(found.causes)
                for cause, first in found.first.items():
                    known = causes.first.setdefault(cause, {})
                    for place, offset in first.items():
                        known[place] = min(offset, known.get(place, offset))
        self._minutes = [(at, letters) for at, letters in self._minutes if at > minute]

    def _find_dead_letters(self, topic: str, found: DetectedConditions) -> None:
        subject, episode = Subject(topic=topic, aspect="dead letters"), self._dead.get(topic)
        if episode is None or not episode.open:
            if episode is not None and episode.healthy:
                found.end("feed", subject, "the share of dead letters is below its limit", episode.extent.event_time)
            return
        assert episode.start is not None
        causes, (dead, total) = self._causes[topic], self._shares[topic]
        top = causes.causes.most_common(1)
        code, path = top[0][0] if top else ("", "")
        share = dead / total if total else 0.0
        main = f"; mostly {code} in field {path or '(whole record)'}" if code else ""
        listed = ", ".join(f"{n:,} {c} {p}".rstrip() for (c, p), n in causes.causes.most_common(3))
        found.conditions.append(
            Condition(
                "feed", subject, episode.start,
                f"{percent(share)} of the transactions on {topic} are dead letters{main}"
                + (f" ({listed})" if listed else ""),
                event_time=episode.extent.event_time,
                opened_event=episode.opened_event,
                first=Extent(first=causes.first.get((code, path), {})).sources,
                affected=Affected(episode.extent.transactions, how="transactions that could not be read"),
                done="dead letters are kept on their topic; no command",
                statistics={"share": share, "dead_letters": dead, "transactions": total},
                limits={"share": self._rules.dead_letters},
                details={"field": path or None, "code": code},
                began=episode.start,
            )
        )  # fmt: skip
