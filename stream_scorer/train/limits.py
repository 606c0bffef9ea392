"""The CPU and memory limits of the container of this process: those of its control group, version 2 or 1 (cgroups).

`system` is the folder of ``/proc`` and ``/sys``. What cannot be read is no limit.
"""

from __future__ import annotations

from pathlib import Path

_GROUPS = Path("sys/fs/cgroup")


def cpu_limit(system: Path) -> float | None:
    """The cores that the process may use on average; None without a limit."""
    limits = []
    for group in _groups(system):
        quota, _, period = _text(group / "cpu.max").partition(" ")
        limits += [int(quota) / int(period)] if quota.isdigit() and period.isdigit() else []
    former = system / _GROUPS / "cpu"
    old, of = _number(former / "cpu.cfs_quota_us"), _number(former / "cpu.cfs_period_us")
    limits += [old / of] if old and of else []
    return min(limits, default=None)


def free_memory(system: Path) -> int | None:
    """The bytes that the process may still allocate, by its limits and by what the machine has; None if unknown."""
    found = [
        _free(group / "memory.max", group / "memory.current", group / "memory.stat", "inactive_file")
        for group in _groups(system)
    ]
    former = system / _GROUPS / "memory"
    found.append(
        _free(
            former / "memory.limit_in_bytes",
            former / "memory.usage_in_bytes",
            former / "memory.stat",
            "total_inactive_file",
        )
    )
    available = _field(system / "proc" / "meminfo", "MemAvailable:")
    found.append(None if available is None else available * 1024)
    return min((each for each in found if each is not None), default=None)


def _groups(system: Path) -> list[Path]:
    """The folder of the control group (version 2) of this process, and those above it: the lowest limit applies."""
    root = system / _GROUPS
    for line in _text(system / "proc" / "self" / "cgroup").splitlines():
        number, _, path = line.partition("::")
        if number == "0":
            own = root / path.strip("/")
            return [own, *(each for each in own.parents if each.is_relative_to(root))]
    return [root]


def _free(limit: Path, used: Path, statistics: Path, cached: str) -> int | None:
    """What a group has left; pages of files that nobody uses are free."""
    most, now = _number(limit), _number(used)
    if most is None or now is None:
        return None
    return max(most - now + (_field(statistics, cached) or 0), 0)


def _field(path: Path, name: str) -> int | None:
    for line in _text(path).splitlines():
        words = line.split()
        if words[:1] == [name] and words[1:2] and words[1].isdigit():
            return int(words[1])
    return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
