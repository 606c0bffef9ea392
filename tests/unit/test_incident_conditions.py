"""Conditions on topics: what opens an incident, what closes it, and what must not open one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from stream_scorer.errors import BrokerUnavailable
from stream_scorer.incidents.detector import DetectedConditions, Flow
from stream_scorer.incidents.feeds import FeedRules
from stream_scorer.incidents.labels import LabelDetector, LabelRules
from stream_scorer.incidents.log import IncidentLog
from stream_scorer.incidents.minutes import ByMinute, ClockWentBack, EpisodeRules
from stream_scorer.incidents.savings import SPAN_MS
from stream_scorer.incidents.service_levels import ServiceDetector
from stream_scorer.incidents.shares import UsualShare
from stream_scorer.incidents.signals import (
    INCIDENT_METRICS,
    LABEL_HISTORY_MS,
    Detectors,
    SignalRules,
    Signals,
    apply,
)
from stream_scorer.observability.metrics import Metrics
from stream_scorer.records import (
    Affected,
    Incident,
    MemberHealth,
    Outcome,
    PaneSummary,
    ScorerHealth,
    ScorerStatus,
    ScoreSummary,
    Source,
)
from tests.support.control import MemoryControlLog

MINUTE, HOUR = 60_000, 3_600_000
BEGIN = 1_700_000_040_000  # the beginning of a minute
BEGIN_HALF = BEGIN // 1_800_000 * 1_800_000  # the beginning of half an hour
# Event time lags behind record timestamps.
DELAY = 5_000
BOUNDS = [100.0, 200.0, 500.0]


def summary(
    partition: int, rows: int, minute: int, *, dead: int = 0, fallback: int = 0, late: int = 0, first: int | None = None
) -> ScoreSummary:
    """`rows` transactions of 10.00 each; offsets advance by 1,000 a minute."""
    first = minute * 1_000 if first is None else first
    at = BEGIN + minute * MINUTE - DELAY - late
    pane = PaneSummary(
        at // HOUR * HOUR, rows, 0, fallback, fallback, {"approve": rows}, {"approve": 1_000 * rows}, {}, {}, {}, [], {}
    )
    return ScoreSummary(
        "cards", "7", "champion", HOUR, "transactions", partition, first, first + rows + dead, dead,
        [pane] if rows else [], 3, {}, at if rows else None,
    )  # fmt: skip


def status(minute: int, latency: list[int], members: list[MemberHealth], instance: str = "one") -> ScorerStatus:
    health = ScorerHealth(BOUNDS, latency, members)
    return ScorerStatus(instance, "g", "cards", ["7"], 3, 3, "", BEGIN + minute * MINUTE, [], health)


def outcome(minute: int, source: str = "review") -> Outcome:
    at = BEGIN + minute * MINUTE
    return Outcome(
        f"e{minute}", at, at, "7", "champion", "p", "review", 0, 100, "fraud", None, source, None, at, 0, "cards"
    )


class Desk:
    """Detectors that report to a log in memory, minute by minute."""

    def __init__(self, rules: SignalRules | None = None) -> None:
        self.incidents = MemoryControlLog()
        self.detectors = Detectors(rules or SignalRules())
        self.log = IncidentLog(self.incidents)
        self.found = DetectedConditions()

    def run(self, minutes: Iterable[int], add: Callable[[int, int], None]) -> None:
        """Call `add(minute, record timestamp)` and evaluate, for each of `minutes`."""
        for minute in minutes:
            at = BEGIN + minute * MINUTE
            add(minute, at + 1_000)
            self.evaluate(at + MINUTE + 11_000)

    def evaluate(self, now: int) -> None:
        self.found = self.detectors.advance(now)
        apply(self.found, self.log, now)

    @property
    def newest(self) -> list[Incident]:
        return list(self.log.read().newest.values())

    @property
    def records(self) -> list[Incident]:
        return [msgspec.json.decode(value, type=Incident) for value in self.incidents.records]


def usual(desk: Desk, partitions: Iterable[int] = (0, 1, 2)) -> Callable[[int, int], None]:
    def add(minute: int, at: int) -> None:
        for partition in partitions:
            desk.detectors.add_summary(summary(partition, 100, minute), at)

    return add


def test_two_hours_of_usual_traffic_open_nothing() -> None:
    desk = Desk()
    desk.run(range(120), usual(desk))
    assert desk.records == []


def test_a_partition_that_is_silent_while_the_others_go_on_is_one_incident_until_it_delivers_again() -> None:
    desk = Desk()
    desk.run(range(30), usual(desk))
    desk.run(range(30, 40), usual(desk, (0, 1)))
    (incident,) = desk.newest
    assert incident.id == "feed-transactions-partition-2-silent-29100"
    assert (incident.kind, incident.topic, incident.partition, incident.aspect) == ("feed", "transactions", 2, "silent")
    assert incident.first == [Source("transactions", 2, 29_100)]
    # Detected after two minutes, in which it usually delivers 100 each.
    assert incident.opened == BEGIN + 31 * MINUTE + MINUTE + 11_000
    assert incident.opened_event == BEGIN + 29 * MINUTE - DELAY
    assert incident.affected is not None and incident.affected.transactions == pytest.approx(900, rel=0.2)
    assert incident.affected.money == pytest.approx(1_000 * incident.affected.transactions, rel=0.01)
    assert incident.due is None and "no command" in incident.done
    desk.run(range(40, 50), usual(desk))
    (incident,) = desk.newest
    assert incident.closed == BEGIN + 44 * MINUTE + MINUTE + 11_000
    assert incident.ended == "transactions arrive again"


def test_a_healthy_sparse_partition_is_not_silent_and_one_that_stops_is() -> None:
    """Partition 3 delivers once per hour."""
    desk = Desk()

    def sparse(minute: int, at: int) -> None:
        usual(desk)(minute, at)
        if minute % 60 == 0:
            desk.detectors.add_summary(summary(3, 1, minute), at)

    desk.run(range(500), sparse)
    assert desk.records == []
    # It learns a new share: the condition ends.
    desk = Desk()
    desk.run(range(30), usual(desk, range(4)))
    desk.run(range(30, 40), usual(desk))
    assert [incident.subject for incident in desk.log.open()] == ["transactions, partition 3, silent"]
    for hour in range(1, 33):
        for minute in range(60 * hour - 20, 60 * hour + 40):
            sparse(minute, BEGIN + minute * MINUTE)
        desk.evaluate(BEGIN + (60 * hour + 40) * MINUTE + 11_000)
    assert desk.log.open() == []


@pytest.mark.parametrize("per_minute", [0.02, 0.2, 2.0, 20.0])
def test_the_pauses_of_a_random_partition_are_silence_as_rarely_as_claimed(per_minute: float) -> None:
    """Here one pause in e^4 may be silence; one in e^50 cannot be simulated."""
    rng, evidence, silent, pauses = np.random.default_rng(5), 4.0, 0, 0
    for _ in range(20):
        share, reported = UsualShare(evidence), False
        for minute, rows in enumerate(rng.poisson(per_minute, 2_000).tolist()):
            if rows:
                share.add_delivery(BEGIN + minute * MINUTE, rows, 100)
                pauses, reported = pauses + rows, False
            else:
                share.add_silence(100, waits=False)
                silent += not reported and share.missed >= share.limit
                reported = reported or share.missed >= share.limit
    assert silent <= pauses * np.exp(-evidence) + 3 * np.sqrt(pauses * np.exp(-evidence))
    assert (silent > 0) == (per_minute < 20)


def test_a_person_closes_the_incident_of_a_deleted_feed_and_a_new_silence_is_a_new_one() -> None:
    desk = Desk()
    desk.run(range(30), usual(desk))
    desk.run(range(30, 40), usual(desk, (0, 1)))
    (opened,) = desk.log.open()
    desk.log.close_by(opened.id, "ann", "the feed is deleted", BEGIN + 40 * MINUTE)
    desk.run(range(40, 60), usual(desk, (0, 1)))
    # After a restart, too.
    again = Desk()
    again.incidents.records, again.log = desk.incidents.records, IncidentLog(MemoryControlLog(desk.incidents.records))
    for minute in range(60):
        usual(again, (0, 1, 2) if minute < 30 else (0, 1))(minute, BEGIN + minute * MINUTE)
    again.evaluate(BEGIN + 60 * MINUTE + 11_000)
    assert "silent" in again.found.conditions[0].subject.text
    assert again.log.open() == []
    again.run(range(60, 70), usual(again))
    again.run(range(70, 80), usual(again, (0, 1)))
    (new,) = again.log.open()
    assert new.id != opened.id and new.subject == opened.subject


@pytest.mark.parametrize("lasts", [True, False])
def test_an_error_share_that_a_person_closed_is_not_reopened_by_a_restart_that_reads_less(lasts: bool) -> None:
    def failing(desk: Desk) -> Callable[[int, int], None]:
        def add(minute: int, at: int) -> None:
            desk.detectors.add_summary(summary(0, 1_000, minute, fallback=100), at)

        return add

    desk = Desk()
    desk.run(range(10), failing(desk))
    (opened,) = desk.log.open()
    desk.log.close_by(opened.id, "ann", "known", BEGIN + 10 * MINUTE)
    again = Desk()
    again.incidents.records, again.log = desk.incidents.records, IncidentLog(MemoryControlLog(desk.incidents.records))
    # It reads from a later minute on than the one in which the condition began.
    again.run(range(5, 15), failing(again) if lasts else usual(again, [0]))
    again.run(range(15, 20), failing(again))
    assert [incident.kind for incident in again.log.open()] == ([] if lasts else ["errors"])


def test_all_partitions_that_slow_down_together_are_not_silent() -> None:
    desk = Desk()
    desk.run(range(30), usual(desk))

    def night(minute: int, at: int) -> None:
        desk.detectors.add_summary(summary(minute % 3, 2, minute), at)

    desk.run(range(30, 60), night)
    assert desk.records == []


def test_a_topic_without_transactions_is_silent_but_not_if_they_wait_for_scorers() -> None:
    desk = Desk()
    desk.run(range(20), usual(desk))
    desk.detectors.feeds.set_ends({("transactions", p): 19_100 for p in range(3)})
    desk.run(range(20, 33), lambda minute, at: None)
    assert desk.records == []
    desk.run(range(33, 40), lambda minute, at: None)
    (incident,) = desk.newest
    assert (incident.kind, incident.subject) == ("feed", "transactions, silent")
    desk.run(range(40, 43), usual(desk))
    assert desk.newest[0].closed is not None
    desk.detectors.feeds.set_ends({("transactions", p): 42_900 for p in range(3)})
    desk.run(range(43, 47), lambda minute, at: None)
    waiting = desk.newest[-1]
    assert (waiting.kind, waiting.subject, waiting.closed) == ("latency", "transactions, not scored", None)
    assert waiting.affected is not None and waiting.affected.transactions == 3 * 800


def test_a_partition_that_waits_unscored_while_others_are_scored_is_one_incident() -> None:
    desk = Desk()

    def ends(waiting: int) -> Callable[[int, int], None]:
        def add(minute: int, at: int) -> None:
            usual(desk, (0, 1))(minute, at)
            scored = {("transactions", p): minute * 1_000 + 100 for p in (0, 1)}
            desk.detectors.feeds.set_ends(scored | {("transactions", 2): 9_100 + waiting})

        return add

    desk.run(range(10), usual(desk))
    desk.run(range(10, 40), ends(0))  # at night it has no traffic
    assert [incident.aspect for incident in desk.newest] == ["silent"]
    desk.run([40, 41], ends(1_000))
    assert len(desk.newest) == 1
    desk.run(range(42, 50), ends(30_000))
    incident = desk.newest[-1]
    assert (incident.kind, incident.subject, incident.closed) == (
        "latency", "transactions, partition 2, not scored", None,
    )  # fmt: skip
    assert (incident.id, incident.first) == (
        "latency-transactions-partition-2-not-scored-9100", [Source("transactions", 2, 9_100)],
    )  # fmt: skip
    assert incident.opened == BEGIN + 45 * MINUTE + 11_000 and "transactions wait on partition 2" in incident.why
    assert len(desk.newest) == 2
    desk.detectors.feeds.set_ends({})  # without a leader nothing is known
    desk.evaluate(BEGIN + 50 * MINUTE + 11_000)
    assert desk.newest[-1].closed is None

    def again(minute: int, at: int) -> None:
        desk.detectors.add_summary(summary(2, 100, minute, first=9_100), at)
        ends(30_000)(minute, at)

    desk.run([50], again)
    assert desk.newest[-1].ended == "its transactions are scored again"


def test_an_earlier_end_for_a_moment_does_not_close_the_incident_of_a_partition_that_waits() -> None:
    desk = Desk()

    def waits(minute: int, at: int) -> None:
        usual(desk, (0, 1))(minute, at)
        ends = {("transactions", p): minute * 1_000 + 100 for p in (0, 1)}
        desk.detectors.feeds.set_ends(ends | {("transactions", 2): 9_100 if minute == 30 else 90_000})

    desk.run(range(10), usual(desk))
    desk.run(range(10, 40), waits)
    (incident,) = desk.newest
    assert (incident.subject, incident.closed) == ("transactions, partition 2, not scored", None)
    # Another monitor starts when everything is scored.
    again = Desk()
    again.log = desk.log
    again.run([40], lambda minute, at: again.detectors.add_summary(summary(2, 100, minute, first=89_900), at))
    assert again.log.open() != []  # it does not know the end
    again.run([41], usual(again, (0, 1)))
    again.detectors.feeds.set_ends({("transactions", 2): 90_000})
    again.evaluate(BEGIN + 43 * MINUTE + 11_000)
    assert desk.newest[0].ended == "its transactions are scored again"


def test_a_record_with_a_time_a_day_ahead_hides_no_silence_of_a_topic() -> None:
    desk = Desk()

    def ahead(minute: int, at: int) -> None:
        usual(desk)(minute, at)
        if minute == 20:
            desk.detectors.add_summary(summary(1, 100, minute), at + 24 * HOUR)

    desk.run(range(30), ahead)
    desk.run(range(30, 50), lambda minute, at: None)
    assert [(i.subject, i.opened) for i in desk.newest] == [("transactions, silent", BEGIN + 44 * MINUTE + 11_000)]


def test_a_partition_that_waits_unscored_is_found_soon_after_its_topic_was_created_again() -> None:
    desk = Desk()
    desk.run(range(10), usual(desk))
    ends = {("transactions", 0): 9_100, ("transactions", 1): 9_100}

    def again(minute: int, at: int) -> None:
        for partition in (0, 1):
            desk.detectors.add_summary(summary(partition, 100, minute, first=(minute - 10) * 100), at)
        scored = dict.fromkeys(ends, (minute - 9) * 100)
        desk.detectors.feeds.set_ends(scored | {("transactions", 2): 500})

    desk.detectors.feeds.set_ends({("transactions", 2): 500} | ends)  # an earlier end for a moment changes nothing
    desk.evaluate(BEGIN + 10 * MINUTE + 11_000)
    desk.detectors.feeds.set_ends({("transactions", 2): 9_100} | ends)
    desk.evaluate(BEGIN + 10 * MINUTE + 16_000)
    desk.run(range(10, 14), again)
    assert [each.subject for each in desk.newest if each.kind == "latency"] == []
    desk.run(range(14, 17), again)
    (incident,) = [each for each in desk.newest if each.kind == "latency"]
    assert (incident.subject, incident.first) == (
        "transactions, partition 2, not scored", [Source("transactions", 2, 0)],
    )  # fmt: skip


def test_partitions_that_all_stop_are_one_incident_of_the_topic() -> None:
    desk = Desk()
    desk.run(range(10), usual(desk))
    desk.detectors.feeds.set_ends({("transactions", p): 50_000 for p in range(3)})
    for tick in range(0, 600, 5):
        desk.evaluate(BEGIN + 10 * MINUTE + 1_000 * tick)
    assert [incident.subject for incident in desk.newest] == ["transactions, not scored"]


def test_a_partition_whose_event_times_fall_behind_the_others_is_late() -> None:
    desk = Desk(SignalRules(feeds=FeedRules(late_ms=5 * MINUTE)))

    def late(by: int) -> Callable[[int, int], None]:
        def add(minute: int, at: int) -> None:
            for partition in range(3):
                # It is usually a minute behind.
                desk.detectors.add_summary(summary(partition, 50, minute, late=by if partition == 1 else 0), at)

        return add

    desk.run(range(20), late(MINUTE))
    desk.run(range(20, 25), late(5 * MINUTE))
    assert desk.records == []
    desk.run(range(25, 30), late(10 * MINUTE))
    (incident,) = desk.newest
    assert (incident.subject, incident.first) == (
        "transactions, partition 1, late",
        [Source("transactions", 1, 25_000)],
    )
    assert "10 minutes behind" in incident.why
    desk.run(range(30, 36), late(MINUTE))
    assert desk.newest[0].closed is not None


def test_dead_letters_above_their_share_name_code_and_field() -> None:
    desk = Desk()
    desk.run(range(10), usual(desk))

    def broken(minute: int, at: int) -> None:
        desk.detectors.add_summary(summary(2, 20, minute), at)
        for partition in (0, 1):
            desk.detectors.add_summary(summary(partition, 90, minute, dead=10), at)
            for letter in range(10):
                place = Source("transactions", partition, minute * 1_000 + 90 + letter)
                code, path = ("type", "amount") if letter else ("missing", "terminal_id")
                desk.detectors.feeds.add_dead_letter(code, path, place, at)

    desk.run(range(10, 14), broken)
    (incident,) = desk.newest
    assert (incident.subject, incident.code, incident.field) == ("transactions, dead letters", "type", "amount")
    assert incident.first == [Source("transactions", p, 10_091) for p in (0, 1)]
    assert "9.09 % of the transactions on transactions are dead letters; mostly type in field amount" in incident.why
    assert incident.affected is not None and incident.affected.transactions >= 40
    desk.run(range(14, 20), usual(desk))
    assert [i.closed is not None for i in desk.newest] == [True]


def test_labels_of_one_source_that_stop_are_an_incident_of_that_source() -> None:
    desk = Desk(SignalRules(labels=LabelRules(silent_ms=30 * MINUTE)))
    add = usual(desk)

    def labelled(*sources: str) -> Callable[[int, int], None]:
        def both(minute: int, at: int) -> None:
            add(minute, at)
            for source in sources:
                if minute % 4 == 0:
                    for _ in range(20):
                        desk.detectors.labels.add_outcome(outcome(minute, source), at)

        return both

    desk.run(range(100), labelled("review", "chargeback"))
    desk.run(range(100, 126), labelled("review"))
    assert desk.records == []
    desk.run(range(126, 140), labelled("review"))
    (incident,) = desk.newest
    assert (incident.kind, incident.source, incident.closed) == ("labels", "chargeback", None)
    assert incident.id == f"labels-source-chargeback-{BEGIN + 96 * MINUTE}"
    desk.run(range(140, 144), labelled("review", "chargeback"))
    assert desk.newest[0].ended == "labels arrive again"


def test_labels_do_not_stop_where_there_are_no_transactions() -> None:
    desk = Desk(SignalRules(labels=LabelRules(silent_ms=30 * MINUTE)))
    add = usual(desk)

    def labelled(minute: int, at: int) -> None:
        add(minute, at)
        desk.detectors.labels.add_outcome(outcome(minute), at)

    desk.run(range(120), labelled)
    desk.run(range(120, 400), lambda minute, at: None)
    desk.run(range(400, 410), add)
    assert [i.kind for i in desk.newest if i.kind == "labels"] == []


def _labelled(name: str, minute: int) -> int:
    """Labels of a source in a minute; minute 0 is a Monday at midnight."""
    day, of_day = divmod(minute, 24 * 60)
    if name == "file":
        return 300 * (of_day == 6 * 60)
    return 5 * (8 * 60 <= of_day < 18 * 60 and day % 7 < 5)


@pytest.mark.parametrize(("name", "stops_after_days"), [("file", 10), ("office", 12)])
def test_nights_weekends_and_daily_files_are_usual_pauses_of_a_source(name: str, stops_after_days: int) -> None:
    """Minutes of 30 minutes. A monitor that starts later decides as one that always ran."""
    step, stop = 30, stops_after_days * 24 * 60
    rules = LabelRules(episodes=EpisodeRules(minute_ms=step * MINUTE))

    def opened(start: int, until: int) -> list[tuple[str, int]]:
        detector, found = LabelDetector(rules), []
        for minute in range(max(start - LABEL_HISTORY_MS // MINUTE, 0), until, step):
            at = BEGIN_HALF + minute * MINUTE
            if minute >= start - 60:
                detector.add_summary(summary(0, 100, 0), at)
            for _ in range(_labelled(name, minute) if minute < stop else 0):
                detector.add_outcome(outcome(minute), at)
            if minute >= start:
                found += [(each.why, minute) for each in detector.advance(at + step * MINUTE + 11_000).conditions]
        return found

    assert opened(0, stop) == []
    late = stop + 9 * 24 * 60
    always, restarted = opened(0, late), opened(late - 120, late)
    assert always and always[-2:] == restarted[-2:]
    assert opened(always[0][1] - 60, always[0][1]) == []


def test_a_pause_that_opened_an_incident_is_learnt() -> None:
    detector, at = LabelDetector(LabelRules(silent_ms=30 * MINUTE)), BEGIN
    lengths = []
    for pause in (1, 60, 100):
        for _ in range(100):
            at += MINUTE
            detector.add_summary(summary(0, 100, 0), at)
            detector.add_outcome(outcome(0), at)
        found = []
        for _ in range(pause):
            at += MINUTE
            detector.add_summary(summary(0, 100, 0), at)
            found += detector.advance(at + 71_000).conditions
        lengths.append(bool(found))
    assert lengths == [False, True, False]


class Scorer:
    """A scorer's cumulative counts."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.latency, self.batches, self.failed = [0, 0, 0, 0], 0, 0

    def minute(
        self, fast: int, slow: int, failed: int = 0, breaker: int = 0, fallback: int = 0
    ) -> Callable[[int, int], None]:
        def add(minute: int, at: int) -> None:
            self.latency = [self.latency[0] + fast, 0, self.latency[2] + slow, 0]
            self.batches, self.failed = self.batches + 100, self.failed + failed
            members = [MemberHealth("gbdt", self.batches, self.failed, breaker), MemberHealth("nn", self.batches, 0, 0)]
            self.desk.detectors.services.add_status(status(minute, list(self.latency), members), at)
            self.desk.detectors.add_summary(summary(0, fast + slow, minute, fallback=fallback), at)

        return add


def test_a_scorer_without_a_status_for_an_hour_is_forgotten() -> None:
    detector = ServiceDetector()
    for minute in range(180):
        detector.add_status(status(minute, [0] * (len(BOUNDS) + 1), [], f"pod-{minute}"), BEGIN + minute * MINUTE)
    assert list(detector._before) == [f"pod-{minute}" for minute in range(119, 180)]


def test_latency_above_its_budget_is_an_incident_that_ends() -> None:
    desk = Desk()
    scorer = Scorer(desk)
    desk.run(range(10), scorer.minute(990, 10))
    desk.run([10], scorer.minute(500, 500))
    desk.run(range(11, 15), scorer.minute(990, 10))
    assert desk.records == []
    desk.run(range(15, 20), scorer.minute(900, 100))
    (incident,) = desk.newest
    assert (incident.kind, incident.ensemble, incident.member) == ("latency", "cards", None)
    # Of 1,000 transactions, 100 are between 200 and 500 ms: the P95 is in the middle of that bin.
    assert incident.statistics["p95_ms"] == 350.0
    assert incident.limits == {"p95_ms": 200.0}
    last = [i for i in desk.records if i.id == incident.id][-1]
    assert last.affected == Affected(500, money=500_000, how=last.affected.how if last.affected else "")
    assert incident.first == [Source("transactions", 0, 15_000)]
    desk.run(range(20, 26), scorer.minute(990, 10))
    assert [i.closed is not None for i in desk.newest] == [True]


def test_a_scorer_that_restarts_begins_its_counts_anew() -> None:
    desk = Desk()
    scorer = Scorer(desk)
    desk.run(range(5), scorer.minute(0, 10_000))
    for restart in range(5, 30, 5):
        scorer.latency, scorer.batches, scorer.failed = [0, 0, 0, 0], 0, 0
        desk.run(range(restart, restart + 5), scorer.minute(1_000, 10))
    assert all(i.closed is not None for i in desk.newest)
    assert len(desk.newest) == 1


def test_transactions_without_a_score_of_the_model_are_errors() -> None:
    desk = Desk()
    scorer = Scorer(desk)
    desk.run(range(5), scorer.minute(1_000, 0, fallback=10))
    assert desk.records == []
    desk.run(range(5, 8), scorer.minute(1_000, 0, fallback=30))
    (incident,) = desk.newest
    assert (incident.kind, incident.subject, incident.statistics["share"]) == ("errors", "cards", 0.03)


@pytest.mark.parametrize(("failed", "breaker", "kind"), [(5, 0, "errors"), (90, 2, "breaker")])
def test_a_member_that_fails_or_is_not_called_is_one_incident(failed: int, breaker: int, kind: str) -> None:
    desk = Desk()
    scorer = Scorer(desk)
    desk.run(range(5), scorer.minute(1_000, 0))
    desk.run(range(5, 10), scorer.minute(1_000, 0, failed, breaker))
    (incident,) = desk.newest
    assert (incident.kind, incident.subject, incident.member) == (kind, "member gbdt of cards", "gbdt")
    last = desk.records[-1]
    assert last.affected is not None and last.affected.transactions == 5 * 10 * failed
    desk.run(range(10, 17), scorer.minute(1_000, 0))
    assert [i.closed is not None for i in desk.newest] == [True]


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(("failed", "breaker"), [(5, 0), (90, 2)])
def test_the_incident_of_a_member_ends_when_the_member_leaves_the_lineup(
    failed: int, breaker: int, *, restart: bool
) -> None:
    desk = Desk()

    def add(minute: int, at: int) -> None:
        calls = min(minute, 9)  # the counts of a process stay when it no longer calls the member
        members = [MemberHealth("gbdt", 100 * calls, failed * calls, breaker), MemberHealth("xgb", 100 * minute, 0, 0)]
        again = restart and minute >= 10
        desk.detectors.services.add_status(
            status(minute, [0, 0, 0, 0], members[1:] if again else members, "two" if again else "one"), at
        )
        desk.detectors.add_summary(summary(0, 1_000, minute), at)

    desk.run(range(1, 10), add)
    assert [i.closed for i in desk.newest] == [None]
    desk.run(range(10, 20), add)
    assert [i.ended for i in desk.newest] == ["the member has left the lineup"]


def test_a_breaker_of_a_member_that_only_a_shadow_uses_is_no_incident() -> None:
    """Its failures are not counted in the status."""
    desk = Desk()

    def add(minute: int, at: int) -> None:
        members = [MemberHealth("gbdt", 100 * minute, 0, 0), MemberHealth("gbdt@9", 100 * minute, 0, 2)]
        desk.detectors.services.add_status(status(minute, [0, 0, 0, 0], members), at)
        desk.detectors.add_summary(summary(0, 1_000, minute), at)

    desk.run(range(10), add)
    assert desk.records == []


def test_minutes_without_micro_batches_do_not_close_the_incident_of_a_breaker() -> None:
    desk, counts = Desk(), [0, 0]

    def add(minute: int, at: int) -> None:
        if minute < 10 or minute % 10 < 3:
            counts[0] += 100
            counts[1] += 100 * (minute >= 10)
            desk.detectors.add_summary(summary(0, 200, minute), at)
        health = MemberHealth("gbdt", *counts, 2 if minute >= 10 else 0)
        desk.detectors.services.add_status(status(minute, [0, 0, 0, 0], [health]), at)

    desk.run(range(40), add)
    assert [(i.kind, i.closed) for i in desk.newest] == [("breaker", None)]


def test_a_restart_continues_the_open_incident_and_closes_it() -> None:
    desk = Desk()
    desk.run(range(30), usual(desk))
    desk.run(range(30, 40), usual(desk, (0, 1)))
    again = Desk()
    again.incidents.records, again.log = desk.incidents.records, IncidentLog(MemoryControlLog(desk.incidents.records))
    # It reads again from before the incident, and evaluates only at the end.
    for minute in range(45):
        usual(again, (0, 1, 2) if minute < 30 else (0, 1))(minute, BEGIN + minute * MINUTE)
    again.evaluate(BEGIN + 45 * MINUTE + 11_000)
    assert [(i.id, i.closed) for i in again.newest] == [("feed-transactions-partition-2-silent-29100", None)]
    again.run(range(46, 54), usual(again))
    assert [i.closed is not None for i in again.newest] == [True]


def test_what_the_stop_of_a_canary_saved_is_its_share() -> None:
    desk = Desk()
    closed = Incident(
        id="cards-2", ensemble="cards", version="8", baseline="7", since=2, opened=1, why="more", rows=10_000, both=50,
        candidate_only=60, baseline_only=10, due="stop", closed=2, ended_by=3, command="stop",
    )  # fmt: skip
    desk.incidents.records.append(msgspec.json.encode(closed))
    savings = desk.detectors.savings
    for version, rows in (("7", 900), ("8", 100)):  # before the monitor reads the incident
        savings.add_summary(msgspec.structs.replace(summary(0, rows, 0), version=version, control_offset=2))
    savings.update(desk.log.read(), 0)
    for minute in range(SPAN_MS // MINUTE + 2):
        savings.add_summary(summary(0, 1_000, minute))
        savings.settle(desk.log)
    saved = desk.records[-1].saved
    # 10 % of the transactions, and 5 more alerts per 1,000 of them.
    assert saved is not None and (saved.transactions, saved.alerts) == (6_100, 30)
    assert "10 %, the share of the canary, of 61,000 transactions" in saved.how


def test_what_a_rollback_saved_is_counted_for_an_hour_of_event_time() -> None:
    desk = Desk()
    closed = Incident(
        id="cards-2", ensemble="cards", version="8", baseline="7", since=2, opened=1, why="more", rows=10_000, both=50,
        candidate_only=60, baseline_only=10, due="rollback", closed=2, ended_by=3, command="rollback",
    )  # fmt: skip
    desk.incidents.records.append(msgspec.json.encode(closed))
    desk.incidents.records.append(msgspec.json.encode(msgspec.structs.replace(closed, id="cards-9", command="promote")))
    savings = desk.detectors.savings
    savings.update(desk.log.read(), 0)
    before = msgspec.structs.replace(summary(0, 100, 0), control_offset=2)
    savings.add_summary(before)
    for minute in range(SPAN_MS // MINUTE + 1):
        savings.add_summary(summary(0, 100, minute))
        savings.settle(desk.log)
    assert len(desk.records) == 2
    savings.add_summary(summary(0, 100, SPAN_MS // MINUTE + 1))
    savings.settle(desk.log)
    found = desk.records[-1]
    assert found.id == "cards-2" and found.saved is not None
    # 5 more alerts per 1,000 transactions.
    assert (found.saved.transactions, found.saved.alerts) == (6_100, 30)
    assert "+5.00 alerts per 1,000 transactions" in found.saved.how


class Follower:
    """A topic that always has a record. Its backlog, and later its end, are a hundred polls away."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.polls, self.end = clock, 0, 100

    def poll(self, _max_records: int, timeout_s: float) -> list[SimpleNamespace]:
        self.polls += 1
        self.clock.now_s += timeout_s / 2
        return [SimpleNamespace(partition=0, offset=10_000 + self.polls, value=None, timestamp_ms=BEGIN, headers=())]

    def caught_up(self, **_: bool) -> bool:
        return self.polls >= self.end

    def known_ends(self) -> dict[int, int]:
        return {0: self.polls + 50}

    def passed(self, ends: Mapping[int, int], *, ask: bool, **_: bool) -> bool:
        return self.polls >= ends[0]

    def last_before_start(self) -> list[SimpleNamespace]:
        return []

    def close(self) -> None:
        pass


class Clock:
    now_s = BEGIN / 1_000

    def now_ms(self) -> int:
        return int(self.now_s * 1_000)

    def monotonic(self) -> float:
        return self.now_s


def test_conditions_are_evaluated_when_what_was_there_is_read_and_not_a_part_of_it() -> None:
    clock, stop = Clock(), threading.Event()
    topics: list[Follower] = []
    evaluated: list[set[int]] = []

    def follow(_topic: str, _since: int) -> Follower:
        topics.append(Follower(clock))
        return topics[-1]

    def on_ready() -> None:
        evaluated.append({topic.polls for topic in topics})
        if len(evaluated) == 2:
            stop.set()

    signals = Signals(IncidentLog(MemoryControlLog()), follow, dict, clock, Metrics(INCIDENT_METRICS), SignalRules())
    signals.run(stop, on_ready)
    # The backlog of 100 and the end that was known then; 5 s later, 20 polls of the first topic, the end known then.
    assert evaluated == [{151}, {221}]


def test_a_backlog_of_which_nothing_more_comes_is_not_evaluated() -> None:
    clock, incidents = Clock(), MemoryControlLog()

    class Stuck(Idle):
        def caught_up(self, **_: bool) -> bool:
            return False

    signals = Signals(
        IncidentLog(incidents), lambda name, _since: Stuck(clock, -90, name), lambda: {("transactions", 0): 9}, clock,
        Metrics(INCIDENT_METRICS), SignalRules(),
    )  # fmt: skip
    with pytest.raises(BrokerUnavailable, match="no more records of score_summaries"):
        signals.run(threading.Event())
    assert incidents.records == []


@pytest.mark.parametrize(("hours", "reads_back_hours"), [(5, 6), (25, 1)])
def test_a_start_reads_from_before_what_a_person_closed_in_the_last_day(hours: int, reads_back_hours: int) -> None:
    clock, starts = Clock(), {}
    log = IncidentLog(MemoryControlLog())
    log._log.append("", msgspec.json.encode(Incident(id="feed-1", ensemble="", opened=1, why="", kind="feed")))
    log.close_by("feed-1", "ann", "gone", BEGIN - hours * HOUR)

    def follow(topic: str, since: int) -> Follower:
        starts[topic] = since
        return Follower(clock)

    Signals(log, follow, dict, clock, Metrics(INCIDENT_METRICS), SignalRules())._open()
    assert starts["score_summaries"] == BEGIN - reads_back_hours * HOUR


@pytest.mark.parametrize(("days", "reads_back_hours"), [(2, 49), (9, 1)])
def test_savings_that_a_start_can_no_longer_count_are_no_longer_wanted(days: int, reads_back_hours: int) -> None:
    clock, starts, log = Clock(), {}, IncidentLog(MemoryControlLog())
    closed = Incident(
        id="cards-2", ensemble="cards", version="8", baseline="7",
        since=2, opened=1, why="more", rows=10, candidate_only=6,
        due="rollback", closed=BEGIN - 24 * days * HOUR, ended_by=3, command="rollback",
    )  # fmt: skip
    log._log.append("", msgspec.json.encode(closed))

    def follow(topic: str, since: int) -> Follower:
        starts[topic] = since
        return Follower(clock)

    signals = Signals(log, follow, dict, clock, Metrics(INCIDENT_METRICS), SignalRules())
    signals._open()
    assert starts["score_summaries"] == BEGIN - reads_back_hours * HOUR
    # The hours after a start are not the one after an old command.
    for minute in range(SPAN_MS // MINUTE + 2):
        signals._detectors.add_summary(summary(0, 100, minute), BEGIN + minute * MINUTE + 1_000)
    signals.evaluate()
    assert (log.read().newest["cards-2"].saved is None) == (days > 8)


class Idle(Follower):
    """A topic without a record since the start; each of its three partitions has one before that."""

    def __init__(self, clock: Clock, minute: int, topic: str) -> None:
        super().__init__(clock)
        self.minute, self.summaries = minute, topic == "score_summaries"

    def poll(self, _max_records: int, timeout_s: float) -> list[SimpleNamespace]:
        self.clock.now_s += timeout_s
        return []

    def caught_up(self, **_: bool) -> bool:
        return True

    def passed(self, ends: Mapping[int, int], *, ask: bool, **_: bool) -> bool:
        return True

    def last_before_start(self) -> list[SimpleNamespace]:
        assert self.summaries
        values = [msgspec.json.encode(summary(p, 100, self.minute)) for p in range(3)]
        at = BEGIN + self.minute * MINUTE
        return [SimpleNamespace(partition=p, offset=1, value=v, timestamp_ms=at) for p, v in enumerate(values)]


@pytest.mark.parametrize(
    ("minute", "topic", "waiting", "subjects"),
    [
        (-90, "transactions", 30_000, ["transactions, not scored"]),
        (-90, "transactions", 0, ["transactions, silent"]),
        (-90, "other", 30_000, []),
        (-9 * 24 * 60, "transactions", 30_000, []),
    ],
)
def test_a_start_knows_what_stopped_before_the_hour_that_it_reads(
    minute: int, topic: str, waiting: int, subjects: list[str]
) -> None:
    clock, incidents = Clock(), MemoryControlLog()
    scored = minute * 1_000 + 100

    def ends() -> dict[tuple[str, int], int]:
        return {(topic, p): scored + waiting for p in range(3)}

    signals = Signals(
        IncidentLog(incidents), lambda name, _since: Idle(clock, minute, name), ends, clock, Metrics(INCIDENT_METRICS),
        SignalRules(),
    )  # fmt: skip
    stop = threading.Event()
    signals.run(stop, stop.set)
    assert [msgspec.json.decode(value, type=Incident).subject for value in incidents.records] == subjects


def test_a_record_with_a_time_long_ago_gives_no_millions_of_minutes() -> None:
    minutes: ByMinute[Flow] = ByMinute(EpisodeRules(), Flow)
    minutes.at(0, "x")
    minutes.at(BEGIN, "x")
    found = list(islice(minutes.complete(BEGIN + 2 * MINUTE), 30_000))
    assert len(found) <= 19 * 24 * 60 + 1
    assert [at for at, values in found if values] == [BEGIN]


def test_a_clock_that_was_ahead_ends_the_detectors_and_a_start_detects_again() -> None:
    desk = Desk()
    desk.run(range(30), usual(desk))
    desk.evaluate(BEGIN + 30 * MINUTE - 30_000)  # a correction by seconds is none
    desk.evaluate(BEGIN + 30 * MINUTE + 24 * HOUR)
    with pytest.raises(ClockWentBack, match="went back by at least 1437 minutes"):
        desk.evaluate(BEGIN + 31 * MINUTE + 11_000)
    desk.detectors = Detectors(SignalRules())
    desk.run(range(31), usual(desk))
    desk.run(range(31, 41), usual(desk, (0, 1)))
    assert [incident.subject for incident in desk.log.open()] == ["transactions, partition 2, silent"]


def test_hundreds_of_partitions_take_little_time_per_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work for partitions that deliver grows with their number, not with its square."""
    desk, reads = Desk(), 0
    total = Flow.total.fget
    assert total is not None

    def counted(flow: Flow) -> int:
        nonlocal reads
        reads += 1
        return total(flow)

    monkeypatch.setattr(Flow, "total", property(counted))
    desk.run(range(2), usual(desk, range(500)))
    assert 0 < reads < 20 * 500
