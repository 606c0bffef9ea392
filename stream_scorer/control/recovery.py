"""Recovery of the serving state after `control` has lost its beginning, or was created again."""

from __future__ import annotations

import msgspec

from stream_scorer.control.commands import CommandLog
from stream_scorer.errors import StreamScorerError
from stream_scorer.records import NOT_A_RECORD, ServingState

_WAIT_S = 0.2


def lost_commands(ensemble: str) -> StreamScorerError:
    """The error of a scorer whose ensemble has served before: its settings must not decide what serves now."""
    return StreamScorerError(
        f"the topic control has lost the commands of {ensemble}, so this scorer does not start",
        hint=f"Restore the last state: `stream-scorer ensemble recover {ensemble} --why ...` (docs/control.md).",
    )


def require_never_served(log: CommandLog, ensemble: str) -> None:
    """Raise `lost_commands` if `serving-state`, which `log` reads, has a state of `ensemble`."""
    if newest_state(log, ensemble) is not None:
        raise lost_commands(ensemble)


def newest_state(log: CommandLog, ensemble: str) -> ServingState | None:
    """The newest state of `ensemble` on `serving-state`, which `log` reads; None if there is none.

    Several scorers write the topic, so the control offset decides which state is the newest. After a recovery, offsets
    may begin at 0 again.
    """
    newest: ServingState | None = None
    end = log.end()
    while True:
        for record in log.read(_WAIT_S):
            try:
                state = msgspec.json.decode(record.value or b"", type=ServingState)
            except NOT_A_RECORD:
                continue
            if state.ensemble == ensemble and (newest is None or _order(state) >= _order(newest)):
                newest = state
        if log.position() >= end:
            return newest


def _order(state: ServingState) -> tuple[int, int]:
    return state.recoveries, state.control_offset
