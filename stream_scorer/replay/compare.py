"""Comparing a replay with what a live scorer published, record by record, in canonical bytes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from stream_scorer.errors import UsageError
from stream_scorer.kafka.range_reader import RangeReader
from stream_scorer.kafka.topics import Topics
from stream_scorer.positions import SourcePartition
from stream_scorer.records import Contribution, Record, Score
from stream_scorer.serde.canonical import canonical, first_difference

# One transaction as it was served: its offset in the input, its score and its contribution.
ServedRecord = tuple[int, bytes, bytes]


class Difference(Record, frozen=True):
    """The first difference found: where, in which field, and both values as JSON."""

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
    """Holds replayed records against served ones, which come per partition in the order of their input offsets.

    Attributes:
        compared: pairs looked at. different: pairs that differ, and records that only one side has.
        first: the first difference.
    """

    def __init__(self, live: Callable[[int], Iterator[ServedRecord]], feature_names: list[str], topic: str) -> None:
        self._open = live
        self._live: dict[int, Iterator[ServedRecord]] = {}
        self._ahead: dict[int, ServedRecord | None] = {}
        self._names = feature_names
        self._topic = topic
        self._score = msgspec.json.Decoder(Score).decode
        self._contribution = msgspec.json.Decoder(Contribution).decode
        self._begun: set[int] = set()
        self.compared = self.different = 0
        self.first: Difference | None = None

    def check(self, partition: int, offset: int, score: bytes, contribution: bytes) -> None:
        """Compare one replayed pair with what was served of the same input record."""
        found = self._served_at(partition, offset)
        if found is None:
            self._note(partition, offset, self._score(score).event_id, "the record", "nothing", "a score")
            return
        self.compared += 1
        pairs: list[tuple[str, Record, Record]] = [
            ("scores", self._score(found[1]), self._score(score)),
            ("contributions", self._contribution(found[2]), self._contribution(contribution)),
        ]
        for topic, live, replayed in pairs:
            if canonical(live) != canonical(replayed):
                path, left, right = first_difference(live, replayed) or ("(bytes)", "", "")
                event_id = self._score(score).event_id
                self._note(partition, offset, event_id, f"{topic}.{self._named(path)}", _json(left), _json(right))
                return

    def close(self) -> None:
        """Let go of the served records."""
        for served in self._live.values():
            close = getattr(served, "close", None)
            if close is not None:
                close()

    def _served_at(self, partition: int, offset: int) -> ServedRecord | None:
        if partition not in self._live:
            self._live[partition] = self._open(partition)
            self._ahead[partition] = next(self._live[partition], None)
        while (ahead := self._ahead[partition]) is not None and ahead[0] < offset:
            # Before the first replayed record lies what was served before the range; after it, something is missing.
            if partition in self._begun:
                event_id = self._score(ahead[1]).event_id
                self._note(partition, ahead[0], event_id, "the record", "a score", "nothing")
            self._ahead[partition] = next(self._live[partition], None)
        self._begun.add(partition)
        if ahead is None or ahead[0] != offset:
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


def served_records(reader: RangeReader, topics: Topics) -> Callable[[int], Iterator[ServedRecord]]:
    """What the live scorer published, by partition: scores and contributions stand in the same order on theirs."""
    scores, contributions = reader.bounds(topics.scores), reader.bounds(topics.contributions)
    decode = msgspec.json.Decoder(_SourceOnly).decode
    event = msgspec.json.Decoder(_EventOnly).decode

    def of(partition: int) -> Iterator[ServedRecord]:
        values = []
        for topic, bounds in ((topics.scores, scores), (topics.contributions, contributions)):
            source = SourcePartition(topic, partition)
            low, high = bounds.get(source, (0, 0))
            values.append(_values(reader, source, low, high))
        for score, contribution in itertools.zip_longest(*values):
            if score is None or contribution is None or event(score).event_id != event(contribution).event_id:
                raise UsageError(
                    f"{topics.scores} and {topics.contributions} do not hold the same records in partition {partition}",
                    hint="Retention may have shortened one of them: compare on topics that still hold everything.",
                )
            yield decode(contribution).source.offset, score, contribution

    return of


class _Offset(msgspec.Struct):
    offset: int


class _SourceOnly(msgspec.Struct):
    source: _Offset


class _EventOnly(msgspec.Struct):
    event_id: str


def _values(reader: RangeReader, source: SourcePartition, low: int, high: int) -> Iterator[bytes]:
    for chunk in reader.read(source, low, high):
        for value in chunk.value:
            yield value or b""


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
