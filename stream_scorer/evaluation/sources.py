"""The input of an evaluation: a range of the topics or of files, as columns in the order of a replay (`replay.order`).

Labels that were given after the stated time are removed before the order is determined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from stream_scorer.arrays import Bools, Ints
from stream_scorer.evaluation.columns import TransactionFile
from stream_scorer.evaluation.first_range import FirstRange
from stream_scorer.evaluation.labels import KnownLabels
from stream_scorer.kafka.range_reader import RangeReader
from stream_scorer.kafka.topics import Topics
from stream_scorer.parquet import is_parquet
from stream_scorer.replay.files import FileInput
from stream_scorer.replay.order import Extract, Extractors, Owners, Run, Stream, in_order
from stream_scorer.replay.pieces import Range
from stream_scorer.replay.sources import file_streams, topic_streams, transaction_bounds
from stream_scorer.serde.columns import (
    join_labels,
    slice_labels,
    slice_transactions,
    take_labels,
    take_transactions,
)
from stream_scorer.serde.decoder import LabelDecoder, Labels, TransactionDecoder, Transactions
from stream_scorer.serde.raw import RawRecords
from stream_scorer.spec.model import CheckedSpec

# Rows of a Parquet file that are decoded together: a batch never spans two chunks.
CHUNK = 16_384
# Rows of a Parquet file: their number n, the places of the valid ones among them (k,) int64, and these.
Chunk = tuple[int, Ints, Transactions]


@dataclass(slots=True)
class ColumnRun:
    """Valid records in order.

    Attributes:
        time: (n,) int64, the running maximum of event time, which orders the transactions.
        scored: (n,) bool, whether each is in the range; the others only update features.
        labels, before: k labels, and per label (k,) the number of transactions of the run before it.
        records: the number of input records of the run, refused ones included. refused: of these, rejected
            transactions in the range.
    """

    transactions: Transactions
    time: Ints
    scored: Bools
    labels: Labels
    before: Ints
    records: int
    refused: int


class Source(Protocol):
    """Where transactions and labels come from; read once, from the start.

    Attributes:
        about: what identifies the input, for a resumed evaluation and for the report. total: the number of records.
        labels: the outcomes. warm: whether records before the range update features.
    """

    about: dict[str, str]
    total: int
    labels: KnownLabels

    def runs(self) -> Iterator[ColumnRun]:
        """The records up to the end of the range, in order."""
        ...


class FileSource:
    """Parquet files of transactions and labels. Raises `UsageError` for a missing file or column.

    Attributes:
        transactions: the path of the transactions.
    """

    def __init__(
        self, transactions: Path, labels: Path | None, checked: CheckedSpec, scored: Range, as_of: int | None, *,
        warm: bool,
    ) -> None:  # fmt: skip
        self.transactions, self._file = transactions, TransactionFile(transactions, checked)
        self._scored, self._warm = scored, warm
        self._none = _no_labels(checked)
        self.labels = KnownLabels(checked, as_of)
        parts, pools = [], {name: dict[str | None, str | None]() for name in checked.label_entities}
        if labels is not None:
            for chunk in FileInput(labels, "labels", checked, is_label=True).chunks():
                parts.append(_kept(self.labels.add(chunk), pools))
            self.labels.refused.require_few(labels)
        self.labels.complete()
        self._label = join_labels(parts) if parts else self._none
        self._label_time = np.maximum.accumulate(self._label.labelled_at)
        self.total = self._file.rows
        self.about = {"transactions": _identity(transactions)} | _about(self.labels, scored, warm)

    def runs(self) -> Iterator[ColumnRun]:
        """See `Source.runs`."""
        return self.runs_of((n, valid.row, valid) for n, valid in self._file.chunks(CHUNK))

    def empty_chunks(self) -> Iterator[Chunk]:
        """No chunks of a file without valid transactions. Raises `UsageError` if its event times are not times."""
        for _ in self._file.chunks(CHUNK):
            pass
        return iter(())

    def runs_of(self, chunks: Iterable[Chunk]) -> Iterator[ColumnRun]:
        """`runs`, of `chunks` that were read elsewhere, each of `CHUNK` rows of the file.

        Only `event_time` matters to the result; the other columns are passed through.
        """
        newest, at = -1, 0
        begun, start, end = self._warm, self._scored.time_start, self._scored.time_end
        for records, places, transactions in chunks:
            time = np.maximum.accumulate(np.maximum(transactions.event_time, newest))
            # The range has the transactions ``[first, stop)``, and the rows from the one to the other.
            started = start is None or newest >= start
            first = 0 if start is None else int(np.searchsorted(time, start))
            newest = int(time[-1]) if len(time) else newest
            ended = end is not None and newest >= end
            stop = len(time) if end is None else int(np.searchsorted(time, end))
            rows = np.append(places, records)
            refused = int(rows[stop]) - (0 if started else int(rows[first])) - (stop - first)
            if not len(time):
                yield ColumnRun(transactions, time, time > 0, self._none, time, records, refused)
                continue
            to = int(np.searchsorted(self._label_time, newest, side="right"))
            labels = slice_labels(self._label, at, to)
            # A label comes before the transactions of the same time.
            before = np.searchsorted(time, self._label_time[at:to], side="left")
            at = to
            inside = np.arange(len(time)) >= first
            run = ColumnRun(transactions, time, inside, labels, before.astype(np.int64), records, refused)
            if ended:
                run = _until(run, stop)
                if begun or run.scored.any():
                    yield run if begun else _from_first(run)
                return
            if not begun:
                if not inside.any():
                    yield ColumnRun(
                        slice_transactions(transactions, 0, 0), time[:0], inside[:0], self._none, time[:0], records, 0
                    )
                    continue
                begun, run = True, _from_first(run)
            yield run


@dataclass(frozen=True, slots=True)
class Records:
    """Undecoded input.

    Attributes:
        streams: one stream per partition, opened by each call. outcomes: all labels, those after the range included.
        about, total: see `Source`.
    """

    streams: Callable[[Extractors], Sequence[Stream]]
    outcomes: Callable[[], Iterator[RawRecords]]
    about: dict[str, str]
    total: int


class StreamSource:
    """Topics, or files of JSON lines: records that must pass the decoder."""

    def __init__(
        self, records: Records, topics: Topics, checked: CheckedSpec, scored: Range, as_of: int | None, *, warm: bool
    ) -> None:
        self._streams, self._topics, self._checked = records.streams, topics, checked
        self._scored, self._warm, self._as_of = scored, warm, as_of
        self.labels = KnownLabels(checked, as_of)
        for chunk in records.outcomes():
            self.labels.add(chunk)
        self.labels.complete()
        self.about = records.about | _about(self.labels, scored, warm)
        self.total = records.total

    def runs(self) -> Iterator[ColumnRun]:
        """See `Source.runs`."""
        extractors = Extractors(self._checked)
        streams = [self._known(stream) if stream.is_label else stream for stream in self._streams(extractors)]
        decoder, label_decoder = TransactionDecoder(self._checked), LabelDecoder(self._checked)
        begun = self._warm
        for raw in in_order(streams, self._topics.transactions, self._topics.labels):
            if self._scored.over(raw):
                return
            run = self._decoded(self._scored.up_to_end(raw), decoder, label_decoder)
            if not begun:
                if not run.scored.any():
                    continue
                begun, run = True, _from_first(run)
            yield run

    def _known(self, stream: Stream) -> Stream:
        """`stream`, in which labels that are not yet known have no time, so that they do not move the order."""
        if self._as_of is None:
            return stream
        limit, extract = self._as_of, stream.extract

        def known(records: RawRecords) -> tuple[Ints, Owners]:
            times, owners = extract(records)
            return np.where(times > limit, -1, times), owners

        wrapped: Extract = known
        return Stream(stream.source, stream.chunks, wrapped, True)

    def _decoded(self, raw: Run, decoder: TransactionDecoder, label_decoder: LabelDecoder) -> ColumnRun:
        transactions, rejected = decoder.decode(raw.transactions.value, raw.transactions.timestamp)
        labels, _ = label_decoder.decode(raw.labels.value, raw.labels.timestamp)
        if self._as_of is not None:
            labels = take_labels(labels, np.flatnonzero(labels.labelled_at <= self._as_of))
        # The number of valid transactions before each record.
        valid = np.zeros(len(raw.transactions) + 1, np.int64)
        valid[transactions.row + 1] = 1
        before = np.cumsum(valid)[raw.before[labels.row]]
        flags = self._scored.begun(raw)
        return ColumnRun(
            transactions,
            raw.transaction_time[transactions.row],
            flags[transactions.row],
            labels,
            before,
            len(raw.transactions) + len(raw.labels),
            sum(bool(flags[row]) for row, _ in rejected),
        )


def from_files(
    transactions: Path, labels: Path | None, topics: Topics, checked: CheckedSpec, scored: Range, as_of: int | None, *,
    warm: bool,
) -> Source:  # fmt: skip
    """Files: Parquet, or JSON lines with the values of the topics. Raises `UsageError`."""
    if transactions.is_file() and is_parquet(transactions):
        return FileSource(transactions, labels, checked, scored, as_of, warm=warm)
    inputs = [FileInput(transactions, topics.transactions, checked, is_label=False)]
    if labels is not None:
        inputs.append(FileInput(labels, topics.labels, checked, is_label=True))

    def streams(extractors: Extractors) -> list[Stream]:
        return file_streams(inputs, topics, extractors)

    about = {"transactions": _identity(transactions)}
    total = sum(file.count() for file in inputs)
    records = Records(streams, lambda: (chunk for file in inputs[1:] for chunk in file.chunks()), about, total)
    source = StreamSource(records, topics, checked, scored, as_of, warm=warm)
    if labels is not None:
        source.labels.refused.require_few(labels)
    return source


def from_topics(
    reader: RangeReader, topics: Topics, checked: CheckedSpec, scored: Range, as_of: int | None, *, warm: bool,
    first: FirstRange | None = None,
) -> Source:  # fmt: skip
    """A range of the topics: with `first`, the offsets of the first start. Raises `UsageError`, `BrokerUnavailable`."""
    bounds = transaction_bounds(reader, topics, scored) | reader.bounds(topics.labels)
    if first is not None:
        bounds = first.resolve(bounds, {"range": _range(scored, warm), "labels_as_of": as_of})
    label_bounds = {source: each for source, each in bounds.items() if source.topic == topics.labels}

    def streams(extractors: Extractors) -> list[Stream]:
        return topic_streams(reader, topics, bounds, extractors)

    def outcomes() -> Iterator[RawRecords]:
        for source, (low, high) in label_bounds.items():
            yield from reader.read(source, low, high)

    ends = [
        f"{s.topic}[{s.partition}] {low}..{high}" for s, (low, high) in bounds.items() if s.topic == topics.transactions
    ]
    total = sum(max(high - low, 0) for low, high in bounds.values())
    about = {"transactions": ", ".join(ends)}
    if first is not None and first.topic_ids:  # a topic that was created again may have the same offsets
        about["topic_ids"] = ", ".join(first.topic_ids)
    records = Records(streams, outcomes, about, total)
    return StreamSource(records, topics, checked, scored, as_of, warm=warm)


def _until(run: ColumnRun, stop: int) -> ColumnRun:
    """`run` up to its transaction `stop`."""
    kept = int(np.searchsorted(run.before, stop, side="right"))
    return ColumnRun(
        slice_transactions(run.transactions, 0, stop),
        run.time[:stop],
        run.scored[:stop],
        slice_labels(run.labels, 0, kept),
        run.before[:kept],
        run.records,
        run.refused,
    )


def _from_first(run: ColumnRun) -> ColumnRun:
    """`run` from its first transaction in the range on, without the labels before it."""
    first, n = int(np.argmax(run.scored)), len(run.time)
    labels = np.flatnonzero(run.before > first)
    return ColumnRun(
        take_transactions(run.transactions, np.arange(first, n)),
        run.time[first:],
        run.scored[first:],
        take_labels(run.labels, labels),
        run.before[labels] - first,
        run.records,
        run.refused,
    )


def _kept(labels: Labels, pools: Mapping[str, dict[str | None, str | None]]) -> Labels:
    """`labels` with what features need: no event ids but their hashes, and the ids of entities with label features,
    each of them once in memory, in `pools` by entity."""
    ids = {name: [pool.setdefault(i, i) for i in labels.entity_ids[name]] for name, pool in pools.items()}
    return replace(labels, event_id=[""] * len(labels), entity_ids=ids)


def _no_labels(checked: CheckedSpec) -> Labels:
    none = LabelDecoder(checked).decode([], np.zeros(0, np.int64))[0]
    return replace(none, entity_ids={name: [] for name in checked.label_entities})


def _identity(path: Path) -> str:
    """Name, size and time of change of a file."""
    found = path.stat()
    return f"{path.name}, {found.st_size} bytes, changed {found.st_mtime_ns}"


def _about(labels: KnownLabels, scored: Range, warm: bool) -> dict[str, str]:
    """Range, and number and digest of the known labels: a label that is given later must change nothing."""
    return {"range": _range(scored, warm), "labels": f"{labels.given} labels, {labels.sha256[:16]}"}


def _range(scored: Range, warm: bool) -> str:
    bounds = (scored.time_start, scored.time_end, scored.offset_start, scored.offset_end)
    start, end = (next((str(b) for b in pair if b is not None), "") for pair in (bounds[::2], bounds[1::2]))
    return f"{start or 'first'} to {end or 'last'}{', features from earlier records' if warm else ''}"
