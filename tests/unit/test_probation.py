"""The paired test keeps its promise however often it is looked at, names the member, and the watch acts on it once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from stream_scorer.control.incidents import Incidents
from stream_scorer.control.probation import ALPHA, RISE, Pair, Paired, pairs
from stream_scorer.control.state import History
from stream_scorer.control.watch import WATCH_METRICS, Mode, Watch, WatchRules
from stream_scorer.errors import BrokerUnavailable
from stream_scorer.observability.metrics import Metrics
from stream_scorer.records import Command, Incident, PaneSummary, ScoreSummary, ServedVersion
from tests.support.control import MARKER, ControlRecord, MemoryControlLog

ONE, TWO = (ServedVersion(str(i), str(i) * 64) for i in (1, 2))
PAIR = Pair("cards", TWO, ONE, since=1, at=1_000, ends="rollback")
MEMBERS = ("gbdt", "xgb")


def summary(
    version: ServedVersion,
    square: Sequence[int],
    *,
    other: ServedVersion | None = ONE,
    offset: int | None = 1,
    only_by: Sequence[int] = (0, 0),
    ensemble: str = "cards",
) -> ScoreSummary:
    rows = sum(square)
    against = {} if other is None else {other.version: list(square)}
    left_out = {m: [0, count, 0, rows - count] for m, count in zip(MEMBERS, only_by, strict=True)}
    pane = PaneSummary(0, rows, 0, 0, 0, {}, {}, {}, {}, {}, [], left_out, against)
    return ScoreSummary(ensemble, version.version, "champion", 1, "t", 0, 0, rows, 0, [pane], offset)


def paired(*squares: Sequence[int]) -> Paired:
    found = Paired(PAIR)
    for square in squares:
        found.add(summary(TWO, square))
    return found


def draws(rng: np.random.Generator, looks: int, rate: float, rise: float, disagree: float) -> list[list[int]]:
    """2x2 counts of `looks` batches of 256 where the served version alerts ``1 + rise`` times as often."""
    both = rate * (1 - disagree)
    p = [both, rate * (1 + rise) - both, rate - both]
    return rng.multinomial(256, [*p, 1 - sum(p)], size=looks).tolist()


def test_a_rise_that_is_allowed_is_hardly_ever_called_one_at_any_of_many_looks() -> None:
    rng = np.random.default_rng(1)
    runs, looks, called = 400, 120, 0
    for _ in range(runs):
        found, bound = Paired(PAIR), 0.05
        highest = -np.inf
        for square in draws(rng, looks, rate=0.05, rise=RISE, disagree=0.2):
            found.add(summary(TWO, square))
            highest = max(highest, found.log_evidence)
        called += highest >= -np.log(bound)
    # At 5 % in place of ALPHA, so that few runs can tell: at most 20 of 400 are expected; 35 has odds of one in 1,500.
    assert called <= 35


def test_the_incidents_rise_is_found_within_a_probation() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        found = Paired(PAIR)
        for square in draws(rng, 300, rate=0.05, rise=0.17, disagree=0.2):
            found.add(summary(TWO, square))
            if found.risen:
                break
        assert found.risen
        assert found.rows < 76_800


def test_evidence_does_not_depend_on_how_transactions_were_cut() -> None:
    whole, parts = paired([40, 30, 5, 925]), paired([10, 0, 5, 500], [30, 30, 0, 425])
    assert whole.log_evidence == parts.log_evidence
    assert whole.rise == pytest.approx(70 / 45 - 1)


def test_fewer_alerts_are_no_evidence() -> None:
    assert paired([100, 0, 400, 9_500]).log_evidence < 0
    assert paired([500, 0, 0, 9_500]).log_evidence < 0
    assert paired().log_evidence == pytest.approx(0.0)
    assert not paired([0, 0, 0, 100_000]).risen


def test_only_what_is_of_the_pair_counts() -> None:
    found = Paired(PAIR)
    for other in (
        summary(ONE, [1, 1, 1, 1], other=TWO),
        summary(TWO, [1, 1, 1, 1], other=None),
        summary(TWO, [1, 1, 1, 1], offset=0),
        summary(TWO, [1, 1, 1, 1], offset=None),
        summary(TWO, [1, 1, 1, 1], ensemble="others"),
    ):
        found.add(other)
    assert found.rows == 0


def test_the_member_is_named_that_makes_more_alerts_than_before() -> None:
    found = Paired(PAIR)
    # xgb makes most alerts now, and made as many before; gbdt makes more than it did.
    found.add(summary(ONE, [0, 0, 0, 10_000], other=None, offset=0, only_by=(10, 90)))
    found.add(summary(TWO, [200, 120, 0, 9_680], only_by=(70, 95)))
    member, more = found.culprit() or ("", 0.0)
    assert (member, more) == ("gbdt", pytest.approx(6.0))
    assert "member gbdt causes 6.0 more alerts per 1,000 transactions than before" in found.summary()
    assert "+60.0%" in found.summary()


class Reader:
    """What stands on `score-summaries`, from the start each time it is opened."""

    def __init__(self, summaries: list[ScoreSummary]) -> None:
        self._left = [ControlRecord(i, msgspec.json.encode(s)) for i, s in enumerate(summaries)]
        short = msgspec.json.encode(summary(TWO, [1, 2, 3, 4])).replace(b"[1,2,3,4]", b"[1,2]")
        for junk in (b"junk", b"", b'{"\xff":1}', b"[" * 100_000, short):
            self._left.insert(0, ControlRecord(0, junk))

    def poll(self, max_records: int, timeout_s: float) -> list[ControlRecord]:
        found, self._left = self._left[:max_records], self._left[max_records:]
        return found

    def close(self) -> None:
        pass


class Clock:
    def now_ms(self) -> int:
        return 5_000

    def monotonic(self) -> float:
        return 5.0


class Desk:
    """A log with commands, and watches on it."""

    def __init__(self) -> None:
        self.log = MemoryControlLog()
        self.told = MemoryControlLog()
        self.summaries: list[ScoreSummary] = []
        self.say("promote", version=ONE)

    def say(self, action: str, **more: object) -> None:
        expected = len(self.log.records)
        command = Command(
            ensemble="cards", action=action, who="ann", why="so", at=1_000, expected_offset=expected, **more
        )  # type: ignore[arg-type]
        self.log.records.append(msgspec.json.encode(command))

    def watch(self, mode: Mode = "auto", probation: int = 100_000, cooldown_s: float = 0.0) -> Watch:
        return Watch(
            MemoryControlLog(self.log.records),
            Incidents(MemoryControlLog(self.told.records)),
            lambda since: Reader(self.summaries),
            Clock(),  # type: ignore[arg-type]
            Metrics(WATCH_METRICS),
            who="monitor-1",
            rules=WatchRules(mode, probation, cooldown_s),
        )

    @property
    def history(self) -> History:
        history = History()
        for offset, value in enumerate(self.log.records):
            history.add(offset, value)
        return history

    @property
    def incidents(self) -> list[Incident]:
        return [msgspec.json.decode(value, type=Incident) for value in self.told.records if value != MARKER]


MORE = [200, 150, 2, 9_648]
SAME = [300, 4, 5, 9_691]


def test_a_version_that_alerts_more_is_rolled_back_once_and_the_log_says_why() -> None:
    desk = Desk()
    desk.say("promote", version=TWO)
    desk.summaries.append(summary(TWO, MORE, only_by=(3, 80)))
    one, two = desk.watch(), desk.watch()
    for _ in range(3):
        one.step()
        two.step()
    history = desk.history
    given = [e for e in history.entries if e.command is not None and e.command.author == "monitor"]
    assert [(e.command.action, e.refused) for e in given if e.command] == [("rollback", "")]
    assert history.states["cards"].champion == ONE
    assert given[0].command is not None
    assert "member xgb" in given[0].command.why
    assert "version 2 alerts on 350" in given[0].command.why
    opened, closed = desk.incidents
    assert (opened.id, opened.version, opened.other, opened.member) == ("cards-1", "2", "1", "xgb")
    assert (opened.rows, opened.both, opened.only, opened.lacking) == (10_000, *MORE[:3])
    assert (opened.due, opened.held_back, opened.closed, opened.ended_by) == ("rollback", "", None, None)
    assert opened.why == given[0].command.why
    assert closed == msgspec.structs.replace(opened, closed=5_000, ended_by=given[0].offset)


def test_an_incident_that_a_person_ended_while_nobody_watched_is_closed_by_the_next_watch() -> None:
    desk = Desk()
    desk.say("promote", version=TWO)
    desk.summaries.append(summary(TWO, MORE))
    desk.watch(mode="propose").step()
    assert [i.closed for i in desk.incidents] == [None]
    desk.say("rollback")
    desk.told.records.insert(0, b"junk")
    desk.watch(mode="propose").step()
    desk.watch(mode="propose").step()
    last = msgspec.json.decode(desk.told.records[-1], type=Incident)
    assert (len(desk.told.records), last.closed, last.ended_by) == (3, 5_000, 2)


def test_a_topic_of_incidents_that_cannot_be_written_does_not_keep_a_version_in_service() -> None:
    class Broken(MemoryControlLog):
        def append(self, key: str, value: bytes) -> int:
            raise BrokerUnavailable("not authorized")

    desk = Desk()
    desk.told = Broken()
    desk.say("promote", version=TWO)
    desk.summaries.append(summary(TWO, MORE))
    watch = desk.watch()
    watch._incidents = Incidents(desk.told)
    for _ in range(2):
        watch.step()
    assert desk.history.states["cards"].champion == ONE


def test_a_transaction_marker_at_the_end_of_a_topic_does_not_block_the_watch() -> None:
    desk = Desk()
    desk.say("promote", version=TWO)
    desk.log.records.append(MARKER)
    desk.told.records.append(MARKER)
    desk.summaries.append(summary(TWO, MORE))
    watch = desk.watch()
    for _ in range(2):
        watch.step()
    assert desk.history.states["cards"].champion == ONE
    desk.told.records.append(MARKER)
    assert [incident.id for incident in Incidents(desk.told).open()] == []


@pytest.mark.parametrize("why", ["propose", "hold", "cooldown"])
def test_where_it_may_not_act_it_says_what_is_due_and_says_it_once(why: str, caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    if why == "cooldown":
        desk.say("canary", version=TWO, share=0.1)
        desk.say("stop", version=TWO, author="monitor")
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


def test_an_incident_that_could_not_be_told_is_told_later() -> None:
    class Moody(MemoryControlLog):
        broken = True

        def append(self, key: str, value: bytes) -> int:
            if self.broken:
                raise BrokerUnavailable("not now")
            return super().append(key, value)

    desk = Desk()
    desk.told = moody = Moody()
    desk.say("promote", version=TWO)
    desk.summaries.append(summary(TWO, MORE))
    watch = desk.watch(mode="propose")
    watch._incidents = Incidents(moody)
    watch.step()
    assert desk.incidents == []
    moody.broken = False
    for _ in range(3):
        watch.step()
    assert [incident.due for incident in desk.incidents] == ["rollback"]


def test_a_probation_without_a_finding_is_over_after_so_many_transactions() -> None:
    desk = Desk()
    desk.say("promote", version=TWO)
    desk.summaries.append(summary(TWO, SAME))
    for _ in range(3):
        desk.watch(probation=10_001).step()
    assert desk.history.states["cards"].probation
    # Not enough to act on, and not nothing either: it goes on.
    desk.summaries.append(summary(TWO, [0, 24, 0, 0]))
    desk.watch(probation=10_000).step()
    assert desk.history.states["cards"].probation
    desk.summaries.pop()
    desk.watch(probation=10_000).step()
    state = desk.history.states["cards"]
    assert (state.champion, state.probation) == (TWO, False)


def test_a_canary_that_alerts_more_is_stopped_and_one_that_does_not_goes_on() -> None:
    desk = Desk()
    desk.say("canary", version=TWO, share=0.1)
    (pair,) = pairs(desk.history.states["cards"], desk.history)
    assert (pair.served, pair.other, pair.since, pair.ends) == (TWO, ONE, 1, "stop")
    desk.summaries.append(summary(TWO, SAME))
    desk.watch(probation=1).step()
    assert desk.history.states["cards"].canary is not None
    desk.summaries.append(summary(TWO, MORE))
    desk.watch().step()
    assert desk.history.states["cards"].canary is None


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


def test_a_watch_ends_when_it_is_told_to() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=Desk().watch().run, args=(stop,))
    thread.start()
    stop.set()
    thread.join(5.0)
    assert not thread.is_alive()
    assert pytest.approx(0.001) == ALPHA


@pytest.mark.parametrize("clock", [0, 1 << 60])
def test_a_pair_begins_when_the_log_took_its_command_whatever_the_clock_of_the_author(clock: int) -> None:
    history = History()
    for offset, version in enumerate((ONE, TWO)):
        command = Command(
            ensemble="cards", action="promote", who="ann", why="so", at=clock, expected_offset=offset, version=version
        )
        history.add(offset, msgspec.json.encode(command), timestamp=7_000 + offset)
    (pair,) = pairs(history.states["cards"], history)
    assert (pair.since, pair.at) == (1, 7_001)


def test_a_watch_reads_summaries_from_time_zero_at_the_earliest() -> None:
    desk = Desk()
    desk.say("promote", version=TWO)
    since: list[int] = []
    watch = desk.watch()
    watch._follow = lambda at: since.append(at) or Reader([])  # type: ignore[func-returns-value]
    watch.step()
    assert since == [0]  # the log of this test has no times, and the command's is 1 s after the epoch
