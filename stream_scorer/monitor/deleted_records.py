"""Records of the inputs that retention has deleted and the store of the label joiner lacks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Set

from stream_scorer.kafka.transactional_loop import Partition

_log = logging.getLogger("stream_scorer.monitor.joiner")


def raised(positions: Mapping[Partition, int], first: Mapping[Partition, int]) -> dict[Partition, int]:
    """`positions`, at least the first offsets that the topics still have."""
    return {at: max(offset, first.get(at, 0)) for at, offset in positions.items()}


def find_lost(
    stored: Mapping[Partition, int], committed: Mapping[Partition, int], bounds: Mapping[Partition, tuple[int, int]]
) -> set[Partition]:
    """The partitions of which retention has deleted records that the store lacks. Logs them.

    Args:
        stored: positions in the store. committed: those of the group. bounds: first offset and end of each partition.
    """
    if committed and not stored:
        _log.warning("the joiner's store is empty: scores and labels are read again, as far as the topics have them")
    lost, topics = set(), {topic for topic, _ in stored}
    for at, (low, end) in bounds.items():
        place, offset = f"{at[0]}[{at[1]}]", stored.get(at)
        if offset is None:
            # Once others of its topic are stored, one that is empty shows nothing: see `representatives`.
            if low > 0 and (at[0] not in topics or (at in committed and low < end)):
                lost.add(at)
                if at in committed:
                    _log.error("%s: retention has deleted the offsets below %d, which the store lacks", place, low)
        elif low - offset > 1:
            lost.add(at)
            _log.error("%s: retention deleted offsets %d to %d before they were joined", place, offset, low - 1)
        elif low - offset == 1:
            text = "%s: retention deleted offset %d, a transaction marker or one record that was not joined"
            _log.warning(text, place, offset)
    return lost


def representatives(
    lost: Set[Partition], bounds: Mapping[Partition, tuple[int, int]]
) -> dict[Partition, frozenset[Partition]]:
    """By partition whose next record shows the time of deleted ones, the partitions that it represents.

    The first record that is left of a partition represents that partition. If nothing is left, the next record may come
    much later: then those of the other partitions show the time, as all have the same retention. If nothing is left of
    any partition of a topic, the first new record represents all.
    """
    found: dict[Partition, frozenset[Partition]] = {}
    for topic in {topic for topic, _ in lost}:
        of_topic = frozenset(at for at in lost if at[0] == topic)
        left = [at for at in of_topic if bounds[at][0] < bounds[at][1]]
        found |= {at: frozenset({at}) for at in left} if left else dict.fromkeys(of_topic, of_topic)
    return found
