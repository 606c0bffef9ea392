"""Labels show, at a fixed age and in event order, whether a withdrawn version did harm; a person decides the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from stream_scorer.cli.formatting import verdict_facts
from stream_scorer.control.label_progress import REGULAR, Known, LabelProgress
from stream_scorer.control.label_verdict import ALPHA, MIN_BASELINE, describe, judge_labels
from stream_scorer.control.label_watch import JUDGE_EVERY_MS, LabelWatch
from stream_scorer.control.state import History
from stream_scorer.control.verdicts import read_verdicts
from stream_scorer.errors import BrokerUnavailable, ReaderLost
from stream_scorer.incidents.log import IncidentLog
from stream_scorer.kafka.follower import FollowedRecord
from stream_scorer.records import (
    CanaryState,
    CommonAlert,
    CountedCards,
    Disagreement,
    Incident,
    LabelValue,
    Outcome,
    ServedVersion,
    ServingState,
    VerdictEvidence,
    VerdictRecord,
)
from tests.support.control import MemoryControlLog

HORIZON = 1_000
Labels = dict[str, list[tuple[int, LabelValue | None]]]


def till(ms: int) -> Known:
    """All labels up to this time are known."""
    return Known(ms, ms)


def cards(candidate: int, baseline: int, rng: np.random.Generator) -> list[Disagreement]:
    """Cards on which versions disagree, one per ms, in random order."""
    sides = rng.permutation([True] * candidate + [False] * baseline)
    return [Disagreement(at, f"e{at}", 100, bool(side)) for at, side in enumerate(sides)]


def labelled(found: list[Disagreement], candidate: float, baseline: float, rng: np.random.Generator) -> Labels:
    """Labels with the given precision of both sides; those of fraud are given later."""
    labels: Labels = {}
    for each in found:
        fraud = rng.random() < (candidate if each.candidate else baseline)
        labels[each.event_id] = [(each.at + (900 if fraud else 10), "fraud" if fraud else "genuine")]
    return labels


def test_alerts_without_fraud_confirm_the_harm_and_equal_precision_clears_it() -> None:
    rng = np.random.default_rng(1)
    found = cards(300, 100, rng)
    harm = judge_labels(found, labelled(found, 0.02, 0.5, rng), till(10_000), HORIZON)
    assert harm.finding == "harm" and harm.log_harm > -math.log(ALPHA) > harm.log_cleared
    assert (
        harm.candidate_only.fraud + harm.candidate_only.genuine == 300
        and harm.baseline_only.fraud_value == 100 * harm.baseline_only.fraud
    )
    cleared = judge_labels(found, labelled(found, 0.5, 0.5, rng), till(10_000), HORIZON)
    assert (cleared.finding, cleared.missing) == ("cleared", [])


def test_either_result_is_wrong_for_at_most_a_twentieth_at_any_number_of_looks() -> None:
    rng = np.random.default_rng(2)
    wrong = {"harm": 0, "cleared": 0}
    for _ in range(100):
        found = cards(120, 60, rng)
        labels = labelled(found, 0.25, 0.5, rng)  # exactly the ratio: neither result is true
        results = {judge_labels(found, labels, till(until), HORIZON).finding for until in range(1_040, 1_200, 40)}
        for finding in results - {"undecided"}:
            wrong[finding] += 1
    assert max(wrong.values()) <= 5 + 6


def test_labels_count_at_their_age_only_and_silence_means_genuine_after_an_approval_only() -> None:
    both = [Disagreement(0, "a", 1, True), Disagreement(0, "b", 1, False), Disagreement(500, "c", 1, False)]
    labels: Labels = {"c": [(1_400, "genuine"), (1_600, "fraud")]}
    found = judge_labels(both, labels, till(1_000), HORIZON)
    assert (found.waiting, found.candidate_only.silent, found.baseline_only.genuine, found.finding) == (
        1,
        1,
        1,
        "undecided",
    )
    found = judge_labels(both, labels, till(2_000), HORIZON)
    # The label of "c" changed after its age was reached.
    assert (found.waiting, found.baseline_only.genuine, found.baseline_only.fraud) == (0, 2, 0)
    assert found.missing == ["labels of cards that only the candidate alerted"]
    assert (
        judge_labels(both, {"c": [(1_400, "genuine"), (1_450, None)]}, till(2_000), HORIZON).baseline_only.genuine == 2
    )


def test_labels_that_stop_decide_nothing() -> None:
    rng = np.random.default_rng(1)
    found = cards(300, 100, rng)
    stopped = judge_labels(found, labelled(found, 0.02, 0.5, rng), till(900), HORIZON)
    assert (stopped.finding, stopped.waiting, stopped.log_harm) == ("undecided", 400, 0.0)


def common_cards(number: int) -> list[CommonAlert]:
    """Cards that both versions alert, one per ms."""
    return [CommonAlert(at, f"c{at}", 100) for at in range(number)]


def with_common(labels: Labels, found: list[CommonAlert], precision: float, rng: np.random.Generator) -> Labels:
    """`labels` and those of common cards."""
    fraud = rng.random(len(found)) < precision
    return labels | {
        each.event_id: [(each.at + 50, "fraud" if is_fraud else "genuine")]
        for each, is_fraud in zip(found, fraud.tolist(), strict=True)
    }


def test_a_version_that_only_adds_alerts_is_compared_with_the_alerts_of_both() -> None:
    rng = np.random.default_rng(4)
    found, both = cards(300, 0, rng), common_cards(300)
    results = {}
    for precision in (0.01, 0.3):
        labels = with_common(labelled(found, precision, 0.0, rng), both, 0.4, rng)
        alone = judge_labels(found, labels, till(10_000), HORIZON)
        assert (alone.finding, alone.missing, alone.common) == (
            "undecided",
            ["labels of cards that only the baseline alerted"],
            None,
        )
        results[precision] = judge_labels(found, labels, till(10_000), HORIZON, common=both)
    assert [found.finding for found in results.values()] == ["harm", "cleared"]
    counts = results[0.3].common
    assert counts is not None and counts.fraud + counts.genuine == 300
    assert "both alert" in describe("2", "1", results[0.3]) and results[0.3].missing == []


def test_compared_with_the_alerts_of_both_either_result_is_rarely_wrong() -> None:
    rng = np.random.default_rng(5)
    wrong = {"harm": 0, "cleared": 0}
    for _ in range(100):
        found, both = cards(120, 0, rng), common_cards(120)
        labels = with_common(labelled(found, 0.1, 0.0, rng), both, 0.4, rng)  # exactly a quarter
        results = {judge_labels(found, labels, till(t), HORIZON, common=both).finding for t in range(1_040, 1_200, 40)}
        for finding in results - {"undecided"}:
            wrong[finding] += 1
    assert max(wrong.values()) <= 5 + 6


def test_alerts_of_both_count_only_where_the_other_version_has_too_few_alone() -> None:
    rng = np.random.default_rng(6)
    found, both = cards(300, MIN_BASELINE, rng), common_cards(300)
    labels = with_common(labelled(found, 0.02, 0.5, rng), both, 0.0, rng)
    assert judge_labels(found, labels, till(10_000), HORIZON, common=both) == judge_labels(
        found, labels, till(10_000), HORIZON
    )
    fewer = [each for each in found if each.candidate] + [each for each in found if not each.candidate][1:]
    assert judge_labels(fewer, labels, till(10_000), HORIZON, common=both).common is not None
    # Silence after an alert means nothing: cards of both versions without labels decide nothing.
    silent = judge_labels(fewer, labelled(found, 0.02, 0.5, rng), till(10_000), HORIZON, common=both)
    assert (silent.finding, silent.missing) == ("undecided", ["labels of cards that both alerted"])
    assert silent.common is not None and silent.common.silent == 300


class Outcomes:
    """The topic `outcomes`, from its start each time it is opened. `late` is a partition that arrives `after` polls."""

    def __init__(self, values: list[bytes], late: Sequence[bytes] = (), after: int = 0) -> None:
        self._partitions, self._after = [list(values), list(late)], after
        self._read = [0, 0]

    def poll(self, max_records: int, timeout_s: float) -> list[FollowedRecord]:
        self._after -= 1
        for number, values in enumerate(self._partitions[: 1 if self._after >= 0 else 2]):
            start, stop = self._read[number], min(self._read[number] + max_records, len(values))
            self._read[number] = stop
            if start < stop:
                return [FollowedRecord(number, at, None, values[at], 0) for at in range(start, stop)]
        return []

    def ends(self) -> dict[int, int]:
        return {number: len(values) for number, values in enumerate(self._partitions)}

    def passed(self, ends: Mapping[int, int]) -> bool:
        return all(self._read[number] >= end for number, end in ends.items())

    def close(self) -> None:
        pass


class Desk:
    """A withdrawn version with its disagreements, and the watch of its labels."""

    def __init__(self, precision: float, *, labels: bool = True, baseline: int = 100) -> None:
        rng = np.random.default_rng(3)
        found, both = cards(300, baseline, rng), common_cards(300)
        self.verdicts, self.incidents = MemoryControlLog(), MemoryControlLog()
        verdict = VerdictRecord(
            id="cards-1", ensemble="cards", version="2", baseline="1", since=1, at=5, finding="rise", why="", rows=1,
            both=1, candidate_only=1, baseline_only=1, excluded=0, cards=CountedCards(1, 1, 1, 0),
            evidence=VerdictEvidence(0.0, 0.0, 0.0, 0.0), missing=[], more_rows=None, more_ms=None, due="rollback",
            held_back="", began=HORIZON + 77, disagreements=found, common=both, manifest_sha256="2" * 64,
        )  # fmt: skip
        self.verdicts.records.append(msgspec.json.encode(verdict))
        known = with_common(labelled(found, precision, 0.5, rng), both, 0.5, rng)
        # The last one is a label of another transaction, which shows how far labels have come.
        events = [(key, at, label) for key, changes in known.items() for at, label in changes]
        events = sorted(events, key=lambda each: each[1]) if labels else []
        self.outcomes = [self.outcome(*each) for each in [*events, ("other", 5_000, "genuine")]]
        self.late: list[bytes] = []
        self.history = History()
        self.since: list[int] = []
        self.now = self.ahead = 0  # the monotonic clock, and how far the wall clock is ahead of it, ms
        one = ServedVersion("1", "1" * 64)
        self.history.states["cards"] = ServingState(
            ensemble="cards", control_offset=2, champion=one, who="monitor", why="", at=0
        )

    def outcome(
        self, event_id: str, at: int, label: LabelValue | None, source: str = "analyst", partition: int | None = None
    ) -> bytes:
        found = Outcome(
            event_id, 0, 0, "2", "champion", "p", "review", 0, 1, label or "genuine", None, source, None, at, 0,
            label_partition=partition,
        )  # fmt: skip
        return msgspec.json.encode(found)

    def split(self, frauds: str, newest: int) -> list[bytes]:
        """Leave the labels of analysts, of which the newest is given at `newest`, and return those of frauds.

        These are of the source `frauds`, or of another partition of `labels`.
        """
        known = [msgspec.json.decode(value, type=Outcome) for value in self.outcomes[:-1]]
        genuine = [(each.event_id, each.labelled_at, each.label) for each in known if each.label == "genuine"]
        self.outcomes = [self.outcome(*each, partition=0) for each in [*genuine, ("other", newest, "genuine")]]
        source, partition = ("analyst", 1) if frauds == "partition" else (frauds, 0)
        return [
            self.outcome(each.event_id, each.labelled_at, each.label, source, partition)
            for each in known
            if each.label == "fraud"
        ]

    def watch(self, after: int = 0) -> LabelWatch:
        def follow(since: int) -> Outcomes:
            self.since.append(since)
            return Outcomes([b"junk", *self.outcomes], self.late, after)

        return LabelWatch(
            MemoryControlLog(self.verdicts.records),
            lambda key, value: self.verdicts.records.append(value),
            follow,
            IncidentLog(MemoryControlLog(self.incidents.records)),
            HORIZON,
            lambda: self.now / 1_000,
        )

    def steps(self, watch: LabelWatch, active: frozenset[str] = frozenset()) -> None:
        for _ in range(4):
            self.now += JUDGE_EVERY_MS
            for _ in range(2):
                watch.step(self.history, set(active), self.now + self.ahead)

    @property
    def result(self) -> VerdictRecord:
        return read_verdicts(MemoryControlLog(self.verdicts.records))["cards-1"]


@pytest.mark.parametrize("newest", [0, 2])  # 0: the state was recovered by the first command of a new log
def test_a_version_that_labels_clear_is_proposed_again_once_and_nothing_promotes_it(newest: int) -> None:
    desk = Desk(0.5)
    desk.history.states["cards"] = replace(desk.history.states["cards"], control_offset=newest)
    for _ in range(2):  # the second watch is one after a restart
        desk.steps(desk.watch())
    assert desk.since[0] == 77
    assert desk.result.labels is not None and desk.result.labels.finding == "cleared"
    assert len(desk.verdicts.records) == 2
    (incident,) = IncidentLog(MemoryControlLog(desk.incidents.records)).open()
    assert (incident.id, incident.due, incident.version) == ("cards-1-labels", "promote", "2")
    assert incident.held_back.startswith("needs a person") and "labels clear it" in incident.why
    # The next command of anyone answers it.
    state = desk.history.states["cards"]
    desk.history.states["cards"] = replace(state, control_offset=3)
    desk.steps(desk.watch())
    assert IncidentLog(MemoryControlLog(desk.incidents.records)).open() == []


def test_a_wall_clock_that_was_ahead_does_not_stop_the_labels() -> None:
    desk = Desk(0.5)
    desk.ahead = 86_400_000
    watch = desk.watch()
    desk.steps(watch, active=frozenset(["cards-1"]))
    desk.ahead = 0
    desk.steps(watch)
    assert desk.result.labels is not None and desk.result.labels.finding == "cleared"


def test_labels_are_read_again_if_their_reader_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(0.5)
    lost, poll = [True], Outcomes.poll

    def once(reader: Outcomes, max_records: int, timeout_s: float) -> list[FollowedRecord]:
        if lost:
            lost.clear()
            raise ReaderLost("no records arrive")
        return poll(reader, max_records, timeout_s)

    monkeypatch.setattr(Outcomes, "poll", once)
    desk.steps(desk.watch())
    assert (len(desk.since), desk.result.labels and desk.result.labels.finding) == (2, "cleared")


def test_a_topic_of_verdicts_that_is_created_again_ends_the_watch_of_labels() -> None:
    desk = Desk(0.5)
    watch = desk.watch()
    desk.steps(watch)
    desk.verdicts.records.clear()
    with pytest.raises(ReaderLost, match="verdicts ends at offset 0"):
        desk.steps(watch)


def test_labels_clear_a_version_that_only_adds_alerts() -> None:
    desk = Desk(0.5, baseline=0)
    desk.steps(desk.watch())
    assert desk.result.labels is not None and desk.result.labels.finding == "cleared"
    (incident,) = IncidentLog(MemoryControlLog(desk.incidents.records)).open()
    assert incident.due == "promote" and "both alert" in incident.why


def test_confirmed_harm_proposes_nothing() -> None:
    desk = Desk(0.02)
    desk.steps(desk.watch())
    assert desk.result.labels is not None and desk.result.labels.finding == "harm"
    assert desk.incidents.records == []


def serving(desk: Desk, version: str, last_good: str | None = None, **more: object) -> None:
    """The state after another command."""
    state = desk.history.states["cards"]
    champion, before = (each and ServedVersion(each, each * 64) for each in (version, last_good))
    desk.history.states["cards"] = replace(
        state, control_offset=state.control_offset + 1, champion=champion, last_good=before, **more
    )


def incidents_of(desk: Desk) -> list[Incident]:
    return list(IncidentLog(MemoryControlLog(desk.incidents.records)).read().newest.values())


def test_harm_of_a_version_that_a_person_kept_in_service_is_an_incident_until_it_decides_no_more() -> None:
    desk = Desk(0.02)
    serving(desk, "2", last_good="1")
    for _ in range(2):  # the second watch is one after a restart
        desk.steps(desk.watch())
    assert desk.result.labels is not None and desk.result.labels.finding == "harm"
    (incident,) = incidents_of(desk)
    assert (incident.id, incident.kind, incident.version, incident.baseline) == ("cards-1-labels", "verdict", "2", "1")
    assert (incident.due, incident.finding, incident.closed) == ("rollback", "rise", None)
    assert incident.held_back == "needs a person: labels never lead to a command"
    assert "labels confirm the harm" in incident.why
    # Another command does not answer it. It states what is due then: the last good version is gone, or it is a canary.
    retired: dict[str, object] = {"retired": ["1" * 64]}
    canary: dict[str, object] = {"canary": CanaryState(ServedVersion("2", "2" * 64), 0.1, "s")}
    states: list[tuple[str, str | None, dict[str, object], str]] = [
        ("2", "1", {}, "rollback"),
        ("2", "1", retired, "promote"),
        ("2", None, {}, "promote"),
        ("1", None, canary, "stop"),
    ]
    for version, last_good, more, due in states:
        serving(desk, version, last_good, **more)
        desk.steps(desk.watch())
        assert [(each.due, each.closed) for each in incidents_of(desk)] == [(due, None)]
    serving(desk, "1", canary=None, shadows=[ServedVersion("2", "2" * 64)])
    desk.steps(desk.watch())
    (incident,) = incidents_of(desk)
    assert incident.closed is not None and incident.ended == "version 2 decides no more"
    assert incident.ended_by == desk.history.states["cards"].control_offset


def test_harm_that_cannot_be_reported_is_tried_again() -> None:
    desk = Desk(0.02)
    serving(desk, "2", last_good="1")
    watch = desk.watch()
    report, watch._incidents.report = watch._incidents.report, lambda _condition, _at: False  # type: ignore[method-assign]
    desk.steps(watch)
    assert desk.result.labels is None
    watch._incidents.report = report  # type: ignore[method-assign]
    desk.steps(watch)
    assert desk.result.labels is not None and len(incidents_of(desk)) == 1


@pytest.mark.parametrize(("champion", "retired"), [("2", []), ("1", ["2" * 64])])
def test_a_cleared_version_that_serves_or_is_retired_is_not_proposed_again(champion: str, retired: list[str]) -> None:
    desk = Desk(0.5)
    serving(desk, champion, last_good="1" if champion == "2" else None, retired=retired)
    desk.steps(desk.watch())
    assert desk.result.labels is not None and desk.result.labels.finding == "cleared"
    assert desk.incidents.records == []


def test_without_labels_and_during_a_comparison_nothing_is_decided_and_after_it_the_labels_are() -> None:
    silent, active = Desk(0.02, labels=False), Desk(0.02)
    silent.steps(silent.watch())
    assert silent.result.labels is not None and silent.result.labels.finding == "undecided"
    watch = active.watch()
    active.steps(watch, frozenset({"cards-1"}))
    assert active.result.labels is None
    active.steps(watch)
    assert active.result.labels is not None and active.result.labels.finding == "harm"


def test_labels_do_not_decide_before_every_partition_is_read() -> None:
    desk = Desk(0.1)  # a fifth of the precision of the lost alerts
    watch = desk.watch()
    desk.steps(watch)
    assert desk.result.labels is not None and desk.result.labels.finding == "harm"
    # Frauds are on a partition that is read later. Without them, the lost alerts seem genuine.
    desk = Desk(0.1)
    desk.late = [value for value in desk.outcomes if b'"label":"fraud"' in value]
    desk.outcomes = [value for value in desk.outcomes if value not in desk.late]
    watch = desk.watch(after=12)
    desk.steps(watch)
    assert desk.result.labels is None
    desk.steps(watch)
    assert desk.result.labels is not None and desk.result.labels.finding == "harm"


@pytest.mark.parametrize("feed", ["chargeback", "partition"])
def test_a_feed_that_is_late_is_no_silence(feed: str) -> None:
    desk = Desk(0.1)
    # Analysts go on, while the file of chargebacks, or the joiner on one partition of labels, is behind.
    frauds = desk.split(feed, newest=1_500)
    desk.outcomes += frauds[:5]
    desk.steps(desk.watch())
    labels = desk.result.labels
    assert labels is not None and (labels.finding, labels.waiting) == ("undecided", 400)
    desk.outcomes += frauds[5:]
    source, partition = ("analyst", 1) if feed == "partition" else (feed, 0)
    desk.outcomes.append(desk.outcome("another", 1_500, "fraud", source, partition))
    desk.steps(desk.watch())
    assert desk.result.labels is not None
    assert (desk.result.labels.finding, desk.result.labels.waiting) == ("harm", 0)


def test_a_source_that_stops_delays_the_verdict_by_the_label_age_and_then_its_labels_are_missing() -> None:
    desk = Desk(0.1)
    # The last chargeback is given at 1,200, so the label age is covered for cards up to 200.
    frauds = [each for each in desk.split("chargeback", 2_100) if msgspec.json.decode(each)["labelled_at"] < 1_200]
    desk.outcomes += [*frauds, desk.outcome("another", 1_200, "fraud", "chargeback")]
    desk.steps(desk.watch())
    labels = desk.result.labels
    # Analysts are at 2,100 and chargebacks may be 1,000 behind: cards up to 200 are judged.
    assert labels is not None and (labels.finding, labels.waiting) == ("undecided", 199)
    desk.outcomes.append(desk.outcome("other", 5_000, "genuine"))
    desk.steps(desk.watch())
    labels = desk.result.labels
    assert labels is not None and (labels.finding, labels.waiting) == ("undecided", 0)
    assert labels.missing[0] == "199 cards lack labels of a source"
    assert labels.candidate_only.silent + labels.baseline_only.silent >= 199
    assert labels.baseline_only.fraud and labels.baseline_only.genuine
    # Nothing is decided by what arrives much later.
    desk.outcomes += [desk.outcome("another", 5_000, "fraud", "chargeback")]
    before = desk.result
    desk.steps(desk.watch())
    assert desk.result == before


def test_a_source_that_gave_its_last_labels_before_the_first_card_is_no_silence() -> None:
    desk = Desk(0.1)
    desk.split("chargeback", 1_500)
    desk.outcomes += [desk.outcome(f"x{at}", at - HORIZON, "fraud", "chargeback") for at in range(REGULAR)]
    desk.steps(desk.watch())
    assert desk.result.labels is not None and desk.result.labels.finding == "undecided"
    assert desk.result.labels.baseline_only.genuine == 0


def test_a_rare_source_or_a_partition_that_stops_only_delays_the_verdict() -> None:
    for feed in ("customer", "partition"):
        desk = Desk(0.1)
        everything = list(desk.outcomes)
        desk.split(feed, 5_000)
        source, partition = ("analyst", 1) if feed == "partition" else (feed, 0)
        rare = [desk.outcome(f"x{at}", at, "fraud", source, partition) for at in range(REGULAR - 1)]
        desk.outcomes = everything[:-1] + rare + [desk.outcome("other", 1_400, "genuine")]
        desk.steps(desk.watch())
        labels = desk.result.labels
        assert labels is not None and (labels.finding, labels.waiting) == ("undecided", 400), feed
        desk.outcomes.append(desk.outcome("other", 2_500, "genuine"))
        desk.steps(desk.watch())
        assert desk.result.labels is not None
        assert (desk.result.labels.finding, desk.result.labels.waiting) == ("harm", 0), feed


def test_labels_are_known_up_to_the_slowest_feed_and_an_import_of_old_ones_is_none() -> None:
    day = 86_400_000
    progress = LabelProgress(since=10 * day)
    assert progress.known(day) == Known(0, 0)

    def add(source: str, at: int, labels: int = REGULAR) -> None:
        found = Outcome("e", 0, 0, "2", "champion", "p", "block", 0, 1, "fraud", None, source, None, at, 0)
        for _ in range(labels):
            progress.add(found)

    add("import", 9 * day)
    add("analyst", 20 * day)
    assert progress.known(day) == Known(20 * day, 20 * day)
    add("chargeback", 18 * day)
    add("customer", 17 * day, 1)
    late = ("source chargeback", "source customer")
    assert progress.known(7 * day) == Known(17 * day, 18 * day, late)
    assert progress.known(day) == Known(19 * day, 18 * day, late)
    found = judge_labels([Disagreement(17 * day, "a", 1, True)], {}, progress.known(7 * day), day)
    assert found.known == 17 * day and "newer labels of source chargeback, source customer" in found.missing
    desk = Desk(0.1)
    facts = dict(verdict_facts(replace(desk.result, labels=found)))
    assert facts["known"].startswith("of all sources, given until 1970-01-18 00:00:00.000; label age 24 h; missing: ")


def test_the_verdict_of_a_monitor_that_had_read_less_does_not_discard_the_cards() -> None:
    desk = Desk(0.5)
    behind = replace(desk.result, finding="undecided", due=None, rows=0, disagreements=[], common=[])
    desk.verdicts.records.append(msgspec.json.encode(behind))
    desk.steps(desk.watch())
    assert desk.result.labels is not None and desk.result.labels.finding == "cleared"
    # One that has read more, or judges a later promotion, decides.
    for other in (replace(behind, rows=2), replace(behind, began=HORIZON + 78)):
        desk = Desk(0.5)
        desk.verdicts.records.append(msgspec.json.encode(other))
        desk.steps(desk.watch())
        assert desk.result == other


def test_a_topic_that_cannot_be_written_is_tried_again() -> None:
    desk = Desk(0.5)
    watch = desk.watch()

    def fail(_key: str, _value: bytes) -> None:
        raise BrokerUnavailable("not now")

    append, watch._append = watch._append, fail
    with pytest.raises(BrokerUnavailable):
        desk.steps(watch)
    watch._append = append
    desk.steps(watch)
    assert desk.result.labels is not None and desk.result.labels.finding == "cleared"
    assert len(IncidentLog(MemoryControlLog(desk.incidents.records)).open()) == 1


def test_labels_that_cannot_be_opened_are_tried_again() -> None:
    desk = Desk(0.5)
    watch = desk.watch()

    def fail(_since: int) -> Outcomes:
        raise BrokerUnavailable("not now")

    follow, watch._follow = watch._follow, fail
    with pytest.raises(BrokerUnavailable):
        desk.steps(watch)
    watch._follow = follow
    desk.steps(watch)
    assert desk.result.labels is not None and desk.result.labels.finding == "cleared"
