"""Parts of the monitor end although Faust's tasks and threads do not."""

from __future__ import annotations

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from stream_scorer.monitor import app, transport
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


def test_a_consumer_thread_stops_although_a_fetch_waits_after_an_error() -> None:
    """aiokafka 0.14 raises the cancellation of that fetch, and leaves its client open."""
    closed: list[str] = []

    async def close() -> None:
        closed.append("client")

    async def stop_thread() -> None:
        waits = asyncio.create_task(asyncio.sleep(60))

        async def close_fetcher() -> None:
            waits.cancel()
            await waits

        thread = object.__new__(ReadCommittedThread)
        thread._consumer = SimpleNamespace(stop=close_fetcher, _client=SimpleNamespace(close=close))
        await thread.on_thread_stop()

    asyncio.run(stop_thread())
    assert closed == ["client"]


@pytest.mark.parametrize("hangs_at", ["start", "rebalance"])
def test_windows_that_never_join_their_group_fail_and_so_restart(hangs_at: str) -> None:
    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    clock, failures = Clock(), list[BaseException]()

    faust = SimpleNamespace(crash_reason=None, joined=False, rebalancing=False, consumer=SimpleNamespace(fetched={}))
    monitor = SimpleNamespace(faust=faust, fail=failures.append, _clock=clock, _settings=SimpleNamespace(group="g"))

    async def watch() -> None:
        starting = asyncio.create_task(asyncio.sleep(60))
        watching = asyncio.create_task(app.MonitorApp._watch(monitor, starting))  # type: ignore[arg-type]
        faust.joined = hangs_at == "rebalance"
        await asyncio.sleep(0.02)
        if faust.joined:
            clock.now = 1_000.0  # a member for long
            await asyncio.sleep(0.02)
            faust.rebalancing = True
        clock.now += app.JOIN_S - 1
        await asyncio.sleep(0.02)
        assert not failures
        clock.now += 2
        await asyncio.sleep(0.02)
        assert "no partitions" in str(failures[0])
        watching.cancel()
        starting.cancel()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "HEALTH_EVERY_S", 0.001)
        asyncio.run(watch())
