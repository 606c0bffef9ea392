"""The input of a replay: a range of the topics, the served micro-batches, or files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stream_scorer.errors import UsageError
from stream_scorer.kafka.range_reader import RangeReader
from stream_scorer.kafka.topics import Topics
from stream_scorer.positions import SourcePartition
from stream_scorer.replay.files import FileInput
from stream_scorer.replay.order import Extractors, Stream, in_order
from stream_scorer.replay.pieces import Piece, Range, cut
from stream_scorer.replay.quality import EffectiveLabels
from stream_scorer.replay.served import pieces_as_served, read_served
from stream_scorer.spec.model import CheckedSpec


@dataclass(slots=True)
class ReplayInput:
    """The pieces to replay, the first offset of every input partition, the number of records, and the labels."""

    pieces: Iterator[Piece]
    start: dict[SourcePartition, int]
    total: int
    effective_labels: EffectiveLabels


def from_topics(
    reader: RangeReader, topics: Topics, checked: CheckedSpec, scored: Range, max_records: int, *, warm: bool
) -> ReplayInput:
    """A range of the topics, in the order of a replay. Raises `UsageError`, `BrokerUnavailable`."""
    bounds = transaction_bounds(reader, topics, scored)
    streams, start, total = _streams(reader, topics, checked, bounds)
    runs = in_order(streams, topics.transactions, topics.labels)
    return ReplayInput(
        cut(runs, scored, max_records, warm=warm), start, total, _effective_labels(reader, topics, checked)
    )


def as_served(reader: RangeReader, topics: Topics, checked: CheckedSpec, max_records: int) -> ReplayInput:
    """Everything that a live scorer served of one partition, in its micro-batches. Raises `UsageError`."""
    served = read_served(reader, topics)
    bounds = reader.bounds(topics.transactions)
    bounds[served.source] = (bounds[served.source][0], served.batches[-1].stop)
    streams, start, total = _streams(reader, topics, checked, bounds)
    pieces = pieces_as_served(served, streams, topics.labels, max_records)
    return ReplayInput(pieces, start, total, _effective_labels(reader, topics, checked))


def from_files(
    transactions: Path, labels: Path | None, topics: Topics, checked: CheckedSpec, scored: Range, max_records: int, *,
    warm: bool,
) -> ReplayInput:  # fmt: skip
    """Files, as one partition each. Raises `UsageError`."""
    extractors = Extractors(checked)
    inputs = [FileInput(transactions, topics.transactions, checked, is_label=False)]
    effective_labels = EffectiveLabels(checked)
    if labels is not None:
        inputs.append(FileInput(labels, topics.labels, checked, is_label=True))
        for chunk in inputs[1].chunks():
            effective_labels.add(chunk)
        effective_labels.refused.require_few(labels)
    streams = file_streams(inputs, topics, extractors)
    runs = in_order(streams, topics.transactions, topics.labels)
    start = {stream.source: 0 for stream in streams}
    total = sum(file.count() for file in inputs)
    return ReplayInput(cut(runs, scored, max_records, warm=warm), start, total, effective_labels)


def transaction_bounds(reader: RangeReader, topics: Topics, scored: Range) -> dict[SourcePartition, tuple[int, int]]:
    """The offsets ``[low, high)`` of every partition of the transactions, up to the end of the range.

    Raises:
        UsageError: the range names a partition that does not exist.
    """
    bounds = reader.bounds(topics.transactions)
    for name, offsets in (("--start", scored.offset_start), ("--end", scored.offset_end)):
        for partition in offsets or {}:
            if SourcePartition(topics.transactions, partition) not in bounds:
                raise UsageError(f"{name}: {topics.transactions} has no partition {partition}")
    for partition, end in (scored.offset_end or {}).items():
        source = SourcePartition(topics.transactions, partition)
        bounds[source] = (bounds[source][0], min(bounds[source][1], end))
    return bounds


def topic_streams(
    reader: RangeReader, topics: Topics, bounds: Mapping[SourcePartition, tuple[int, int]], extractors: Extractors
) -> list[Stream]:
    """One stream per partition of transactions or labels, within its bounds ``[low, high)``."""
    streams = []
    for source, (low, high) in bounds.items():
        is_label = source.topic == topics.labels
        extract = extractors.labels if is_label else extractors.transactions
        streams.append(Stream(source, reader.read(source, low, high), extract, is_label))
    return streams


def file_streams(inputs: Sequence[FileInput], topics: Topics, extractors: Extractors) -> list[Stream]:
    """One stream for the file of transactions, and one for that of labels if `inputs` has it."""
    return [
        Stream(
            SourcePartition(topics.labels if index else topics.transactions, 0),
            file.chunks(),
            extractors.labels if index else extractors.transactions,
            bool(index),
        )
        for index, file in enumerate(inputs)
    ]


def _streams(
    reader: RangeReader, topics: Topics, checked: CheckedSpec, bounds: dict[SourcePartition, tuple[int, int]]
) -> tuple[list[Stream], dict[SourcePartition, int], int]:
    everything = bounds | reader.bounds(topics.labels)
    streams = topic_streams(reader, topics, everything, Extractors(checked))
    start = {source: low for source, (low, _) in everything.items()}
    return streams, start, sum(max(high - low, 0) for low, high in everything.values())


def _effective_labels(reader: RangeReader, topics: Topics, checked: CheckedSpec) -> EffectiveLabels:
    """All labels, including those created after the range."""
    effective_labels = EffectiveLabels(checked)
    for source, (low, high) in reader.bounds(topics.labels).items():
        for chunk in reader.read(source, low, high):
            effective_labels.add(chunk)
    return effective_labels
