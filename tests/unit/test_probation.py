"""The verdict counts cards and names the member; missing data leads to nothing; the watch acts on it once."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import random
import threading
from collections.abc import Sequence

import msgspec
import pytest
from msgspec.structs import replace

from stream_scorer.cli.formatting import verdict_facts
from stream_scorer.control import liveness
from stream_scorer.control.commands import catch_up, submit
from stream_scorer.control.incidents import Incidents, condition_of
from stream_scorer.control.liveness import READ_EVERY_S, SILENT_MS, StatusReader
from stream_scorer.control.probation import GRACE_MS, Comparison, ComparisonCounts, comparisons
from stream_scorer.control.state import History, Refused, follow
from stream_scorer.control.summary_reader import BEFORE_MS
from stream_scorer.control.verdict import Tolerances
from stream_scorer.control.verdicts import Verdicts, verdict_record
from stream_scorer.control.watch import CLOSE_AGAIN_S, SUBMIT_AGAIN_S, WATCH_METRICS, Mode, Watch, WatchRules
from stream_scorer.errors import AccessDenied, BrokerUnavailable, ReaderLost, StreamScorerError, UsageError
from stream_scorer.incidents.log import IncidentLog
from stream_scorer.observability.metrics import Metrics
from stream_scorer.pipeline.summarise import halve
from stream_scorer.records import (
    Author,
    CardAlerts,
    Command,
    Incident,
    IncidentKind,
    MemberPair,
    PairDifferences,
    PaneSummary,
    PreparedInput,
    ScorerStatus,
    ScoreSummary,
    ServedVersion,
    VerdictRecord,
)
from tests.support.control import MARKER, ControlRecord, MemoryControlLog
from tests.support.watch import parts

ONE, TWO, THREE, FOUR = (ServedVersion(str(i), str(i) * 64) for i in (1, 2, 3, 4))
COMPARISON = Comparison("cards", TWO, ONE, since=1, at=1_000, ends="rollback")
MEMBERS = ("gbdt", "xgb")
# All alerts are at event time 0; this one is past their grace period.
LATER = GRACE_MS + 1


def listed(square: Sequence[int], start: int = 0) -> CardAlerts:
    """Each alert of the 2x2 counts on a card of its own, beginning with card `start`."""
    both, this, other, _ = square
    alerts = [(0, 0)] * both + [(0, None)] * this + [(None, 0)] * other
    names = [f"{start + i:016x}" for i in range(len(alerts))]
    return CardAlerts(sum(square), 0, names, [a for a, _ in alerts], [a for _, a in alerts], against=list(square))


def summary(
    version: ServedVersion,
    square: Sequence[int],
    *,
    other: ServedVersion | None = ONE,
    offset: int | None = 1,
    only_by: Sequence[int] = (0, 0),
    ensemble: str = "cards",
    cards: CardAlerts | None = None,
    arm: str = "champion",
) -> ScoreSummary:
    """The counts `square` of transactions; without `cards`, each alert is on a card of its own."""
    rows = sum(square)
    against = {} if other is None else {other.version: list(square)}
    left_out = {m: [0, count, 0, rows - count] for m, count in zip(MEMBERS, only_by, strict=True)}
    pane = PaneSummary(0, rows, 0, 0, 0, {}, {}, {}, {}, {}, [], left_out, against)
    found = {} if other is None else {other.version: cards or listed(square)}
    return ScoreSummary(ensemble, version.version, arm, 1, "t", 0, 0, rows, 0, [pane], offset, found, LATER)


def paired(*squares: Sequence[int], comparison: Comparison = COMPARISON, min_rows: int = 1) -> ComparisonCounts:
    found, start = ComparisonCounts(comparison, Tolerances(min_rows=min_rows)), itertools.count(0, 1_000_000)
    for square in squares:
        found.add(summary(TWO, square, cards=listed(square, next(start))))
    return found


def test_a_burst_on_one_card_is_no_evidence_and_the_same_alerts_on_many_cards_are() -> None:
    burst = CardAlerts(10_000, 0, ["aa"], [0], [None], against=[40, 18, 0, 9_942])
    one_card, many_cards = ComparisonCounts(COMPARISON), ComparisonCounts(COMPARISON)
    one_card.add(summary(TWO, [40, 18, 0, 9_942], cards=burst))
    many_cards.add(summary(TWO, [40, 18, 0, 9_942]))
    assert one_card.rows == many_cards.rows == 10_000
    assert one_card.verdict.finding == "undecided"
    assert many_cards.verdict.finding == "rise"


def test_a_version_that_stops_alerting_is_a_fall_and_is_never_confirmed() -> None:
    found = paired([0, 0, 500, 99_500])
    assert found.verdict.finding == "fall"
    assert found.cards.counts.rise == -1.0
    assert "-100.0%" in found.summary()
    assert paired([500, 0, 400, 99_100]).verdict.finding == "fall"


def test_evidence_does_not_depend_on_how_transactions_were_split() -> None:
    whole, parts = paired([40, 30, 5, 925]), paired([10, 0, 5, 500], [30, 30, 0, 425])
    assert whole.verdict == parts.verdict
    assert whole.cards.counts.rise == pytest.approx(70 / 45 - 1)


def test_only_what_is_of_the_pair_counts() -> None:
    found = ComparisonCounts(COMPARISON)
    for other in (
        summary(ONE, [1, 1, 1, 1], other=TWO),
        summary(TWO, [1, 1, 1, 1], other=None),
        summary(TWO, [1, 1, 1, 1], offset=0),
        summary(TWO, [1, 1, 1, 1], offset=None),
        summary(TWO, [1, 1, 1, 1], ensemble="others"),
    ):
        found.add(other)
    assert (found.rows, found.cards.counts.total, found.unpaired) == (0, 0, 4)


def test_an_event_whose_clock_is_ahead_ends_no_grace_period() -> None:
    found, now = ComparisonCounts(COMPARISON), 1_800_000_000_000
    ahead = now + 300 * 86_400_000

    def add(at: int, newest: int, this: list[int | None], other: list[int | None]) -> None:
        cards = CardAlerts(100, 0, [f"{i:016x}" for i in range(len(this))], this, other, against=[0, 0, 0, 100])
        found.add(replace(summary(TWO, [0, 0, 0, 100], cards=cards), newest=newest), at)

    add(now, ahead, [now, now, ahead], [None, None, ahead])
    assert (found.cards.counts.total, found.cards.newest) == (0, now)
    add(now + 60_000, now + 60_000, [None], [now + 60_000])  # the other version follows a minute later
    add(now + LATER, now + LATER, [], [])
    counts = found.cards.counts
    assert (counts.both, counts.candidate_only, counts.baseline_only, found.cards.waiting) == (1, 1, 0, 1)


def test_the_member_is_named_that_makes_more_alerts_than_before() -> None:
    found = ComparisonCounts(COMPARISON)
    # xgb makes most alerts now, and made as many before; gbdt makes more than it did.
    found.add(summary(ONE, [0, 0, 0, 10_000], other=None, offset=0, only_by=(10, 90)))
    found.add(summary(TWO, [200, 120, 0, 9_680], only_by=(70, 95)))
    member, more = found.culprit() or ("", 0.0)
    assert (member, more) == ("gbdt", pytest.approx(6.0))
    assert "member gbdt causes 6.0 more alerts per 1,000 transactions than before" in found.summary()
    assert "+60.0%" in found.summary()


def test_the_member_is_named_whose_alerts_are_lost() -> None:
    found = ComparisonCounts(COMPARISON)
    found.add(summary(ONE, [0, 0, 0, 10_000], other=None, offset=0, only_by=(80, 90)))
    found.add(summary(TWO, [100, 0, 200, 9_700], only_by=(10, 85)))
    assert found.verdict.finding == "fall"
    assert found.summary().endswith("member gbdt causes 7.0 fewer alerts per 1,000 transactions than before")


def test_no_unchanged_member_is_named_if_no_difference_is_known() -> None:
    found = ComparisonCounts(COMPARISON)
    found.add(summary(ONE, [0, 0, 0, 10_000], other=None, offset=0, only_by=(10, 90)))
    same = PairDifferences(10_000)
    found.add(replace(summary(TWO, [200, 120, 0, 9_680], only_by=(70, 95)), differences={ONE.version: same}))
    assert (found.verdict.finding, found.culprit(), found.cause(falls=False)) == ("rise", None, None)
    assert found.summary().endswith("; no difference of the versions explains this alone")
    assert condition_of(found, "rollback", "").subject.member is None


def moved_by_gbdt(alerts: int) -> PairDifferences:
    """Of 10,000 transactions, `alerts` are alerted because gbdt reads an input at another scale."""
    counts = [alerts, alerts, 6 * alerts, 0, 0, 0, 0, 0, 0]
    parameters: tuple[list[float | None], list[float | None]] = ([None, None, None, 0, 0.5], [None, None, None, 0, 1])
    prepared = PreparedInput(*parameters, counts, counts)
    square = [200, alerts, 0, 9_800 - alerts]
    return PairDifferences(10_000, {"gbdt": MemberPair((0.4, 0.4), output=square, inputs={"amount": prepared})})


def test_transactions_that_do_not_count_hide_no_cause_and_are_in_no_figure() -> None:
    desk, square = Desk(), [150, 140, 0, 9_710]
    desk.say("promote", version=TWO)
    counted = replace(summary(TWO, square), differences={ONE.version: moved_by_gbdt(140)})
    # An hour without features, in which the version alerts less; and one in which some transactions do not count.
    without = summary(TWO, [0, 0, 3_000, 97_000], cards=CardAlerts(0, 100_000, [], [], []))
    some = CardAlerts(10, 990, [], [], [], against=[0, 1, 0, 9])
    partly = summary(TWO, [0, 1, 500, 499], cards=some, only_by=(300, 0))
    desk.summaries += [counted, without, partly]
    desk.watch().step()
    (incident,) = desk.incidents
    assert incident.member == "gbdt" and "member gbdt causes 14.0 more alerts" in incident.why
    assert (incident.rows, incident.both, incident.candidate_only, incident.baseline_only) == (10_010, 150, 141, 0)
    assert incident.affected is not None
    assert (incident.affected.transactions, incident.affected.alerts) == (10_010, 141)
    verdict = desk.verdicts[-1]
    assert (verdict.rows, verdict.candidate_only, verdict.baseline_only, verdict.excluded) == (10_010, 141, 0, 100_990)


def test_command_incident_and_verdict_name_the_member_and_the_input() -> None:
    desk = Desk()
    desk.say("promote", version=TWO)
    # Of the alerts that exist because of one member, xgb has most: it always had.
    found = summary(TWO, MORE, only_by=(3, 80))
    desk.summaries.append(replace(found, differences={ONE.version: moved_by_gbdt(140)}))
    desk.watch().step()
    why = desk.history.entries[-1].command
    assert why is not None
    assert why.why.endswith(
        "; member gbdt causes 14.0 more alerts per 1,000 transactions than in version 1: reads amount 2 times as large"
    )
    (incident,) = desk.incidents
    assert (incident.member, incident.input, incident.difference) == ("gbdt", "amount", "reads amount 2 times as large")
    cause = desk.verdicts[-1].cause
    assert cause is not None and (cause.kind, cause.member, cause.input) == ("scale", "gbdt", "amount")
    assert [(each.member, each.input) for each in desk.verdicts[-1].inputs] == [("gbdt", "amount")]
    facts = verdict_facts(desk.verdicts[-1])
    assert ("cause", "member gbdt: reads amount 2 times as large (14.0 alerts per 1,000)") in facts


def test_differences_that_cannot_be_added_do_not_prevent_a_verdict() -> None:
    desk = Desk()
    desk.say("promote", version=TWO)
    few = replace(summary(TWO, [1, 0, 0, 9]), differences={ONE.version: moved_by_gbdt(140)})
    # A scorer of another release counts more.
    longer = PairDifferences(10_000, {"gbdt": MemberPair((0.4, 0.4), output=[200, 140, 0, 9_660, 0])})
    many = replace(summary(TWO, MORE, cards=listed(MORE, 1_000)), differences={ONE.version: longer})
    desk.summaries += [few, many]
    desk.watch().step()
    assert desk.history.states["cards"].champion == ONE


def test_an_input_that_is_read_differently_is_listed_before_any_alert() -> None:
    desk = Desk()
    desk.say("promote", version=TWO)
    found = summary(TWO, [0, 0, 0, 10_000])
    desk.summaries.append(replace(found, differences={ONE.version: moved_by_gbdt(140)}))
    desk.watch().step()
    verdict = desk.verdicts[-1]
    assert (verdict.finding, verdict.cause, [each.input for each in verdict.inputs]) == ("undecided", None, ["amount"])


class Reader:
    """What stands on `score-summaries`, from the start each time it is opened."""

    def __init__(self, summaries: list[ScoreSummary], at: int = 0) -> None:
        self._left = [ControlRecord(i, msgspec.json.encode(s), at) for i, s in enumerate(summaries)]
        short = msgspec.json.encode(summary(TWO, [1, 2, 3, 4])).replace(b"[1,2,3,4]", b"[1,2]")
        for junk in (b"junk", b"", b'{"\xff":1}', b"[" * 100_000, short):
            self._left.insert(0, ControlRecord(0, junk))

    def poll(self, max_records: int, timeout_s: float) -> list[ControlRecord]:
        found, self._left = self._left[:max_records], self._left[max_records:]
        return found

    def caught_up(self) -> bool:
        return not self._left

    def close(self) -> None:
        pass


class SlowReader(Reader):
    """A reader whose polls return one record, or nothing although more wait, in turn."""

    def poll(self, max_records: int, timeout_s: float) -> list[ControlRecord]:
        self._polls = getattr(self, "_polls", 0) + 1
        return super().poll(self._polls % 2, timeout_s)


class GrowingReader:
    """What arrives on `score-summaries` while it is read."""

    def __init__(self, summaries: list[ScoreSummary]) -> None:
        self._summaries, self._at = summaries, 0

    def poll(self, max_records: int, timeout_s: float) -> list[ControlRecord]:
        start, self._at = self._at, len(self._summaries)
        return [ControlRecord(i, msgspec.json.encode(s)) for i, s in enumerate(self._summaries[start:])]

    def caught_up(self) -> bool:
        return True

    def close(self) -> None:
        pass


class Clock:
    def now_ms(self) -> int:
        return 5_000

    def monotonic(self) -> float:
        return 5.0


class Moving(Clock):
    """A clock whose monotonic time a test moves."""

    now_s = 5.0

    def monotonic(self) -> float:
        return self.now_s


class Desk:
    """A log with commands, and watches on it."""

    def __init__(self) -> None:
        self.log = MemoryControlLog()
        self.incident_log = MemoryControlLog()
        self.verdicts: list[VerdictRecord] = []
        self.summaries: list[ScoreSummary] = []
        self.metrics = Metrics(WATCH_METRICS)
        self.say("promote", version=ONE)

    def say(self, action: str, **more: object) -> None:
        expected = len(self.log.records)
        fields = {"ensemble": "cards", "who": "ann", "why": "so", "at": 1_000, "expected_offset": expected} | more
        self.log.records.append(msgspec.json.encode(Command(action=action, **fields)))  # type: ignore[arg-type]

    def watch(
        self,
        mode: Mode = "auto",
        probation: int = 100_000,
        cooldown_s: float = 0.0,
        scorers: StatusReader | None = None,
    ) -> Watch:
        return Watch(
            MemoryControlLog(self.log.records),
            lambda since: Reader(self.summaries),
            Clock(),  # type: ignore[arg-type]
            self.metrics,
            who="monitor-1",
            rules=WatchRules(mode, cooldown_s, Tolerances(min_rows=probation)),
            parts=parts(
                Incidents(MemoryControlLog(self.incident_log.records)),
                Verdicts(lambda key, value: self.verdicts.append(msgspec.json.decode(value, type=VerdictRecord))),
                scorers=scorers,
            ),
        )

    @property
    def history(self) -> History:
        return self.log.history

    @property
    def incidents(self) -> list[Incident]:
        return [msgspec.json.decode(value, type=Incident) for value in self.incident_log.records if value != MARKER]


def acted(desk: Desk, action: str) -> float | None:
    labels = {"ensemble": "cards", "action": action}
    return desk.metrics.registry.get_sample_value("stream_scorer_watch_commands_total", labels)


MORE = [200, 150, 2, 9_648]
FEWER = [150, 2, 200, 9_648]
SAME = [300, 4, 5, 9_691]


def test_a_version_that_alerts_more_is_rolled_back_once_and_the_log_says_why() -> None:
    desk = Desk()
    desk.watch().step()
    assert [acted(desk, action) for action in ("rollback", "stop", "confirm", "canary", "promote")] == [0] * 5
    desk.say("promote", version=TWO)
    desk.summaries.append(summary(TWO, MORE, only_by=(3, 80)))
    one, two = desk.watch(), desk.watch()
    for _ in range(3):
        one.step()
        two.step()
    history = desk.history
    given = [e for e in history.entries if e.command is not None and e.command.author == "monitor"]
    assert [(e.command.action, e.refused) for e in given if e.command] == [("rollback", "")]
    assert acted(desk, "rollback") == 1
    assert history.states["cards"].champion == ONE
    assert given[0].command is not None
    assert given[0].command.version == TWO
    assert "member xgb" in given[0].command.why
    assert "version 2 alerts on 350 cards, version 1 on 202 (+73.3%; " in given[0].command.why
    opened, closed = desk.incidents
    assert (opened.id, opened.version, opened.baseline, opened.member) == ("cards-1", "2", "1", "xgb")
    assert (opened.rows, opened.both, opened.candidate_only, opened.baseline_only) == (10_000, *MORE[:3])
    assert opened.finding == "rise"
    assert opened.cards is not None and msgspec.structs.astuple(opened.cards) == (*MORE[:3], 0)
    assert (opened.due, opened.held_back, opened.closed, opened.ended_by) == ("rollback", "", None, None)
    assert opened.why == given[0].command.why
    offset = given[0].offset
    assert (closed.closed, closed.ended_by, closed.command) == (5_000, offset, "rollback")
    assert (opened.done, closed.done) == ("the monitor submits rollback", f"rollback at control offset {offset}")


def test_the_gauges_of_a_pair_have_no_wrong_zero_and_end_with_it() -> None:
    desk = Desk()

    def shown() -> dict[str, float]:
        families = [each for each in desk.metrics.registry.collect() if "_paired_" in each.name]
        return {sample.name: sample.value for each in families for sample in each.samples}

    watch = desk.watch()
    desk.say("promote", version=TWO)
    desk.summaries.append(summary(TWO, [0, 3, 0, 97]))
    watch.step()
    assert len(shown()) == 4 and math.isnan(shown()["stream_scorer_paired_alert_rise"])
    desk.say("rollback")
    watch.step()
    assert shown() == {}


def test_a_part_of_the_summaries_leads_to_no_command_no_incident_and_no_verdict() -> None:
    desk = Desk()
    desk.say("hold")
    desk.say("promote", version=TWO)
    desk.say("release")
    harmless = [summary(TWO, SAME, offset=2, cards=listed(SAME, 1_000 * i)) for i in range(10)]
    bad = [summary(TWO, MORE, offset=2, cards=listed(MORE, 100_000 + 1_000 * i)) for i in range(10)]
    desk.summaries += harmless + bad
    watch = desk.watch(probation=50_000)
    watch._follow = lambda _since: SlowReader(desk.summaries)
    # Five records are unreadable. After the harmless ones, a confirmation would be due.
    for _ in range(18):
        watch.step()
        assert (monitor_commands(desk), desk.incidents, desk.verdicts) == ([], [], [])
    for _ in range(8):
        watch.step()
    assert (monitor_commands(desk), desk.verdicts[0].finding) == ([("rollback", None)], "rise")


def test_a_command_for_another_ensemble_neither_counts_a_pair_again_nor_delays_its_verdict() -> None:
    desk = Desk()
    desk.say("promote", version=ONE, ensemble="wires")
    desk.say("promote", version=TWO)
    arrived = [summary(TWO, [1, 0, 0, 9], offset=2)]
    watch, opened = desk.watch(), [GrowingReader(arrived), SlowReader([summary(TWO, SAME)] * 9)]
    closed: list[object] = []
    for reader in opened:
        reader.close = lambda reader=reader: closed.append(reader)  # type: ignore[method-assign, misc]
    waiting = list(opened)
    watch._follow = lambda _since: waiting.pop(0)
    watch.step()
    desk.say("promote", version=TWO, ensemble="wires")
    watch.step()
    assert (waiting, closed, [verdict.id for verdict in desk.verdicts]) == ([], [], ["cards-2"])
    arrived.append(summary(TWO, MORE, offset=2, cards=listed(MORE, 1_000)))
    for _ in range(2):
        watch.step()
    assert (monitor_commands(desk), closed) == ([("rollback", None)], opened[:1])
    assert [verdict.id for verdict in desk.verdicts] == ["cards-2", "cards-2"]


@pytest.mark.parametrize("square", [[200, 150, 2, 9_648], [300, 4, 5, 9_691]])
def test_a_version_that_is_promoted_while_the_watch_acts_on_another_ensemble_is_not_judged(square: list[int]) -> None:
    desk = Desk()
    for version in (ONE, TWO):
        desk.say("promote", version=version, ensemble="wires")
    desk.say("promote", version=TWO)
    desk.summaries += [summary(TWO, MORE, offset=3), summary(TWO, square, ensemble="wires", offset=2)]

    class Slow(MemoryControlLog):
        def append(self, key: str, value: bytes) -> int:
            if not self.records:  # the incident of `cards`, whose command then comes too late
                desk.say("promote", version=THREE, ensemble="wires")
            return super().append(key, value)

    desk.incident_log = Slow()
    watch = desk.watch(probation=1)
    watch._parts = dataclasses.replace(watch._parts, incidents=Incidents(desk.incident_log))
    watch.step()
    wires = desk.history.states["wires"]
    assert (wires.champion, wires.last_good, wires.probation) == (THREE, ONE, True)
    watch.step()
    assert desk.history.states["cards"].champion == ONE
    assert (desk.history.states["wires"].champion, desk.history.states["wires"].probation) == (THREE, True)


def test_a_control_log_that_is_created_again_while_a_version_is_on_probation_ends_the_watch() -> None:
    desk = Desk()
    for action in ("hold", "release"):
        desk.say(action)
    desk.say("promote", version=TWO)
    state, watch = desk.history.states["cards"], desk.watch()
    watch.step()
    # Several commands of the old log count, and the new one is shorter.
    desk.log.records[:] = []
    desk.say("recover", state=state)
    desk.summaries.append(summary(TWO, MORE, offset=3))
    for _ in range(2):
        with pytest.raises(StreamScorerError, match="was created again"):
            watch.step()
    assert desk.incidents == [] and [comparison.since for comparison in comparisons(state, desk.history)] == [0]
    desk.watch().step()
    assert monitor_commands(desk) == [("rollback", None)]


def test_a_probation_and_a_canary_that_are_recovered_together_have_different_ids() -> None:
    lost, desk = Desk(), Desk()
    lost.say("promote", version=TWO)
    lost.say("canary", version=THREE, share=1.0)
    state = lost.history.states["cards"]
    desk.log.records[:] = []
    desk.say("recover", state=state)
    desk.summaries.append(summary(THREE, MORE, other=TWO, offset=0, arm="canary"))
    watch = desk.watch()
    watch.step()
    assert [(each.id, each.version) for each in desk.verdicts] == [("cards-0", "2"), ("cards-0-canary", "3")]
    # The id of a comparison never changes, also when it is the only one.
    desk.say("confirm")
    watch.step()
    assert (desk.verdicts[-1].id, [i.id for i in desk.incidents]) == ("cards-0-canary", ["cards-0-canary"])
    assert monitor_commands(desk) == [("stop", None)]
    desk.log.records[:] = []
    desk.say("recover", state=replace(state, probation=False))
    desk.watch().step()
    assert desk.verdicts[-1].id == "cards-0"


def test_a_log_of_which_nothing_more_comes_is_an_error() -> None:
    silent = MemoryControlLog([MARKER])
    silent.read = lambda _wait_s: []  # type: ignore[method-assign]
    for topic, read in {
        "commands": lambda: catch_up(silent, History(), 1),
        "incidents": IncidentLog(silent).read,
    }.items():
        with pytest.raises(BrokerUnavailable, match=f"does not send the topic of {topic} from offset 0"):
            read()


def test_a_command_in_another_log_is_no_success_and_ends_no_other_version() -> None:
    desk = Desk()
    desk.say("promote", version=TWO)
    log, history = MemoryControlLog(list(desk.log.records)), desk.history

    def command(offset: int, version: ServedVersion | None = TWO, author: Author = "monitor") -> Command:
        return Command(
            ensemble="cards", action="rollback", who="m", why="so", at=1, expected_offset=offset, author=author,
            version=version,
        )  # fmt: skip

    # The log is shorter, or as long; or the record that is read there is another one.
    for records in (log.records[:0], log.records[:1]):
        with pytest.raises(StreamScorerError, match="was created again"):
            submit(MemoryControlLog(records), history, command)
    other = MemoryControlLog([*log.records, msgspec.json.encode(command(2, author="person"))])
    other.append = lambda _key, _value: 2  # type: ignore[method-assign]
    other.at = 2
    with pytest.raises(StreamScorerError, match="another record at offset 2"):
        submit(other, desk.history, command)
    # At an offset that fits, a command counts only if its version serves.
    desk.say("promote", version=THREE)
    state, serves = desk.history.states["cards"], follow(desk.history.states["cards"], 3, command(3, THREE))
    with pytest.raises(Refused, match="2 does not serve"):
        follow(state, 3, command(3))
    assert (state.champion, serves.champion, follow(state, 3, command(3, None)).champion) == (THREE, ONE, ONE)


def test_an_incident_that_a_person_ended_while_nobody_watched_is_closed_by_the_next_watch() -> None:
    desk = Desk()
    desk.say("promote", version=TWO)
    desk.summaries.append(summary(TWO, MORE))
    desk.watch(mode="propose").step()
    assert [i.closed for i in desk.incidents] == [None]
    desk.say("rollback")
    desk.incident_log.records.insert(0, b"junk")
    desk.watch(mode="propose").step()
    desk.watch(mode="propose").step()
    last = msgspec.json.decode(desk.incident_log.records[-1], type=Incident)
    assert (len(desk.incident_log.records), last.closed, last.ended_by) == (3, 5_000, 2)


def test_a_topic_of_incidents_that_cannot_be_written_does_not_keep_a_version_in_service() -> None:
    class Broken(MemoryControlLog):
        def append(self, key: str, value: bytes) -> int:
            raise BrokerUnavailable("not authorized")

    desk = Desk()
    desk.incident_log = Broken()
    desk.say("promote", version=TWO)
    desk.summaries.append(summary(TWO, MORE))
    watch = desk.watch()
    watch._parts = dataclasses.replace(watch._parts, incidents=Incidents(desk.incident_log))
    for _ in range(2):
        watch.step()
    assert desk.history.states["cards"].champion == ONE


def test_a_version_is_not_confirmed_by_the_incidents_of_a_topic_that_was_created_again() -> None:
    desk = Desk()
    desk.incident_log.records += [MARKER, MARKER]
    desk.say("promote", version=TWO)
    arrived: list[ScoreSummary] = []
    watch = desk.watch(probation=1)
    watch._follow = lambda _since: GrowingReader(arrived)
    watch.step()
    failing = Incident(id="m", ensemble="cards", opened=1, why="it fails", kind="breaker", subject="member gbdt")
    desk.incident_log.records[:] = [msgspec.json.encode(failing)]
    desk.summaries.append(summary(TWO, SAME))
    arrived += desk.summaries
    with pytest.raises(ReaderLost, match="incidents ends at offset 1, and offset 1 was read"):
        watch.step()
    desk.watch(probation=1).step()
    assert (monitor_commands(desk), desk.verdicts[-1].held_back) == ([], "paused while incidents are open: m")


@pytest.mark.parametrize("error", [BrokerUnavailable("not now"), AccessDenied("no ACL")])
def test_incidents_that_cannot_be_read_delay_no_rollback_and_are_closed_later(error: StreamScorerError) -> None:
    desk, clock = Desk(), Moving()
    desk.say("promote", version=TWO)
    desk.summaries.append(summary(TWO, MORE))
    desk.watch(mode="propose").step()
    desk.say("rollback")
    desk.say("promote", version=TWO)
    desk.summaries.append(summary(TWO, MORE, offset=3))
    watch, incident_log = desk.watch(), MemoryControlLog(desk.incident_log.records)
    watch._parts = dataclasses.replace(watch._parts, incidents=Incidents(incident_log))
    watch._clock = clock  # type: ignore[assignment]
    incident_log.fails = error
    for _ in range(2):
        watch.step()
    assert (monitor_commands(desk), len(desk.incidents)) == ([("rollback", None)], 1)
    incident_log.fails = None
    desk.summaries.clear()
    for opened in (["cards-1"], []):
        watch.step()
        assert [incident.id for incident in Incidents(MemoryControlLog(desk.incident_log.records)).open()] == opened
        clock.now_s += CLOSE_AGAIN_S


def test_a_transaction_marker_at_the_end_of_a_topic_does_not_block_the_watch() -> None:
    desk = Desk()
    desk.say("promote", version=TWO)
    desk.log.records.append(MARKER)
    desk.incident_log.records.append(MARKER)
    desk.summaries.append(summary(TWO, MORE))
    watch = desk.watch()
    for _ in range(2):
        watch.step()
    assert desk.history.states["cards"].champion == ONE
    desk.incident_log.records.append(MARKER)
    assert [incident.id for incident in Incidents(desk.incident_log).open()] == []


@pytest.mark.parametrize("why", ["propose", "hold", "cooldown"])
def test_where_it_may_not_act_it_says_what_is_due_and_says_it_once(why: str, caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    if why == "cooldown":
        desk.say("promote", version=TWO)
        desk.say("rollback", author="monitor")
    desk.say("promote", version=TWO)
    if why == "hold":
        desk.say("hold")
    desk.summaries.append(summary(TWO, MORE, offset=len(desk.log.records)))
    watch = desk.watch(mode="propose" if why == "propose" else "auto", cooldown_s=10.0)
    before = list(desk.log.records)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            watch.step()
    assert desk.log.records == before
    assert caplog.text.count("rollback cards is due, needs a person") == 1
    (incident,) = desk.incidents
    assert incident.held_back.startswith("needs a person: ") and incident.closed is None


class Refusing(MemoryControlLog):
    """A log that may refuse what is appended."""

    error: StreamScorerError | None = None
    asked = 0

    def append(self, key: str, value: bytes) -> int:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return super().append(key, value)


def refusing_watch(desk: Desk, error: StreamScorerError) -> tuple[Watch, Refusing, Moving]:
    """A watch whose commands are refused, the log that refuses them, and its clock."""
    watch, log, clock = desk.watch(), Refusing(desk.log.records), Moving()
    log.error = error
    watch._log, watch._clock = log, clock  # type: ignore[assignment]
    return watch, log, clock


@pytest.mark.parametrize("error", [AccessDenied("no ACL"), UsageError("no topic"), StreamScorerError("too large")])
def test_a_command_that_kafka_refuses_needs_a_person_and_is_submitted_again(
    error: StreamScorerError, caplog: pytest.LogCaptureFixture
) -> None:
    desk = Desk()
    desk.say("promote", version=TWO)
    desk.summaries.append(summary(TWO, MORE))
    watch, log, clock = refusing_watch(desk, error)
    refused = f"needs a person: Kafka refuses the command: {error.message}"
    labels = {"ensemble": "cards", "version": "2", "baseline": "1", "direction": "rise"}
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            watch.step()
            assert desk.metrics.registry.get_sample_value("stream_scorer_paired_evidence", labels) > 6.9  # type: ignore[operator]
        assert log.asked == 1
        clock.now_s += SUBMIT_AGAIN_S
        for _ in range(3):
            watch.step()
    assert (log.asked, monitor_commands(desk), acted(desk, "rollback")) == (2, [], 0)
    assert caplog.text.count(f"rollback cards is due, {refused}") == 1
    assert [i.held_back for i in desk.incidents] == ["", refused]
    assert (desk.incidents[-1].done, desk.verdicts[-1].held_back) == ("rollback is due but not submitted", refused)
    log.error = None
    watch.step()
    assert log.asked == 2
    clock.now_s += SUBMIT_AGAIN_S
    for _ in range(2):
        watch.step()
    assert (monitor_commands(desk), acted(desk, "rollback")) == ([("rollback", None)], 1)
    assert [(i.held_back, i.closed is None) for i in desk.incidents[2:]] == [("", True), ("", False)]
    assert desk.verdicts[-1].held_back == ""


def test_a_hold_ends_the_attempts_of_a_refused_command() -> None:
    desk = Desk()
    desk.say("promote", version=TWO)
    desk.summaries.append(summary(TWO, MORE))
    watch, log, clock = refusing_watch(desk, AccessDenied("no ACL"))
    watch.step()
    desk.say("hold")
    log.error = None
    clock.now_s += SUBMIT_AGAIN_S
    watch.step()
    assert (log.asked, monitor_commands(desk)) == (1, [])
    assert desk.incidents[-1].held_back == "needs a person: ann put a hold on it (so)"


@pytest.mark.parametrize("error", [BrokerUnavailable("not now"), ReaderLost("created again")])
def test_a_command_whose_fate_is_unknown_ends_the_watch(error: StreamScorerError) -> None:
    desk = Desk()
    desk.say("promote", version=TWO)
    desk.summaries.append(summary(TWO, MORE))
    watch, _, _ = refusing_watch(desk, error)
    with pytest.raises(type(error)):
        watch.step()


def test_an_incident_that_could_not_be_published_is_published_later() -> None:
    class Moody(MemoryControlLog):
        broken = True

        def append(self, key: str, value: bytes) -> int:
            if self.broken:
                raise BrokerUnavailable("not now")
            return super().append(key, value)

    desk = Desk()
    desk.incident_log = moody = Moody()
    desk.say("promote", version=TWO)
    desk.summaries.append(summary(TWO, MORE))
    watch = desk.watch(mode="propose")
    watch._parts = dataclasses.replace(watch._parts, incidents=Incidents(moody))
    watch.step()
    assert desk.incidents == []
    moody.broken = False
    for _ in range(3):
        watch.step()
    assert [incident.due for incident in desk.incidents] == ["rollback"]


def test_a_version_that_alerts_on_fewer_cards_is_rolled_back_and_the_incident_says_so() -> None:
    desk = Desk()
    desk.say("promote", version=TWO)
    desk.summaries.append(summary(TWO, FEWER))
    desk.watch().step()
    assert desk.history.states["cards"].champion == ONE
    assert desk.incidents[0].finding == "fall"
    assert "less than -5%" in desk.incidents[0].why


def test_a_probation_ends_after_enough_transactions_with_evidence_that_the_change_is_harmless() -> None:
    desk = Desk()
    desk.say("promote", version=TWO)
    desk.summaries.append(summary(TWO, SAME))
    for _ in range(3):
        desk.watch(probation=10_001).step()
    assert desk.history.states["cards"].probation
    assert desk.verdicts[-1].missing == ["1 more transactions"]
    # Not enough evidence to withdraw it, and not enough for a harmless change: it goes on.
    desk.summaries.append(summary(TWO, [0, 40, 0, 0], cards=listed([0, 40, 0, 0], 10_000)))
    desk.watch(probation=10_000).step()
    assert desk.history.states["cards"].probation
    assert desk.verdicts[-1].missing == ["evidence from more alerted cards"]
    desk.summaries.pop()
    desk.watch(probation=10_000).step()
    state = desk.history.states["cards"]
    assert (state.champion, state.probation) == (TWO, False)


@pytest.mark.parametrize("square", [[0, 0, 0, 1_000_000], [10, 0, 0, 1_000_000]])
def test_without_alerts_enough_a_probation_goes_on_for_any_number_of_transactions(square: list[int]) -> None:
    desk = Desk()
    desk.say("promote", version=TWO)
    desk.summaries.append(summary(TWO, square))
    desk.watch(probation=1).step()
    assert desk.history.states["cards"].probation
    verdict = desk.verdicts[-1]
    assert (verdict.finding, verdict.due) == ("undecided", None)
    assert "alerted cards" in verdict.missing[-1]


def test_missing_data_neither_withdraws_nor_confirms() -> None:
    desk = Desk()
    desk.say("promote", version=TWO)
    # Nothing that was scored has features; and then, half of it was not scored by the last good version.
    nothing = CardAlerts(0, 10_000, [], [], [])
    desk.summaries.append(summary(TWO, MORE, cards=nothing))
    desk.watch(probation=1).step()
    assert desk.history.states["cards"].probation
    assert desk.verdicts[-1].missing[-1].startswith("10,000 of 10,000 transactions do not count")
    desk.summaries = [summary(TWO, SAME), summary(TWO, SAME, other=None)]
    desk.watch(probation=1).step()
    assert desk.history.states["cards"].probation
    assert desk.verdicts[-1].missing == ["both versions scored only 50% of the transactions"]


@pytest.mark.parametrize("at", [LATER, 1_000 + BEFORE_MS])
def test_a_version_that_some_scorers_cannot_load_is_not_confirmed(at: int) -> None:
    desk = Desk()
    desk.say("promote", version=TWO)
    # A scorer that applied only the command before: just now, or for good.
    desk.summaries = [summary(TWO, SAME), summary(ONE, SAME, other=None, offset=0)]
    watch = desk.watch(probation=1)
    watch._follow = lambda _since: Reader(desk.summaries, at)
    watch.step()
    assert desk.history.states["cards"].probation == (at > LATER)
    missing = ["both versions scored only 50% of the transactions"] if at > LATER else []
    assert desk.verdicts[-1].missing == missing


class StatusTopic(MemoryControlLog):
    """The topic `scorer-status`: status by scorer, whose heartbeat is `ago` ms old.

    `calls` are those of its only reader.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[ControlRecord] = []
        self.calls: list[str] = []
        self.now_s = 0.0

    def reader(self) -> StatusReader:
        return StatusReader(self._open, lambda: self.now_s)

    def _open(self) -> StatusTopic:
        self.calls.append("open")
        self.at = 0
        return self

    def close(self) -> None:
        self.calls.append("close")

    def put(self, name: str, offset: int, in_play: list[str], ago: int = 0, ensemble: str = "cards") -> None:
        status = ScorerStatus(name, "g", ensemble, in_play, offset, offset, "", 0)
        self.found.append(ControlRecord(len(self.found), msgspec.json.encode(status), 10**9 - ago, name))

    def end(self) -> int:
        self.calls.append("end")
        self.now_s += 0.1
        if self.fails is not None:
            raise self.fails
        return len(self.found)

    def read(self, wait_s: float) -> list[ControlRecord]:
        start, self.at = self.at, len(self.found)
        return self.found[start:]


@pytest.mark.parametrize("mode", ["auto", "propose"])
def test_a_version_is_not_confirmed_while_a_running_scorer_does_not_score_both(mode: Mode) -> None:
    desk, statuses = Desk(), StatusTopic()
    desk.say("promote", version=TWO)
    desk.summaries.append(summary(TWO, SAME))
    watch = desk.watch(probation=1, mode=mode, scorers=statuses.reader())

    def step() -> str:
        statuses.now_s += READ_EVERY_S
        watch.step()
        return desk.verdicts[-1].held_back

    statuses.fails = BrokerUnavailable("not now")
    assert step() == "paused: the status of scorers cannot be read (not now)"
    watch.step()
    assert statuses.calls == ["open", "end", "close"]
    statuses.fails = None
    statuses.put("killed", 0, ["1"], ago=SILENT_MS + 1)
    statuses.put("of-wires", 0, ["1"], ensemble="wires")
    statuses.put("a", 1, ["2", "1"])
    # One has not read the command, loads the version, or cannot load the one before.
    for offset, in_play in ((0, ["1"]), (0, ["2", "1"]), (1, ["2"])):
        statuses.put("b", offset, in_play)
        assert step() == "paused until these scorers score both versions: b"
        assert monitor_commands(desk) == []
    statuses.put("b", 1, ["2", "1"])
    assert step() == ("" if mode == "auto" else "needs a person: monitor.mode is propose")
    assert monitor_commands(desk) == ([("confirm", None)] if mode == "auto" else [])
    # While a person waits, the topic stays open and is read now and then; after the command, it is closed.
    for _ in range(3):
        watch.step()
    assert statuses.calls[3:] == ["open", *["end"] * 4, *["close"] * (mode == "auto")]
    desk.say("rollback")
    watch.step()
    assert statuses.calls[-1] == "close"


def test_statuses_that_come_slowly_delay_nothing_else_and_are_read_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "_READ_DEADLINE_S", 0.01)
    statuses, reader = (topic := StatusTopic()), topic.reader()
    for name in "ab":
        statuses.put(name, 1, ["2", "1"])
    come = 1  # the number of records that have arrived
    monkeypatch.setattr(statuses, "position", lambda: min(statuses.at, come))
    for _ in range(2):
        with pytest.raises(BrokerUnavailable, match="do not come"):
            reader.lacking("cards", 1, ["2"])
    come, statuses.now_s = 2, 10.0
    assert reader.lacking("cards", 1, ["2"]) == []
    assert statuses.calls == ["open", "end", "end"]
    monkeypatch.setattr(statuses, "end", lambda: 0)
    statuses.now_s = 20.0
    with pytest.raises(BrokerUnavailable, match="created again"):
        reader.lacking("cards", 1, ["2"])
    assert statuses.calls == ["open", "end", "end", "close"]


@pytest.mark.parametrize("kind", ["errors", "breaker"])
def test_a_version_is_not_confirmed_while_a_member_fails(kind: IncidentKind) -> None:
    desk = Desk()
    desk.say("promote", version=TWO)
    # Half of its transactions lack the member, and so they do not count.
    desk.summaries.append(summary(TWO, SAME, cards=replace(listed(SAME), excluded=10_000)))
    failing = Incident(id="m", ensemble="cards", opened=1, why="it fails", kind=kind, subject="member gbdt of cards")
    desk.incident_log.records.append(msgspec.json.encode(failing))
    watch = desk.watch(probation=1)
    watch.step()
    assert desk.history.states["cards"].probation
    assert (desk.verdicts[-1].due, desk.verdicts[-1].held_back) == ("confirm", "paused while incidents are open: m")
    desk.incident_log.records.append(msgspec.json.encode(replace(failing, closed=2)))
    watch.step()
    assert not desk.history.states["cards"].probation


def test_the_expected_time_to_a_decision_is_stated() -> None:
    desk = Desk()
    desk.say("promote", version=TWO)
    desk.summaries.append(summary(TWO, [40, 10, 1, 9_949]))
    desk.watch().step()
    verdict = desk.verdicts[-1]
    assert verdict.finding == "undecided"
    assert verdict.more_rows is not None and 1_000 < verdict.more_rows < 100_000
    assert verdict.more_ms == round(verdict.more_rows * LATER / 10_000)
    grown = [n * (1 + verdict.more_rows / 10_000) for n in (40, 10, 1, 9_949)]
    assert paired([round(n * 1.02) for n in grown]).verdict.finding == "rise"
    assert paired([0, 0, 0, 9_000]).verdict.more_rows is None


def test_a_declared_rise_moves_the_tolerance() -> None:
    for rise, left in ((None, ONE), (0.75, TWO)):
        desk = Desk()
        desk.say("promote", version=TWO, expect_rise=rise)
        desk.summaries.append(summary(TWO, MORE))
        desk.watch().step()
        assert desk.history.states["cards"].champion == left
    # A version that alerts as before although it announced more alerts does not do what was evaluated.
    desk = Desk()
    desk.say("promote", version=TWO, expect_rise=0.75)
    desk.summaries.append(summary(TWO, SAME))
    desk.watch().step()
    assert desk.history.states["cards"].champion == ONE


def canary_desk(*, inside: int = 302, outside: int = 2_720) -> Desk:
    """A canary with 10 % of the cards: alerts of the champion on `inside` cards of its arm, and `outside`."""
    desk = Desk()
    desk.say("canary", version=TWO, share=0.1)
    square = [inside - 2, 4, 2, 9_000]
    desk.summaries.append(summary(TWO, square, arm="canary"))
    other_arm = [outside, 0, 0, 90_000]
    desk.summaries.append(summary(ONE, other_arm, other=TWO, cards=listed(other_arm, 100_000)))
    return desk


def test_a_split_summary_beside_a_canary_counts_as_a_whole_one_does() -> None:
    whole = summary(ONE, [1, 0, 0, 999], other=TWO)
    whole = replace(whole, panes=[replace(whole.panes[0], pane=start) for start in (0, 60_000)])
    parts = halve(whole)
    assert parts is not None and parts[1].cards == {}
    for summaries in ([whole], parts):
        found = ComparisonCounts(Comparison("cards", TWO, ONE, since=1, at=1_000, ends="stop", share=0.1))
        for each in [*summaries, summary(ONE, [0, 0, 0, 7], other=None)]:
            found.add(each)
        assert (found.elsewhere, found.unpaired) == (1_000, 7)


def test_a_canary_is_confirmed_at_its_share_and_stopped_if_its_alerts_change() -> None:
    desk = canary_desk()
    (comparison,) = comparisons(desk.history.states["cards"], desk.history)
    assert (comparison.candidate, comparison.baseline, comparison.since, comparison.ends, comparison.share) == (
        TWO,
        ONE,
        1,
        "stop",
        0.1,
    )
    for _ in range(3):
        desk.watch(probation=1).step()
    canary = desk.history.states["cards"].canary
    assert canary is not None and canary.confirmed and canary.share == 0.1
    assert [e.command.action for e in desk.history.entries if e.command and e.command.author == "monitor"] == [
        "confirm"
    ]
    # A larger share is a new step, which needs its own confirmation.
    desk.say("canary", version=TWO, share=0.25)
    canary = desk.history.states["cards"].canary
    assert canary is not None and not canary.confirmed
    desk.watch(probation=1).step()
    assert desk.history.states["cards"].canary == canary
    offset, other_arm = len(desk.log.records), [606, 0, 0, 30_000]
    desk.summaries.append(summary(TWO, MORE, offset=offset))
    desk.summaries.append(summary(ONE, other_arm, other=TWO, cards=listed(other_arm, 100_000), offset=offset))
    desk.watch().step()
    assert desk.history.states["cards"].canary is None


def add_traffic_of_three(desk: Desk, offset: int) -> None:
    """Version 2 serves, with a canary 3 that alerts like version 1; version 2 alerts more than both."""
    champion, canary = [400, 200, 0, 30_000], [400, 0, 200, 30_000]
    cards = listed(champion, 1_000_000 * offset)
    found = summary(TWO, champion, offset=offset, cards=cards)
    desk.summaries.append(replace(found, cards={"1": cards, "3": cards}))
    found = summary(THREE, canary, other=TWO, offset=offset, arm="canary", cards=listed(canary, 500_000))
    desk.summaries.append(found)


def test_a_canary_is_not_judged_by_a_version_on_probation_which_is_rolled_back() -> None:
    desk = Desk()
    desk.say("promote", version=TWO)
    desk.say("canary", version=THREE, share=0.5)
    add_traffic_of_three(desk, 2)
    watch = desk.watch(mode="propose")
    watch.step()
    found = {verdict.version: (verdict.finding, verdict.due, verdict.missing) for verdict in desk.verdicts}
    why = ["the version that serves, with which it is compared, is on probation"]
    assert found == {"2": ("rise", "rollback", []), "3": ("undecided", None, why)}
    assert [incident.version for incident in desk.incidents] == ["2"]
    desk.watch().step()
    assert (monitor_commands(desk), desk.history.states["cards"].canary) == ([("rollback", None)], None)


def test_a_canary_is_judged_by_all_its_cards_once_the_version_that_serves_is_confirmed() -> None:
    desk = Desk()
    desk.say("promote", version=TWO)
    desk.say("canary", version=THREE, share=0.5)
    add_traffic_of_three(desk, 2)
    watch = desk.watch(cooldown_s=10.0)
    desk.say("hold")
    watch.step()
    desk.say("confirm")
    desk.say("release")
    for _ in range(2):
        watch.step()
    assert (monitor_commands(desk), desk.verdicts[-1].version) == ([("stop", None)], "3")
    # The cool-down of a canary that was stopped delays the next canary, and no rollback.
    desk.say("promote", version=FOUR)
    desk.summaries.append(summary(FOUR, MORE, other=TWO, offset=7))
    watch.step()
    assert monitor_commands(desk)[1:] == [("rollback", None)]


def ladder_desk(share: float = 0.1) -> Desk:
    """A canary at `share` of the ladder 10, 50, 100 %, with counts that are harmless at every share."""
    desk = Desk()
    desk.say("canary", version=TWO, share=share, ladder=[0.1, 0.5, 1.0], salt="s", until=10**15, expect_rise=0.01)
    harmless_at(desk, share)
    return desk


def harmless_at(desk: Desk, share: float) -> None:
    """Summaries of both arms of a canary that began with the last command: a random `share` of the cards is inside."""
    offset, inside = len(desk.log.records) - 1, 300
    desk.summaries.append(summary(TWO, [inside, 4, 2, 9_000], offset=offset, arm="canary"))
    other_arm = [round((inside + 2) * (1 - share) / share), 0, 0, 90_000]
    desk.summaries.append(summary(ONE, other_arm, other=TWO, cards=listed(other_arm, 100_000), offset=offset))


def monitor_commands(desk: Desk) -> list[tuple[str, float | None]]:
    commands = [entry.command for entry in desk.history.entries if not entry.refused]
    return [(c.action, c.share) for c in commands if c is not None and c.author == "monitor"]


def test_a_ladder_raises_the_share_after_each_confirmation_and_ends_with_a_promotion() -> None:
    desk = ladder_desk()
    for _ in range(4):
        desk.watch(probation=1).step()
    assert monitor_commands(desk) == [("confirm", None), ("canary", 0.5)]
    canary = desk.history.states["cards"].canary
    assert canary is not None and (canary.share, canary.salt, canary.until) == (0.5, "s", 10**15)
    assert not canary.confirmed and canary.ladder == [0.1, 0.5, 1.0]
    (comparison,) = comparisons(desk.history.states["cards"], desk.history)
    assert (comparison.share, comparison.expected_rise) == (0.5, 0.01)
    harmless_at(desk, 0.5)
    for _ in range(3):
        desk.watch(probation=1).step()
    assert monitor_commands(desk)[2:] == [("confirm", None), ("promote", None)]
    state = desk.history.states["cards"]
    assert (state.champion, state.last_good, state.probation, state.canary) == (TWO, ONE, True, None)


def test_a_canary_of_a_ladder_whose_alerts_rise_is_stopped() -> None:
    desk = ladder_desk()
    for _ in range(2):
        desk.watch(probation=1).step()
    offset, other_arm = len(desk.log.records) - 1, [202, 0, 0, 9_000]
    desk.summaries.append(summary(TWO, MORE, offset=offset))
    desk.summaries.append(summary(ONE, other_arm, other=TWO, cards=listed(other_arm, 100_000), offset=offset))
    desk.watch(probation=1).step()
    assert monitor_commands(desk)[-1] == ("stop", None)


@pytest.mark.parametrize("why", ["propose", "hold", "drift", "share", "other share", "no counts"])
def test_nothing_but_evidence_at_the_share_raises_it(why: str) -> None:
    desk = Desk() if why == "no counts" else ladder_desk()
    if why == "no counts":
        desk.say("canary", version=TWO, share=0.1, ladder=[0.1, 0.5, 1.0])
    if why == "share":  # the canary decides a quarter of the cards
        desk.summaries[-1] = summary(ONE, [900, 0, 0, 90_000], other=TWO, cards=listed([900, 0, 0, 90_000], 100_000))
    else:
        desk.say("confirm", version=TWO)
    if why == "hold":
        desk.say("hold")
    if why == "other share":  # given by a person without a ladder
        desk.say("canary", version=TWO, share=0.2)
        harmless_at(desk, 0.2)
        desk.say("confirm", version=TWO)
    if why == "drift":
        drift = Incident(id="drift-1", ensemble="cards", opened=1, why="amount", kind="drift", subject="amount")
        desk.incident_log.records.append(msgspec.json.encode(drift))
    before = list(desk.log.records)
    watch = desk.watch(mode="propose" if why == "propose" else "auto", probation=1)
    for _ in range(3):
        watch.step()
    assert desk.log.records == before
    if why == "drift":
        assert desk.verdicts[-1].held_back == "paused while incidents are open: drift-1"
        IncidentLog(MemoryControlLog(desk.incident_log.records)).close_by("drift-1", "ann", "its state is lost", 2)
        watch.step()
        assert monitor_commands(desk) == [("canary", 0.5)]
    if why == "propose":
        assert (desk.verdicts[-1].due, desk.incidents) == ("canary", [])


def test_an_arm_with_another_share_than_requested_leads_to_no_command() -> None:
    for inside, outside in ((302, 1_000), (302, 20_000)):
        desk = canary_desk(inside=inside, outside=outside)
        desk.watch(probation=1).step()
        assert desk.verdicts[-1].missing == ["the canary decides another share of the cards than requested"]
        desk.summaries.append(summary(TWO, MORE, cards=listed(MORE, 200_000)))
        desk.watch(probation=1).step()
        assert desk.verdicts[-1].due is None
        canary = desk.history.states["cards"].canary
        assert canary is not None and not canary.confirmed


def test_a_canary_that_some_scorers_cannot_load_is_not_confirmed() -> None:
    desk = canary_desk()
    desk.summaries.append(summary(ONE, [0, 0, 0, 90_000], other=None))
    desk.watch(probation=1).step()
    assert desk.verdicts[-1].missing == ["both versions scored only 53% of the transactions"]
    canary = desk.history.states["cards"].canary
    assert canary is not None and not canary.confirmed


def test_a_verdict_is_written_when_it_changes_and_not_at_every_step() -> None:
    desk = Desk()
    desk.say("promote", version=TWO)
    desk.summaries.append(summary(TWO, SAME))
    watch = desk.watch(mode="propose")
    for _ in range(5):
        watch.step()
    assert len(desk.verdicts) == 1
    verdict = desk.verdicts[0]
    assert (verdict.id, verdict.version, verdict.baseline, verdict.rows) == ("cards-1", "2", "1", 10_000)
    assert msgspec.structs.astuple(verdict.cards) == (*SAME[:3], 0)


def test_a_restarted_watch_comes_to_the_same_verdict_as_one_that_read_all_along() -> None:
    desk = Desk()
    desk.say("promote", version=TWO)
    rng, verdicts = random.Random(7), []
    running = desk.watch(mode="propose")
    arrived: list[ScoreSummary] = []
    running._follow = lambda _since: GrowingReader(arrived)
    for minute in range(200):
        time = minute * 60_000
        rows = [
            (f"{rng.randrange(3_000):016x}", rng.random() < 0.9, rng.random() < 0.8) for _ in range(rng.randrange(9))
        ]
        rows = list({card: (card, this, other) for card, this, other in rows if this or other}.values())
        square = [len(rows), 0, 0, 101 - len(rows)]
        listed_now = CardAlerts(
            100, 1, [c for c, _, _ in rows], [time if s else None for _, s, _ in rows],
            [time if o else None for _, _, o in rows], against=square,
        )  # fmt: skip
        arrived.append(replace(summary(TWO, square, cards=listed_now), partition=minute % 3, newest=time))
        if minute % 10 == 0:
            running.step()
    desk.summaries = arrived
    for watch in (running, desk.watch(mode="propose")):
        watch.step()
        (counting,) = watch._counting.values()
        verdicts.append(verdict_record(counting.counts, None, "", 0))
    assert verdicts[0] == verdicts[1]
    assert verdicts[0].cards.both > 100 and verdicts[0].cards.waiting > 0


def test_a_topic_of_verdicts_that_cannot_be_written_does_not_keep_a_version_in_service() -> None:
    def fail(_key: str, _value: bytes) -> None:
        raise BrokerUnavailable("not authorized")

    desk = Desk()
    desk.say("promote", version=TWO)
    desk.summaries.append(summary(TWO, MORE))
    watch = desk.watch()
    watch._parts = dataclasses.replace(watch._parts, verdicts=Verdicts(fail))
    watch.step()
    assert desk.history.states["cards"].champion == ONE


def test_a_version_that_comes_again_is_counted_anew() -> None:
    desk = Desk()
    desk.say("promote", version=TWO)
    desk.summaries.append(summary(TWO, MORE))
    watch = desk.watch()
    watch.step()
    desk.say("promote", version=TWO)
    for _ in range(3):
        watch.step()
    assert desk.history.states["cards"].champion == TWO
    desk.summaries.append(summary(TWO, MORE, offset=3))
    desk.watch().step()
    assert desk.history.states["cards"].champion == ONE


def test_a_watch_that_fails_raises_and_a_new_one_comes_to_the_same_counts() -> None:
    class Broken(Reader):
        def poll(self, max_records: int, timeout_s: float) -> list[ControlRecord]:
            raise BrokerUnavailable("not now")

    desk = Desk()
    desk.say("promote", version=TWO)
    desk.summaries.append(summary(TWO, MORE))
    watch, stop, steps = desk.watch(), threading.Event(), []
    watch._follow = lambda since: Broken([])
    with pytest.raises(BrokerUnavailable):
        watch.run(stop, lambda: steps.append(1))
    assert steps == []

    def count() -> None:
        steps.append(1)
        if len(steps) == 2:
            stop.set()

    desk.watch().run(stop, count)
    assert desk.history.states["cards"].champion == ONE


def test_a_watch_ends_when_it_is_stopped() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=Desk().watch().run, args=(stop,))
    thread.start()
    stop.set()
    thread.join(5.0)
    assert not thread.is_alive()


@pytest.mark.parametrize("clock", [0, 1 << 60])
def test_a_pair_begins_when_the_log_took_its_command_whatever_the_clock_of_the_author(clock: int) -> None:
    history = History()
    for offset, version in enumerate((ONE, TWO)):
        command = Command(
            ensemble="cards", action="promote", who="ann", why="so", at=clock, expected_offset=offset, version=version
        )
        history.add(offset, msgspec.json.encode(command), timestamp=7_000 + offset)
    (comparison,) = comparisons(history.states["cards"], history)
    assert (comparison.since, comparison.at) == (1, 7_001)


def test_a_watch_reads_summaries_from_time_zero_at_the_earliest() -> None:
    desk = Desk()
    desk.say("promote", version=TWO)
    since: list[int] = []
    watch = desk.watch()
    watch._follow = lambda at: since.append(at) or Reader([])  # type: ignore[func-returns-value]
    watch.step()
    assert since == [0]  # the log of this test has no times, and the command's is 1 s after the epoch
