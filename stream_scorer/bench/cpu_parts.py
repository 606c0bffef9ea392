"""CPU time by part: threads of the scorer and of the broker from /proc (Linux, proc(5)), commands of Redis from INFO.

The last part of a process is the rest of its CPU time. Redis counts the elapsed time of a command, so on busy cores the
parts of Redis can exceed its CPU time, and its rest is then 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from stream_scorer.bench.machine import TICKS, cpu_seconds
from stream_scorer.bench.results import CpuParts

SCORING_THREAD = "scoring thread"
# Part by prefix of the thread's name, of which the kernel keeps 15 characters.
SCORER_THREADS = {"rdk:": "Kafka client (librdkafka)"}
SCORER_REST = "committer and other threads"
BROKER_THREADS = {
    "data-plane-": "network and request threads",
    "C1 Compiler": "just-in-time compiler",
    "C2 Compiler": "just-in-time compiler",
    "VM ": "garbage collection",
    "GC ": "garbage collection",
    "G1 ": "garbage collection",
}
BROKER_REST = "other threads"
# Commands that the scorer sends for rows; commands within the script count as the script.
REDIS_COMMANDS = {"mget": "MGET (reading rows)", "evalsha": "EVALSHA (applying updates)"}
REDIS_REST = "connections, protocol, other commands"


def thread_seconds(pid: int, names: Mapping[str, str], *, main: str | None = None) -> dict[str, float]:
    """CPU seconds of the living threads of `pid`, added up by part.

    Args:
        names: part by prefix of the thread's name; other threads are left out. main: part of the main thread.
    """
    found = dict.fromkeys([*([main] if main else []), *names.values()], 0.0)
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            before, _, after = (task / "stat").read_text().rpartition(")")
        except OSError:  # the thread has ended
            continue
        comm = before.partition("(")[2]
        part = main if main and task.name == str(pid) else next((names[p] for p in names if comm.startswith(p)), None)
        if part is not None:
            fields = after.split()
            found[part] += (int(fields[11]) + int(fields[12])) / TICKS
    return found


class PartsMeter:
    """CPU time by part between `start` and `per_transaction`.

    Args:
        scorer, broker, redis: process ids. commands: gives the seconds that Redis has spent in each command.
    """

    def __init__(self, scorer: int, broker: int, redis: int, commands: Callable[[], dict[str, float]]) -> None:
        self._scorer, self._broker, self._redis = scorer, broker, redis
        self._commands = commands
        self._before: CpuParts | None = None

    def start(self) -> None:
        """Begin to measure; later calls change nothing."""
        if self._before is None:
            self._before = self._read()

    def per_transaction(self, transactions: int) -> CpuParts:
        """Microseconds per transaction since `start`, by part."""
        assert self._before is not None
        after = self._read()
        return CpuParts(
            *(
                {part: round((now[part] - then[part]) * 1e6 / transactions, 2) for part in now}
                for then, now in zip(_columns(self._before), _columns(after), strict=True)
            )
        )

    def _read(self) -> CpuParts:
        commands = self._commands()
        return CpuParts(
            _with_rest(
                cpu_seconds(self._scorer),
                thread_seconds(self._scorer, SCORER_THREADS, main=SCORING_THREAD),
                SCORER_REST,
            ),
            _with_rest(cpu_seconds(self._broker), thread_seconds(self._broker, BROKER_THREADS), BROKER_REST),
            _with_rest(
                cpu_seconds(self._redis),
                {part: commands.get(name, 0.0) for name, part in REDIS_COMMANDS.items()},
                REDIS_REST,
            ),
        )


def _with_rest(total: float, parts: dict[str, float], rest: str) -> dict[str, float]:
    return parts | {rest: max(total - sum(parts.values()), 0.0)}


def _columns(parts: CpuParts) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    return parts.scorer, parts.broker, parts.redis
