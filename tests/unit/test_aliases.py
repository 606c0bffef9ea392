"""The alias in the registry follows the control log."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest

from stream_scorer import app
from stream_scorer.control.aliases import CHECK_S, MAX_BACKOFF_S, REPEAT_S, AliasMirror
from stream_scorer.errors import RegistryUnavailable
from stream_scorer.records import Command, ServedVersion
from stream_scorer.settings import load_settings
from tests.support.control import MemoryControlLog

ONE, TWO = (ServedVersion(str(i), str(i) * 64) for i in (1, 2))


class StepClock:
    now = 0.0

    def now_ms(self) -> int:
        return int(self.now * 1_000)

    def monotonic(self) -> float:
        return self.now


class Registry:
    """The alias `champion` of each ensemble."""

    def __init__(self) -> None:
        self.aliases: dict[str, str] = {}
        self.down = False
        self.calls = 0

    def move(self, name: str, version: str) -> str | None:
        self.calls += 1
        if self.down:
            raise RegistryUnavailable("no answer")
        before = self.aliases.get(name)
        self.aliases[name] = version
        return before


def say(records: list[bytes], action: str, **more: object) -> None:
    fields = {"ensemble": "cards", "who": "ann", "why": "so", "at": 1, "expected_offset": len(records)} | more
    records.append(msgspec.json.encode(Command(action=action, **fields)))  # type: ignore[arg-type]


def test_the_alias_follows_a_rollback_by_the_monitor() -> None:
    records: list[bytes] = []
    registry, clock = Registry(), StepClock()
    mirror = AliasMirror(lambda: MemoryControlLog(records), registry.move, clock)
    say(records, "promote", version=ONE)
    mirror.step()
    assert registry.aliases == {"cards": "1"}
    say(records, "promote", version=TWO)
    say(records, "rollback", author="monitor")
    say(records, "promote", version=ServedVersion("local-3", "3" * 64), ensemble="wires")
    mirror.step()
    assert registry.aliases == {"cards": "1"}  # a folder has no alias
    say(records, "promote", version=TWO)
    mirror.step()
    assert registry.aliases == {"cards": "2"}
    registry.aliases["cards"] = "1"  # a command line that was slower
    clock.now += REPEAT_S
    mirror.step()
    assert registry.aliases == {"cards": "2"}
    calls = registry.calls
    clock.now += CHECK_S - 1
    mirror.step()
    assert registry.calls == calls


def test_an_alias_that_somebody_else_moves_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    records: list[bytes] = []
    registry, clock = Registry(), StepClock()
    mirror = AliasMirror(lambda: MemoryControlLog(records), registry.move, clock)
    say(records, "promote", version=ONE)
    for _ in range(5):
        mirror.step()
        clock.now += CHECK_S
    caplog.clear()
    registry.aliases["cards"] = "2"
    mirror.step()
    assert registry.aliases == {"cards": "1"}
    assert caplog.messages == ["the alias cards@champion named version 2, but version 1 serves: moved back"]


def test_a_registry_that_does_not_answer_is_tried_again_with_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream_scorer.control.aliases.READ_WAIT_S", 0.0)
    records: list[bytes] = []
    registry, clock = Registry(), StepClock()
    mirror = AliasMirror(lambda: MemoryControlLog(records), registry.move, clock)
    say(records, "promote", version=ONE)
    registry.down = True
    for _ in range(600):
        mirror.step()
        clock.now += 1.0
    assert 600 / MAX_BACKOFF_S - 2 < registry.calls < 600 / MAX_BACKOFF_S + 8
    registry.down = False
    clock.now += MAX_BACKOFF_S
    mirror.step()
    assert registry.aliases == {"cards": "1"}


@pytest.mark.parametrize("moves", [True, False])
def test_an_installation_that_shares_a_registry_may_leave_the_alias_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: bool
) -> None:
    started = threading.Event()
    monkeypatch.setattr(app.AliasMirror, "run", lambda _self, _stop: started.set())
    flags = {"kafka.bootstrap": "127.0.0.1:1", "mlflow.url": "http://m:1", "mlflow.champion_alias": moves}
    with app.mirroring_aliases(load_settings(flags, environment={}, directory=tmp_path)):
        pass  # the end of the block waits for the thread, if there is one
    assert started.is_set() == moves
