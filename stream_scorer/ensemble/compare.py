"""The differences between two versions of an ensemble: members, weights, thresholds, and scores on sample rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.manifest import MemberSpec

# The parts of a member that are compared, in the order of computation.
_PARTS = ("format", "inputs", "preprocess_sha256", "sha256", "calibrator")
_NAMES = {"sha256": "model", "preprocess_sha256": "preprocess"}


@dataclass(frozen=True, slots=True)
class MemberChange:
    """One member in two versions. `changed` lists the parts that differ, or ``new`` or ``gone``; empty if none.

    Weights are shares of the total. `moved` is the mean absolute difference of the calibrated score on the rows of both
    self-tests. It is NaN if the member is in one version only or the versions read different features.
    """

    name: str
    changed: list[str]
    weight_before: float
    weight_after: float
    moved: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two versions. `facts` lists other differences as ``name: (before, after)``; `moved` is of the final score."""

    members: list[MemberChange]
    facts: dict[str, tuple[str, str]]
    moved: float


def compare(before: Ensemble, after: Ensemble) -> Comparison:
    """The changes from `before` to `after`."""
    old, new = before.manifest, after.manifest
    facts = {
        name: (str(one), str(two))
        for name, one, two in (
            ("combiner", old.formula, new.formula),
            ("quorum", old.quorum, new.quorum),
            ("review", old.thresholds.review, new.thresholds.review),
            ("block", old.thresholds.block, new.thresholds.block),
            ("policy", old.thresholds.policy_version, new.thresholds.policy_version),
            ("final calibrator", old.final_calibrator, new.final_calibrator),
            (
                "final calibrator if a member is missing",
                old.incomplete_calibrator or "the same",
                new.incomplete_calibrator or "the same",
            ),
            ("features", old.feature_hash[:12], new.feature_hash[:12]),
            ("spec", old.spec_hash[:12], new.spec_hash[:12]),
            ("training run", old.training.run_id, new.training.run_id),
        )
        if one != two
    }
    columns: dict[str, float] = {}
    moved = float("nan")
    if old.features == new.features:
        rows = np.array([*old.self_test.features, *new.self_test.features], dtype=np.float64)
        one, two = before.score(rows), after.score(rows)
        moved = _mean(one.score - two.score)
        for name in set(before.member_names) & set(after.member_names):
            scores = one.member_scores[:, before.member_names.index(name)]
            columns[name] = _mean(scores - two.member_scores[:, after.member_names.index(name)])
    was, now = ({member.name: member for member in m.members} for m in (old, new))
    members = [
        MemberChange(
            name,
            _changes(was.get(name), now.get(name)),
            _share(was, name),
            _share(now, name),
            columns.get(name, float("nan")),
        )
        for name in dict.fromkeys([*now, *was])
    ]
    return Comparison(members, facts, moved)


def _changes(before: MemberSpec | None, after: MemberSpec | None) -> list[str]:
    if before is None or after is None:
        return ["new" if before is None else "gone"]
    return [_NAMES.get(part, part) for part in _PARTS if getattr(before, part) != getattr(after, part)]


def _share(members: dict[str, MemberSpec], name: str) -> float:
    return members[name].weight / sum(m.weight for m in members.values()) if name in members else 0.0


def _mean(difference: np.ndarray) -> float:
    known = np.abs(difference[~np.isnan(difference)])
    return float(known.mean()) if len(known) else float("nan")
