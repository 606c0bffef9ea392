"""Keeps the registry's alias `champion` at the version that serves, no matter who issued the command, or moved it.

The monitor runs it, because it issues the automatic commands and reads the registry anyway. So a scorer needs no write
access to the registry, and a registry that does not answer never disturbs scoring.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from stream_scorer.clock import Clock
from stream_scorer.control.commands import CommandLog, catch_up
from stream_scorer.control.state import History
from stream_scorer.errors import Stopped, StreamScorerError

_log = logging.getLogger(__name__)
CHAMPION = "champion"
READ_WAIT_S = 0.5
MIN_BACKOFF_S, MAX_BACKOFF_S = 2.0, 60.0
# The alias is moved a second time after this pause, in case that a slow command line has moved it to an older version.
REPEAT_S = 30.0
# After that, it is looked up this often: other commands and other clients of the registry can move it too.
CHECK_S = 300.0


@dataclass(slots=True)
class _Alias:
    """The version that the alias of one ensemble must name, how often it was moved there, and when that is due."""

    version: str
    moved: int = 0
    due: float = 0.0
    backoff_s: float = 0.0


class AliasMirror:
    """See the module.

    Args:
        open_log: opens `control` at its start. Raises `StreamScorerError`.
        move: moves the alias of an ensemble (name, version), unless it is there, and returns the version that it named
            before. Raises `StreamScorerError`.
    """

    def __init__(
        self, open_log: Callable[[], CommandLog], move: Callable[[str, str], str | None], clock: Clock
    ) -> None:
        self._open_log, self._move, self._clock = open_log, move, clock
        self._log: CommandLog | None = None
        self._history = History()
        self._aliases: dict[str, _Alias] = {}

    def run(self, stop: threading.Event) -> None:
        """Follow `control` until `stop`. After an error, start again."""
        backoff_s = 0.0
        while not stop.is_set():
            try:
                self.step()
                backoff_s = 0.0
            except StreamScorerError as error:
                if not backoff_s:
                    _log.warning("the alias %s does not follow control: %s", CHAMPION, error.message)
                backoff_s = min(max(2 * backoff_s, MIN_BACKOFF_S), MAX_BACKOFF_S)
                self._close()
                stop.wait(backoff_s)
            except Stopped:
                break
            except Exception:  # without this, one unexpected error would end the mirror for good
                _log.exception("the alias %s does not follow control", CHAMPION)
                backoff_s = MAX_BACKOFF_S
                self._close()
                stop.wait(backoff_s)
        self._close()

    def step(self) -> None:
        """Read new commands, and move the aliases that are due."""
        if self._log is None:
            self._log, self._history = self._open_log(), History()
            catch_up(self._log, self._history, self._log.end())
        for record in self._log.read(READ_WAIT_S):
            self._history.add(record.offset, record.value, record.timestamp)
        for ensemble, state in self._history.states.items():
            version = state.champion.version
            alias = self._aliases.get(ensemble)
            if alias is None or alias.version != version:
                alias = self._aliases[ensemble] = _Alias(version)
            # Other versions are folders, which the registry does not have.
            if version.isdigit() and self._clock.monotonic() >= alias.due:
                self._move_to(ensemble, alias)

    def _move_to(self, ensemble: str, alias: _Alias) -> None:
        try:
            before = self._move(ensemble, alias.version)
        except StreamScorerError as error:
            if not alias.backoff_s:
                _log.warning("the alias %s@%s is not moved yet: %s", ensemble, CHAMPION, error.message)
            alias.backoff_s = min(max(2 * alias.backoff_s, MIN_BACKOFF_S), MAX_BACKOFF_S)
            alias.due = self._clock.monotonic() + alias.backoff_s
            return
        if not alias.moved:
            _log.info("the alias %s@%s names version %s", ensemble, CHAMPION, alias.version)
        elif before != alias.version:
            text = "the alias %s@%s named version %s, but version %s serves: moved back"
            _log.warning(text, ensemble, CHAMPION, before or "none", alias.version)
        alias.moved, alias.backoff_s = alias.moved + 1, 0.0
        alias.due = self._clock.monotonic() + (REPEAT_S if alias.moved < 2 else CHECK_S)

    def _close(self) -> None:
        if self._log is not None:
            self._log.close()
        self._log = None
