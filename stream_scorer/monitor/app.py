"""The Faust app: batches of summaries and outcomes into marked counters, and the judge's turns to `monitor-metrics`.

Faust is the consumer loop: membership, assignment, `take`. It keeps no state and no offsets; those are in Redis,
changed together by one script per source partition and batch, and every assignment seeks to the marks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from aiokafka.errors import KafkaError
from faust.types import TP

from stream_scorer.clock import Clock
from stream_scorer.errors import BrokerUnavailable, StateGap, StreamScorerError
from stream_scorer.monitor.judge import CLOSE, LABELLED_AT, MATURE, PANE, Judge, record_key
from stream_scorer.monitor.metrics import COUNTED, MARK_LAG, SUMMARY_GAPS, UNREADABLE
from stream_scorer.monitor.tally import Cells, count_outcome, count_summary, new_cells
from stream_scorer.monitor.transport import UNLINKED, LinkedMessage, MonitorFaust
from stream_scorer.observability.metrics import Metrics
from stream_scorer.records import NOT_A_RECORD, Outcome, ScoreSummary
from stream_scorer.state.counters import Batch, CounterStore

# One script call adds a few thousand counts in a few milliseconds; more at once would hold up Redis.
TAKE = 300
TAKE_WITHIN_S = 0.2
# Records passed over since the last one counted, after which waiting for a redelivery has no point: Faust buffers at
# most its stream buffer and one fetch, both below this.
MAX_PASSED_OVER = 20_000
HEALTH_EVERY_S = 0.5

_log = logging.getLogger("stream_scorer.monitor.app")
R = TypeVar("R", ScoreSummary, Outcome)


@dataclass(frozen=True)
class AppSettings:
    """Names and addresses of one monitor. Intervals in seconds."""

    bootstrap: str
    group: str
    instance: str
    summaries: str
    outcomes: str
    metrics_topic: str
    state_dir: Path
    emit_every_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Linked:
    """One record's value and its place: no other record lies in ``[previous, offset)``."""

    previous: int
    offset: int
    value: bytes


def source_name(topic: str, partition: int) -> str:
    """The name of a source's mark."""
    return f"{topic}:{partition}"


def runs(records: Iterable[Linked]) -> list[list[Linked]]:
    """`records` cut wherever one does not follow the one before; unlinked ones are left out."""
    found: list[list[Linked]] = []
    for record in records:
        if record.previous == UNLINKED:
            continue
        if found and found[-1][-1].offset + 1 == record.previous:
            found[-1].append(record)
        else:
            found.append([record])
    return found


class Tallier:
    """Counts runs of records of one topic into the store."""

    def __init__(
        self,
        store: CounterStore,
        metrics: Metrics,
        topic: str,
        count: Callable[[Cells, dict[str, int], Sequence[bytes]], None],
        due: tuple[str, ...],
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._topic = topic
        self._count = count
        self._due = due
        self._acknowledged: dict[int, int] = {}
        self._passed_over: dict[int, int] = {}

    def forget(self) -> None:
        """After a seek: another worker may have counted since, and Redis may hold an older state."""
        self._acknowledged.clear()
        self._passed_over.clear()

    def apply(self, partition: int, records: Sequence[Linked]) -> None:
        """Count a run. Blocking.

        Raises:
            StateGap: Redis lost what it had acknowledged, or records are missing.
        """
        source = source_name(self._topic, partition)
        rest = list(records)
        while rest:
            cells, maxima = new_cells(), dict[str, int]()
            self._count(cells, maxima, [record.value for record in rest])
            answer = self._store.apply(
                Batch(source, rest[0].previous, rest[-1].offset + 1, cells, maxima, self._due if cells else ())
            )
            if answer.status == "trim":
                rest = [record for record in rest if record.offset >= answer.mark]
                if rest:
                    rest[0] = Linked(answer.mark, rest[0].offset, rest[0].value)
                continue
            if answer.status == "gap":
                self._pass_over(partition, source, answer.mark, len(rest))
            else:
                if answer.status == "applied":
                    self._metrics.count(COUNTED, len(rest), self._topic)
                self._acknowledged[partition] = answer.mark
                self._passed_over[partition] = 0
            return

    def _pass_over(self, partition: int, source: str, mark: int, count: int) -> None:
        """Records fetched before a seek may arrive after it, ahead of the mark: theirs is the second delivery."""
        if mark < self._acknowledged.get(partition, 0):
            raise StateGap(
                f"Redis went back: the mark of {source} is {mark}, below one it had acknowledged",
                hint="Restart the monitor: it counts on from the mark.",
            )
        passed = self._passed_over[partition] = self._passed_over.get(partition, 0) + count
        if passed > MAX_PASSED_OVER:
            raise StateGap(
                f"{source}: {passed} records lie ahead of the mark {mark}, and those between do not come",
                hint="Restart the monitor: it reads again from the mark.",
            )


def readable(values: Sequence[bytes], decode: Callable[[bytes], R], topic: str, metrics: Metrics) -> Iterator[R]:
    """The records among `values`; one that is none is counted and left out, for it would end every start anew."""
    for value in values:
        try:
            yield decode(value)
        except NOT_A_RECORD as error:
            metrics.count(UNREADABLE, 1, topic)
            _log.warning("%s: a record that cannot be read: %s", topic, error)


class SummaryCounter:
    """Decodes summaries and counts them."""

    def __init__(self, topic: str, metrics: Metrics) -> None:
        self._decode = msgspec.json.Decoder(ScoreSummary).decode
        self._topic = topic
        self._metrics = metrics
        self._follows: dict[tuple[str, int], tuple[int, int]] = {}

    def __call__(self, cells: Cells, maxima: dict[str, int], values: Sequence[bytes]) -> None:
        for summary in readable(values, self._decode, self._topic, self._metrics):
            self._check(summary)
            count_summary(cells, summary)
            newest = max((pane.pane for pane in summary.panes), default=None)
            if newest is not None:
                name = f"{PANE}{summary.partition}"
                maxima[name] = max(newest, maxima.get(name, newest))

    def _check(self, summary: ScoreSummary) -> None:
        # Several versions and arms summarise the same range, so it may repeat.
        at = (summary.topic, summary.partition)
        first, following = self._follows.get(at, (summary.first_offset, summary.first_offset))
        if summary.first_offset > following:
            self._metrics.count(SUMMARY_GAPS)
            _log.warning("%s[%d]: no summary of offsets %d to %d", *at, following, summary.first_offset)
        self._follows[at] = (min(first, summary.first_offset), max(following, summary.next_offset))


class OutcomeCounter:
    """Decodes outcomes and counts them."""

    def __init__(self, topic: str, metrics: Metrics) -> None:
        self._decode = msgspec.json.Decoder(Outcome).decode
        self._topic = topic
        self._metrics = metrics

    def __call__(self, cells: Cells, maxima: dict[str, int], values: Sequence[bytes]) -> None:
        for outcome in readable(values, self._decode, self._topic, self._metrics):
            count_outcome(cells, outcome)
            maxima[LABELLED_AT] = max(outcome.labelled_at, maxima.get(LABELLED_AT, outcome.labelled_at))


class MonitorApp:
    """The Faust app and the judge's timer, run inside a loop of ours."""

    def __init__(
        self, settings: AppSettings, store: CounterStore, judge: Judge, clock: Clock, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._store = store
        self._judge = judge
        self._clock = clock
        self._metrics = metrics
        self._encode = msgspec.json.Encoder().encode
        self._talliers = {
            topic: Tallier(store, metrics, topic, counter(topic, metrics), due)
            for topic, counter, due in (
                (settings.summaries, SummaryCounter, (CLOSE, MATURE)),
                (settings.outcomes, OutcomeCounter, ()),
            )
        }
        self.ready = False
        self.failure: BaseException | None = None
        self._ended = asyncio.Event()
        self._ends: dict[TP, int] = {}
        self.faust = self._faust_app()

    def _faust_app(self) -> MonitorFaust:
        settings = self._settings
        app = MonitorFaust(
            settings.group,
            broker=";".join(f"kafka://{address.strip()}" for address in settings.bootstrap.split(",")),
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
            # Without acks Faust keeps no account of gaps and commits nothing: on a transactional topic both only cost.
            channel = app.topic(topic, value_type=bytes, value_serializer="raw", key_serializer="raw", acks=False)
            app.agent(channel, concurrency=1, name=f"count-{topic}")(self._agent(topic))
        return app

    def _agent(self, topic: str) -> Callable[[Any], Awaitable[None]]:
        async def count(stream: Any) -> None:
            # Faust acks and skips what raises: here it ends the process instead.
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
        """The marks, after INIT of those that are missing."""
        wanted = list(partitions)
        if not wanted:
            return {}
        earliest, ends = await first(*wanted), await end(*wanted)
        names = {tp: source_name(tp.topic, tp.partition) for tp in wanted}
        new_epoch = str(self._clock.now_ms())
        head = await asyncio.to_thread(self._store.open, new_epoch, {names[tp]: earliest[tp] for tp in wanted})
        for tallier in self._talliers.values():
            tallier.forget()
        positions = {}
        for tp in wanted:
            mark = head.marks[names[tp]]
            if mark > ends[tp]:
                raise StreamScorerError(
                    f"the mark of {names[tp]} in Redis ({mark}) is above the topic's end ({ends[tp]}): another topic",
                    hint="The topic was recreated: start the monitor with another --namespace.",
                )
            if mark < earliest[tp]:
                _log.warning("%s: retention removed offsets %d to %d uncounted", names[tp], mark, earliest[tp])
                mark = earliest[tp]
                await asyncio.to_thread(self._store.skip_to, names[tp], mark)
            positions[tp] = mark
        self._ends = dict(ends)
        self.ready = True
        return positions

    def fail(self, error: BaseException) -> None:
        """End the run with `error`; the first one counts."""
        if self.failure is None:
            self.failure = error
        self._ended.set()

    def stop(self) -> None:
        """End the run in order."""
        self._ended.set()

    async def run(self) -> None:
        """Count and judge until `stop`.

        Raises:
            Exception: whatever broke an agent, a seek or the judge.
        """
        starting = asyncio.create_task(self.faust.start(), name="faust")
        tasks = [
            asyncio.create_task(self._watch(starting), name="watch"),
            asyncio.create_task(self._judge_forever(), name="judge"),
        ]
        try:
            await self._ended.wait()
        finally:
            for task in (*tasks, starting):
                task.cancel()
            await asyncio.gather(*tasks, starting, return_exceptions=True)
            await self.faust.stop()
        if isinstance(self.failure, KafkaError):
            raise BrokerUnavailable(
                f"Kafka at {self._settings.bootstrap}: {self.failure}",
                hint="Is it running? `stream-scorer stack status`, or check the setting `kafka.bootstrap`.",
            ) from self.failure
        if self.failure is not None:
            raise self.failure

    async def _watch(self, starting: asyncio.Task[None]) -> None:
        while True:
            reason = self.faust.crash_reason
            if reason is None and starting.done() and not starting.cancelled():
                reason = starting.exception()
            if reason is not None:
                self.fail(reason)
            await asyncio.sleep(HEALTH_EVERY_S)

    async def _judge_forever(self) -> None:
        try:
            while True:
                await asyncio.sleep(self._settings.emit_every_s)
                if self.ready and not self.faust.rebalancing:
                    await self._judge_once()
        except Exception as error:
            self.fail(error)
            raise

    async def _judge_once(self) -> None:
        verdicts = await asyncio.to_thread(self._judge.turn)
        if verdicts.records:
            sent = [
                await self.faust.producer.send(
                    self._settings.metrics_topic, record_key(record), self._encode(record), None, None, None
                )
                for record in verdicts.records
            ]
            await asyncio.gather(*sent)
        await asyncio.to_thread(self._judge.settle, verdicts)
        await self._measure_lag()

    async def _measure_lag(self) -> None:
        consumer = self.faust.consumer
        head = await asyncio.to_thread(self._store.head)
        ends = await consumer.highwaters(*consumer.assignment())
        for topic in self._talliers:
            lag = sum(
                max(end - head.marks.get(source_name(topic, tp.partition), 0), 0)
                for tp, end in ends.items()
                if tp.topic == topic
            )
            self._metrics.set(MARK_LAG, lag, topic)
