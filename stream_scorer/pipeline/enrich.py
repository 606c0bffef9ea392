"""Enrich: the feature vector of every transaction, from Redis rows and the batches still in flight."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stream_scorer.errors import StateUnavailable
from stream_scorer.features.engine import FeatureEngine
from stream_scorer.pipeline.batch import MicroBatch
from stream_scorer.state.rows import RowStore, RowUpdate


class Enrich:
    """See the module.

    Args:
        in_flight: the updates not yet in the rows, oldest first; asked for before the rows are read.
        on_lost: told when the rows cannot be read; answers the reason why the batch goes on without them.

    `without_features` is set from outside while the rows are not to be read: why.
    """

    name = "enrich"

    def __init__(
        self,
        engine: FeatureEngine,
        store: RowStore,
        in_flight: Callable[[], Sequence[RowUpdate]],
        on_lost: Callable[[StateUnavailable], str],
    ) -> None:
        self._engine = engine
        self._store = store
        self._in_flight = in_flight
        self._on_lost = on_lost
        self.without_features = ""

    def process(self, batch: MicroBatch) -> None:
        """Set `batch.enriched`. Raises `StateGap` when Redis has lost data: resync."""
        assert batch.events is not None
        if not self.without_features:
            in_flight = self._in_flight()
            try:
                batch.enriched = self._engine.enrich(batch.events, self._store, in_flight)
                return
            except StateUnavailable as error:
                self.without_features = self._on_lost(error)
        batch.enriched = self._engine.without_state(batch.events, self.without_features)
