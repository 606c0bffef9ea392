"""Judges decisions: by thresholds, and, where the spec that decided is given, by its policy.

The records do not contain the fields and entity ids of a transaction. So whether a segment's conditions held, and
whether a list contained an entity, cannot be computed again; `Decisions.unchecked` counts these decisions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_scorer.ensemble.combine import decide
from stream_scorer.ensemble.manifest import Thresholds
from stream_scorer.records import DECISIONS, Contribution, LineageRow, Score, SegmentThresholds
from stream_scorer.spec.model import CheckedSpec, Policy

_NEEDS_SPEC = ("fallback", "list", "segment thresholds")


class Served(NamedTuple):
    """The records of one transaction."""

    score: Score
    contribution: Contribution
    lineage: LineageRow


class Decisions:
    """Compares decisions with what the recomputed score and the policy lead to.

    Attributes:
        unchecked: what was not computed again, by what: "fallback", "list" and "segment thresholds" for decisions of
            a spec that is not given; "list membership" and "segment conditions" for those of one that is.
    """

    def __init__(self, specs: Iterable[CheckedSpec]) -> None:
        """`specs`: those that may have decided; each applies to the scores whose lineage states its hash."""
        self._policies = {checked.sha256: checked.spec.policy for checked in specs}
        self.unchecked: Counter[str] = Counter()

    def differ(self, own: Thresholds, served: Sequence[Served], score: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(n,) bool: whether the recomputed score (n,) leads to another decision or another source of it."""
        review, block = (
            np.array([getattr(row.lineage.thresholds or own, name) for row in served]) for name in ("review", "block")
        )
        decision = decide(score, review, block, DECISIONS[0])
        published = np.array([DECISIONS.index(row.score.decision) for row in served])
        by_model = np.array([row.score.decision_source == "model" for row in served])
        by_list = np.array([row.score.decision_source == "list" for row in served])
        other = (by_model & (published != decision)) | (~by_list & (by_model != ~np.isnan(score)))
        return np.asarray(other | np.array([self._contradicts(row) for row in served]), np.bool_)

    def _contradicts(self, row: Served) -> bool:
        """Whether the decision contradicts the policy of its spec; without that spec, it is counted."""
        score, thresholds = row.score, row.lineage.thresholds
        policy = self._policies.get(row.lineage.spec_hash)
        source = score.decision_source
        if source == "model" and score.rule is None and thresholds is None:
            return False
        if policy is None:
            self.unchecked["segment thresholds" if source == "model" else source] += 1
            return False
        if source != "list" and score.rule is not None:
            self.unchecked["segment conditions"] += 1
        if source == "list":
            self.unchecked["list membership"] += 1
            entry = next((each for each in policy.lists if each.name == score.rule), None)
            return entry is None or score.decision != entry.decision or score.policy_version != policy.version
        if source == "fallback" and score.decision != policy.fallback:
            return True
        return _other_segment(policy, score, thresholds)


def _other_segment(policy: Policy, score: Score, thresholds: SegmentThresholds | None) -> bool:
    """Whether the segment that the score names has other thresholds than its lineage, or another policy version."""
    if score.rule is None:
        return thresholds is not None
    segment = next((each for each in policy.segments if each.name == score.rule), None)
    return (
        segment is None
        or thresholds is None
        or (thresholds.review, thresholds.block) != (segment.review, segment.block)
        or score.policy_version != policy.version
    )


def describe(unchecked: Mapping[str, int]) -> str:
    """In words, the decisions that were not, or not completely, computed again."""
    listed = ", ".join(f"{what} {count:,}" for what, count in sorted(unchecked.items()))
    return listed + (" (give the spec that decided: --spec)" if any(name in unchecked for name in _NEEDS_SPEC) else "")
