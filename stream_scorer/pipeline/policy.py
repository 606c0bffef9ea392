"""The policy: from scores to decisions, by thresholds that may differ by segment, after lists of entities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_scorer.ensemble.combine import decide
from stream_scorer.ensemble.manifest import Manifest, Thresholds
from stream_scorer.records import DECISIONS
from stream_scorer.serde.decoder import Transactions
from stream_scorer.spec.conditions import compile_conditions, unmet
from stream_scorer.spec.model import CheckedSpec, PipelineSpec

_NONE = -1


@dataclass(slots=True)
class Rules:
    """The rules of the policy that apply to a micro-batch of n transactions.

    Attributes:
        names: of all rules, segments first. rule: (n,) int64 index into it, -1 for none.
        listed: (n,) int8, the decision of a list, -1 where no list applies.
        review, block: (n,) float64, NaN where the thresholds of the manifest apply.
    """

    names: list[str]
    rule: NDArray[np.int64]
    listed: NDArray[np.int8]
    review: NDArray[np.float64]
    block: NDArray[np.float64]


def unused_policy(spec: PipelineSpec, manifest: Manifest) -> str:
    """What `review`, `block` and `quorum` of the spec are, if a version decides by others; empty if by the same.

    Only training reads them. A version whose thresholds were fitted or given for this policy is meant to have others.
    """
    policy, own = spec.policy, manifest.thresholds
    chosen = own.policy_version in (f"{policy.version}-fitted", f"{policy.version}-given")
    values = {"quorum": (manifest.quorum, policy.quorum)}
    if not chosen:
        values = {"review": (own.review, policy.review), "block": (own.block, policy.block)} | values
    return ", ".join(f"{name} {used:g} instead of {given:g}" for name, (used, given) in values.items() if used != given)


def turned_segments(spec: PipelineSpec, manifest: Manifest) -> list[str]:
    """The segments that are stricter than the thresholds of the spec and laxer than those of the manifest, or reverse.

    The manifest's thresholds apply outside segments, so such a segment does the opposite of what it was written for.
    """
    policy, own = spec.policy, manifest.thresholds
    pairs = {
        segment.name: ((segment.review, policy.review, own.review), (segment.block, policy.block, own.block))
        for segment in policy.segments
    }
    return [
        name
        for name, levels in pairs.items()
        if any((level - meant) * (level - used) < 0 for level, meant, used in levels)
    ]


class Policy:
    """The policy of a spec.

    The first list that contains one of the transaction's entities decides. Otherwise the thresholds apply: those of the
    first segment whose conditions the transaction meets, or those of the manifest.

    Attributes:
        fallback_alerts: whether a transaction without a score is an alert.
    """

    def __init__(self, checked: CheckedSpec) -> None:
        spec = checked.spec
        self.version = spec.policy.version
        self._fallback = spec.policy.fallback
        self.fallback_alerts = self._fallback != "approve"
        fields = spec.transaction.fields
        self._segments = [(compile_conditions(fields, s.where), s.review, s.block) for s in spec.policy.segments]
        self._lists = [
            (
                entry.entity,
                frozenset(checked.pseudonyms.of(entry.entity, identifier) for identifier in entry.ids),
                DECISIONS.index(entry.decision),
            )
            for entry in spec.policy.lists
        ]
        self._names = [s.name for s in spec.policy.segments] + [entry.name for entry in spec.policy.lists]

    def rules(self, transactions: Transactions) -> Rules | None:
        """The rules that apply to `transactions`; None if the policy has neither segments nor lists."""
        if not self._names:
            return None
        n = len(transactions)
        rules = Rules(
            self._names, np.full(n, _NONE), np.full(n, _NONE, np.int8), np.full(n, np.nan), np.full(n, np.nan)
        )
        # Backwards, so that the first one has the last word.
        for index in reversed(range(len(self._segments))):
            conditions, review, block = self._segments[index]
            rows = ~unmet(conditions, transactions.columns, n)
            rules.rule[rows], rules.review[rows], rules.block[rows] = index, review, block
        for index in reversed(range(len(self._lists))):
            entity, ids, decision = self._lists[index]
            rows = np.array([known in ids for known in transactions.entity_ids[entity]], np.bool_)
            rules.rule[rows], rules.listed[rows] = len(self._segments) + index, decision
        return rules

    def review(self, own: Thresholds, rules: Rules | None) -> NDArray[np.float64] | float:
        """From which score on each transaction is an alert."""
        return own.review if rules is None else np.where(np.isnan(rules.review), own.review, rules.review)

    def decide(self, score: NDArray[np.float64], own: Thresholds, rules: Rules | None) -> NDArray[np.int8]:
        """``(n,) int8``, index into `records.DECISIONS`; NaN (no quorum) gets the fallback unless a list decides."""
        if rules is None:
            return decide(score, own.review, own.block, self._fallback)
        block = np.where(np.isnan(rules.block), own.block, rules.block)
        decision = decide(score, self.review(own, rules), block, self._fallback)
        return np.where(rules.listed >= 0, rules.listed, decision)
