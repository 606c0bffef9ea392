"""Finds the first scores under a command, by its offset in the lineage."""

from __future__ import annotations

from itertools import islice

from stream_scorer.control.timeline import Decision, FirstScore
from stream_scorer.kafka.topics import Topics
from stream_scorer.positions import SourcePartition
from stream_scorer.records import NOT_A_RECORD
from stream_scorer.replay.recorded import CLOCK_SKEW_MS, TimedRanges
from stream_scorer.serde.lineage import LineageBatch

# Records that are searched per partition: some minutes of micro-batches around the command.
_MAX_RECORDS = 5_000


def first_score(reader: TimedRanges, topics: Topics, ensemble: str, decision: Decision) -> FirstScore | None:
    """The first micro-batch that was scored under `decision` or a later command; None if none is found near it.

    Raises:
        UsageError: there is no topic lineage.
    """
    found: FirstScore | None = None
    for source in sorted(reader.bounds(topics.lineage)):
        first = _first_of(reader, source, ensemble, decision)
        if first is not None and (found is None or first.at < found.at):
            found = first
    return found


def _first_of(reader: TimedRanges, source: SourcePartition, ensemble: str, decision: Decision) -> FirstScore | None:
    start = reader.offset_at(source, decision.timestamp - CLOCK_SKEW_MS)
    stop = reader.bounds(source.topic)[source][1]
    records = (
        record
        for chunk in reader.read(source, start, stop)
        for record in zip(chunk.value, chunk.timestamp.tolist(), strict=True)
    )
    for value, timestamp in islice(records, _MAX_RECORDS):
        try:
            batch = LineageBatch(value or b"")
        except NOT_A_RECORD:
            continue
        offset, versions = batch.header.control_offset, batch.header.versions
        if offset is not None and offset >= decision.offset and versions[0].ensemble == ensemble:
            return FirstScore(timestamp, batch.event_id[0], batch.rows()[0].version, source.partition)
    return None
