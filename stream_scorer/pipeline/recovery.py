"""Where to read from: the one place that compares committed offsets with the marks in Redis.

A mark below the committed offset means committed batches whose rows are missing: they are read again from the mark,
for their features only. A mark above it means somebody scored and then rewound the group: refused, because features
would count events twice.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from stream_scorer.errors import StateUnavailable, UsageError
from stream_scorer.pipeline.ports import Reader
from stream_scorer.state.rows import MarkedRowStore, SourcePartition

_log = logging.getLogger(__name__)
StartPolicy = Literal["earliest", "latest"]


@dataclass(slots=True)
class StartingPoints:
    """Per partition, the offset to read from and the first offset to score; before it, records only bring features.

    `state_available` is false when Redis did not answer: reading starts at the committed offsets, without features.
    """

    read_from: dict[SourcePartition, int]
    score_from: dict[SourcePartition, int]
    state_available: bool

    @property
    def behind(self) -> int:
        """How many offsets lie between marks and committed offsets."""
        return sum(self.score_from[s] - offset for s, offset in self.read_from.items())


def starting_points(
    reader: Reader,
    store: MarkedRowStore | None,
    sources: list[SourcePartition],
    inputs: list[SourcePartition],
    start: StartPolicy,
) -> StartingPoints:
    """Decide for the assigned `sources`; `inputs` are all partitions of the input topics.

    Raises:
        UsageError: a mark is above the committed offset, or below what the broker still has.
    """
    committed = reader.committed(sources)
    score_from: dict[SourcePartition, int] = {}
    fresh: dict[SourcePartition, int] = {}
    for source in sources:
        offset = committed[source]
        if offset is None:
            low, high = reader.watermarks(source)
            offset = fresh[source] = high if start == "latest" else low
        score_from[source] = offset
    if fresh:
        # Kept at once: "latest" must not move when the scorer restarts before its first batch.
        reader.commit(fresh)
    if store is None:
        return StartingPoints(dict(score_from), score_from, True)
    try:
        marks = store.open()
        if marks is None:
            _begin(reader, store, inputs, lost=bool(store.epoch))
            marks = store.open()
    except StateUnavailable as error:
        _log.warning("Redis is not available, scoring without features: %s", error.message)
        return StartingPoints(dict(score_from), score_from, False)
    assert marks is not None
    read_from = {}
    for source in sources:
        mark = marks.next_offset[source]
        if mark > score_from[source]:
            raise UsageError(
                f"the features in Redis are ahead of the group's offset on {source.topic}[{source.partition}] "
                f"({mark} > {score_from[source]})",
                mend="Was the group rewound? Score again under another `scorer.group`, which gets its own features.",
            )
        if mark < score_from[source]:
            low, _ = reader.watermarks(source)
            if mark < low:
                raise UsageError(
                    f"{source.topic}[{source.partition}] no longer has the records from {mark} on that features need",
                    mend='Retention is shorter than the outage: use another `scorer.group` with `start = "latest"`.',
                )
        read_from[source] = mark
    points = StartingPoints(read_from, score_from, True)
    if points.behind:
        _log.info("catching up features: %d records to read again without scoring", points.behind)
    return points


def _begin(reader: Reader, store: MarkedRowStore, inputs: list[SourcePartition], *, lost: bool) -> None:
    if lost:
        _log.error("Redis has lost features: they are built again from the log")
    store.init({source: reader.watermarks(source)[0] for source in inputs})
