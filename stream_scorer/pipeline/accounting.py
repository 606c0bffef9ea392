"""Counts what became of the micro-batches, in Prometheus metrics."""

from __future__ import annotations

import logging
import time

import numpy as np
from numpy.typing import NDArray

from stream_scorer.errors import RECORD_CODES
from stream_scorer.observability import metrics as m
from stream_scorer.pipeline.availability import REASONS
from stream_scorer.pipeline.batch import MicroBatch
from stream_scorer.records import DECISIONS, FEATURES_PARTIAL, FEATURES_STALE
from stream_scorer.spec.model import CheckedSpec

_log = logging.getLogger(__name__)
# How often to log that record keys are wrong.
KEYS_EVERY_S = 600.0
_KEYS = (
    "%d of %d transactions have a record key that is not the id of the partition entity, such as %s[%d] at offset %d: "
    "features of this entity may lack or double events. Let the producer send the id as key (docs/topics.md); "
    "features_stale now includes these features while other partitions lag, until this scorer restarts"
)

_LABELS = (
    "%d of %d labels lack the id of the entity %s, such as %s[%d] at offset %d: they do not change its label_rate and "
    "label_count, which have the status fresh all the same. Let the producer of the labels send the field %s "
    "(docs/topics.md). The metric stream_scorer_labels_without_entity_total counts further ones"
)


class Account:
    """The last step of every batch."""

    name = "account"
    scoring_only = False

    def __init__(self, metrics: m.Metrics, checked: CheckedSpec | None) -> None:
        """Without a spec, records are copied and not decoded."""
        self._metrics = metrics
        self._keys_logged_at = -KEYS_EVERY_S
        self._fields = {n: checked.spec.entities[n].field for n in checked.label_entities} if checked else {}
        self._labels_logged: set[str] = set()
        metrics.begin(m.LABELS_WITHOUT_ENTITY, self._fields)
        metrics.begin(m.DEAD_LETTERS, RECORD_CODES)
        metrics.begin(m.DEGRADED, [*filter(None, REASONS.values()), FEATURES_STALE, FEATURES_PARTIAL])
        metrics.begin(m.TRANSACTIONS, DECISIONS)

    def process(self, batch: MicroBatch) -> None:
        """Count the batch."""
        if batch.scoring and batch.wrong_keys:
            self._report_keys(batch)
        if batch.scoring:
            self._report_labels(batch)
        _count(self._metrics, batch)

    def _report_keys(self, batch: MicroBatch) -> None:
        assert batch.events is not None
        self._metrics.count(m.WRONG_KEYS, len(batch.wrong_keys))
        now = time.monotonic()
        if now - self._keys_logged_at < KEYS_EVERY_S:
            return
        self._keys_logged_at = now
        of, rows = batch.transactions, batch.events.transactions.row
        first = int(rows[batch.wrong_keys[0]])
        _log.warning(_KEYS, len(batch.wrong_keys), len(rows), of.topic, of.partition[first], of.offset[first])

    def _report_labels(self, batch: MicroBatch) -> None:
        for entity, places in batch.labels_without.items():
            self._metrics.count(m.LABELS_WITHOUT_ENTITY, len(places), entity)
            if entity in self._labels_logged:
                continue
            self._labels_logged.add(entity)
            assert batch.events is not None
            of, rows = batch.labels, batch.events.labels.row
            first = int(rows[places[0]])
            at = of.topic, of.partition[first], of.offset[first]
            _log.warning(_LABELS, len(places), len(rows), entity, *at, self._fields[entity])


def _count(metrics: m.Metrics, batch: MicroBatch) -> None:
    for stage, seconds in batch.seconds.items():
        metrics.observe(m.STAGE_SECONDS, seconds, stage)
    metrics.observe(m.BATCH_RECORDS, len(batch))
    if not batch.scoring:
        metrics.count(m.CAUGHT_UP, len(batch))
        return
    for letter in batch.dead:
        metrics.count(m.DEAD_LETTERS, 1, letter.error.code)
    if batch.decided is not None:
        for code, count in enumerate(np.bincount(batch.decided.decision, minlength=len(DECISIONS)).tolist()):
            metrics.count(m.TRANSACTIONS, count, DECISIONS[code])
        metrics.count(m.FALLBACKS, batch.decided.without_score())
    if batch.events is not None and batch.committed_at is not None:
        metrics.observe_all(m.END_TO_END, _end_to_end(batch, batch.events.transactions.row, batch.committed_at))
    if batch.enriched is not None:
        metrics.count(m.DUPLICATES, int(batch.enriched.duplicate.sum()))
        for reason in batch.enriched.degraded:
            metrics.count(m.DEGRADED, len(batch.enriched.duplicate), reason)
        metrics.count(m.DEGRADED, int(batch.enriched.stale.sum()), FEATURES_STALE)
        metrics.count(m.DEGRADED, int(batch.enriched.partial.sum()), FEATURES_PARTIAL)
        ages = batch.enriched.ages
        metrics.set(m.FEATURE_AGE, ages.partitions.max(initial=0) / 1_000, "partitions")
        metrics.set(m.FEATURE_AGE, ages.labels.max(initial=0) / 1_000, "labels")


def _end_to_end(batch: MicroBatch, rows: NDArray[np.int64], committed_at: int) -> NDArray[np.float64]:
    """Seconds (n,) from the record timestamps of the transactions `rows` to the commit; at least 0."""
    timestamps = batch.transactions.timestamp[rows]
    known = timestamps[timestamps > 0]  # a record without a timestamp has -1, or 0
    return np.maximum(committed_at - known, 0) / 1_000
