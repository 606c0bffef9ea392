"""Calls with a timeout that abandon the thread of a call that does not return.

`send_offsets_to_transaction()` ignores its timeout while the group's coordinator is unreachable and may block for good
(librdkafka #5456, #5511; seen here after a broker was killed and came back). Such a call cannot be cancelled, so it
runs in a separate thread, and after the timeout both thread and producer are abandoned.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

# A call that exceeds its own timeout by more than this is abandoned.
GRACE_S = 1.0


class CallTimedOut(Exception):
    """The call did not return in time; its outcome is unknown."""


class TimedCaller:
    """Makes calls one at a time in a daemon thread. Discard it after `CallTimedOut`."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._outcome: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def call(self, action: Callable[[], None], timeout_s: float) -> None:
        """Make the call. Raises its exception, or `CallTimedOut` if it takes longer than `timeout_s`."""
        self._calls.put(action)
        try:
            error = self._outcome.get(timeout=timeout_s)
        except queue.Empty:
            raise CallTimedOut from None
        if error is not None:
            raise error

    def close(self) -> None:
        """End the thread after the current call returns."""
        self._calls.put(None)

    def _run(self) -> None:
        while (action := self._calls.get()) is not None:
            try:
                action()
            except BaseException as error:  # raised again in the caller's thread
                self._outcome.put(error)
            else:
                self._outcome.put(None)
