"""Drain: how fast a full topic is worked off, and what that costs whom.

Measured from outside: the last stable offsets of `scores` are looked at every few milliseconds, so what counts is
committed output, and looking costs next to nothing (a reader of every record would take a core from what is measured).
From the first look that finds output to the last one that finds more: starting up is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from stream_scorer.bench.machine import CpuMeter, cpu_per_thousand
from stream_scorer.bench.processes import Bench, ScorerProcess
from stream_scorer.bench.results import DrainRun, Kind
from stream_scorer.bench.stages import stages_of
from stream_scorer.clock import SystemClock
from stream_scorer.errors import StreamScorerError
from stream_scorer.kafka.load import RecordFollower
from stream_scorer.kafka.topics import Topics
from stream_scorer.kafka.transactional_loop import TransactionalLoop

PREFIX = "drain."
LOOK_S = 0.01
# Nothing new for so long: time to ask whether that was all. A batch takes a tenth of it.
QUIET_S = 0.5
# The slowest drain worth waiting for: 500 transactions a second, beyond what starting takes.
SLOWEST_PER_SECOND = 500
START_S = 150.0
_QUIET_END_S = 2.0


class CommittedEnd:
    """The sum of the last stable offsets of a topic's partitions."""

    def __init__(self, bootstrap: str, topic: str, partitions: int) -> None:
        self._loop = TransactionalLoop(
            bootstrap, SystemClock(), group="bench-ends", transactional_id="bench-ends", client_id="bench-ends"
        )
        self._partitions = [(topic, number) for number in range(partitions)]

    def read(self) -> int:
        """Now; it counts a control record for each transaction and partition beside the records themselves."""
        return sum(end for _, end in self._loop.ends(self._partitions).values())

    def close(self) -> None:
        """Let go of the broker."""
        self._loop.close()


@dataclass(slots=True)
class Look:
    """What one look found: when, the committed end, and CPU seconds by process."""

    at: float
    end: int
    cpu: dict[str, float]


def watch(
    end: Callable[[], int],
    cpu: Callable[[], dict[str, float]],
    before: int,
    expected: int,
    rows: Callable[[], float],
    doing: Callable[[], str],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Look, Look]:
    """The first look that finds output and the last that finds more, until `expected` records are worked off.

    Args:
        end, cpu: the committed end of the output (`before` the start), and CPU seconds by process.
        rows: how many records the process says it has committed; asked only while the output is quiet.
        doing: what the process is at, for the error.

    Raises:
        StreamScorerError: it took too long, or the process has ended.
    """
    started = clock()
    give_up = START_S + expected / SLOWEST_PER_SECOND
    first: Look | None = None
    last: Look | None = None
    asked = started
    while True:
        found, now = end(), clock()
        if found > (last.end if last is not None else before):
            asked = now
            last = Look(now, found, cpu())
            first = first or last
        elif now - asked > QUIET_S:
            asked = now
            # The ends count control records too, so only the process itself knows.
            if rows() >= expected and first is not None and last is not None:
                return first, last
        if now - started > give_up:
            raise StreamScorerError(
                f"{expected} records were not worked off in {give_up:.0f} s: by its own count {rows():.0f} are "
                f"committed, and its output has grown by {0 if last is None else last.end - before}\n{doing()}"
            )
        sleep(LOOK_S)


def drain(bench: Bench, kind: Kind, number: int) -> DrainRun:
    """Work off everything on the drain's topic with a group of its own; below 1 its `number` means warm-up.

    Raises:
        StreamScorerError: it ended, stood still, or was too short to be measured.
    """
    config, expected = bench.config, bench.config.transactions
    committed = CommittedEnd(bench.bootstrap, Topics(PREFIX).scores, config.partitions)
    try:
        before = committed.read()
        with ScorerProcess(bench, kind, prefix=PREFIX, group=f"drain-{kind}-{number}") as process:
            pids = bench.stack.pids
            meter = CpuMeter({"scorer": process.pid, "broker": pids["kafka"], "redis": pids["redis"]})
            first, last = watch(committed.read, meter.read, before, expected, process.rows, process.doing)
            metrics = process.metrics()
    finally:
        committed.close()
    # The ends count control records too: of all offsets, so many were transactions.
    share = expected / (last.end - before)
    transactions = round((last.end - first.end) * share)
    if not transactions:
        raise StreamScorerError("the drain was over at the first look", hint="Give it more transactions.")
    seconds = last.at - first.at
    run = DrainRun(
        kind,
        transactions,
        round(seconds, 3),
        round(transactions / seconds, 1),
        cpu_per_thousand(first.cpu, last.cpu, transactions),
        stages_of(metrics, seconds * 1e6 / transactions),
    )
    what = "drain" if number > 0 else "warm-up"
    bench.say(f"{what}, {kind}: {run.per_second:,.0f} transactions a second")
    return run


def count_scores(bench: Bench, expected: int) -> int:
    """How many records `scores` holds: read from its beginning to `expected` of them and a little silence."""
    seen, quiet_since = 0, time.monotonic()
    with RecordFollower(bench.bootstrap, Topics(PREFIX).scores, client_id="bench-count", start="beginning") as follower:
        while time.monotonic() - quiet_since < (_QUIET_END_S if seen < expected else QUIET_S):
            found = len(follower.poll(20_000, 0.1))
            if found:
                seen, quiet_since = seen + found, time.monotonic()
    return seen
