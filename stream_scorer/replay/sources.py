"""Where a replay's input comes from: a range of the topics, what was served of them, or files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stream_scorer.errors import UsageError
from stream_scorer.kafka.range_reader import RangeReader
from stream_scorer.kafka.topics import Topics
from stream_scorer.positions import SourcePartition
from stream_scorer.replay.files import FileInput
from stream_scorer.replay.order import Looks, Stream, in_order
from stream_scorer.replay.pieces import Piece, Range, cut
from stream_scorer.replay.quality import EffectiveLabels
from stream_scorer.replay.served import pieces_as_served, read_served
from stream_scorer.spec.model import CheckedSpec


@dataclass(slots=True)
class ReplayInput:
    """Pieces to be replayed, where reading begins on every input partition, how many records, and the verdicts."""

    pieces: Iterator[Piece]
    start: dict[SourcePartition, int]
    total: int
    verdicts: EffectiveLabels


def from_topics(
    reader: RangeReader, topics: Topics, checked: CheckedSpec, scored: Range, most: int, *, warm: bool
) -> ReplayInput:
    """A range of the topics, in the order of a replay. Raises `UsageError`, `BrokerUnavailable`."""
    bounds = reader.bounds(topics.transactions)
    for name, offsets in (("--start", scored.offset_start), ("--end", scored.offset_end)):
        for partition in offsets or {}:
            if SourcePartition(topics.transactions, partition) not in bounds:
                raise UsageError(f"{name}: {topics.transactions} has no partition {partition}")
    for partition, end in (scored.offset_end or {}).items():
        source = SourcePartition(topics.transactions, partition)
        bounds[source] = (bounds[source][0], min(bounds[source][1], end))
    streams, start, total = _streams(reader, topics, checked, bounds)
    runs = in_order(streams, topics.transactions, topics.labels)
    return ReplayInput(cut(runs, scored, most, warm=warm), start, total, _verdicts(reader, topics, checked))


def as_served(reader: RangeReader, topics: Topics, checked: CheckedSpec, most: int) -> ReplayInput:
    """Everything a live scorer served of one partition, in its micro-batches. Raises `UsageError`."""
    served = read_served(reader, topics)
    bounds = reader.bounds(topics.transactions)
    bounds[served.source] = (bounds[served.source][0], served.batches[-1].stop)
    streams, start, total = _streams(reader, topics, checked, bounds)
    pieces = pieces_as_served(served, streams, topics.labels, most)
    return ReplayInput(pieces, start, total, _verdicts(reader, topics, checked))


def from_files(
    transactions: Path, labels: Path | None, topics: Topics, checked: CheckedSpec, scored: Range, most: int, *,
    warm: bool,
) -> ReplayInput:  # fmt: skip
    """Files, as one partition each. Raises `UsageError`."""
    looks = Looks(checked)
    inputs = [FileInput(transactions, topics.transactions, checked, is_label=False)]
    verdicts = EffectiveLabels(checked)
    if labels is not None:
        inputs.append(FileInput(labels, topics.labels, checked, is_label=True))
        for chunk in inputs[1].chunks():
            verdicts.add(chunk)
    streams = []
    for index, file in enumerate(inputs):
        source = SourcePartition(topics.labels if index else topics.transactions, 0)
        streams.append(Stream(source, file.chunks(), looks.labels if index else looks.transactions, bool(index)))
    runs = in_order(streams, topics.transactions, topics.labels)
    start = {stream.source: 0 for stream in streams}
    total = sum(file.count() for file in inputs)
    return ReplayInput(cut(runs, scored, most, warm=warm), start, total, verdicts)


def _streams(
    reader: RangeReader, topics: Topics, checked: CheckedSpec, bounds: dict[SourcePartition, tuple[int, int]]
) -> tuple[list[Stream], dict[SourcePartition, int], int]:
    looks = Looks(checked)
    everything = bounds | reader.bounds(topics.labels)
    streams = []
    for source, (low, high) in everything.items():
        is_label = source.topic == topics.labels
        look = looks.labels if is_label else looks.transactions
        streams.append(Stream(source, reader.read(source, low, high), look, is_label))
    start = {source: low for source, (low, _) in everything.items()}
    return streams, start, sum(max(high - low, 0) for low, high in everything.values())


def _verdicts(reader: RangeReader, topics: Topics, checked: CheckedSpec) -> EffectiveLabels:
    """Every label there is: also those given long after the range."""
    verdicts = EffectiveLabels(checked)
    for source, (low, high) in reader.bounds(topics.labels).items():
        for chunk in reader.read(source, low, high):
            verdicts.add(chunk)
    return verdicts
