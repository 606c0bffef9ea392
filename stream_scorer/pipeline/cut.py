"""Cuts what was read into a catch-up batch, of records that were scored before, and a batch to be scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stream_scorer.pipeline.batch import MicroBatch
from stream_scorer.positions import SourcePartition, Span
from stream_scorer.serde.raw import RawRecords, Read


@dataclass(frozen=True, slots=True)
class Inputs:
    """The names of the input topics."""

    transactions: str
    labels: str


def cut(read: Read, inputs: Inputs, score_from: Mapping[SourcePartition, int]) -> list[MicroBatch]:
    """The micro-batches of `read`, in order: the records below `score_from`, then those from there on."""
    by_topic = {records.topic: records for records in read.records}
    transactions = by_topic.get(inputs.transactions) or RawRecords.empty(inputs.transactions)
    labels = by_topic.get(inputs.labels) or RawRecords.empty(inputs.labels)
    if all(start >= score_from[source] for source, (start, _) in read.positions.items()):
        spans = [Span(source, start, stop, -1) for source, (start, stop) in read.positions.items()]
        return [MicroBatch(transactions, labels, spans, read.group_metadata)]
    before, after = [], []
    for source, (start, stop) in read.positions.items():
        edge = min(max(score_from[source], start), stop)
        if start < edge:
            before.append(Span(source, start, edge, -1))
        if edge < stop:
            after.append(Span(source, edge, stop, -1))
    return [
        MicroBatch(
            _part(transactions, score_from, scoring),
            _part(labels, score_from, scoring),
            spans,
            read.group_metadata,
            scoring,
        )
        for spans, scoring in ((before, False), (after, True))
        if spans
    ]


def _part(records: RawRecords, score_from: Mapping[SourcePartition, int], scoring: bool) -> RawRecords:
    if not len(records):
        return records
    edge = np.array([score_from[SourcePartition(records.topic, p)] for p in records.partition.tolist()], dtype=np.int64)
    return records.take(np.flatnonzero((records.offset >= edge) == scoring))
