"""Keeps the feature rows usable. The only writer of `Availability`; everything here but `note_committed` runs in the
scoring thread.

It decides where reading starts, degrades when Redis fails, probes it, checks the rows while no records come, and has a
thread bring the rows up to date from the log while scoring goes on without features.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Literal

from stream_scorer.clock import Deadline
from stream_scorer.errors import RecordsDeleted, StateGap, StateUnavailable, UnavailableError
from stream_scorer.observability import metrics as m
from stream_scorer.pipeline.availability import Availability, State
from stream_scorer.pipeline.catch_up import CatchUp
from stream_scorer.pipeline.in_flight import InFlight
from stream_scorer.pipeline.ports import Reader
from stream_scorer.pipeline.probe import IdleCheck, WriteProbe
from stream_scorer.pipeline.starting_points import StartingPoints
from stream_scorer.positions import Offsets, SourcePartition, Span

_log = logging.getLogger(__name__)
OnProgress = Callable[[int, int], None]
# Why the processor looks up the committed and applied offsets again; "": it goes on.
ResyncCause = Literal[
    "", "aborted", "state_gap", "offsets_behind", "broker_unavailable", "redis_back", "caught_up", "rebuilt"
]  # fmt: skip
FindStart = Callable[[Reader, list[SourcePartition], Offsets], StartingPoints]
# Its thread looks at its stop flag after every piece, and a call to Redis ends after its timeout.
STOP_CATCH_UP_S = 10.0


class StateManager:
    """See the module.

    Args:
        find_start: from the owned partitions, and the offsets known to be committed, to `StartingPoints`.
        start_catch_up: starts a `CatchUp` up to the committed offsets it is given; None for a pipeline without state.
    """

    def __init__(
        self,
        availability: Availability,
        in_flight: InFlight,
        probe: WriteProbe,
        idle_check: IdleCheck,
        find_start: FindStart,
        start_catch_up: Callable[[dict[SourcePartition, int], OnProgress], CatchUp] | None,
        metrics: m.Metrics,
    ) -> None:
        self.availability = availability
        self._in_flight = in_flight
        self._probe = probe
        self._idle_check = idle_check
        self._find_start = find_start
        self._start_catch_up = start_catch_up
        self._metrics = metrics
        self._catch_up: CatchUp | None = None
        # Per partition, the highest offset that this process has committed, or that was committed when it looked.
        self._scored: dict[SourcePartition, int] = {}

    def start(self, reader: Reader, sources: list[SourcePartition]) -> StartingPoints:
        """Where to read from, for an assignment or a resync. Nothing may be on its way to the rows when it is called.

        Raises:
            OffsetsBehind: the broker reports older offsets than were committed. UsageError: the applied offsets
            contradict the committed ones.
        """
        self.stop(Deadline(STOP_CATCH_UP_S))
        self._probe.cancel()
        self._in_flight.clear()
        was_rebuilding = self.availability.state is State.REBUILDING
        self.availability.enter(State.CATCHING_UP)
        points = self._find_start(reader, sources, self._scored)
        self._scored |= points.score_from
        self.availability.enter(points.state, points.why)
        if was_rebuilding and points.state is State.READY:
            _log.info("features are rebuilt, scoring with them again")
        if points.state in (State.CATCHING_UP, State.REBUILDING):
            assert self._start_catch_up is not None
            self._catch_up = self._start_catch_up(dict(points.score_from), self._count_progress)
        return points

    def forget(self) -> None:
        """No partition is owned: what waits here is read again by the next owner, who also brings the rows up to date.

        The next assignment finds out in which state they are.
        """
        self.stop(Deadline(STOP_CATCH_UP_S))
        self._probe.cancel()
        self._in_flight.clear()
        self.availability.enter(State.CATCHING_UP)

    def degrade(self, error: UnavailableError) -> None:
        """Redis failed, or the log cannot be read for a catch-up: score without features from now on."""
        self.stop(Deadline(STOP_CATCH_UP_S))
        self.availability.enter(State.DEGRADED, error.message)

    def check(self) -> ResyncCause:
        """Look at Redis and at the catch-up; to be called between batches.

        Returns:
            Why the processor must resync; empty to go on.

        Raises:
            StateGap: rows were lost, or records that a catch-up needs.
        """
        try:
            self._idle_check.take()
        except StateUnavailable as error:
            self.degrade(error)
        if self.availability.state is State.READY:
            self._check_writes()
        elif self.availability.state is State.DEGRADED:
            self._probe.start()
            return "redis_back" if self._probe.take() else ""
        elif self._catch_up is not None:
            return self._check_catch_up(self._catch_up)
        return ""

    def idle(self) -> None:
        """No records came: check the rows if no batch has read them for some seconds. `check` acts on the result."""
        if self.availability.state is State.READY:
            self._idle_check.start_if_due()

    @property
    def updates_wait(self) -> bool:
        """Whether updates wait that Redis would accept now, and no batch takes them along."""
        return self._in_flight.waiting

    def note_committed(self, spans: Sequence[Span]) -> None:
        """The group has scored `spans`: a catch-up has to reach their ends. Called by the committer thread."""
        self._idle_check.postpone()
        self._scored |= {span.source: span.stop for span in spans}
        catch_up = self._catch_up
        if catch_up is not None:
            catch_up.committed(spans)

    def stop(self, deadline: Deadline) -> None:
        """End a catch-up that is under way, and forget a check of the rows. What a catch-up applied stays.

        One that does not end before `deadline`, because Redis or Kafka does not answer, is abandoned: the applied
        offsets make a late update harmless.
        """
        self._idle_check.cancel()
        catch_up, self._catch_up = self._catch_up, None
        if catch_up is None:
            return
        if not catch_up.stop(deadline):
            _log.warning("the catch-up of features did not stop in time; it ends by itself")
        self._metrics.set(m.REBUILD_REMAINING, 0)

    def close(self) -> None:
        """End every thread."""
        self._probe.cancel()
        self.stop(Deadline(STOP_CATCH_UP_S))

    def _check_writes(self) -> None:
        blocked_by = self._in_flight.blocked_by
        if self._in_flight.full:
            why = blocked_by.message if blocked_by is not None else "Redis applies them more slowly than they come"
            self.availability.enter(State.DEGRADED, f"more updates wait than allowed. {why}")
        elif blocked_by is None:
            return
        elif self._probe.take():
            # The next batch's apply takes the waiting updates along.
            self._in_flight.blocked_by = None
        else:
            self._probe.start()

    def _check_catch_up(self, catch_up: CatchUp) -> ResyncCause:
        failure = catch_up.failure
        if catch_up.ready.is_set():
            return "caught_up" if self.availability.state is State.CATCHING_UP else "rebuilt"
        if isinstance(failure, UnavailableError):
            self.degrade(failure)
        elif isinstance(failure, StateGap | RecordsDeleted):
            self._catch_up = None
            raise StateGap(failure.message) from failure
        elif failure is not None:
            raise failure
        return ""

    def _count_progress(self, brought_in: int, remaining: int) -> None:
        """Count what a catch-up does (runs in its thread)."""
        self._metrics.count(m.CAUGHT_UP, brought_in)
        self._metrics.set(m.REBUILD_REMAINING, remaining)
