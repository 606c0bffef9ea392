"""What SIGTERM does to a scorer that starts, and to one that runs."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from stream_scorer import app
from stream_scorer.settings import Settings

SETTINGS = cast(Settings, {"metrics.port": -1})


@pytest.fixture(autouse=True)
def as_the_command_sets_it() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    yield
    signal.signal(signal.SIGTERM, before)


def scorer(ended: list[str], start: Callable[[], object], run: Callable[[threading.Event], object]) -> Any:
    @contextmanager
    def make(*_: object) -> Iterator[Any]:
        try:
            start()
            yield SimpleNamespace(run=run, ready=lambda: (True, ""))
        finally:
            ended.append("closed")

    return make


def test_a_start_that_waits_ends_in_order() -> None:
    ended: list[str] = []

    def wait() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        pytest.fail("the start goes on")

    with pytest.raises(SystemExit) as caught:
        app.run_processor(SETTINGS, scorer(ended, wait, lambda _stop: pytest.fail("it runs")))
    assert (caught.value.code, ended) == (0, ["closed"])


def test_a_scorer_that_runs_finishes_its_batch() -> None:
    ended: list[str] = []

    def run(stop: threading.Event, *, beat: Callable[[], object]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(5.0)
        ended.append("batch")

    app.run_processor(SETTINGS, scorer(ended, lambda: None, run))
    assert ended == ["batch", "closed"]
