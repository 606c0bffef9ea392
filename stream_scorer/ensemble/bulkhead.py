"""Isolation of members in live scoring: a member that fails or exceeds its time budget only loses its own output.

Members run in worker threads. A member that hangs keeps its worker thread; the bulkhead abandons it and starts another.
Members that cannot hang run in the calling thread if the batch is small (ADR 0015). The others are distributed over the
threads by their measured durations. Each is called separately, so that outputs do not depend on who calls it. A member
that fails repeatedly is not called for a while (`stream_scorer.ensemble.breaker`).
A replay calls every member without a bulkhead, because its scores must not depend on timing.
"""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stream_scorer.clock import Clock
from stream_scorer.ensemble.breaker import Breaker, State
from stream_scorer.ensemble.ensemble import MemberOutput
from stream_scorer.ensemble.lineup import DISABLED, MemberPool
from stream_scorer.ensemble.watchdog import Watchdog

_log = logging.getLogger(__name__)
# The reason given for a member that was not called.
BREAKER_OPEN = "not called: its breaker is open"
# A member's budget is counted in slices, so that a pause of the whole process does not use it up.
_SLICES = 10
# Two threads suffice for five members; more would take cores from other processes on the machine.
THREADS = 2
# Most rows of a batch for which members that cannot hang are called by the calling thread. Handing over to two threads
# takes 0.1 to 0.3 ms of CPU per batch; on cores that are busy anyway, the batch does not take less time for it.
HERE_ROWS = 256

# Members whose state is kept after they have left the pool, newest last.
MAX_STATES = 1_000


@dataclass(slots=True)
class _Job:
    """The calls of some members on one batch; the worker appends to `outputs` in the order of `members`."""

    features: NDArray[np.float64]
    members: list[int]
    outputs: list[MemberOutput] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)
    abandoned: bool = False


class _Worker:
    """One thread that calls members in turn."""

    def __init__(self, pool: MemberPool, watchdog: Watchdog | None, slot: int) -> None:
        self._pool = pool
        self._watchdog = watchdog
        self._slot = slot
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="members", daemon=True)
        self.thread.start()

    def start(self, job: _Job) -> None:
        """Start `job`."""
        self._jobs.put(job)

    def finish(self) -> None:
        """Stop the thread after its current job."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            for index in job.members:
                if self._watchdog is not None:
                    self._watchdog.begin(self._slot, self._pool.keys[index])
                output = self._pool.predict_member(index, job.features)
                if job.abandoned:
                    return
                job.outputs.append(output)
            if self._watchdog is not None:
                self._watchdog.end(self._slot)
            job.done.set()


class Bulkhead:
    """Calls the healthy members of a pool. Not thread-safe.

    The state of a member is stored under the member's key, so it survives a change of the lineup.

    Args:
        budget_s: the time limit of one member for one micro-batch, in seconds; beyond it, the call is abandoned.
        threads: the number of concurrent calls.
        watchdog: for members that hang with the interpreter lock; its suspect starts with an open breaker.
    """

    def __init__(
        self, clock: Clock, *, budget_s: float, threads: int = THREADS, watchdog: Watchdog | None = None
    ) -> None:
        self._clock = clock
        self._threads = threads
        self._seconds: dict[str, float] = {}
        self._slice_s = budget_s / _SLICES
        self._timeout_reason = f"took longer than {budget_s:g} s"
        self._breakers: dict[str, Breaker] = {}
        self._hung_threads: dict[str, threading.Thread] = {}
        self._watchdog = watchdog
        self._pool: MemberPool | None = None
        self._workers: list[_Worker] = []

    def states(self, pool: MemberPool) -> dict[str, State]:
        """The breaker state of each member of the pool, by name."""
        return {name: self._breakers[key].state for name, key in zip(pool.names, pool.keys, strict=True)}

    def predict(
        self, pool: MemberPool, features: NDArray[np.float64], disabled: frozenset[str] = frozenset()
    ) -> list[MemberOutput]:
        """The output of each member of the pool for `features`; NaN and a reason for a member that is not called.

        Raises:
            ValueError: the matrix does not have the columns of the manifest.
        """
        features = pool.checked(features)
        self._switch_to(pool)
        now = self._clock.monotonic()
        outputs = [MemberOutput.none(len(features), DISABLED if key in disabled else BREAKER_OPEN) for key in pool.keys]
        called = [i for i, key in enumerate(pool.keys) if key not in disabled and self._allows(i, now)]
        here = [i for i in called if pool.cannot_hang(i)] if len(features) <= HERE_ROWS else []
        jobs = [_Job(features, share) for share in self._distribute([i for i in called if i not in here])]
        for worker, job in zip(self._workers, jobs, strict=False):
            worker.start(job)
        for index in here:
            outputs[index] = pool.predict_member(index, features)
            self._record(index, outputs[index], now)
        for slot, job in enumerate(jobs):
            while True:
                finished = self._wait(job)
                for index, output in zip(job.members, job.outputs[:finished], strict=False):
                    outputs[index] = output
                    self._record(index, output, now)
                if finished == len(job.members):
                    break
                slow = job.members[finished]
                outputs[slow] = MemberOutput.none(len(features), self._timeout_reason)
                self._abandon(slot, slow, now)
                job = _Job(features, job.members[finished + 1 :])
                self._workers[slot].start(job)
        return outputs

    def _distribute(self, called: list[int]) -> list[list[int]]:
        """Split the members in `called` over the threads: longest first, each to the thread with the smallest load."""
        parts: list[list[int]] = [[] for _ in range(min(self._threads, len(called)))]
        load = [0.0] * len(parts)
        times = [self._seconds.get(self._key(index), 1.0) for index in called]
        for seconds, index in sorted(zip(times, called, strict=True), key=lambda pair: (-pair[0], pair[1])):
            idlest = load.index(min(load))
            load[idlest] += seconds
            parts[idlest].append(index)
        return parts

    def _switch_to(self, pool: MemberPool) -> None:
        """Create workers and breakers for the members of `pool`, unless they exist."""
        if pool is self._pool:
            return
        for index, key in enumerate(pool.keys):
            if key in self._breakers:
                continue
            self._breakers[key] = Breaker()
            if self._watchdog is not None and self._watchdog.suspects(key):
                self._breakers[key].suspect(self._clock.monotonic())
                _log_state(
                    pool.names[index], State.CLOSED, State.OPEN, "the previous scorer was killed while it was running"
                )
        for key in [key for key in self._breakers if key not in pool.keys][: max(len(self._breakers) - MAX_STATES, 0)]:
            del self._breakers[key]
            self._seconds.pop(key, None)
            self._hung_threads.pop(key, None)
        for worker in self._workers:
            worker.finish()
        self._pool = pool
        self._workers = [_Worker(pool, self._watchdog, slot) for slot in range(self._threads)]

    def _allows(self, index: int, now: float) -> bool:
        key = self._key(index)
        thread = self._hung_threads.get(key)
        if thread is not None and thread.is_alive():
            return False
        self._hung_threads.pop(key, None)
        before = self._breakers[key].state
        allowed = self._breakers[key].allows(now)
        self._log_transition(index, before)
        return allowed

    def _wait(self, job: _Job) -> int:
        """Wait until `job` is done or a member exceeds its budget. Returns the number of members that finished."""
        finished, spent = 0, 0
        while not job.done.wait(self._slice_s):
            if len(job.outputs) > finished:
                finished, spent = len(job.outputs), 0
                continue
            spent += 1
            if spent >= _SLICES:
                job.abandoned = True
                return finished
        return len(job.outputs)

    def _record(self, index: int, output: MemberOutput, now: float) -> None:
        if not len(output.raw):  # a batch without transactions, such as one of labels, shows nothing about a member
            return
        key = self._key(index)
        breaker = self._breakers[key]
        self._seconds[key] = 0.9 * self._seconds.get(key, output.seconds) + 0.1 * output.seconds
        before = breaker.state
        # A few missing rows may be caused by the rows and not by the member. Without a reason, none is missing.
        if output.reason and np.isnan(output.raw).sum() * 2 > len(output.raw):
            breaker.failed(now)
        else:
            breaker.succeeded()
        self._log_transition(index, before, output.reason)

    def _abandon(self, slot: int, index: int, now: float) -> None:
        """Abandon the call of the member at `index` and start another thread in its slot."""
        assert self._pool is not None
        key = self._key(index)
        before = self._breakers[key].state
        self._breakers[key].failed(now, at_once=True)
        self._hung_threads[key] = self._workers[slot].thread
        if self._watchdog is not None:
            self._watchdog.end(slot)
        # If the call has just returned, the thread waits for another job: stop it.
        self._workers[slot].finish()
        self._workers[slot] = _Worker(self._pool, self._watchdog, slot)
        self._log_transition(index, before, self._timeout_reason)

    def _key(self, index: int) -> str:
        assert self._pool is not None
        return self._pool.keys[index]

    def _log_transition(self, index: int, before: State, reason: str = "") -> None:
        assert self._pool is not None
        _log_state(self._pool.names[index], before, self._breakers[self._key(index)].state, reason)


def _log_state(name: str, before: State, state: State, reason: str) -> None:
    if state is before:
        return
    if state is State.OPEN:
        _log.error("member %s: breaker opened: %s", name, reason)
    else:
        _log.warning("member %s: breaker %s", name, "on trial" if state is State.TRIAL else "closed")
