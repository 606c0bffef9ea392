"""The demo, scaled down, as a person runs it: it ends well, leaves its report, and leaves no process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# Long enough for the update to be loaded, seen and rolled back on a busy machine.
SMALL = [
    "--transactions", "10000", "--rate", "400", "--history", "30000", "--customers", "2500", "--fraud-rate", "0.05",
    "--review-rate", "0.05",
]  # fmt: skip
pytestmark = [pytest.mark.integration, pytest.mark.timeout(430)]


@dataclass
class Demo:
    """A demo in a folder of its own, whose processes are identified by a variable that they inherit."""

    folder: Path
    mark: str
    process: subprocess.Popen[str]

    def left_behind(self) -> dict[int, str]:
        """Processes that carry the mark or work in the folder, with their command lines."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                marked = self.mark.encode() in (entry / "environ").read_bytes()
                inside = (entry / "cwd").resolve().is_relative_to(self.folder)
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:  # it ended while it was looked at
                continue
            if (marked or inside) and command:
                found[int(entry.name)] = command
        return found

    def gone(self, seconds: float = 10.0) -> bool:
        """Whether nothing is left, at the latest after a while: the kernel takes a moment to reap."""
        deadline = time.monotonic() + seconds
        while self.left_behind():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    mark = f"mark-{uuid.uuid4().hex}"
    # The caller's settings must not matter: these would break every part if they did.
    environment = os.environ | {"DEMO_MARK": mark, "STREAM_SCORER_KAFKA_BOOTSTRAP": "127.0.0.1:1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "stream_scorer.cli.main", "demo", *SMALL],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment,
        # A shell that runs the tests in the background has them ignore interrupts, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    running = Demo(tmp_path, mark, process)
    try:
        yield running
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_it_passes_and_leaves_its_report_and_no_process(demo: Demo) -> None:
    out, err = demo.process.communicate(timeout=400)
    assert demo.process.returncode == 0, out + err
    assert out.splitlines()[0].startswith("stream_scorer demo: passed in ")
    assert "none lost, none doubled" in out
    assert "cards@champion, version 1" in out
    assert "ok   the monitor rolls the update back automatically, once" in out
    assert "ok   the rollback names the member" in out
    assert "ok   every score can be recomputed from its record" in out
    assert "FAIL" not in out
    page = (demo.folder / "demo-report" / "index.html").read_text()
    assert "none lost, none doubled" in page
    assert "The incident" in page
    assert demo.gone(), demo.left_behind()
    assert list((demo.folder / ".stream-scorer").iterdir()) == []


def test_an_interrupt_ends_all_of_it(demo: Demo) -> None:
    assert demo.process.stderr is not None
    for line in demo.process.stderr:
        if "training five members" in line:
            break
    assert len(demo.left_behind()) >= 6  # itself, the supervisor, three services, the training
    demo.process.send_signal(signal.SIGINT)
    out, err = demo.process.communicate(timeout=60)
    assert demo.process.returncode == 130, out + err
    assert "Traceback" not in err
    assert demo.gone(), demo.left_behind()
    assert list((demo.folder / ".stream-scorer").iterdir()) == []
