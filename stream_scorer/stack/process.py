"""Processes identified by pid and start time, so that signals reach no other process; they die with the parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from stream_scorer.stack.model import ProcessId

_PARENT_DEATH = Path(__file__).with_name("parent_death.py")


def identify(pid: int) -> ProcessId | None:
    """The identity of the running process `pid`; None if there is none, or only a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The command name may contain spaces and brackets, so count fields after its last bracket.
    fields = stat.rpartition(")")[2].split()
    if fields[0] in "ZX":
        return None
    return ProcessId(pid, int(fields[19]))


def is_alive(process: ProcessId) -> bool:
    """Whether this process still runs."""
    return identify(process.pid) == process


def send_signal(process: ProcessId, number: int) -> bool:
    """Signal this process. Returns False if it has ended, also if another process has its pid now."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        # The handle refers to one process. Check after opening it: from then on, the pid cannot be reused unnoticed.
        if not is_alive(process):
            return False
        signal.pidfd_send_signal(handle, number)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)


def wait_gone(process: ProcessId, seconds: float) -> bool:
    """Wait at most `seconds` for the process to end; return whether it ended."""
    deadline = time.monotonic() + seconds
    while is_alive(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def spawn(
    command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None, has_children: bool = False
) -> subprocess.Popen[bytes]:
    """Start `command` in a new session, with its output appended to `log`; it dies when the caller dies.

    Call it from the main thread: the kernel sends the death signal when the thread that forked ends. `has_children`
    adds a small parent process, because processes that the command starts do not inherit the death signal.
    """
    mode = "watch" if has_children else "exec"
    die_with_parent = [sys.executable, "-I", "-S", str(_PARENT_DEATH), str(os.getpid()), mode, *command]
    with log.open("ab") as output:
        return subprocess.Popen(
            die_with_parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if env is None else dict(env),
            start_new_session=True,
        )


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process made by `spawn` and to all it started. Its pid is not reused until it is reaped."""
    if process.returncode is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            process.kill()


def stop(processes: Sequence[tuple[subprocess.Popen[bytes], float]]) -> None:
    """SIGTERM to all, then SIGKILL to each process group that runs longer than its number of seconds."""
    for process, _ in processes:
        process.terminate()
    begun = time.monotonic()
    for process, grace in processes:
        try:
            process.wait(max(0.0, begun + grace - time.monotonic()))
        except subprocess.TimeoutExpired:
            kill_group(process)
            process.wait()


def tail(log: Path, lines: int = 15, *, since: int = 0) -> str:
    """The last `lines` lines of `log` written after byte `since`."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(since, size - 65536))
            text = file.read().decode(errors="replace")
    except OSError:
        return "(no log)"
    return "\n".join(text.splitlines()[-lines:]) or "(the log is empty)"
