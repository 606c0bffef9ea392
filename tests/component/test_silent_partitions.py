"""A scorer whose partitions get no records notices a loss in Redis by itself, so no rebuild waits for it."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from proofs.kit import CARDS_SPEC
from proofs.memory_run import make_parts, make_world
from stream_scorer.pipeline import catch_up
from stream_scorer.pipeline.availability import State
from stream_scorer.pipeline.processor import Processor
from tests.support.failpoints import Failpoints


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("shards", [1, 2])
def test_scorers_without_records_notice_lost_rows_and_lost_updates(
    shards: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(catch_up, "PROGRESS_EVERY_S", 0.0)
    caplog.set_level(logging.INFO)
    world = make_world(make_parts(tmp_path, CARDS_SPEC), 3, 200, shards)
    stop, lives = threading.Event(), {name: Failpoints() for name in "ab"}
    scorers = {name: world.scorer(name, life, random.Random(name)) for name, life in lives.items()}
    threads = [threading.Thread(target=partial(each.run, stop, beat=bool), daemon=True) for each in scorers.values()]

    def up_to_date() -> bool:
        held = all(server.applied and server.holds(world.broker.offsets) for server in world.servers)
        return held and world.broker.drained() and all(_ready(each) for each in scorers.values())

    for thread in threads:
        thread.start()
    wait_for(lambda: up_to_date() and all(each._reader.owned for each in scorers.values()))
    # From here on there are no records. One scorer notices the loss of everything, the other one stands still.
    lives["b"].suspend_at("read")
    assert lives["b"].suspended.wait(10)
    world.servers[0].flush()
    wait_for(lambda: "other scorers have" in caplog.text)
    silent = scorers["b"]._reader.owned
    assert scorers["a"]._state.availability.state is State.REBUILDING
    assert all(f" of {s.topic}[{s.partition}]" in caplog.text for s in silent if world.broker.offsets.get(s))
    lives["b"].resume()
    wait_for(up_to_date)
    # A replica took over that lacks the last updates of each partition.
    last = world.servers[-1]
    lacking = {s: (max(at - 2, 0), newest, target) for s, (at, newest, target) in last.applied.items()}
    with last.lock:
        last.applied = dict(lacking)
    wait_for(lambda: last.applied != lacking and up_to_date())
    stop.set()
    for thread in threads:
        thread.join(10)


def _ready(scorer: Processor) -> bool:
    return scorer.ready()[0]
