"""Where to read from: the one place that compares committed offsets with the applied offsets in Redis.

An applied offset below the committed one means committed batches whose rows are missing: they are read again, for their
features only. If they are many, or after a loss of rows, scoring goes on without features, and `catch_up` brings the
rows up to date beside it. If retention has deleted some of them, the rows are rebuilt from the remaining log and marked
partial (ADR 0026). If the group had not read them either, it goes on from the first offset of the log. An applied
offset above the committed one means that somebody rewound the group: refused, because features would count events
twice.

A broker that has just started may report old offsets, or none. So committed offsets are looked up again while they are
below an applied offset, or below what this process has committed: scoring from there would publish scores twice.

A committed offset above the end of the log means that Kafka has lost records. That is refused too: reading would go on
only after as many new records as were lost, without any of them.

A group is new if it has no offset of any input. With "latest", the scorer of the first input partition then commits the
ends of all inputs in one call, and the others wait for it. So a partition without an offset, in a group that has one of
another partition, was added later: it is scored from its beginning, or the records of before this start would be lost.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stream_scorer.clock import Deadline
from stream_scorer.errors import (
    LogTruncated,
    OffsetsBehind,
    StartPending,
    StateUnavailable,
    StreamScorerError,
    UsageError,
)
from stream_scorer.pipeline.availability import State
from stream_scorer.pipeline.ports import LogEnds, Reader
from stream_scorer.positions import Offsets, SourcePartition
from stream_scorer.serde.decoder import LabelDecoder, TransactionDecoder
from stream_scorer.serde.raw import RawRecords
from stream_scorer.spec.model import CheckedSpec, duration_ms
from stream_scorer.state.rows import AppliedOffsets, AppliedRowStore, Beginning

_log = logging.getLogger(__name__)
StartPolicy = Literal["earliest", "latest"]
# The largest gap that is read again before scoring goes on (new records wait for half a second). A larger one is closed
# in a background thread. More than a crash leaves at the default batch size (two batches).
MAX_INLINE = 10_000
# How long to look up committed offsets again that are below what is known to be committed, and how often. A coordinator
# of Kafka 4.1 that loads twice after a restart answers from offsets that it has only begun to load, or from none.
BEHIND_S, LOOK_UP_EVERY_S = 10.0, 0.2
_DELETED = (
    "%s[%d] no longer has the offset %d, which the group reads next; its first one is %d. Either retention has deleted "
    "unread records (%d offsets), which are not scored then, or these were transaction markers. Reading goes on from %d"
)
_NEW_GROUP = "the group is new: it scores %s on"
_NEW_PARTITIONS = "the group has no offset of these partitions, which are scored from their beginning: %s on"


@dataclass(slots=True)
class StartingPoints:
    """Per partition, the offset to read from and the first offset to score; before it, records only bring features.

    `state` is READY if features can be used from there on. Otherwise reading starts at the committed offsets, scores go
    without features, and `why` says more about it.
    """

    read_from: dict[SourcePartition, int]
    score_from: dict[SourcePartition, int]
    state: State = State.READY
    why: str = ""

    @property
    def behind(self) -> int:
        """How many offsets lie between applied and committed offsets."""
        return sum(self.score_from[s] - offset for s, offset in self.read_from.items())


def starting_points(
    reader: Reader,
    store: AppliedRowStore | None,
    sources: list[SourcePartition],
    inputs: list[SourcePartition],
    start: StartPolicy,
    max_inline: int = MAX_INLINE,
    find_beginning: Callable[[], Beginning] = Beginning,
    scored: Offsets = MappingProxyType({}),
) -> StartingPoints:
    """Decide for the assigned `sources`; `inputs` are all partitions of the input topics.

    Applied offsets are read before committed ones. Both only grow, and an applied offset only up to what is committed:
    in this order no other scorer that still works on our partitions can make an applied offset look ahead.

    Args:
        max_inline: a gap of more records than this is closed in the background. find_beginning: called when rows are
            rebuilt; see `find_beginning`. scored: offsets that this process knows to be committed.

    Raises:
        OffsetsBehind: the broker reports offsets below `scored`, or none, for some seconds. UsageError: an applied
            offset remains above the committed one, or there is no committed one any more. A partition is new since the
            scorer started. LogTruncated: a committed offset remains above the end of its partition. StartPending:
            another scorer has still to commit where the new group begins.
    """
    look_up = partial(_look_up, reader, sources, inputs, start, scored)
    try:
        applied = store.open() if store is not None else None
        found = look_up(applied)
        if store is None:
            found.commit_begun(reader)
            return StartingPoints(dict(found.score_from), found.score_from)
        if applied is None and not found.new_group:
            # A scorer begins the rows of a new group before it commits offsets, perhaps since they were opened above.
            applied = store.open()
            found = look_up(applied)
        if applied is None or _lack_records(reader, applied, found.score_from):
            lost = bool(store.epoch) or not found.new_group
            _begin(reader, store, inputs, find_beginning(), scored, applied, found.begun, lost=lost)
            applied = store.open()
            found = look_up(applied)
        if applied is None:
            raise StateUnavailable("Redis lost its data as soon as it had some")
        store.probe_write()
    except StateUnavailable as error:
        found = look_up(None)
        found.commit_begun(reader)
        return StartingPoints(dict(found.score_from), found.score_from, State.DEGRADED, error.message)
    read_from = _read_from(applied, sources)
    found.commit_begun(reader)
    return _choose(applied, StartingPoints(read_from, found.score_from), max_inline)


def _choose(applied: AppliedOffsets, points: StartingPoints, max_inline: int) -> StartingPoints:
    """`points` if the rows can be read up to them at once; otherwise where to score without features meanwhile."""
    score_from = points.score_from
    if not applied.complete:
        return StartingPoints(dict(score_from), score_from, State.REBUILDING, "rows were lost")
    if points.behind > max_inline:
        return StartingPoints(dict(score_from), score_from, State.CATCHING_UP, f"{points.behind} records behind")
    if points.behind:
        _log.info("catching up features: %d records to read again without scoring", points.behind)
    return points


def _lack_records(reader: Reader, applied: AppliedOffsets, score_from: dict[SourcePartition, int]) -> bool:
    """Whether retention has deleted records that the rows still lack: no catch-up can complete them.

    Offsets that may have been markers count as records, so that no feature is called fresh that lacks one.
    """
    for source, stop in score_from.items():
        at = applied.next_offset.get(source, stop)
        if at < stop and at < reader.offset_bounds(source)[0]:
            _log.error("%s[%d] no longer has the records from %d on that features need", *source, at)
            return True
    return False


def _read_from(applied: AppliedOffsets, sources: list[SourcePartition]) -> dict[SourcePartition, int]:
    """The applied offset of each source. Raises `UsageError` for a partition that the rows do not know."""
    added = [source for source in sources if source not in applied.next_offset]
    if added:
        raise UsageError(
            f"{added[0].topic}[{added[0].partition}] was added while the scorer runs",
            hint="Restart every scorer of the group: features are rebuilt for the new number of partitions.",
        )
    return {source: applied.next_offset[source] for source in sources}


@dataclass(frozen=True, slots=True)
class _Committed:
    """What a look-up of committed offsets found.

    Attributes:
        score_from: per source, the first offset to score. begun: where the group begins only now, to be committed; in a
            new group, partitions of other scorers may be among them.
        deleted: per source from whose committed offset on records were deleted, that offset and the first that is left.
        new_group: whether the group has no offset of any input.
    """

    score_from: dict[SourcePartition, int]
    begun: dict[SourcePartition, int]
    deleted: dict[SourcePartition, tuple[int, int]]
    new_group: bool
    start: StartPolicy

    def commit_begun(self, reader: Reader) -> None:
        """Commit where the group begins, before the first batch: "latest" must not move if the scorer restarts."""
        for source, (at, first) in self.deleted.items():
            _log.warning(_DELETED, *source, at, first, first - at, first)
        if self.begun:
            places = ", ".join(f"{s.topic}[{s.partition}] from {at}" for s, at in sorted(self.begun.items()))
            text = _NEW_GROUP if self.new_group else _NEW_PARTITIONS
            # With "earliest", each scorer of a new group commits for its own partitions.
            _log.log(logging.WARNING if self.start == "latest" else logging.INFO, text, places)
        if begun := self.begun | {source: first for source, (_, first) in self.deleted.items()}:
            reader.commit(begun)


def _look_up(
    reader: Reader,
    sources: list[SourcePartition],
    inputs: list[SourcePartition],
    start: StartPolicy,
    scored: Offsets,
    applied: AppliedOffsets | None,
) -> _Committed:
    """The first offset to score of each source, and where the group begins only now. Commits nothing.

    Offsets below `scored` or `applied` or above the end of the log, and none where there must be one, are looked up
    again for a while. Raises as `starting_points` does.
    """
    deadline = Deadline(BEHIND_S)
    while True:
        committed = reader.committed(sources)
        bounds = {source: reader.offset_bounds(source) for source in sources}
        found, deleted = _without_deleted(committed, bounds)
        new_group = set(found.values()) == {None}
        if new_group and _has_offset(reader, [s for s in inputs if s not in found]):
            # Its scorer may have committed for all since `found` was asked for.
            new_group = False
            bounds = {source: reader.offset_bounds(source) for source in sources}
            found, deleted = _without_deleted(reader.committed(sources), bounds)
        expected = found | dict.fromkeys(inputs) if new_group else found
        wrong = [error for s, at in expected.items() if (error := _behind(s, at, scored.get(s), applied)) is not None]
        wrong += [error for s, at in found.items() if (error := _truncated(s, at, bounds[s][1])) is not None]
        if not wrong:
            break
        if not deadline.remaining_s:
            raise wrong[0]
        time.sleep(LOOK_UP_EVERY_S)
    begun = {source: bounds[source][0] for source, at in found.items() if at is None}
    if new_group and start == "latest":
        if min(inputs) not in sources:
            first = min(inputs)
            raise StartPending(
                f"waiting for the scorer that owns {first.topic}[{first.partition}]: it commits where the group begins"
            )
        begun = {source: reader.offset_bounds(source)[1] for source in {*inputs, *sources}}
    score_from = {source: begun[source] if at is None else at for source, at in found.items()}
    return _Committed(score_from, begun, deleted, new_group, start)


def _has_offset(reader: Reader, sources: list[SourcePartition]) -> bool:
    """Whether the group has an offset of one of `sources`.

    One is asked for at a time: a broker gives no answer while a transaction holds an offset of any partition in it.
    """
    return any(at is not None for source in sources for at in reader.committed([source]).values())


def _without_deleted(
    committed: Mapping[SourcePartition, int | None], bounds: Mapping[SourcePartition, tuple[int, int]]
) -> tuple[dict[SourcePartition, int | None], dict[SourcePartition, tuple[int, int]]]:
    """`committed`, with the first offset of the log instead of one below it; and where this makes a difference.

    Retention may have deleted unread records. Or a partition was silent for so long that retention has deleted all of
    it: the committed offset may be that of the transaction marker at its end, and then nothing was lost.
    """
    deleted = {s: (at, bounds[s][0]) for s, at in committed.items() if at is not None and at < bounds[s][0]}
    return {s: at if at is None else max(at, bounds[s][0]) for s, at in committed.items()}, deleted


def _truncated(source: SourcePartition, at: int | None, end: int) -> LogTruncated | None:
    """What is wrong with the committed offset `at` of a partition that ends at `end`; None if nothing is."""
    if at is None or at <= end:
        return None
    return LogTruncated(
        f"{source.topic}[{source.partition}]", f"ends at the offset {end}, and the group had read up to {at}"
    )


def _behind(
    source: SourcePartition, at: int | None, scored: int | None, applied: AppliedOffsets | None
) -> StreamScorerError | None:
    """What is wrong with the committed offset `at`, which is None if there is none; None if nothing is.

    A partition from which the rows have records (its watermark shows it) had an offset.
    """
    where, answer = f"{source.topic}[{source.partition}]", "none" if at is None else str(at)
    if scored is not None and (at is None or at < scored):
        return OffsetsBehind(
            f"the broker reports an older offset of the group on {where} than before ({answer}, not {scored})",
            hint="A broker that has just started may do so for a while. Was the group reset while it ran?",
        )
    if applied is None:
        return None
    reached = applied.next_offset.get(source, 0)
    if at is None and applied.watermark.get(source, -1) >= 0:
        return UsageError(
            f"the group no longer has an offset of {where}, and features reach {reached}",
            hint="If the topic was created again, restart all scorers. Otherwise the offset has expired: Kafka deletes "
            "offsets of a group without members after `offsets.retention.minutes`. Set it again: "
            f"`kafka-consumer-groups.sh --reset-offsets --to-offset {reached} --execute` with the group and "
            "`--topic topic:partition`.",
        )
    if at is not None and at < reached:
        return UsageError(
            f"the features in Redis are ahead of the group's offset on {where} ({reached} > {at})",
            hint="If the topic was created again, restart all scorers. If the group was rewound, score again under "
            "another `scorer.group`, which gets its own features.",
        )
    return None


def find_beginning(
    log: LogEnds, transactions: str, labels: str, checked: CheckedSpec, *, cautious: bool = True
) -> Beginning:
    """From where on the log is complete: of each topic, the latest time of all partitions that lost records.

    Retention deletes what is older, so windows that reach further back cannot be complete. Of a partition without a
    record, only the retention of its topic shows what it may have had. If that is not known, these may be records up to
    now, and if not `cautious`, it is assumed to have had none.
    """
    of_transactions, of_labels = TransactionDecoder(checked), LabelDecoder(checked)
    unknown = int(time.time() * 1e3) if cautious else 0
    ahead_ms = duration_ms(checked.spec.time.max_ahead)
    beginning = Beginning(
        _first_time(
            log, transactions, lambda r: of_transactions.decode(r.value, r.timestamp)[0].event_time, ahead_ms, unknown
        ),
        _first_time(log, labels, lambda r: of_labels.decode(r.value, r.timestamp)[0].labelled_at, ahead_ms, unknown),
    )
    if any(beginning):
        remaining = ", ".join(
            f"{topic} from {datetime.fromtimestamp(ms / 1e3, UTC):%Y-%m-%d %H:%M} UTC on"
            for topic, ms in zip((transactions, labels), beginning, strict=True)
            if ms
        )
        _log.warning("the log has only %s: features whose windows reach further back are partial", remaining)
    return beginning


def _first_time(
    log: LogEnds, topic: str, times: Callable[[RawRecords], NDArray[np.int64]], ahead_ms: int, unknown: int
) -> int:
    newest, emptied = 0, False
    for source, (low, high) in log.bounds(topic).items():
        if low > 0:
            pieces = ((times(records), records.timestamp) for records in log.read(source, low, high))
            found = next(((at, written) for at, written in pieces if len(at)), None)
            if found is None:
                emptied = True
            else:
                # A record may be uploaded months after its event: its event time says little about those before it.
                newest = max(newest, int(found[0][0]), min(int(found[1][0]), int(time.time() * 1e3)))
    return max(newest, _time_of_deleted(log, topic, ahead_ms, unknown)) if emptied else newest


def _time_of_deleted(log: LogEnds, topic: str, ahead_ms: int, unknown: int) -> int:
    """The latest event time that a deleted record of `topic` may have; `unknown` if its retention is not known."""
    now_ms, keeps_ms = int(time.time() * 1e3), log.retention_ms(topic)
    # Retention compares with Kafka's timestamps. An event may be ahead of that of its record.
    return unknown if keeps_ms is None else now_ms - max(keeps_ms - ahead_ms, 0)


def _begin(
    reader: Reader,
    store: AppliedRowStore,
    inputs: list[SourcePartition],
    beginning: Beginning,
    scored: Offsets,
    given_up: AppliedOffsets | None,
    begun: Offsets,
    *,
    lost: bool,
) -> None:
    """Begin the rows anew. `given_up` is what the rows before held, if that is known; `begun`: see `_Committed`."""
    target: dict[SourcePartition, int] = {}
    if lost:
        _log.error("features were lost: they are rebuilt from the log, scoring goes on without them")
        target = _targets(reader, inputs, scored, given_up, begun)
    store.init({source: reader.offset_bounds(source)[0] for source in inputs}, target, beginning)


def _targets(
    reader: Reader,
    inputs: list[SourcePartition],
    scored: Offsets,
    given_up: AppliedOffsets | None,
    begun: Offsets,
) -> dict[SourcePartition, int]:
    """What the group has committed, also of partitions of other scorers: the rows are complete once they hold it.

    One old offset in an answer makes the others doubtful, so it is asked for again for a while. Having none is doubtful
    too, except of partitions in `begun`, because a scorer commits where it begins. No target is below what is known to
    be committed.

    Raises:
        OffsetsBehind: the broker reports offsets below `scored`, or none, for some seconds.
    """
    known = [scored] if given_up is None else [scored, given_up.next_offset, given_up.target]
    least = {source: max(offsets.get(source, 0) for offsets in known) for source in inputs}
    deadline = Deadline(BEHIND_S)
    while True:
        found = {s: begun.get(s) if at is None else at for s, at in reader.committed(inputs).items()}
        if all(at is not None and at >= least[source] for source, at in found.items()):
            break
        if not deadline.remaining_s:
            behind = [error for s, at in found.items() if (error := _behind(s, at, scored.get(s), None)) is not None]
            if behind:
                raise behind[0]
            break
        time.sleep(LOOK_UP_EVERY_S)
    return {source: max(at or 0, least[source]) for source, at in found.items()}
