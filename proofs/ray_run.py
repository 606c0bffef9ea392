"""One evaluation in a process of its own, on either engine: ``HISTORY VERSION OUT ENGINE WORKERS SABOTAGE``.

Prints the digests, the duration and the ports as JSON. It runs in the environment with Ray, which lacks most of what
other proofs import.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stream_scorer.cli.engine import chosen_workers
from stream_scorer.clock import SystemClock
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.evaluation.distributed import Distribution, ShardWorker
from stream_scorer.evaluation.job import evaluate
from stream_scorer.evaluation.options import Options
from stream_scorer.evaluation.sources import from_files
from stream_scorer.features.shards import Part
from stream_scorer.kafka.topics import Topics
from stream_scorer.ray_workers import local_settings
from stream_scorer.replay.pieces import Range
from stream_scorer.serde.columns import take_transactions
from stream_scorer.spec import load_spec

START_S = 120.0
SPEC = Path(__file__).resolve().parent.parent / "stream_scorer" / "simulate" / "cards.yaml"


def be_patient() -> None:
    """Let Ray wait longer than 30 s for its own processes, because other proofs may run on the same cores."""
    from ray._private import services

    get_node = services.get_node

    def patient(*arguments: Any) -> Any:
        deadline = time.monotonic() + START_S
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    services.get_node = patient


class OutOfOrder(ShardWorker):
    """The sabotage: the first shard gets the terminals' and devices' events of a block in another order."""

    def __init__(self, checked: Any, number: int, count: int) -> None:
        super().__init__(checked, number, count)
        self._number = number

    def others(self, batching: Any, labels: Any, parts: dict[str, Part], *duplicates: Any) -> Any:
        if self._number == 0:
            parts = {name: _shuffled(part) for name, part in parts.items()}
        return super().others(batching, labels, parts, *duplicates)


def _shuffled(part: Part) -> Part:
    """`part` with neighbouring transactions exchanged, at the same places."""
    order = np.arange(len(part.rows))
    even = order[: len(order) // 2 * 2]
    order[: len(even)] = even.reshape(-1, 2)[:, ::-1].ravel()
    return Part(part.rows, take_transactions(part.transactions, order))


def processes(root: int) -> Iterator[int]:
    """The process `root`, and all that it started."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:  # it has ended
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    waiting = [root]
    while waiting:
        found = waiting.pop()
        yield found
        waiting += parents.get(found, [])


def listening(root: int) -> list[str]:
    """The addresses on which `root` and what it started accept connections, as in ``/proc/net/tcp``."""
    sockets = set()
    for pid in processes(root):
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(os.readlink(descriptor))
            except OSError:
                continue
    found = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and f"socket:[{columns[9]}]" in sockets:
                found.append(columns[1].partition(":")[0])
    return found


def main() -> None:
    """See the module."""
    history, version, out, engine, workers, sabotage = sys.argv[1:]
    checked, clock = load_spec(SPEC), SystemClock()
    folder, files = Path(version), Path(history)
    ensemble = Ensemble.load(folder, version="1")
    source = from_files(
        files / "transactions.parquet", files / "labels.parquet", Topics(), checked, Range(), None, warm=False
    )
    began = time.monotonic()
    if engine == "ray":
        # As `ray_workers` does it, which must be before the import.
        os.environ |= local_settings() | {
            "RAY_agent_register_timeout_ms": f"{START_S * 1_000:.0f}",
            "RAY_raylet_start_wait_time_s": f"{START_S:.0f}",
        }
        be_patient()
    with chosen_workers(engine, int(workers) if engine == "ray" else None, None) as started:
        begun = time.monotonic()
        where = None
        if started is not None:
            where = Distribution(started, [folder], OutOfOrder if sabotage == "yes" else ShardWorker)
        result = evaluate(source, checked, [ensemble], Options(replicates=0), Path(out), clock, where=where)
        ports = listening(os.getpid())
    print(
        json.dumps(
            {
                "digests": [result.digests.features, result.digests.scores, result.digests.outcomes],
                "transactions": result.transactions,
                "duplicates": result.duplicates,
                "start_s": round(begun - began, 2),
                "seconds": {name: round(value, 2) for name, value in result.seconds.items()},
                "ports": ports,
            }
        )
    )


if __name__ == "__main__":
    main()
