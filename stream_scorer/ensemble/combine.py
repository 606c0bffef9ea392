"""Combiners: from members' probabilities to z, score and contributions that sum exactly to z.

Order of computation, each step per value and members always in manifest order:
member -> calibrator -> clip to [1e-6, 1 - 1e-6] -> link -> combine the present members -> z -> inverse link -> g
-> score.

A row is incomplete if the combiner is stacking and a member is missing, so that z is the weighted mean. g is fitted to
the z of stacking; incomplete rows have a calibrator of their own in its place, if the manifest has one.

A member's contribution is its Shapley value in this game: members of a coalition have their linked score, all others
their baseline, which is the mean of their linked scores over the reference rows. For linear combiners (weighted mean,
stacking) the contribution is ``w (l - baseline)``. For median and trimmed mean all 2^k coalitions of the k present
members are enumerated. Missing members and members without weight are not part of the game.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np

from stream_scorer.arrays import Bools, Floats, Int8s, Ints
from stream_scorer.compiled import njit
from stream_scorer.ensemble.calibrate import CalibratorTable, calibrate_one
from stream_scorer.ensemble.links import clipped, logit_of, rank_of, sigmoid_of
from stream_scorer.ensemble.manifest import (
    LINKS,
    Calibrator,
    CombinerSpec,
    IncompleteCalibrator,
    Link,
    Manifest,
    Median,
    NoCalibrator,
    Platt,
    Stacking,
    TrimmedMean,
)
from stream_scorer.records import DECISIONS, Decision

# 0.05 + 0.35 is below a quorum of 0.4 by 3e-17; a quorum is not meant to that precision.
QUORUM_SLACK = 1e-12
# The same for the number of values that trimming removes.
_TRIM_SLACK = 1e-9
_MEAN, _MEDIAN, _TRIMMED, _STACKING = range(4)
_ENUMERATED = (_MEDIAN, _TRIMMED)
_LOGIT, _PROBABILITY, _RANK = range(len(LINKS))
# Where counts begin. With the literal 0, numba compiles the functions that they are passed to twice.
_ZERO = np.int64(0)


class Voter(Protocol):
    """What a combiner needs from a member; implemented by `MemberSpec`."""

    @property
    def calibrator(self) -> Calibrator: ...

    @property
    def weight(self) -> float: ...

    @property
    def baseline(self) -> float: ...

    @property
    def ranks(self) -> Sequence[float]: ...


# Link, the ascending scores on the reference rows of all members, and where those of each member begin.
LinkTable = tuple[int, Floats, Ints]


def link_table(link: Link, ranks: Sequence[Sequence[float]]) -> LinkTable:
    """A link packed for the compiled loops; `ranks` are the references of each member."""
    starts = np.cumsum([0] + [len(each) for each in ranks]).astype(np.int64)
    return LINKS.index(link), np.array([value for each in ranks for value in each], np.float64), starts


@dataclass(frozen=True, slots=True)
class References:
    """For the link `rank`: the references of the scores that take the places of others.

    Attributes:
        link: with these references. differ: ``(m,) bool``, the members that have others themselves.
    """

    link: LinkTable
    differ: Bools


@dataclass(frozen=True, slots=True)
class Scenarios:
    """Hypothetical variants of an ensemble with m members.

    Attributes:
        swap: ``(s, m) bool``, the members whose scores are replaced.
        weights, coefficients: ``(s, m)``, not necessarily normalised; coefficients count for stacking only.
        references: of the scores that replace others; None if they have the same ones.
    """

    swap: Bools
    weights: Floats
    coefficients: Floats
    references: References | None = None


class Combiner:
    """A combiner packed for the compiled loops; arguments as in `Manifest`."""

    def __init__(
        self,
        members: Sequence[Voter],
        how: CombinerSpec,
        link: Link,
        final: NoCalibrator | Platt,
        quorum: float,
        incomplete: IncompleteCalibrator = msgspec.UNSET,
    ) -> None:
        kinds: dict[type, int] = {Median: _MEDIAN, TrimmedMean: _TRIMMED, Stacking: _STACKING}
        coefficients = how.coefficients if isinstance(how, Stacking) else [0.0] * len(members)
        self._calibrators = CalibratorTable([member.calibrator for member in members])
        # The second one is for incomplete rows.
        finals = CalibratorTable([final, final if isinstance(incomplete, msgspec.UnsetType) else incomplete])
        self._final = (finals.kinds, finals.starts, finals.first, finals.second)
        self._weights = np.array([member.weight for member in members], np.float64)
        self._baselines = np.array([member.baseline for member in members], np.float64)
        self._quorum = quorum
        self._link = link_table(link, [member.ranks for member in members])
        self._same = np.zeros(len(members), np.bool_)
        self._how = (
            kinds.get(type(how), _MEAN),
            how.share if isinstance(how, TrimmedMean) else 0.0,
            how.intercept if isinstance(how, Stacking) else 0.0,
            np.array(coefficients, np.float64),
        )

    @classmethod
    def of(cls, manifest: Manifest) -> Combiner:
        """The combiner of `manifest`."""
        m = manifest
        return cls(m.members, m.combiner, m.link, m.final_calibrator, m.quorum, m.incomplete_calibrator)

    def combine(self, raw: Floats) -> tuple[Floats, Floats, Floats, Floats, Floats, Floats, Floats]:
        """Combine the members' uncalibrated probabilities ``(n, m)``, NaN where missing.

        Returns, in the order of the fields of `Scored`: member scores, weights, contributions (each ``(n, m)``), base,
        z, score, coverage (each ``(n,)``).
        """
        c = self._calibrators
        packed: tuple[Floats, Floats, Floats, Floats, Floats, Floats, Floats] = _combine(
            raw,
            (c.kinds, c.starts, c.first, c.second),
            self._final,
            self._weights,
            self._baselines,
            self._quorum,
            self._link,
            self._how,
        )
        return packed

    def linked(self, member_scores: Floats, references: References | None = None) -> Floats:
        """``(n, m)``: calibrated scores on the scale of the link, by `references` if given; NaN stays NaN."""
        values: Floats = _linked(member_scores, self._link if references is None else references.link)
        return values

    def left_out(self, member_scores: Floats, score: Floats) -> Floats:
        """``(n, m)``: the final score with each member left out, as if it were missing.

        For a member that is missing, this is the served score. NaN where the served score is NaN or no member remains.
        """
        scores: Floats = _left_out(member_scores, score, self._final, self._weights, self._link, self._how)
        return scores

    def what_if(self, member_scores: Floats, theirs: Floats, scenarios: Scenarios) -> Floats:
        """``(n, s)``: the final score in each scenario, NaN where no member remains. The quorum is not applied.

        Args:
            member_scores, theirs: ``(n, m)`` calibrated scores of this version's members, and of the members that may
                take their places.
        """
        kind, share, intercept, _ = self._how
        rule = kind, share, intercept
        swap, weights, coefficients = scenarios.swap, scenarios.weights, scenarios.coefficients
        own = scenarios.references or References(self._link, self._same)
        links = self._link, own.link, own.differ
        scores: Floats = _what_if(member_scores, theirs, swap, weights, coefficients, self._final, links, rule)
        return scores

    def incomplete(self, member_scores: Floats) -> Bools:
        """``(n,) bool``: the incomplete rows of calibrated scores ``(n, m)``; none if the combiner is not stacking."""
        if self._how[0] != _STACKING:
            return np.zeros(len(member_scores), np.bool_)
        return np.asarray(np.isnan(member_scores[:, self._weights > 0.0]).any(axis=1), np.bool_)

    def finish(self, z: Floats, incomplete: Bools) -> Floats:
        """``(n,)``: the final score of each z; NaN stays NaN.

        `incomplete` ``(n,)``: as the method `incomplete` returns it, of the version that z comes from.
        """
        scores: Floats = _finish(z, incomplete, self._link[0], self._final)
        return scores


def decide(score: Floats, review: Floats | float, block: Floats | float, fallback: Decision) -> Int8s:
    """``(n,) int8``: index into `records.DECISIONS` per score; `fallback` for NaN (no quorum)."""
    decision = (score >= review).astype(np.int8)
    decision += score >= block
    decision[np.isnan(score)] = DECISIONS.index(fallback)
    return decision


@njit(cache=True, nogil=True, fastmath=False)
def _incomplete(kind, k, weighted):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    return kind == _STACKING and k < weighted


@njit(cache=True, nogil=True, fastmath=False)
def _final_score(z, incomplete, link, final):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    p = sigmoid_of(z) if link == _LOGIT else min(max(z, 0.0), 1.0)
    at = 1 if incomplete else 0
    return calibrate_one(p, final[0][at], final[1][at], final[1][at + 1], final[2], final[3])


@njit(cache=True, nogil=True, fastmath=False)
def _link_one(p, j, link):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    if link[0] == _LOGIT:
        return logit_of(p)
    if link[0] == _PROBABILITY:
        return clipped(p)
    return rank_of(p, link[1], link[2][j], link[2][j + 1])


@njit(cache=True, nogil=True, fastmath=False)
def _linked(scores, link):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    out = np.empty(scores.shape, np.float64)
    for i in range(scores.shape[0]):
        for j in range(scores.shape[1]):
            out[i, j] = _link_one(scores[i, j], j, link)
    return out


@njit(cache=True, nogil=True, fastmath=False)
def _middle(values, k, kind, share, ordered):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Median or trimmed mean of ``values[:k]``; `ordered` is a scratch buffer of at least k values."""
    for a in range(k):
        place = a
        while place > 0 and ordered[place - 1] > values[a]:
            ordered[place] = ordered[place - 1]
            place -= 1
        ordered[place] = values[a]
    if kind == _MEDIAN:
        return 0.5 * (ordered[(k - 1) // 2] + ordered[k // 2])
    cut = int(share * k + _TRIM_SLACK)
    total = 0.0
    for a in range(cut, k - cut):
        total += ordered[a]
    return total / (k - 2 * cut)


@njit(cache=True, nogil=True, fastmath=False)
def _combined(values, used, k, weighted, weights, coefficients, rule, ordered):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The combined value of the `k` present members ``used[:k]``, ``values[:k]`` on the scale of the link.

    `weighted`: the number of members with a weight.
    """
    kind, share, intercept = rule
    if kind in _ENUMERATED:
        return _middle(values, k, kind, share, ordered)
    stacked = kind == _STACKING and k == weighted
    present = 0.0
    for a in range(k):
        present += weights[used[a]]
    z = intercept if stacked else 0.0
    for a in range(k):
        j = used[a]
        z += (coefficients[j] if stacked else weights[j] / present) * values[a]
    return z


@njit(cache=True, nogil=True, fastmath=False)
def _shapley(values, baselines, k, kind, share, out):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    """Write the Shapley values of ``values[:k]`` against ``baselines[:k]`` to `out`.

    Returns the worth of the empty and of the full coalition.
    """
    worth = np.empty(1 << k, np.float64)
    mixed, ordered = np.empty(k, np.float64), np.empty(k, np.float64)
    for coalition in range(1 << k):
        for a in range(k):
            mixed[a] = values[a] if coalition >> a & 1 else baselines[a]
        worth[coalition] = _middle(mixed, k, kind, share, ordered)
    # The probability of a coalition by its size: 1 / (k * (k - 1 choose size)).
    probability = np.empty(k, np.float64)
    probability[0] = 1.0 / k
    for size in range(1, k):
        probability[size] = probability[size - 1] * size / (k - size)
    for a in range(k):
        out[a] = 0.0
        for coalition in range(1 << k):
            if coalition >> a & 1 == 0:
                size = 0
                for b in range(k):
                    size += coalition >> b & 1
                out[a] += probability[size] * (worth[coalition | 1 << a] - worth[coalition])
    return worth[0], worth[(1 << k) - 1]


@njit(cache=True, nogil=True, fastmath=False)
def _combine(raw, calibrators, final, weights, baselines, quorum, link, how):  # type: ignore[no-untyped-def]  # pragma: no cover
    rows, members = raw.shape
    kinds, starts, first, second = calibrators
    kind, share, intercept, coefficients = how
    scores = np.empty((rows, members), np.float64)
    shares = np.zeros((rows, members), np.float64)
    contributions = np.zeros((rows, members), np.float64)
    base = np.empty(rows, np.float64)
    z = np.empty(rows, np.float64)
    score = np.empty(rows, np.float64)
    coverage = np.empty(rows, np.float64)
    values, centers = np.empty(members, np.float64), np.empty(members, np.float64)
    shapley, indices = np.empty(members, np.float64), np.empty(members, np.int64)
    total, weighted = 0.0, 0
    for j in range(members):
        total += weights[j]
        weighted += weights[j] > 0.0
    for i in range(rows):
        present, k = 0.0, _ZERO
        for j in range(members):
            p = calibrate_one(raw[i, j], kinds[j], starts[j], starts[j + 1], first, second)
            scores[i, j] = p
            if not math.isnan(p) and weights[j] > 0.0:
                present += weights[j]
                values[k], centers[k], indices[k] = _link_one(p, j, link), baselines[j], j
                k += 1
        coverage[i] = present / total
        stacked = kind == _STACKING and k == weighted
        row_base = row_z = intercept if stacked else 0.0
        for a in range(k):
            j = indices[a]
            shares[i, j] = weights[j] / present
            if kind in _ENUMERATED:
                continue
            factor = coefficients[j] if stacked else shares[i, j]
            contributions[i, j] = factor * (values[a] - centers[a])
            row_base += factor * centers[a]
            row_z += factor * values[a]
        if k > 0 and kind in _ENUMERATED:
            row_base, row_z = _shapley(values, centers, k, kind, share, shapley)
            for a in range(k):
                contributions[i, indices[a]] = shapley[a]
        if k == 0 or coverage[i] < quorum - QUORUM_SLACK:
            base[i] = z[i] = score[i] = math.nan
        else:
            base[i] = row_base
            z[i] = row_z
            score[i] = _final_score(row_z, _incomplete(kind, k, weighted), link[0], final)
    return scores, shares, contributions, base, z, score, coverage


@njit(cache=True, nogil=True, fastmath=False)
def _left_out(member_scores, score, final, weights, link, how):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    rows, members = member_scores.shape
    kind, share, intercept, coefficients = how
    rule = kind, share, intercept
    out = np.empty((rows, members), np.float64)
    linked = np.empty(members, np.float64)
    values, ordered, used = np.empty(members), np.empty(members), np.empty(members, np.int64)
    weighted = _ZERO
    for j in range(members):
        weighted += weights[j] > 0.0
    for i in range(rows):
        for j in range(members):
            linked[j] = _link_one(member_scores[i, j], j, link)
        for left in range(members):
            if math.isnan(score[i]) or math.isnan(member_scores[i, left]):
                out[i, left] = score[i]
                continue
            k = _ZERO
            for j in range(members):
                if j != left and weights[j] > 0.0 and not math.isnan(linked[j]):
                    values[k], used[k] = linked[j], j
                    k += 1
            if k == 0:
                out[i, left] = math.nan
                continue
            z = _combined(values, used, k, weighted, weights, coefficients, rule, ordered)
            out[i, left] = _final_score(z, _incomplete(kind, k, weighted), link[0], final)
    return out


@njit(cache=True, nogil=True, fastmath=False)
def _what_if(member_scores, theirs, swap, weights, coefficients, final, links, rule):  # type: ignore[no-untyped-def]  # pragma: no cover
    link, their_link, differ = links
    rows, members = member_scores.shape
    out = np.empty((rows, swap.shape[0]), np.float64)
    mine, other = np.empty(members, np.float64), np.empty(members, np.float64)
    values, ordered, used = np.empty(members), np.empty(members), np.empty(members, np.int64)
    for i in range(rows):
        for j in range(members):
            mine[j] = _link_one(member_scores[i, j], j, link)
            # A link costs a logarithm, and most members have the same score in both versions.
            same = theirs[i, j] == member_scores[i, j] and not differ[j]
            other[j] = mine[j] if same else _link_one(theirs[i, j], j, their_link)
        for s in range(swap.shape[0]):
            k, weighted = _ZERO, _ZERO
            for j in range(members):
                value = other[j] if swap[s, j] else mine[j]
                weighted += weights[s, j] > 0.0
                if weights[s, j] > 0.0 and not math.isnan(value):
                    values[k], used[k] = value, j
                    k += 1
            if k == 0:
                out[i, s] = math.nan
                continue
            z = _combined(values, used, k, weighted, weights[s], coefficients[s], rule, ordered)
            out[i, s] = _final_score(z, _incomplete(rule[0], k, weighted), link[0], final)
    return out


@njit(cache=True, nogil=True, fastmath=False)
def _finish(z, incomplete, link, final):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled
    out = np.empty(len(z), np.float64)
    for i in range(len(z)):
        out[i] = math.nan if math.isnan(z[i]) else _final_score(z[i], incomplete[i], link, final)
    return out
