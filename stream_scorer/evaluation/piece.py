"""Results per transaction: the outputs of members and versions of a batch, and the columns and digests of a piece."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_scorer.arrays import Bools, Floats, Ints
from stream_scorer.clock import Clock
from stream_scorer.ensemble.ensemble import Ensemble, MemberOutput
from stream_scorer.ensemble.lineup import MemberPool
from stream_scorer.evaluation.batches import Batch
from stream_scorer.evaluation.labels import Outcomes
from stream_scorer.evaluation.store import Columns, Counts, piece_digests
from stream_scorer.pipeline.policy import Policy
from stream_scorer.serde.decoder import Transactions, hash_ids
from stream_scorer.spec.model import CheckedSpec

STAGES = ("read", "features", "members", "formulas", "write")


@dataclass(slots=True)
class Timing:
    """Wall-clock seconds: `stages` by name, `members` by member."""

    stages: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    members: dict[str, float] = field(default_factory=dict)

    def add(self, other: Timing) -> None:
        """Add the seconds of `other`."""
        for mine, theirs in ((self.stages, other.stages), (self.members, other.members)):
            for name, seconds in theirs.items():
                mine[name] = mine.get(name, 0.0) + seconds


@dataclass(slots=True)
class Piece:
    """Columns of the piece that is being filled, as lists of batches."""

    columns: dict[str, list[NDArray[np.generic]]] = field(default_factory=dict)
    event_id: list[str] = field(default_factory=list)
    features: hashlib._Hash = field(default_factory=hashlib.sha256)

    def add(self, columns: dict[str, NDArray[np.generic]], event_id: list[str], matrix: Floats) -> None:
        """Add the results of a batch, whose features are `matrix`."""
        for name, column in columns.items():
            self.columns.setdefault(name, []).append(column)
        self.event_id += event_id
        self.features.update(np.ascontiguousarray(matrix).tobytes())

    def complete(self) -> CompletePiece:
        """The columns, and the digests of features, results and outcomes."""
        columns: Columns = {"event_id": self.event_id}
        columns |= {name: np.concatenate(parts) for name, parts in self.columns.items()}
        return CompletePiece(columns, self.features.hexdigest(), *piece_digests(columns))


@dataclass(frozen=True, slots=True)
class CompletePiece:
    """The columns of a piece, and their digests, see `store.PieceRecord`."""

    columns: Columns
    features: str
    scores: str
    outcomes: str

    def __len__(self) -> int:
        return len(self.columns["event_id"])


def count_batch(counts: Counts, batch: Batch) -> Counts:
    """The counts with the records of `batch`; what only scoring finds out is not counted."""
    n = len(batch)
    return msgspec.structs.replace(
        counts.with_records(batch.records, batch.refused),
        warmed=counts.warmed + (0 if batch.scored else n),
        scored=counts.scored + (n if batch.scored else 0),
        labels=counts.labels + len(batch.events.labels),
    )


class Scorer:
    """Scores batches of features with several versions.

    Args:
        versions: the champion first. segments: names of fields whose values the pieces contain as codes.

    Attributes:
        timing: of members and formulas.
    """

    def __init__(
        self, checked: CheckedSpec, versions: Sequence[Ensemble], segments: Sequence[str], clock: Clock
    ) -> None:
        self.pool = MemberPool(versions)
        self.timing = Timing(members=dict.fromkeys(self.pool.names, 0.0))
        self._checked, self._versions, self._segments, self._clock = checked, versions, segments, clock
        self._policy = Policy(checked)

    def results(
        self,
        transactions: Transactions,
        time: Ints,
        matrix: Floats,
        duplicate: Bools,
        outcomes: Outcomes,
    ) -> tuple[dict[str, NDArray[np.generic]], int]:
        """The columns of a batch, and how many scores are missing.

        Args:
            time: (n,) int64, see `ColumnRun`. matrix: (n, n_features). duplicate: (n,).
        """
        stages, began = self.timing.stages, self._clock.monotonic()
        features = self.pool.checked(matrix)
        outputs = [self.pool.predict_member(index, features) for index in range(len(self.pool))]
        for name, output in zip(self.pool.names, outputs, strict=True):
            self.timing.members[name] += output.seconds
        predicted = self._clock.monotonic()
        columns = self._facts(transactions, time, duplicate, outcomes)
        results, missing = self._results(transactions, outputs)
        stages["members"] += predicted - began
        stages["formulas"] += self._clock.monotonic() - predicted
        return columns | results, missing

    def _facts(
        self, transactions: Transactions, time: Ints, duplicate: Bools, outcomes: Outcomes
    ) -> dict[str, NDArray[np.generic]]:
        """What does not depend on the versions."""
        label, labelled_at = outcomes.of(transactions.id_hash)
        columns: dict[str, NDArray[np.generic]] = {
            "event_time": transactions.event_time,
            "time": time,
            "value": transactions.value,
            "card": self._cards(transactions),
            "duplicate": duplicate,
            "label": label,
            "labelled_at": labelled_at,
        }
        for name in self._segments:
            codes = transactions.columns[name]
            columns[f"segment_{name}"] = np.where(np.isnan(codes), -1, codes).astype(np.int16)
        return columns

    def _cards(self, transactions: Transactions) -> Ints:
        """(n,) int64: the hash of the partition entity; that of the transaction if it has none."""
        ids = transactions.entity_ids.get(self._checked.spec.partition_entity or "")
        if ids is None:
            return transactions.id_hash
        absent = np.array([i is None for i in ids], np.bool_)
        return np.where(absent, transactions.id_hash, hash_ids([i or "" for i in ids]))

    def _results(
        self, transactions: Transactions, outputs: Sequence[MemberOutput]
    ) -> tuple[dict[str, NDArray[np.generic]], int]:
        """Member outputs, and scores and decisions of every version; the number of missing scores."""
        columns: dict[str, NDArray[np.generic]] = {f"m{i}": output.raw for i, output in enumerate(outputs)}
        rules, missing = self._policy.rules(transactions), 0
        if rules is not None:
            columns |= {"rule_review": rules.review, "rule_block": rules.block}
        for index, version in enumerate(self._versions):
            scored = version.combine(self.pool.outputs_of(index, outputs))
            columns[f"s{index}"] = scored.score
            columns[f"d{index}"] = self._policy.decide(scored.score, version.manifest.thresholds, rules)
            missing += int(np.isnan(scored.score).sum())
        return columns, missing
