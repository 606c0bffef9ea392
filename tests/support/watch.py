"""Parts of a watch that do nothing, for tests and proofs of the other parts."""

from __future__ import annotations

from collections.abc import Collection

from stream_scorer.control.collection import Withdrawal
from stream_scorer.control.incidents import Incidents
from stream_scorer.control.state import History
from stream_scorer.control.verdicts import Verdicts
from stream_scorer.control.watch import Collections, Labels, Statuses, WatchParts


class NoLabels:
    """No labels are followed."""

    def step(self, history: History, active: set[str], now: int) -> None:
        """Read nothing."""

    def close(self) -> None:
        """Nothing is open."""


class NoCollections:
    """No cards are collected, so a version that is rolled back leaves play."""

    def step(self, history: History, now: int) -> list[tuple[Withdrawal, str]]:
        """No collection ends."""
        return []

    def running(self, history: History) -> set[str]:
        """No collection runs."""
        return set()

    def wants(self, cards: int) -> bool:
        """No cards are wanted."""
        return False

    def close(self) -> None:
        """Nothing is open."""


class EveryScorerFollows:
    """Every scorer has applied every command."""

    def lacking(self, ensemble: str, offset: int, versions: Collection[str]) -> list[str]:
        """No scorer lacks the command."""
        return []

    def close(self) -> None:
        """Nothing is open."""


def parts(
    incidents: Incidents,
    verdicts: Verdicts,
    labels: Labels | None = None,
    collections: Collections | None = None,
    scorers: Statuses | None = None,
) -> WatchParts:
    """The given parts; those that are None do nothing."""
    return WatchParts(
        incidents, verdicts, labels or NoLabels(), collections or NoCollections(), scorers or EveryScorerFollows()
    )
