"""Latency per transaction: from the Kafka timestamp of the record to its score, and to a reader of the score."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from stream_scorer.arrays import Floats, Ints
from stream_scorer.reports.recording import Recording

PERCENTILES = (50.0, 90.0, 99.0, 99.9)


@dataclass(frozen=True)
class Latency:
    """Milliseconds per transaction, ``(n,)``; `at` is the record's Kafka timestamp.

    `scored`: until the score was computed (`scored_at`). `arrived`: until a read_committed consumer outside the scorer
    read it, which includes the Kafka commit.
    """

    at: Ints
    scored: Floats
    arrived: Floats

    @staticmethod
    def none() -> Latency:
        """Empty columns."""
        return Latency(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))


def latency_of(recording: Recording) -> Latency:
    """Latencies of all transactions with a recorded input. Scores and contributions must be in pairs."""
    inputs, contributions, scores = recording.inputs, recording.contributions, recording.scores
    order = np.argsort(inputs.places.number)
    known = inputs.places.number[order]
    wanted = contributions.source.number
    place = np.minimum(np.searchsorted(known, wanted), max(len(known) - 1, 0))
    seen = known[place] == wanted if len(known) else np.zeros(len(wanted), dtype=np.bool_)
    at = inputs.timestamp[order][place[seen]]
    return Latency(
        at=at,
        scored=(scores.scored_at[seen] - at).astype(np.float64),
        arrived=(contributions.arrival[seen] - at).astype(np.float64),
    )


def percentiles(values: Floats, wanted: tuple[float, ...] = PERCENTILES) -> dict[float, float]:
    """Percentiles by nearest rank: each is a measured value, without interpolation. NaN for no values."""
    if not len(values):
        return dict.fromkeys(wanted, float("nan"))
    ordered = np.sort(values)
    # Rounded, because 99.9 % of 1,000 is 999, but 999.0000000000001 in floating point.
    ranks = [max(math.ceil(round(p * len(ordered) / 100, 6)), 1) for p in wanted]
    return {p: float(ordered[rank - 1]) for p, rank in zip(wanted, ranks, strict=True)}
