"""How far labels are known: up to the slowest source, and the slowest partition of `labels` (ADR 0034).

A card without a label counts as genuine at its label age, so a file that is a day late would look like silence. The
newest label of any source shows nothing about the other ones. So time advances with the slowest of all feeds: the
sources, and the partitions of `labels`, where a joiner that catches up may be ahead on one and behind on another. A
feed that falls behind the newest label by more than a bound holds nothing back any more.

After that, the labels of a source that stopped are missing data. Cards whose label age it does not cover do not count,
whatever other sources state about them. A source with few labels is an exception, as it would hardly have changed the
result, and so is a partition: one without labels has no transactions, and a joiner that is behind catches up.
"""

from __future__ import annotations

from dataclasses import dataclass

from stream_scorer.records import Outcome

# Labels that make a source regular, so that its end is noticed: a decision takes 20 blocks of labelled cards.
REGULAR = 20
# Daily files are normal: feeds that are further behind are named.
LATE_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Known:
    """Times of labelling, ms. The default: no label is known.

    Attributes:
        until: cards whose label age ends up to this time are judged. complete: those of a later end do not count,
            because labels of a regular source are missing. late: the feeds that are more than a day behind.
    """

    until: int = 0
    complete: int = 0
    late: tuple[str, ...] = ()


@dataclass(slots=True)
class _Feed:
    labels: int = 0
    newest: int = 0


class LabelProgress:
    """See the module.

    Args:
        since: a label age before the event time of the first card, ms. A source that gave its last label before is not
            active, such as an import of old labels.
    """

    def __init__(self, since: int) -> None:
        self._since = since
        self._sources: dict[str, _Feed] = {}
        self._partitions: dict[int, _Feed] = {}

    def add(self, outcome: Outcome) -> None:
        """Count a label."""
        if outcome.labelled_at < self._since:
            return
        feeds = [self._sources.setdefault(outcome.source, _Feed())]
        if outcome.label_partition is not None:
            feeds.append(self._partitions.setdefault(outcome.label_partition, _Feed()))
        for feed in feeds:
            feed.labels += 1
            feed.newest = max(feed.newest, outcome.labelled_at)

    def known(self, bound_ms: int) -> Known:
        """How far labels are known, if a feed may be behind the newest label by at most `bound_ms`."""
        if not self._sources:
            return Known()
        newest = max(feed.newest for feed in self._sources.values())
        feeds = {f"source {name}": feed for name, feed in self._sources.items()}
        feeds |= {f"partition {number} of labels": feed for number, feed in sorted(self._partitions.items())}
        regular = [feed.newest for feed in self._sources.values() if feed.labels >= REGULAR]
        return Known(
            max(min(feed.newest for feed in feeds.values()), newest - bound_ms),
            min(regular, default=newest),
            tuple(name for name, feed in feeds.items() if feed.newest < newest - LATE_MS),
        )
