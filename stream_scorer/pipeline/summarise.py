"""Summaries: exact, mergeable counts of one micro-batch, so that the monitor's cost grows with batches, not rows."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from stream_scorer.arrays import Bools, Ints
from stream_scorer.ensemble.ensemble import Ensemble
from stream_scorer.ensemble.profile import Binner, profile_matrix
from stream_scorer.features.engine import Enriched
from stream_scorer.pipeline.batch import MicroBatch
from stream_scorer.pipeline.card_alerts import CardCounter
from stream_scorer.pipeline.histogram_text import HistogramText
from stream_scorer.pipeline.pair_inputs import PairCounter
from stream_scorer.pipeline.pane_counts import DecidedRows, count_panes
from stream_scorer.pipeline.sampling import rate_counts, sparse_counts
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

Rows = Ints | slice


class Summariser:
    """Counts micro-batches on the bins of an ensemble's reference profile.

    Args:
        encoded: whether the histograms of summaries are JSON text (`msgspec.Raw`), for summaries that are only encoded.
    """

    def __init__(self, ensemble: Ensemble, checked: CheckedSpec, *, encoded: bool = False) -> None:
        self._ensemble = ensemble
        self._binner = Binner.of(ensemble.manifest)
        self._pane_ms = duration_ms(checked.spec.monitor.pane)
        self._members = ensemble.member_names
        self._n_features = len(ensemble.feature_names)
        self._text = HistogramText(ensemble.feature_names, self._members) if encoded else None
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
        panes, newest = self._panes(batch, version, chosen)
        cards = self._cards.count(batch, version, chosen)
        differences = self._pairs.count(batch, version, chosen)
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
                newest.get(index),
                {} if place else differences,
            )
            for place, (index, span) in enumerate(shown)
        ]

    def _panes(
        self, batch: MicroBatch, version: int, chosen: Rows
    ) -> tuple[dict[int, list[PaneSummary]], dict[int, int]]:
        """By span of the batch: the counts of its panes, and its newest event time, of the `chosen` transactions."""
        enriched, decided = batch.enriched, batch.decided
        assert enriched is not None and decided is not None
        groups, group_of = count_panes(_decided_rows(batch, version, chosen), self._pane_ms)
        n = len(groups)
        series = self._series(batch, version, chosen, group_of, n)
        rates = rate_counts(batch, chosen, group_of, n)
        names = [each.version for index, each in enumerate(decided.lineup.versions) if index != version]
        members = self._members
        panes: dict[int, list[PaneSummary]] = {}
        newest: dict[int, int] = {}
        for group, (features, scores, score), rate in zip(groups, series, rates, strict=True):
            newest[group.span] = max(newest.get(group.span, -1), group.newest)
            panes.setdefault(group.span, []).append(
                PaneSummary(
                    group.pane,
                    group.total,
                    group.duplicates,
                    group.degraded,
                    group.fallback,
                    dict(zip(DECISIONS, group.decisions, strict=True)),
                    dict(zip(DECISIONS, group.money, strict=True)),
                    features,
                    scores,
                    dict(zip(members, group.member_alerts, strict=True)),
                    score,
                    dict(zip(members, group.left_out, strict=True)),
                    dict(zip(names, group.against, strict=True)),
                    group.total if enriched.degraded else 0,
                    *rate,
                )
            )
        return panes, newest

    def _series(self, batch: MicroBatch, version: int, chosen: Rows, group_of: NDArray[np.intp], n: int) -> list[Any]:
        """The histograms of features, members and score in each of `n` groups."""
        enriched, decided = batch.enriched, batch.decided
        assert enriched is not None and decided is not None
        scored = decided.results[version].scored
        values = profile_matrix(enriched.matrix[chosen], scored.member_scores[chosen], scored.score[chosen])
        skip = self._not_evidence(enriched)
        counts = self._binner.count(values, group_of, n, None if skip is None else skip[chosen])
        if self._text is not None:
            return self._text.encode(counts)
        names, members = self._ensemble.feature_names, self._members
        return [
            (
                dict(zip(names, lists, strict=False)),
                dict(zip(members, lists[self._n_features : -1], strict=True)),
                lists[-1],
            )
            for lists in sparse_counts(counts)
        ]

    def _not_evidence(self, enriched: Enriched) -> Bools | None:
        """The values (n, k) that no histogram counts, because they are not what complete features give; None for none.

        Of features: stale, partial and missing ones. Without features at all, also what the members made of that.
        """
        if not (enriched.degraded or enriched.stale.any() or enriched.partial.any()):
            return None
        skip = np.full((len(enriched.status), len(self._binner.series)), bool(enriched.degraded))
        skip[:, : self._n_features] = (enriched.status != FRESH) & (enriched.status != DEFAULT)
        return skip


def _decided_rows(batch: MicroBatch, version: int, chosen: Rows) -> DecidedRows:
    """What `count_panes` takes of the `chosen` transactions."""
    events, enriched, decided = batch.events, batch.enriched, batch.decided
    assert events is not None and enriched is not None and decided is not None
    result, rows = decided.results[version], events.transactions
    scored = result.scored
    fallback = np.isnan(scored.score)
    degraded = fallback | (scored.coverage < 1.0 - 1e-9) | enriched.stale | enriched.partial
    if scored.failures:  # a member may have no weight, and its scores name it all the same
        degraded |= np.isnan(scored.member_scores).any(axis=1)
    if enriched.degraded:
        degraded[:] = True
    others = [each.decision for index, each in enumerate(decided.results) if index != version]
    return DecidedRows(
        np.arange(len(rows)) if isinstance(chosen, slice) else chosen,
        events.transaction_span,
        rows.event_time,
        rows.value,
        result.decision,
        enriched.duplicate,
        degraded,
        fallback,
        result.member_alerts,
        result.alert_without,
        np.array(others, np.int8).reshape(len(others), len(rows)),
    )


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
    second = {other: replace(each, rows=0, excluded=0, against=[]) for other, each in second.items()}
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
        halves[1][other] = replace(each, rows=0, policy=[], combination=[], members=dict(members[half:]))
    return replace(summary, newest=None, differences=halves[0]), replace(
        rest, cards={}, newest=summary.newest, differences=halves[1]
    )


def _slice(cards: CardAlerts, part: slice) -> CardAlerts:
    columns = {name: getattr(cards, name)[part] for name in ("card", "this", "other", "event", "value")}
    return replace(cards, **columns)
