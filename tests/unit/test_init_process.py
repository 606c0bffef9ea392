"""The watchdog and signals in a PID namespace, where the program is process 1."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

_UNSHARE = ["unshare", "-pf", "--mount-proc"]

_HANGS = """
import os, sys, time
from pathlib import Path
from stream_scorer.cli.init_process import leave_process_one
from stream_scorer.ensemble.watchdog import Watchdog
assert os.getpid() == 1
if sys.argv[2] == "init":
    leave_process_one()
dog = Watchdog(Path(sys.argv[1]), limit_s=0.3)
dog.begin(0, "2" * 64)
time.sleep(4)
print("still running", flush=True)
"""

_STOPS = """
import os, signal, subprocess, sys, time
from stream_scorer.cli.init_process import leave_process_one
leave_process_one()
def stop(*_):
    print("stopped", flush=True)
    sys.exit(7)
signal.signal(signal.SIGTERM, stop)
subprocess.Popen(["sh", "-c", "sleep 0.1 &"]).wait()
time.sleep(0.5)
left = [pid for pid in os.listdir("/proc") if pid.isdigit()]
zombies = [pid for pid in left if open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] == "Z"]
print("ready", os.getpid() != 1, zombies, flush=True)
time.sleep(20)
"""


def _may_unshare() -> bool:
    try:
        return subprocess.run([*_UNSHARE, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


pytestmark = pytest.mark.skipif(not _may_unshare(), reason="this machine permits no PID namespace")


@pytest.mark.parametrize("how", ["init", "process 1"])
def test_the_watchdog_ends_a_scorer_that_was_started_as_process_1(tmp_path: Path, how: str) -> None:
    done = subprocess.run(
        [*_UNSHARE, sys.executable, "-c", _HANGS, str(tmp_path / "watch"), how],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if how == "init":
        assert (done.returncode, done.stdout) == (128 + signal.SIGKILL, "")
        assert (tmp_path / "watch.suspect").exists()
    else:  # why process 1 needs an init: the kernel ignores the signal
        assert (done.returncode, done.stdout) == (0, "still running\n")
        assert "an init process is missing" in done.stderr


def test_process_1_forwards_signals_reaps_orphans_and_returns_the_exit_code() -> None:
    with subprocess.Popen(
        [*_UNSHARE, "--kill-child", sys.executable, "-c", _STOPS], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready True []\n"
        (init,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        started = time.monotonic()
        subprocess.run(["kill", "-TERM", init], check=True)
        assert process.stdout.readline() == "stopped\n"
        assert process.wait(10) == 7
        assert time.monotonic() - started < 10
