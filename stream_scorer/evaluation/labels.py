"""Labels as known at a stated time: a label that was given later has no effect on features, order or outcomes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_scorer.arrays import Bools, Int8s, Ints
from stream_scorer.serde.columns import take_labels
from stream_scorer.serde.decoder import LabelDecoder, Labels, hash_ids
from stream_scorer.serde.label_ranks import label_ranks
from stream_scorer.serde.raw import RawRecords
from stream_scorer.serde.rejections import Rejections
from stream_scorer.spec.model import CheckedSpec

UNLABELLED, GENUINE, FRAUD = -1, 0, 1


@dataclass(frozen=True, slots=True)
class Outcomes:
    """The label of each of k labelled events that counts: `id_hash` (k,) int64, ascending, when and what it is."""

    id_hash: Ints
    labelled_at: Ints
    fraud: Bools

    def of(self, id_hash: Ints) -> tuple[Int8s, Ints]:
        """For events (n,): `FRAUD`, `GENUINE` or `UNLABELLED` (n,) int8, and when that was given (n,), -1 without."""
        label, given = np.full(len(id_hash), UNLABELLED, np.int8), np.full(len(id_hash), -1, np.int64)
        if len(self.id_hash):
            place = np.minimum(np.searchsorted(self.id_hash, id_hash), len(self.id_hash) - 1)
            found = self.id_hash[place] == id_hash
            label[found] = self.fraud[place[found]]
            given[found] = self.labelled_at[place[found]]
        return label, given


class KnownLabels:
    """The labels by event, as known at `as_of` (epoch ms; None for all).

    The last label of an event by (source rank, `labelled_at`, order of arrival) counts. Events are compared by the hash
    of their id.

    Attributes:
        given: the number of labels until `as_of`. later: the number of labels that were given after it, which are
            ignored. refused: those that cannot be read. newest: the latest `labelled_at` until `as_of`, -1 without
            labels. outcomes: empty before `complete`.
    """

    def __init__(self, checked: CheckedSpec, as_of: int | None) -> None:
        self._decoder = LabelDecoder(checked)
        self._rank = checked.spec.labels.source_rank
        self._as_of = as_of
        self._parts: list[tuple[Ints, Ints, Ints, Bools]] = []
        self.outcomes = Outcomes(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.bool_))
        self.given, self.later, self.newest = 0, 0, -1
        self.refused = Rejections("labels")
        # By column, so that the size of the parts does not matter.
        self._digests: dict[str, hashlib._Hash] = {}

    def add(self, records: RawRecords) -> Labels:
        """Add labels; return those that are known."""
        labels, rejected = self._decoder.decode(records.value, records.timestamp)
        self.refused.add(rejected, len(records))
        ranks = label_ranks(self._rank, labels, records.value)
        known = np.ones(len(labels), np.bool_) if self._as_of is None else labels.labelled_at <= self._as_of
        self.later += int((~known).sum())
        if not known.all():
            labels, ranks = take_labels(labels, np.flatnonzero(known)), ranks[known]
        self._parts.append((labels.id_hash, ranks, labels.labelled_at, labels.fraud))
        self._update_digests(labels, ranks)
        self.given += len(labels)
        self.newest = max(self.newest, int(labels.labelled_at.max(initial=-1)))
        return labels

    def complete(self) -> None:
        """Find the label of each event that counts; call it once, after all labels were added."""
        if not self._parts:
            return
        columns = zip(*self._parts, strict=True)
        id_hash, ranks, labelled_at, fraud = (np.concatenate(parts) for parts in columns)
        self._parts = []
        order = np.lexsort((np.arange(len(id_hash)), labelled_at, ranks, id_hash))
        last = np.ones(len(order), np.bool_)
        last[:-1] = id_hash[order[1:]] != id_hash[order[:-1]]
        kept = order[last]
        self.outcomes = Outcomes(id_hash[kept], labelled_at[kept], fraud[kept])

    @property
    def as_of(self) -> int:
        """The time whose labels count: the stated one, or that of the newest label."""
        return self.newest if self._as_of is None else self._as_of

    @property
    def sha256(self) -> str:
        """The digest of all that is known, in order of arrival: features depend on more than the labels that count."""
        return hashlib.sha256(b"".join(digest.digest() for digest in self._digests.values())).hexdigest()

    def _update_digests(self, labels: Labels, ranks: Ints) -> None:
        columns: dict[str, NDArray[np.generic]] = {
            "id_hash": labels.id_hash,
            "event_time": labels.event_time,
            "labelled_at": labels.labelled_at,
            "fraud": labels.fraud,
            "rank": ranks,
        }
        for name, ids in labels.entity_ids.items():
            columns[f"entity {name}"] = hash_ids([i or "" for i in ids])
        for name, column in columns.items():
            self._digests.setdefault(name, hashlib.sha256()).update(np.ascontiguousarray(column).tobytes())
