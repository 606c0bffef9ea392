"""The counts of a scorer's health for its status, from its metrics: monitors read topics, not the scorers' ports."""

from __future__ import annotations

import math

from stream_scorer.observability import metrics as m
from stream_scorer.records import MemberHealth, ScorerHealth

_BUCKETS = f"{m.END_TO_END.name}_bucket"
_BY_MEMBER = (m.MEMBER_BATCHES, m.MEMBER_FAILURES, m.MEMBER_BREAKER)


def scorer_health(metrics: m.Metrics) -> ScorerHealth:
    """The counts of `metrics` since the start of the process."""
    wanted = metrics.registry.restricted_registry([_BUCKETS, *(metric.name for metric in _BY_MEMBER)])
    below: dict[float, int] = {}
    members: dict[str, dict[str, int]] = {}
    for sample in (sample for family in wanted.collect() for sample in family.samples):
        if sample.name == _BUCKETS:
            below[float(sample.labels["le"])] = int(sample.value)
        else:
            members.setdefault(sample.labels["member"], {})[sample.name] = int(sample.value)
    bounds = sorted(below)
    counts = [below[bound] - (below[bounds[i - 1]] if i else 0) for i, bound in enumerate(bounds)]
    found = [
        MemberHealth(name, *(counted.get(metric.name, 0) for metric in _BY_MEMBER))
        for name, counted in sorted(members.items())
    ]
    return ScorerHealth([round(1_000 * bound, 3) for bound in bounds if math.isfinite(bound)], counts, found)
