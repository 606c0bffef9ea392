"""Whether scoring goes on throughout a spell: what is scored in it, the longest gap, and the latency.

The load shows the pauses of the machine: while it pauses, nothing arrives either, so the longest gap between two
arrivals is added to the promised time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from proofs.kit import Result

# Promised: a transaction is scored at most this long after its arrival, whatever fails.
PROMISED_MS = 2_000
# A scaled-down spell is short, and its machine busy with other tests.
SMALL_PROMISED_MS, SMALL_SHARE = 4_000, 0.25


@dataclass(frozen=True, slots=True)
class Promise:
    """What must hold in a spell.

    Attributes:
        within_ms: 99.9 % of the transactions have their score at most this long after they arrived, and no gap between
            two scores is longer.
        share: a spell has at least this many scores per transaction that arrives in it.
    """

    within_ms: int = PROMISED_MS
    share: float = 0.5


SMALL = Promise(SMALL_PROMISED_MS, SMALL_SHARE)


def check_throughout(
    result: Result,
    name: str,
    times: tuple[NDArray[np.int64], NDArray[np.int64]],
    spell: tuple[int, int],
    promise: Promise,
) -> None:
    """Check that scoring goes on in `spell` (began and ended, epoch ms), and note the figures as `name`.

    Args:
        times: when each transaction arrived and when it was scored, (n,) epoch ms each.
    """
    (arrived, scored_at), (began, ended) = times, spell
    during = (arrived >= began) & (arrived <= ended)
    scored = scored_at[(scored_at >= began) & (scored_at <= ended)]
    allowed = promise.within_ms + longest_gap(arrived[during], spell)
    gap = longest_gap(scored, spell)
    latency = (scored_at - arrived)[during]
    late = int(np.percentile(latency, 99.9)) if len(latency) else 0
    result.figures[name] = {
        "arrived": int(during.sum()),
        "scored": len(scored),
        "longest_gap_ms": gap,
        "latency_ms_p99": int(np.percentile(latency, 99)) if len(latency) else 0,
        "latency_ms_p999": late,
        "latency_ms_max": int(latency.max(initial=0)),
        "allowed_ms": allowed,
    }
    result.check(f"{name}: scores go on while it lasts", len(scored) >= promise.share * during.sum() > 0)
    result.check(f"{name}: no longer gap between two scores than promised", gap <= allowed)
    result.check(f"{name}: 99.9 % are scored within the promised time", late <= allowed)


def longest_gap(times: NDArray[np.int64], spell: tuple[int, int]) -> int:
    """The longest time in `spell` without any of `times`, in ms."""
    return int(np.diff(np.sort(np.concatenate([times, spell]))).max())
