"""Summaries: exact, mergeable counts of one micro-batch, so that the monitor's cost grows with batches, not rows."""

from __future__ import annotations

from collections import Counter

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.profile import Binner, profile_matrix
from stream_scorer.features.engine import Enriched
from stream_scorer.pipeline.batch import MicroBatch
from stream_scorer.pipeline.card_alerts import CardCounter
from stream_scorer.pipeline.pair_inputs import PairCounter
from stream_scorer.pipeline.sampling import SparseCounts, rate_counts
from stream_scorer.records import (
    ARMS,
    DECISIONS,
    DEFAULT,
    FRESH,
    CardAlerts,
    PairDifferences,
    PaneSummary,
    ScoreSummary,
)
from stream_scorer.spec.model import CheckedSpec, duration_ms

I64 = NDArray[np.int64]
Rows = NDArray[np.int64] | slice


class Summariser:
    """Counts micro-batches on the bins of an ensemble's reference profile."""

    def __init__(self, ensemble: Ensemble, checked: CheckedSpec) -> None:
        self._ensemble = ensemble
        self._binner = Binner.of(ensemble.manifest)
        self._pane_ms = duration_ms(checked.spec.monitor.pane)
        self._members = ensemble.member_names
        self._n_features = len(ensemble.feature_names)
        self._cards = CardCounter(checked)
        self._pairs = PairCounter(checked)

    def summarise(self, batch: MicroBatch, version: int) -> list[ScoreSummary]:
        """The decisions of one version on `batch`, a summary per transaction partition.

        A canary has summaries only of partitions where it decided something. The champion has one of every partition,
        so that the offset ranges are complete; it also counts dead letters. A span without a row has no panes.
        """
        events, decided = batch.events, batch.decided
        assert events is not None and decided is not None
        # Without a row of the canary, the champion decided all rows, and the canary none.
        chosen = slice(None) if version == 0 and not decided.arm.any() else decided.rows_of(version)
        panes = self._panes(batch, version, chosen)
        cards = self._cards.count(batch, version, chosen)
        differences = self._pairs.count(batch, version, chosen)
        newest = np.full(len(batch.spans), -1, dtype=np.int64)
        np.maximum.at(newest, events.transaction_span[chosen], events.transactions.event_time[chosen])
        topic = batch.transactions.topic
        dead = _dead_letters(batch) if version == 0 else {}
        shown = [
            (index, span)
            for index, span in enumerate(batch.spans)
            if span.source.topic == topic and (version == 0 or index in panes)
        ]
        return [
            ScoreSummary(
                self._ensemble.name,
                self._ensemble.version,
                ARMS[version],
                self._pane_ms,
                topic,
                span.source.partition,
                span.start,
                span.stop,
                dead.get(span.source.partition, 0),
                panes.get(index, []),
                decided.lineup.control_offset,
                cards.get(index, {}),
                int(newest[index]) if index in panes else None,
                {} if place else differences,
            )
            for place, (index, span) in enumerate(shown)
        ]

    def _panes(self, batch: MicroBatch, version: int, chosen: Rows) -> dict[int, list[PaneSummary]]:
        """By span of the batch: the counts of its panes, of the `chosen` transactions."""
        events, enriched, decided = batch.events, batch.enriched, batch.decided
        assert events is not None and enriched is not None and decided is not None
        rows, verdict = events.transactions, decided.verdicts[version]
        pane = rows.event_time[chosen] // self._pane_ms * self._pane_ms
        starts, pane_of = np.unique(pane, return_inverse=True)
        cells, group_of = np.unique(events.transaction_span[chosen] * len(starts) + pane_of, return_inverse=True)
        groups = np.column_stack([cells // max(len(starts), 1), starts[cells % max(len(starts), 1)]])
        n = len(groups)
        series = self._series(batch, version, chosen, group_of, n)
        decision = verdict.decision[chosen]
        alert = decision > 0
        decisions = _count_by(group_of, decision, n, len(DECISIONS))
        money = np.zeros((n, len(DECISIONS)), dtype=np.int64)
        np.add.at(money, (group_of, decision), rows.value[chosen])
        duplicates, degraded, fallback = (
            _sum_by(group_of, flag, n).tolist() for flag in _flags(batch, version, chosen)
        )
        bits = np.arange(len(self._members))
        member_alerts = np.zeros((n, len(self._members)), dtype=np.int64)
        np.add.at(member_alerts, group_of, (verdict.member_alerts[chosen][:, None] >> bits) & 1)
        left_out = _against(group_of, alert, verdict.alert_without[chosen], n)
        others = [i for i in range(len(decided.verdicts)) if i != version]
        their_alerts = [decided.verdicts[i].decision[chosen] > 0 for i in others]
        against = _against(group_of, alert, np.stack(their_alerts, axis=1), n) if others else None
        names = [decided.lineup.versions[i].version for i in others]
        rates = rate_counts(batch, chosen, group_of, n)
        panes: dict[int, list[PaneSummary]] = {}
        total = np.bincount(group_of, minlength=n)
        for g, (span, start) in enumerate(groups.tolist()):
            panes.setdefault(span, []).append(
                PaneSummary(
                    start,
                    int(total[g]),
                    duplicates[g],
                    degraded[g],
                    fallback[g],
                    dict(zip(DECISIONS, decisions[g].tolist(), strict=True)),
                    dict(zip(DECISIONS, money[g].tolist(), strict=True)),
                    dict(zip(self._ensemble.feature_names, series[g], strict=False)),
                    dict(zip(self._members, series[g][self._n_features : -1], strict=True)),
                    dict(zip(self._members, member_alerts[g].tolist(), strict=True)),
                    series[g][-1],
                    dict(zip(self._members, left_out[g].tolist(), strict=True)),
                    {} if against is None else dict(zip(names, against[g].tolist(), strict=True)),
                    int(total[g]) if enriched.degraded else 0,
                    *rates[g],
                )
            )
        return panes

    def _series(
        self, batch: MicroBatch, version: int, chosen: Rows, group_of: NDArray[np.intp], n: int
    ) -> list[list[list[int]]]:
        """The sparse histograms of all series in each of `n` groups."""
        enriched, decided = batch.enriched, batch.decided
        assert enriched is not None and decided is not None
        scored = decided.verdicts[version].scored
        values = profile_matrix(enriched.matrix[chosen], scored.member_scores[chosen], scored.score[chosen])
        skip = self._not_evidence(enriched)
        counts = self._binner.count(values, group_of, n, None if skip is None else skip[chosen])
        sparse = SparseCounts(counts)
        return [sparse.of(g) for g in range(n)]

    def _not_evidence(self, enriched: Enriched) -> NDArray[np.bool_] | None:
        """The values (n, k) that no histogram counts, because they are not what complete features give; None for none.

        Of features: stale, partial and missing ones. Without features at all, also what the members made of that.
        """
        if not (enriched.degraded or enriched.stale.any() or enriched.partial.any()):
            return None
        skip = np.full((len(enriched.status), len(self._binner.series)), bool(enriched.degraded))
        skip[:, : self._n_features] = (enriched.status != FRESH) & (enriched.status != DEFAULT)
        return skip


def _flags(batch: MicroBatch, version: int, chosen: Rows) -> tuple[NDArray[np.bool_], ...]:
    """The chosen transactions that are duplicates, degraded, and decided by the fallback."""
    enriched, decided = batch.enriched, batch.decided
    assert enriched is not None and decided is not None
    scored = decided.verdicts[version].scored
    fallback = np.isnan(scored.score[chosen])
    aged = (enriched.stale | enriched.partial)[chosen]
    degraded = fallback | (scored.coverage[chosen] < 1.0 - 1e-9) | aged | bool(enriched.degraded)
    return enriched.duplicate[chosen], degraded, fallback


def _dead_letters(batch: MicroBatch) -> dict[int, int]:
    """Transactions that became dead letters, by partition."""
    transactions = batch.transactions
    rows = [letter.row for letter in batch.dead if letter.records is transactions]
    return dict(Counter(transactions.partition[rows].tolist()))


def halve(summary: ScoreSummary) -> tuple[ScoreSummary, ScoreSummary] | None:
    """Two summaries that add up to `summary`: half of its panes, cards or compared members each; None without any."""
    panes, cards = summary.panes, summary.cards
    # Panes come first: the second half starts at the end of the range and repeats no other counts.
    rest = replace(summary, first_offset=summary.next_offset, dead_letters=0, cards={}, differences={})
    if len(panes) > 1:
        half = len(panes) // 2
        return replace(summary, panes=panes[:half]), replace(rest, panes=panes[half:])
    if not any(len(each.card) > 1 for each in cards.values()):
        return _halve_differences(summary, replace(rest, panes=[]))
    first = {other: _slice(each, slice(None, len(each.card) // 2)) for other, each in cards.items()}
    second = {other: _slice(each, slice(len(each.card) // 2, None)) for other, each in cards.items()}
    second = {other: replace(each, rows=0, excluded=0) for other, each in second.items()}
    # Event time advances with the last cards: no card is counted before all of its alerts are read.
    return replace(summary, cards=first, newest=None), replace(rest, panes=[], cards=second)


def _halve_differences(summary: ScoreSummary, rest: ScoreSummary) -> tuple[ScoreSummary, ScoreSummary] | None:
    """`summary` with half of the compared members, and `rest` with the others; None if at most one is compared."""
    found = summary.differences
    if not any(len(each.members) > 1 for each in found.values()):
        return None
    halves: list[dict[str, PairDifferences]] = [{}, {}]
    for other, each in found.items():
        members = list(each.members.items())
        half = (len(members) + 1) // 2
        halves[0][other] = replace(each, members=dict(members[:half]))
        halves[1][other] = replace(each, rows=0, policy=[], members=dict(members[half:]))
    return replace(summary, newest=None, differences=halves[0]), replace(
        rest, cards={}, newest=summary.newest, differences=halves[1]
    )


def _slice(cards: CardAlerts, part: slice) -> CardAlerts:
    columns = {name: getattr(cards, name)[part] for name in ("card", "served", "other", "event", "value")}
    return replace(cards, **columns)


def _against(group_of: I64, alert: NDArray[np.bool_], other: NDArray[np.bool_], groups: int) -> I64:
    """``(groups, k, 4)``: rows by "alert" against each of `other` (n, k): both, served only, other only, neither."""
    cell = np.where(alert[:, None], 1 - other, 3 - other)
    counted = [_count_by(group_of, cell[:, k], groups, 4) for k in range(other.shape[1])]
    return np.stack(counted, axis=1) if counted else np.zeros((groups, 0, 4), dtype=np.int64)


def _count_by(group: I64, code: NDArray[np.signedinteger], groups: int, codes: int) -> I64:
    return np.bincount(group * codes + code, minlength=groups * codes).reshape(groups, codes)


def _sum_by(group: I64, flag: NDArray[np.bool_], groups: int) -> I64:
    return np.bincount(group[flag], minlength=groups)
