"""Labelled history as input of a command: two Parquet files, or the topics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from stream_scorer.settings import Settings

if TYPE_CHECKING:
    from stream_scorer.console import Progress
    from stream_scorer.spec import CheckedSpec
    from stream_scorer.train.recipe import TrainingSet

F = TypeVar("F", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path, dir_okay=False)


def history_options(command: F) -> F:
    """The flags --transactions, --labels and --from-topics."""
    for option in (
        click.option(
            "--from-topics",
            is_flag=True,
            help="Read `transactions` and `labels` from Kafka instead, without a consumer group.",
        ),
        click.option(
            "--labels", type=_FILE, help="Parquet file of labels: event_id, event_time, label, labelled_at, entity ids."
        ),
        click.option("--transactions", type=_FILE, help="Parquet file of transactions, columns as in the spec."),
    ):
        command = option(command)
    return command


def read_history(
    settings: Settings,
    spec: CheckedSpec,
    transactions: Path | None,
    labels: Path | None,
    from_topics: bool,
    progress: Progress,
) -> TrainingSet:
    """Read the history and compute its features with the kernel that serves.

    Raises:
        click.UsageError: the flags contradict each other, or name no history.
        UsageError: a file or topic is missing or empty. BrokerUnavailable: the broker does not answer.
    """
    if from_topics == (transactions is not None) or from_topics == (labels is not None):
        raise click.UsageError("Give either --transactions and --labels, or --from-topics.")
    if transactions is not None and labels is not None:
        from stream_scorer.train.dataset import read_training_set

        data = read_training_set(transactions, labels, spec, progress.stage)
    else:
        from stream_scorer.kafka.range_reader import RangeReader
        from stream_scorer.kafka.topics import TopicAdmin, Topics
        from stream_scorer.train.topics import training_set_from_topics

        topics, bootstrap = Topics.of(settings), settings.require("kafka.bootstrap")
        TopicAdmin(bootstrap).require(topics.inputs(), same_count=False)
        with RangeReader(bootstrap, client_id="stream-scorer-history") as reader:
            data = training_set_from_topics(reader, topics, spec, progress.stage)
    progress.say(
        f"{len(data.label):,} transactions, {int(data.label.sum()):,} frauds; excluded: {data.immature:,} without "
        f"mature labels, {data.duplicates:,} duplicates, {data.refused:,} refused"
    )
    return data
