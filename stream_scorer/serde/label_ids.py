"""Finds labels that lack the id of an entity whose features they should change. Without it they change none of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream_scorer.serde.decoder import Labels
from stream_scorer.spec.model import CheckedSpec

# If transactions may lack the id, their labels may lack it too, but hardly this many in a row.
MIN_RUN = 100


class MissingLabelIds:
    """Looks for missing ids in successive batches of labels.

    If the field of an entity is optional, a label without its id counts only if it is at least the hundredth in a row
    (`MIN_RUN`): the transactions of the others may have no id.
    """

    def __init__(self, checked: CheckedSpec) -> None:
        fields, entities = checked.spec.transaction.fields, checked.spec.entities
        self._at_least = {
            name: MIN_RUN if fields[entities[name].field].optional else 1 for name in checked.label_entities
        }
        self._run = dict.fromkeys(self._at_least, 0)

    def find(self, labels: Labels) -> dict[str, NDArray[np.int64]]:
        """By entity, the places (k,) int64 in `labels` that lack its id; only entities of which some do."""
        found = {}
        place = np.arange(len(labels))
        for name, at_least in self._at_least.items():
            ids = labels.entity_ids[name]
            if None not in ids:
                self._run[name] = 0 if ids else self._run[name]
                continue
            lacks = np.array([i is None for i in ids], np.bool_)
            # How many labels in a row, this one included, lack the id.
            run = place - np.maximum.accumulate(np.where(lacks, -1 - self._run[name], place))
            self._run[name] = int(run[-1])
            places = np.flatnonzero(run >= at_least)
            if len(places):
                found[name] = places
        return found
