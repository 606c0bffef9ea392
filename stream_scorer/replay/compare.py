"""Compares a replay with the output of a live scorer, record by record, in canonical bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from stream_scorer.errors import UsageError
from stream_scorer.kafka.topics import Topics
from stream_scorer.positions import SourcePartition
from stream_scorer.records import PARTIAL, Contribution, LineageRow, Record, Score
from stream_scorer.replay.recorded import TopicRanges, bounds_of, recorded, served_scores
from stream_scorer.serde.canonical import canonical, first_difference


class ServedRecord(NamedTuple):
    """One transaction as it was served."""

    score: Score
    contribution: Contribution
    lineage: LineageRow


class Difference(Record, frozen=True):
    """The first difference: position, field, and both values as JSON."""

    topic: str
    partition: int
    offset: int
    event_id: str
    field: str
    live: str
    replayed: str

    def __str__(self) -> str:
        return (
            f"{self.topic}[{self.partition}]@{self.offset} (event {self.event_id}): {self.field} was served as "
            f"{self.live}, the replay gives {self.replayed}"
        )


class Comparison:
    """Compares replayed records with served ones, which arrive per partition in the order of their input offsets.

    Attributes:
        compared: number of compared pairs.
        different: number of pairs that differ, plus records that only one side has.
        first: the first difference.
        incomplete: number of records that are not compared, see `_lacked_history`.
    """

    def __init__(self, live: Callable[[int], Iterator[ServedRecord]], feature_names: list[str], topic: str) -> None:
        self._open = live
        self._live: dict[int, Iterator[ServedRecord]] = {}
        self._ahead: dict[int, ServedRecord | None] = {}
        self._names = feature_names
        self._topic = topic
        self._started: set[int] = set()
        self.compared = self.different = self.incomplete = 0
        self.first: Difference | None = None

    def check(self, replayed: ServedRecord) -> None:
        """Compare one replayed transaction with the served one of the same input record."""
        at, event_id = replayed.lineage.source, replayed.score.event_id
        served = self._served_at(at.partition, at.offset)
        if served is None:
            self._note(at.partition, at.offset, event_id, "the record", "nothing", "a score")
            return
        if _lacked_history(served.lineage, replayed.lineage):
            self.incomplete += 1
            return
        self.compared += 1
        for topic, live, again in zip(("scores", "contributions", "lineage"), served, replayed, strict=True):
            if canonical(live) != canonical(again):
                path, left, right = first_difference(live, again) or ("(bytes)", "", "")
                field = f"{topic}.{self._named(path)}"
                self._note(at.partition, at.offset, event_id, field, _json(left), _json(right))
                return

    def close(self) -> None:
        """Close the iterators of served records."""
        for served in self._live.values():
            close = getattr(served, "close", None)
            if close is not None:
                close()

    def _served_at(self, partition: int, offset: int) -> ServedRecord | None:
        if partition not in self._live:
            self._live[partition] = self._open(partition)
            self._ahead[partition] = next(self._live[partition], None)
        while (ahead := self._ahead[partition]) is not None and ahead.lineage.source.offset < offset:
            # Served records before the first replayed one are outside the range; later ones are missing in the replay.
            if partition in self._started:
                at = ahead.lineage.source.offset
                self._note(partition, at, ahead.score.event_id, "the record", "a score", "nothing")
            self._ahead[partition] = next(self._live[partition], None)
        self._started.add(partition)
        if ahead is None or ahead.lineage.source.offset != offset:
            return None
        self._ahead[partition] = next(self._live[partition], None)
        return ahead

    def _note(self, partition: int, offset: int, event_id: str, field: str, live: str, replayed: str) -> None:
        self.different += 1
        if self.first is None:
            self.first = Difference(self._topic, partition, offset, event_id, field, live, replayed)

    def _named(self, path: str) -> str:
        """`path` with the name of the feature it points to."""
        head, _, rest = path.partition("[")
        if head in ("features", "feature_status") and rest[:-1].isdigit():
            return f"{path} ({self._names[int(rest[:-1])]})"
        return path


def served_records(reader: TopicRanges, topics: Topics) -> Callable[[int], Iterator[ServedRecord]]:
    """The output of the live scorer, by partition. Scores and contributions have the same order on their topics.

    It ends where the first of both topics ends: the scorer may go on.
    """

    def of(partition: int) -> Iterator[ServedRecord]:
        ends = [bounds_of(reader, topic, partition) for topic in (topics.scores, topics.contributions)]
        scores = served_scores(reader, SourcePartition(topics.scores, partition), ends[0])
        for score, found in zip(scores, recorded(reader, topics, partition, ends[1]), strict=False):
            if score.event_id != found.contribution.event_id:
                raise UsageError(
                    f"{topics.scores} and {topics.contributions} differ in their records of partition {partition}",
                    hint="Retention may have shortened one of them: compare on topics that are still complete.",
                )
            if found.lineage is None:
                raise UsageError(
                    f"{topics.lineage} does not contain event {score.event_id!r} of partition {partition}",
                    hint="Retention may have shortened it: compare on topics that are still complete.",
                )
            yield ServedRecord(score, found.contribution, found.lineage)

    return of


def _lacked_history(served: LineageRow, replayed: LineageRow) -> bool:
    """Whether the scorer's rows lacked events that the replay has, or that it does not know to be missing.

    Where the log began when the rows were built is not recorded. The scorer marked such features as partial.
    """
    pairs = zip(served.feature_status, replayed.feature_status, strict=False)
    return any(live == PARTIAL != again for live, again in pairs)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
