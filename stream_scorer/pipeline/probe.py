"""Write probes: asks, in a thread of its own, whether Redis accepts writes again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from stream_scorer.errors import StateUnavailable

# The first probe comes soon, because most failures are short. While the state flaps, probes back off up to the longest.
FIRST_DELAY_S, MAX_DELAY_S = 0.25, 5.0
# A success that lasted this long ends the flapping: the next failure is probed soon again.
STABLE_S = 30.0


class WriteProbe:
    """Probes until one succeeds. `start` and `take` are called by one thread, again and again.

    Args:
        write: makes a small write; raises `StateUnavailable` if Redis refuses it or does not answer.
        first_delay_s: how long after a failure the first probe comes.
    """

    def __init__(self, write: Callable[[], None], first_delay_s: float = FIRST_DELAY_S) -> None:
        self._write = write
        self._first_delay_s = self._delay_s = first_delay_s
        self._succeeded_at = -STABLE_S
        self._success = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Begin to probe, unless a probe is under way or has succeeded and `take` was not called yet."""
        if self._thread is not None or self._success.is_set():
            return
        if time.monotonic() - self._succeeded_at > STABLE_S:
            self._delay_s = self._first_delay_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._stop,), name="write-probe", daemon=True)
        self._thread.start()

    def take(self) -> bool:
        """Whether a probe has succeeded since the last call. Raises what ended the thread unexpectedly."""
        if self._failure is not None:
            raise self._failure
        if not self._success.is_set():
            return False
        self._success.clear()
        self._thread = None
        self._succeeded_at = time.monotonic()
        return True

    def cancel(self) -> None:
        """Stop probing. A probe under way ends by itself; its result does not count."""
        self._stop.set()
        self._thread = None
        self._success.clear()

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(self._delay_s):
            self._delay_s = min(2 * self._delay_s, MAX_DELAY_S)
            try:
                self._write()
            except StateUnavailable:
                continue
            except BaseException as error:  # carried to the thread that calls `take`
                self._failure = error
                return
            if not stop.is_set():
                self._success.set()
            return
