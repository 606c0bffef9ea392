"""Checks the records of an archive: one score, contribution and lineage each, by the version that served.

Memory is bounded by a block of each topic and a batch of scores.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_scorer.audit.archive import Archive
from stream_scorer.audit.export import letter_offsets
from stream_scorer.audit.findings import Findings
from stream_scorer.audit.recomputation import Recomputation
from stream_scorer.audit.seal import InputRange, Part
from stream_scorer.audit.served import Commands
from stream_scorer.positions import SourcePartition
from stream_scorer.records import NOT_A_RECORD, Contribution, LineageRow, Score
from stream_scorer.replay.recorded import Recorded
from stream_scorer.serde.fat_contribution import decode_contribution
from stream_scorer.serde.lineage import LineageBatch
from stream_scorer.serde.raw import RawRecords

# The number of records ahead that are searched for the counterpart of one that does not match.
_AHEAD = 2_000
_NO_OFFSETS = np.empty(0, np.int64)
T = TypeVar("T")


class RecordCheck:
    """Checks the records of `archive`. Differences go to `findings`.

    Attributes:
        scores: number of scores by ensemble and version.
        undecided: number of inputs that arrived in the period and were not decided in it.
    """

    def __init__(
        self,
        archive: Archive,
        recomputation: Recomputation,
        findings: Findings,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        self._archive, self._findings, self._on_progress = archive, findings, on_progress
        self._recomputation = recomputation
        self._commands: Commands | None = None
        self.scores: Counter[str] = Counter()
        self.undecided = 0
        self._done = 0

    def check(self) -> None:
        """Check every partition. Raises `UsageError` if a file cannot be read."""
        self._commands = Commands(self._archive, self._findings)
        stated = set()
        for inputs in self._archive.seal.inputs:
            stated.add(inputs.partition)
            self._check_partition(inputs)
        for part in self._archive.seal.parts:
            if part.topic in ("lineage", "contributions", "scores") and part.records and part.partition not in stated:
                self._findings.add("seal", f"{part.title} has records, but the seal states no input of them")
        self._recomputation.finish(self._findings)

    def _check_partition(self, inputs: InputRange) -> None:
        offsets = _Inputs(self._archive, inputs, self._findings)
        if not self._never_scored(inputs.partition):
            self._check_scored(inputs, offsets)
        offsets.finish()
        self.undecided += offsets.undecided()

    def _never_scored(self, partition: int) -> bool:
        """Whether the partition has an empty part of lineage, and no part of scores."""
        lineage, *others = (self._archive.part(topic, partition) for topic in ("lineage", "contributions", "scores"))
        return lineage is not None and not lineage.records and others == [None, None]

    def _check_scored(self, inputs: InputRange, offsets: _Inputs) -> None:
        partition, done = inputs.partition, inputs.first
        served = _Served(
            _Ahead(self._decoded("contributions", partition, _contribution)),
            _Ahead(self._decoded("scores", partition, msgspec.json.Decoder(Score).decode)),
            f"[{partition}]",
            self._findings,
        )
        for batch, timestamp, offset in self._lineage(partition):
            where = f"lineage[{partition}] offset {offset}"
            if int(batch.offset[0]) < done or int(batch.offset[-1]) >= inputs.next:
                self._findings.add("record", f"{where}: source offsets {batch.offset[0]} to "
                                   f"{batch.offset[-1]} do not follow {done - 1}")  # fmt: skip
            assert self._commands is not None
            self._commands.check(batch.header, where, timestamp, len(batch))
            rows = batch.rows()
            for row, contribution, score in served.of(rows):
                self._add(row, contribution, score)
            done = int(batch.offset[-1]) + 1
            offsets.check(batch.offset, done)
        served.finish()

    def _add(self, row: LineageRow, contribution: Contribution, score: Score) -> None:
        stated = {(each.ensemble, each.version, each.arm) for each in (row, contribution, score)}
        if len(stated) > 1 or row.event_id != contribution.event_id:
            what = "score, contribution and lineage state different versions or events"
            self._findings.add("record", f"event {score.event_id}: {what}")
        self.scores[f"{score.ensemble} {score.version}"] += 1
        self._recomputation.add(score, Recorded(contribution, row), row.manifest_sha256)

    def _lineage(self, partition: int) -> Iterator[tuple[LineageBatch, int, int]]:
        """The lineage records of one partition, with their timestamps and offsets."""
        part = self._part("lineage", partition)
        for records in () if part is None else self._blocks(part):
            rows = zip(records.value, records.timestamp.tolist(), records.offset.tolist(), strict=True)
            for value, timestamp, offset in rows:
                try:
                    yield LineageBatch(value or b""), timestamp, offset
                except NOT_A_RECORD as error:
                    self._findings.add("record", f"lineage[{partition}] offset {offset}: {error}")

    def _decoded(self, topic: str, partition: int, decode: Callable[[bytes], T]) -> Iterator[T]:
        part = self._part(topic, partition)
        for records in () if part is None else self._blocks(part):
            for value, offset in zip(records.value, records.offset.tolist(), strict=True):
                try:
                    yield decode(value or b"")
                except NOT_A_RECORD as error:
                    self._findings.add("record", f"{topic}[{partition}] offset {offset}: {error}")

    def _part(self, topic: str, partition: int) -> Part | None:
        part = self._archive.part(topic, partition)
        if part is None:
            self._findings.add("record", f"the archive does not contain {topic}[{partition}]")
        return part

    def _blocks(self, part: Part) -> Iterator[RawRecords]:
        for records in self._archive.read(SourcePartition(part.name, part.partition), part.start, part.stop):
            yield records
            self._done += len(records)
            if self._on_progress is not None:
                self._on_progress(self._done)


def _contribution(value: bytes) -> Contribution:
    return decode_contribution(value)[0]


class _Ahead(Generic[T]):
    """An iterator whose next `_AHEAD` items can be looked at."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._ahead: deque[T] = deque()

    def peek(self) -> T | None:
        """The next item; None at the end."""
        return self._ahead[0] if self._fill(1) else None

    def take(self) -> T:
        """The next item, which there must be."""
        self._fill(1)
        return self._ahead.popleft()

    def distance(self, matches: Callable[[T], bool]) -> int | None:
        """How far ahead the next item is that `matches`; None if it is not near."""
        self._fill(_AHEAD)
        return next((place for place, item in enumerate(self._ahead) if matches(item)), None)

    def _fill(self, n: int) -> bool:
        while len(self._ahead) < n:
            try:
                self._ahead.append(next(self._items))
            except StopIteration:
                break
        return bool(self._ahead)


class _Served:
    """Pairs rows of lineage with contributions, by source offset, and with scores, by event id, in their order."""

    def __init__(
        self, contributions: _Ahead[Contribution], scores: _Ahead[Score], where: str, findings: Findings
    ) -> None:
        self._contributions, self._scores = contributions, scores
        self._where, self._findings = where, findings

    def of(self, rows: list[LineageRow]) -> Iterator[tuple[LineageRow, Contribution, Score]]:
        """The rows that have a contribution and a score. What is alone is a difference."""
        for row in rows:
            contribution = self._contribution(row)
            if contribution is None:
                continue
            score = self._score(contribution)
            if score is not None:
                yield row, contribution, score

    def finish(self) -> None:
        """Report what is left over."""
        while (contribution := self._contributions.peek()) is not None:
            self._alone("contribution", contribution.event_id, "lineage")
            self._contributions.take()
        while (score := self._scores.peek()) is not None:
            self._alone("score", score.event_id, "contribution")
            self._scores.take()

    def _contribution(self, row: LineageRow) -> Contribution | None:
        """The contribution of the row's source offset."""
        while (found := self._contributions.peek()) is not None:
            if found.source.offset == row.source.offset:
                return self._contributions.take()
            if found.source.offset > row.source.offset:
                distance = self._contributions.distance(lambda c: c.source.offset == row.source.offset)
                if distance is None:
                    break
                what = "is before an event of a lower source offset"
                self._findings.add("record", f"contributions{self._where}: event {found.event_id} {what}")
            else:
                self._alone("contribution", found.event_id, "lineage")
            self._contributions.take()
        self._alone("lineage", row.event_id, "contribution")
        return None

    def _score(self, contribution: Contribution) -> Score | None:
        """The score of the contribution's event."""
        event_id = contribution.event_id
        distance = self._scores.distance(lambda score: score.event_id == event_id) if self._differs(event_id) else 0
        if distance is None or self._scores.peek() is None:
            self._alone("contribution", event_id, "score")
            return None
        for _ in range(distance):
            self._alone("score", self._scores.take().event_id, "contribution at its place")
        return self._scores.take()

    def _differs(self, event_id: str) -> bool:
        score = self._scores.peek()
        return score is not None and score.event_id != event_id

    def _alone(self, what: str, event_id: str, lacks: str) -> None:
        self._findings.add("record", f"event {event_id}: {what}{self._where} without {lacks}")


class _Inputs:
    """Checks that each input offset was scored or dead-lettered, once."""

    def __init__(self, archive: Archive, inputs: InputRange, findings: Findings) -> None:
        self._archive, self._inputs, self._findings = archive, inputs, findings
        self._topic = inputs.topic
        source = SourcePartition(inputs.topic, inputs.partition)
        if inputs.restarted:
            findings.note(
                f"{inputs.topic}[{inputs.partition}] begins again at offset {inputs.first}, below the end of the "
                "previous archive: Kafka had lost records of it, or the consumer group was reset"
            )
        if not inputs.listed:
            findings.note(
                f"{inputs.topic}[{inputs.partition}]: whether all inputs were scored is not checked, because the topic "
                "no longer had them when the archive was made"
            )
        self._given = _Offsets(r.offset for r in archive.read(source, inputs.first, inputs.next))
        letters = archive.part("dead_letters", inputs.partition)
        found: Iterator[NDArray[np.int64]] = iter(())
        if letters is not None:
            source = SourcePartition(letters.name, letters.partition)
            found = (letter_offsets(r, inputs.topic) for r in archive.read(source, letters.start, letters.stop))
        self._letters = _Offsets(offsets[offsets >= 0] for offsets in found)

    def check(self, scored: NDArray[np.int64], until: int) -> None:
        """Compare the inputs below `until`, which were not checked yet, with `scored` and the dead letters."""
        self._report(scored[1:][np.diff(scored) <= 0], "was scored more than once")
        letters = self._letters.below(until)
        self._report(letters[1:][np.diff(letters) <= 0], "was dead-lettered more than once")
        if not self._inputs.listed:
            return
        given = self._given.below(until)
        if len(given) == len(scored) and (given == scored).all() and not len(letters):
            return
        done = np.concatenate([scored, letters])
        kinds = (
            (np.setdiff1d(given, done), "was not scored and not dead-lettered"),
            (np.setdiff1d(done, given), "was scored or dead-lettered, but is not among the inputs"),
            (np.intersect1d(scored, letters), "was both scored and dead-lettered"),
        )
        for offsets, what in kinds:
            self._report(offsets, what)

    def finish(self) -> None:
        """Check what follows the last scored input."""
        self.check(_NO_OFFSETS, self._inputs.next)

    def undecided(self) -> int:
        """The number of inputs after those that were decided, which are noted."""
        part, offsets = self._archive.part("transactions", self._inputs.partition), _NO_OFFSETS
        if part is not None:
            source = SourcePartition(part.name, part.partition)
            found = [records.offset for records in self._archive.read(source, self._inputs.next, part.stop)]
            offsets = np.concatenate([offsets, *found])
        if len(offsets):
            name = f"{self._topic}[{self._inputs.partition}]"
            self._findings.note(
                f"{name}: {len(offsets):,} inputs from offset {offsets[0]} on were not decided in the period: neither "
                "scored nor dead-lettered"
            )
        return len(offsets)

    def _report(self, offsets: NDArray[np.int64], what: str) -> None:
        if len(offsets):
            more = f" (and {len(offsets) - 1:,} more)" if len(offsets) > 1 else ""
            name = f"{self._topic}[{self._inputs.partition}]"
            self._findings.add("input", f"{name} offset {offsets[0]}{more} {what}", len(offsets))


class _Offsets:
    """Ascending offsets from chunks."""

    def __init__(self, chunks: Iterator[NDArray[np.int64]]) -> None:
        self._chunks: Any = chunks
        self._rest = np.empty(0, np.int64)

    def below(self, until: int) -> NDArray[np.int64]:
        """The next offsets that are below `until`."""
        out = []
        while True:
            n = int(np.searchsorted(self._rest, until))
            out.append(self._rest[:n])
            self._rest = self._rest[n:]
            if len(self._rest):
                break
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._rest = chunk
        return np.concatenate(out)
