"""The arithmetic of the benchmark: turns, percentiles, medians, ratios, looks at a drain, stages."""

from __future__ import annotations

import io
import math
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict

import msgspec
import numpy as np
import pytest
from prometheus_client import generate_latest
from rich.console import Console

from stream_scorer.bench.compare import (
    latencies,
    percentiles,
    ratios,
    summarise_drains,
    summarise_windows,
    turns,
    typical_run,
)
from stream_scorer.bench.config import BenchConfig, quick
from stream_scorer.bench.cpu_parts import SCORER_REST, SCORING_THREAD, PartsMeter
from stream_scorer.bench.drain import QUIET_S, watch
from stream_scorer.bench.machine import busy_warning, cpu_per_thousand, cpu_seconds, describe_machine
from stream_scorer.bench.material import Records
from stream_scorer.bench.results import (
    Cpu,
    CpuParts,
    DrainRun,
    Kind,
    Loop,
    Machine,
    Percentiles,
    Report,
    Stages,
    Window,
)
from stream_scorer.bench.show import bottleneck, show
from stream_scorer.bench.stages import rows_of, stages_of
from stream_scorer.errors import SettingsError, StreamScorerError
from stream_scorer.observability import metrics as m

STAGES = Stages({"score": 10.0, "wait": 30.0, "publish": 20.0, "rest": 1.0}, {"commit": 5.0}, {"gbdt": 7.0}, 1_000.0)

PARTS = CpuParts({"scoring thread": 40.0, "committer": 10.0}, {"requests": 20.0}, {"MGET": 4.0})
LIMIT = CpuParts({"scoring thread": 5.0}, {"requests": 12.0}, {"MGET": 0.0})


def drain_run(per_second: float, kind: Kind = "scorer", *, cpu: float = 0.05) -> DrainRun:
    stages = msgspec.structs.replace(STAGES, rows_per_batch=per_second)
    return DrainRun(kind, 1_000, 1.0, per_second, Cpu(cpu, 0.02, 0.01), PARTS, stages)


def window(kind: Kind, rate: int, p50: float, p99: float, missing: int = 0) -> Window:
    return Window(kind, rate, 100, missing, 0.1, Percentiles(p50, p50, p99, p99, p99), Cpu(0.1, 0.1, 0.1))


def test_turns_begin_with_each_kind_in_turn() -> None:
    assert list(turns(3)) == ["scorer", "passthrough", "passthrough", "scorer", "scorer", "passthrough"]


def test_percentiles_are_values_that_occurred() -> None:
    found = percentiles(np.arange(1_000, 0, -1).astype(np.float64))
    assert found == Percentiles(500.0, 900.0, 990.0, 999.0, 1_000.0)
    assert percentiles(np.array([7.0])) == Percentiles(7.0, 7.0, 7.0, 7.0, 7.0)
    assert percentiles(np.array([1.0, 2.0, 3.0])).p50 == 2.0
    with pytest.raises(ValueError, match="no latencies"):
        percentiles(np.zeros(0))


def test_what_never_came_is_later_than_everything() -> None:
    due = np.array([0, 1_000_000, 2_000_000, 3_000_000])
    late = latencies(due, np.array([5_000_000, -1, 4_500_000, 3_250_000]))
    assert late.tolist() == [5.0, math.inf, 2.5, 0.25]
    found = percentiles(late)
    assert (found.p50, found.p99, found.max) == (2.5, math.inf, math.inf)
    assert msgspec.json.decode(msgspec.json.encode(found))["p99"] is None


def test_drains_are_judged_by_their_median() -> None:
    drain = summarise_drains([drain_run(10.0, cpu=0.3), drain_run(30.0, cpu=0.1), drain_run(20.0, cpu=0.2)])
    assert (drain.per_second, drain.cpu.scorer) == (20.0, 0.2)
    assert typical_run(drain).stages.rows_per_batch == 20.0
    assert typical_run(summarise_drains([drain_run(30.0), drain_run(10.0)])).stages.rows_per_batch == 10.0


def test_windows_are_grouped_by_rate_and_kind() -> None:
    windows = [window("scorer", 1_000, p50, 2 * p50, missing=1) for p50 in (30.0, 10.0, 20.0)]
    windows += [window("passthrough", 1_000, 5.0, 50.0), window("scorer", 5_000, 40.0, 80.0)]
    found = summarise_windows(windows)
    assert [(entry.kind, entry.rate) for entry in found] == [
        ("scorer", 1_000), ("passthrough", 1_000), ("scorer", 5_000)
    ]  # fmt: skip
    assert (found[0].latency.p50, found[0].latency.p99, found[0].missing, len(found[0].windows)) == (20.0, 40.0, 3, 3)


def test_ratios_compare_with_the_peers_of_the_same_run() -> None:
    latency = summarise_windows(
        [window("passthrough", 1_000, 10.0, 30.0), window("scorer", 1_000, 25.0, 95.5),
         window("scorer", 5_000, math.inf, math.inf), window("passthrough", 5_000, 10.0, 30.0)]
    )  # fmt: skip
    found = ratios(
        summarise_drains([drain_run(12_000.0)]),
        summarise_drains([drain_run(96_000.0, "passthrough")]),
        Loop(500, 5.0, 100.0),
        latency,
    )
    assert (found.times_the_loop, found.share_of_passthrough) == (120.0, 0.125)
    assert [(d.rate, d.p50_ms, d.p99_ms) for d in found.latency] == [(1_000, 15.0, 65.5), (5_000, math.inf, math.inf)]
    assert [(d.p50_times, d.p99_times) for d in found.latency] == [(2.5, 3.18), (math.inf, math.inf)]


class Watched:
    """A drain as seen by `watch`: the committed end at each look, a look every tenth of a second."""

    def __init__(self, ends: list[int]) -> None:
        self._ends: Iterator[int] = iter(ends)
        self.end = ends[0]
        self.now = 0.0
        self.worked_off = 0

    def look(self) -> int:
        self.end = next(self._ends, self.end)
        return self.end

    def clock(self) -> float:
        return self.now

    def sleep(self, _seconds: float) -> None:
        self.now += 0.1


def test_a_drain_lasts_from_the_first_output_to_the_last() -> None:
    # Starts at 100; the pause in the middle is longer than QUIET_S, and there the process says that it is not done.
    watched = Watched([100, 100, 100, 150, 220, *[220] * 9, 300, 310])
    asked = []

    def rows() -> int:
        asked.append(watched.now)
        return 200 if watched.end == 310 else 120

    first, last = watch(
        watched.look, lambda: {"at": watched.now}, 100, 200, rows, str, clock=watched.clock, sleep=watched.sleep
    )
    assert (first.end, last.end) == (150, 310)
    assert (first.at, last.at) == (pytest.approx(0.3), pytest.approx(1.5))
    assert last.cpu == {"at": last.at}
    assert len(asked) == 2
    assert asked[-1] - last.at > QUIET_S


def test_a_drain_that_stands_still_is_given_up() -> None:
    watched = Watched([0, 10])
    with pytest.raises(
        StreamScorerError, match="counts 10 committed records, and its output has grown by 10\nat the well"
    ):
        watch(watched.look, dict, 0, 1_000, lambda: 10, lambda: "at the well", clock=watched.clock, sleep=watched.sleep)


def test_a_scorer_that_ended_is_noticed_at_once() -> None:
    watched = Watched([0])

    def rows() -> float:
        raise StreamScorerError("the scorer ended by itself")

    with pytest.raises(StreamScorerError, match="ended by itself"):
        watch(watched.look, dict, 0, 1_000, rows, str, clock=watched.clock, sleep=watched.sleep)
    assert watched.now < 1.0


def test_stages_are_spread_over_what_was_committed() -> None:
    metrics = m.Metrics()
    for rows in (1_000, 500):
        metrics.observe(m.BATCH_RECORDS, rows)
        metrics.observe(m.STAGE_SECONDS, 0.003, "decode")
        metrics.observe(m.STAGE_SECONDS, 0.030, "publish")
        metrics.observe(m.STAGE_SECONDS, 0.012, "apply")
        metrics.count(m.MEMBER_SECONDS, 0.015, "gbdt")
    text = generate_latest(metrics.registry).decode()
    assert rows_of(text) == 1_500
    stages = stages_of(text, 50.0)
    assert stages.main == {"decode": 4.0, "publish": 40.0, "rest": 6.0}
    assert stages.beside == {"apply": 16.0}
    assert stages.members == {"gbdt": 20.0}
    assert stages.rows_per_batch == 750.0


def test_cpu_time_of_a_process_is_what_it_spends() -> None:
    before = cpu_seconds(os.getpid())
    spent = time.process_time()
    while time.process_time() - spent < 0.2:
        pass
    assert 0.15 < cpu_seconds(os.getpid()) - before < 0.6
    assert cpu_seconds(2**22 + 1) == 0.0  # above the kernel's highest process number


def test_cpu_time_is_spread_over_thousands() -> None:
    before = {"scorer": 1.0, "broker": 2.0, "redis": 0.0}
    after = {"scorer": 2.0, "broker": 2.5, "redis": 0.25}
    assert cpu_per_thousand(before, after, 5_000) == Cpu(0.2, 0.1, 0.05)


def test_a_busy_machine_is_named() -> None:
    machine = describe_machine()
    assert machine.cores >= 1
    assert not busy_warning(msgspec.structs.replace(machine, load_before=0.5))
    (warning,) = busy_warning(msgspec.structs.replace(machine, load_before=1.7))
    assert "1.70" in warning


def test_every_window_has_transactions_of_its_own() -> None:
    for config in (BenchConfig(), quick(BenchConfig())):
        one_kind = sum(config.window_transactions(rate) for rate in config.rates)
        assert config.live_transactions == config.latency_rounds * one_kind
    assert quick(BenchConfig(seed=9)).seed == 9


@pytest.mark.parametrize("size", [{"transactions": 10}, {"rates": (0,)}, {"window_s": 0.0}, {"latency_rounds": 0}])
def test_a_size_that_makes_no_sense_is_refused(size: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        BenchConfig(**size)  # type: ignore[arg-type]


def test_records_are_written_a_line_each(tmp_path) -> None:  # type: ignore[no-untyped-def]
    records = Records(["a", "b", "c"], [b"k1", b"k2", b"k3"], [b'{"x":1}', b'{"x":2}', b"{}"])
    records.slice(0, 2).write(tmp_path / "records")
    assert (tmp_path / "records").read_bytes() == b'a\tk1\t{"x":1}\nb\tk2\t{"x":2}\n'


def test_the_report_reads_ratios_first() -> None:
    scorer, passthrough = summarise_drains([drain_run(12_000.0)]), summarise_drains([drain_run(96_000.0)])
    loop = Loop(500, 5.0, 100.0)
    latency = summarise_windows(
        [window("scorer", 1_000, 25.0, math.inf, missing=3), window("passthrough", 1_000, 10.0, 30.0)]
    )
    report = Report(
        ratios(scorer, passthrough, loop, latency), scorer, passthrough, loop, STAGES,
        {"scorer": PARTS, "passthrough": LIMIT}, latency, 15_000, 10, 10,
        Machine(2, "a processor", 8.0, "Linux", "3.11", 0.1), asdict(BenchConfig()), ["a warning"], 60.0,
    )  # fmt: skip
    out = io.StringIO()
    show(report, Console(file=out, width=100))
    text = out.getvalue()
    assert text.index("120 x") < text.index("12,000")
    assert [line.split()[-3:] for line in text.splitlines() if "scorer: scoring" in line or "all " in line][:2] == [
        ["40.0", "5.0", "+35.0"],
        ["74.0", "17.0", "+57.0"],
    ]
    for expected in ("12.5%", "+15.0 ms", "never arrived", "15,000", "gbdt", "a processor", "a warning"):
        assert expected in text
    assert "Longest stages of the main thread: publish 20 µs, score 10 µs" in bottleneck(report)
    assert "0.96 of 2 cores" in bottleneck(report)  # 12,000 a second at 50 + 20 + 10 µs


def spin(seconds: float) -> None:
    spent = time.thread_time()
    while time.thread_time() - spent < seconds:
        pass


def test_parts_of_a_process_add_up_to_its_cpu_time() -> None:
    """The main thread spends twice as much as another one, and Redis' commands are those that INFO counts."""
    stop, commands = threading.Event(), {"mget": 0.0}

    def other() -> None:
        spin(0.2)
        stop.wait()

    pid = os.getpid()
    meter = PartsMeter(pid, pid, 2**22 + 1, lambda: dict(commands))
    before = cpu_seconds(pid)
    meter.start()
    thread = threading.Thread(target=other)
    thread.start()
    try:
        spin(0.4)
        time.sleep(0.3)
        commands["mget"] += 0.5
        parts = meter.per_transaction(1_000)
        spent = (cpu_seconds(pid) - before) * 1e6 / 1_000
    finally:
        stop.set()
        thread.join()
    assert parts.scorer[SCORING_THREAD] == pytest.approx(400, rel=0.3)
    assert parts.scorer[SCORER_REST] == pytest.approx(200, rel=0.5)
    assert sum(parts.scorer.values()) == pytest.approx(spent, rel=0.05)
    assert parts.redis["MGET (reading rows)"] == 500.0
