"""The Faust app: counts batches of summaries and outcomes in Redis, and publishes the records of windows.

Faust provides the consumer loop: membership, assignment, `take`. It stores neither state nor offsets. Both are in
Redis, where one script per source partition and batch changes them together; every assignment seeks to the applied
offsets.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import msgspec
from aiokafka.errors import KafkaError
from faust.types import TP

from stream_scorer.clock import Clock
from stream_scorer.errors import BrokerUnavailable, StateGap, StreamScorerError
from stream_scorer.monitor.credentials import credentials
from stream_scorer.monitor.metrics import APPLIED_LAG, COUNTED, OTHER_PANES, SUMMARY_GAPS, UNREADABLE
from stream_scorer.monitor.tally import DAY_MS, Cells, count_outcome, count_summary, new_cells, require_counts
from stream_scorer.monitor.transport import LinkedMessage, MonitorFaust, SeekingConsumer
from stream_scorer.monitor.window_reports import (
    CLOSE,
    LABELLED_AT,
    LABELS_LOST_BEFORE,
    LOST_BEFORE,
    MATURE,
    OTHER_PANES_TO,
    PANE,
    REVISIONS_FROM,
    WindowReporter,
    record_key,
)
from stream_scorer.observability.metrics import Metrics
from stream_scorer.records import NOT_A_RECORD, Outcome, ScoreSummary
from stream_scorer.state.counters import Batch, CounterStore, Head

# One script call adds a few thousand counts in a few milliseconds. A larger call would block Redis for too long.
TAKE = 300
TAKE_WITHIN_S = 0.2
# The longest time a partition may stay without progress while fetched records are not counted. After a seek, Faust
# skips records that it had fetched before, and fetches them again within a second.
STUCK_S = 30.0
HEALTH_EVERY_S = 0.5
# The longest time the app may be without its group. aiokafka gives up after some answers of a broker that restarts.
JOIN_S = 60.0
# Faust leaves its group, which waits for the broker.
STOP_FAUST_S = 5.0

# Maximum that stores, by source, up to where only markers follow records that were deleted without being counted.
CUT = "cut:"

_log = logging.getLogger("stream_scorer.monitor.app")
R = TypeVar("R", ScoreSummary, Outcome)


@dataclass(frozen=True)
class AppSettings:
    """Names and addresses of one monitor. Intervals in seconds. `label_sources` are counted separately.

    `horizon_ms` is ``labels.horizon``, `pane_ms` is ``monitor.pane``.
    """

    bootstrap: str
    group: str
    instance: str
    summaries: str
    outcomes: str
    metrics_topic: str
    state_dir: Path
    emit_every_s: float = 1.0
    label_sources: frozenset[str] = frozenset()
    horizon_ms: int = DAY_MS
    pane_ms: int = 3_600_000


@dataclass(frozen=True, slots=True)
class Linked:
    """The value and position of one record: ``[previous, offset)`` contains no other record."""

    previous: int
    offset: int
    value: bytes


def source_name(topic: str, partition: int) -> str:
    """The name under which Redis stores the applied offset of a source."""
    return f"{topic}:{partition}"


def runs(records: Iterable[Linked]) -> list[list[Linked]]:
    """Split `records` into runs of consecutive records."""
    found: list[list[Linked]] = []
    for record in records:
        if found and found[-1][-1].offset + 1 == record.previous:
            found[-1].append(record)
        else:
            found.append([record])
    return found


class Counter(Protocol):
    """Counts the records of one topic."""

    def __call__(self, cells: Cells, maxima: dict[str, int], values: Sequence[bytes]) -> None:
        """Add `values` to `cells` and `maxima`."""
        ...

    def lost_before(self, value: bytes) -> dict[str, int]:
        """Up to which event time counts lack records, if retention deleted all records before `value`: a maximum."""
        ...


class Tallier:
    """Counts runs of records of one topic into the store."""

    def __init__(
        self,
        store: CounterStore,
        metrics: Metrics,
        topic: str,
        count: Counter,
        due: tuple[str, ...],
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._topic = topic
        self._count = count
        self._due = due
        self._acknowledged: dict[int, int] = {}
        self._cut: dict[int, int] = {}
        self._lock = threading.Lock()

    def seek(self, positions: Mapping[int, int], cut: Mapping[int, int]) -> None:
        """Continue from the applied offsets `positions`, by partition.

        `cut` has, by partition, the offset of the first record whose predecessors were deleted without being counted.
        """
        self._acknowledged = dict(positions)
        self._cut = dict(cut)

    def counted(self, partition: int) -> int:
        """The applied offset that Redis acknowledged last; 0 for a partition that is not assigned."""
        return self._acknowledged.get(partition, 0)

    def pass_markers(self, partition: int, follows: int, position: int) -> None:
        """Advance the applied offset from `follows` to `position`, between which only markers lie. Blocking.

        Raises:
            StateGap: Redis lost acknowledged counts.
        """
        source = source_name(self._topic, partition)
        with self._lock:
            if position <= follows or self.counted(partition) != follows:
                return
            cut = self._cut.get(partition) == follows
            maxima = {f"{CUT}{source}": position} if cut else {}
            if self._store.apply(Batch(source, follows, position, {}, maxima)).status == "applied":
                self._acknowledged[partition] = position
                if cut:
                    self._cut[partition] = position

    def apply(self, partition: int, records: Sequence[Linked]) -> None:
        """Count a run. Blocking.

        Raises:
            StateGap: Redis lost acknowledged counts, or records are missing.
        """
        with self._lock:
            self._apply(partition, records)

    def _apply(self, partition: int, records: Sequence[Linked]) -> None:
        source = source_name(self._topic, partition)
        rest = list(records)
        while rest:
            cells, maxima = new_cells(), dict[str, int]()
            self._count(cells, maxima, [record.value for record in rest])
            if self._cut.get(partition) == rest[0].previous:
                lost = next(filter(None, (self._count.lost_before(record.value) for record in rest)), None)
                maxima |= lost or {}
                if lost is None:  # none of them has a time: the next ones do
                    self._cut[partition] = rest[-1].offset + 1
            answer = self._store.apply(
                Batch(source, rest[0].previous, rest[-1].offset + 1, cells, maxima, self._due if cells else ())
            )
            if answer.status == "trim":
                rest = [record for record in rest if record.offset >= answer.applied]
                if rest:
                    rest[0] = Linked(answer.applied, rest[0].offset, rest[0].value)
                continue
            if answer.status == "gap":
                # Fetched before a seek, so it comes again; or a record before it was lost after its fetch, and the
                # watch of `MonitorApp` finds that this partition makes no progress.
                require_kept(source, self.counted(partition), answer.applied)
            else:
                if answer.status == "applied":
                    self._metrics.count(COUNTED, len(rest), self._topic)
                self._acknowledged[partition] = answer.applied
            return


def require_kept(source: str, counted: int, applied: int) -> None:
    """Require that the offset `applied` is not below `counted`, which Redis acknowledged before."""
    if applied < counted:
        raise StateGap(
            f"Redis lost counts: the applied offset of {source} is {applied}, below {counted}, which it acknowledged",
            hint="It continues from the applied offset.",
        )


def readable(values: Sequence[bytes], decode: Callable[[bytes], R], topic: str, metrics: Metrics) -> Iterator[R]:
    """The readable records of `values`.

    Counts and skips others, which would otherwise end the part at every start.
    """
    for value in values:
        try:
            yield decode(value)
        except (*NOT_A_RECORD, ValueError) as error:
            metrics.count(UNREADABLE, 1, topic)
            _log.warning("%s: an unreadable record is ignored: %s", topic, error)


def raise_to(maxima: dict[str, int], name: str, value: int) -> None:
    """Raise one of `maxima` to `value`, if it is lower or missing."""
    maxima[name] = max(value, maxima.get(name, value))


class SummaryCounter:
    """Decodes summaries and counts them; those with panes of another length than `pane_ms` are left out.

    A scorer with another spec than the monitor writes these: before a change of the spec, or during it. Their
    transactions cannot be divided among the panes, so the windows up to the newest of them are not reported.
    """

    def __init__(self, topic: str, metrics: Metrics, *, pane_ms: int) -> None:
        self._decoder = msgspec.json.Decoder(ScoreSummary)
        self._topic = topic
        self._metrics = metrics
        self._pane_ms = pane_ms
        self._logged: set[int] = set()
        metrics.begin(UNREADABLE, [topic])
        self._follows: dict[tuple[str, int], tuple[int, int]] = {}

    def __call__(self, cells: Cells, maxima: dict[str, int], values: Sequence[bytes]) -> None:
        for summary in readable(values, self._decode, self._topic, self._metrics):
            self._check(summary)
            newest = max((pane.pane for pane in summary.panes), default=None)
            if newest is None:
                continue
            raise_to(maxima, f"{PANE}{summary.partition}", newest)
            if summary.pane_ms == self._pane_ms:
                count_summary(cells, summary)
            else:
                self._leave_out(summary)
                raise_to(maxima, OTHER_PANES_TO, newest + summary.pane_ms - 1)

    def lost_before(self, value: bytes) -> dict[str, int]:
        """See `Counter.lost_before`."""
        summary = _read(self._decode, value)
        panes = [pane.pane for pane in summary.panes] if summary is not None else []
        return {LOST_BEFORE: max(panes)} if panes else {}

    def _decode(self, value: bytes) -> ScoreSummary:
        summary = self._decoder.decode(value)
        require_counts(summary)
        return summary

    def _leave_out(self, summary: ScoreSummary) -> None:
        self._metrics.count(OTHER_PANES)
        if summary.pane_ms not in self._logged:
            self._logged.add(summary.pane_ms)
            text = (
                "%s: summaries with panes of %d ms are not counted, and windows up to them are not reported, because "
                "monitor.pane of this monitor is %d ms: do all scorers and monitors have the same spec?"
            )
            _log.warning(text, self._topic, summary.pane_ms, self._pane_ms)

    def _check(self, summary: ScoreSummary) -> None:
        # Several versions and arms summarise the same range, so a range can repeat.
        at = (summary.topic, summary.partition)
        first, following = self._follows.get(at, (summary.first_offset, summary.first_offset))
        if summary.first_offset > following:
            self._metrics.count(SUMMARY_GAPS)
            _log.warning("%s[%d]: no summary of offsets %d to %d", *at, following, summary.first_offset)
        self._follows[at] = (min(first, summary.first_offset), max(following, summary.next_offset))


class OutcomeCounter:
    """Decodes outcomes and counts them in panes of `pane_ms`; `sources` of labels separately."""

    def __init__(
        self, topic: str, metrics: Metrics, sources: frozenset[str], *, pane_ms: int, horizon_ms: int = DAY_MS
    ) -> None:
        self._sources = sources
        self._pane_ms = pane_ms
        self._horizon_ms = horizon_ms
        self._decode = msgspec.json.Decoder(Outcome).decode
        self._topic = topic
        self._metrics = metrics
        metrics.begin(UNREADABLE, [topic])

    def __call__(self, cells: Cells, maxima: dict[str, int], values: Sequence[bytes]) -> None:
        for outcome in readable(values, self._decode, self._topic, self._metrics):
            count_outcome(cells, outcome, self._sources, pane_ms=self._pane_ms, horizon_ms=self._horizon_ms)
            raise_to(maxima, LABELLED_AT, outcome.labelled_at)

    def lost_before(self, value: bytes) -> dict[str, int]:
        """See `Counter.lost_before`."""
        outcome = _read(self._decode, value)
        return {LABELS_LOST_BEFORE: outcome.labelled_at} if outcome is not None else {}


def _read(decode: Callable[[bytes], R], value: bytes) -> R | None:
    try:
        return decode(value)
    except (*NOT_A_RECORD, ValueError):  # it is counted with the others
        return None


class Stuck:
    """Finds partitions of which records were fetched and are not counted, without any progress for `STUCK_S`."""

    def __init__(self) -> None:
        self._since: dict[TP, tuple[int, float]] = {}

    def check(self, fetched: Mapping[TP, int], counted: Mapping[TP, int], now_s: float) -> StateGap | None:
        """The error of the first such partition.

        Args:
            fetched: offset after the last record that was fetched, by partition.
            counted: applied offset, by partition. now_s: monotonic time.
        """
        behind = {tp: at for tp, at in counted.items() if at < fetched.get(tp, 0)}
        since = {tp: self._since.get(tp, (at, now_s)) for tp, at in behind.items()}
        self._since = {tp: since[tp] if since[tp][0] == at else (at, now_s) for tp, at in behind.items()}
        for tp, (at, start) in self._since.items():
            if now_s - start > STUCK_S:
                return StateGap(
                    f"{source_name(tp.topic, tp.partition)}: records up to {fetched[tp]} were fetched, and those after "
                    f"{at} are not counted",
                    hint="It reads again from the applied offset.",
                )
        return None


class MonitorApp:
    """The Faust app and the timer of window reports, in an event loop that the caller owns.

    Args:
        published: whether `monitor-metrics` has records. Blocks.
        labels_lost: up to which event time (ms) transactions may lack labels that the joiner of this process lost.
    """

    def __init__(
        self,
        settings: AppSettings,
        store: CounterStore,
        reporter: WindowReporter,
        published: Callable[[], bool],
        clock: Clock,
        metrics: Metrics,
        labels_lost: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._reporter = reporter
        self._published = published
        self._labels_lost = labels_lost
        self._clock = clock
        self._metrics = metrics
        self._encode = msgspec.json.Encoder().encode
        summaries, outcomes = settings.summaries, settings.outcomes
        pane_ms = settings.pane_ms
        count_summaries = SummaryCounter(summaries, metrics, pane_ms=pane_ms)
        count_outcomes = OutcomeCounter(
            outcomes, metrics, settings.label_sources, pane_ms=pane_ms, horizon_ms=settings.horizon_ms
        )
        self._talliers = {
            summaries: Tallier(store, metrics, summaries, count_summaries, (CLOSE, MATURE)),
            outcomes: Tallier(store, metrics, outcomes, count_outcomes, ()),
        }
        self.ready = False
        self.failure: BaseException | None = None
        self._ended = asyncio.Event()
        self._reached: dict[TP, tuple[int, int]] = {}
        self.faust = self._faust_app()

    def _faust_app(self) -> MonitorFaust:
        settings = self._settings
        app = MonitorFaust(
            settings.group,
            broker=";".join(f"kafka://{address.strip()}" for address in settings.bootstrap.split(",")),
            broker_credentials=credentials(settings.bootstrap),
            datadir=str(settings.state_dir / "faust"),
            store="memory://",
            autodiscover=False,
            web_enabled=False,
            topic_disable_leader=True,
            topic_allow_declare=False,
            stream_wait_empty=False,
            stream_recovery_delay=0,
            stream_buffer_maxsize=2 * TAKE,
            broker_session_timeout=10,
            broker_heartbeat_interval=3,
            broker_max_poll_records=2 * TAKE,
            consumer_auto_offset_reset="earliest",
            consumer_group_instance_id=settings.instance,
            worker_redirect_stdouts=False,
        )
        app.positions = self._positions
        app.fail = self.fail
        for topic in self._talliers:
            # Without acks, Faust neither tracks gaps nor commits offsets. On a transactional topic both only cost time.
            channel = app.topic(topic, value_type=bytes, value_serializer="raw", key_serializer="raw", acks=False)
            app.agent(channel, concurrency=1, name=f"count-{topic}")(self._agent(topic))
        return app

    def _agent(self, topic: str) -> Callable[[Any], Awaitable[None]]:
        async def count(stream: Any) -> None:
            # Faust would acknowledge and skip events that raise. Here an exception ends the run instead.
            try:
                async for events in stream.take_events(TAKE, within=TAKE_WITHIN_S):
                    await self._count(topic, [event.message for event in events])
            except Exception as error:
                self.fail(error)
                raise

        return count

    async def _count(self, topic: str, messages: list[LinkedMessage]) -> None:
        by_partition: dict[int, list[Linked]] = {}
        for message in messages:
            record = Linked(message.previous, message.offset, message.value or b"")
            by_partition.setdefault(message.partition, []).append(record)
        for partition, records in by_partition.items():
            for run in runs(records):
                await asyncio.to_thread(self._talliers[topic].apply, partition, run)

    async def _positions(
        self,
        partitions: Iterable[TP],
        first: Callable[..., Awaitable[Any]],
        end: Callable[..., Awaitable[Any]],
    ) -> dict[TP, int]:
        """The applied offsets; initialises the missing ones."""
        wanted = list(partitions)
        if not wanted:
            return {}
        earliest, ends = await first(*wanted), await end(*wanted)
        names = {tp: source_name(tp.topic, tp.partition) for tp in wanted}
        head = await asyncio.to_thread(self._open, {names[tp]: earliest[tp] for tp in wanted})
        positions = {}
        for tp in wanted:
            applied = head.applied[names[tp]]
            if applied > ends[tp]:
                raise StreamScorerError(
                    f"the applied offset of {names[tp]} in Redis ({applied}) is above the end of the topic "
                    f"({ends[tp]})",
                    hint="The topic was recreated. Start the monitor with another --namespace.",
                )
            if applied < earliest[tp]:
                _log.warning(
                    "%s: retention deleted offsets %d to %d before they were counted", names[tp], applied, earliest[tp]
                )
                applied = await asyncio.to_thread(self._store.skip_to, names[tp], earliest[tp])
            positions[tp] = applied
        for topic, tallier in self._talliers.items():
            mine = {tp: at for tp, at in positions.items() if tp.topic == topic}
            tallier.seek(
                {tp.partition: at for tp, at in mine.items()},
                {
                    tp.partition: at
                    for tp, at in mine.items()
                    if at == earliest[tp] > 0 or at == head.maxima.get(f"{CUT}{names[tp]}")
                },
            )
        self.ready = True
        return positions

    def _open(self, first: dict[str, int]) -> Head:
        """Open the counters; blocks.

        Redis may have lost them, or come back with older ones. So revisions continue above all that were published.
        """
        now_ms = self._clock.now_ms()
        if not self.ready and self._published():
            self._store.raise_maximum(REVISIONS_FROM, now_ms)
        return self._store.open(str(now_ms), first)

    def fail(self, error: BaseException) -> None:
        """End the run with `error`; `run` raises the first one, and the part restarts."""
        if self.failure is None:
            self.failure = error
        self._ended.set()

    def stop(self) -> None:
        """End the run without an error."""
        self._ended.set()

    async def run(self) -> None:
        """Count and report until `stop`.

        Raises:
            Exception: the failure of an agent, a seek or the window reports.
        """
        starting = asyncio.create_task(self.faust.start(), name="faust")
        tasks = [
            asyncio.create_task(self._watch(starting), name="watch"),
            asyncio.create_task(self._report_forever(), name="window-reports"),
        ]
        try:
            await self._ended.wait()
        finally:
            for task in (*tasks, starting):
                task.cancel()
            await asyncio.gather(*tasks, starting, return_exceptions=True)
            try:
                await asyncio.wait_for(self.faust.stop(), STOP_FAUST_S)
            except TimeoutError:
                _log.warning("Faust did not stop within %.0f s", STOP_FAUST_S)
        if isinstance(self.failure, KafkaError):
            raise BrokerUnavailable(
                f"Kafka at {self._settings.bootstrap}: {self.failure}",
                hint="Is it running? `stream-scorer stack status`, or check the setting `kafka.bootstrap`.",
            ) from self.failure
        if self.failure is not None:
            raise self.failure

    async def _watch(self, starting: asyncio.Task[None]) -> None:
        """Report what ends Faust without an exception in an agent.

        These are a crash, a group that is never joined, and records that were fetched and never reached the agent.
        """
        member_at = self._clock.monotonic()
        stuck = Stuck()
        while True:
            reason = self.faust.crash_reason
            if reason is None and starting.done() and not starting.cancelled():
                reason = starting.exception()
            if self.faust.joined and not self.faust.rebalancing:
                member_at = self._clock.monotonic()
                fetched = cast(SeekingConsumer, self.faust.consumer).fetched
                counted = {tp: self._talliers[tp.topic].counted(tp.partition) for tp in fetched}
                reason = reason or stuck.check(fetched, counted, member_at)
            elif self._clock.monotonic() - member_at > JOIN_S:
                reason = reason or BrokerUnavailable(
                    f"the windows have had no partitions from the group {self._settings.group} for {JOIN_S:.0f} s"
                )
            if reason is not None:
                self.fail(reason)
            await asyncio.sleep(HEALTH_EVERY_S)

    async def _report_forever(self) -> None:
        try:
            while True:
                await asyncio.sleep(self._settings.emit_every_s)
                if self.ready and not self.faust.rebalancing:
                    await self._judge_once()
        except Exception as error:
            self.fail(error)
            raise

    def _raise_lost(self) -> None:
        """Mark the windows that lack labels which the joiner lost. Blocks.

        In every turn, as Redis may come back without the mark.
        """
        before = self._labels_lost()
        if before is not None:
            self._store.raise_maximum(LABELS_LOST_BEFORE, before)

    async def _judge_once(self) -> None:
        await asyncio.to_thread(self._raise_lost)
        reports = await asyncio.to_thread(self._reporter.turn)
        if reports.records:
            sent = [
                await self.faust.producer.send(
                    self._settings.metrics_topic, record_key(record), self._encode(record), None, None, None
                )
                for record in reports.records
            ]
            await asyncio.gather(*sent)
        await asyncio.to_thread(self._reporter.settle, reports)
        await self._pass_markers()
        await self._check_applied()

    async def _pass_markers(self) -> None:
        """Advance the applied offsets past final markers, where a partition has had no record since the last look.

        The reporter then distinguishes a silent partition from one with a backlog by the ends of partitions alone, also
        if another worker reads it.
        """
        reached = cast(SeekingConsumer, self.faust.consumer).reached
        for tp, (follows, position) in reached.items():
            if self._reached.get(tp) == (follows, position) and not self.faust.rebalancing:
                await asyncio.to_thread(self._talliers[tp.topic].pass_markers, tp.partition, follows, position)
        self._reached = reached

    async def _check_applied(self) -> None:
        """Require that Redis still has the applied offsets that it acknowledged, and measure the lag.

        Without this, counts that Redis lost at a fail-over would be missing until the next record of their partition.
        """
        consumer = self.faust.consumer
        counted = {
            source_name(tp.topic, tp.partition): self._talliers[tp.topic].counted(tp.partition)
            for tp in consumer.assignment()
        }
        head = await asyncio.to_thread(self._store.head)
        if self.faust.rebalancing:
            return
        for source, offset in counted.items():
            require_kept(source, offset, head.applied.get(source, 0))
        ends = await consumer.highwaters(*consumer.assignment())
        for topic in self._talliers:
            lag = sum(
                max(end - head.applied.get(source_name(topic, tp.partition), 0), 0)
                for tp, end in ends.items()
                if tp.topic == topic
            )
            self._metrics.set(APPLIED_LAG, lag, topic)
