"""Members kept apart in live scoring: one that fails, or takes too long, costs its own part of a score and no more.

Members run in a thread of their own, which a member that does not come back keeps for itself: it is left behind, and
another goes on with the rest. Who fails again and again is not asked for a while (`stream_scorer.ensemble.breaker`). A
replay asks everybody always: what it scores must not depend on the time of day.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stream_scorer.clock import Clock
from stream_scorer.ensemble.breaker import Breaker, State
from stream_scorer.ensemble.ensemble import Answer, Ensemble, Scored
from stream_scorer.ensemble.watchdog import Watchdog

_log = logging.getLogger(__name__)
Matrix = NDArray[np.float64]
# Why a member is missing that was not asked.
RESTING = "not asked: its breaker is open"
# A member's budget is spent slice by slice, so that a process that is stopped for a while does not blame a member.
_SLICES = 10


@dataclass(slots=True)
class _Job:
    """Some members' predictions on one batch; the thread fills `answers` in their order."""

    features: Matrix
    members: list[int]
    answers: list[Answer] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)
    left_behind: bool = False


class _Worker:
    """One thread that asks members in turn."""

    def __init__(self, ask: Callable[[int, Matrix], Answer], watchdog: Watchdog | None) -> None:
        self._ask = ask
        self._watchdog = watchdog
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="members", daemon=True)
        self.thread.start()

    def start(self, job: _Job) -> None:
        """Begin with `job`."""
        self._jobs.put(job)

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            for index in job.members:
                if self._watchdog is not None:
                    self._watchdog.begin(index)
                answer = self._ask(index, job.features)
                if job.left_behind:
                    return
                job.answers.append(answer)
            if self._watchdog is not None:
                self._watchdog.end()
            job.done.set()


class Guard:
    """Scores with the members that can be relied on; not for several threads at once.

    Args:
        budget_s: how long one member may take over a micro-batch before it is left behind.
        watchdog: for members that hold the interpreter lock meanwhile; its suspect begins with an open breaker.
    """

    def __init__(self, ensemble: Ensemble, clock: Clock, *, budget_s: float, watchdog: Watchdog | None = None) -> None:
        self._ensemble = ensemble
        self._clock = clock
        self._slice_s = budget_s / _SLICES
        self._budget = f"took longer than {budget_s:g} s"
        self._breakers = [Breaker() for _ in ensemble.member_names]
        self._lost: dict[int, threading.Thread] = {}
        self._watchdog = watchdog
        self._worker = _Worker(ensemble.ask, watchdog)
        if watchdog is not None and watchdog.suspect is not None:
            self._breakers[watchdog.suspect].suspect(clock.monotonic())
            self._tell(watchdog.suspect, State.CLOSED, "the last scorer was killed while it was asked")

    @property
    def states(self) -> dict[str, State]:
        """Each member's breaker."""
        return {name: b.state for name, b in zip(self._ensemble.member_names, self._breakers, strict=True)}

    def score(self, features: Matrix) -> Scored:
        """As `Ensemble.score`; members that are not asked are missing, `failures` says why."""
        features = self._ensemble.checked(features)
        names, now = self._ensemble.member_names, self._clock.monotonic()
        answers = [Answer.none(len(features), RESTING) for _ in names]
        left = [index for index in range(len(names)) if self._may_be_asked(index, now)]
        while left:
            job = _Job(features, left)
            self._worker.start(job)
            finished = self._wait(job)
            for index, answer in zip(left, job.answers[:finished], strict=False):
                answers[index] = answer
                self._judge(index, answer, now)
            if finished < len(left):
                slow = left[finished]
                answers[slow] = Answer.none(len(features), self._budget)
                self._leave_behind(slow, now)
            left = left[finished + 1 :]
        return self._ensemble.combine(answers)

    def _may_be_asked(self, index: int, now: float) -> bool:
        thread = self._lost.get(index)
        if thread is not None and thread.is_alive():
            return False
        self._lost.pop(index, None)
        before = self._breakers[index].state
        allowed = self._breakers[index].allows(now)
        self._tell(index, before)
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

    def _judge(self, index: int, answer: Answer, now: float) -> None:
        breaker = self._breakers[index]
        before = breaker.state
        # A few rows without an answer may be the rows' fault.
        if np.isnan(answer.raw).sum() * 2 > len(answer.raw):
            breaker.failed(now)
        else:
            breaker.succeeded()
        self._tell(index, before, answer.reason)

    def _leave_behind(self, index: int, now: float) -> None:
        before = self._breakers[index].state
        self._breakers[index].failed(now, at_once=True)
        self._lost[index] = self._worker.thread
        if self._watchdog is not None:
            self._watchdog.end()
        self._worker = _Worker(self._ensemble.ask, self._watchdog)
        self._tell(index, before, self._budget)

    def _tell(self, index: int, before: State, reason: str = "") -> None:
        state, name = self._breakers[index].state, self._ensemble.member_names[index]
        if state is before:
            return
        if state is State.OPEN:
            _log.error("member %s is not asked for a while: %s", name, reason)
        else:
            _log.warning("member %s is %s again", name, "tried" if state is State.TRIAL else "trusted")
