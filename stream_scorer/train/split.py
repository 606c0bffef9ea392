"""Splits history by time: each step of training uses later rows than the step before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_scorer.errors import UsageError

# Members train on the largest slice. Each later slice fits few parameters (2 for a calibrator, 5 for the weights), but
# fraud is rare: a slice needs enough positives rather than rows.
SHARES = {"train": 0.60, "calibration": 0.12, "weights": 0.14, "holdout": 0.14}
# With fewer positives, the slope of a calibrator and the metrics on the holdout are noise.
MIN_POSITIVES = 10


@dataclass(frozen=True, slots=True)
class Split:
    """Row numbers, ascending in time within and between the slices; ``(k,) int64`` each.

    Attributes:
        train: members are fitted here.
        calibration: members' calibrators.
        weights: weights, final calibrator, reference profile and self-test.
        holdout: metrics only; nothing is fitted.
    """

    train: NDArray[np.int64]
    calibration: NDArray[np.int64]
    weights: NDArray[np.int64]
    holdout: NDArray[np.int64]


def split_by_time(event_time: NDArray[np.int64], label: NDArray[np.bool_]) -> Split:
    """Cut ``(n,)`` event times into the shares of `SHARES`; rows with equal times stay on one side of a cut.

    Raises:
        UsageError: a slice has fewer than `MIN_POSITIVES` frauds, or no genuine transaction.
    """
    return Split(**cut_by_time(event_time, label, SHARES))


def cut_by_time(
    event_time: NDArray[np.int64], label: NDArray[np.bool_], shares: Mapping[str, float]
) -> dict[str, NDArray[np.int64]]:
    """Row numbers of each slice of `shares`, which sum to 1; see `split_by_time`."""
    order = np.argsort(event_time, kind="stable").astype(np.int64)
    times = event_time[order]
    cuts = []
    share = 0.0
    for part in list(shares.values())[:-1]:
        share += part
        at = min(int(share * len(order)), len(order) - 1)
        cuts.append(int(np.searchsorted(times, times[at], side="left")) if len(order) else 0)
    slices = dict(zip(shares, np.split(order, cuts), strict=True))
    for name, rows in slices.items():
        positives = int(label[rows].sum())
        if positives < MIN_POSITIVES or positives == len(rows):
            raise UsageError(
                f"the {name} slice ({shares[name]:.0%} of {len(order)} rows, by time) has {positives} frauds in "
                f"{len(rows)} rows; at least {MIN_POSITIVES} frauds and one genuine transaction are needed",
                hint="Train on a longer history.",
            )
    return slices
