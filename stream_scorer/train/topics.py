"""Builds the training set from the topics `transactions` and `labels`, up to their ends when it is called."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_scorer.errors import UsageError
from stream_scorer.kafka.range_reader import RangeReader
from stream_scorer.kafka.topics import Topics
from stream_scorer.pipeline.starting_points import find_beginning
from stream_scorer.serde.decoder import LabelDecoder, Labels, TransactionDecoder, Transactions
from stream_scorer.serde.label_ranks import label_ranks
from stream_scorer.serde.rejections import Rejections
from stream_scorer.spec.model import CheckedSpec
from stream_scorer.train.dataset import (
    LabelledHistory,
    concatenate_labels,
    concatenate_transactions,
    make_training_set,
)
from stream_scorer.train.recipe import Progress, TrainingSet
from stream_scorer.train.rows import ALL_TIMES, Period

_log = logging.getLogger(__name__)


class _Decided(msgspec.Struct):
    """What of a score matters here."""

    event_id: str
    decision: str


def training_set_from_topics(
    reader: RangeReader,
    topics: Topics,
    spec: CheckedSpec,
    on_progress: Progress | None = None,
    period: Period = ALL_TIMES,
) -> TrainingSet:
    """Read the training set from the topics, without a consumer group; see `make_training_set`.

    Decisions come from `scores`, as far as that topic still has them.

    Raises:
        UsageError: a topic does not exist or is empty, no usable transaction is left, or too many records are rejected.
        BrokerUnavailable: the broker does not answer.
    """
    history = replace(history_from_topics(reader, topics, spec), blocked=_blocked(reader, topics.scores))
    return make_training_set(history, spec, on_progress, period)


def history_from_topics(reader: RangeReader, topics: Topics, spec: CheckedSpec) -> LabelledHistory:
    """Read and decode the topics up to their ends. Raises `UsageError`, `BrokerUnavailable`."""
    decoder = TransactionDecoder(spec)
    parts: list[Transactions] = []
    rejections = Rejections("transactions")
    for source, (low, high) in reader.bounds(topics.transactions).items():
        for records in reader.read(source, low, high):
            part, bad = decoder.decode(records.value, records.timestamp)
            parts.append(part)
            rejections.add(bad, len(records.value), records)
    rejected = rejections.close(topics.transactions)
    labels, ranks, refused = _labels(reader, topics.labels, spec)
    found = concatenate_transactions(parts)
    beginning = find_beginning(reader, topics.transactions, topics.labels, spec, cautious=False)
    return LabelledHistory(topics.transactions, found, labels, ranks, rejected + refused, beginning)


def _labels(reader: RangeReader, topic: str, spec: CheckedSpec) -> tuple[Labels, NDArray[np.int64], int]:
    decoder = LabelDecoder(spec)
    parts: list[Labels] = []
    ranks: list[int] = []
    rejections = Rejections("labels")
    for source, (low, high) in reader.bounds(topic).items():
        for records in reader.read(source, low, high):
            part, bad = decoder.decode(records.value, records.timestamp)
            parts.append(part)
            ranks += label_ranks(spec.spec.labels.source_rank, part, records.value).tolist()
            rejections.add(bad, len(records.value), records)
    return concatenate_labels(parts), np.array(ranks, np.int64), rejections.close(topic)


def _blocked(reader: RangeReader, topic: str) -> frozenset[str]:
    """The ids of the transactions with the decision block; a score that cannot be read has no decision."""
    decoder, found = msgspec.json.Decoder(_Decided), set()
    try:
        bounds = reader.bounds(topic)
    except UsageError as error:
        _log.warning("decisions are not known, so blocked transactions without a label count as genuine: %s", error)
        return frozenset()
    for source, (low, high) in bounds.items():
        for records in reader.read(source, low, high):
            for value in records.value:
                if value is not None and b'"block"' in value:
                    with suppress(msgspec.MsgspecError):
                        score = decoder.decode(value)
                        found |= {score.event_id} if score.decision == "block" else set()
    return frozenset(found)
