"""A version that the monitor rolled back is scored in shadow until labels have enough cards; see ADR 0050."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Mapping, Sequence

import msgspec
import pytest

from stream_scorer.cli.formatting import verdict_facts
from stream_scorer.control.collection import ENOUGH, MAX_EVENT_MS, Collected, CollectionWatch, Withdrawal, withdrawals
from stream_scorer.control.incidents import Incidents
from stream_scorer.control.label_progress import Known
from stream_scorer.control.label_verdict import judge_labels
from stream_scorer.control.label_watch import LabelWatch
from stream_scorer.control.probation import GRACE_MS, acted_since, comparisons
from stream_scorer.control.state import MAX_SHADOWS, History
from stream_scorer.control.summary_reader import SummaryReader
from stream_scorer.control.timeline import served_at
from stream_scorer.control.verdict import Tolerances
from stream_scorer.control.verdicts import Verdicts, read_verdicts
from stream_scorer.control.watch import WATCH_METRICS, Mode, Watch, WatchRules
from stream_scorer.errors import AccessDenied, BrokerUnavailable, ReaderLost, StreamScorerError
from stream_scorer.incidents.log import IncidentLog
from stream_scorer.kafka.follower import FollowedRecord
from stream_scorer.observability.metrics import Metrics
from stream_scorer.records import (
    CardAlerts,
    Command,
    Disagreement,
    Outcome,
    PaneSummary,
    ScoreSummary,
    ServedVersion,
    ServingState,
)
from tests.support.control import ControlRecord, MemoryControlLog
from tests.support.watch import parts

ONE, TWO, THREE, FOUR = (ServedVersion(str(i), str(i) * 64) for i in (1, 2, 3, 4))
LATER = GRACE_MS + 1
ALONE = 40


class Desk:
    """The topics in memory, and watches on them. Cards are numbered; those of the probation are below 1,000."""

    def __init__(self) -> None:
        self.log, self.verdicts, self.incidents = MemoryControlLog(), MemoryControlLog(), MemoryControlLog()
        self.summaries: list[bytes] = [b"junk"]
        self.metrics = Metrics(WATCH_METRICS)
        self.now = 10_000

    def say(self, action: str, **more: object) -> str:
        offset = len(self.log.records)
        fields = {"ensemble": "cards", "who": "ann", "why": "so", "at": 1_000, "expected_offset": offset} | more
        self.log.records.append(msgspec.json.encode(Command(action=action, **fields)))  # type: ignore[arg-type]
        return self.history.entries[-1].refused

    def watch(self, mode: Mode = "auto", labels: LabelWatch | None = None) -> Watch:
        clock, summaries = self, self.summaries

        class Clock:
            def now_ms(self) -> int:
                return clock.now

            def monotonic(self) -> float:
                return clock.now / 1_000

        class Reader:
            def __init__(self) -> None:
                self.at = 0

            def poll(self, max_records: int, timeout_s: float) -> list[ControlRecord]:
                found, self.at = summaries[self.at : self.at + max_records], self.at + max_records
                self.at = min(self.at, len(summaries))
                return [ControlRecord(0, value) for value in found]

            def caught_up(self) -> bool:
                return self.at >= len(summaries)

            def close(self) -> None:
                pass

        self.collections = CollectionWatch(
            lambda: MemoryControlLog(self.verdicts.records), self.verdicts.append, lambda _since: Reader(), self.metrics
        )
        return Watch(
            MemoryControlLog(self.log.records),
            lambda _since: Reader(),
            Clock(),
            self.metrics,
            who="monitor-1",
            rules=WatchRules(mode, 3_600.0, Tolerances()),
            parts=parts(
                Incidents(MemoryControlLog(self.incidents.records)),
                Verdicts(self.verdicts.append),
                labels=labels,
                collections=self.collections,
            ),
        )

    def steps(self, *watches: Watch) -> None:
        for _ in range(3):
            self.now += 6_000
            for watch in watches:
                watch.step()

    def score(self, version: ServedVersion, other: ServedVersion, offset: int, cards: CardAlerts, newest: int) -> None:
        pane = PaneSummary(0, cards.rows, 0, 0, 0, {}, {}, {}, {}, {}, [], {}, {other.version: [0, 0, 0, cards.rows]})
        found = ScoreSummary(
            "cards", version.version, "champion", 1, "t", 0, 0, 1, 0, [pane], offset, {other.version: cards}, newest
        )
        self.summaries.append(msgspec.json.encode(found))

    def withdraw(self, watch: Watch, alone: int = ALONE) -> None:
        """Promote TWO after ONE; it alerts `alone` cards more than ONE does, and the watch rolls it back."""
        self.say("promote", version=ONE)
        self.say("promote", version=TWO)
        self.score(TWO, ONE, 1, listed(range(60), range(100, 100 + alone), range(900, 902)), LATER)
        self.steps(watch)

    def shadow(self, alone: Sequence[int], lost: Sequence[int] = (), at: int = 2 * LATER, offset: int = 2) -> None:
        """Let ONE decide: only TWO alerts the cards `alone`, only ONE those that are `lost`."""
        self.score(ONE, TWO, offset, listed((), lost, alone, at=at, rows=1_000), at)
        self.score(ONE, TWO, offset, listed((), (), ()), at + LATER)

    @property
    def history(self) -> History:
        return self.log.history

    @property
    def state(self) -> ServingState:
        return self.history.states["cards"]

    @property
    def commands(self) -> list[str]:
        """The actions of monitors that count."""
        entries = [each for each in self.history.entries if not each.refused]
        return [e.command.action for e in entries if e.command is not None and e.command.author == "monitor"]

    @property
    def verdict(self):  # type: ignore[no-untyped-def]
        return read_verdicts(MemoryControlLog(self.verdicts.records))["cards-1"]


def listed(
    both: Sequence[int], this: Sequence[int], other: Sequence[int], *, at: int = 0, rows: int = 10_000
) -> CardAlerts:
    """Cards by number, each with one alert at the event time `at`."""
    sides = [(c, at, at) for c in both] + [(c, at, None) for c in this] + [(c, None, at) for c in other]
    names = [f"{card:016x}" for card, _, _ in sides]
    events = [f"e{card}-{at}" for card, _, _ in sides]
    square = [len(both), len(this), len(other), rows - len(sides)]
    values = [100] * len(sides)
    return CardAlerts(rows, 0, names, [s for _, s, _ in sides], [o for *_, o in sides], events, values, square)


def test_a_version_that_the_monitor_rolled_back_is_stopped_once_when_its_cards_suffice() -> None:
    desk = Desk()
    one, two = desk.watch(), desk.watch()
    desk.withdraw(one)
    desk.steps(two)
    assert (desk.state.champion, desk.state.withdrawn, desk.commands) == (ONE, TWO, ["rollback"])
    assert comparisons(desk.state, desk.history) == []
    before = desk.verdict
    assert (before.cards.candidate_only, before.collection.cards, before.collection.ended) == (ALONE, ALONE, "")
    # Ten of the cards have alerted in the probation: they count once.
    desk.shadow([*range(100, 110), *range(1_000, 1_000 + ENOUGH - ALONE - 1)], lost=range(5_000, 5_030))
    desk.steps(one, two)
    assert (desk.state.withdrawn, desk.commands) == (TWO, ["rollback"])
    label, fact = verdict_facts(desk.verdict)[-1]
    assert (label, fact.split(", at the latest")[0]) == (
        "shadow", "149 cards alerted only by 2, with its time in shadow; 150 are wanted",
    )  # fmt: skip
    desk.shadow([8_000], at=5 * LATER)
    desk.steps(one, two)
    assert (desk.state.withdrawn, desk.commands) == (None, ["rollback", "stop"])
    found = desk.verdict
    assert (found.collection.cards, found.collection.ended) == (ENOUGH, "enough cards")
    # What the withdrawal was based on stays.
    assert (found.finding, found.why, found.cards, found.evidence) == (
        before.finding, before.why, before.cards, before.evidence,
    )  # fmt: skip
    sides = [(each.candidate, each.shadow) for each in found.disagreements]
    expected = {(True, False): ALONE, (False, False): 2, (True, True): ENOUGH - ALONE, (False, True): 30}
    assert {side: sides.count(side) for side in expected} == expected and len(found.common) == 60
    assert len({each.event_id.split("-")[0] for each in found.disagreements}) == len(sides)
    # The end of the collection withdraws nothing that decided, so no cool-down starts.
    stop = desk.history.entries[-1].command
    assert stop is not None and stop.why.startswith("150 cards that only version 2 alerts are collected for labels")
    assert not acted_since(desk.history, "cards", stop.at - 1)


def test_a_stop_that_kafka_refuses_needs_a_person_and_is_submitted_again(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    watch = desk.watch()
    desk.withdraw(watch)
    desk.shadow(range(1_000, 1_000 + ENOUGH))
    log, asked = watch._log, []
    append = log.append

    def refuse(key: str, value: bytes) -> int:
        asked.append(key)
        raise AccessDenied("no ACL")

    log.append = refuse  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            desk.steps(watch)  # 18 s each
    assert (len(asked), desk.commands) == (2, ["rollback"])
    assert caplog.text.count("stop cards is due, needs a person: Kafka refuses the command: no ACL: 1") == 1
    log.append = append  # type: ignore[method-assign]
    desk.steps(watch)
    assert (desk.state.withdrawn, desk.commands) == (None, ["rollback", "stop"])


def test_a_restart_counts_the_same_and_a_person_may_end_it_meanwhile() -> None:
    desk = Desk()
    first = desk.watch()
    desk.withdraw(first)
    desk.shadow(range(1_000, 1_050), lost=[5_000])
    desk.steps(first)
    before = desk.verdict
    assert before.collection.cards == ALONE + 50
    again = desk.watch()
    desk.steps(again)
    assert (desk.verdict.disagreements, desk.verdict.collection) == (before.disagreements, before.collection)
    desk.shadow(range(1_050, 1_060), at=5 * LATER)
    again.step()  # it is counted, but a record follows only after some seconds
    desk.say("stop", version=TWO)
    desk.steps(again)
    assert (desk.state.withdrawn, desk.commands) == (None, ["rollback"])
    assert (desk.verdict.collection.cards, desk.verdict.collection.ended) == (ALONE + 60, "another command ended it")
    assert desk.metrics.registry.get_sample_value(
        "stream_scorer_withdrawn_cards", {"ensemble": "cards", "version": "2", "baseline": "1"}
    ) == 0  # fmt: skip


def test_a_part_of_the_summaries_changes_no_record_and_ends_no_collection() -> None:
    desk = Desk()
    desk.withdraw(desk.watch())
    desk.shadow(range(1_000, 1_000 + ENOUGH))
    watch, before = desk.watch(), len(desk.verdicts.records)
    follow = desk.collections._follow

    def part(since: int) -> SummaryReader:
        reader = follow(since)
        reader.caught_up = lambda: False  # type: ignore[method-assign]
        return reader

    desk.collections._follow = part
    desk.steps(watch)
    assert (len(desk.verdicts.records), desk.commands) == (before, ["rollback"])
    desk.steps(desk.watch())
    assert (desk.verdict.collection.ended, desk.commands) == ("enough cards", ["rollback", "stop"])


@pytest.mark.parametrize("lost", ["score-summaries", "verdicts", "neither"])
def test_a_watch_ends_if_a_topic_of_a_collection_is_another_one_and_goes_on_otherwise(lost: str) -> None:
    desk = Desk()
    desk.withdraw(desk.watch())
    watch, error = desk.watch(), StreamScorerError("refused") if lost == "neither" else ReaderLost("created again")
    desk.steps(watch)
    if lost == "verdicts":
        desk.verdicts.records.clear()
        desk.shadow([1_000])
    else:
        reader = desk.collections._reader
        reader.poll = lambda *_: (_ for _ in ()).throw(error)  # type: ignore[method-assign, union-attr]
    with contextlib.nullcontext() if lost == "neither" else pytest.raises(ReaderLost, match="created again"):
        desk.steps(watch)


@pytest.mark.parametrize("ahead", [1, 2])
def test_an_event_whose_clock_is_ahead_ends_no_collection(ahead: int) -> None:
    desk, now = Desk(), 20_000 * 86_400_000
    collected = Collected(Withdrawal("cards", TWO, ONE, since=1, at=1_000, until=2))
    for offset, version, other in ((1, TWO, ONE), (2, ONE, TWO)):
        newest = now + 300 * 86_400_000 if offset == ahead else now
        desk.score(version, other, offset, listed((), (), ()), newest)
        collected.add(msgspec.json.decode(desk.summaries[-1], type=ScoreSummary), now)
    assert (collected.until, collected.ended) == (now + MAX_EVENT_MS, "")


class Labels:
    """Keeps the ids of the comparisons whose labels wait."""

    def __init__(self) -> None:
        self.waiting: set[str] = set()

    def step(self, _history: History, active: set[str], _now: int) -> None:
        self.waiting = active


def test_a_hold_delays_the_stop_and_labels_do_not_wait_for_it() -> None:
    desk = Desk()
    labels = Labels()
    watch = desk.watch(labels=labels)  # type: ignore[arg-type]
    desk.withdraw(watch)
    assert (desk.commands, labels.waiting) == (["rollback"], {"cards-1"})
    desk.say("hold")
    desk.shadow(range(1_000, 1_000 + ENOUGH))
    desk.steps(watch)
    assert (desk.state.withdrawn, desk.commands) == (TWO, ["rollback"])
    assert labels.waiting == set()
    complete = desk.verdict
    desk.shadow(range(2_000, 2_100), at=5 * LATER)
    restarted = desk.watch("propose")
    desk.steps(watch, restarted)
    desk.say("release")
    desk.steps(restarted)
    assert (desk.verdict, desk.commands) == (complete, ["rollback"])
    desk.steps(watch)
    assert (desk.state.withdrawn, desk.commands) == (None, ["rollback", "stop"])


class Outcomes:
    """The labels that are known so far; the last one shows how far labels have come."""

    def __init__(self, frauds: set[str], genuine: set[str]) -> None:
        given = [(event, "fraud") for event in frauds] + [(event, "genuine") for event in genuine]
        self._left = [
            msgspec.json.encode(
                Outcome(event, 0, 0, "2", "champion", "p", "review", 0, 1, label, None, "x", None, at, 0)  # type: ignore[arg-type]
            )
            for at, (event, label) in [*((0, each) for each in given), (10**12, ("another", "genuine"))]
        ]

    def poll(self, _max_records: int, _timeout_s: float) -> list[FollowedRecord]:
        found, self._left = self._left, []
        return [FollowedRecord(0, at, None, value, 0) for at, value in enumerate(found)]

    def ends(self) -> dict[int, int]:
        return {0: 1}

    def passed(self, ends: Mapping[int, int]) -> bool:
        return not self._left

    def close(self) -> None:
        pass


def test_labels_clear_the_version_by_the_cards_of_both_phases() -> None:
    desk = Desk()
    later = range(1_000, 1_000 + ENOUGH - ALONE)
    early = {f"e{card}-0" for card in range(100, 100 + ALONE, 2)}
    # Analysts label the alerts of the probation. In shadow, only fraud is reported.
    frauds = early | {f"e{card}-{2 * LATER}" for card in later[::2]} | {f"e{card}-0" for card in range(0, 60, 2)}
    genuine = {f"e{card}-0" for card in (*range(101, 100 + ALONE, 2), *range(1, 60, 2))}
    labels = LabelWatch(
        MemoryControlLog(desk.verdicts.records),
        desk.verdicts.append,
        lambda _since: Outcomes(frauds, genuine),
        IncidentLog(MemoryControlLog(desk.incidents.records)),
        1_000,
        lambda: desk.now / 1_000,
    )
    watch = desk.watch(labels=labels)
    desk.withdraw(watch)
    desk.steps(watch)
    assert desk.verdict.labels is None
    desk.shadow(later)
    desk.steps(watch)
    desk.steps(watch)
    assert (desk.commands, desk.state.withdrawn) == (["rollback", "stop"], None)
    found = desk.verdict.labels
    assert (found.finding, found.candidate_only.fraud, found.candidate_only.genuine) == (
        "cleared",
        ENOUGH / 2,
        ENOUGH / 2,
    )
    (incident,) = Incidents(MemoryControlLog(desk.incidents.records)).open()
    assert (incident.id, incident.due) == ("cards-1-labels", "promote")


def test_it_ends_after_seven_days_of_event_time_without_enough_cards() -> None:
    desk = Desk()
    watch = desk.watch()
    desk.withdraw(watch)
    desk.shadow([1_000], at=MAX_EVENT_MS - LATER)
    desk.steps(watch)
    assert desk.state.withdrawn == TWO
    desk.shadow([], at=MAX_EVENT_MS + LATER)
    desk.steps(watch)
    assert (desk.state.withdrawn, desk.verdict.collection.ended) == (None, "7 days of event time are over")


def test_it_ends_at_the_same_time_though_retention_deletes_summaries_before_a_restart() -> None:
    desk = Desk()
    watch = desk.watch()
    desk.withdraw(watch)
    day, restarts = MAX_EVENT_MS // 7, 0
    for number in range(1, 9):
        desk.shadow([], at=number * day)
        desk.steps(watch)
        if desk.state.withdrawn is None:
            break
        del desk.summaries[:-2]  # only the last day is left
        watch, restarts = desk.watch(), restarts + 1
    assert (restarts, desk.verdict.collection.ended) == (6, "7 days of event time are over")


def test_a_version_is_kept_only_if_that_helps() -> None:
    enough = Desk()
    enough.withdraw(enough.watch(), ENOUGH)
    assert (enough.commands, enough.state.withdrawn) == (["rollback"], None)
    proposed = Desk()
    proposed.withdraw(proposed.watch("propose"))
    assert (proposed.commands, proposed.state.champion) == ([], TWO)
    # Without a record on verdicts, no labels could follow.
    lost = Desk()
    watch = lost.watch()
    watch._parts = dataclasses.replace(watch._parts, verdicts=Verdicts(lambda _key, _value: None))
    lost.withdraw(watch)
    assert (lost.commands, lost.state.withdrawn) == (["rollback", "stop"], None)


def test_what_fails_is_tried_again_and_prevents_no_rollback() -> None:
    desk = Desk()
    watch, collections = desk.watch(), desk.collections

    def fail(*_arguments: object) -> None:
        raise BrokerUnavailable("not now")

    follow, append = collections._follow, collections._append
    collections._follow = collections._append = fail  # type: ignore[assignment]
    desk.withdraw(watch)
    assert (desk.state.champion, desk.commands) == (ONE, ["rollback"])
    collections._follow = follow
    desk.shadow(range(1_000, 1_000 + ENOUGH))
    desk.steps(watch)
    # No command before the cards are on the topic.
    assert desk.commands == ["rollback"] and desk.verdict.collection is None
    collections._append = append
    desk.steps(watch)
    assert (desk.commands, desk.verdict.collection.ended) == (["rollback", "stop"], "enough cards")


def test_a_version_whose_probation_was_recovered_is_kept_and_stopped_as_any_other() -> None:
    desk = Desk()
    desk.say("recover", state=ServingState(
        ensemble="cards", control_offset=57, champion=TWO, last_good=ONE, probation=True, who="ann", why="so", at=1
    ))  # fmt: skip
    desk.say("hold")
    desk.say("release")
    watch = desk.watch()
    desk.score(TWO, ONE, 1, listed(range(60), range(100, 100 + ALONE), ()), LATER)
    desk.steps(watch)
    assert (desk.commands, desk.state.champion, desk.state.withdrawn) == (["rollback"], ONE, TWO)
    desk.shadow(range(2_000, 2_000 + ENOUGH), offset=3)
    desk.steps(watch)
    assert (desk.commands, desk.state.withdrawn) == (["rollback", "stop"], None)


def withdrawn(keep: bool = True, author: str = "monitor") -> Desk:
    desk = Desk()
    desk.say("promote", version=ONE)
    desk.say("shadow", version=THREE)
    desk.say("promote", version=TWO)
    assert desk.say("rollback", author=author, keep=keep) == ""
    return desk


def test_only_a_monitor_keeps_a_version_and_old_commands_mean_what_they_meant() -> None:
    assert (withdrawn().state.withdrawn, withdrawn().state.shadows) == (TWO, [THREE])
    assert withdrawn(keep=False).state.withdrawn is withdrawn(author="person").state.withdrawn is None
    old = withdrawn(keep=False)
    del_keep = [msgspec.json.decode(value) for value in old.log.records]
    old.log.records[:] = [msgspec.json.encode({k: v for k, v in c.items() if k != "keep"}) for c in del_keep]
    assert old.state == withdrawn(keep=False).state
    confirmed = Desk()
    for action, more in (("promote", {"version": ONE}), ("promote", {"version": TWO}), ("confirm", {})):
        confirmed.say(action, **more)
    confirmed.say("rollback", author="monitor", keep=True)
    assert (confirmed.state.champion, confirmed.state.withdrawn) == (ONE, None)


@pytest.mark.parametrize(
    ("action", "more"),
    [
        ("stop", {"version": TWO}),
        ("stop", {"version": TWO, "author": "monitor"}),
        ("shadow", {"version": TWO}),
        ("promote", {"version": FOUR}),
        ("promote", {"version": TWO}),
        ("canary", {"version": FOUR, "share": 0.1}),
        ("canary", {"version": TWO, "share": 0.1}),
        ("retire", {"version": ServedVersion("9", TWO.manifest_sha256)}),
        ("recover", {"state": withdrawn().state}),
    ],
)
def test_these_commands_end_it(action: str, more: dict[str, object]) -> None:
    desk = withdrawn()
    assert desk.say(action, **more) == ""
    assert (desk.state.withdrawn, withdrawals(desk.history)) == (None, [])
    assert desk.state.shadows.count(TWO) == (action == "shadow")


def test_other_commands_leave_it_in_shadow() -> None:
    desk = withdrawn()
    for action, more in (
        ("hold", {}), ("release", {}), ("shadow", {"version": FOUR}), ("stop", {"version": THREE}),
        ("retire", {"version": FOUR}),
    ):  # fmt: skip
        assert desk.say(action, **more) == ""
        assert desk.state.withdrawn == TWO
    # It takes no place of a shadow.
    for number in range(MAX_SHADOWS):
        assert desk.say("shadow", version=ServedVersion(f"s{number}", f"{number:064x}")) == ""
    assert "already" in desk.say("shadow", version=TWO)
    (found,) = withdrawals(desk.history)
    assert (found.id, found.version, found.baseline, found.until) == ("cards-2", TWO, ONE, 3)
    desk.say("hold")
    assert "hold" in desk.say("stop", version=TWO, author="monitor")
    records = [ControlRecord(offset, value, 10 * offset) for offset, value in enumerate(desk.log.records)]
    assert served_at(records, 30)["cards"].since["withdrawn"].action == "rollback"


def test_silence_means_what_the_version_that_decided_made_of_the_alert() -> None:
    cards = [Disagreement(i, f"e{i}", 1, candidate, shadow) for i, (candidate, shadow) in enumerate(
        [(True, False), (False, False), (True, True), (False, True)])]  # fmt: skip
    found = judge_labels(cards, {}, Known(10_000, 10_000), 1_000)
    assert (
        found.candidate_only.silent,
        found.candidate_only.genuine,
        found.baseline_only.silent,
        found.baseline_only.genuine,
    ) == (1, 1, 1, 1)
