"""Where to read from: the one place that compares committed offsets with the marks in Redis.

A mark below the committed offset means committed batches whose rows are missing: they are read again from the mark,
for their features only. After a loss of rows that would be everything: scoring then goes on without features, and
`rebuild` brings the rows up beside it. A mark above the committed offset means somebody scored and then rewound the
group: refused, because features would count events twice.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from stream_scorer.errors import StateUnavailable, UsageError
from stream_scorer.pipeline.ports import Reader
from stream_scorer.positions import SourcePartition
from stream_scorer.state.rows import MarkedRowStore

_log = logging.getLogger(__name__)
StartPolicy = Literal["earliest", "latest"]
# Why a batch was scored without features, as scores say it.
UNAVAILABLE, REBUILDING = "features_unavailable", "features_rebuilding"


@dataclass(slots=True)
class StartingPoints:
    """Per partition, the offset to read from and the first offset to score; before it, records only bring features.

    `without_features` says why reading starts at the committed offsets although features are not there: Redis did not
    answer ("features_unavailable"), or its rows are being rebuilt ("features_rebuilding"). Empty if they are there.
    """

    read_from: dict[SourcePartition, int]
    score_from: dict[SourcePartition, int]
    without_features: str = ""

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

    Marks are read before offsets. Both only grow, and a mark only to what is committed: in this order no other scorer,
    at work on partitions that are ours no longer, can make a mark look ahead of its offset.

    Raises:
        UsageError: a mark is above the committed offset, or below what the broker still has.
    """
    try:
        applied = store.open() if store is not None else None
        score_from, fresh = _committed(reader, sources, start)
        if store is None:
            return StartingPoints(dict(score_from), score_from)
        if applied is None:
            # A group that has committed offsets had features once.
            _begin(reader, store, inputs, lost=bool(store.epoch) or not fresh)
            applied = store.open()
            score_from, _ = _committed(reader, sources, start)
        if applied is None:
            raise StateUnavailable("Redis lost its data as soon as it had some")
    except StateUnavailable as error:
        _log.warning("Redis is not available, scoring without features: %s", error.message)
        score_from, _ = _committed(reader, sources, start)
        return StartingPoints(dict(score_from), score_from, UNAVAILABLE)
    read_from = {}
    for source in sources:
        mark = applied.next_offset[source]
        if mark > score_from[source]:
            raise UsageError(
                f"the features in Redis are ahead of the group's offset on {source.topic}[{source.partition}] "
                f"({mark} > {score_from[source]})",
                hint="Was the group rewound? Score again under another `scorer.group`, which gets its own features.",
            )
        if mark < score_from[source]:
            low, _ = reader.offset_bounds(source)
            if mark < low:
                raise UsageError(
                    f"{source.topic}[{source.partition}] no longer has the records from {mark} on that features need",
                    hint='Retention is shorter than the outage: use another `scorer.group` with `start = "latest"`.',
                )
        read_from[source] = mark
    if not applied.complete:
        return StartingPoints(dict(score_from), score_from, REBUILDING)
    points = StartingPoints(read_from, score_from)
    if points.behind:
        _log.info("catching up features: %d records to read again without scoring", points.behind)
    return points


def _committed(
    reader: Reader, sources: list[SourcePartition], start: StartPolicy
) -> tuple[dict[SourcePartition, int], dict[SourcePartition, int]]:
    """The first offset to score of each partition, and those among them where the group begins only now."""
    found: dict[SourcePartition, int] = {}
    fresh: dict[SourcePartition, int] = {}
    for source, offset in reader.committed(sources).items():
        if offset is None:
            low, high = reader.offset_bounds(source)
            offset = fresh[source] = high if start == "latest" else low
        found[source] = offset
    if fresh:
        # Kept at once: "latest" must not move when the scorer restarts before its first batch.
        reader.commit(fresh)
    return found, fresh


def _begin(reader: Reader, store: MarkedRowStore, inputs: list[SourcePartition], *, lost: bool) -> None:
    target: dict[SourcePartition, int] = {}
    if lost:
        _log.error("Redis has lost features: they are rebuilt from the log, scoring goes on without them")
        target = {source: offset or 0 for source, offset in reader.committed(inputs).items()}
    store.init({source: reader.offset_bounds(source)[0] for source in inputs}, target)
