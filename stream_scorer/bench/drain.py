"""Drain: throughput on a full topic, and CPU time per process.

The measurement polls the last stable offsets of `scores` every few milliseconds, so it counts committed output. Polling
offsets costs almost no CPU; a consumer of every record would need a core. It starts at the first sample with output and
ends at the last sample with more output, so it excludes the start of the process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from stream_scorer.bench.cpu_parts import PartsMeter
from stream_scorer.bench.machine import CpuMeter, cpu_per_thousand
from stream_scorer.bench.processes import Bench, ScorerProcess
from stream_scorer.bench.results import DrainRun, Kind
from stream_scorer.bench.stages import stages_of
from stream_scorer.clock import SystemClock
from stream_scorer.errors import StreamScorerError
from stream_scorer.kafka.follower import RecordFollower
from stream_scorer.kafka.topics import Topics
from stream_scorer.kafka.transactional_loop import TransactionalLoop
from stream_scorer.state.client import command_seconds, connect

PREFIX = "drain."
POLL_S = 0.01
# After this long without new output, check whether the drain is complete. A batch takes a tenth of it.
QUIET_S = 0.5
# The timeout allows for a drain at this rate, in addition to the start.
MIN_PER_SECOND = 500
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
        """The current sum; it includes one control record per Kafka transaction and partition."""
        return sum(end for _, end in self._loop.ends(self._partitions).values())

    def close(self) -> None:
        """Close the connection to the broker."""
        self._loop.close()


@dataclass(slots=True)
class Sample:
    """One sample: its time, the committed end, and CPU seconds by process."""

    at: float
    end: int
    cpu: dict[str, float]


def watch(
    end: Callable[[], int],
    cpu: Callable[[], dict[str, float]],
    before: int,
    expected: int,
    rows: Callable[[], float],
    diagnostics: Callable[[], str],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Sample, Sample]:
    """Wait until `expected` records are processed; return the first sample with output and the last with more output.

    Args:
        end, cpu: the committed end of the output (`before` the start), and CPU seconds by process; `cpu` is called only
            after new output.
        rows: number of committed records from the process's metrics; read only while there is no new output.
        diagnostics: state of the process, for the error message.

    Raises:
        StreamScorerError: timeout, or the process has ended.
    """
    started = clock()
    timeout_s = START_S + expected / MIN_PER_SECOND
    first: Sample | None = None
    last: Sample | None = None
    checked_at = started
    while True:
        found, now = end(), clock()
        if found > (last.end if last is not None else before):
            checked_at = now
            last = Sample(now, found, cpu())
            first = first or last
        elif now - checked_at > QUIET_S:
            checked_at = now
            # The ends include control records, so only the process's own count is exact.
            if rows() >= expected and first is not None and last is not None:
                return first, last
        if now - started > timeout_s:
            raise StreamScorerError(
                f"{expected} records were not processed in {timeout_s:.0f} s: the process counts {rows():.0f} "
                f"committed records, and its output has grown by {0 if last is None else last.end - before}\n"
                f"{diagnostics()}"
            )
        sleep(POLL_S)


def drain(bench: Bench, kind: Kind, number: int) -> DrainRun:
    """Process all records of the drain's topic with a new consumer group; a `number` below 1 marks a warm-up.

    Raises:
        StreamScorerError: the process ended, timed out, or the drain was too short to be measured.
    """
    config, expected = bench.config, bench.config.transactions
    committed = CommittedEnd(bench.bootstrap, Topics(PREFIX).scores, config.partitions)
    redis = connect(url := str(bench.stack.addresses.redis))
    try:
        before = committed.read()
        with ScorerProcess(bench, kind, prefix=PREFIX, group=f"drain-{kind}-{number}") as process:
            pids = bench.stack.pids
            meter = CpuMeter({"scorer": process.pid, "broker": pids["kafka"], "redis": pids["redis"]})
            parts_meter = PartsMeter(process.pid, pids["kafka"], pids["redis"], partial(command_seconds, redis, url))

            def cpu() -> dict[str, float]:
                parts_meter.start()
                return meter.read()

            first, last = watch(committed.read, cpu, before, expected, process.rows, process.diagnostics)
            # The ends include control records: the share of transactions among all offsets is `expected` of the growth.
            transactions = round((last.end - first.end) * expected / (last.end - before))
            if not transactions:
                raise StreamScorerError("the drain ended before the second sample", hint="Use more transactions.")
            parts = parts_meter.per_transaction(transactions)
            metrics = process.metrics()
    finally:
        committed.close()
        redis.close()
    seconds = last.at - first.at
    run = DrainRun(
        kind,
        transactions,
        round(seconds, 3),
        round(transactions / seconds, 1),
        cpu_per_thousand(first.cpu, last.cpu, transactions),
        parts,
        stages_of(metrics, seconds * 1e6 / transactions),
    )
    what = "drain" if number > 0 else "warm-up"
    bench.progress(f"{what}, {kind}: {run.per_second:,.0f} transactions per second")
    return run


def count_scores(bench: Bench, expected: int) -> int:
    """Count the records on `scores`, from the beginning until no record arrives for a while."""
    seen, quiet_since = 0, time.monotonic()
    with RecordFollower(bench.bootstrap, Topics(PREFIX).scores, client_id="bench-count", start="beginning") as follower:
        while time.monotonic() - quiet_since < (_QUIET_END_S if seen < expected else QUIET_S):
            found = len(follower.poll(20_000, 0.1))
            if found:
                seen, quiet_since = seen + found, time.monotonic()
    return seen
