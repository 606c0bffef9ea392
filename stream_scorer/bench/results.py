"""Results of a benchmark as records: `--json` prints a `Report`. Names of times include their unit."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Kind = Literal["scorer", "passthrough"]
KINDS: tuple[Kind, Kind] = ("scorer", "passthrough")


class Machine(msgspec.Struct, frozen=True):
    """The machine. `load_before` is the load average of the last minute before the start."""

    cores: int
    processor: str
    memory_gb: float
    system: str
    python: str
    load_before: float


class Cpu(msgspec.Struct, frozen=True):
    """CPU seconds (user and system) per thousand transactions. The passthrough does not use Redis."""

    scorer: float
    broker: float
    redis: float


class CpuParts(msgspec.Struct, frozen=True):
    """CPU time of a drain by part of each process, in microseconds per transaction; see `bench.cpu_parts`.

    It includes the half second after the last output in which the drain is found to be complete.
    """

    scorer: dict[str, float]
    broker: dict[str, float]
    redis: dict[str, float]


class Stages(msgspec.Struct, frozen=True):
    """Time per stage of a drain, in microseconds per transaction, from the scorer's metrics.

    `main` adds up to the wall time of the thread that reads and computes; its `rest` is the time outside all stages:
    reading, pacing, the loop itself. The stages in `beside` run concurrently on the committer's thread; in `wait`, the
    main thread waits for the committer. `members` are parts of `score`.
    """

    main: dict[str, float]
    beside: dict[str, float]
    members: dict[str, float]
    rows_per_batch: float


class DrainRun(msgspec.Struct, frozen=True):
    """One drain, from the first committed output to the last; `transactions` are those committed in between."""

    kind: Kind
    transactions: int
    seconds: float
    per_second: float
    cpu: Cpu
    parts: CpuParts
    stages: Stages


class Drain(msgspec.Struct, frozen=True):
    """The medians of the drains of one kind."""

    per_second: float
    cpu: Cpu
    runs: list[DrainRun]


class Loop(msgspec.Struct, frozen=True):
    """The per-event loop: number of events after the first one, and their duration."""

    events: int
    seconds: float
    per_second: float


class Percentiles(msgspec.Struct, frozen=True):
    """Percentiles of latency in milliseconds, by nearest rank; null if the value is a record that never arrived."""

    p50: float
    p90: float
    p99: float
    p999: float
    max: float


class Window(msgspec.Struct, frozen=True):
    """One open-loop window. `missing` records did not arrive in time; `behind_ms` is the load's maximum lateness."""

    kind: Kind
    rate: int
    transactions: int
    missing: int
    behind_ms: float
    latency: Percentiles
    cpu: Cpu


class Latency(msgspec.Struct, frozen=True):
    """The medians over the windows of one kind and rate."""

    kind: Kind
    rate: int
    latency: Percentiles
    missing: int
    cpu: Cpu
    windows: list[Window]


class LatencyDifference(msgspec.Struct, frozen=True):
    """Latency of the scorer minus latency of the passthrough, in milliseconds, and divided by it (`times`)."""

    rate: int
    p50_ms: float
    p99_ms: float
    p50_times: float
    p99_times: float


class Ratios(msgspec.Struct, frozen=True):
    """Results that are comparable between machines: the scorer relative to its peers in one run."""

    times_the_loop: float
    share_of_passthrough: float
    latency: list[LatencyDifference]


class Report(msgspec.Struct, frozen=True):
    """A whole run. `stages` and `parts` are of the median drain.

    `target_per_second` is for 2 cores shared with the broker, for information only.
    `scores_read` is the number of records on `scores` after all drains, `scores_expected` the number if exactly once.
    """

    ratios: Ratios
    scorer: Drain
    passthrough: Drain
    loop: Loop
    stages: Stages
    parts: dict[Kind, CpuParts]
    latency: list[Latency]
    target_per_second: int
    scores_read: int
    scores_expected: int
    machine: Machine
    config: dict[str, Any]
    warnings: list[str]
    seconds: float
