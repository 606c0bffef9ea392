"""How many fits run at a time: limits of cores and memory, of the machine and of a container."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stream_scorer.train.parallel import available_cores, default_jobs

GB = 1_000_000_000


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 16 cores and 64 GB of free memory, without limits."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(16)), raising=False)
    write(tmp_path, "proc/meminfo", f"MemTotal: {128 * GB // 1024} kB\nMemAvailable: {64 * GB // 1024} kB\n")
    write(tmp_path, "proc/self/cgroup", "0::/\n")
    return tmp_path


def write(system: Path, name: str, text: str) -> None:
    path = system / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_fits_at_a_time_are_bounded_by_cores_and_free_memory(system: Path) -> None:
    assert default_jobs(1_000_000, system) == available_cores(system) == 16
    # A fit has up to three copies, and 80 % of 64 GB are for all fits.
    assert default_jobs(4 * GB, system) == 4
    assert default_jobs(400 * GB, system) == 1
    assert default_jobs(1, system / "nothing is known here") == 16


def test_limits_of_a_container_count(system: Path) -> None:
    group = "sys/fs/cgroup/"
    write(system, group + "cpu.max", "max 100000\n")
    write(system, group + "memory.max", "max\n")
    assert default_jobs(4 * GB, system) == 4
    write(system, group + "cpu.max", "250000 100000\n")
    assert default_jobs(1_000_000, system) == 2
    write(system, group + "memory.max", f"{8 * GB}\n")
    write(system, group + "memory.current", f"{6 * GB}\n")
    write(system, group + "memory.stat", f"anon 1\ninactive_file {1 * GB}\n")
    # 3 GB are left.
    assert (default_jobs(GB // 2, system), default_jobs(2 * GB, system)) == (1, 1)
    write(system, group + "cpu.max", "50000 100000\n")
    assert available_cores(system) == 1
    # The group of a service on a machine that is no container: the lowest limit above it applies.
    write(system, group + "cpu.max", "max 100000\n")
    write(system, "proc/self/cgroup", "0::/batch.slice/train.service\n")
    write(system, group + "batch.slice/cpu.max", "300000 100000\n")
    assert available_cores(system) == 3


def test_limits_of_cgroups_version_1_count(system: Path) -> None:
    write(system, "proc/self/cgroup", "4:memory:/docker/1\n1:cpu:/docker/1\n0::/\n")
    group = "sys/fs/cgroup/"
    write(system, group + "cpu/cpu.cfs_quota_us", "-1\n")
    write(system, group + "cpu/cpu.cfs_period_us", "100000\n")
    write(system, group + "memory/memory.limit_in_bytes", "9223372036854771712\n")
    write(system, group + "memory/memory.usage_in_bytes", f"{GB}\n")
    assert default_jobs(1_000_000, system) == 16
    write(system, group + "cpu/cpu.cfs_quota_us", "400000\n")
    assert default_jobs(1_000_000, system) == 4
    write(system, group + "memory/memory.limit_in_bytes", f"{5 * GB}\n")
    assert default_jobs(GB // 2, system) == 2
