"""What differs between two versions besides the members that both have: other members, combiner, link, policy.

Members of two versions belong together if they are the same file with the same inputs and preprocessing, whatever their
names, or else if they have the same name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from stream_scorer.arrays import Floats
from stream_scorer.ensemble.combine import References, Scenarios, link_table
from stream_scorer.ensemble.manifest import (
    Manifest,
    Median,
    Stacking,
    TrimmedMean,
    WeightedMean,
    member_key,
)

# Weights closer than this are the same; normalised weights are rounded sums.
_SAME_WEIGHT = 1e-6
_COMBINERS = {WeightedMean: "weighted mean", Median: "median", TrimmedMean: "trimmed mean", Stacking: "stacking"}


@dataclass(frozen=True, slots=True)
class Combination:
    """The difference of two versions that is in no member which both have.

    Attributes:
        changes: what differs, in words.
        places: for each member of both versions, its index in the candidate and in the baseline.
        scenario: the baseline with outputs and weights of these members as in the candidate.
    """

    changes: list[str]
    places: Mapping[int, int]
    scenario: Scenarios

    @classmethod
    def between(cls, candidate: Manifest, baseline: Manifest, places: Mapping[int, int]) -> Combination | None:
        """The difference of a `candidate` from a `baseline`; None if there is none."""
        changes = _changes(candidate, baseline, places)
        if not changes:
            return None
        back = {there: here for here, there in places.items()}
        weights, coefficients = restored(baseline, candidate, back)
        swap = np.zeros((1, len(weights)), np.bool_)
        swap[0, list(back)] = True
        references = references_of(baseline, candidate, back)
        return cls(changes, places, Scenarios(swap, weights[None, :], coefficients[None, :], references))

    def of_candidate(self, member_scores: Floats) -> Floats:
        """The candidate's scores ``(n, m)`` in the places of the baseline's members, NaN for all others."""
        out = np.full((len(member_scores), self.scenario.swap.shape[1]), np.nan)
        for here, there in self.places.items():
            out[:, there] = member_scores[:, here]
        return out


def matched(candidate: Manifest, baseline: Manifest) -> dict[int, int]:
    """For each member of both versions, its index in the `candidate` and in the `baseline`."""
    mine = [(member_key(member), member.name) for member in candidate.members]
    theirs = [(member_key(member), member.name) for member in baseline.members]
    found: dict[int, int] = {}
    for part in (slice(0, 2), slice(0, 1), slice(1, 2)):  # same key and name, same key, same name
        free = {each[part]: place for place, each in reversed(list(enumerate(theirs))) if place not in found.values()}
        for index, each in enumerate(mine):
            if index not in found and each[part] in free:
                found[index] = free.pop(each[part])
    return dict(sorted(found.items()))


def references_of(version: Manifest, like: Manifest, places: Mapping[int, int]) -> References | None:
    """The references of the scores of `like` in the places of the members of `version`; None if they are the same."""
    if version.link != "rank" or like.link != "rank":
        return None
    own = [member.ranks for member in version.members]
    found = [like.members[places[index]].ranks if index in places else ranks for index, ranks in enumerate(own)]
    differ = [one != two for one, two in zip(own, found, strict=True)]
    return References(link_table("rank", found), np.array(differ)) if any(differ) else None


def coefficients_of(manifest: Manifest) -> Floats:
    """``(m,)``: the coefficients of stacking; 0 for another combiner."""
    how = manifest.combiner
    return np.array(how.coefficients if isinstance(how, Stacking) else [0.0] * len(manifest.members))


def restored(version: Manifest, like: Manifest, places: Mapping[int, int]) -> tuple[Floats, Floats]:
    """Weights and coefficients ``(m,)`` of a version, each as in the version `like`.

    Weights of a mean are relative, and versions may normalise them differently: a member's weight has changed if its
    ratio to its former weight differs from the median ratio of all members. For other combiners it only matters whether
    there is a weight. `places` has the index in `like` by the index in `version`.
    """
    weights = np.array([member.weight for member in version.members])
    coefficients, theirs = coefficients_of(version), coefficients_of(like)
    if type(version.combiner) is not type(like.combiner):
        return weights, coefficients
    kept = list(places)
    before = np.array([like.members[place].weight for place in places.values()])
    now = weights[kept]
    changed = (before > 0.0) != (now > 0.0)
    if isinstance(version.combiner, WeightedMean):
        both = (before > 0.0) & (now > 0.0)
        ratio = np.median(now[both] / before[both]) if both.any() else now.sum() / max(before.sum(), _SAME_WEIGHT)
        before = before * float(ratio)
        changed = np.abs(before - now) > _SAME_WEIGHT * now.sum()
    weights[kept] = np.where(changed, before, now)
    coefficients[kept] = theirs[list(places.values())]
    return weights, coefficients


def _changes(candidate: Manifest, baseline: Manifest, places: Mapping[int, int]) -> list[str]:
    gone = [m for place, m in enumerate(baseline.members) if place not in places.values()]
    found = [f"member {member.name} was removed" for member in gone if member.weight > 0.0]
    found += _of_combiner(candidate, baseline)
    if candidate.link != baseline.link:
        found.append(f"the link changed from {baseline.link} to {candidate.link}")
    if not found:
        return []
    new = [m for index, m in enumerate(candidate.members) if index not in places]
    found += [f"member {member.name} was added" for member in new if member.weight > 0.0]
    if policy_differs(candidate, baseline):
        found.append("the final calibrator or thresholds differ")
    return found


def policy_differs(candidate: Manifest, baseline: Manifest) -> bool:
    """Whether the final calibrators or the thresholds of alerts differ."""
    return (
        candidate.final_calibrator != baseline.final_calibrator
        or candidate.incomplete_calibrator != baseline.incomplete_calibrator
        or candidate.thresholds.review != baseline.thresholds.review
    )


def _of_combiner(candidate: Manifest, baseline: Manifest) -> Iterator[str]:
    now, before = candidate.combiner, baseline.combiner
    if type(now) is not type(before):
        yield f"the combiner changed from {_COMBINERS[type(before)]} to {_COMBINERS[type(now)]}"
    elif isinstance(now, TrimmedMean) and isinstance(before, TrimmedMean) and now != before:
        yield f"the trimmed share changed from {before.share:.1%} to {now.share:.1%}"
    elif isinstance(now, Stacking) and isinstance(before, Stacking) and now.intercept != before.intercept:
        yield f"the intercept of stacking changed from {before.intercept:.4g} to {now.intercept:.4g}"
