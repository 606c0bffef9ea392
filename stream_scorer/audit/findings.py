"""What a check of an archive found."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from stream_scorer.records import Record

# Number of differences that are described; all are counted.
MAX_DESCRIBED = 20

Kind = Literal["seal", "signature", "previous", "file", "block", "model", "record", "control", "input", "score"]


class Difference(Record, frozen=True):
    """One difference, in words. `kind` is the check that found it."""

    kind: Kind
    what: str


class AuditReport(Record, frozen=True, kw_only=True):
    """The result of `audit verify`. The archive holds if `different` is 0.

    `records` counts the records by topic, `scores` the scores by version, `recomputed` those that were recomputed with
    archived models, `not_recomputed` the decisions among them that were not, or not completely, computed again
    (`replay.decisions`). `undecided` counts the inputs that arrived at least 5 minutes before the end of the period and
    were not decided in it. `signature` states what the signature shows. `notes` state what could not be checked.
    """

    digest: str
    since: int | None
    until: int
    records: dict[str, int]
    scores: dict[str, int]
    recomputed: int
    signature: str
    notes: list[str]
    different: int
    by_kind: dict[str, int]
    first: list[Difference]
    not_recomputed: dict[str, int]
    undecided: int


class Findings:
    """Collects differences and notes."""

    def __init__(self) -> None:
        self.first: list[Difference] = []
        self.notes: list[str] = []
        self._kinds: Counter[str] = Counter()

    def add(self, kind: Kind, what: str, count: int = 1) -> None:
        """Count `count` differences of one kind, described by `what`."""
        self._kinds[kind] += count
        if len(self.first) < MAX_DESCRIBED:
            self.first.append(Difference(kind, what))

    def note(self, text: str) -> None:
        """Note what could not be checked."""
        if text not in self.notes:
            self.notes.append(text)

    @property
    def different(self) -> int:
        """The number of differences."""
        return self._kinds.total()

    @property
    def by_kind(self) -> dict[str, int]:
        """The number of differences by kind."""
        return dict(self._kinds)
