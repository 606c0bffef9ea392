"""Apply: brings the stored rows up to date after the commit."""

from __future__ import annotations

import logging

from stream_scorer.clock import Deadline
from stream_scorer.errors import StateUnavailable
from stream_scorer.pipeline.batch import MicroBatch
from stream_scorer.pipeline.in_flight import InFlight
from stream_scorer.state.rows import RowStore

# After a refusal many updates wait. The commits of later batches must not wait for all of them.
BUDGET_S = 0.2

_log = logging.getLogger(__name__)


class Apply:
    """See the module.

    An update that Redis does not accept stays in flight, with every later one, until `InFlight.blocked_by` is reset.
    Scoring goes on meanwhile, and enrich still sees these updates.
    """

    name = "apply"
    scoring_only = False

    def __init__(self, store: RowStore, in_flight: InFlight) -> None:
        self._store = store
        self._in_flight = in_flight

    def process(self, batch: MicroBatch) -> None:
        """Apply the committed updates. Raises `StateGap` when the rows lack what comes before them."""
        if batch.enriched is not None:
            self._in_flight.commit(batch.enriched.update)
        budget = Deadline(BUDGET_S)
        while self._in_flight.blocked_by is None and (update := self._in_flight.next_committed()) is not None:
            try:
                self._store.apply(update)
            except StateUnavailable as error:
                _log.warning("Redis does not accept updates, they wait: %s", error.message)
                self._in_flight.blocked_by = error
            else:
                self._in_flight.remove(update)
            if not budget.remaining_s:
                return
