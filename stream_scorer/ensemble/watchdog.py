"""A watchdog for members that hang while they hold the interpreter lock, when no thread of this process can run.

The scorer writes the member that it is calling into a small shared file, and a child process reads the file. If a call
exceeds the time limit, the child records the member as the suspect and kills the scorer. The kill has the
effect of a crash: delivery stays exactly once, and features stay correct. After the restart (by Kubernetes or systemd),
the scorer starts with the suspect's breaker open.

The child runs this file as a script, so it imports the standard library only.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

# One slot per calling thread: the number of its latest call, and the first 8 bytes of the called member's key.
_STATE = struct.Struct("<q8s")
_IDLE = bytes(8)
_POLLS = 20
# A process that was killed is gone after this time, unless the kernel ignores the signal: see `_kill`.
_KILL_WAIT_S = 2.0


class Watchdog:
    """See the module.

    Args:
        path: the shared file; the suspect is written to the same path with the suffix `.suspect`.
        limit_s: the time limit of one member for one micro-batch, in seconds.
        slots: the maximum number of concurrent calls.
    """

    def __init__(self, path: Path, *, limit_s: float, slots: int = 1) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._suspect = _take_suspect(_suspect_path(path))
        path.write_bytes(_STATE.pack(0, _IDLE) * slots)
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), _STATE.size * slots)
        self._calls = 0
        command = [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(path), str(limit_s)]
        self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def suspects(self, key: str) -> bool:
        """Whether the member with this key (hex) was running when the previous scorer was killed."""
        return _key_prefix(key) == self._suspect

    def begin(self, slot: int, key: str) -> None:
        """Record that the thread of this slot is calling the member with this key (hex)."""
        self._calls += 1
        _STATE.pack_into(self._shared, slot * _STATE.size, self._calls, _key_prefix(key))

    def end(self, slot: int) -> None:
        """Record that the call has returned or was abandoned."""
        _STATE.pack_into(self._shared, slot * _STATE.size, self._calls, _IDLE)

    def close(self) -> None:
        """Stop the child process."""
        self._child.terminate()
        self._child.wait()


def _suspect_path(path: Path) -> Path:
    return path.with_name(path.name + ".suspect")


def _key_prefix(key: str) -> bytes:
    return bytes.fromhex(key[:16])


def _take_suspect(path: Path) -> bytes | None:
    try:
        suspect = path.read_bytes()
        path.unlink()
    except FileNotFoundError:
        return None
    return suspect


def _watch(parent: int, path: Path, limit_s: float) -> None:
    """The main loop of the child, until the parent has exited or must be killed."""
    seen: list[tuple[int, bytes]] = []
    polls: list[int] = []
    while os.getppid() == parent:
        time.sleep(limit_s / _POLLS)
        now: list[tuple[int, bytes]] = list(_STATE.iter_unpack(path.read_bytes()))
        # A process that is stopped (for example by a debugger) is not hanging.
        halted = _stopped(parent)
        before = seen or now
        polls = [
            count + 1 if state == old and state[1] != _IDLE and not halted else 0
            for count, state, old in zip(polls or [0] * len(now), now, before, strict=True)
        ]
        seen = now
        if max(polls) >= _POLLS:
            # The member that holds the lock blocks all other threads, so its call started last.
            _, suspect = max(state for state in now if state[1] != _IDLE)
            _suspect_path(path).write_bytes(suspect)
            sys.stderr.write(f"a member (key {suspect.hex()}) has not returned for {limit_s:g} s: killing the scorer\n")
            _kill(parent)
            return


def _kill(parent: int) -> None:
    """Kill the scorer. The kernel ignores the signal if the scorer is process 1 of the PID namespace."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(parent, signal.SIGKILL)
    time.sleep(_KILL_WAIT_S)
    if os.getppid() == parent:
        sys.stderr.write(f"the scorer cannot be killed, because an init process is missing: it is process {parent}\n")


def _stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except OSError:
        return False


if __name__ == "__main__":
    _watch(int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
