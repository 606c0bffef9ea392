"""Whether features can be trusted: one state, one writer (`pipeline.state_manager`), read by every other component."""

from __future__ import annotations

import logging
from enum import StrEnum

from stream_scorer.observability import metrics as m

_log = logging.getLogger(__name__)


class State(StrEnum):
    """See `Availability`."""

    READY = "ready"
    DEGRADED = "degraded"
    CATCHING_UP = "catching_up"
    REBUILDING = "rebuilding"


# What `degraded` of a score says in each state; READY adds nothing.
REASONS = {
    State.READY: "",
    State.DEGRADED: "features_unavailable",
    State.CATCHING_UP: "features_catching_up",
    State.REBUILDING: "features_rebuilding",
}
_READINESS = {
    State.READY: "serving",
    State.DEGRADED: "features cannot be used: scoring without them",
    State.CATCHING_UP: "features are catching up with the log: scoring without them",
    State.REBUILDING: "features are being rebuilt: scoring without them",
}
_LEGAL = {
    State.READY: {State.CATCHING_UP, State.DEGRADED},
    State.DEGRADED: {State.CATCHING_UP},
    State.CATCHING_UP: {State.READY, State.DEGRADED, State.REBUILDING},
    State.REBUILDING: {State.CATCHING_UP, State.DEGRADED},
}


class Availability:
    """The state of the feature rows, as scoring uses them::

          a resync finds the rows at the committed offsets, and Redis accepts a write
                ┌──────────────────────────────────────────────────────────┐
                │                                                          ▼
           CATCHING_UP ◄────────── resync: abort, rebalance, gap ──────── READY
             ▲    │  ▲ │                                                   │
             │    │  │ └─ Redis fails ──► DEGRADED ◄── a read fails, or ────┘
             │    │  │                     │    ▲     too many updates wait
             │    │  └─ a write succeeds ──┘    │
             │    └─ rows are lost ──► REBUILDING
             └─ almost complete ──────────┘ (Redis fails: DEGRADED)

    - READY: stored rows and updates in flight reach the start of every batch. It is entered only after a successful
      write to Redis. While writes fail, READY lasts as long as the updates in flight stay within their bound.
    - DEGRADED: Redis cannot be read, or does not accept writes. Probes run in a thread of their own.
    - CATCHING_UP: the rows lag behind the committed offsets. A long gap is closed while scoring goes on.
    - REBUILDING: rows were lost; they are built again from the log, while scoring goes on.

    Every batch that is scored in another state than READY has no features, and its scores say so in `degraded`.
    """

    def __init__(self, metrics: m.Metrics) -> None:
        self._metrics = metrics
        self._state = State.CATCHING_UP
        self._why = ""
        self._publish()

    @property
    def state(self) -> State:
        """The state now."""
        return self._state

    @property
    def reason(self) -> str:
        """Why scores lack features, as `degraded` says it; empty if they have them."""
        return REASONS[self._state]

    @property
    def readiness(self) -> tuple[bool, str]:
        """What `/readyz` reports."""
        why = f" ({self._why})" if self._why and self._state is State.DEGRADED else ""
        return self._state is State.READY, _READINESS[self._state] + why

    def enter(self, state: State, why: str = "") -> None:
        """Change the state; for the one writer. Entering the present state again changes nothing.

        Raises:
            AssertionError: the transition is not legal.
        """
        before, self._why = self._state, why
        if state is before:
            return
        if state not in _LEGAL[before]:
            raise AssertionError(f"features cannot go from {before} to {state}")
        self._state = state
        self._publish()
        level = logging.WARNING if state in (State.DEGRADED, State.REBUILDING) else logging.INFO
        _log.log(level, "features: %s -> %s%s", before, state, f": {why}" if why else "")

    def _publish(self) -> None:
        for state in State:
            self._metrics.set(m.FEATURE_STATE, float(state is self._state), state)
