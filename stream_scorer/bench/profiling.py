"""Profiles of the scorer during a drain: functions by cProfile, and a flame graph by py-spy where it is installed.

Each takes a drain of its own, because a profiler slows the scorer down: neither counts in the report.
"""

from __future__ import annotations

import io
import pstats
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stream_scorer.bench.drain import MIN_PER_SECOND, PREFIX, START_S
from stream_scorer.bench.processes import PAUSE_S, Bench, ScorerProcess
from stream_scorer.errors import StreamScorerError

FUNCTIONS = "functions.txt"
FLAME = "flame.svg"
# Functions in each of the two lists.
SHOWN = 60
# Samples per second. py-spy does not stop the scorer for a sample, so a few samples are inconsistent.
SAMPLES_PER_S = 200
_END_S = 30.0


def profile_scorer(bench: Bench, folder: Path) -> list[Path]:
    """Drain the topic twice more under a profiler and return the files written to `folder`.

    `functions.txt` has the functions of the scoring thread by own and by cumulative time, ``functions.pstats`` the same
    for `pstats`; `flame.svg` has all threads.

    Raises:
        StreamScorerError: the scorer ended, or did not drain the topic in time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    raw = folder / "functions.pstats"
    with ScorerProcess(bench, "scorer", prefix=PREFIX, group="profile-functions", profile=raw) as process:
        _wait_drained(bench, process)
    text = io.StringIO()
    stats = pstats.Stats(str(raw), stream=text)
    for order in ("tottime", "cumulative"):
        stats.sort_stats(order).print_stats(SHOWN)
    (folder / FUNCTIONS).write_text(text.getvalue())
    written = [folder / FUNCTIONS, raw]
    sampler = shutil.which("py-spy", path=f"{Path(sys.executable).parent}") or shutil.which("py-spy")
    if sampler is None:
        bench.progress("no flame graph: py-spy is not installed (`pip install py-spy`)")
        return written
    with (
        ScorerProcess(bench, "scorer", prefix=PREFIX, group="profile-flame") as process,
        _sampled(sampler, process, folder / FLAME),
    ):
        _wait_drained(bench, process)
    return [*written, folder / FLAME]


def _wait_drained(bench: Bench, process: ScorerProcess) -> None:
    deadline = time.monotonic() + START_S + bench.config.transactions / MIN_PER_SECOND
    while process.rows() < bench.config.transactions:
        if time.monotonic() > deadline:
            raise StreamScorerError(f"the scorer did not drain the topic in time:\n{process.diagnostics()}")
        time.sleep(PAUSE_S)


@contextmanager
def _sampled(sampler: str, process: ScorerProcess, out: Path) -> Iterator[None]:
    """Sample all threads of the process, from when it is ready to the end of the block."""
    process.wait_ready()
    command = [sampler, "record", "--pid", str(process.pid), "--format", "flamegraph", "--threads", "--nonblocking"]
    command += ["--rate", str(SAMPLES_PER_S), "--output", str(out)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        yield
        running.send_signal(signal.SIGINT)  # it writes the file
        _, errors = running.communicate(timeout=_END_S)
        if running.returncode != 0 or not out.exists():
            raise StreamScorerError(
                "py-spy failed: " + " ".join(errors.split()[-30:]),
                hint="It reads another process's memory, which may need CAP_SYS_PTRACE.",
            )
    finally:
        if running.poll() is None:
            running.kill()
            running.communicate()
