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

_STATE = struct.Struct("<qq")  # how many calls have begun; the member now asked, -1 for none
_IDLE = -1
_POLLS = 20


class Watchdog:
    """See the module.

    Args:
        path: where the shared file goes; the suspect stands beside it.
        ensemble: digest of what serves: a suspect of another ensemble is none.
        limit_s: how long one member may take over one micro-batch.

    Attributes:
        suspect: the member (its place in the manifest) that was asked when the last scorer was killed, or None.
    """

    def __init__(self, path: Path, ensemble: str, *, limit_s: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.suspect = _take_suspect(_beside(path), ensemble)
        path.write_bytes(_STATE.pack(0, _IDLE))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), _STATE.size)
        self._calls = 0
        command = [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(path), ensemble, str(limit_s)]
        self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def begin(self, member: int) -> None:
        """The member at this place is being asked."""
        self._calls += 1
        _STATE.pack_into(self._shared, 0, self._calls, member)

    def end(self) -> None:
        """It has answered, or is waited for no longer."""
        _STATE.pack_into(self._shared, 0, self._calls, _IDLE)

    def close(self) -> None:
        """End the child."""
        self._child.terminate()
        self._child.wait()


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".suspect")


def _take_suspect(path: Path, ensemble: str) -> int | None:
    try:
        digest, _, member = path.read_text().partition(" ")
        path.unlink()
    except FileNotFoundError:
        return None
    return int(member) if digest == ensemble and member.isdigit() else None


def _watch(parent: int, path: Path, ensemble: str, limit_s: float) -> None:
    """The child's life: until its parent is gone, or has to be killed."""
    seen, polls = (0, _IDLE), 0
    while os.getppid() == parent:
        time.sleep(limit_s / _POLLS)
        now: tuple[int, int] = _STATE.unpack(path.read_bytes())
        # A process that is stopped (by a debugger, say) hangs in nothing.
        polls = polls + 1 if now == seen and now[1] != _IDLE and not _stopped(parent) else 0
        seen = now
        if polls >= _POLLS:
            _beside(path).write_text(f"{ensemble} {now[1]}")
            sys.stderr.write(f"member {now[1]} has not answered for {limit_s:g} s: the scorer is killed\n")
            with contextlib.suppress(ProcessLookupError):
                os.kill(parent, signal.SIGKILL)
            return


def _stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except OSError:
        return False


if __name__ == "__main__":
    _watch(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], float(sys.argv[4]))
