"""Calls that are left behind when they do not come back.

`send_offsets_to_transaction()` ignores its timeout while the group's coordinator is unreachable and may block for good
(librdkafka #5456, #5511; seen here after a broker was killed and came back). Such a call cannot be cancelled, so it is
made in a thread of its own, and when it overstays, thread and producer are abandoned.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class CallTimedOut(Exception):
    """The call has not come back in time; its outcome is unknown."""


class TimedCaller:
    """Makes calls one at a time in a daemon thread. After `CallTimedOut` it must be thrown away."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._outcome: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def call(self, action: Callable[[], None], timeout_s: float) -> None:
        """Make the call, raising what it raises, or `CallTimedOut` if it takes longer than `timeout_s`."""
        self._calls.put(action)
        try:
            error = self._outcome.get(timeout=timeout_s)
        except queue.Empty:
            raise CallTimedOut from None
        if error is not None:
            raise error

    def close(self) -> None:
        """End the thread once its call is done, if it ever is."""
        self._calls.put(None)

    def _run(self) -> None:
        while (action := self._calls.get()) is not None:
            try:
                action()
            except BaseException as error:  # carried to the caller's thread
                self._outcome.put(error)
            else:
                self._outcome.put(None)
