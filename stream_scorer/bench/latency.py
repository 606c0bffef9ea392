"""Open-loop latency: from a transaction's due time until an independent read_committed consumer reads its score.

Scorer and passthrough run all the time, each with its own topics; the load alternates between them. A transaction that
is sent late or never scored counts with its whole delay, because the schedule never waits. A schedule that waits would
have the fewest samples in the worst moments ("coordinated omission").
"""

from __future__ import annotations

import time
from contextlib import ExitStack

import numpy as np

from stream_scorer.bench.compare import latencies, percentiles, turns
from stream_scorer.bench.drain import CommittedEnd, watch
from stream_scorer.bench.machine import CpuMeter, cpu_per_thousand
from stream_scorer.bench.material import Records
from stream_scorer.bench.processes import Bench, ScorerProcess, program
from stream_scorer.bench.results import KINDS, Kind, Window
from stream_scorer.clock import SystemClock
from stream_scorer.kafka.open_loop import OpenLoopProducer
from stream_scorer.kafka.topics import TopicAdmin, Topics

# Wait for scores for this long after the last due time.
TAIL_S = 20.0
# The load generator gets its start time this long in advance.
LEAD_S = 0.1
_MARGIN_S = 30.0


def prefix_of(kind: Kind) -> str:
    """Topic prefix of one kind."""
    return f"live-{kind}."


def measure_latency(bench: Bench, records: Records) -> list[Window]:
    """Measure all windows. `records` are the backlog and then the records of the windows, the same for each kind."""
    config = bench.config
    backlog = records.slice(0, config.backlog)
    with ExitStack() as stack:
        processes: dict[Kind, ScorerProcess] = {}
        for kind in KINDS:
            topics = Topics(prefix_of(kind))
            TopicAdmin(bench.bootstrap).create_all(topics, config.partitions)
            publish(bench, topics.transactions, backlog)
            process = ScorerProcess(bench, kind, prefix=prefix_of(kind), group=f"live-{kind}")
            processes[kind] = stack.enter_context(process)
            processes[kind].wait_ready()
            _wait_processed(bench, kind, process)
        windows = []
        place = config.backlog
        for rate in config.rates:
            count = config.window_transactions(rate)
            for number, kind in enumerate(turns(config.latency_rounds)):
                start = place + number // len(KINDS) * count
                part = records.slice(start, start + count)
                windows.append(_window(bench, kind, rate, part, processes[kind]))
            place += config.latency_rounds * count
    return windows


def publish(bench: Bench, topic: str, records: Records) -> None:
    """Publish `records` to `topic` at full speed and wait until all are confirmed."""
    with OpenLoopProducer(bench.bootstrap, client_id="bench", clock=SystemClock(), sleep=time.sleep) as producer:
        producer.publish(topic, records.keys, records.values)


def _wait_processed(bench: Bench, kind: Kind, process: ScorerProcess) -> None:
    if not bench.config.backlog:
        return
    committed = CommittedEnd(bench.bootstrap, Topics(prefix_of(kind)).scores, bench.config.partitions)
    try:
        watch(committed.read, dict, 0, bench.config.backlog, process.rows, process.diagnostics)
    finally:
        committed.close()


def _window(bench: Bench, kind: Kind, rate: int, records: Records, process: ScorerProcess) -> Window:
    config, topics = bench.config, Topics(prefix_of(kind))
    path = bench.folder / "window.tsv"
    records.write(path)
    length_s = len(records) / rate
    pids = bench.stack.pids
    meter = CpuMeter({"scorer": process.pid, "broker": pids["kafka"], "redis": pids["redis"]})
    with (
        program("arrivals", bench.bootstrap, topics.scores, path, LEAD_S + length_s + TAIL_S) as arrivals,
        program("load", bench.bootstrap, topics.transactions, path, rate) as load,
    ):
        arrivals.wait_ready()
        load.wait_ready()
        start_ns = time.monotonic_ns() + int(LEAD_S * 1e9)
        load.send_line(str(start_ns))
        time.sleep(LEAD_S + config.warm_up_s)
        cpu_before = meter.read()
        time.sleep(length_s - config.warm_up_s)
        cpu_after = meter.read()
        sent = load.result(_MARGIN_S)
        arrived_ns = np.array(arrivals.result(TAIL_S + _MARGIN_S), dtype=np.int64)
    process.require_running()
    due_ns = start_ns + (np.arange(len(records)) * (1e9 / rate)).astype(np.int64)
    measured = slice(round(config.warm_up_s * rate), None)
    latency = percentiles(latencies(due_ns[measured], arrived_ns[measured]))
    counted = len(due_ns[measured])
    window = Window(
        kind,
        rate,
        counted,
        int((arrived_ns < 0).sum()),
        sent["behind_ms"],
        latency,
        cpu_per_thousand(cpu_before, cpu_after, counted),
    )
    bench.progress(f"{rate:,} per second, {kind}: p50 {latency.p50:.1f} ms, p99 {latency.p99:.1f} ms")
    return window
