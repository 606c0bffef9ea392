"""evaluate-bench: what an evaluation costs compared with the bare predictions of its five members, and its memory.

From Parquet, with all figures and intervals. CPU time of one process decides, not elapsed time. The bare prediction is
what a data scientist would pay without this project: the `predict` of each member's own library (LightGBM, XGBoost,
numpy's matrix product) on one thread, on inputs that are prepared already, in batches of 4,096 as in the evaluation, on
the feature rows of the same transactions, in the same run, half of the turns before the evaluation and half after it.
The ratio to our own loops, which are several times faster than the libraries (ADR 0049), is a figure that does not
decide. The peak memory of a process with `n` transactions must be at most 1.15 times that of one with a third, which
also fills several files of results: one with a tenth fills less than one, and the ratio would measure the size of a
file.

BREAK=1: the results stay in memory and every batch has 16 transactions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from proofs import evaluate_world
from proofs.evaluate_world import CpuClock, load, write_history
from proofs.kit import ROOT, Context, Result, cards, die_with_parent, train_cards
from proofs.member_libraries import library_predictions
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.evaluation.batches import Batches
from stream_scorer.evaluation.options import Options
from stream_scorer.evaluation.sources import from_files
from stream_scorer.features.engine import FeatureEngine
from stream_scorer.kafka.topics import Topics
from stream_scorer.replay.pieces import Range
from stream_scorer.state.rows import MemoryRowStore

N = 1_000_000
MAX_RATIO, MAX_MEMORY_RATIO = 2.5, 1.15
FEWER = 3
ROWS, BROKEN_ROWS = 4_096, 16
# Transactions whose feature rows the bare predictions take, and the turns before and after the evaluation. The median
# counts, so the first turn, which compiles and loads, does not matter.
BARE, TURNS = 40_960, 3
TIMEOUT_S = 3_600


def run(context: Context) -> Result:
    """See the module. `n` transactions."""
    n, result = context.n or N, Result()
    train_cards(context.folder, seed=context.seed, transactions=60_000)
    history, (ensemble,) = context.folder / "large", load([context.folder / "ensemble"])
    write_history(history, seed=context.seed + 1, transactions=n)
    rows = BROKEN_ROWS if context.broken else ROWS
    # A first, small evaluation compiles the kernels and loads the libraries.
    write_history(context.folder / "small", seed=context.seed + 1, transactions=max(n // FEWER, 1_000))
    evaluate_world.run(context.folder / "small", [ensemble], context.folder / "warm-up", Options(rows=rows))
    bare = _Bare(history, context.folder / "ensemble", ensemble, min(n, BARE))
    bare.measure()
    began, elapsed = time.process_time(), time.monotonic()
    found = evaluate_world.run(history, [ensemble], context.folder / "out", Options(rows=rows), clock=CpuClock())
    seconds, elapsed = time.process_time() - began, time.monotonic() - elapsed
    bare.measure()
    per, libraries, own = 1e6 / found.transactions, *bare.seconds()
    shares = {
        name: round(value / found.seconds["total"], 3) for name, value in found.seconds.items() if name != "total"
    }
    result.figures |= {
        "us_per_transaction": round(seconds * per, 2),
        "libraries_us_per_transaction": round(libraries * 1e6, 2),
        "own_members_us_per_transaction": round(own * 1e6, 2),
        "times_libraries": round(seconds / found.transactions / libraries, 3),
        "times_own_members": round(seconds / found.transactions / own, 3),
        "share_by_stage": shares,
        "transactions_per_cpu_second": round(found.transactions / seconds),
        "transactions_per_second": round(found.transactions / elapsed),
    }
    result.at_least("transactions", found.transactions, n)
    result.check(
        f"an evaluation costs at most {MAX_RATIO} times the bare predictions of the members' libraries",
        seconds / found.transactions / libraries <= MAX_RATIO,
    )
    _memory(context, result, history)
    return result


def _memory(context: Context, result: Result, history: Path) -> None:
    piece_rows = 1 << 40 if context.broken else Options().piece_rows
    peaks = {
        name: _peak_kb(folder, context.folder / "ensemble", context.folder / f"memory-{name}", piece_rows)
        for name, folder in (("fewer", context.folder / "small"), ("all", history))
    }
    ratio = peaks["all"] / peaks["fewer"]
    result.figures |= {
        "peak_mb": {name: peak // 1_024 for name, peak in peaks.items()},
        "memory_ratio": round(ratio, 3),
    }
    result.check(
        f"{FEWER} times the transactions take at most {MAX_MEMORY_RATIO} times the memory", ratio <= MAX_MEMORY_RATIO
    )


def _peak_kb(history: Path, ensemble: Path, out: Path, piece_rows: int) -> int:
    command = [
        sys.executable,
        "-m",
        "proofs.evaluate_world",
        str(history),
        str(ensemble),
        str(out),
        str(piece_rows),
        "0",
    ]
    done = subprocess.run(
        die_with_parent(command), cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    return int(json.loads(done.stdout)["peak_kb"])


class _Bare:
    """Predictions of the members' libraries, and of our own loops, on the first `n` transactions of a history."""

    def __init__(self, history: Path, folder: Path, ensemble: Ensemble, n: int) -> None:
        matrices = list(_matrices(history, n))
        self._rows = sum(map(len, matrices))
        inputs = [[loaded.preprocess.apply(matrix) for matrix in matrices] for loaded in ensemble._members]
        libraries = library_predictions(folder, ensemble)
        own = [loaded.member.predict for loaded in ensemble._members]
        self._sides = [list(zip(predictions, inputs, strict=True)) for predictions in (libraries, own)]
        self._turns: list[list[float]] = []

    def measure(self) -> None:
        """Take the times of `TURNS` more turns of both, which alternate."""
        with threadpool_limits(1):  # numpy's matrix product
            self._turns += [[_cpu_seconds(side) for side in self._sides] for _ in range(TURNS)]

    def seconds(self) -> list[float]:
        """CPU seconds per transaction of the libraries, and of our own loops."""
        medians: list[float] = (np.median(self._turns, axis=0) / self._rows).tolist()
        return medians


def _cpu_seconds(side: list[tuple[Callable[[Any], Any], list[np.ndarray]]]) -> float:
    began = time.process_time()
    for predict, inputs in side:
        for each in inputs:
            predict(each)
    return time.process_time() - began


def _matrices(history: Path, n: int) -> Iterator[np.ndarray]:
    checked, rows = cards(), MemoryRowStore()
    engine, done = FeatureEngine(checked), 0
    source = from_files(
        history / "transactions.parquet", history / "labels.parquet", Topics(), checked, Range(), None, warm=False
    )
    for batch in Batches(checked, ROWS, n).of(source.runs()):
        enriched = engine.enrich(batch.events, rows)
        rows.apply(enriched.update)
        yield np.ascontiguousarray(enriched.matrix)
        done += len(batch)
        if done >= n:
            return
