"""What a benchmark found, as records: `--json` prints a `Report`. Times are in the unit their name says."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Kind = Literal["scorer", "passthrough"]
KINDS: tuple[Kind, Kind] = ("scorer", "passthrough")


class Machine(msgspec.Struct, frozen=True):
    """Where it ran. `load_before` is the load average of the last minute before the start."""

    cores: int
    processor: str
    memory_gb: float
    system: str
    python: str
    load_before: float


class Cpu(msgspec.Struct, frozen=True):
    """CPU seconds (user and system) per thousand transactions. The passthrough touches no Redis."""

    scorer: float
    broker: float
    redis: float


class Stages(msgspec.Struct, frozen=True):
    """Where a drain's time goes, in microseconds per transaction, from the scorer's own metrics.

    `main` adds up to the wall time of the thread that reads and computes; `rest` in it is what no stage counts:
    reading, pacing, the loop itself. `beside` runs on the committer's thread at the same time; `wait` in `main` is
    where the two meet. `members` are parts of `score`.
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
    stages: Stages


class Drain(msgspec.Struct, frozen=True):
    """The median of some drains of one kind."""

    per_second: float
    cpu: Cpu
    runs: list[DrainRun]


class Loop(msgspec.Struct, frozen=True):
    """The per-event loop: events worked off after the first one, and how long they took."""

    events: int
    seconds: float
    per_second: float


class Percentiles(msgspec.Struct, frozen=True):
    """Of latency in milliseconds, by nearest rank; null where a record that never came decides."""

    p50: float
    p90: float
    p99: float
    p999: float
    max: float


class Window(msgspec.Struct, frozen=True):
    """One open-loop window. `missing` records were not seen in time; `behind_ms` is the load's own worst lateness."""

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
    """How much later than the passthrough's, in milliseconds."""

    rate: int
    p50_ms: float
    p99_ms: float


class Ratios(msgspec.Struct, frozen=True):
    """What may be compared from one machine to another: the scorer beside its peers in one run."""

    times_the_loop: float
    share_of_passthrough: float
    latency: list[LatencyDifference]


class Report(msgspec.Struct, frozen=True):
    """A whole run. `target_per_second` is for 2 cores with the broker beside; it decides nothing.

    `scores_read` is what a reader found on `scores` after all drains, `scores_expected` what exactly once makes it.
    """

    ratios: Ratios
    scorer: Drain
    passthrough: Drain
    loop: Loop
    stages: Stages
    latency: list[Latency]
    target_per_second: int
    scores_read: int
    scores_expected: int
    machine: Machine
    config: dict[str, Any]
    warnings: list[str]
    seconds: float
