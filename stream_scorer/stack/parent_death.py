"""A script that ends a command when its parent process dies (Linux, prctl(2) PR_SET_PDEATHSIG).

``python -I -S parent_death.py PARENT_PID exec|watch COMMAND...``. `exec` replaces itself by the command, which keeps
the death signal across execve(2). `watch` remains as the leader of the process group and ends the whole group on
SIGTERM or when the parent dies, for commands that start child processes. It is a script, because a `preexec_fn` is
unsafe in a process with threads. It uses the standard library only, so it starts in 20 ms.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from types import FrameType

_PR_SET_PDEATHSIG = 1
_GRACE_SECONDS = 3.0


def main(arguments: list[str]) -> int:
    """Set the death signal and run the command; returns its exit code."""
    parent, mode, command = int(arguments[0]), arguments[1], arguments[2:]
    death = signal.SIGKILL if mode == "exec" else signal.SIGTERM
    if mode == "watch":
        signal.signal(signal.SIGTERM, _stop)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(death), 0, 0, 0)
    if os.getppid() != parent:  # the parent died before prctl
        return 1
    if mode == "exec":
        os.execv(command[0], command)
    child: subprocess.Popen[bytes] | None = None
    try:
        child = subprocess.Popen(command)
        code = child.wait()
    except _Stopped:
        code = 0
        os.killpg(0, signal.SIGTERM)
        if child is not None:
            try:
                child.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                code = 1
    # Processes that the command left in our group end with us.
    if os.getpgrp() == os.getpid():
        sys.stdout.flush()
        os.killpg(0, signal.SIGKILL)
    return code


class _Stopped(BaseException):
    """SIGTERM arrived."""


def _stop(_number: int, _frame: FrameType | None) -> None:
    # Once only: the kernel sends a death signal for each thread of the parent that the child passes through on its
    # way to another parent, and a second _Stopped inside the clean-up would leave the group alive.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Stopped


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
