"""What detectors have in common: the figures of the inputs, and what a detector finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from stream_scorer.incidents.log import Condition, Subject
from stream_scorer.incidents.minutes import newest
from stream_scorer.records import Incident, IncidentKind, ScoreSummary, Source

# What the product does about a condition whose cause is outside of it.
NO_ACTION = "no command: missing data and upstream causes never lead to a rollback"


@dataclass(frozen=True, slots=True)
class Over:
    """The end of incidents of a subject whose condition does not hold any more.

    Attributes:
        ended: why it ended. event_time: when, in event time, ms.
        scored: how far a partition is scored. An incident goes on if its first affected offset there is not below that.
    """

    ended: str
    event_time: int | None = None
    scored: Source | None = None

    def ends(self, incident: Incident) -> bool:
        """Whether it ends an incident of its subject."""
        scored = self.scored
        if scored is None:
            return True
        place = scored.topic, scored.partition
        return not any(
            first.offset >= scored.offset for first in incident.first if (first.topic, first.partition) == place
        )


@dataclass(slots=True)
class DetectedConditions:
    """The present conditions, and the subjects that enough good minutes show to be without one.

    A subject in neither is undecided: its incident stays as it is.
    """

    conditions: list[Condition] = field(default_factory=list)
    over: dict[tuple[str, str], Over] = field(default_factory=dict)

    def end(
        self,
        kind: IncidentKind,
        subject: Subject,
        ended: str,
        event_time: int | None = None,
        scored: Source | None = None,
    ) -> None:
        """Add a subject without a condition."""
        self.over[kind, subject.text] = Over(ended, event_time, scored)

    def add(self, other: DetectedConditions) -> None:
        """Add the findings of another detector."""
        self.conditions += other.conditions
        self.over |= other.over


@dataclass(slots=True)
class Flow:
    """What summaries say about one partition, or one ensemble, in one minute.

    Attributes:
        rows: scored transactions. dead: dead letters. fallback: transactions without a score of the model.
        money: sum of amounts, minor units. event_time: the newest event time, ms. first: first offset by partition.
        next_offset: the offset after the last one, of a single partition.
    """

    rows: int = 0
    dead: int = 0
    fallback: int = 0
    money: int = 0
    event_time: int | None = None
    first: dict[tuple[str, int], int] = field(default_factory=dict)
    next_offset: int = 0

    def add(self, summary: ScoreSummary) -> None:
        """Count a summary."""
        for pane in summary.panes:
            self.rows += pane.rows
            self.fallback += pane.fallback
            self.money += sum(pane.money.values())
        self.dead += summary.dead_letters
        self.event_time = newest(self.event_time, summary.newest)
        place = summary.topic, summary.partition
        self.first[place] = min(summary.first_offset, self.first.get(place, summary.first_offset))
        self.next_offset = max(self.next_offset, summary.next_offset)

    @property
    def total(self) -> int:
        """Transactions and dead letters."""
        return self.rows + self.dead


def percent(share: float) -> str:
    """A share as text: three digits are enough for a sentence."""
    return f"{100 * share:.3g} %"


def seconds(ms: float) -> str:
    """A duration as text in its largest useful unit."""
    for unit, name in ((86_400_000, "days"), (3_600_000, "hours"), (60_000, "minutes")):
        if ms >= 2 * unit:
            return f"{ms / unit:.0f} {name}"
    return f"{ms / 1_000:.0f} seconds"


def counts(values: Mapping[str, int]) -> str:
    """Counts by name as text, largest first."""
    ordered = sorted(values.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {name}" for name, count in ordered)
