"""Finds fields of a score that its other records contradict: what subscribers act on besides score and decision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stream_scorer.ensemble.manifest import Thresholds
from stream_scorer.pipeline.availability import REASONS
from stream_scorer.records import FEATURES_PARTIAL, FEATURES_STALE, PARTIAL, STALE
from stream_scorer.replay.decisions import Served

_WITHOUT_FEATURES = frozenset(REASONS.values()) - {""}


def contradictions(
    own: Thresholds, served: Sequence[Served], members: NDArray[np.float64]
) -> dict[str, NDArray[np.bool_]]:
    """By field, (n,) bool: whether it does not follow from the records of the transaction.

    Args:
        own: thresholds of the version. members: (n, m) published scores of the members, NaN where one is missing.
    """
    review = np.array([(row.lineage.thresholds or own).review for row in served])
    bits = np.left_shift(np.int64(1), np.arange(members.shape[1], dtype=np.int64))
    alerts = (members >= review[:, None]).astype(np.int64) @ bits
    found = {
        "member alerts": alerts != np.array([row.score.member_alerts for row in served]),
        # With a rule, it is that of the spec, see `replay.decisions`.
        "policy version": [s.rule is None and s.policy_version != own.policy_version for s, _, _ in served],
        "source": [row.contribution.source != row.lineage.source for row in served],
        "degraded": list(map(_other_degraded, served, np.isnan(members).tolist())),
    }
    return {what: np.asarray(rows, np.bool_) for what, rows in found.items()}


def _other_degraded(row: Served, missing: list[bool]) -> bool:
    """Whether `degraded` does not list what lineage and members lack, or differs between both topics."""
    score, contribution, lineage = row
    if not lineage.manifest_sha256:  # the old form has no `degraded`
        return False
    expected = [
        reason
        for reason, code in ((FEATURES_STALE, STALE), (FEATURES_PARTIAL, PARTIAL))
        if code in lineage.feature_status
    ]
    expected += [f"member:{name}" for name, gone in zip(contribution.members.name, missing, strict=True) if gone]
    stated = score.degraded
    if not lineage.applied_offsets and stated and stated[0] in _WITHOUT_FEATURES:
        stated = stated[1:]
    elif not lineage.applied_offsets:
        return True
    return stated != expected or score.degraded != contribution.degraded
