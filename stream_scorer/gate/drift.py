"""The rule on drift: the candidate's reference profile against recent traffic."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.profile import Binner, profile_matrix
from stream_scorer.gate.result import RuleResult, at_most, not_measured
from stream_scorer.monitor.drift import compare
from stream_scorer.spec.gate_rules import Drift

# How many series the reason names.
_NAMED = 3


def features_read(candidate: Ensemble) -> list[str]:
    """The features that a member with a weight reads, in the order of the manifest."""
    read = {name for member in candidate.manifest.members if member.weight > 0.0 for name in member.inputs}
    return [name for name in candidate.feature_names if name in read]


def drift(rule: Drift, candidate: Ensemble, rows: NDArray[np.float64]) -> RuleResult:
    """The largest distance over the features that the candidate reads, its members and its score.

    `rows` (n, k) are the features of recent transactions.
    """
    if len(rows) < rule.min_rows:
        return not_measured("drift", rule.max_distance, f"{len(rows):,} transactions, {rule.min_rows:,} are needed")
    manifest = candidate.manifest
    scored = candidate.score(rows)
    binner = Binner.of(manifest)
    values = profile_matrix(rows, scored.member_scores, scored.score)
    counts = binner.count(values, np.zeros(len(rows), np.int64), 1)[0]
    wanted = {*features_read(candidate), *binner.series[len(candidate.feature_names) :]} - set(rule.ignore)
    found = []
    for place, name in enumerate(binner.series):
        if name in wanted:
            reference = manifest.reference_profile[name].counts
            found.append((compare(counts[place, : len(reference)], reference).score, name))
    if not found:
        return not_measured("drift", rule.max_distance, "every series is ignored")
    found.sort(reverse=True)
    furthest = ", ".join(f"{name} {distance:.3f}" for distance, name in found[:_NAMED])
    return at_most("drift", found[0][0], rule.max_distance, f"{len(rows):,} transactions; {furthest}")
