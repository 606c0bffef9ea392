"""additivity: contributions are what they claim to be, for every combiner, link and hole in the members.

10,000 generated cases: one to seven members, some without weight, some scores missing, tied, at 0 or 1. Each is held to
plain Python that shares no code with the combiner: z by `statistics.median` and sorted lists, contributions by the
formula of Shapley over `itertools.combinations`. They add up to z, a zero weight brings 0, a permutation of the members
permutes them, rows do not depend on their batch, and leaving a member out is scoring without it.

`N` is the number of cases.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from msgspec import UNSET

from proofs.kit import Context, Result
from stream_scorer.ensemble.combine import Combiner
from stream_scorer.ensemble.manifest import (
    LINKS,
    Calibrator,
    CombinerSpec,
    IncompleteCalibrator,
    Link,
    Median,
    NoCalibrator,
    Platt,
    Stacking,
    TrimmedMean,
    WeightedMean,
)

N = 10_000
MAX_MEMBERS, ROWS = 7, 4
TOLERANCE = 1e-9
_CLIP = 1e-6


@dataclass(frozen=True, slots=True)
class Vote:
    """One member of a case."""

    weight: float
    baseline: float
    ranks: list[float] = field(default_factory=list)
    calibrator: Calibrator = field(default_factory=NoCalibrator)


@dataclass(frozen=True, slots=True)
class Case:
    """Members, how they are combined, and ``(n, m)`` scores."""

    votes: list[Vote]
    how: CombinerSpec
    link: Link
    final: NoCalibrator | Platt
    quorum: float
    raw: np.ndarray
    incomplete: IncompleteCalibrator = UNSET

    def combiner(self) -> Combiner:
        """What is tested."""
        return Combiner(self.votes, self.how, self.link, self.final, self.quorum, self.incomplete)


def run(context: Context) -> Result:
    """See the module."""
    result = Result()
    n = context.n or N
    if context.broken:
        _break()
    rng = np.random.default_rng(context.seed)
    worst: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for number in range(n):
        case = make_case(rng)
        kinds[f"{type(case.how).__name__} of {case.link}"] += 1
        if isinstance(case.incomplete, Platt):
            kinds["incomplete_calibrator"] += int(case.combiner().incomplete(case.raw).sum())
        kinds["missing"] += int(np.isnan(case.raw).sum())
        kinds["zero_weights"] += sum(vote.weight == 0.0 for vote in case.votes)
        for name, error in errors(case, rng).items():
            worst[name] = max(worst[name], error)  # type: ignore[assignment]
        if number % 2_000 == 1_999:
            context.say(f"{number + 1:,} cases")
    result.figures |= {"cases": n} | dict(kinds) | {f"largest_error_{name}": error for name, error in worst.items()}
    for name, error in worst.items():
        result.check(f"{name} within {TOLERANCE:g}", error <= TOLERANCE)
    for name in ("WeightedMean of rank", "Median of logit", "TrimmedMean of probability", "Stacking of logit"):
        result.at_least(name, kinds[name], max(n // 100, 1))
    result.at_least("incomplete_calibrator", kinds["incomplete_calibrator"], max(n // 100, 1))
    return result


def make_case(rng: np.random.Generator) -> Case:
    """A random case; every fifth score is missing in most, and in some all of a row."""
    m = int(rng.integers(1, MAX_MEMBERS + 1))
    link: Link = LINKS[rng.integers(len(LINKS))]
    hows: list[CombinerSpec] = [WeightedMean(), Median(), TrimmedMean(float(rng.choice([0.0, 0.1, 0.2, 1 / 3, 0.49])))]
    if link == "logit":
        hows.append(Stacking(float(rng.normal()), rng.normal(size=m).tolist()))
    weights = np.where(rng.random(m) < 0.2, 0.0, rng.lognormal(size=m))
    weights[rng.integers(m)] = 1.0
    votes = [
        Vote(
            float(weight),
            float(rng.normal(0, 3) if link == "logit" else rng.random()),
            sorted(rng.choice([0.1, 0.2, 0.3, 0.7, float(rng.random())], 9).tolist()) if link == "rank" else [],
            Platt(float(rng.uniform(0.2, 3)), float(rng.normal())) if rng.random() < 0.3 else NoCalibrator(),
        )
        for weight in weights
    ]
    raw = rng.random((ROWS, m))
    odd = rng.random(raw.shape)
    raw[odd < 0.15] = rng.choice([0.0, 1.0, 0.2, 1e-300], int((odd < 0.15).sum()))
    raw[rng.random(raw.shape) < rng.choice([0.0, 0.2, 0.6])] = np.nan
    final = Platt(1.3, 0.4) if rng.random() < 0.5 else NoCalibrator()
    how = hows[rng.integers(len(hows))]
    incomplete = Platt(2.5, -0.7) if isinstance(how, Stacking) and rng.random() < 0.7 else UNSET
    return Case(votes, how, link, final, float(rng.choice([0.0, 0.0, 0.5])), raw, incomplete)


def errors(case: Case, rng: np.random.Generator) -> dict[str, float]:
    """How far the combiner is from what it should answer, by property; infinite where one side has no value."""
    combiner, m = case.combiner(), len(case.votes)
    scores, shares, contributions, base, z, score, coverage = combiner.combine(case.raw)
    left = combiner.left_out(scores, score)
    wanted = [_row(case, row) for row in case.raw]
    order = rng.permutation(m)
    how = case.how
    if isinstance(how, Stacking):
        how = Stacking(how.intercept, [how.coefficients[i] for i in order])
    turned = replace(case, votes=[case.votes[i] for i in order], how=how, raw=case.raw[:, order])
    alone = [combiner.combine(row[None, :]) for row in case.raw]
    silent = np.isnan(case.raw) | np.array([vote.weight == 0.0 for vote in case.votes])
    gaps = {
        "z": _gap(z, [w.z for w in wanted]),
        "base": _gap(base, [w.base for w in wanted]),
        "score": _gap(score, [w.score for w in wanted]),
        "coverage": _gap(coverage, [w.coverage for w in wanted]),
        "shapley": _gap(contributions, [w.contributions for w in wanted]),
        "sum": _gap((base + contributions.sum(axis=1)), z),
        "permuted": _gap(turned.combiner().combine(turned.raw)[2], contributions[:, order]),
        "silent_members": float(np.abs(contributions[silent]).max(initial=0.0) + np.abs(shares[silent]).max(initial=0)),
        "batch": 0.0 if all(np.array_equal(a[2][0], c) for a, c in zip(alone, contributions, strict=True)) else 1.0,
        "left_out": _gap(left, _left_out(case, score)),
    }
    return {name: float(gap) for name, gap in gaps.items()}


@dataclass(frozen=True, slots=True)
class _Wanted:
    z: float
    base: float
    score: float
    coverage: float
    contributions: list[float]


def _row(case: Case, raw: np.ndarray) -> _Wanted:
    """One row by the definitions."""
    m = len(case.votes)
    there = [i for i in range(m) if case.votes[i].weight > 0.0 and not math.isnan(raw[i])]
    able = [i for i in range(m) if case.votes[i].weight > 0.0]
    coverage = sum(case.votes[i].weight for i in there) / sum(v.weight for v in case.votes)
    nothing = [0.0] * m
    if not there:
        return _Wanted(math.nan, math.nan, math.nan, 0.0, nothing)
    linked = {i: _link(case, i, float(raw[i])) for i in there}

    def worth(coalition: Sequence[int]) -> float:
        values = {i: linked[i] if i in coalition else case.votes[i].baseline for i in there}
        return _join(case, values, full=there == able)

    contributions = list(nothing)
    for i in there:
        others = [j for j in there if j != i]
        for size in range(len(others) + 1):
            chance = 1.0 / (len(there) * math.comb(len(others), size))
            for some in itertools.combinations(others, size):
                contributions[i] += chance * (worth([*some, i]) - worth(some))
    if coverage < case.quorum - 1e-12:
        return _Wanted(math.nan, math.nan, math.nan, coverage, contributions)
    z = worth(there)
    return _Wanted(z, worth([]), _score(case, z, full=there == able), coverage, contributions)


def _join(case: Case, values: dict[int, float], *, full: bool) -> float:
    how = case.how
    if isinstance(how, Median):
        return statistics.median(values.values())
    if isinstance(how, TrimmedMean):
        cut = math.floor(how.share * len(values) + 1e-9)
        return statistics.fmean(sorted(values.values())[cut : len(values) - cut])
    if isinstance(how, Stacking) and full:
        return how.intercept + sum(how.coefficients[i] * value for i, value in values.items())
    total = sum(case.votes[i].weight for i in values)
    return sum(case.votes[i].weight / total * value for i, value in values.items())


def _platt(p: float, calibrator: Calibrator) -> float:
    if not isinstance(calibrator, Platt):
        return p
    p = min(max(p, _CLIP), 1 - _CLIP)
    return 1 / (1 + math.exp(-(calibrator.slope * math.log(p / (1 - p)) + calibrator.intercept)))


def _link(case: Case, i: int, raw: float) -> float:
    p = _platt(raw, case.votes[i].calibrator)
    if case.link == "rank":
        ranks = case.votes[i].ranks
        return sum(1.0 if r < p else 0.5 if r == p else 0.0 for r in ranks) / len(ranks)
    p = min(max(p, _CLIP), 1 - _CLIP)
    return math.log(p / (1 - p)) if case.link == "logit" else p


def _score(case: Case, z: float, *, full: bool) -> float:
    stacked = isinstance(case.how, Stacking)
    final = case.incomplete if stacked and not full and isinstance(case.incomplete, Platt) else case.final
    return _platt(1 / (1 + math.exp(-z)) if case.link == "logit" else min(max(z, 0.0), 1.0), final)


def _left_out(case: Case, score: np.ndarray) -> np.ndarray:
    out = np.empty(case.raw.shape)
    free = replace(case, quorum=0.0)
    for (row, i), raw in np.ndenumerate(case.raw):
        without = case.raw[row].copy()
        without[i] = np.nan
        out[row, i] = score[row] if math.isnan(score[row]) or math.isnan(raw) else _row(free, without).score
    return out


def _gap(got: np.ndarray, wanted: Sequence[object] | np.ndarray) -> float:
    a, b = np.asarray(got, float), np.asarray(wanted, float)
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return math.inf
    return float(np.nanmax(np.abs(a - b), initial=0.0)) if a.size else 0.0


def _break() -> None:
    """What is not linear is shared out evenly: it still adds up to z."""
    combine: Callable[..., tuple[np.ndarray, ...]] = Combiner.combine

    def even(self: Combiner, raw: np.ndarray) -> tuple[np.ndarray, ...]:
        scores, shares, contributions, base, z, score, coverage = combine(self, raw)
        there = shares > 0
        contributions = np.where(there, ((z - base) / np.maximum(there.sum(axis=1), 1))[:, None], 0.0)
        return scores, shares, contributions, base, z, score, coverage

    Combiner.combine = even  # type: ignore[assignment, method-assign]
