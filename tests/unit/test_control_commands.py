"""Commands by the command line, on topics in memory: what is refused, and what they do to versions in play."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from click.testing import CliRunner

from stream_scorer.cli.main import cli
from stream_scorer.errors import StreamScorerError
from stream_scorer.records import Command, ServedVersion, ServingState
from tests.support.control import MARKER, MemoryControlLog
from tests.support.ensembles import compose

ONE, TWO = (ServedVersion(str(i), str(i) * 64) for i in (1, 2))


class Console:
    """The command line, with topics in memory and the last error."""

    def __init__(self, cache: Path) -> None:
        self.topics: dict[str, list[bytes]] = defaultdict(list)
        self.cache = cache
        self.error = self.hint = ""

    def run(self, *arguments: str) -> int:
        """Run a command of `ensemble`; returns its exit code."""
        more = () if arguments[0] == "status" else ("--why", "because", "--wait", "0")
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
        lambda _bootstrap: SimpleNamespace(require=lambda _names: None, partitions=dict),
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


def test_an_ensemble_that_never_served_needs_no_recovery(console: Console, tmp_path: Path) -> None:
    compose(tmp_path / "e")
    assert console.run("hold", "cards") == 1
    assert "no version of cards serves yet" in console.error
    console.control.clear()
    assert console.run("promote", str(tmp_path / "e")) == 0
    assert console.state.control_offset == 0
