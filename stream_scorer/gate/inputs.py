"""What a gate reads, from files or from the topics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from stream_scorer.ensemble.manifest import read_manifest
from stream_scorer.errors import ArtifactError, UsageError
from stream_scorer.gate.run import Material
from stream_scorer.gate.traffic import served_from_file
from stream_scorer.kafka.range_reader import RangeReader
from stream_scorer.kafka.topics import Topics
from stream_scorer.replay import sources
from stream_scorer.replay.pieces import Range
from stream_scorer.replay.skew import served_features
from stream_scorer.serde.decoder import TransactionDecoder
from stream_scorer.spec.gate_rules import Rules
from stream_scorer.spec.model import CheckedSpec, duration_ms
from stream_scorer.train.dataset import read_history
from stream_scorer.train.topics import history_from_topics

# Affects the speed only.
_BATCH = 4_096


def from_files(
    transactions: Path,
    labels: Path | None,
    checked: CheckedSpec,
    scored: Range,
    as_of: int | None,
    *,
    served: Path | None = None,
    training_set: Path | None = None,
) -> Material:
    """Files of transactions and labels. Records before the range update features.

    `served` is a ``lineage.parquet``; its offsets are places in the file of transactions.
    """
    from stream_scorer.evaluation.sources import from_files as evaluation_from_files

    topics = Topics()

    def needed_labels() -> Path:
        if labels is None:
            raise UsageError("the rule leak needs the labels that features are made of", hint="Give --labels.")
        return labels

    return Material(
        traffic=lambda: sources.from_files(transactions, labels, topics, checked, scored, _BATCH, warm=True),
        evaluation=lambda: evaluation_from_files(transactions, labels, topics, checked, scored, as_of, warm=True),
        history=lambda: read_history(transactions, needed_labels(), checked),
        served=None if served is None else served_from_file(served, checked),
        training_set=training_set,
    )


def from_topics(
    reader: RangeReader,
    topics: Topics,
    checked: CheckedSpec,
    scored: Range,
    as_of: int | None,
    *,
    training_set: Path | None = None,
) -> Material:
    """The topics of a running installation, without a consumer group."""
    from stream_scorer.evaluation.sources import from_topics as evaluation_from_topics

    return Material(
        traffic=lambda: sources.from_topics(reader, topics, checked, scored, _BATCH, warm=True),
        evaluation=lambda: evaluation_from_topics(reader, topics, checked, scored, as_of, warm=True),
        history=lambda: history_from_topics(reader, topics, checked),
        served=served_features(reader, topics, checked.feature_hash),
        training_set=training_set,
    )


def after_training(folder: Path, scored: Range) -> Range:
    """`scored`; if it has no start, from the end of the training data of the candidate in `folder` on."""
    if scored.time_start is not None:
        return scored
    try:
        return replace(scored, time_start=read_manifest(folder).training.last_event_time + 1)
    except ArtifactError:  # the rule self_test reports it
        return scored


def recent(reader: RangeReader, topics: Topics, checked: CheckedSpec, rules: Rules, scored: Range) -> Range:
    """`scored`, or its part from `Rules.traffic` before the newest transaction on. Raises `UsageError`."""
    if rules.traffic is None:
        return scored
    decoder, newest = TransactionDecoder(checked), -1
    for source, (low, high) in reader.bounds(topics.transactions).items():
        # The last records of each partition: one of them may be rejected.
        for records in reader.read(source, max(low, high - 100), high):
            decoded, _ = decoder.decode(records.value, records.timestamp)
            newest = max(newest, int(decoded.event_time.max(initial=-1)))
    if newest < 0:
        raise UsageError(f"{topics.transactions} has no transaction")
    start = max(newest - duration_ms(rules.traffic), scored.time_start or 0)
    return replace(scored, time_start=start)
