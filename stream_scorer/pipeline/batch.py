"""`MicroBatch`: what flows through the stages. It carries records and the offsets that they allow to commit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stream_scorer.ensemble.ensemble import Scored
from stream_scorer.ensemble.lineup import Lineup
from stream_scorer.errors import RecordError
from stream_scorer.features.engine import Enriched, EventBatch
from stream_scorer.pipeline.policy import Rules
from stream_scorer.pipeline.ports import OpenTransaction
from stream_scorer.positions import Span
from stream_scorer.serde.raw import RawRecords


@dataclass(slots=True)
class DeadLetter:
    """A record that cannot be scored, and why; `row` is its place in `records`."""

    records: RawRecords
    row: int
    error: RecordError


@dataclass(slots=True)
class VersionResult:
    """The result of one version for all n transactions: `scored`, and decision (n,) int8, an index into DECISIONS.

    A version that decides for some transactions also has what attribution needs: member_alerts (n,) int64 bit mask, and
    alert_without (n, m) bool, whether the transaction would be an alert with that member left out.
    """

    scored: Scored
    decision: NDArray[np.int8]
    member_alerts: NDArray[np.int64]
    alert_without: NDArray[np.bool_]


@dataclass(slots=True)
class BatchDecisions:
    """The outcome of scoring: a result per version of the lineup, and arm (n,) int8, the version that decides.

    The policy's `rules` apply to every version. `decision` (n,) int8 is the decision of the arm. `sampled` (n,) bool:
    approved and in the random review sample; `card_group` (n,) int64: the random group of the card (ADR 0032).
    """

    lineup: Lineup
    arm: NDArray[np.int8]
    results: list[VersionResult]
    rules: Rules | None = None
    sampled: NDArray[np.bool_] = field(init=False)
    card_group: NDArray[np.int64] = field(init=False)
    decision: NDArray[np.int8] = field(init=False)

    def __post_init__(self) -> None:
        """The decisions of all arms together; no sample yet."""
        self.sampled = np.zeros(len(self.arm), np.bool_)
        self.card_group = np.zeros(len(self.arm), np.int64)
        self.decision = self.results[0].decision
        if self.arm.any():
            self.decision = np.where(self.arm == 1, self.results[1].decision, self.decision)

    def without_score(self) -> int:
        """The number of transactions that the fallback decides: they have no score, and no list decides them."""
        missing = np.isnan(self.results[0].scored.score)
        if self.arm.any():
            missing = np.where(self.arm == 1, np.isnan(self.results[1].scored.score), missing)
        if self.rules is not None:
            missing &= self.rules.listed < 0
        return int(np.count_nonzero(missing))

    def rows_of(self, version: int) -> NDArray[np.int64]:
        """The transactions that one of the lineup's versions decided, in order."""
        return np.flatnonzero(self.arm == version)


@dataclass(slots=True)
class MicroBatch:
    """Some records of the input topics on their way through the stages.

    Attributes:
        transactions, labels: the original records. spans: the offsets they cover, the positions to commit.
        scoring: false for a catch-up batch, whose records were scored before and only bring the rows up to date.
        events, dead: set by decode. output_keys: likewise, the keys of what each record of `transactions` yields.
        wrong_keys: likewise, the places in `events` of transactions whose key is not the id of the partition entity.
        labels_without: likewise, by entity, the places in `events.labels` that should have its id and have none.
        enriched: by enrich. decided: by score. transaction: by publish. committed_at: epoch ms, set by commit.
        seconds: wall time by stage.
    """

    transactions: RawRecords
    labels: RawRecords
    spans: list[Span]
    group_metadata: Any
    scoring: bool = True
    events: EventBatch | None = None
    dead: list[DeadLetter] = field(default_factory=list)
    output_keys: Sequence[bytes | None] = ()
    wrong_keys: list[int] = field(default_factory=list)
    labels_without: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    enriched: Enriched | None = None
    decided: BatchDecisions | None = None
    transaction: OpenTransaction | None = None
    committed_at: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def nothing(cls, topic: str) -> MicroBatch:
        """A batch of no records, not to be scored."""
        return cls(RawRecords.empty(topic), RawRecords.empty(topic), [], None, scoring=False)

    def __len__(self) -> int:
        return len(self.transactions) + len(self.labels)

    def abort(self) -> None:
        """Abort the transaction, if there is one. Never raises for a broken transaction."""
        if self.transaction is not None:
            self.transaction.abort()


class Stage(Protocol):
    """One step of `decode -> enrich -> score -> wait -> publish -> commit -> apply -> note -> account`.

    It takes a batch and leaves it with more columns. A bad record is data, not an exception. The first five run in the
    scoring thread, the last four in the committer thread. `scoring_only` stages skip catch-up batches.
    """

    name: str
    scoring_only: bool

    def process(self, batch: MicroBatch) -> None:
        """Do this stage's work on `batch`, in place."""
        ...


class Sink(Protocol):
    """Where a stage may put records: a Kafka transaction, or files in a replay."""

    def produce(self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Any = None) -> None:
        """Hand over one output record."""
        ...
