"""Commands by the command line, on topics in memory: what is refused, and what they do to versions in play."""

from __future__ import annotations

import shutil
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from stream_scorer.app import load_version
from stream_scorer.bench.material import CARDS_SPEC
from stream_scorer.cli.checks import _ensemble as check_ensemble
from stream_scorer.cli.main import cli
from stream_scorer.ensemble.cache import EnsembleCache, Resolution
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.manifest import Manifest, Platt, Stacking, member_key
from stream_scorer.ensemble.registry import keep, register
from stream_scorer.errors import ArtifactError, StreamScorerError
from stream_scorer.records import (
    Command,
    CountedCards,
    DisabledMember,
    ScorerStatus,
    ServedVersion,
    ServingState,
    VerdictEvidence,
    VerdictRecord,
)  # fmt: skip
from stream_scorer.spec import load_spec
from tests.support.control import MARKER, MemoryControlLog
from tests.support.ensembles import compose, drafts, logistic

ONE, TWO = (ServedVersion(str(i), str(i) * 64) for i in (1, 2))


class Console:
    """The command line, with topics in memory and the last error."""

    def __init__(self, cache: Path) -> None:
        self.topics: dict[str, list[bytes]] = defaultdict(list)
        self.cache = cache
        self.error = self.hint = ""

    def run(self, *arguments: str, wait: str = "0") -> int:
        """Run a command of `ensemble`; returns its exit code."""
        more = () if arguments[0] == "status" else ("--why", "because", "--wait", wait)
        given = ["ensemble", *arguments, *more, "--bootstrap", "127.0.0.1:1", "--cache", str(self.cache)]
        ended = CliRunner().invoke(cli, given)
        self.error, self.hint, self.out = "", "", ended.output
        if isinstance(ended.exception, StreamScorerError):
            self.error, self.hint = ended.exception.message, ended.exception.hint
            return ended.exception.exit_code
        return ended.exit_code

    @property
    def control(self) -> list[bytes]:
        return self.topics["control"]

    @property
    def state(self) -> ServingState:
        return MemoryControlLog(self.control).history.states["cards"]

    @property
    def in_play(self) -> ServedVersion:
        """The canary, else the champion."""
        return self.state.champion if self.state.canary is None else self.state.canary.version

    def say(self, action: str, **more: object) -> None:
        """Append a command of a person."""
        fields = {"ensemble": "cards", "who": "ann", "why": "so", "at": 5, "expected_offset": len(self.control)} | more
        self.control.append(msgspec.json.encode(Command(action=action, **fields)))  # type: ignore[arg-type]

    def publish(self) -> None:
        """Publish the state, as a scorer does."""
        self.topics["serving-state"].append(msgspec.json.encode(self.state))


@pytest.fixture
def console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Console:
    console = Console(tmp_path / "cache")
    monkeypatch.setattr(
        "stream_scorer.kafka.topics.TopicAdmin",
        lambda _bootstrap: SimpleNamespace(require=lambda _names: None, partitions=lambda: console.topics),
    )
    monkeypatch.setattr(
        "stream_scorer.kafka.control_log.ControlLog", lambda _, topic, *_stop: MemoryControlLog(console.topics[topic])
    )
    return console


def test_after_control_was_created_again_only_recover_is_accepted(console: Console, tmp_path: Path) -> None:
    compose(tmp_path / "e")
    console.say("promote", version=ONE)
    console.publish()
    console.say("promote", version=TWO)
    console.say("hold")
    console.publish()
    before = console.state
    console.control.clear()
    every = ["confirm cards", "rollback cards", "stop cards 2", "disable cards gbdt", "enable cards gbdt", "hold cards"]
    every += ["release cards", "status cards"]
    every += [f"{action} {tmp_path / 'e'}" for action in ("promote", "shadow", "retire", "canary --share 0.1")]
    # Whatever the log of another ensemble has, and also if only the first records are gone.
    for records in ([], [MARKER], [msgspec.json.encode(Command(ensemble="wires", action="promote", who="ann", why="so",
                                                               at=1, expected_offset=0, version=ONE))]):  # fmt: skip
        console.control[:] = records
        for command in every:
            assert console.run(*command.split()) == 1, command
            assert "has lost the commands of cards" in console.error, command
            assert "stream-scorer ensemble recover cards" in console.hint
        assert console.control == records
    assert console.run("recover", "cards") == 0
    after = console.state
    assert (after.champion, after.last_good, after.probation, after.hold) == (TWO, ONE, True, before.hold)
    assert after.recoveries == 1
    assert console.run("rollback", "cards") == 0
    assert console.state.champion == ONE


def test_commands_that_need_no_registry_accept_mixed_addresses(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stack runs in this directory, and the commands name another broker."""
    local = {"kafka": "k:1", "redis": "redis://r:1/0", "mlflow": "http://m:1"}
    monkeypatch.setattr("stream_scorer.cli.options._stack_addresses", lambda _folder: local)
    console.say("promote", version=ONE)
    console.say("promote", version=TWO)
    for command in ("status cards", "hold cards", "release cards", "stop cards 2", "confirm cards"):
        console.run(*command.split())
        assert "mlflow.url" not in console.error, command
    console.say("promote", version=ONE)
    assert console.run("rollback", "cards") == 0
    assert console.state.champion == TWO
    assert "the alias champion was not moved: mlflow.url would be that of the local stack" in console.out
    assert console.run("promote", "cards:3") == 2
    assert "mlflow.url would be that of the local stack" in console.error


def test_an_installation_that_shares_a_registry_leaves_the_alias_alone(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[str] = []
    monkeypatch.setattr(
        "stream_scorer.ensemble.registry.set_alias", lambda name, alias, version, _url: moved.append(version)
    )
    monkeypatch.setenv("STREAM_SCORER_MLFLOW_URL", "http://m:1")
    console.say("promote", version=ONE)
    console.say("promote", version=TWO)
    assert console.run("rollback", "cards") == 0
    assert moved == ["1"]
    console.say("promote", version=TWO)
    monkeypatch.setenv("STREAM_SCORER_MLFLOW_CHAMPION_ALIAS", "no")
    assert console.run("rollback", "cards") == 0
    assert (moved, console.state.champion) == (["1"], ONE)


def test_recover_from_a_version_is_for_this_ensemble_and_only_without_a_recorded_state(
    console: Console, tmp_path: Path
) -> None:
    compose(tmp_path / "e")
    console.control.append(MARKER)  # its beginning is lost
    assert console.run("recover", "wires", "--from", str(tmp_path / "e")) == 2
    assert "is a version of cards, not of wires" in console.error
    console.topics["serving-state"].append(
        msgspec.json.encode(
            ServingState(
                ensemble="cards", control_offset=3, champion=ONE, who="ann", why="so", at=1, retired=["2" * 64]
            )
        )
    )
    assert console.run("recover", "cards", "--from", str(tmp_path / "e")) == 2
    assert "a state of cards is recorded, in which 1 (111111111111) serves" in console.error
    assert "retired" in console.error
    assert console.control == [MARKER]
    console.topics["serving-state"].clear()
    assert console.run("recover", "cards", "--from", str(tmp_path / "e")) == 0
    assert console.state.champion.version.startswith("local-")


def test_a_version_is_retired_although_its_files_are_damaged_or_gone(console: Console, tmp_path: Path) -> None:
    made = {name: make(console, tmp_path / name, bias) for name, bias in (("a", -1.0), ("b", -2.0), ("c", -3.0))}
    console.say("promote", version=made["a"].served)
    console.say("canary", version=made["b"].served, share=0.1)
    # In play, and the folder is gone.
    shutil.rmtree(console.cache)
    shutil.rmtree(tmp_path / "b")
    assert console.run("retire", str(tmp_path / "b")) == 2
    assert "retire NAME:local-" in console.hint
    assert console.run("retire", f"cards:{made['b'].served.version}") == 0, console.error
    # Not in play, and a member is damaged.
    (tmp_path / "c" / "one.json").write_bytes(b"{}")
    assert console.run("retire", str(tmp_path / "c")) == 0, console.error
    # Not in play and gone, but a command named it; and one that no command named.
    console.say("shadow", version=TWO)
    console.say("stop", version=TWO)
    assert console.run("retire", "cards:2") == 0, console.error
    assert console.run("retire", "cards:local-0123456789ab") != 0
    assert "not in the cache" in console.error
    assert console.state.retired == [made["b"].served.manifest_sha256, made["c"].served.manifest_sha256, "2" * 64]


def test_a_version_of_a_folder_can_be_named_after_the_folder_is_gone(console: Console, tmp_path: Path) -> None:
    first, second = make(console, tmp_path / "a", -1.0), make(console, tmp_path / "b", -2.0)
    console.say("promote", version=first.served)
    shutil.rmtree(tmp_path / "b")
    assert console.run("shadow", f"cards:{second.served.version}") == 0, console.error
    assert console.state.shadows == [second.served]
    assert console.run("promote", f"wires:{second.served.version}") == 2
    assert "is a version of cards, not of wires" in console.error
    # Other weights of it are not registered either.
    assert console.run("weights", f"cards:{second.served.version}", "one=0.4") == 0, console.error
    assert console.state.champion.version.startswith("local-")
    assert console.run("promote", f"cards:{second.served.version}") == 0, console.error


def test_an_ensemble_that_never_served_needs_no_recovery(console: Console, tmp_path: Path) -> None:
    compose(tmp_path / "e")
    assert console.run("hold", "cards") == 1
    assert "no version of cards serves yet" in console.error
    console.control.clear()
    assert console.run("promote", str(tmp_path / "e")) == 0
    assert console.state.control_offset == 0


@dataclass
class Made:
    """A version in the cache of the command line."""

    served: ServedVersion
    manifest: Manifest

    def key(self, name: str) -> str:
        """The key of a member."""
        return next(member_key(member) for member in self.manifest.members if member.name == name)


def make(console: Console, folder: Path, bias: float, quorum: float = 0.4) -> Made:
    """A version whose member "one" depends on `bias`."""
    members = [replace(d, data=logistic([0.5, -0.25], bias)) if d.name == "one" else d for d in drafts()]
    manifest = compose(folder, members, quorum)
    return Made(ServedVersion(*keep(folder, console.cache)), manifest)


def test_a_member_is_disabled_and_enabled_in_every_version_in_play(console: Console, tmp_path: Path) -> None:
    champion, last_good, canary, shadow = (
        make(console, tmp_path / str(bias), bias) for bias in (-1.0, -2.0, -3.0, -4.0)
    )
    console.say("promote", version=last_good.served)
    console.say("promote", version=champion.served)
    console.say("canary", version=canary.served, share=0.1)
    console.say("shadow", version=shadow.served)
    assert console.run("disable", "cards", "two") == 0  # the same member in all
    assert "neither confirms nor withdraws" not in console.out
    assert [member.key for member in console.state.disabled] == [champion.key("two")]
    assert console.run("enable", "cards", "two") == 0
    assert console.run("disable", "cards", "one") == 0
    for version, other in ((champion, last_good), (canary, champion)):
        text = f"withdraws version {version.served.version}: its one is not that of version {other.served.version}"
        assert text in console.out
    keys = [made.key("one") for made in (champion, last_good, canary, shadow)]
    assert [(member.name, member.key) for member in console.state.disabled] == [("one", key) for key in keys]
    assert console.run("disable", "cards", "one") == 2
    assert "already disabled" in console.error
    # A version that comes later is not concerned: its member may be the repaired one.
    later = make(console, tmp_path / "later", -5.0)
    console.say("shadow", version=later.served)
    assert console.run("disable", "cards", "one") == 0
    assert console.state.disabled[-1].key == later.key("one")
    assert console.run("enable", "cards", "one") == 0
    assert console.state.disabled == []


def test_what_disable_refuses_and_what_it_cannot_reach(console: Console, tmp_path: Path) -> None:
    champion, canary = make(console, tmp_path / "a", -1.0), make(console, tmp_path / "b", -2.0, quorum=0.6)
    console.say("promote", version=champion.served)
    console.say("canary", version=canary.served, share=0.1)
    assert console.run("disable", "cards", "four") == 2
    assert "no member 'four'" in console.error
    assert console.run("disable", "cards", "one") == 2
    assert f"without one, 50% of the weight of version {canary.served.version} remains" in console.error
    assert console.state.disabled == []
    assert console.run("disable", "cards", "one", "--force") == 0
    console.run("enable", "cards", "one")
    # A version that this machine does not have must not prevent the others.
    console.say("stop", version=canary.served)
    console.say("shadow", version=TWO)
    assert console.run("disable", "cards", "one") == 1
    assert "version 2 cannot be read here" in console.error
    assert [member.key for member in console.state.disabled] == [champion.key("one")]


def test_disable_warns_of_stacking_without_a_calibrator_for_missing_members(console: Console, tmp_path: Path) -> None:
    how, text = Stacking(-0.2, [0.5, 0.9, 0.4]), "stacking without a calibrator for missing members"
    compose(tmp_path / "mean")
    compose(tmp_path / "old", combiner=how)
    compose(tmp_path / "new", combiner=how, incomplete=Platt(2.5, -0.7))
    for name in ("mean", "old", "new"):
        version = ServedVersion(*keep(tmp_path / name, console.cache))
        console.say("promote", version=version)
        assert console.run("disable", "cards", "two") == 0
        assert (f"version {version.version}: {text}" in console.out) == (text in console.out) == (name == "old")
        assert console.run("enable", "cards", "two") == 0


def test_disable_allows_exactly_the_weight_of_the_quorum(console: Console, tmp_path: Path) -> None:
    # 0.05 + 0.35 is below 0.4 by 3e-17.
    weights = {"one": 0.6, "two": 0.05, "three": 0.35}
    compose(tmp_path / "e", [replace(draft, weight=weights[draft.name]) for draft in drafts()], quorum=0.4)
    console.say("promote", version=ServedVersion(*keep(tmp_path / "e", console.cache)))
    assert console.run("disable", "cards", "one") == 0, console.error


def test_a_version_that_the_monitor_cannot_judge_is_announced(console: Console, tmp_path: Path) -> None:
    old = make(console, tmp_path / "old", -1.0)
    make(console, tmp_path / "new", -2.0)
    console.say("promote", version=old.served)
    for command in (f"canary --share 0.1 {tmp_path / 'new'}", f"promote {tmp_path / 'new'}"):
        for member, warned in (("two", False), ("one", True)):
            console.say("disable", member=DisabledMember(member, old.key(member)))
            assert console.run(*command.split()) == 0
            assert ("the monitor does not judge this version" in console.out) == warned
            console.say("enable", member=DisabledMember(member, old.key(member)))
            console.say("rollback" if command.startswith("promote") else "stop", version=console.in_play)


def test_the_status_names_what_a_scorer_is_loading(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    console.say("promote", version=ONE)
    seen = SimpleNamespace(status=ScorerStatus("s-1", "g", "cards", ["1"], 0, 1, "", 5, loading=["2"]))
    monkeypatch.setattr("stream_scorer.control.liveness.RunningScorers.find", lambda _: [seen])
    assert console.run("status", "cards") == 0
    assert "loading 2" in console.out


def test_the_status_shows_no_verdict_of_a_former_control_topic(console: Console) -> None:
    console.say("promote", version=ONE)
    console.say("promote", version=TWO, at=2_000)
    for began, shown in ((1_000, 0), (2_000, 1)):
        verdict = VerdictRecord(
            id="cards-1", ensemble="cards", version="2", baseline="1", since=1, at=5, finding="rise", why="", rows=1,
            both=0, candidate_only=1, baseline_only=0, excluded=0, cards=CountedCards(0, 1, 0, 0),
            evidence=VerdictEvidence(1.0, 0.0, 0.0, 0.0), missing=[], more_rows=None,
            more_ms=None, due=None, held_back="", began=began,
        )  # fmt: skip
        console.topics["verdicts"].append(msgspec.json.encode(verdict))
        assert console.run("status", "cards", "--json") == 0
        assert len(msgspec.json.decode(console.out)["verdicts"]) == shown


def test_a_canary_keeps_its_terms_until_they_are_given_again(console: Console, tmp_path: Path) -> None:
    new, end = make(console, tmp_path / "new", -1.0).served, 4_070_908_800_000  # 2099-01-01
    console.say("promote", version=ONE)

    def canary(*more: str) -> tuple[object, ...]:
        assert console.run("canary", str(tmp_path / "new"), *more) == 0
        state = console.state.canary
        assert state is not None
        return state.share, state.salt, state.until, state.expect_rise

    terms = ("exp-7", end, 0.1)
    first = canary("--share", "1%", "--salt", "exp-7", "--until", "2099-01-01", "--expect-rise", "10%")
    assert first == (0.01, *terms)
    short = f"{new.version} ({new.manifest_sha256[:12]})"
    assert f"canary cards:{short} for 1 % of the entities: accepted at control offset 1" in console.out
    assert canary("--share", "10%") == (0.1, *terms)
    assert "keeps the end at 2099-01-01 00:00:00 (event time, UTC), the salt exp-7, the expected change" in console.out
    assert console.run("status", "cards") == 0
    assert f"{short} decides for 10 % of the entities until 2099" in console.out
    assert canary("--share", "20%", "--no-until", "--salt", "other", "--expect-rise", "0") == (0.2, "other", None, 0.0)
    assert console.run("canary", str(tmp_path / "new"), "--share", "0.3", "--until", "2020-01-01") == 2
    assert "decides no transaction from now on" in console.error
    console.say("canary", version=TWO, share=0.1, salt="exp-9", until=end)  # another version has its own terms
    assert canary("--share", "5%") == (0.05, f"cards:{new.version}", None, None)


@pytest.mark.parametrize(
    ("flag", "text", "expected"),
    [
        ("--share", "1", "1% or 100%"),
        ("--share", "5", "Write 5%."),
        ("--expect-rise", "10", "10% or 1000%"),
        ("--expect-rise", "-5", "Write -5%."),
        ("--share", "200", "0.1 or 10%"),
        ("--expect-rise", "inf", "10% or -0.05"),
    ],
)
def test_a_share_from_one_on_needs_a_percent_sign(console: Console, flag: str, text: str, expected: str) -> None:
    assert console.run("canary", "./absent", "--share", "2%", flag, text) == 2
    assert expected in console.hint


def test_an_alias_is_not_resolved_from_the_cache_but_a_version_is(console: Console, tmp_path: Path) -> None:
    made, registry = make(console, tmp_path / "e", -1.0).served, "http://127.0.0.1:9"
    for reference in ("cards@candidate", "cards:7"):
        resolution = Resolution(reference, registry, "7", made.manifest_sha256)
        EnsembleCache(console.cache).save_resolution(resolution)
    for command in ("promote", "shadow", "canary --share 1%", "retire", "weights"):
        action, *more = command.split()
        weights = ["one=0.5"] if action == "weights" else []
        assert console.run(action, "cards@candidate", *weights, *more, "--mlflow", registry) == 1, command
        assert "it is not known which version cards@candidate is now" in console.error
    assert console.control == []
    assert console.run("promote", "cards:7", "--mlflow", registry) == 0
    assert f"promote cards:7 ({made.manifest_sha256[:12]}): accepted at control offset 0" in console.out


def test_a_refused_version_does_not_make_other_commands_fail(console: Console, tmp_path: Path) -> None:
    shadow = make(console, tmp_path / "e", -1.0).served
    console.say("promote", version=ONE)
    for in_play, command, code in (
        (["1"], "hold cards", 0),
        (["1"], f"shadow {tmp_path / 'e'}", 1),
        (["1", shadow.version], f"canary --share 5% {tmp_path / 'e'}", 0),
    ):
        console.topics["scorer-status"].append(
            msgspec.json.encode(ScorerStatus("s-1", "g", "cards", in_play, 99, 99, "9 is refused: altered", 5))
        )
        assert console.run(*command.split(), wait="1") == code, command
        assert ("applied; versions in play" in console.out) == (code == 0)
        assert "9 is refused: altered" in console.out


def test_a_version_with_two_names_is_refused_by_all_that_would_let_it_serve(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, registry = make(console, tmp_path / "e", -1.0).served, "http://127.0.0.1:9"
    resolution = Resolution("payments:7", registry, "7", made.manifest_sha256)
    EnsembleCache(console.cache).save_resolution(resolution)
    settings: Any = {
        "cache.dir": str(console.cache), "mlflow.url": registry, "scorer.spec": str(CARDS_SPEC),
        "scorer.ensemble": "payments:7", "scorer.explain_alerts": 0,
    }  # fmt: skip
    monkeypatch.setattr("stream_scorer.app.load_serving_ensemble", lambda *_: Ensemble.load(tmp_path / "e", version=""))
    for refuses in (
        lambda: register(tmp_path / "e", "payments", registry),
        lambda: load_version(settings, load_spec(str(CARDS_SPEC)), "payments", made),
        lambda: check_ensemble(settings),
    ):
        with pytest.raises(ArtifactError, match="named cards in its manifest, and payments in the registry") as caught:
            refuses()
        assert caught.value.code == "artifact_name"
    for action, *more in (("promote",), ("shadow",), ("canary", "--share", "1%")):
        assert console.run(action, "payments:7", *more, "--mlflow", registry) == 2
        assert "Register it as cards" in console.hint
    assert console.run("retire", "payments:7", "--mlflow", registry) == 1
    assert "no version of payments serves yet" in console.error


def test_only_the_version_that_serves_may_get_the_alias_champion(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compose(tmp_path / "e")
    named: dict[str, str] = {}
    monkeypatch.setattr("stream_scorer.ensemble.registry.find_alias", lambda name, _alias, _url: named.get(name))
    monkeypatch.setattr("stream_scorer.ensemble.registry.find_registered", lambda *_: "2")
    monkeypatch.setattr("stream_scorer.ensemble.registry.register", lambda *_: "3")
    monkeypatch.setattr("stream_scorer.ensemble.registry.set_alias", lambda *_: None)

    def register(*more: str, bootstrap: str = "127.0.0.1:1") -> str:
        """The version that was registered, or the error."""
        arguments = ["ensemble", "register", str(tmp_path / "e"), "cards", "--why", "new", "--mlflow", "http://m:1"]
        ended = CliRunner().invoke(cli, [*arguments, *more, "--bootstrap", bootstrap])
        return str(ended.exception) if ended.exception else ended.stdout.strip()

    assert register("--alias", "champion") == "cards:3"  # the first one
    named["cards"] = "1"
    assert "names the version that serves: it names 1" in register("--alias", "champion")
    assert register("--alias", "candidate") == register() == "cards:3"
    named["cards"] = "2"
    assert register("--alias", "champion", "--once") == "cards:2"
    # The version that serves counts more than an alias that was moved.
    console.say("promote", version=ONE)
    assert "the version that serves: 1" in register("--alias", "champion", "--once")
    console.publish()
    console.control.clear()
    assert "the version that serves: 1" in register("--alias", "champion", "--once")
