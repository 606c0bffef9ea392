"""Updates that are not known to be in the stored rows, in log order. Enrich puts them on top of what it reads."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from stream_scorer.errors import StateGap, StateUnavailable
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.state.rows import AppliedOffsets, RowUpdate

# While Redis refuses writes, updates wait here and features stay exact. This bridges a second at the default pace of
# 20 ms, and more if batches take longer. Each waiting update costs enrich one look-up per key; the entries bound the
# memory (32 bytes each).
MAX_UPDATES = 64
MAX_ENTRIES = 500_000


class InFlight:
    """Updates between enrich and a successful apply.

    The scoring thread announces an update before its batch is committed. The committer thread marks it committed, and
    removes it once it is applied. An update whose apply failed stays, and every later one behind it.

    Attributes:
        blocked_by: why updates are not applied at present; None while they are.
    """

    def __init__(self, max_updates: int = MAX_UPDATES, max_entries: int = MAX_ENTRIES) -> None:
        self._max_updates, self._max_entries = max_updates, max_entries
        self._lock = threading.Lock()
        self._updates: list[RowUpdate] = []
        self._committed = 0  # the first so many of them belong to committed batches
        self.blocked_by: StateUnavailable | None = None

    def __len__(self) -> int:
        return len(self._updates)

    @property
    def waiting(self) -> bool:
        """Whether an update waits that may be applied now."""
        with self._lock:
            return self.blocked_by is None and self._committed > 0

    @property
    def full(self) -> bool:
        """Whether more updates wait than the bounds allow."""
        with self._lock:
            return len(self._updates) > self._max_updates or sum(map(len, self._updates)) > self._max_entries

    def snapshot(self) -> Sequence[RowUpdate]:
        """The updates, oldest first. Take it before the rows are read: what is applied in between then counts once."""
        with self._lock:
            return tuple(self._updates)

    def announce(self, update: RowUpdate) -> None:
        """Make `update` visible to the next batch. Its own batch is not committed yet."""
        with self._lock:
            self._updates.append(update)

    def commit(self, update: RowUpdate) -> None:
        """The batch of `update` is committed: the update may be applied after those before it.

        An update that was cleared in the meantime is not taken up again: the applied offsets show that it is missing.
        """
        with self._lock:
            if any(waiting is update for waiting in self._updates):
                assert self._updates[self._committed] is update, "batches commit in order"
                self._committed += 1

    def next_committed(self) -> RowUpdate | None:
        """The oldest update whose batch is committed."""
        with self._lock:
            return self._updates[0] if self._committed else None

    def remove(self, update: RowUpdate) -> None:
        """`update` is applied. It was the oldest, unless all were cleared in the meantime."""
        with self._lock:
            if self._updates and self._updates[0] is update:
                del self._updates[0]
                self._committed -= 1

    def clear(self) -> None:
        """Forget every update: the processor starts again from the applied offsets."""
        with self._lock:
            self._updates.clear()
            self._committed = 0
            self.blocked_by = None


def require_contiguous(stored: AppliedOffsets, in_flight: Sequence[RowUpdate], spans: Sequence[Span]) -> None:
    """The invariant of fresh features: stored rows and updates in flight reach the start of the batch.

    Args:
        stored: read together with the rows, after `in_flight` was taken. spans: of the batch.

    Raises:
        StateGap: an update is missing in between. The processor reads again from the applied offsets.
    """
    reached = {part.source: stored.next_offset.get(part.source, -1) for update in in_flight for part in update.spans}
    # The updates of every partition must be complete, because an entity may occur in several partitions.
    for part in (part for update in in_flight for part in update.spans):
        if part.start > reached[part.source]:
            raise _gap(part.source, reached[part.source], part.start)
        reached[part.source] = max(reached[part.source], part.stop)
    for span in spans:
        at = reached.get(span.source, stored.next_offset.get(span.source, -1))
        if at < span.start:
            raise _gap(span.source, at, span.start)


def _gap(source: SourcePartition, at: int, start: int) -> StateGap:
    return StateGap(f"features of {source.topic}[{source.partition}] end at offset {at}; needed is {start}")
