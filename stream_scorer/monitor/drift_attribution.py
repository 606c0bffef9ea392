"""Attribution of a drift event: kinds of change, fields that explain it, and the members that read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stream_scorer.arrays import Floats, Ints
from stream_scorer.monitor.drift import compare
from stream_scorer.monitor.drift_types import (
    ChangeKind,
    ChronicShift,
    DriftEvent,
    DriftRules,
    DriftWindow,
    MemberEffect,
    SeriesInfo,
    SeriesShift,
)

# A change of missing values that makes up this share of the total change is one of missing values.
MISSING_SHARE = 0.5
# Quantiles that are compared to distinguish a scale from an offset.
QUANTILES = np.arange(0.1, 0.91, 0.1)
MIN_QUANTILES = 3


@dataclass(frozen=True, slots=True)
class Evidence:
    """The columns of the changed series, most evidence first, the evidence (S,) of all, and histograms (S, B)."""

    chosen: Sequence[int]
    evidence: Floats
    now: Ints
    before: Ints


def event_of(
    series: Sequence[SeriesInfo],
    found: Evidence,
    window: DriftWindow,
    rules: DriftRules,
    *,
    first: int,
    rows: int,
    log_evidence: float,
) -> DriftEvent:
    """The event with these changed series. `window` completed the evidence; `first` is the start of the first one."""
    shifts = [_shift(series[column], found, column) for column in found.chosen]
    changed = [shift.info for shift in shifts]
    return DriftEvent(
        id=f"drift:{window.ensemble}:{first}:{changed[0].name}",
        ensemble=window.ensemble,
        version=window.version,
        kind=shifts[0].kind,
        series=shifts,
        fields=rank_fields(series, {series[c].name: float(found.evidence[c]) for c in found.chosen}),
        entities=list(dict.fromkeys(info.entity for info in changed if info.entity)),
        members=_members(series, changed, found),
        first_window=first,
        detected_window=window.start,
        pane_ms=rules.pane_ms,
        rows=rows,
        log_evidence=log_evidence,
        run_length=rules.run_length,
        false_alarms_per_year=rules.false_alarms_per_year,
    )


def rank_fields(series: Sequence[SeriesInfo], changed: dict[str, float]) -> list[str]:
    """Input fields of the changed series, best explanation first.

    A field explains a change well if its series have much evidence and few of its series are unchanged: a change of
    `amount` leaves the counts per customer alone, so `customer_id`, from which means per customer are computed too,
    comes later.
    """
    evidence: dict[str, float] = {}
    hit: dict[str, int] = {}
    all_of: dict[str, int] = {}
    for info in series:
        for field in dict.fromkeys(info.fields):
            all_of[field] = all_of.get(field, 0) + 1
            if info.name in changed:
                evidence[field] = evidence.get(field, 0.0) + changed[info.name]
                hit[field] = hit.get(field, 0) + 1
    return sorted(evidence, key=lambda f: (-evidence[f] * (hit[f] + 0.5) / (all_of[f] + 1.0), f))


def _shift(info: SeriesInfo, found: Evidence, column: int) -> SeriesShift:
    bins = len(info.edges) + 2
    now, before = found.now[column, :bins], found.before[column, :bins]
    drift = compare(now, before)
    kind, factor = kind_of_change(info, now, before)
    return SeriesShift(
        info,
        kind,
        drift.score,
        drift.psi,
        drift.ks,
        float(found.evidence[column]),
        drift.rows,
        _missing(now),
        _missing(before),
        factor,
    )


def _missing(counts: Ints) -> float:
    return float(counts[-1] / max(int(counts.sum()), 1))


def kind_of_change(info: SeriesInfo, now: Ints, before: Ints) -> tuple[ChangeKind, float | None]:
    """The kind of a change between two histograms, and the ratio of the values where it is a scale.

    Quantiles outside the edges are unknown. If almost all are, values have become too large or too small for the
    profile, which is a scale without a known factor.
    """
    p, q = now / max(int(now.sum()), 1), before / max(int(before.sum()), 1)
    total = float(np.abs(p - q).sum()) / 2
    if info.kind == "decision":
        return "mapping", None
    if info.aggregate == "present" or abs(p[-1] - q[-1]) >= MISSING_SHARE * max(total, 1e-12):
        return "missing", None
    if info.categorical:
        return "mapping", None
    edges = np.asarray(info.edges)
    known_now, known_before = _quantiles(now, edges), _quantiles(before, edges)
    both = np.isfinite(known_now) & np.isfinite(known_before)
    if both.sum() < MIN_QUANTILES:
        return "scale", None
    a, b = known_now[both], known_before[both]
    offset = float(np.median(a - b))
    offset_error = float(np.abs(a - b - offset).mean())
    if info.logarithmic:
        spread = float(np.ptp(b))
        return ("scale", float(np.exp(offset))) if offset_error < 0.5 * max(abs(offset), 0.1 * spread) else (
            "offset", None)  # fmt: skip
    if (b == 0).any() or (np.sign(a) != np.sign(b)).any():
        return "offset", None
    factor = float(np.exp(np.median(np.log(a / b))))
    return ("scale", factor) if float(np.abs(a - factor * b).mean()) < offset_error else ("offset", None)


def _quantiles(counts: Ints, edges: Floats) -> Floats:
    """Quantiles of the values by interpolation within bins; NaN where they lie outside the edges."""
    values = counts[:-1]
    total = int(values.sum())
    if total == 0 or len(edges) < 2:
        return np.full(len(QUANTILES), np.nan)
    cumulated = np.cumsum(values)[: len(edges)] / total
    found: Floats = np.interp(QUANTILES, cumulated, edges, left=np.nan, right=np.nan)
    return found


def mean_of(counts: Ints, edges: Sequence[float]) -> float | None:
    """Mean of the values, each at the middle of its bin, those outside the edges at the edge; None without values."""
    values = np.asarray(counts)[:-1]
    if not len(edges) or not values.sum():
        return None
    borders = np.asarray(edges, dtype=np.float64)
    middles = np.concatenate([borders[:1], (borders[:-1] + borders[1:]) / 2, borders[-1:]])
    return float(middles @ values / values.sum())


def chronic_shifts(series: Sequence[SeriesInfo], counts: Ints, profile: Mapping[str, Ints]) -> list[ChronicShift]:
    """The difference of each series from its training profile, largest distance first.

    `counts` (S, B) are histograms of whole weeks, so that neither the hour nor the day of the week makes a difference.
    Series without rows, or without a profile on the same bins, are left out.
    """
    found = []
    for column, info in enumerate(series):
        now, before = counts[column, : len(info.edges) + 2], profile.get(info.name)
        if before is None or len(before) != len(now) or not now.any():
            continue
        if info.kind in ("member", "score"):
            # The detector does not count scores that are missing.
            before = np.append(before[:-1], 0)
        drift = compare(now, before)
        price = None
        if info.kind in ("member", "score"):
            means = mean_of(now, info.edges), mean_of(before, info.edges)
            if means[0] is not None and means[1] is not None:
                price = (means[0] - means[1]) * (info.weight if info.kind == "member" else 1.0)
        found.append(ChronicShift(info.name, drift.score, drift.psi, drift.ks, drift.rows, price))
    return sorted(found, key=lambda shift: -shift.distance)


def _members(series: Sequence[SeriesInfo], changed: Sequence[SeriesInfo], found: Evidence) -> list[MemberEffect]:
    """The members that read changed features, or changed themselves; largest effect first."""
    reads: dict[str, list[str]] = {}
    for info in changed:
        for member in info.members:
            reads.setdefault(member, []).append(info.name)
    effect = dict.fromkeys(reads, 0.0)
    for column, info in enumerate(series):
        if info.kind == "member" and info.members and info.members[0] in effect:
            bins = len(info.edges) + 2
            now = mean_of(found.now[column, :bins], info.edges)
            before = mean_of(found.before[column, :bins], info.edges)
            if now is not None and before is not None:
                effect[info.members[0]] = (now - before) * info.weight
    order = sorted(reads, key=lambda member: (-abs(effect[member]), -len(reads[member]), member))
    return [MemberEffect(member, tuple(reads[member]), effect[member]) for member in order]
