"""The health on `scorer-status`: the counts of the scorer's metrics."""

from __future__ import annotations

import numpy as np

from stream_scorer.control.health import scorer_health
from stream_scorer.observability import metrics as m
from stream_scorer.records import MemberHealth


def test_the_health_of_a_scorer_has_the_counts_of_its_metrics() -> None:
    metrics = m.Metrics()
    before = scorer_health(metrics)
    assert (sum(before.latency), before.members) == (0, [])
    metrics.observe_all(m.END_TO_END, np.array([0.005, 0.16, 0.2, 0.25, 1_000.0]))
    for name, batches, failures, breaker in (("gbdt", 10, 3, 2), ("nn", 9, 0, 0)):
        metrics.count(m.MEMBER_BATCHES, batches, name)
        metrics.count(m.MEMBER_FAILURES, failures, name)
        metrics.set(m.MEMBER_BREAKER, breaker, name)
    found = scorer_health(metrics)
    assert len(found.latency) == len(found.bounds) + 1
    counts = dict(zip([*found.bounds, None], found.latency, strict=True))
    assert {bound: count for bound, count in counts.items() if count} == {10.0: 1, 200.0: 2, 300.0: 1, None: 1}
    assert found.members == [MemberHealth("gbdt", 10, 3, 2), MemberHealth("nn", 9, 0, 0)]


def test_a_member_without_failures_yet_counts_none() -> None:
    metrics = m.Metrics()
    metrics.count(m.MEMBER_BATCHES, 4, "gbdt")
    assert scorer_health(metrics).members == [MemberHealth("gbdt", 4, 0, 0)]
