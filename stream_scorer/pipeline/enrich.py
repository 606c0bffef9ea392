"""Enrich: the feature vector of every transaction, from stored rows and the updates in flight."""

from __future__ import annotations

from collections.abc import Sequence

from stream_scorer.features.engine import FeatureEngine
from stream_scorer.pipeline.availability import Availability
from stream_scorer.pipeline.batch import MicroBatch
from stream_scorer.pipeline.in_flight import InFlight, require_contiguous
from stream_scorer.positions import Span
from stream_scorer.state.rows import AppliedOffsets, RowStore, RowUpdate


class Enrich:
    """Live enrichment. While features are not available, a batch gets none, and `Enriched.degraded` says why."""

    name = "enrich"
    scoring_only = False

    def __init__(self, engine: FeatureEngine, store: RowStore, availability: Availability, in_flight: InFlight) -> None:
        self._engine = engine
        self._store = store
        self._availability = availability
        self._in_flight = in_flight

    def process(self, batch: MicroBatch) -> None:
        """Set `batch.enriched`, and announce its update to the next batch.

        Raises:
            StateUnavailable: Redis does not answer; nothing has changed.
            StateGap: Redis has lost data, or updates are missing before the batch.
        """
        assert batch.events is not None
        if self._availability.reason:
            batch.enriched = self._engine.without_state(batch.events, self._availability.reason)
            return
        in_flight = self._in_flight.snapshot()
        rows = _RowsBefore(batch.spans, self._store, in_flight)
        batch.enriched = self._engine.enrich(batch.events, rows, in_flight)
        if batch.enriched.update.spans:
            self._in_flight.announce(batch.enriched.update)


class EnrichInProcess:
    """Enrichment from rows in this process, for replay: they are always there, and nothing is in flight."""

    name = "enrich"
    scoring_only = False

    def __init__(self, engine: FeatureEngine, store: RowStore) -> None:
        self._engine = engine
        self._store = store

    def process(self, batch: MicroBatch) -> None:
        """Set `batch.enriched`."""
        assert batch.events is not None
        batch.enriched = self._engine.enrich(batch.events, self._store)


class _RowsBefore:
    """The row store for one batch: refuses to be read when rows and updates in flight do not reach the batch."""

    def __init__(self, spans: Sequence[Span], store: RowStore, in_flight: Sequence[RowUpdate]) -> None:
        self._spans, self._store, self._in_flight = spans, store, in_flight

    def read(self, keys: Sequence[bytes]) -> tuple[list[bytes | None], AppliedOffsets]:
        """See `RowStore.read`. Raises `StateGap` too when updates are missing."""
        rows, applied = self._store.read(keys)
        require_contiguous(applied, self._in_flight, self._spans)
        return rows, applied

    def apply(self, update: RowUpdate) -> None:
        """See `RowStore.apply`."""
        self._store.apply(update)
