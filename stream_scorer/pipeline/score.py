"""Score: every version of the lineup scores every transaction; the transaction's arm selects the one that decides."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from stream_scorer.ensemble.breaker import State
from stream_scorer.ensemble.bulkhead import Bulkhead
from stream_scorer.ensemble.ensemble import Ensemble, MemberOutput
from stream_scorer.ensemble.lineup import DISABLED, Lineup
from stream_scorer.observability.metrics import (
    ENSEMBLE_AGE,
    MEMBER_BATCHES,
    MEMBER_BREAKER,
    MEMBER_FAILURES,
    MEMBER_SECONDS,
    MEMBER_SHADOW_FAILURES,
    Metrics,
)
from stream_scorer.pipeline.batch import BatchDecisions, MicroBatch, VersionResult
from stream_scorer.pipeline.policy import Policy, Rules
from stream_scorer.pipeline.sampling import Sampling
from stream_scorer.spec.model import CheckedSpec


class Scoring:
    """See the module.

    Args:
        lineup: called once per micro-batch, so that a new lineup takes over between two batches.
        bulkhead: isolates members from each other in live scoring. Without it every member is always called.
    """

    name = "score"
    scoring_only = True

    def __init__(
        self, lineup: Callable[[], Lineup], checked: CheckedSpec, metrics: Metrics, bulkhead: Bulkhead | None = None
    ) -> None:
        self._lineup = lineup
        self._policy = Policy(checked)
        self._sampling = Sampling(checked)
        self._entity = checked.spec.partition_entity
        self._metrics = metrics
        self._bulkhead = bulkhead
        self._breakers: dict[str, State] = {}

    def process(self, batch: MicroBatch) -> None:
        """Set `batch.decided`."""
        assert batch.events is not None and batch.enriched is not None
        lineup, transactions = self._lineup(), batch.events.transactions
        outputs = self._predict(lineup, batch)
        rules = self._policy.rules(transactions)
        if len(transactions):
            newest = int(transactions.event_time.max())
            for ensemble in lineup.versions:
                until = ensemble.manifest.training.members_until
                age = math.nan if until is None else (newest - until) / 1_000
                self._metrics.set(ENSEMBLE_AGE, age, ensemble.name, ensemble.version)
        results = [self._result(lineup, version, outputs, rules) for version in range(len(lineup.versions))]
        entities = transactions.entity_ids.get(self._entity or "", [])
        decided = BatchDecisions(lineup, lineup.route(entities, transactions.event_time), results, rules)
        decided.sampled = self._sampling.draw(transactions.id_hash, decided.decision) & ~batch.enriched.duplicate
        decided.card_group = self._sampling.card_groups(transactions)
        batch.decided = decided

    def _predict(self, lineup: Lineup, batch: MicroBatch) -> list[MemberOutput]:
        assert batch.enriched is not None
        pool, metrics = lineup.pool, self._metrics
        if self._bulkhead is not None:
            outputs = self._bulkhead.predict(pool, batch.enriched.matrix, lineup.disabled)
            before, self._breakers = self._breakers, self._bulkhead.states(pool)
            for name in before.keys() - self._breakers.keys():
                metrics.set(MEMBER_BREAKER, State.CLOSED, name)  # it left play: nobody waits for it
            for name, state in self._breakers.items():
                metrics.set(MEMBER_BREAKER, state, name)
        else:
            features = pool.checked(batch.enriched.matrix)
            outputs = [pool.predict_member(index, features) for index in range(len(pool))]
        for index, (name, output) in enumerate(zip(pool.names, outputs, strict=True)):
            metrics.count(MEMBER_SECONDS, output.seconds, name)
            metrics.count(MEMBER_BATCHES, output.reason != DISABLED, name)
            if output.reason not in ("", DISABLED):
                decides = index in lineup.deciding_members
                metrics.count(MEMBER_FAILURES if decides else MEMBER_SHADOW_FAILURES, 1, name)
        return outputs

    def _result(self, lineup: Lineup, version: int, outputs: list[MemberOutput], rules: Rules | None) -> VersionResult:
        ensemble: Ensemble = lineup.versions[version]
        scored = ensemble.combine(lineup.pool.outputs_of(version, outputs))
        thresholds, members = ensemble.manifest.thresholds, len(ensemble.member_names)
        decision = self._policy.decide(scored.score, thresholds, rules)
        if version >= lineup.deciding:
            nothing = np.zeros(0, np.int64)
            return VersionResult(scored, decision, nothing, nothing.astype(np.bool_))
        review = np.broadcast_to(self._policy.review(thresholds, rules), decision.shape)[:, None]
        alerts = scored.member_scores >= review  # NaN compares false: a missing member raises no alert
        bits = np.left_shift(np.int64(1), np.arange(members, dtype=np.int64))
        left_out = ensemble.left_out_scores(scored)
        without = left_out >= review
        if self._policy.fallback_alerts:
            without |= np.isnan(left_out)
        if rules is not None:  # what a list decides, no member moves
            without = np.where(rules.listed[:, None] >= 0, rules.listed[:, None] > 0, without)
        return VersionResult(scored, decision, alerts.astype(np.int64) @ bits, without)
