"""Tumbling event-time windows: closing, merging of counts, and the figures of a window.

Pure functions on counts: the same counts give the same figures, live or recomputed from the topics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stream_scorer.monitor import rates
from stream_scorer.monitor.drift import Drift, ProfileMismatch, compare_all
from stream_scorer.monitor.rate_figures import POSITIVE_SETS, Figure, rate_figures
from stream_scorer.records import DECISIONS

Counts = Mapping[str, int]
# Fields of labels, and fields of money, which may be negative: see `tally`.
LABEL_FIELDS = ("o:", "ov:", "os:", "op:", "go:", "gw:", "so:", "mo:", "la:")
MONEY_FIELDS = ("v:", "ov:")
# Edges and counts of each series of a reference profile, as `stream_scorer.ensemble` stores it.
Profile = Mapping[str, tuple[ArrayLike, ArrayLike]]


@dataclass(frozen=True)
class WindowRules:
    """Times in milliseconds; `window_panes` lists the lengths of windows in panes, the first of them 1.

    `label_sources` are the sources of labels that are counted separately.
    """

    pane_ms: int
    allowed_lateness_ms: int
    horizon_ms: int
    window_panes: tuple[int, ...] = (1,)
    assumed: rates.Assumptions = rates.DEFAULT_ASSUMPTIONS
    label_sources: frozenset[str] = frozenset()

    def start_of(self, pane: int, panes: int) -> int:
        """Start of the window of `panes` panes that contains `pane`; windows are aligned to the epoch."""
        length = panes * self.pane_ms
        return pane - pane % length

    def panes_of(self, start: int, panes: int) -> range:
        """Starts of the panes of a window."""
        return range(start, start + panes * self.pane_ms, self.pane_ms)

    def closed(self, end: int, watermark: int | None) -> bool:
        """Whether no more transactions are expected before `end`. Late ones still count, in a later revision."""
        return watermark is not None and watermark >= end + self.allowed_lateness_ms


def watermark(newest: Mapping[str, int | None], idle: Iterable[str] = ()) -> int | None:
    """Event time up to which every active partition has been read: the minimum of their newest panes.

    None if an active partition has no records yet. Also None if all partitions are idle; the caller then keeps its
    watermark.
    """
    active = set(newest) - set(idle)
    times = [newest[partition] for partition in active]
    known = [time for time in times if time is not None]
    return min(known) if known and len(known) == len(times) else None


def merge(parts: Iterable[Counts]) -> dict[str, int]:
    """The sum of counts per field. It is exact and independent of order and grouping."""
    total: dict[str, int] = {}
    for counts in parts:
        for name, number in counts.items():
            total[name] = total.get(name, 0) + number
    return total


def negative_fields(parts: Iterable[Counts]) -> tuple[list[str], list[str]]:
    """Names of negative counts, of transactions and of labels. Check each pane, because a sum can hide them.

    A label that changes decrements the label before it. If retention deleted the record of that label before the
    monitor counted it, its count becomes negative.
    """
    names = {name for counts in parts for name, number in counts.items() if number < 0}
    found = sorted(name for name in names if not name.startswith(MONEY_FIELDS))
    of_labels = [name for name in found if name.startswith(LABEL_FIELDS)]
    return [name for name in found if name not in of_labels], of_labels


def histograms(counts: Counts, bins: Mapping[str, int]) -> dict[str, NDArray[np.int64]]:
    """The counts by bin of each series, from the fields ``<prefix>:<bin>``; zeros for a series without counts.

    One pass over all fields: one pass per series would take most of the time of a window.

    Args:
        bins: the number of bins by series.

    Raises:
        ProfileMismatch: a count is outside the bins, so the scorer used another profile.
    """
    found = {series: [0] * size for series, size in bins.items()}
    by_prefix = {_field_prefix(series): dense for series, dense in found.items()}
    for name, number in counts.items():
        prefix, _, place = name.rpartition(":")
        dense = by_prefix.get(prefix)
        if dense is None or not place.isdigit():
            continue
        if int(place) >= len(dense):
            raise ProfileMismatch(f"{name} is outside the {len(dense)} bins of the reference profile")
        dense[int(place)] = number
    return {series: np.array(dense, dtype=np.int64) for series, dense in found.items()}


def _field_prefix(series: str) -> str:
    """The prefix of the fields of a series: ``score``, ``member:<name>`` or the name of a feature."""
    if series == "score":
        return "sc"
    if series.startswith("member:"):
        return f"m:{series.removeprefix('member:')}"
    return f"f:{series}"


def drifts(counts: Counts, profile: Profile) -> dict[str, Drift]:
    """Drift of every series of `profile` that has counts.

    Raises:
        ProfileMismatch: the counts have other bins.
    """
    expected = {series: np.asarray(reference) for series, (_, reference) in profile.items()}
    current = histograms(counts, {series: reference.size for series, reference in expected.items()})
    return compare_all({series: live for series, live in current.items() if live.any()}, expected)


def figures(
    counts: Counts,
    profile: Profile | None,
    rules: WindowRules,
    members: Sequence[str] = (),
    *,
    labels_complete: bool = True,
) -> list[Figure]:
    """Every figure of one window of one version and arm. No count may be negative: see `negative_fields`.

    Args:
        members: names of the members in the order of the manifest; without them there are no rates by member.
        labels_complete: whether all labels were counted. If not, figures of labels have no values, because their bounds
            would not hold.

    Raises:
        ProfileMismatch: the counts have other bins than `profile`.
    """
    rows = counts.get("n", 0)
    found = [
        Figure("transactions", "", float(rows), numerator=rows),
        _share("duplicate_share", "", counts.get("dup", 0), rows),
        _share("degraded_share", "", counts.get("deg", 0), rows),
        _share("fallback_share", "", counts.get("fb", 0), rows),
    ]
    decided = sum(counts.get(f"d:{d}", 0) for d in DECISIONS)
    money = sum(counts.get(f"v:{d}", 0) for d in DECISIONS)
    for dimension, positive in POSITIVE_SETS.items():
        found.append(_share("alert_rate", dimension, sum(counts.get(f"d:{d}", 0) for d in positive), decided))
        found.append(_share("alert_rate_money", dimension, sum(counts.get(f"v:{d}", 0) for d in positive), money))
    for name in sorted(counts):
        if name.startswith("ma:"):
            found.append(_share("member_alert_rate", name[3:], counts[name], decided))
    if profile is not None:
        found += [_drift(series, drift) for series, drift in drifts(counts, profile).items()]
    if decided:
        found += rate_figures(counts, members, rules.assumed, labels_complete=labels_complete)
    return found


def _share(metric: str, dimension: str, numerator: int, denominator: int) -> Figure:
    value = rates.ratio(numerator, denominator)
    return Figure(metric, dimension, value, numerator=numerator, denominator=denominator)


def _drift(series: str, drift: Drift) -> Figure:
    return Figure(
        "drift_score",
        series,
        drift.score,
        denominator=drift.rows,
        statistics={
            "psi": drift.psi,
            "ks": drift.ks,
            "reference_rows": drift.reference_rows,
            "sufficient": int(drift.sufficient),
        },
    )
