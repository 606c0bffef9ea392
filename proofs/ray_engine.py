"""ray: an evaluation on Ray has the digests of the local engine, byte for byte; time and memory of each are printed.

A simulated history is evaluated by the local engine, and then on a local Ray with two numbers of workers, in an
environment that is built from ``requirements/ray.txt``. The ports of Ray are looked at while it runs: all are on
loopback. Nothing that it started is left afterwards. Memory is the highest sum over all processes of a run
(proportional set size, so that shared memory counts once), looked at every second.

BREAK=1: one shard gets the events of a block out of order.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from proofs.evaluate_world import write_history
from proofs.kit import ROOT, Context, Result, die_with_parent, train_cards
from proofs.peer_environments import environment
from proofs.ray_run import processes

N = 5_000_000
MIN_TRANSACTIONS = 100_000
WORKERS = (2, 3)
TIMEOUT_S = 10_800
EVERY_S = 1.0
# 127.0.0.1, and the same address for IPv6, as /proc/net has them.
LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")


class Memory:
    """The highest memory of a process and all that it started, in MB."""

    def __init__(self, root: int) -> None:
        self.peak_mb = 0.0
        self.seen: set[int] = set()
        self._root, self._ended = root, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop looking."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(EVERY_S):
            found = list(processes(self._root))
            self.seen.update(found)
            self.peak_mb = max(self.peak_mb, sum(_pss_kb(pid) for pid in found) / 1_024)


def _pss_kb(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _evaluate(context: Context, python: str, name: str, engine: str, workers: int) -> dict[str, Any]:
    """One evaluation: what `proofs.ray_run` prints, and the memory that it took."""
    sabotage = "yes" if context.broken and engine == "ray" else "no"
    command = [python, "-m", "proofs.ray_run", str(context.folder / "history"), str(context.folder / "ensemble"),
               str(context.folder / name), engine, str(workers), sabotage]  # fmt: skip
    began = time.monotonic()
    process = subprocess.Popen(
        die_with_parent(command), cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    memory = Memory(process.pid)
    try:
        out, errors = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
        memory.stop()
    assert process.returncode == 0, f"{name}: {errors[-1500:]}"
    found = dict(json.loads(out.splitlines()[-1]))
    found |= {"elapsed_s": round(time.monotonic() - began, 1), "peak_mb": round(memory.peak_mb)}
    found["left"] = [pid for pid in memory.seen if _same_command(pid)]
    context.say(f"{name}: {found['seconds']['total']:.1f} s, {found['peak_mb']:,} MB")
    return found


def _same_command(pid: int) -> bool:
    """Whether a process that was seen is still there, and is one of Ray's."""
    try:
        return b"ray" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def run(context: Context) -> Result:
    """See the module. `n` transactions."""
    result, n = Result(), context.n or N
    train_cards(context.folder, seed=context.seed, transactions=60_000)
    write_history(context.folder / "history", seed=context.seed + 1, transactions=n)
    local = _evaluate(context, sys.executable, "local", "local", 1)
    result.figures["local"] = local
    result.at_least("transactions", local["transactions"], min(n, MIN_TRANSACTIONS))
    python = environment("ray")
    for workers in WORKERS:
        found = _evaluate(context, python, f"ray-{workers}", "ray", workers)
        result.figures[f"ray_{workers}_workers"] = found
        result.check(f"{workers} workers give the digests of the local engine", found["digests"] == local["digests"])
        result.check(
            f"{workers} workers give the same counts",
            all(found[name] == local[name] for name in ("transactions", "duplicates")),
        )
        ports = found["ports"]
        result.check(f"{workers} workers: all ports are on loopback", bool(ports) and all(p in LOOPBACK for p in ports))
        result.check(f"{workers} workers: nothing is left", not found["left"])
    return result
