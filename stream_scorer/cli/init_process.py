"""A minimal init for a scorer that is process 1 of its container.

The kernel ignores SIGKILL to process 1 from inside its PID namespace, so the watchdog could not end a hanging scorer
(pid_namespaces(7)). Process 1 also inherits orphans and must reap them. So process 1 forks once: the child becomes the
scorer, and process 1 forwards signals, reaps children, and ends with the scorer's exit code.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

_FORWARDED = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip


def leave_process_one() -> None:
    """Return in a process that is not process 1. Call it before any thread starts, because it forks.

    In process 1 it never returns.
    """
    if os.getpid() != 1:
        return
    # A signal that arrives before process 1 can forward it waits.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    child = os.fork()
    if child == 0:
        # A group of its own, so that Ctrl-C on a terminal reaches the scorer once.
        os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return

    def forward(signum: int, _frame: FrameType | None) -> None:
        try:
            os.kill(child, signum)
        except ProcessLookupError:  # it has ended, and its exit code is collected next
            return

    for signum in _FORWARDED:
        signal.signal(signum, forward)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    while True:
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)
