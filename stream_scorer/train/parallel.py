"""Runs independent fits in parallel, with results that do not depend on the number of cores.

Each fit uses one thread of its library, and BLAS has one thread in the whole process, because sums depend on the number
of threads. Threads are enough: the libraries release the interpreter lock while they fit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

from stream_scorer.train.dense import one_thread
from stream_scorer.train.limits import cpu_limit, free_memory

T = TypeVar("T")
R = TypeVar("R")

# Memory of a fit in copies of the whole feature matrix: its rows, the preprocessed rows, and the copy of a library.
_COPIES = 3
# Share of the free memory that fits may use.
_SHARE = 0.8
_SYSTEM = Path("/")


def available_cores(system: Path = _SYSTEM) -> int:
    """The cores that this process may use, by its affinity and by the CPU limit of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = cpu_limit(system)
    return cores if limit is None else max(min(cores, round(limit)), 1)


def default_jobs(matrix_bytes: int, system: Path = _SYSTEM) -> int:
    """How many fits on a feature matrix of so many bytes run at a time: as cores and free memory allow."""
    cores, free = available_cores(system), free_memory(system)
    return cores if free is None else max(min(cores, int(free * _SHARE) // max(_COPIES * matrix_bytes, 1)), 1)


def run_parallel(
    work: Callable[[T], R], tasks: Sequence[T], jobs: int, on_done: Callable[[int], None] = lambda _done: None
) -> list[R]:
    """``[work(task) for task in tasks]``, with at most `jobs` at a time; `on_done` gets the number of complete ones.

    Raises what the first failing task raises; tasks that have not begun are then cancelled.
    """
    with one_thread(), ThreadPoolExecutor(max_workers=max(jobs, 1)) as pool:
        futures = [pool.submit(work, task) for task in tasks]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                on_done(done)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]
