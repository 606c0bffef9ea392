"""Parts of the monitor end although Faust's tasks and threads do not."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any, cast

import pytest

from stream_scorer.monitor import transport
from stream_scorer.monitor.event_loop import run_bounded
from stream_scorer.monitor.transport import AbandonableWorker, ReadCommittedThread


async def fail_with(task_of: Any) -> None:
    task = asyncio.create_task(task_of())
    await asyncio.sleep(0)
    assert not task.done()
    raise RuntimeError("as the test wants")


def test_a_task_that_ignores_its_cancellation_does_not_keep_the_part_from_its_restart(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cancelled, loops = threading.Event(), []

    async def ignore() -> None:
        loops.append(asyncio.get_running_loop())
        while not cancelled.is_set():
            try:
                await asyncio.sleep(0.01 if loops[1:] else 60)
            except asyncio.CancelledError:
                loops.append(loops[0])

    began = time.monotonic()
    with pytest.raises(RuntimeError, match="as the test wants"):
        run_bounded(fail_with(ignore), cleanup_s=0.1)
    assert time.monotonic() - began < 10
    assert "1 tasks do not end" in caplog.text
    cancelled.set()  # the rest is for the test's own cleanliness
    (left,) = asyncio.all_tasks(loops[0])
    loops[0].run_until_complete(left)
    loops[0].close()


def test_a_task_that_ends_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    ended: list[str] = []

    async def clean_up() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            ended.append("yes")

    with pytest.raises(RuntimeError):
        run_bounded(fail_with(clean_up), cleanup_s=30)
    assert ended == ["yes"]
    assert not caplog.text


def test_a_consumer_thread_that_hangs_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hangs:
        def __init__(self) -> None:
            self.go_on = threading.Event()

        def _start_thread(self) -> None:
            self.go_on.wait()

    monkeypatch.setattr(transport, "THREAD_END_S", 0.05)
    service = Hangs()
    worker = AbandonableWorker(cast(Any, service))
    worker.start()
    began = time.monotonic()
    worker.stop()
    assert time.monotonic() - began < 10
    assert worker.is_alive()
    assert worker.daemon
    service.go_on.set()
    worker.join(10)
    worker.stop()
    assert ReadCommittedThread.Worker is AbandonableWorker
