"""What commands lead to, and a scorer that follows them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from stream_scorer.control.commands import submit
from stream_scorer.control.follower import Follower, ScorerIdentity
from stream_scorer.control.ladder import parse_ladder
from stream_scorer.control.liveness import FORGOTTEN_MS, SILENT_MS, Scorers, Seen
from stream_scorer.control.outbox import MAX_BACKOFF_S, MAX_WAITING, Outbox
from stream_scorer.control.probation import acted_since, comparisons
from stream_scorer.control.recovery import newest_state, require_commands, require_never_served
from stream_scorer.control.state import MAX_ENTRIES, MAX_SHADOWS, History
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.lineup import Split
from stream_scorer.errors import ArtifactError, BrokerUnavailable, StreamScorerError, UsageError
from stream_scorer.observability.liveness import Health
from stream_scorer.observability.metrics import Metrics
from stream_scorer.records import AuditRecord, Command, DisabledMember, ScorerStatus, ServedVersion, ServingState
from tests.support.control import MemoryControlLog
from tests.support.ensembles import compose

ONE, TWO, THREE = (ServedVersion(str(i), str(i) * 64) for i in (1, 2, 3))
XGB = DisabledMember("xgb", "f" * 64)


class Story:
    """Commands given one after the other."""

    def __init__(self) -> None:
        self.history = History()

    def say(self, action: str, **more: object) -> str:
        """Give a command; answers why it was refused."""
        offset = self.history.next_offset
        fields = {"ensemble": "cards", "who": "ann", "why": "because", "at": 5, "expected_offset": offset} | more
        return self.history.add(offset, msgspec.json.encode(Command(action=action, **fields))).refused  # type: ignore[arg-type]

    @property
    def state(self) -> ServingState:
        return self.history.states["cards"]


@pytest.fixture
def story() -> Story:
    story = Story()
    assert story.say("promote", version=ONE) == ""
    return story


def test_a_promotion_is_on_probation_and_a_rollback_goes_back(story: Story) -> None:
    assert (story.state.champion, story.state.last_good, story.state.probation) == (ONE, None, False)
    assert "no last good" in story.say("rollback")
    assert "not on probation" in story.say("confirm")
    assert story.say("promote", version=TWO) == ""
    assert (story.state.champion, story.state.last_good, story.state.probation) == (TWO, ONE, True)
    assert story.say("rollback") == ""
    assert (story.state.champion, story.state.last_good, story.state.probation) == (ONE, None, False)


def test_a_version_that_serves_again_is_no_shadow_of_itself(story: Story) -> None:
    story.say("promote", version=TWO)
    assert story.say("shadow", version=THREE) == ""
    assert story.say("shadow", version=ONE) == ""
    story.say("rollback")
    assert (story.state.champion, story.state.shadows) == (ONE, [THREE])


def test_what_was_never_confirmed_is_nothing_to_go_back_to(story: Story) -> None:
    story.say("promote", version=TWO)
    story.say("promote", version=THREE)
    assert (story.state.champion, story.state.last_good) == (THREE, ONE)
    assert story.say("promote", version=THREE).endswith("already serves; to end its probation, use confirm")
    story.say("confirm")
    story.say("promote", version=TWO)
    assert (story.state.champion, story.state.last_good) == (TWO, THREE)


def test_a_canary_becomes_the_champion_or_is_stopped(story: Story) -> None:
    for share in (None, 0.0, 1.5, float("nan")):
        assert "share" in story.say("canary", version=TWO, share=share)
    assert "already serves" in story.say("canary", version=ONE, share=0.1)
    assert story.say("canary", version=TWO, share=0.1) == ""
    assert story.state.canary is not None
    salt = story.state.canary.salt
    story.say("canary", version=TWO, share=0.5, until=99)
    assert (story.state.canary.salt, story.state.canary.share, story.state.canary.until) == (salt, 0.5, 99)
    assert story.say("stop", version=TWO) == ""
    assert story.state.canary is None
    assert "neither" in story.say("stop", version=TWO)
    story.say("canary", version=TWO, share=0.1)
    story.say("promote", version=TWO)
    assert (story.state.champion, story.state.canary) == (TWO, None)


def test_each_share_of_a_canary_is_confirmed_by_itself(story: Story) -> None:
    story.say("canary", version=TWO, share=0.1)
    assert "not on probation" in story.say("confirm")
    assert "neither on probation nor a canary" in story.say("confirm", version=THREE)
    assert story.say("confirm", version=TWO) == ""
    assert story.state.canary is not None and story.state.canary.confirmed
    assert "already confirmed" in story.say("confirm", version=TWO)
    story.say("canary", version=TWO, share=0.25)
    assert story.state.canary is not None and not story.state.canary.confirmed


def test_a_monitor_raises_a_confirmed_canary_by_its_ladder_only(story: Story) -> None:
    assert "ladder is invalid" in story.say("canary", version=TWO, share=0.1, ladder=[0.5, 0.1])
    assert story.say("canary", version=TWO, share=0.1, ladder=[0.1, 0.5, 1.0]) == ""
    assert "only of a confirmed canary" in story.say("canary", version=TWO, share=0.5, author="monitor")
    assert "only of a confirmed canary" in story.say("promote", version=TWO, author="monitor")
    story.say("confirm", version=TWO)
    for share in (0.2, 1.0):
        assert "another next step" in story.say("canary", version=TWO, share=share, author="monitor")
    assert "another next step" in story.say("promote", version=TWO, author="monitor")
    assert "only of a confirmed canary" in story.say("canary", version=THREE, share=0.5, author="monitor")
    assert story.say("canary", version=TWO, share=0.5, author="monitor", ladder=[0.1, 0.5, 1.0]) == ""
    story.say("confirm", version=TWO)
    story.say("hold")
    assert "put a hold" in story.say("promote", version=TWO, author="monitor")
    story.say("release")
    assert story.say("promote", version=TWO, author="monitor") == ""
    assert (story.state.champion, story.state.probation, story.state.canary) == (TWO, True, None)
    assert "only of a confirmed canary" in story.say("promote", version=THREE, author="monitor")


def test_a_ladder_is_a_list_of_ascending_shares() -> None:
    assert parse_ladder("1, 5%,25,50,100") == [0.01, 0.05, 0.25, 0.5, 1.0]
    for text in ("", "5,1", "0,5", "50,101", "a", "5,5", "0.01,0.05,0.25,0.5,1", "1"):
        with pytest.raises(UsageError, match="is not a ladder"):
            parse_ladder(text)


def test_a_canary_is_confirmed_without_ending_the_probation_of_the_champion(story: Story) -> None:
    story.say("promote", version=TWO)
    story.say("canary", version=THREE, share=0.1)
    assert story.say("confirm", version=THREE) == ""
    assert story.state.probation
    assert story.say("confirm", version=TWO) == ""
    assert not story.state.probation
    assert story.state.canary is not None and story.state.canary.confirmed


def test_the_expected_change_of_alerts_belongs_to_the_pair(story: Story) -> None:
    for rise in (-0.95, 11.0):
        assert "expected rise" in story.say("promote", version=TWO, expect_rise=rise)
    assert story.say("promote", version=TWO, expect_rise=0.1) == ""
    story.say("shadow", version=THREE)  # a later command changes nothing of it
    (pair,) = comparisons(story.state, story.history)
    assert (pair.candidate, pair.baseline, pair.since, pair.expected_rise) == (TWO, ONE, 3, 0.1)


def test_shadows_are_few_and_once_each(story: Story) -> None:
    assert story.say("shadow", version=TWO) == ""
    assert "in play" in story.say("shadow", version=TWO)
    for i in range(4, 4 + MAX_SHADOWS - 1):
        assert story.say("shadow", version=ServedVersion(str(i), str(i) * 64)) == ""
    assert "already" in story.say("shadow", version=THREE)
    assert story.say("canary", version=TWO, share=0.1) == ""  # no longer a shadow
    assert TWO not in story.state.shadows


def test_what_is_retired_never_comes_back(story: Story) -> None:
    story.say("promote", version=TWO)
    assert "serves" in story.say("retire", version=TWO)
    assert story.say("retire", version=ONE) == ""
    assert (story.state.last_good, story.state.probation) == (None, False)
    for action in ("promote", "canary", "shadow"):
        assert "retired" in story.say(action, version=ONE, share=0.1)
    # The same manifest under another number is the same version.
    assert "retired" in story.say("promote", version=ServedVersion("8", ONE.manifest_sha256))


def test_members_are_disabled_and_enabled(story: Story) -> None:
    assert "no member" in story.say("disable")
    assert story.say("disable", member=XGB) == ""
    assert "already" in story.say("disable", member=XGB)
    story.say("promote", version=TWO)
    assert story.state.disabled == [XGB]  # it goes by digest: wherever that member is
    assert story.say("enable", member=XGB) == ""
    assert "not disabled" in story.say("enable", member=XGB)


def test_a_hold_stops_the_monitor_and_no_person(story: Story) -> None:
    story.say("promote", version=TWO)
    assert "person" in story.say("hold", author="monitor")
    assert story.say("hold", why="month's end") == ""
    assert "month's end" in story.say("rollback", author="monitor")
    assert story.say("rollback") == ""
    assert "put a hold" in story.say("release", author="monitor")
    assert story.say("release") == ""


def test_only_what_lands_where_expected_counts(story: Story) -> None:
    before = story.state
    assert "came first" in story.say("promote", version=TWO, expected_offset=0)
    assert "came first" in story.say("promote", version=TWO, expected_offset=7)
    assert "reason" in story.say("promote", version=TWO, why=" ")
    path = msgspec.json.encode(
        {"ensemble": "cards", "action": "promote", "who": "a", "why": "b", "at": 1, "expected_offset": 4, "version":
         {"version": "../x", "manifest_sha256": "../../x"}}
    )  # fmt: skip
    for junk in (b"", b"{}", b"\xff", b'{"ensemble":1}', b'{"\xec": 1}', b"[" * 100_000, path):
        assert "not a command" in story.history.add(story.history.next_offset, junk).refused
    assert story.state == before
    assert [entry.refused != "" for entry in story.history.entries] == [False] + [True] * 10
    assert story.say("promote", version=TWO) == ""


def test_nothing_but_a_promotion_comes_first_and_ensembles_are_apart() -> None:
    story = Story()
    assert "no version of" in story.say("rollback")
    story.say("promote", version=ONE)
    story.say("promote", version=TWO, ensemble="wires")
    assert {name: state.champion for name, state in story.history.states.items()} == {"cards": ONE, "wires": TWO}


class FixedClock:
    def now_ms(self) -> int:
        return 1

    def monotonic(self) -> float:
        return time.monotonic()


class Scorer:
    """A follower with what it loads and says."""

    def __init__(self, records: list[bytes], ensembles: dict[str, Ensemble], name: str = "s") -> None:
        self.broken: set[str] = set()
        # Versions whose load waits for the event.
        self.slow: dict[str, threading.Event] = {}
        self.log = MemoryControlLog(records)
        self.states = MemoryControlLog()
        self.before_proposal: Callable[[], object] = lambda: None
        self.health = Health(FixedClock())
        self.breaks: Exception = ArtifactError("altered")
        self.loads: list[str] = []
        self.published: dict[str, deque[bytes | None]] = {
            "serving_state": deque(),
            "scorer_status": deque(),
            "audit": deque(),
        }

        self.unwritable: set[str] = set()
        self.hanging = threading.Event()
        self.hanging.set()

        def put(topic: str, _key: str, value: bytes | None) -> None:
            self.hanging.wait(10)
            if topic in self.unwritable:
                raise BrokerUnavailable(f"{topic} has no leader")
            self.published[topic].append(value)

        def load(version: ServedVersion) -> Ensemble:
            self.loads.append(version.version)
            if version.version in self.slow:
                self.slow[version.version].wait(30)
            if version.version in self.broken:
                raise self.breaks
            return ensembles[version.version]

        def first() -> ServedVersion:
            self.before_proposal()
            require_never_served(self.states, "cards")
            return ONE

        self.follower = Follower(
            ScorerIdentity("cards", name, "g"),
            self.log,
            first,
            load,
            put,
            FixedClock(),
            Metrics(),
            self.health,
        )

    @property
    def status(self) -> ScorerStatus:
        newest = self.published["scorer_status"][-1]
        assert newest is not None
        return msgspec.json.decode(newest, type=ScorerStatus)

    def until(self, offset: int) -> ScorerStatus:
        deadline = time.monotonic() + 5
        while (self.status.wanted_offset < offset or self.status.loading) and time.monotonic() < deadline:
            time.sleep(0.005)
        return self.status


@pytest.fixture
def ensembles(tmp_path: Path) -> dict[str, Ensemble]:
    compose(tmp_path / "e")
    return {str(i): Ensemble.load(tmp_path / "e", version=str(i)) for i in (1, 2, 3, 4)}


def test_a_withdrawn_version_is_scored_last_and_costs_nothing_if_it_cannot_be_loaded(
    ensembles: dict[str, Ensemble],
) -> None:
    records: list[bytes] = []
    scorer, story = Scorer(records, ensembles), Story()
    scorer.follower.start()

    def order(action: str, **more: object) -> ScorerStatus:
        for offset in range(story.history.next_offset, len(records)):
            story.history.add(offset, records[offset])
        offset = story.history.next_offset
        assert story.say(action, **more) == ""
        fields = {"ensemble": "cards", "who": "ann", "why": "because", "at": 5, "expected_offset": offset} | more
        records.append(msgspec.json.encode(Command(action=action, **fields)))  # type: ignore[arg-type]
        return scorer.until(offset)

    try:
        order("shadow", version=THREE)
        order("promote", version=TWO)
        loads = len(scorer.loads)
        assert order("rollback", author="monitor", keep=True).in_play == ["1", "3", "2"]
        lineup = scorer.follower.lineup
        assert (lineup.deciding, lineup.last_good, lineup.withdrawn, lineup.compared_with(0)) == (1, None, 2, [2])
        assert TWO.manifest_sha256 in scorer.follower.digests and len(scorer.loads) == loads
        assert order("stop", version=TWO, author="monitor").in_play == ["1", "3"]
        assert scorer.follower.lineup.compared_with(0) == []
        scorer.broken = {"2"}
        order("promote", version=TWO)
        status = order("rollback", author="monitor", keep=True)
        assert (status.in_play, status.control_offset) == (["1", "3"], 6)
        assert "2 is refused" in status.problem
    finally:
        scorer.follower.close()


def test_a_scorer_follows_and_going_back_loads_nothing(ensembles: dict[str, Ensemble]) -> None:
    records: list[bytes] = []
    scorer, desk, history = Scorer(records, ensembles), MemoryControlLog(records), History()
    scorer.follower.start()

    def order(action: str, version: ServedVersion | None = None, share: float | None = None) -> ScorerStatus:
        for record in desk.read(0):
            history.add(record.offset, record.value)
        entry = submit(
            desk,
            history,
            lambda offset: Command(
                ensemble="cards",
                action=action,
                who="ann",
                why="so",
                at=1,
                expected_offset=offset,  # type: ignore[arg-type]
                version=version,
                share=share,
            ),
        )
        assert entry.refused == ""
        return scorer.until(entry.offset)

    try:
        assert scorer.follower.lineup.champion.version == "1"
        order("shadow", THREE)
        assert [e.version for e in scorer.follower.lineup.versions] == ["1", "3"]
        assert scorer.follower.lineup.deciding == 1
        order("canary", TWO, 0.2)
        assert [e.version for e in scorer.follower.lineup.versions] == ["1", "2", "3"]
        assert scorer.follower.lineup.deciding == 2
        assert [scorer.follower.lineup.compared_with(version) for version in (0, 1)] == [[1], [0]]
        assert order("promote", TWO).in_play == ["2", "3", "1"]
        assert scorer.follower.lineup.compared_with(0) == [2]
        loads = len(scorer.loads)
        assert order("rollback").in_play == ["1", "3"]
        assert scorer.follower.lineup.compared_with(0) == []
        assert len(scorer.loads) == loads
        scorer.broken = {"2"}
        status = order("promote", TWO)
        assert (status.in_play, status.control_offset, status.wanted_offset) == (["1", "3"], 4, 5)
        assert "altered" in status.problem
        status = order("rollback")
        assert (status.in_play, status.control_offset, status.problem) == (["1", "3"], 6, "")
        # A shadow that cannot be had costs its own place only.
        order("stop", THREE)
        scorer.broken = {"3"}
        status = order("shadow", THREE)
        assert (status.in_play, status.control_offset) == (["1"], 8)
        assert "3 is refused" in status.problem
    finally:
        scorer.follower.close()
    assert scorer.published["scorer_status"][-1] is None
    audit = [msgspec.json.decode(value or b"", type=AuditRecord) for value in scorer.published["audit"]]
    assert [(record.version, record.refused) for record in audit] == [
        ("1", ""), ("3", ""), ("2", ""), ("2", "artifact_invalid"), ("3", "artifact_invalid")
    ]  # fmt: skip
    assert [member.name for member in audit[0].members] == ["one", "two", "three"]
    assert audit[0].manifest_sha256 == ONE.manifest_sha256


def test_a_version_that_decides_by_another_policy_than_the_spec_is_announced_once(
    ensembles: dict[str, Ensemble], caplog: pytest.LogCaptureFixture
) -> None:
    records: list[bytes] = []
    for version in ("1", "3"):
        ensembles[version].notice = f"the notice of {version}"
    scorer = Scorer(records, ensembles)
    try:
        scorer.follower.start()
        for action, more in (("shadow", {"version": THREE}), ("promote", {"version": THREE}), ("hold", {})):
            fields = {"ensemble": "cards", "who": "ann", "why": "so", "at": 1, "expected_offset": len(records)} | more
            records.append(msgspec.json.encode(Command(action=action, **fields)))  # type: ignore[arg-type]
            scorer.until(len(records) - 1)
    finally:
        scorer.follower.close()
    assert [m for m in caplog.messages if "the notice" in m] == [f"version {v}: the notice of {v}" for v in "13"]


def test_of_scorers_that_start_at_once_one_is_heard(ensembles: dict[str, Ensemble]) -> None:
    records: list[bytes] = []
    scorers = [Scorer(records, ensembles, f"s{i}") for i in range(4)]
    threads = [threading.Thread(target=scorer.follower.start) for scorer in scorers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        history = History()
        counting = [history.add(offset, value).refused == "" for offset, value in enumerate(records)]
        assert counting.count(True) == 1
        assert {scorer.follower.lineup.control_offset for scorer in scorers} == {counting.index(True)}
        states = {scorer.published["serving_state"][-1] for scorer in scorers}
        assert len(states) == 1
    finally:
        for scorer in scorers:
            scorer.follower.close()


def test_a_scorer_does_not_start_with_what_cannot_be_had_nor_propose_it(ensembles: dict[str, Ensemble]) -> None:
    records: list[bytes] = []
    scorer = Scorer(records, ensembles)
    scorer.broken = {"1"}
    with pytest.raises(StreamScorerError, match="altered"):
        scorer.follower.start()
    assert records == []


def test_a_library_that_fails_in_its_own_way_is_a_refusal_and_following_goes_on(ensembles: dict[str, Ensemble]) -> None:
    records: list[bytes] = []
    scorer = Scorer(records, ensembles)
    scorer.follower.start()

    def order(action: str, **more: object) -> ScorerStatus:
        offset = len(records)
        fields = {"ensemble": "cards", "who": "ann", "why": "so", "at": 1, "expected_offset": offset} | more
        records.append(msgspec.json.encode(Command(action=action, **fields)))  # type: ignore[arg-type]
        return scorer.until(offset)

    try:
        scorer.broken, scorer.breaks = {"2"}, MemoryError("too large")
        assert "MemoryError: too large" in order("promote", version=TWO).problem
        scorer.broken = set()
        assert order("rollback").in_play == ["1"]
        assert order("promote", version=TWO).in_play == ["2", "1"]
    finally:
        scorer.follower.close()


@pytest.mark.parametrize("topic", ["serving_state", "scorer_status", "audit"])
def test_a_failed_publication_is_retried_and_the_loaded_version_serves(
    ensembles: dict[str, Ensemble], topic: str
) -> None:
    records: list[bytes] = []
    scorer = Scorer(records, ensembles)
    scorer.follower.start()

    def serves(version: str) -> bool:
        return eventually(lambda: scorer.follower.lineup.champion.version == version)

    def promote(version: ServedVersion) -> None:
        fields = {"ensemble": "cards", "who": "ann", "why": "so", "at": 1, "expected_offset": len(records)}
        records.append(msgspec.json.encode(Command(action="promote", version=version, **fields)))  # type: ignore[arg-type]

    try:
        scorer.unwritable = {topic}
        promote(TWO)
        assert serves("2")
        promote(THREE)
        assert serves("3")
        assert scorer.loads == ["1", "2", "3"]  # none is loaded again because a record about it was not written
        scorer.unwritable = set()
        assert scorer.until(2).problem == ""
        assert eventually(lambda: newest(scorer, "serving_state", ServingState).champion == THREE)
        assert eventually(lambda: len(scorer.published["audit"]) == 3)
    finally:
        scorer.follower.close()
    audit = [msgspec.json.decode(value or b"", type=AuditRecord) for value in scorer.published["audit"]]
    assert [(record.version, record.refused) for record in audit] == [("1", ""), ("2", ""), ("3", "")]


def command(records: list[bytes], action: str, **more: object) -> int:
    """Append a command that counts if the state allows it; returns its offset."""
    fields = {"ensemble": "cards", "who": "ann", "why": "so", "at": 1, "expected_offset": len(records)} | more
    records.append(msgspec.json.encode(Command(action=action, **fields)))  # type: ignore[arg-type]
    return len(records) - 1


def test_a_rollback_takes_effect_within_a_second_while_versions_load(ensembles: dict[str, Ensemble]) -> None:
    records: list[bytes] = []
    scorer = Scorer(records, ensembles)
    scorer.follower.start()
    try:
        command(records, "promote", version=TWO)
        assert eventually(lambda: scorer.follower.lineup.champion.version == "2")
        scorer.slow = {"3": threading.Event()}
        command(records, "shadow", version=THREE)
        assert eventually(lambda: scorer.status.loading == ["3"])
        assert (scorer.status.in_play, scorer.status.problem) == (["2", "1"], "")
        began = time.monotonic()
        rollback = command(records, "rollback")
        assert eventually(lambda: scorer.follower.lineup.champion.version == "1")
        assert time.monotonic() - began < 1
        assert scorer.follower.lineup.control_offset == rollback
        heartbeats = len(scorer.published["scorer_status"])
        assert eventually(lambda: len(scorer.published["scorer_status"]) > heartbeats + 1)  # heartbeats go on
        scorer.slow["3"].set()
        assert eventually(lambda: scorer.status.in_play == ["1", "3"])
        assert scorer.status.control_offset == rollback
    finally:
        scorer.follower.close()


def test_a_rollback_supersedes_a_champion_that_is_still_loading(ensembles: dict[str, Ensemble]) -> None:
    records: list[bytes] = []
    scorer = Scorer(records, ensembles)
    scorer.follower.start()
    try:
        scorer.slow = {"2": threading.Event()}
        command(records, "promote", version=TWO)
        assert eventually(lambda: scorer.status.loading == ["2"])
        rollback = command(records, "rollback")
        assert eventually(lambda: scorer.status.control_offset == rollback)
        command(records, "promote", version=THREE)  # loads although version 2 still does
        assert eventually(lambda: scorer.follower.lineup.champion.version == "3")
        scorer.slow["2"].set()
        time.sleep(0.5)
        assert scorer.status.in_play == ["3", "1"]
    finally:
        scorer.follower.close()


def test_a_member_is_disabled_while_a_champion_is_loading(ensembles: dict[str, Ensemble]) -> None:
    records: list[bytes] = []
    scorer = Scorer(records, ensembles)
    scorer.follower.start()
    try:
        scorer.slow = {"2": threading.Event()}
        command(records, "promote", version=TWO)
        command(records, "disable", member=XGB)
        assert eventually(lambda: scorer.follower.lineup.disabled == frozenset([XGB.key]))
        assert scorer.follower.lineup.champion.version == "1"
    finally:
        scorer.slow["2"].set()
        scorer.follower.close()


def test_what_left_play_stops_although_the_champion_cannot_be_loaded(ensembles: dict[str, Ensemble]) -> None:
    records: list[bytes] = []
    scorer = Scorer(records, ensembles)
    scorer.broken = {"9"}
    broken, four = ServedVersion("9", "9" * 64), ServedVersion("4", "4" * 64)
    scorer.follower.start()

    def order(action: str, **more: object) -> tuple[list[str], Split | None]:
        status = scorer.until(command(records, action, **more))
        assert "1 still serves" in status.problem or status.problem == ""
        return status.in_play, scorer.follower.lineup.split

    try:
        order("shadow", version=THREE)
        order("shadow", version=four)
        order("canary", version=TWO, share=0.5)
        order("promote", version=broken)
        # The promotion ended the canary. The shadows stay.
        assert eventually(lambda: scorer.status.in_play == ["1", "3", "4"])
        assert scorer.follower.lineup.deciding == 1
        assert order("retire", version=THREE) == (["1", "4"], None)
        assert scorer.follower.lineup.control_offset == 3  # the wanted state is not in force
        order("rollback")
        order("canary", version=TWO, share=0.5)
        order("promote", version=broken)
        assert order("canary", version=TWO, share=0.1)[1] is None  # nothing compares it with version 1
        order("rollback")
        order("canary", version=TWO, share=0.5)
        command(records, "promote", version=broken)  # both commands may be read at once
        assert order("canary", version=TWO, share=0.1)[1] is None
    finally:
        scorer.follower.close()


def test_a_rollback_during_a_start_replaces_the_version_that_loads(ensembles: dict[str, Ensemble]) -> None:
    records: list[bytes] = []
    command(records, "promote", version=ONE)
    command(records, "promote", version=TWO)
    scorer = Scorer(records, ensembles)
    scorer.slow = {"2": threading.Event()}
    thread = threading.Thread(target=scorer.follower.start)
    thread.start()
    try:
        assert eventually(lambda: "2" in scorer.loads)
        command(records, "rollback")
        thread.join(2)
        assert not thread.is_alive()
        assert scorer.follower.lineup.champion.version == "1"
    finally:
        scorer.slow["2"].set()
        scorer.follower.close()


def test_a_publication_that_hangs_delays_no_command(ensembles: dict[str, Ensemble]) -> None:
    records: list[bytes] = []
    scorer = Scorer(records, ensembles)
    scorer.follower.start()
    try:
        scorer.hanging = threading.Event()
        command(records, "promote", version=TWO)
        assert eventually(lambda: scorer.follower.lineup.champion.version == "2")
        command(records, "rollback")
        assert eventually(lambda: scorer.follower.lineup.champion.version == "1")
        scorer.hanging.set()
        assert eventually(lambda: scorer.status.control_offset == 2)
    finally:
        scorer.hanging.set()
        scorer.follower.close()


def test_a_log_that_cannot_be_read_is_reported_by_heartbeats(ensembles: dict[str, Ensemble]) -> None:
    records: list[bytes] = []
    scorer = Scorer(records, ensembles)
    scorer.follower.start()
    try:
        scorer.log.fails = StreamScorerError("not authorized")
        assert eventually(lambda: scorer.status.problem == "not authorized")
        assert scorer.follower.missing == "control cannot be read: not authorized"
        scorer.log.fails = None
        assert eventually(lambda: scorer.status.problem == "")
    finally:
        scorer.follower.close()


def newest(scorer: Scorer, topic: str, kind: type[ServingState]) -> ServingState:
    return msgspec.json.decode(scorer.published[topic][-1] or b"", type=kind)


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.005)
    return holds()


class StepClock:
    def __init__(self) -> None:
        self.now = 0.0

    def now_ms(self) -> int:
        return int(self.now * 1_000)

    def monotonic(self) -> float:
        return self.now


class Broker:
    """Takes records, except on topics that are down."""

    def __init__(self) -> None:
        self.down: set[str] = set()
        self.attempts = 0
        self.records: list[tuple[str, str, bytes | None]] = []

    def publish(self, topic: str, key: str, value: bytes | None) -> None:
        self.attempts += 1
        if topic in self.down:
            raise BrokerUnavailable(f"{topic} is down")
        self.records.append((topic, key, value))


@pytest.fixture
def broker() -> Broker:
    return Broker()


def test_an_outbox_keeps_the_newest_value_of_a_key_and_every_record_of_a_log_in_order(broker: Broker) -> None:
    clock = StepClock()
    outbox = Outbox(broker.publish, clock)
    broker.down = {"status", "log"}
    for i in range(3):
        outbox.replace("status", "a", b"%d" % i)
        outbox.append("log", "a", b"%d" % i)
        outbox.replace("status", "b", b"only")
        outbox.flush()
        clock.now += 60
    assert outbox.waiting == 5
    broker.down = set()
    outbox.flush()
    assert outbox.waiting == 0
    assert [record for record in broker.records if record[0] == "status"] == [
        ("status", "a", b"2"), ("status", "b", b"only")
    ]  # fmt: skip
    assert [value for topic, _, value in broker.records if topic == "log"] == [b"0", b"1", b"2"]


def test_an_outbox_backs_off_per_topic_within_a_bound(broker: Broker) -> None:
    clock = StepClock()
    outbox = Outbox(broker.publish, clock)
    broker.down = {"log"}
    outbox.append("log", "a", b"1")
    outbox.replace("status", "a", b"1")
    for _ in range(2 * 3_600):
        outbox.flush()
        clock.now += 0.5
    assert broker.records == [("status", "a", b"1")]  # a topic that is down does not hold up another one
    assert 3_600 / MAX_BACKOFF_S - 5 < broker.attempts < 3_600 / MAX_BACKOFF_S + 15
    broker.down = set()
    clock.now += MAX_BACKOFF_S
    outbox.flush()
    assert broker.records[-1] == ("log", "a", b"1")


def test_an_outbox_is_bounded_and_ends_with_the_deletion_first(broker: Broker) -> None:
    outbox = Outbox(broker.publish, StepClock())
    broker.down = {"log"}
    for i in range(MAX_WAITING + 5):
        outbox.append("log", "a", b"%d" % i)
    assert outbox.waiting == MAX_WAITING
    outbox.replace("status", "a", b"1")
    outbox.flush()
    outbox.close("status", "a")
    assert broker.records == [("status", "a", None)]
    assert broker.attempts == 3  # one failure, the deletion, one last attempt


def status_of(instance: str, wanted: int, problem: str = "", loading: list[str] | None = None) -> bytes:
    # `at` is the scorer's clock, which is wrong by years.
    return msgspec.json.encode(ScorerStatus(instance, "g", "cards", ["1"], 3, wanted, problem, 5, loading or []))


def test_the_times_of_the_broker_decide_which_scorers_follow() -> None:
    scorers = Scorers("cards")
    scorers.add("gone", status_of("gone", 3), 1_000_000_000 - FORGOTTEN_MS)
    scorers.add("silent", status_of("silent", 3), 1_000_000_000 - SILENT_MS - 5_000)
    scorers.add("stopped", status_of("stopped", 3), 1_000_000_000)
    scorers.add("stopped", None, 1_000_000_000)
    scorers.add("wires", msgspec.json.encode(ScorerStatus("wires", "g", "wires", ["1"], 3, 3, "", 5)), 1_000_000_000)
    scorers.add("slow", status_of("slow", 3), 1_000_000_000)
    scorers.add("loads", status_of("loads", 4, loading=["2"]), 1_000_000_000)
    scorers.add("fails", status_of("fails", 4, "2 is refused: altered"), 1_000_000_000)
    scorers.add("follows", status_of("follows", 4), 1_000_000_000)
    assert {seen.status.instance: seen.missing(4, scorers.now) for seen in scorers.known()} == {
        "fails": "2 is refused: altered",
        "follows": "",
        "loads": "still loads 2",
        "silent": "silent for 20 s",
        "slow": "has not read the command yet",
    }
    assert [seen.status.instance for seen in scorers.known() if seen.settled(4)] == ["fails", "follows"]


def test_the_problem_of_another_version_does_not_prevent_a_command() -> None:
    refused = "9 is refused: altered"
    seen = Seen(ScorerStatus("s", "g", "cards", ["7", "8"], 4, 4, refused, 5), 0)
    assert [seen.missing(4, 0, versions) for versions in ([], ["8"], ["9"])] == ["", "", refused]
    champion_missing = Seen(ScorerStatus("s", "g", "cards", ["7"], 3, 4, refused, 5), 0)
    assert champion_missing.missing(4, 0, ["9"]) == champion_missing.missing(4, 0) == refused


def test_a_start_proposal_is_refused_while_a_version_serves(story: Story) -> None:
    before = story.state
    assert "1 already serves" in story.say("promote", version=TWO, author="scorer")
    assert "1 already serves" in story.say("hold", author="scorer")
    assert story.state == before
    assert story.say("promote", version=TWO, ensemble="wires", author="scorer") == ""


def test_a_log_without_its_beginning_gets_its_state_back_by_a_recorded_command(story: Story) -> None:
    story.say("promote", version=TWO)
    story.say("retire", version=THREE)
    recorded = story.state
    rest = Story()
    rest.history.add(7, b"{}")  # the first record that is left
    assert rest.history.incomplete
    assert "commands before offset 7 are lost" in rest.say("promote", version=ONE)
    assert "commands before offset 7 are lost" in rest.say("promote", version=ONE, author="scorer")
    assert "only a person" in rest.say("recover", state=recorded, author="monitor")
    assert "no state" in rest.say("recover")
    assert "no state" in rest.say("recover", state=recorded, ensemble="wires")
    assert rest.say("recover", state=recorded) == ""
    assert (rest.state.champion, rest.state.last_good, rest.state.retired) == (TWO, ONE, [THREE.manifest_sha256])
    assert rest.state.control_offset == 13
    # A reader that has seen the commands before reaches the same state.
    story.history.next_offset = 12
    story.say("hold")
    assert story.say("recover", state=recorded) == ""
    assert story.state == rest.state
    assert rest.say("rollback") == ""


def test_a_recovered_state_is_compared_from_its_recovery_on_with_what_was_declared(story: Story) -> None:
    story.say("promote", version=TWO, expect_rise=0.1)
    story.say("canary", version=THREE, share=0.1, expect_rise=-0.2)
    recorded = story.state
    rest = Story()
    assert rest.say("recover", state=recorded) == ""
    probation, canary = before = comparisons(rest.state, rest.history)
    assert (probation.candidate, probation.since, probation.expected_rise) == (TWO, 0, 0.1)
    assert (canary.candidate, canary.since, canary.expected_rise) == (THREE, 0, -0.2)
    # Other commands do not begin them again.
    rest.say("hold")
    assert comparisons(rest.state, rest.history) == before
    # Nor does an earlier command for the same version count, where a log that has it is recovered.
    story.say("recover", state=recorded)
    assert [pair.since for pair in comparisons(story.state, story.history)] == [3, 3]
    rest.say("confirm")
    assert rest.state.expect_rise is None


def test_a_log_that_expired_completely_is_incomplete() -> None:
    history = History(next_offset=57)
    assert history.incomplete
    assert not History().incomplete


def test_a_scorer_does_not_propose_a_version_after_control_has_lost_its_commands(
    ensembles: dict[str, Ensemble], story: Story
) -> None:
    records: list[bytes] = []
    scorer = Scorer(records, ensembles)
    scorer.states.records.append(msgspec.json.encode(story.state))
    with pytest.raises(StreamScorerError, match="lost the commands of cards") as caught:
        scorer.follower.start()
    assert "ensemble recover cards" in caught.value.hint
    assert records == []
    command(records, "recover", state=story.state)
    scorer = Scorer(records, ensembles)
    scorer.follower.start()
    scorer.follower.close()
    assert scorer.follower.lineup.champion.version == "1"


def test_a_scorer_follows_another_one_that_proposes_while_it_starts(ensembles: dict[str, Ensemble]) -> None:
    records: list[bytes] = []
    scorer = Scorer(records, ensembles)

    def other_starts() -> None:
        other = Scorer(records, ensembles, "other")
        other.follower.start()
        scorer.states.records += [value for value in other.published["serving_state"] if value is not None]
        other.follower.close()

    scorer.before_proposal = other_starts
    scorer.follower.start()
    scorer.follower.close()
    assert (len(records), scorer.follower.lineup.control_offset) == (1, 0)


def test_a_version_that_a_scorer_proposes_meanwhile_does_not_look_like_lost_commands(story: Story) -> None:
    log, history = MemoryControlLog(), History()

    def open_states() -> MemoryControlLog:
        command(log.records, "promote", version=ONE)
        return MemoryControlLog([msgspec.json.encode(story.state)])

    require_commands(log, history, open_states, "cards")
    assert history.states["cards"].champion == ONE


def test_the_newest_state_of_an_ensemble_is_found_among_those_of_several_scorers(story: Story) -> None:
    older = story.state
    story.say("promote", version=TWO)
    values = [msgspec.json.encode(state) for state in (story.state, older)]
    assert newest_state(MemoryControlLog([*values, b"junk"]), "cards") == story.state
    assert newest_state(MemoryControlLog(values), "wires") is None


def test_the_newest_state_is_that_of_the_log_that_was_created_last(story: Story) -> None:
    story.say("promote", version=TWO)
    story.say("confirm")
    before = story.state
    again = Story()
    again.say("recover", state=before)
    again.say("promote", version=THREE)
    assert again.state.control_offset < before.control_offset
    values = [msgspec.json.encode(state) for state in (before, again.state, before)]
    assert newest_state(MemoryControlLog(values), "cards") == again.state


def test_a_version_is_retired_by_its_digest_also_from_a_rollback(story: Story) -> None:
    same = ServedVersion("8", ONE.manifest_sha256)
    assert "1 serves" in story.say("retire", version=same)
    story.say("promote", version=TWO)
    assert story.say("retire", version=same) == ""  # version 1, the last good one, has this digest
    assert (story.state.last_good, story.state.probation) == (None, False)
    assert "no last good" in story.say("rollback")
    story.say("shadow", version=THREE)
    story.say("canary", version=ServedVersion("9", "9" * 64), share=0.1)
    assert story.say("retire", version=ServedVersion("7", THREE.manifest_sha256)) == ""
    assert story.say("retire", version=ServedVersion("7", "9" * 64)) == ""
    assert (story.state.shadows, story.state.canary) == ([], None)


def test_a_retired_version_never_serves_again_by_a_rollback(story: Story) -> None:
    story.say("promote", version=TWO)
    # A state that a person restored may contradict itself.
    broken = msgspec.structs.replace(story.state, retired=[ONE.manifest_sha256])
    assert story.say("recover", state=broken) == ""
    assert "1 is retired" in story.say("rollback")


def test_a_monitor_whose_clock_is_ahead_does_not_prolong_the_cool_down() -> None:
    history = History()
    for offset, (action, more) in enumerate(
        (("promote", {"version": ONE}), ("promote", {"version": TWO}), ("rollback", {"author": "monitor"}))
    ):
        fields = {"ensemble": "cards", "who": "m", "why": "so", "at": 1 << 50, "expected_offset": offset} | more
        history.add(offset, msgspec.json.encode(Command(action=action, **fields)), 1_000 + offset)  # type: ignore[arg-type]
    assert acted_since(history, "cards", 1_001)
    assert not acted_since(history, "cards", 1_002)


def test_a_cool_down_and_the_start_of_a_pair_outlast_the_records_kept_for_display(story: Story) -> None:
    story.say("promote", version=TWO, at=100)
    story.say("rollback", author="monitor", at=200)
    story.say("canary", version=THREE, share=0.1, at=300)
    (pair,) = comparisons(story.state, story.history)
    for _ in range(MAX_ENTRIES + 1):
        story.say("confirm")  # refused
    assert acted_since(story.history, "cards", 199)
    assert not acted_since(story.history, "cards", 200)
    assert not acted_since(story.history, "wires", 0)
    assert comparisons(story.state, story.history) == [pair]
    assert (pair.since, pair.at) == (3, 300)
