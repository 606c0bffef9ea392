"""Summaries: exact, mergeable counts of one micro-batch, so that the monitor's cost grows with batches, not rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.profile import Binner, profile_matrix
from stream_scorer.pipeline.batch import MicroBatch
from stream_scorer.records import DECISIONS, PaneSummary, ScoreSummary
from stream_scorer.spec.model import CheckedSpec, duration_ms

I64 = NDArray[np.int64]


class Summariser:
    """Counts micro-batches on the bins of the serving ensemble's reference profile."""

    def __init__(self, ensemble: Ensemble, checked: CheckedSpec) -> None:
        self._ensemble = ensemble
        self._binner = Binner.of(ensemble.manifest)
        self._pane_ms = duration_ms(checked.spec.monitor.pane)
        self._members = ensemble.member_names
        self._n_features = len(ensemble.feature_names)

    def summarise(self, batch: MicroBatch, arm: str) -> list[ScoreSummary]:
        """One summary per transaction partition of `batch`; a span without a scored row has no panes."""
        events, enriched, decided = batch.events, batch.enriched, batch.decided
        assert events is not None and enriched is not None and decided is not None
        rows = events.transactions
        pane = rows.event_time // self._pane_ms * self._pane_ms
        starts, pane_of = np.unique(pane, return_inverse=True)
        cells, group_of = np.unique(events.transaction_span * len(starts) + pane_of, return_inverse=True)
        groups = np.column_stack([cells // max(len(starts), 1), starts[cells % max(len(starts), 1)]])
        n = len(groups)
        scored = decided.scored
        counts = self._binner.count(profile_matrix(enriched.matrix, scored.member_scores, scored.score), group_of, n)
        alert = decided.decision > 0
        decisions = _count_by(group_of, decided.decision, n, len(DECISIONS))
        money = np.zeros((n, len(DECISIONS)), dtype=np.int64)
        np.add.at(money, (group_of, decided.decision), rows.value)
        fallback = np.isnan(scored.score)
        degraded = fallback | (scored.coverage < 1.0 - 1e-9) | enriched.stale | bool(enriched.degraded)
        flags = [_sum_by(group_of, flag, n) for flag in (enriched.duplicate, degraded, fallback)]
        bits = np.arange(len(self._members))
        member_alerts = np.zeros((n, len(self._members)), dtype=np.int64)
        np.add.at(member_alerts, group_of, (decided.member_alerts[:, None] >> bits) & 1)
        # 0 both, 1 served only, 2 left-out only, 3 neither
        cell = np.where(alert[:, None], 1 - decided.alert_without, 3 - decided.alert_without)
        left_out = (
            np.stack([_count_by(group_of, cell[:, m], n, 4) for m in range(len(self._members))], axis=1)
            if self._members
            else np.zeros((n, 0, 4), dtype=np.int64)
        )
        sparse = _Sparse(counts)
        panes: dict[int, list[PaneSummary]] = {}
        total = np.bincount(group_of, minlength=n)
        for g, (span, start) in enumerate(groups.tolist()):
            series = [sparse.series(g, k) for k in range(counts.shape[1])]
            members = series[self._n_features : -1]
            panes.setdefault(span, []).append(
                PaneSummary(
                    start,
                    int(total[g]),
                    int(flags[0][g]),
                    int(flags[1][g]),
                    int(flags[2][g]),
                    dict(zip(DECISIONS, decisions[g].tolist(), strict=True)),
                    dict(zip(DECISIONS, money[g].tolist(), strict=True)),
                    dict(zip(self._ensemble.feature_names, series, strict=False)),
                    dict(zip(self._members, members, strict=True)),
                    dict(zip(self._members, member_alerts[g].tolist(), strict=True)),
                    series[-1],
                    dict(zip(self._members, left_out[g].tolist(), strict=True)),
                )
            )
        topic = batch.transactions.topic
        dead: dict[int, int] = {}
        for letter in batch.dead:
            if letter.records is batch.transactions:
                partition = int(letter.records.partition[letter.row])
                dead[partition] = dead.get(partition, 0) + 1
        return [
            ScoreSummary(
                self._ensemble.name,
                self._ensemble.version,
                arm,
                self._pane_ms,
                topic,
                span.source.partition,
                span.start,
                span.stop,
                dead.get(span.source.partition, 0),
                panes.get(index, []),
            )
            for index, span in enumerate(batch.spans)
            if span.source.topic == topic
        ]


class _Sparse:
    """`counts` (g, k, bins) as flat ``[bin, count, ...]`` lists, found with one pass over the non-zero cells."""

    def __init__(self, counts: I64) -> None:
        g, k, b = np.nonzero(counts)
        self._pairs = np.column_stack([b, counts[g, k, b]]).reshape(-1).tolist()
        flat = g * counts.shape[1] + k
        self._bounds = (2 * np.searchsorted(flat, np.arange(counts.shape[0] * counts.shape[1] + 1))).tolist()
        self._width = counts.shape[1]

    def series(self, group: int, k: int) -> list[int]:
        """The sparse histogram of series `k` in `group`."""
        at = group * self._width + k
        found: list[int] = self._pairs[self._bounds[at] : self._bounds[at + 1]]
        return found


def _count_by(group: I64, code: NDArray[np.signedinteger], groups: int, codes: int) -> I64:
    return np.bincount(group * codes + code, minlength=groups * codes).reshape(groups, codes)


def _sum_by(group: I64, flag: NDArray[np.bool_], groups: int) -> I64:
    return np.bincount(group[flag], minlength=groups)
