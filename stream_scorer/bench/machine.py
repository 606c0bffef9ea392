"""Description of the machine, and CPU time of processes, from /proc (Linux, proc(5))."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

from stream_scorer.bench.results import Cpu, Machine

# A load average above this before the start means that other programs are running.
BUSY_LOAD = 0.5
# Units of CPU time in /proc per second.
TICKS = os.sysconf("SC_CLK_TCK")


def describe_machine() -> Machine:
    """Describe this machine."""
    return Machine(
        os.cpu_count() or 1,
        _processor(),
        round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        f"{platform.system()} {platform.release()}",
        platform.python_version(),
        round(os.getloadavg()[0], 2),
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def busy_warning(machine: Machine) -> list[str]:
    """A warning if other programs were running before the start."""
    if machine.load_before <= BUSY_LOAD:
        return []
    return [
        f"the machine was busy before the start (load average {machine.load_before:.2f} on {machine.cores} cores): "
        "absolute figures are too low, ratios noisier"
    ]


def cpu_seconds(pid: int) -> float:
    """User and system time so far of process `pid` and of its descendants that still run; 0 if it is gone."""
    root = Path(f"/proc/{pid}")
    try:
        # The command name may contain spaces and brackets, so count fields after its last bracket.
        fields = (root / "stat").read_text().rpartition(")")[2].split()
        children = [child for task in (root / "task").iterdir() for child in (task / "children").read_text().split()]
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS + sum(cpu_seconds(int(child)) for child in children)


class CpuMeter:
    """CPU time of the scorer, the broker and Redis, by process id."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        """`pids` by the field names of `Cpu`."""
        self._pids = pids

    def read(self) -> dict[str, float]:
        """CPU seconds so far, by name."""
        return {name: cpu_seconds(pid) for name, pid in self._pids.items()}


def cpu_per_thousand(before: Mapping[str, float], after: Mapping[str, float], transactions: int) -> Cpu:
    """CPU seconds per thousand transactions between two readings."""
    spent = {name: round((after[name] - before[name]) * 1_000 / transactions, 4) for name in after}
    return Cpu(spent["scorer"], spent["broker"], spent["redis"])
