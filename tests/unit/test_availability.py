"""The state of the features: legal transitions, and what may wait in flight."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from stream_scorer.errors import RecordsDeleted, StateGap, StateUnavailable
from stream_scorer.observability.metrics import Metrics
from stream_scorer.pipeline.apply import Apply
from stream_scorer.pipeline.availability import Availability, State
from stream_scorer.pipeline.batch import MicroBatch
from stream_scorer.pipeline.in_flight import InFlight, require_contiguous
from stream_scorer.pipeline.probe import IdleCheck, WriteProbe
from stream_scorer.pipeline.starting_points import StartingPoints
from stream_scorer.pipeline.state_manager import StateManager
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.state.rows import AppliedOffsets, RowUpdate

A, B = SourcePartition("transactions", 0), SourcePartition("transactions", 1)


def update(start: int, stop: int, source: SourcePartition = A) -> RowUpdate:
    none = np.zeros(0, dtype=np.int64)
    span = Span(source, start, stop, -1)
    return RowUpdate([span], [], np.zeros(1, np.int64), none.reshape(0, 4), none, none, none.astype(np.int8))


def batch_of(change: RowUpdate) -> MicroBatch:
    batch = MicroBatch.nothing("transactions")
    batch.enriched = type("Enriched", (), {"update": change})()  # type: ignore[assignment]
    return batch


class Store:
    """Accepts updates unless `refuses` is set."""

    def __init__(self) -> None:
        self.refuses = False
        self.applied: list[RowUpdate] = []

    def apply(self, change: RowUpdate) -> None:
        if self.refuses:
            raise StateUnavailable("OOM command not allowed")
        self.applied.append(change)

    def probe_write(self) -> None:
        if self.refuses:
            raise StateUnavailable("OOM command not allowed")


def test_ready_is_entered_only_by_a_resync() -> None:
    availability = Availability(Metrics())
    availability.enter(State.DEGRADED)
    assert availability.reason == "features_unavailable"
    with pytest.raises(AssertionError, match="degraded to ready"):
        availability.enter(State.READY)
    availability.enter(State.CATCHING_UP)
    availability.enter(State.READY)
    assert (availability.reason, availability.readiness) == ("", (True, "serving"))


def test_readiness_names_why_redis_cannot_be_used() -> None:
    availability = Availability(Metrics())
    for why in ("Redis at redis://h:6379: TimeoutError", "Redis runs with maxmemory-policy allkeys-lru"):
        availability.enter(State.DEGRADED, why)
        assert availability.readiness == (False, f"features cannot be used: scoring without them ({why})")
    availability.enter(State.CATCHING_UP, "20000 records behind")
    assert "behind" not in availability.readiness[1]


def test_a_batch_is_fresh_only_if_rows_and_updates_in_flight_reach_it() -> None:
    stored = AppliedOffsets({A: 10, B: 7}, {A: -1, B: -1})
    require_contiguous(stored, [], [Span(A, 10, 20, -1), Span(B, 5, 9, -1)])
    require_contiguous(stored, [update(8, 12), update(12, 15)], [Span(A, 15, 20, -1)])
    with pytest.raises(StateGap, match=r"transactions\[0\] end at offset 12; needed is 13"):
        require_contiguous(stored, [update(8, 12), update(13, 15)], [Span(A, 15, 20, -1)])
    with pytest.raises(StateGap):
        require_contiguous(stored, [], [Span(SourcePartition("labels", 0), 0, 3, -1)])


def test_updates_that_redis_refuses_stay_in_flight_and_are_applied_in_order_later() -> None:
    store, in_flight = Store(), InFlight()
    apply = Apply(store, in_flight)  # type: ignore[arg-type]
    changes = [update(start, start + 5) for start in range(0, 20, 5)]
    for number, change in enumerate(changes):
        store.refuses = number in (1, 2)
        in_flight.announce(change)
        apply.process(batch_of(change))
    assert store.applied == changes[:1]
    assert list(in_flight.snapshot()) == changes[1:]
    in_flight.blocked_by = None
    apply.process(MicroBatch.nothing("transactions"))
    assert store.applied == changes
    assert not in_flight.snapshot()


def test_an_update_that_was_cleared_is_not_taken_up_again() -> None:
    store, in_flight = Store(), InFlight()
    change = update(0, 5)
    in_flight.announce(change)
    in_flight.clear()
    Apply(store, in_flight).process(batch_of(change))  # type: ignore[arg-type]
    assert not store.applied
    assert not in_flight.waiting


def test_in_flight_is_full_beyond_its_bounds() -> None:
    in_flight = InFlight(max_updates=2)
    for start in range(3):
        assert not in_flight.full
        in_flight.announce(update(start, start + 1))
    assert in_flight.full


def wait_for(condition: object) -> None:
    until = time.monotonic() + 10
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.005)


def test_a_probe_asks_until_redis_accepts_a_write_and_reports_it_once() -> None:
    store = Store()
    store.refuses = True
    probe = WriteProbe(store.probe_write, first_delay_s=0.001)
    probe.start()
    time.sleep(0.02)
    assert not probe.take()
    store.refuses = False
    wait_for(probe.take)
    assert not probe.take()


def test_a_cancelled_probe_reports_nothing() -> None:
    entered, go_on = threading.Event(), threading.Event()

    def write() -> None:
        entered.set()
        go_on.wait(10)

    probe = WriteProbe(write, first_delay_s=0.001)
    probe.start()
    assert entered.wait(10)
    probe.cancel()
    go_on.set()
    time.sleep(0.02)
    assert not probe.take()


def make_manager(store: Store, in_flight: InFlight, read: Callable[[], object] = lambda: None) -> StateManager:
    probe = WriteProbe(store.probe_write, first_delay_s=0.001)
    return StateManager(
        Availability(Metrics()),
        in_flight,
        probe,
        IdleCheck(read, every_s=0.01),
        lambda _reader, _owned, _scored: StartingPoints({}, {}),
        None,
        Metrics(),
    )


def test_while_writes_fail_features_stay_ready_up_to_the_bound_then_degrade_then_resync() -> None:
    store, in_flight = Store(), InFlight(max_updates=2)
    manager = make_manager(store, in_flight)
    manager.start(None, [])  # type: ignore[arg-type]
    store.refuses = True
    apply = Apply(store, in_flight)  # type: ignore[arg-type]
    for start in range(0, 10, 5):
        in_flight.announce(change := update(start, start + 5))
        apply.process(batch_of(change))
        assert manager.check() == ""
        assert manager.availability.state is State.READY
    in_flight.announce(update(10, 15))
    assert manager.check() == ""
    assert manager.availability.state is State.DEGRADED
    time.sleep(0.02)
    assert manager.check() == ""
    store.refuses = False
    wait_for(lambda: manager.check() == "redis_back")
    manager.start(None, [])  # type: ignore[arg-type]
    assert manager.availability.state is State.READY
    assert not in_flight.snapshot()


def test_a_short_refusal_is_bridged_without_a_resync() -> None:
    store, in_flight = Store(), InFlight()
    manager = make_manager(store, in_flight)
    manager.start(None, [])  # type: ignore[arg-type]
    store.refuses = True
    in_flight.announce(change := update(0, 5))
    Apply(store, in_flight).process(batch_of(change))  # type: ignore[arg-type]
    store.refuses = False
    wait_for(lambda: manager.check() == "" and manager.updates_wait)
    Apply(store, in_flight).process(MicroBatch.nothing("transactions"))  # type: ignore[arg-type]
    assert store.applied == [change]
    assert manager.availability.state is State.READY


def test_an_idle_scorer_reads_the_state_of_its_rows_beside_reading_records_and_acts_on_the_answer() -> None:
    errors: list[Exception] = []
    reads, go_on = [0], threading.Event()

    def read() -> None:
        reads[0] += 1
        go_on.wait(10)
        if errors:
            raise errors[-1]

    def idle() -> bool:
        manager.idle()
        return manager.check() != "" or manager.availability.state is not State.READY

    manager = make_manager(Store(), InFlight(), read)
    manager.start(None, [A])  # type: ignore[arg-type]
    manager.idle()
    assert reads == [0]  # not due
    for _ in range(3):  # a batch reads the rows itself
        time.sleep(0.02)
        manager.note_committed([Span(A, 0, 1, -1)])
        manager.idle()
    assert reads == [0]
    time.sleep(0.02)
    assert not any(idle() for _ in range(5))  # Redis hangs: nothing waits for it
    assert reads == [1]
    manager.start(None, [A])  # type: ignore[arg-type]
    errors.append(StateGap("Redis holds another epoch than the one in use"))
    go_on.set()
    manager.check()  # the answer from before the resync does not count
    with pytest.raises(StateGap, match="another epoch"):
        wait_for(idle)
    manager.start(None, [A])  # type: ignore[arg-type]
    errors.append(StateUnavailable("timeout"))
    wait_for(idle)
    assert manager.availability.state is State.DEGRADED
    wait_for(lambda: manager.check() == "redis_back")


class DeletedLog:
    """A catch-up whose log lost the records that come next."""

    failure = RecordsDeleted("transactions[0] no longer has the start of the range")
    ready = threading.Event()

    def stop(self, _deadline: object) -> bool:
        return True


def test_a_catch_up_whose_records_are_deleted_meanwhile_leads_to_a_resync_and_not_to_the_end_of_the_scorer() -> None:
    behind = StartingPoints({A: 5}, {A: 5}, State.CATCHING_UP)
    manager = StateManager(
        Availability(Metrics()), InFlight(), WriteProbe(Store().probe_write), IdleCheck(lambda: None),
        lambda _reader, _owned, _scored: behind, lambda _committed, _on_progress: DeletedLog(), Metrics(),  # type: ignore[arg-type, return-value]
    )  # fmt: skip
    manager.start(None, [A])  # type: ignore[arg-type]
    with pytest.raises(StateGap, match="no longer has"):
        manager.check()
    assert manager.check() == ""


@pytest.mark.parametrize("state", [State.CATCHING_UP, State.REBUILDING, State.DEGRADED])
def test_a_scorer_that_lost_its_partitions_has_nothing_to_wait_for(state: State) -> None:
    """It would wait for ever: other scorers bring the rows up to date, and only an assignment looks at them again."""
    caught_up, stopped = threading.Event(), []

    class CatchUp:
        failure = None
        ready = caught_up

        def stop(self, _deadline: object) -> bool:
            stopped.append(self)
            return True

    manager = StateManager(
        Availability(Metrics()), InFlight(), WriteProbe(Store().probe_write, first_delay_s=0.001),
        IdleCheck(lambda: None), lambda _reader, _owned, _scored: StartingPoints({A: 5}, {A: 5}, state),
        lambda _committed, _on_progress: CatchUp(), Metrics(),  # type: ignore[arg-type, return-value]
    )  # fmt: skip
    manager.start(None, [A])  # type: ignore[arg-type]
    manager.check()
    caught_up.set()
    manager.forget()
    time.sleep(0.02)
    assert manager.check() == ""
    assert len(stopped) == (state is not State.DEGRADED)
