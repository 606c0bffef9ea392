"""Members kept apart in live scoring: one that fails, or takes too long, costs its own part of a score and no more.

Members run in threads of their own, which a member that does not come back keeps for itself: it is left behind, and
another goes on with the rest. They are dealt out to the threads by the time they take, and each is asked by itself,
so what they say does not depend on it. Who fails again and again is not asked for a while
(`stream_scorer.ensemble.breaker`). A replay asks everybody always: what it scores must not depend on the time of day.
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
from stream_scorer.ensemble.lineup import DISABLED, Panel
from stream_scorer.ensemble.watchdog import Watchdog

_log = logging.getLogger(__name__)
# Why a member is missing that was not asked.
RESTING = "not asked: its breaker is open"
# A member's budget is spent slice by slice, so that a process that is stopped for a while does not blame a member.
_SLICES = 10
# Two share five members well; more would take cores from whoever else is on the machine.
THREADS = 2


@dataclass(slots=True)
class _Job:
    """Some members' predictions on one batch; the thread fills `answers` in their order."""

    features: NDArray[np.float64]
    members: list[int]
    answers: list[MemberOutput] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)
    left_behind: bool = False


class _Worker:
    """One thread that asks members in turn."""

    def __init__(self, panel: Panel, watchdog: Watchdog | None, slot: int) -> None:
        self._panel = panel
        self._watchdog = watchdog
        self._slot = slot
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="members", daemon=True)
        self.thread.start()

    def start(self, job: _Job) -> None:
        """Begin with `job`."""
        self._jobs.put(job)

    def finish(self) -> None:
        """End the thread once it has nothing to do."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            for index in job.members:
                if self._watchdog is not None:
                    self._watchdog.begin(self._slot, self._panel.keys[index])
                answer = self._panel.ask(index, job.features)
                if job.left_behind:
                    return
                job.answers.append(answer)
            if self._watchdog is not None:
                self._watchdog.end(self._slot)
            job.done.set()


class Bulkhead:
    """Asks the members of a panel that can be relied on; not for several threads at once.

    What it knows of a member goes by the member's key, so it holds when another lineup takes over.

    Args:
        budget_s: how long one member may take over a micro-batch before it is left behind.
        threads: how many members are asked at once.
        watchdog: for members that hold the interpreter lock meanwhile; its suspect begins with an open breaker.
    """

    def __init__(
        self, clock: Clock, *, budget_s: float, threads: int = THREADS, watchdog: Watchdog | None = None
    ) -> None:
        self._clock = clock
        self._threads = threads
        self._seconds: dict[str, float] = {}
        self._slice_s = budget_s / _SLICES
        self._budget = f"took longer than {budget_s:g} s"
        self._breakers: dict[str, Breaker] = {}
        self._lost: dict[str, threading.Thread] = {}
        self._watchdog = watchdog
        self._panel: Panel | None = None
        self._workers: list[_Worker] = []

    def states(self, panel: Panel) -> dict[str, State]:
        """The breaker of each of the panel's members."""
        return {name: self._breakers[key].state for name, key in zip(panel.names, panel.keys, strict=True)}

    def ask(
        self, panel: Panel, features: NDArray[np.float64], disabled: frozenset[str] = frozenset()
    ) -> list[MemberOutput]:
        """What each of the panel's members says of `features`; one that is not asked gives nothing and a reason."""
        features = panel.checked(features)
        self._follow(panel)
        now = self._clock.monotonic()
        answers = [MemberOutput.none(len(features), DISABLED if key in disabled else RESTING) for key in panel.keys]
        asked = [i for i, key in enumerate(panel.keys) if key not in disabled and self._may_be_asked(i, now)]
        jobs = [_Job(features, share) for share in self._dealt(asked)]
        for worker, job in zip(self._workers, jobs, strict=False):
            worker.start(job)
        for slot, job in enumerate(jobs):
            while True:
                finished = self._wait(job)
                for index, answer in zip(job.members, job.answers[:finished], strict=False):
                    answers[index] = answer
                    self._judge(index, answer, now)
                if finished == len(job.members):
                    break
                slow = job.members[finished]
                answers[slow] = MemberOutput.none(len(features), self._budget)
                self._leave_behind(slot, slow, now)
                job = _Job(features, job.members[finished + 1 :])
                self._workers[slot].start(job)
        return answers

    def _dealt(self, asked: list[int]) -> list[list[int]]:
        """`asked` in as many parts as there are threads: the longest first, each to whom has least to do yet."""
        parts: list[list[int]] = [[] for _ in range(min(self._threads, len(asked)))]
        load = [0.0] * len(parts)
        times = [self._seconds.get(self._key(index), 1.0) for index in asked]
        for seconds, index in sorted(zip(times, asked, strict=True), key=lambda pair: (-pair[0], pair[1])):
            least = load.index(min(load))
            load[least] += seconds
            parts[least].append(index)
        return parts

    def _follow(self, panel: Panel) -> None:
        """Have threads that ask the members of `panel`."""
        if panel is self._panel:
            return
        for index, key in enumerate(panel.keys):
            if key in self._breakers:
                continue
            self._breakers[key] = Breaker()
            if self._watchdog is not None and self._watchdog.suspects(key):
                self._breakers[key].suspect(self._clock.monotonic())
                _tell(panel.names[index], State.CLOSED, State.OPEN, "the last scorer was killed while it was asked")
        for worker in self._workers:
            worker.finish()
        self._panel = panel
        self._workers = [_Worker(panel, self._watchdog, slot) for slot in range(self._threads)]

    def _may_be_asked(self, index: int, now: float) -> bool:
        key = self._key(index)
        thread = self._lost.get(key)
        if thread is not None and thread.is_alive():
            return False
        self._lost.pop(key, None)
        before = self._breakers[key].state
        allowed = self._breakers[key].allows(now)
        self._told(index, before)
        return allowed

    def _wait(self, job: _Job) -> int:
        """Until `job` is done or one of its members has spent its budget; answers how many have answered."""
        finished, spent = 0, 0
        while not job.done.wait(self._slice_s):
            if len(job.answers) > finished:
                finished, spent = len(job.answers), 0
                continue
            spent += 1
            if spent >= _SLICES:
                job.left_behind = True
                return finished
        return len(job.answers)

    def _judge(self, index: int, answer: MemberOutput, now: float) -> None:
        key = self._key(index)
        breaker = self._breakers[key]
        self._seconds[key] = 0.9 * self._seconds.get(key, answer.seconds) + 0.1 * answer.seconds
        before = breaker.state
        # A few rows without an answer may be the rows' fault.
        if np.isnan(answer.raw).sum() * 2 > len(answer.raw):
            breaker.failed(now)
        else:
            breaker.succeeded()
        self._told(index, before, answer.reason)

    def _leave_behind(self, slot: int, index: int, now: float) -> None:
        """Go on without the member at `index`, with another thread in its slot."""
        assert self._panel is not None
        key = self._key(index)
        before = self._breakers[key].state
        self._breakers[key].failed(now, at_once=True)
        self._lost[key] = self._workers[slot].thread
        if self._watchdog is not None:
            self._watchdog.end(slot)
        # It may have come back this very moment, and would wait for another job.
        self._workers[slot].finish()
        self._workers[slot] = _Worker(self._panel, self._watchdog, slot)
        self._told(index, before, self._budget)

    def _key(self, index: int) -> str:
        assert self._panel is not None
        return self._panel.keys[index]

    def _told(self, index: int, before: State, reason: str = "") -> None:
        assert self._panel is not None
        _tell(self._panel.names[index], before, self._breakers[self._key(index)].state, reason)


def _tell(name: str, before: State, state: State, reason: str) -> None:
    if state is before:
        return
    if state is State.OPEN:
        _log.error("member %s is not asked for a while: %s", name, reason)
    else:
        _log.warning("member %s is %s again", name, "tried" if state is State.TRIAL else "trusted")
