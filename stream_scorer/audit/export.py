"""Export: copies a period of the topics and the models that decided in it into a sealed archive (ADR 0043).

The lineage of the period gives the source offsets, and these select contributions, scores and dead letters.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_scorer import __version__
from stream_scorer.audit.archive import Archive
from stream_scorer.audit.files import writable
from stream_scorer.audit.parts import PartWriter
from stream_scorer.audit.seal import (
    SEAL_FILE,
    ArchivedVersion,
    Chain,
    Content,
    InputRange,
    Part,
    Seal,
    record_digests,
    render,
)
from stream_scorer.errors import UsageError
from stream_scorer.kafka.topics import Topics
from stream_scorer.positions import SourcePartition
from stream_scorer.records import NOT_A_RECORD
from stream_scorer.replay.recorded import CLOCK_SKEW_MS, TimedRanges
from stream_scorer.serde.lineage import FIRST_OFFSET, NEXT_OFFSET, LineageBatch
from stream_scorer.serde.raw import Headers, RawRecords

# Headers of this product's own. Others come from the user's records and are not archived.
_LINEAGE_HEADERS = (FIRST_OFFSET, NEXT_OFFSET)
_LETTER_HEADERS = (
    "error.code", "error.path", "source.topic", "source.partition", "source.offset", "source.timestamp",
    "value.length", "value.sha256",
)  # fmt: skip
# One partition each, archived from their beginning. All but `control` may be absent.
_LOGS = ("control", "audit", "serving_state", "incidents")
# The number of consecutive event ids that locate the first score.
_PATTERN = 512
_RETENTION = "Retention may have removed records. Begin later with --from."

# Ensemble, version and manifest digest.
Version = tuple[str, str, str]
T = TypeVar("T")
# Inputs that arrived within this time before the end of the period may be decided after it.
DECIDED_WITHIN_MS = 300_000
# More digits than an offset has.
_MAX_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Scope:
    """What to export: the period ``[since, until)`` by timestamps of the lineage (ms), and what is kept of user data.

    `previous` is the archive that this one continues; then `since` has no effect.
    """

    since: int | None
    until: int
    previous: Archive | None = None
    with_transactions: bool = False


class _Decided(msgspec.Struct):
    """The part of a score that locates it."""

    event_id: str


class _Source(msgspec.Struct):
    """The part of a source that locates it."""

    offset: int


class _Contributed(_Decided):
    """The part of a contribution that locates it."""

    source: _Source


@dataclass(slots=True)
class _Span:
    """The source offsets ``[first, next)`` of one partition, and the first event ids of its `rows` scores.

    `restarted`: it begins below the end of the previous archive.
    """

    first: int
    next: int
    rows: int = 0
    event_ids: list[str] = field(default_factory=list)
    restarted: bool = False


@dataclass(slots=True)
class _Found:
    """What the lineage names."""

    versions: dict[Version, None] = field(default_factory=dict)
    spec_hashes: set[str] = field(default_factory=set)
    code_versions: set[str] = field(default_factory=set)
    control_offset: int = -1


def export_archive(
    reader: TimedRanges,
    topics: Topics,
    folder: Path,
    scope: Scope,
    keep: Callable[[Path, Version], ArchivedVersion],
    now_ms: int,
    on_progress: Callable[[int], None] | None = None,
) -> Seal:
    """Write the archive of a period to `folder`, which must not exist, and return its seal.

    Args:
        keep: copies a version into the archive in the folder that is given.
        on_progress: is called with the number of records so far.

    Raises:
        UsageError: the folder exists or cannot be written, the topics lack a part of the period, or it has no scores.
        ArtifactError, RegistryUnavailable: a version that decided is not found.
    """
    if folder.exists():
        raise UsageError(f"{folder} exists already", hint="Name a new folder: archives are never changed.")
    root = folder.with_name(f".{folder.name}.{os.getpid()}.unfinished")
    with writable(root):
        root.mkdir(parents=True)
    try:
        seal = _Export(reader, topics, root, scope, on_progress).run(keep, now_ms)
        with writable(folder):
            (root / SEAL_FILE).write_bytes(render(seal))
            root.rename(folder)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return seal


class _Export:
    """One export. The parts are written in the order of the methods that `run` calls."""

    def __init__(
        self, reader: TimedRanges, topics: Topics, root: Path, scope: Scope, on_progress: Callable[[int], None] | None
    ) -> None:
        self._reader, self._topics, self._root, self._scope = reader, topics, root, scope
        self._on_progress = on_progress
        self._previous = scope.previous
        self._chain = Chain("" if scope.previous is None else scope.previous.seal.digest)
        self._parts: list[Part] = []
        self._spans: dict[int, _Span] = {}
        self._found = _Found()
        self._done = 0

    def run(self, keep: Callable[[Path, Version], ArchivedVersion], now_ms: int) -> Seal:
        """Write all parts and models."""
        for partition in sorted(source.partition for source in self._reader.bounds(self._topics.lineage)):
            self._lineage(partition)
        if not any(span.rows for span in self._spans.values()):
            raise UsageError(
                "the period has no scores", hint="Check --from and --to, which are UTC, and the topic prefix."
            )
        scored = [p for p, span in self._spans.items() if span.rows or self._continues("scores", p)]
        for partition in scored:
            self._contributions(partition, self._spans[partition])
        for partition in scored:
            self._scores(partition, self._spans[partition])
        for partition, span in self._spans.items():
            self._dead_letters(partition, span)
        inputs = [self._inputs(partition, span) for partition, span in self._spans.items()]
        for topic in _LOGS:
            self._log(topic)
        return Seal(
            created_at=now_ms,
            code_version=__version__,
            since=self._since,
            until=self._scope.until,
            previous="" if self._previous is None else self._previous.seal.digest,
            spec_hashes=sorted(self._found.spec_hashes),
            scorer_versions=sorted(self._found.code_versions),
            inputs=inputs,
            versions=[keep(self._root, version) for version in self._found.versions],
            parts=self._parts,
            chain=self._chain.value,
        ).closed()

    def _lineage(self, partition: int) -> None:
        """Write the lineage of the period; it gives the span of source offsets."""
        source = SourcePartition(self._topics.lineage, partition)
        start, stop = self._start("lineage", partition), self._reader.offset_at(source, self._scope.until)
        writer, span = self._writer("lineage", partition), None
        for chunk in self._read(source, start, stop):
            for place, value in enumerate(chunk.value):
                batch = self._decode_lineage(chunk, place, value)
                if span is None:
                    span = self._spans[partition] = self._span(partition, int(batch.offset[0]), scored=True)
                if int(batch.offset[0]) < span.next:
                    where = f"{source.topic}[{partition}] offset {chunk.offset[place]}"
                    raise UsageError(
                        f"{where}: source offset {batch.offset[0]} was scored again after {span.next - 1}",
                        hint="The consumer group was reset. Export up to the time of the reset (--to), then with "
                        "--after.",
                    )
                span.next, span.rows = int(batch.offset[-1]) + 1, span.rows + len(batch)
                span.event_ids += batch.event_id[: _PATTERN - len(span.event_ids)]
                self._note(batch)
            writer.add(_own_headers(chunk, _LINEAGE_HEADERS))
        if span is None and (first := self._first_arrived(partition)) is not None:
            self._spans[partition] = self._span(partition, first)
        self._parts.append(writer.close(start, max(start, stop)))

    def _first_arrived(self, partition: int) -> int | None:
        """The first input of the period in a partition that was not scored in it; None if it is not known."""
        if self._continues("scores", partition):
            return 0  # the input range of the previous archive has it
        source = SourcePartition(self._topics.transactions, partition)
        if not self._exists(source):
            return None
        if self._since is not None:
            return self._reader.offset_at(source, self._since)
        decided = self._reader.bounds(self._topics.lineage)[SourcePartition(self._topics.lineage, partition)][0]
        # Retention may have deleted decisions on earlier inputs.
        return None if decided else self._reader.bounds(source.topic)[source][0]

    def _span(self, partition: int, first: int, *, scored: bool = False) -> _Span:
        """The span that begins with source offset `first`, or where that of the previous archive ended.

        If the first score has a lower offset than that, Kafka lost records of the input, or the group was reset.
        """
        before = [] if self._previous is None else self._previous.seal.inputs
        ended = next((each.next for each in before if each.partition == partition), first)
        restarted = scored and first < ended
        return _Span(first, first, restarted=True) if restarted else _Span(ended, ended)

    def _decode_lineage(self, chunk: RawRecords, place: int, value: bytes | None) -> LineageBatch:
        try:
            batch = LineageBatch(value or b"")
        except NOT_A_RECORD as error:
            raise self._foreign(chunk, place, error) from None
        return batch

    def _note(self, batch: LineageBatch) -> None:
        header, found = batch.header, self._found
        found.versions |= dict.fromkeys((v.ensemble, v.version, v.manifest_sha256) for v in header.versions)
        found.spec_hashes.add(header.spec_hash)
        found.code_versions.add(header.code_version)
        found.control_offset = max(found.control_offset, -1 if header.control_offset is None else header.control_offset)

    def _contributions(self, partition: int, span: _Span) -> None:
        """Write as many contributions as there are rows of lineage, from the first one with the same event id.

        After a reset of the consumer group, several have the same source offset.
        """
        source = SourcePartition(self._topics.contributions, partition)
        self._rows_of_period("contributions", source, span)

    def _rows_of_period(self, topic: str, source: SourcePartition, span: _Span) -> None:
        """Write the `span.rows` records of a topic that has one for each row of lineage, in the same order."""
        start, high = self._start(topic, source.partition), self._reader.bounds(source.topic)[source][1]
        decode = msgspec.json.Decoder(_Contributed if topic == "contributions" else _Decided).decode
        if not self._continues(topic, source.partition) and span.rows:
            start = self._first_of(source, start, high, span.event_ids, decode)
        writer, stop, left = self._writer(topic, source.partition), start, span.rows
        for chunk in self._read(source, start, high):
            part = chunk.take(np.arange(min(left, len(chunk))))
            if len(part):
                self._decode(part, decode)
                left, stop = left - len(part), int(part.offset[-1]) + 1
                writer.add(_own_headers(part, ()))
            if not left:
                break
        if left:
            raise UsageError(
                f"{source.topic}[{source.partition}] lacks {left:,} of {span.rows:,} {topic} of the period",
                hint=_RETENTION,
            )
        self._parts.append(writer.close(start, stop))

    def _scores(self, partition: int, span: _Span) -> None:
        """Write as many scores as there are rows of lineage, from the first one with the same event id."""
        self._rows_of_period("scores", SourcePartition(self._topics.scores, partition), span)

    def _first_of(
        self, source: SourcePartition, start: int, high: int, event_ids: list[str], decode: Callable[[bytes], _Decided]
    ) -> int:
        """The offset of the first of the records that have `event_ids` in a row."""
        seen: deque[tuple[str, int]] = deque(maxlen=len(event_ids))
        for chunk in self._reader.read(source, start, high):
            for each, offset in zip(self._decode(chunk, decode), chunk.offset.tolist(), strict=True):
                seen.append((each.event_id, offset))
                if seen[0][0] == event_ids[0] and [event_id for event_id, _ in seen] == event_ids:
                    return seen[0][1]
        raise UsageError(
            f"{source.topic}[{source.partition}] does not have the first records of the period", hint=_RETENTION
        )

    def _dead_letters(self, partition: int, span: _Span) -> None:
        """Write the dead letters whose source offsets are in the span; those that follow its last score extend it."""
        source = SourcePartition(self._topics.dead_letters, partition)
        if not self._exists(source):
            return
        start = self._start("dead_letters", partition)
        end = self._letters_end(source, start, span)
        writer = self._writer("dead_letters", partition, self._user_content)
        for chunk in self._read(source, start, end):
            offsets = letter_offsets(chunk, self._topics.transactions)
            inside = np.flatnonzero((offsets < 0) | (offsets >= span.first))
            if len(inside):
                span.next = max(span.next, int(offsets[inside].max()) + 1)
                writer.add(self._user_data(chunk.take(inside), _LETTER_HEADERS))
        self._parts.append(writer.close(start, end))

    def _letters_end(self, source: SourcePartition, start: int, span: _Span) -> int:
        """The end of the dead letters of the period.

        Those of transactions after the last score belong to it by their time, because no source offset limits them. So
        do those of labels, but one that is late does not end the period: a transaction of the span may follow.
        """
        stop = self._reader.offset_at(source, self._scope.until)
        limit, end = self._next_scored(source.partition), start
        for chunk in self._reader.read(source, start, self._reader.bounds(source.topic)[source][1]):
            offsets = letter_offsets(chunk, self._topics.transactions)
            in_time = chunk.offset < stop
            ours = np.where(offsets < 0, in_time, (offsets < span.next) | (in_time & (offsets < limit)))
            late = np.flatnonzero(~ours & (offsets >= 0))
            inside = np.flatnonzero(ours[: late[0] if len(late) else len(chunk)])
            if len(inside):
                end = int(chunk.offset[inside[-1]]) + 1
            if len(late):
                break
        return end

    def _next_scored(self, partition: int) -> int:
        """The source offset of the first score after the period; the largest integer if nothing was scored yet."""
        source = SourcePartition(self._topics.lineage, partition)
        start = next(part.stop for part in self._parts if (part.topic, part.partition) == ("lineage", partition))
        for chunk in self._reader.read(source, start, self._reader.bounds(source.topic)[source][1]):
            return int(self._decode_lineage(chunk, 0, chunk.value[0]).offset[0])
        return np.iinfo(np.int64).max

    def _inputs(self, partition: int, span: _Span) -> InputRange:
        """Write the input records of the span, or their digests, if the topic still has them.

        Those follow that arrived in the period and were not decided in it.
        """
        source = SourcePartition(self._topics.transactions, partition)
        listed = self._exists(source) and self._reader.bounds(source.topic)[source][0] <= span.first
        if listed:
            writer = self._writer("transactions", partition, self._user_content)
            arrived = self._reader.offset_at(source, self._scope.until - DECIDED_WITHIN_MS)
            stop = max(span.next, min(arrived, self._next_scored(partition)))
            for chunk in self._read(source, span.first, stop):
                writer.add(self._user_data(chunk, ()))
            self._parts.append(writer.close(span.first, stop))
        return InputRange(source.topic, partition, span.first, span.next, listed, span.restarted)

    def _log(self, topic: str) -> None:
        """Write a topic of one partition from its beginning; `control` at least up to the last command that decided."""
        source = SourcePartition(getattr(self._topics, topic), 0)
        if topic != "control" and not self._exists(source):
            return
        start, high = self._reader.bounds(source.topic)[source]
        stop = min(self._reader.offset_at(source, self._scope.until), high)
        if topic == "control":
            stop = min(max(stop, self._found.control_offset + 1), high)
        writer = self._writer(topic, 0)
        for chunk in self._read(source, start, stop):
            writer.add(_own_headers(chunk, ()))
        self._parts.append(writer.close(start, stop))

    @property
    def _since(self) -> int | None:
        """The start of the period (ms)."""
        return self._scope.since if self._previous is None else self._previous.seal.until

    @property
    def _user_content(self) -> Content:
        return "records" if self._scope.with_transactions else "digests"

    def _user_data(self, records: RawRecords, kept: tuple[str, ...]) -> RawRecords:
        """The user's records: whole, or the digest of each and the headers `kept`."""
        if self._scope.with_transactions:
            return records
        own = _own_headers(records, kept)
        own.key, own.value = [None] * len(own), list(record_digests(records))
        return own

    def _writer(self, topic: str, partition: int, content: Content = "records") -> PartWriter:
        return PartWriter(self._root, self._chain, topic, getattr(self._topics, topic), partition, content)

    def _read(self, source: SourcePartition, start: int, stop: int) -> Iterator[RawRecords]:
        for chunk in self._reader.read(source, start, stop):
            yield chunk
            self._done += len(chunk)
            if self._on_progress is not None:
                self._on_progress(self._done)

    def _continues(self, topic: str, partition: int) -> bool:
        """Whether the previous archive has this partition."""
        return self._previous is not None and self._previous.part(topic, partition) is not None

    def _start(self, topic: str, partition: int) -> int:
        """Where to begin to read: at the end of the previous archive, or at the time of the period.

        By time, topics other than lineage are read from a little earlier, because the clocks of scorers and brokers
        differ.
        """
        source = SourcePartition(getattr(self._topics, topic), partition)
        low = self._reader.bounds(source.topic)[source][0]
        before = None if self._previous is None else self._previous.part(topic, partition)
        if before is not None:
            if before.stop < low:
                raise UsageError(
                    f"{source.topic}[{partition}] no longer has offset {before.stop}, where the previous archive ended",
                    hint="Retention removed it. Export without --after, and keep the topics longer than the period.",
                )
            return before.stop
        if self._since is None:
            return low
        return self._reader.offset_at(source, self._since - (0 if topic == "lineage" else CLOCK_SKEW_MS))

    def _exists(self, source: SourcePartition) -> bool:
        try:
            return source in self._reader.bounds(source.topic)
        except UsageError:
            return False

    def _decode(self, chunk: RawRecords, decode: Callable[[bytes], T]) -> list[T]:
        out = []
        for place, value in enumerate(chunk.value):
            try:
                out.append(decode(value or b""))
            except NOT_A_RECORD as error:
                raise self._foreign(chunk, place, error) from None
        return out

    def _foreign(self, chunk: RawRecords, place: int, error: Exception) -> UsageError:
        where = f"{chunk.topic}[{chunk.partition[place]}] offset {chunk.offset[place]}"
        return UsageError(
            f"{where} is not a record of this product: {error}",
            hint="Did another program write to this topic?",
        )


def letter_offsets(letters: RawRecords, transactions: str) -> NDArray[np.int64]:
    """(n,) int64: source offsets of dead letters from the topic `transactions`, by their headers; -1 for others."""
    out = np.full(len(letters), -1, np.int64)
    for place, headers in enumerate(letters.headers):
        found = dict(headers or ())
        if (found.get("source.topic") or b"").decode(errors="replace") == transactions:
            text = found.get("source.offset") or b""
            out[place] = int(text) if text.isdigit() and len(text) <= _MAX_DIGITS else -1
    return out


def _own_headers(records: RawRecords, names: tuple[str, ...]) -> RawRecords:
    """The same records with the last header of each of `names` only."""
    own: list[Headers | None] = [None] * len(records)
    if names:
        own = [[(name, value) for name, value in dict(each or ()).items() if name in names] for each in records.headers]
    return RawRecords(
        records.topic, records.partition, records.offset, records.timestamp, list(records.key), list(records.value), own
    )
