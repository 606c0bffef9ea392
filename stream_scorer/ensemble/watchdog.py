"""A watchdog for members that hang and hold the interpreter lock: no thread of this process can act then.

The scorer writes which member it is asking into a small shared file; a child process reads it. A member that shows no
end for too long is written down as the suspect and the scorer is killed, as by a crash: exactly-once and the features
do not mind. Whoever starts the scorer again (Kubernetes, systemd) finds it beginning with that member's breaker open.

This file is also the child's program, run as a script: it imports the standard library only.
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

# A slot for each thread that asks: the number of the call that began last; the head of the key of the member now asked.
_STATE = struct.Struct("<q8s")
_IDLE = bytes(8)
_POLLS = 20


class Watchdog:
    """See the module.

    Args:
        path: where the shared file goes; the suspect stands beside it.
        limit_s: how long one member may take over one micro-batch.
        slots: how many members may be asked at once.
    """

    def __init__(self, path: Path, *, limit_s: float, slots: int = 1) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._suspect = _take_suspect(_beside(path))
        path.write_bytes(_STATE.pack(0, _IDLE) * slots)
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), _STATE.size * slots)
        self._calls = 0
        command = [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(path), str(limit_s)]
        self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def suspects(self, key: str) -> bool:
        """Whether the member with this key (hex) was being asked when the last scorer was killed."""
        return _head(key) == self._suspect

    def begin(self, slot: int, key: str) -> None:
        """The member with this key (hex) is being asked, by the thread of this slot."""
        self._calls += 1
        _STATE.pack_into(self._shared, slot * _STATE.size, self._calls, _head(key))

    def end(self, slot: int) -> None:
        """It has answered, or is waited for no longer."""
        _STATE.pack_into(self._shared, slot * _STATE.size, self._calls, _IDLE)

    def close(self) -> None:
        """End the child."""
        self._child.terminate()
        self._child.wait()


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".suspect")


def _head(key: str) -> bytes:
    return bytes.fromhex(key[:16])


def _take_suspect(path: Path) -> bytes | None:
    try:
        suspect = path.read_bytes()
        path.unlink()
    except FileNotFoundError:
        return None
    return suspect


def _watch(parent: int, path: Path, limit_s: float) -> None:
    """The child's life: until its parent is gone, or has to be killed."""
    seen: list[tuple[int, bytes]] = []
    polls: list[int] = []
    while os.getppid() == parent:
        time.sleep(limit_s / _POLLS)
        now: list[tuple[int, bytes]] = list(_STATE.iter_unpack(path.read_bytes()))
        # A process that is stopped (by a debugger, say) hangs in nothing.
        halted = _stopped(parent)
        before = seen or now
        polls = [
            count + 1 if state == old and state[1] != _IDLE and not halted else 0
            for count, state, old in zip(polls or [0] * len(now), now, before, strict=True)
        ]
        seen = now
        if max(polls) >= _POLLS:
            # Who holds the lock keeps the others from going on, and from beginning: it began last.
            _, suspect = max(state for state in now if state[1] != _IDLE)
            _beside(path).write_bytes(suspect)
            sys.stderr.write(
                f"a member (key {suspect.hex()}) has not answered for {limit_s:g} s: the scorer is killed\n"
            )
            with contextlib.suppress(ProcessLookupError):
                os.kill(parent, signal.SIGKILL)
            return


def _stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except OSError:
        return False


if __name__ == "__main__":
    _watch(int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
