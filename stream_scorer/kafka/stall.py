"""Partitions that are owned, have more on the broker, and yet bring nothing: a client may cease to fetch in silence.

Others have seen it with librdkafka (its #4492 and #5591, quixio/quix-streams#1124), after troubles of a broker and at a
start. There is no error and no event, and the lag that the client knows of stands still too; so the broker is asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from stream_scorer.positions import SourcePartition

# How often is looked. Two looks in a row must find the same before anything is done.
LOOK_S = 10.0
# A question takes the broker a millisecond or less, and scoring waits for it: so many a look, of many in turn.
MAX_ASKED = 16


class StallWatch:
    """See the module.

    Args:
        known: of a partition, the end that its last fetch told of; negative before the first.
        ask: the end by the broker itself, or None if it does not say.
    """

    def __init__(
        self,
        known: Callable[[SourcePartition], int],
        ask: Callable[[SourcePartition], int | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._known = known
        self._ask = ask
        self._clock = clock
        self._next_at = clock() + LOOK_S
        # By partition: what was fetched and known at the last look, and whether the broker had more already.
        self._before: dict[SourcePartition, tuple[int, int, bool]] = {}
        self._turn = 0

    def stalled(self, fetched: Mapping[SourcePartition, int]) -> list[SourcePartition]:
        """Those of the owned partitions that stand still, of which this much was fetched; looks every `LOOK_S`."""
        if self._clock() < self._next_at:
            return []
        now = {source: (offset, self._known(source)) for source, offset in fetched.items()}
        still = [source for source, at in now.items() if self._before.get(source, ())[:2] == at]
        self._turn = self._turn % len(still) if still else 0
        asked = (still[self._turn :] + still[: self._turn])[:MAX_ASKED]
        self._turn += MAX_ASKED
        found, more = [], {}
        for source in asked:
            end = self._ask(source)
            more[source] = end is not None and end > max(now[source])
            if more[source] and self._before[source][2]:
                found.append(source)
        before = self._before
        self._before = {
            source: (*at, more.get(source, source in still and before[source][2])) for source, at in now.items()
        }
        self._next_at = self._clock() + LOOK_S
        return found
