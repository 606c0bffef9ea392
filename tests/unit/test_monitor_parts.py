"""The parts of a monitor restart alone, with a growing pause, and report their state."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from stream_scorer.clock import SystemClock
from stream_scorer.errors import StateUnavailable, StreamScorerError
from stream_scorer.kafka.topics import TopicAdmin
from stream_scorer.monitor import parts as parts_module
from stream_scorer.monitor import service
from stream_scorer.monitor.metrics import MONITOR_METRICS
from stream_scorer.monitor.parts import Part, PartRun, Parts
from stream_scorer.observability.metrics import Metrics


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "MIN_BACKOFF_S", 0.01)
    monkeypatch.setattr(parts_module, "MAX_BACKOFF_S", 0.04)


class Service:
    """A part that fails while `error` is set, also in the middle of its work."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.attempts: list[float] = []

    def run(self, stop: threading.Event, on_ready: Callable[[], None]) -> None:
        self.attempts.append(time.monotonic())
        while not stop.is_set():
            if self.error is not None:
                raise self.error
            on_ready()
            stop.wait(0.002)


@contextmanager
def running(**runs: PartRun) -> Iterator[tuple[Parts, Metrics]]:
    metrics = Metrics(MONITOR_METRICS)
    parts = Parts([Part(name, run, SystemClock(), metrics) for name, run in runs.items()])
    parts.start()
    yield parts, metrics
    parts.stop(5.0)
    assert {status["state"] for status in parts.details()["parts"].values()} == {"stopped"}  # type: ignore[attr-defined]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def sample(metrics: Metrics, name: str, part: str) -> float | None:
    return metrics.registry.get_sample_value(name, {"part": part})


def test_a_part_that_fails_does_not_stop_the_others_and_runs_again() -> None:
    watch, windows = Service(), Service()
    with running(watch=watch.run, windows=windows.run) as (parts, metrics):
        wait_until(lambda: parts.readiness() == (True, ""))
        assert sample(metrics, "stream_scorer_monitor_part_failures_total", "windows") == 0
        windows.error = StateUnavailable("Redis does not answer", hint="Is it running?")
        wait_until(lambda: len(windows.attempts) > 3)
        assert parts.readiness() == (False, "windows: Redis does not answer")
        details = parts.details()["parts"]
        assert details["watch"] == {"state": "running", "reason": "", "failures": 0}  # type: ignore[index]
        assert details["windows"]["failures"] >= 3  # type: ignore[index]
        assert sample(metrics, "stream_scorer_monitor_part_running", "watch") == 1
        assert sample(metrics, "stream_scorer_monitor_part_running", "windows") == 0
        windows.error = None
        wait_until(lambda: parts.readiness() == (True, ""))
        assert sample(metrics, "stream_scorer_monitor_part_running", "windows") == 1
        failures = sample(metrics, "stream_scorer_monitor_part_failures_total", "windows")
        assert failures == parts.details()["parts"]["windows"]["failures"]  # type: ignore[index]
    assert len(watch.attempts) == 1


def test_the_pause_doubles_up_to_a_maximum() -> None:
    service = Service(StateUnavailable("away"))
    with running(windows=service.run):
        wait_until(lambda: len(service.attempts) > 5)
    pauses = [after - before for before, after in zip(service.attempts, service.attempts[1:], strict=False)]
    assert pauses[0] >= 0.01
    assert pauses[1] >= 0.02
    assert all(pause >= 0.04 for pause in pauses[2:])


@pytest.mark.parametrize("error", [ValueError("odd"), SystemExit(3), KeyboardInterrupt()])
def test_an_unexpected_error_is_logged_with_its_traceback_once(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(error)
    with caplog.at_level(logging.ERROR), running(joiner=service.run) as (parts, _):
        wait_until(lambda: len(service.attempts) > 3)
        assert type(error).__name__ in parts.readiness()[1]
    assert len([record for record in caplog.records if record.exc_info]) == 1
    assert "it starts again in" in caplog.text


def test_a_part_that_ends_by_itself_starts_again() -> None:
    attempts: list[int] = []

    def run(stop: threading.Event, on_ready: Callable[[], None]) -> None:
        attempts.append(1)

    with running(joiner=run) as (parts, _):
        wait_until(lambda: len(attempts) > 2)
        assert parts.readiness() == (False, "joiner: it ended without an error")


def hang(release: threading.Event) -> None:
    release.wait(10.0)


def test_a_part_that_hangs_does_not_delay_the_end() -> None:
    release = threading.Event()
    part = Part("windows", lambda stop, on_ready: hang(release), SystemClock(), Metrics(MONITOR_METRICS))
    part.start()
    began = time.monotonic()
    Parts([part]).stop(0.05)
    assert time.monotonic() - began < 2.0
    release.set()
    assert part.join(5.0)


def test_other_partitions_than_at_the_start_end_the_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that does not answer changes nothing."""
    monkeypatch.setattr(service, "PARTITIONS_EVERY_S", 0.001)
    answers: list[Any] = [{"scores": 2, "labels": 2}, StreamScorerError("no broker"), {"scores": 4, "labels": 2}]

    def require(_names: list[str], *, same_count: bool) -> dict[str, int]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)

    admin = cast(TopicAdmin, SimpleNamespace(require=require))
    with pytest.raises(StreamScorerError, match="scores: 4 instead of 2"):
        asyncio.run(service.watch_partitions(admin, {"scores": 2, "labels": 2}))
    assert not answers
