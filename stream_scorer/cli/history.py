"""Labelled history as input of a command: two Parquet files, or the topics."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from stream_scorer.cli.times import parse_time
from stream_scorer.settings import Settings

if TYPE_CHECKING:
    from stream_scorer.console import Progress
    from stream_scorer.spec import CheckedSpec
    from stream_scorer.train.recipe import TrainingSet
    from stream_scorer.train.rows import Period

F = TypeVar("F", bound=Callable[..., Any])
_FILE = click.Path(path_type=Path, dir_okay=False)


def history_options(command: F) -> F:
    """The flags --transactions, --labels, --from-topics, and those of the period, which becomes `period`."""

    @functools.wraps(command)
    def with_period(*args: Any, train_from: str | None, until: str | None, **values: Any) -> Any:
        from stream_scorer.train.rows import Period

        since = None if train_from is None else parse_time("--train-from", train_from)
        end = None if until is None else parse_time("--until", until)
        if since is not None and end is not None and since >= end:
            raise click.UsageError("--train-from must be before --until.")
        return command(*args, period=Period(since, end), **values)

    wrapped: Callable[..., Any] = with_period
    for option in (
        click.option(
            "--until", help="Train on transactions before this time only: ISO time or epoch ms. Later labels count."
        ),
        click.option(
            "--train-from",
            help="Train on transactions from this time on; earlier ones only update features.  [default: all, or those "
            "with complete windows if the topics have lost their beginning]",
        ),
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
        wrapped = option(wrapped)
    return cast(F, wrapped)


def read_history(
    settings: Settings,
    spec: CheckedSpec,
    transactions: Path | None,
    labels: Path | None,
    from_topics: bool,
    progress: Progress,
    period: Period,
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

        data = read_training_set(transactions, labels, spec, progress.stage, period)
    else:
        from stream_scorer.kafka.range_reader import RangeReader
        from stream_scorer.kafka.topics import TopicAdmin, Topics
        from stream_scorer.train.topics import training_set_from_topics

        topics, bootstrap = Topics.of(settings), settings.require("kafka.bootstrap")
        TopicAdmin(bootstrap).require(topics.inputs(), same_count=False)
        with RangeReader(bootstrap, client_id="stream-scorer-history") as reader:
            data = training_set_from_topics(reader, topics, spec, progress.stage, period)
    excluded = [f"{data.immature:,} without mature labels", f"{data.duplicates:,} duplicates"]
    excluded += [f"{data.outside:,} outside the period of training"] if data.outside else []
    excluded += [f"{data.blocked:,} blocked without a label"] if data.blocked else []
    excluded += [f"{data.unmatched:,} labels of no transaction"] if data.unmatched else []
    progress.say(
        f"{len(data.label):,} transactions, {int(data.label.sum()):,} frauds; excluded: {', '.join(excluded)}, "
        f"{data.refused:,} refused; {data.incomplete / len(data.label):.0%} look back to before the first transaction"
    )
    return data
