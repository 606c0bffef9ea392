"""Two versions of an ensemble compared member by member: what differs, and how the same rows look to both.

A member is compared with the one that belongs to it in the other version, see `ensemble.combination`. `PairPlan` finds
from the two manifests what differs, once; the functions on rows then only work on that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stream_scorer.arrays import Bools, Floats, Ints
from stream_scorer.compiled import njit
from stream_scorer.ensemble.combination import (
    Combination,
    coefficients_of,
    matched,
    policy_differs,
    references_of,
    restored,
)
from stream_scorer.ensemble.combine import Scenarios
from stream_scorer.ensemble.manifest import (
    Input,
    Manifest,
    Median,
    MemberSpec,
    Series,
    Stacking,
    TrimmedMean,
    member_key,
)

# Classes of a value: neither missing nor clipped otherwise, missing before preprocessing, clipped otherwise.
CLASSES = ("regular", "missing", "clipped")
# Shifts below this share of a bin are no difference.
_MIN_SHIFT = 0.25


@dataclass(frozen=True, slots=True)
class MemberPlan:
    """What differs in one member of the candidate.

    Attributes:
        index: in the candidate. baseline: in the baseline; None if it has no such member.
        output: whether its scores on the scale of the link can differ. ranked: whether only because of other references
            of the link `rank`.
        weights: its shares of the weight in both versions. coefficients: those of stacking; None for another combiner.
        inputs: of its inputs, those that are prepared differently, with both preparations.
        added, removed: inputs that only the candidate's or only the baseline's member reads.
    """

    name: str
    index: int
    baseline: int | None
    output: bool
    ranked: bool
    weights: tuple[float, float]
    coefficients: tuple[float, float] | None
    inputs: list[tuple[str, Input, Input]]
    added: list[str]
    removed: list[str]


@dataclass(frozen=True, slots=True)
class PairPlan:
    """What differs between two versions.

    Attributes:
        members: the members with a difference in output or weight.
        scenarios: the candidate with one member, its output or its weight as in the baseline.
        subjects: per scenario the place in `members`, and what is as in the baseline: "output", "weight", or
            "member" for both.
        combination: what differs outside of members that both versions have; None if nothing does.
        policy: whether the final calibrator or the threshold of alerts differs; they are part of a `combination`.
    """

    members: list[MemberPlan]
    scenarios: Scenarios
    subjects: list[tuple[int, str]]
    policy: bool
    combination: Combination | None

    @classmethod
    def between(cls, candidate: Manifest, baseline: Manifest) -> PairPlan:
        """The plan for a `candidate` that is compared with a `baseline`."""
        places = matched(candidate, baseline)
        now = np.array([member.weight for member in candidate.members]), coefficients_of(candidate)
        before = restored(candidate, baseline, places)
        members: list[MemberPlan] = []
        swaps: list[Bools] = []
        rows: list[tuple[Floats, ...]] = []
        subjects: list[tuple[int, str]] = []
        for index, member in enumerate(candidate.members):
            place = places.get(index)
            plan = _member(
                index, member, place, None if place is None else baseline.members[place], candidate, baseline
            )
            weighted = any(one[index] != two[index] for one, two in zip(now, before, strict=True))
            parts = ["output"] * plan.output + ["weight"] * weighted + ["member"] * (plan.output and weighted)
            for what in parts:
                swap = np.zeros(len(candidate.members), np.bool_)
                swap[index] = what != "weight"
                swaps.append(swap)
                rows.append(now if what == "output" else _with_one(now, before, index))
                subjects.append((len(members), what))
            if parts:
                members.append(plan)
        shape = (len(subjects), len(candidate.members))
        scenarios = Scenarios(
            np.array(swaps, np.bool_).reshape(shape),
            np.array([weights for weights, _ in rows], np.float64).reshape(shape),
            np.array([coefficients for _, coefficients in rows], np.float64).reshape(shape),
            references_of(candidate, baseline, places),
        )
        combination = Combination.between(candidate, baseline, places)
        return cls(
            members, scenarios, subjects, combination is None and policy_differs(candidate, baseline), combination
        )

    @property
    def equal(self) -> bool:
        """Whether nothing differs that alerts depend on."""
        return not self.members and not self.policy and self.combination is None

    def of_baseline(self, member_scores: Floats, width: int) -> Floats:
        """The baseline's scores ``(n, m')`` in the places of the candidate's `width` members.

        NaN for a member that the baseline does not have. Columns of members that are not in the plan are NaN.
        """
        out = np.full((len(member_scores), width), np.nan)
        for member in self.members:
            if member.baseline is not None:
                out[:, member.index] = member_scores[:, member.baseline]
        return out


class InputComparison:
    """Compares prepared inputs of one or more members.

    A difference is measured in bins of the candidate's reference profile, which have about equal mass: it has no
    unit and does not depend on outliers. Both prepared values are expressed on the scale of the feature by the inverse
    of the other version's preparation.
    """

    def __init__(
        self, features: Sequence[str], profile: dict[str, Series], pairs: Sequence[tuple[str, Input, Input]]
    ) -> None:
        columns = {name: place for place, name in enumerate(features)}
        edges = [profile[name].edges for name, _, _ in pairs]
        self._columns = np.array([columns[name] for name, _, _ in pairs], np.int64)
        self._candidate = np.array([_row(one) for _, one, _ in pairs], np.float64).reshape(len(pairs), 5)
        self._baseline = np.array([_row(two) for _, _, two in pairs], np.float64).reshape(len(pairs), 5)
        self._n_edges = np.array([len(each) for each in edges], np.int64)
        self._edges = np.full((len(pairs), max(map(len, edges), default=0)), np.inf)
        for row, each in enumerate(edges):
            self._edges[row, : len(each)] = each

    def count(self, features: Floats, rows: Ints) -> Ints:
        """``(k, 3, 3) int64`` over the `rows` of `features`: per pair and class of `CLASSES`.

        Number of rows, of rows in another bin, and the total distance in bins; a shift of less than a quarter of a bin
        is none. A value that is missing for one version
        only has the distance of the whole profile.
        """
        if not len(self._columns):
            return np.zeros((0, len(CLASSES), 3), np.int64)
        counts: Ints = _compare(
            features, rows, self._columns, self._candidate, self._baseline, self._edges, self._n_edges
        )
        return counts


class BinnedSums:
    """Sums of values by the bins of features, as in the candidate's reference profile."""

    def __init__(self, features: Sequence[str], profile: dict[str, Series]) -> None:
        edges = [profile[name].edges for name in features]
        self.n_edges = np.array([len(each) for each in edges], np.int64)
        self._edges = np.full((len(edges), max(map(len, edges), default=0)), np.inf)
        for row, each in enumerate(edges):
            self._edges[row, : len(each)] = each

    def bins(self, features: Floats, columns: Ints) -> Ints:
        """``(n, k) int64``: the bins of the `columns` of `features` ``(n, n_features)``; the last one is for NaN."""
        found: Ints = _bins(features, columns, self._edges, self.n_edges)
        return found


def warm_up(manifest: Manifest, features: Floats) -> None:
    """Compile the functions on rows."""
    name = manifest.features[0]
    pairs = [(name, Input(), Input(impute=0.0, scale=2.0))]
    rows, columns = np.arange(len(features)), np.zeros(1, np.int64)
    InputComparison(manifest.features, manifest.reference_profile, pairs).count(features, rows)
    BinnedSums(manifest.features, manifest.reference_profile).bins(features, columns)


def _member(
    index: int,
    member: MemberSpec,
    place: int | None,
    before: MemberSpec | None,
    candidate: Manifest,
    baseline: Manifest,
) -> MemberPlan:
    if before is None:
        return MemberPlan(member.name, index, None, True, False, (_share(member, candidate), 0.0), None, [], [], [])
    old = dict(zip(before.inputs, before.preprocess, strict=True))
    inputs = [
        (name, entry, old[name])
        for name, entry in zip(member.inputs, member.preprocess, strict=True)
        if name in old and entry != old[name]
    ]
    changed = member_key(member) != member_key(before) or member.calibrator != before.calibrator
    ranked = candidate.link == baseline.link == "rank" and member.ranks != before.ranks
    stacked = isinstance(candidate.combiner, Stacking) and isinstance(baseline.combiner, Stacking)
    return MemberPlan(
        member.name,
        index,
        place,
        changed or ranked,
        ranked and not changed,
        (_share(member, candidate), _share(before, baseline)),
        (_coefficient(index, candidate), _coefficient(place or 0, baseline)) if stacked else None,
        inputs,
        [name for name in member.inputs if name not in old],
        [name for name in before.inputs if name not in member.inputs],
    )


def _share(member: MemberSpec, manifest: Manifest) -> float:
    """Its share of the weight, or of the members that count if the size of the weight makes no difference."""
    if isinstance(manifest.combiner, Median | TrimmedMean):
        return (member.weight > 0.0) / sum(each.weight > 0.0 for each in manifest.members)
    return member.weight / sum(each.weight for each in manifest.members)


def _coefficient(index: int, manifest: Manifest) -> float:
    """The coefficient of stacking; a member without weight is not used."""
    return float(coefficients_of(manifest)[index]) if manifest.members[index].weight > 0.0 else 0.0


def _with_one(now: tuple[Floats, ...], before: tuple[Floats, ...], index: int) -> tuple[Floats, ...]:
    """The arrays `now`, each with the value of one member as `before`."""
    changed = tuple(each.copy() for each in now)
    for each, value in zip(changed, before, strict=True):
        each[index] = value[index]
    return changed


def _row(entry: Input) -> tuple[float, float, float, float, float]:
    return (
        math.nan if entry.impute is None else entry.impute,
        -math.inf if entry.low is None else entry.low,
        math.inf if entry.high is None else entry.high,
        entry.offset,
        entry.scale,
    )


@njit(cache=True, nogil=True, fastmath=False)
def _bin(x, edges, n):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    if math.isnan(x):
        return n + 1
    found = 0
    while found < n and edges[found] <= x:
        found += 1
    return found


@njit(cache=True, nogil=True, fastmath=False)
def _width(place, edges, n):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Width of a bin, or of the next one if it has no limit. With a single edge, as of a flag, its distance from 0."""
    if n < 2:
        return abs(edges[0]) if n else 0.0
    upper = min(max(place, 1), n - 1)
    return edges[upper] - edges[upper - 1]


@njit(cache=True, nogil=True, fastmath=False)
def _bins(features, columns, edges, n_edges):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    out = np.empty((features.shape[0], columns.shape[0]), np.int64)
    for i in range(features.shape[0]):
        for k in range(columns.shape[0]):
            c = columns[k]
            out[i, k] = _bin(features[i, c], edges[c], n_edges[c])
    return out


@njit(cache=True, nogil=True, fastmath=False)
def _compare(features, rows, columns, candidate, baseline, edges, n_edges):  # type: ignore[no-untyped-def]  # pragma: no cover
    out = np.zeros((columns.shape[0], 3, 3), np.int64)
    for k in range(columns.shape[0]):
        same_scale = candidate[k, 3] == baseline[k, 3] and candidate[k, 4] == baseline[k, 4]
        for i in rows:
            x = features[i, columns[k]]
            kind = 0
            one = two = x
            if math.isnan(x):
                kind, one, two = 1, candidate[k, 0], baseline[k, 0]
            # With the value as the first argument, both calls keep NaN.
            one = min(max(one, candidate[k, 1]), candidate[k, 2])
            two = min(max(two, baseline[k, 1]), baseline[k, 2])
            if kind == 0 and one != two:
                kind = 2
            if not same_scale:
                one = (one - candidate[k, 3]) / candidate[k, 4] * baseline[k, 4] + baseline[k, 3]
            out[k, kind, 0] += 1
            if math.isnan(one) != math.isnan(two):
                out[k, kind, 1] += 1
                out[k, kind, 2] += n_edges[k] + 1
                continue
            place = _bin(two, edges[k], n_edges[k])
            distance = abs(_bin(one, edges[k], n_edges[k]) - place)
            # A whole number lies on an edge: there, the smallest shift leads to another bin.
            if distance == 0 or abs(one - two) < _MIN_SHIFT * _width(place, edges[k], n_edges[k]):
                continue
            out[k, kind, 1] += 1
            out[k, kind, 2] += distance
    return out
