"""Live traffic: publishes transactions to Kafka at a rate, labels that depend on the alerts, and the truth to a file.

There are two clocks. Records are due by the wall clock, `rate` per second, independent of the consumers (an open loop).
Event time comes from the transactions and runs faster or slower than the wall clock: at 1,000 per second, data with
30,000 transactions per day cover two days in a minute. Labels follow event time, so an alert must arrive before the
event time of the first review or chargeback (hours): `LiveReport.late_alerts` counts the alerts that arrive later.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from stream_scorer.clock import Clock
from stream_scorer.errors import SettingsError, UsageError
from stream_scorer.kafka.follower import RecordFollower
from stream_scorer.kafka.open_loop import OpenLoopProducer, Schedule
from stream_scorer.kafka.topics import Topics
from stream_scorer.records import NOT_A_RECORD, Decision
from stream_scorer.simulate.config import HOUR_MS
from stream_scorer.simulate.disturb import Disturber, Mixed
from stream_scorer.simulate.encode import encode_keys, encode_labels, encode_values
from stream_scorer.simulate.files import truth_writer
from stream_scorer.simulate.labeller import Labeller
from stream_scorer.simulate.transactions import Transactions

# Maximum number of records per batch: a tenth of a second at 20,000 per second.
BATCH = 2_000
PROGRESS_S = 1.0
# After the last transaction, one poll for alerts takes at most this long, so that `stop` takes effect.
ALERTS_WAIT_S = 0.05


@dataclass(frozen=True)
class LiveConfig:
    """Parameters of live traffic.

    Attributes:
        bootstrap: address of the brokers. topics: the topics' names.
        rate: transactions per second; None for full speed.
        duplicates, garbage: extra records, as shares of the transactions. seed: seed of both.
        truth: file for the truth, None for no file.
        seconds: stop after so long (wall clock), None for when the transactions end.
        alerts_s: after the last transaction, how long to wait for alerts (wall clock).
        settle_ms: event time to pass after the last transaction, so that later labels still come.
    """

    bootstrap: str
    topics: Topics = field(default_factory=Topics)
    rate: float | None = None
    duplicates: float = 0.0
    garbage: float = 0.0
    seed: int = 1
    truth: Path | None = None
    seconds: float | None = None
    alerts_s: float = 0.0
    settle_ms: int = 0

    def __post_init__(self) -> None:
        """Raises `SettingsError` if a value is out of range."""
        if self.rate is not None and self.rate <= 0:
            raise SettingsError(f"rate must be above 0, not {self.rate}")
        if not 0 <= self.duplicates <= 1 or not 0 <= self.garbage <= 1:
            raise SettingsError("duplicates and garbage must be shares between 0 and 1")


class BadInput(NamedTuple):
    """One bad record: the `ordinal`-th (from 0) that the run sent to `partition` of transactions.

    Its offset is ``LiveReport.starts[partition] + ordinal`` if no other producer wrote to the topic meanwhile.
    """

    partition: int
    ordinal: int
    kind: str


@dataclass
class LiveReport:
    """The records sent so far.

    Attributes:
        transactions, fraud: numbers of good records, and of frauds among them. duplicates: records sent twice.
        garbage: bad records. records: number of all records. starts: end offset of each partition before the run.
        labels: by source. alerts: received, by decision. unknown_alerts: alerts on events of other producers.
        late_alerts: alerts on transactions that already had a label as approved ones.
        acked: confirmed records and labels. event_time_ms: event time of the newest transaction.
        behind_s: maximum lateness against the schedule. stopped: whether `stop` ended the run.
    """

    transactions: int = 0
    fraud: int = 0
    duplicates: int = 0
    garbage: list[BadInput] = field(default_factory=list)
    records: int = 0
    starts: dict[int, int] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)
    alerts: Counter[str] = field(default_factory=Counter)
    unknown_alerts: int = 0
    late_alerts: int = 0
    acked: int = 0
    event_time_ms: int = 0
    behind_s: float = 0.0
    elapsed_s: float = 0.0
    stopped: bool = False


class LiveTraffic:
    """One run of live traffic. `run` blocks; `stop`, from another thread or a signal handler, ends it early."""

    def __init__(
        self,
        config: LiveConfig,
        transactions: Iterable[Transactions],
        labeller: Labeller | None,
        *,
        clock: Clock,
        on_progress: Callable[[LiveReport], None] | None = None,
    ) -> None:
        """`transactions` are chunks in order of event time. Without a `labeller` there are no labels.

        Lazy chunks are generated when needed (about 2 us per transaction): for an even load, use small ones or a list.

        `run` calls `on_progress` about once per second.
        """
        self._config = config
        self._chunks = transactions
        self._labeller = labeller
        self._clock = clock
        self._on_progress = on_progress
        self._stop = threading.Event()
        self.report = LiveReport()

    def stop(self) -> None:
        """End the run after the current batch; sent records are still confirmed."""
        self._stop.set()

    def run(self) -> LiveReport:
        """Send everything, wait until it is confirmed, and report.

        Raises:
            BrokerUnavailable: the broker is unreachable, or records were not confirmed.
            UsageError: a topic does not exist.
            SettingsError: the file for the truth cannot be written.
        """
        config, clock, report = self._config, self._clock, self.report
        with ExitStack() as stack:
            producer = stack.enter_context(
                OpenLoopProducer(config.bootstrap, client_id="simulator", clock=clock, sleep=self._sleep)
            )
            traffic = _TransactionSender(config, producer, report)
            labels = None
            if self._labeller is not None:
                alerts = RecordFollower(config.bootstrap, config.topics.alerts, client_id="simulator-alerts")
                stack.enter_context(alerts)
                samples = RecordFollower(config.bootstrap, config.topics.review_sample, client_id="simulator-reviews")
                stack.enter_context(samples)
                labels = _LabelSender(config, producer, alerts, samples, self._labeller, report)
            truth = stack.enter_context(truth_writer(config.truth)) if config.truth is not None else None

            # Build the first chunk, which may take a second, before the schedule starts.
            chunks = iter(self._chunks)
            chunks = itertools.chain(list(itertools.islice(chunks, 1)), chunks)
            started = shown = clock.monotonic()
            schedule = Schedule(config.rate, clock)
            for batch in self._due_batches(chunks, schedule, started):
                traffic.send(batch)
                if truth is not None:
                    truth.write(batch)
                if labels is not None:
                    labels.observe(batch)
                now = clock.monotonic()
                report.elapsed_s, report.behind_s, report.acked = now - started, schedule.behind_s, producer.acked
                if self._on_progress is not None and now - shown >= PROGRESS_S:
                    self._on_progress(report)
                    shown = now
            traffic.finish()
            if labels is not None:
                self._await_alerts(labels)
                labels.settle()
            producer.flush()
            report.acked, report.elapsed_s = producer.acked, clock.monotonic() - started
            report.stopped = self._stop.is_set()
        return report

    def _due_batches(
        self, chunks: Iterable[Transactions], schedule: Schedule, started: float
    ) -> Iterator[Transactions]:
        """Yield batches of the chunks when they are due; empty batches in between let labels advance."""
        sent = 0
        for chunk in chunks:
            done = 0
            while done < len(chunk):
                late = self._config.seconds is not None and self._clock.monotonic() - started >= self._config.seconds
                if late or self._stop.is_set():
                    return
                limit = min(BATCH, len(chunk) - done)
                count = schedule.due(sent, limit)
                yield chunk.slice(done, done + count)
                done += count
                sent += count
                if count < limit:
                    self._sleep(schedule.pause_s(sent))

    def _await_alerts(self, labels: _LabelSender) -> None:
        give_up = self._clock.monotonic() + self._config.alerts_s
        while self._clock.monotonic() < give_up and not self._stop.is_set():
            labels.read_alerts(ALERTS_WAIT_S)

    def _sleep(self, seconds: float) -> None:
        # Wait on the event, so that `stop` ends the sleep.
        self._stop.wait(seconds)


class _TransactionSender:
    """Publishes batches of transactions with their duplicates and garbage."""

    def __init__(self, config: LiveConfig, producer: OpenLoopProducer, report: LiveReport) -> None:
        self._topic = config.topics.transactions
        self._producer = producer
        self._report = report
        rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(5,)))
        self._disturber = Disturber(rng, duplicates=config.duplicates, garbage=config.garbage)
        self._sent = np.zeros(producer.partitions(self._topic), dtype=np.int64)
        with RecordFollower(config.bootstrap, self._topic, client_id="simulator-offsets") as ends:
            report.starts = ends.starts

    def send(self, batch: Transactions) -> None:
        if not len(batch):
            return
        self._publish(self._disturber.mix(encode_keys(batch.customer_id), encode_values(batch)))
        self._report.transactions += len(batch)
        self._report.fraud += int((batch.fraud_kind > 0).sum())
        self._report.event_time_ms = int(batch.event_time[-1])

    def finish(self) -> None:
        """Send the remaining duplicates."""
        self._publish(self._disturber.rest())

    def _publish(self, mixed: Mixed) -> None:
        if not mixed.keys:
            return
        places = self._producer.publish(self._topic, mixed.keys, mixed.values)
        for place, kind in mixed.bad:
            partition = int(places[place])
            ordinal = int(self._sent[partition] + np.count_nonzero(places[:place] == partition))
            self._report.garbage.append(BadInput(partition, ordinal, kind))
        self._sent += np.bincount(places, minlength=len(self._sent))
        self._report.duplicates += mixed.duplicates
        self._report.records += len(places)


class _AlertedEvent(msgspec.Struct):
    event_id: str
    decision: Decision


class _SampledEvent(msgspec.Struct):
    event_id: str
    review_propensity: float


class _LabelSender:
    """Closes the loop: passes alerts and the review sample to the labeller, and publishes the labels."""

    def __init__(
        self,
        config: LiveConfig,
        producer: OpenLoopProducer,
        alerts: RecordFollower,
        samples: RecordFollower,
        labeller: Labeller,
        report: LiveReport,
    ) -> None:
        self._topic = config.topics.labels
        self._settle_ms = config.settle_ms
        self._producer = producer
        self._alerts = alerts
        self._samples = samples
        self._labeller = labeller
        self._report = report
        self._decoder = msgspec.json.Decoder(_AlertedEvent)
        self._sample_decoder = msgspec.json.Decoder(_SampledEvent)
        producer.partitions(self._topic)  # raises before traffic starts if the topic is missing

    def observe(self, batch: Transactions) -> None:
        """Add a published batch to the labeller, and publish the labels that are due."""
        self._labeller.observe(batch, own_sample=False)
        self.read_alerts(0.0)
        if len(batch):
            self._advance(int(batch.event_time[-1]))

    def read_alerts(self, timeout_s: float) -> None:
        """Read the available alerts, waiting at most `timeout_s` for the first, and the available review sample."""
        try:
            events = [self._decoder.decode(record.value or b"") for record in self._alerts.poll(timeout_s=timeout_s)]
            sampled = [self._sample_decoder.decode(record.value or b"") for record in self._samples.poll()]
        except NOT_A_RECORD as error:
            raise UsageError(f"a record on the topic of alerts or of reviews is not valid: {error}") from None
        self._labeller.sampled([one.event_id for one in sampled], [one.review_propensity for one in sampled])
        self._labeller.alerted([event.event_id for event in events], [event.decision for event in events])
        self._report.alerts = self._labeller.alerts
        self._report.unknown_alerts = self._labeller.unknown_alerts
        self._report.late_alerts = self._labeller.late_alerts

    def settle(self) -> None:
        """Advance event time after the last transaction."""
        end = self._report.event_time_ms
        for to_ms in range(end + HOUR_MS, end + self._settle_ms + 1, HOUR_MS):
            self._advance(to_ms)

    def _advance(self, to_ms: int) -> None:
        labels = self._labeller.advance(to_ms)
        if len(labels):
            self._producer.publish(self._topic, encode_keys(labels.customer_id), encode_labels(labels))
            self._report.labels.update(labels.source.tolist())
