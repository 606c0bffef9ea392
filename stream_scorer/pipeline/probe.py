"""Questions to Redis in threads of their own: whether it accepts writes again, and whether it still has the rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from stream_scorer.errors import StateUnavailable

# The first probe comes soon, because most failures are short. While the state flaps, the delay doubles each time.
FIRST_DELAY_S, MAX_DELAY_S = 0.25, 5.0
# A success that lasted this long ends the flapping: the next failure is probed soon again.
STABLE_S = 30.0
# An idle scorer checks its rows this long after the last batch, and this long after each check.
IDLE_CHECK_S = 3.0


class WriteProbe:
    """Probes until one succeeds. One thread calls `start` and `take`, again and again.

    Args:
        write: makes a small write; raises `StateUnavailable` if Redis refuses it or does not answer.
        first_delay_s: how long after a failure the first probe comes.
    """

    def __init__(self, write: Callable[[], None], first_delay_s: float = FIRST_DELAY_S) -> None:
        self._write = write
        self._first_delay_s = self._next_delay_s = first_delay_s
        self._succeeded_at = -STABLE_S
        self._run: _Run | None = None

    def start(self) -> None:
        """Begin to probe, unless a probe is under way or its success was not taken yet."""
        if self._run is None:
            if time.monotonic() - self._succeeded_at > STABLE_S:
                self._next_delay_s = self._first_delay_s
            self._run = _Run(self._write, self._next_delay_s)

    def take(self) -> bool:
        """Whether a probe has succeeded since `start`, reported once. Raises what ended the thread unexpectedly."""
        run = self._run
        if run is None:
            return False
        if run.failure is not None:
            raise run.failure
        if not run.success.is_set():
            return False
        self._run = None
        self._next_delay_s = run.delay_s
        self._succeeded_at = time.monotonic()
        return True

    def cancel(self) -> None:
        """Stop probing. A probe under way ends by itself, and its result does not count."""
        if self._run is not None:
            self._run.stop.set()
            self._run = None


class _Run:
    """One thread that probes until success or `stop`."""

    def __init__(self, write: Callable[[], None], delay_s: float) -> None:
        self._write = write
        self.delay_s = delay_s
        self.stop, self.success = threading.Event(), threading.Event()
        self.failure: BaseException | None = None
        threading.Thread(target=self._probe, name="write-probe", daemon=True).start()

    def _probe(self) -> None:
        while not self.stop.wait(self.delay_s):
            self.delay_s = min(2 * self.delay_s, MAX_DELAY_S)
            try:
                self._write()
            except StateUnavailable:
                continue
            except BaseException as error:  # `WriteProbe.take` raises it
                self.failure = error
                return
            self.success.set()
            return


class IdleCheck:
    """Reads the state of the rows while no batch does, so that a scorer without records notices a loss too.

    One thread calls `start_if_due` and `take`, again and again. Another one may call `postpone`.

    Args:
        read: reads the state as a batch does, without any row.
    """

    def __init__(self, read: Callable[[], object], every_s: float = IDLE_CHECK_S) -> None:
        self._read = read
        self._every_s = every_s
        self._check: _Check | None = None
        self.postpone()

    def postpone(self) -> None:
        """The rows were just read."""
        self._due = time.monotonic() + self._every_s

    def start_if_due(self) -> None:
        """Begin to read, unless that is under way or not due."""
        if self._check is None and time.monotonic() >= self._due:
            self._check = _Check(self._read)

    def take(self) -> None:
        """Raise what the last read raised, once: `StateGap`, `StateUnavailable`, or an unexpected error."""
        check = self._check
        if check is None or not check.done.is_set():
            return
        self._check = None
        self.postpone()
        if check.failure is not None:
            raise check.failure

    def cancel(self) -> None:
        """Forget a read that is under way; it ends by itself, and its result does not count."""
        self._check = None
        self.postpone()


class _Check:
    """One thread that reads once."""

    def __init__(self, read: Callable[[], object]) -> None:
        self._read = read
        self.done = threading.Event()
        self.failure: BaseException | None = None
        threading.Thread(target=self._run, name="idle-check", daemon=True).start()

    def _run(self) -> None:
        try:
            self._read()
        except BaseException as error:  # `IdleCheck.take` raises it
            self.failure = error
        self.done.set()
