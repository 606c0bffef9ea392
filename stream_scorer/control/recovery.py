"""Recovery of the serving state after `control` has lost its beginning, or was created again."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from stream_scorer.control.commands import CommandLog, catch_up
from stream_scorer.control.state import History
from stream_scorer.errors import StreamScorerError
from stream_scorer.record_log import LogRecord, read_to_end
from stream_scorer.records import NOT_A_RECORD, ServingState


def lost_commands(ensemble: str, so: str = "this scorer does not start") -> StreamScorerError:
    """The error for an ensemble that has served before: no setting and no other command may decide what serves now."""
    return StreamScorerError(
        f"the topic control has lost the commands of {ensemble}, so {so}",
        hint=f"Restore the last state: `stream-scorer ensemble recover {ensemble} --why ...` (docs/control.md).",
    )


def require_commands(log: CommandLog, history: History, open_states: Callable[[], CommandLog], ensemble: str) -> None:
    """Raise `lost_commands` if `history`, which has read `log`, has no state of an ensemble that has served.

    A log that was created again looks like a new one: only `serving-state`, which `open_states` opens, shows that the
    ensemble has served. A command on such a log would count, without last good version, hold and retired versions.
    """
    if ensemble in history.states:
        return
    states = open_states()
    try:
        recorded = newest_state(states, ensemble)
    finally:
        states.close()
    # A scorer may have proposed the first version meanwhile: its command precedes its state.
    catch_up(log, history, log.end())
    if ensemble not in history.states and (recorded is not None or history.incomplete):
        raise lost_commands(ensemble, "only `recover` is accepted")


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

    def add(record: LogRecord) -> None:
        nonlocal newest
        try:
            state = msgspec.json.decode(record.value or b"", type=ServingState)
        except NOT_A_RECORD:
            return
        if state.ensemble == ensemble and (newest is None or _order(state) >= _order(newest)):
            newest = state

    read_to_end(log, add, "serving states")
    return newest


def _order(state: ServingState) -> tuple[int, int]:
    return state.recoveries, state.control_offset
