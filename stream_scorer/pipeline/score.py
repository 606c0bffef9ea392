"""Score: the ensemble's verdict on every transaction, and the decision that the policy makes of it."""

from __future__ import annotations

import numpy as np

from stream_scorer.ensemble.combine import decide
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.guard import Guard
from stream_scorer.observability.metrics import MEMBER_BREAKER, MEMBER_FAILURES, MEMBER_SECONDS, Metrics
from stream_scorer.pipeline.batch import Decided, MicroBatch
from stream_scorer.spec.model import CheckedSpec


class Scoring:
    """See the module. The thresholds are the manifest's, the fallback decision is the spec's.

    `guard` keeps members apart in live scoring; without one everybody is asked always.
    """

    name = "score"

    def __init__(self, ensemble: Ensemble, checked: CheckedSpec, metrics: Metrics, guard: Guard | None = None) -> None:
        self._ensemble = ensemble
        self._fallback = checked.spec.policy.fallback
        self._metrics = metrics
        self._guard = guard

    def process(self, batch: MicroBatch) -> None:
        """Set `batch.decided`."""
        assert batch.enriched is not None
        scored = (self._guard or self._ensemble).score(batch.enriched.matrix)
        thresholds = self._ensemble.manifest.thresholds
        decision = decide(scored.score, thresholds.review, thresholds.block, self._fallback)
        members = len(self._ensemble.member_names)
        alerts = scored.member_scores >= thresholds.review  # NaN compares false: a missing member raises no alert
        bits = np.left_shift(np.int64(1), np.arange(members, dtype=np.int64))
        without = self._ensemble.left_out_scores(scored) >= thresholds.review
        batch.decided = Decided(scored, decision, alerts.astype(np.int64) @ bits, without)
        for name, seconds in zip(self._ensemble.member_names, scored.member_seconds.tolist(), strict=True):
            self._metrics.count(MEMBER_SECONDS, seconds, name)
        for name in scored.failures:
            self._metrics.count(MEMBER_FAILURES, 1, name)
        if self._guard is not None:
            for name, state in self._guard.states.items():
                self._metrics.set(MEMBER_BREAKER, state, name)
