"""Faults upstream: a field, a map of categories or a feed of simulated transactions changes, and no version does.

`try_field` and `try_feed` take traffic with a fault through the product's own code, and follow the detectors of drift
events and of feeds.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proofs.updates import Version
from proofs.world_probation import Probation, alerting_more
from proofs.world_windows import Windows
from proofs.worlds import PARTITIONS, FeaturePath
from stream_scorer.incidents.feeds import FeedDetector
from stream_scorer.kafka.partitioner import partitions_of
from stream_scorer.monitor.drift_events import DriftDetector
from stream_scorer.simulate.config import HOUR_MS
from stream_scorer.simulate.encode import encode_keys, encode_values
from stream_scorer.simulate.fraud import CHANNELS
from stream_scorer.simulate.transactions import Transactions
from stream_scorer.spec import CheckedSpec

COUNTRY = "GBP"
LATE_MS = 6 * HOUR_MS
# Minor units in ten units.
TENS = 1_000
# A batch must not span many windows.
SMALL_BATCH = 512
# In real time, some minutes of traffic.
REAL_TIME_BATCH = 64
PARTITION = 2


@dataclass(frozen=True)
class UpstreamFault:
    """`name` says what happens. `subject` is what must be named: an input field, or a feed.

    `delay_ms` is how late the records of `PARTITION` arrive.
    """

    name: str
    subject: str
    alter: Callable[[Transactions], Transactions]
    delay_ms: int = 0


def _unit(rows: Transactions) -> Transactions:
    return replace(rows, amount=rows.amount * 100)


def _shuffled(rows: Transactions) -> Transactions:
    others = dict(zip(CHANNELS, (*CHANNELS[1:], CHANNELS[0]), strict=True))
    return replace(rows, channel=np.array([others[channel] for channel in rows.channel], dtype=object))


def _without_country(rows: Transactions) -> Transactions:
    return rows.take(rows.currency != COUNTRY)


def _null_network(rows: Transactions) -> Transactions:
    return replace(rows, network_id=np.full(len(rows), None, dtype=object))


def _constant_device(rows: Transactions) -> Transactions:
    devices = [None if device is None else "d000000000" for device in rows.device_id]
    return replace(rows, device_id=np.array(devices, dtype=object))


def _rounded(rows: Transactions) -> Transactions:
    return replace(rows, amount=np.maximum((rows.amount + TENS // 2) // TENS, 1) * TENS)


def _silent_partition(rows: Transactions) -> Transactions:
    return rows.take(~_of_partition(rows))


def _unchanged(rows: Transactions) -> Transactions:
    return rows


def _of_partition(rows: Transactions) -> NDArray[np.bool_]:
    return np.asarray(partitions_of(encode_keys(rows.customer_id), PARTITIONS) == PARTITION)


@dataclass(frozen=True)
class Normal:
    """Traffic before a fault: the path and the detector as they are then, and the days that follow without one.

    The champion `good` is on probation after `old`, which hardly differs, so that a rollback is possible.
    """

    checked: CheckedSpec
    good: Version
    old: Version
    path: FeaturePath
    windows: Windows
    detector: DriftDetector
    days: Sequence[Transactions]


@dataclass
class UpstreamCase:
    """A fault upstream and what is detected first.

    Attributes:
        subjects: the input fields, or the feed, that the product names, best explanation first; empty if undetected.
        evidence: series that changed, or the condition in words.
        transactions: number of transactions from the fault to the detection. event_ms: event time in between.
        commands: the actions of the watch's commands, until the end of the traffic.
    """

    fault: UpstreamFault
    subjects: list[str] = field(default_factory=list)
    evidence: list[str] = field(default_factory=list)
    transactions: int = 0
    event_ms: int = 0
    dead_letters: int = 0
    seconds: float = 0.0
    commands: list[str] = field(default_factory=list)

    @property
    def detected(self) -> bool:
        """Whether the product noticed anything."""
        return bool(self.subjects)

    @property
    def named(self) -> bool:
        """Whether it names what has the fault first."""
        return self.subjects[:1] == [self.fault.subject]

    def line(self) -> dict[str, Any]:
        """The case as a row of the table."""
        return {
            "fault": self.fault.name,
            "subject": self.fault.subject,
            "detected": self.detected,
            "named": self.subjects[:3],
            "evidence": self.evidence[:3],
            "transactions": self.transactions,
            "event_hours": round(self.event_ms / HOUR_MS, 1),
            "dead_letters": self.dead_letters,
            "commands": self.commands,
            "seconds": round(self.seconds, 1),
        }


def control(normal: Normal) -> list[str]:
    """The watch's commands on the days without a fault, if the version on probation alerts far more than the other."""
    path, probation = normal.path.fork(), Probation(normal.checked, normal.old, alerting_more(normal.good))
    for rows in normal.days:
        for prepared in path.run(rows, size=SMALL_BATCH):
            probation.run(prepared)
        if probation.commands:
            break
    return probation.commands


def try_field(normal: Normal, fault: UpstreamFault) -> UpstreamCase:
    """The days after `normal`, altered by `fault`, until the detector of drift gives an event.

    The watch follows to the end of the days.
    """
    started, case = time.perf_counter(), UpstreamCase(fault)
    path, detector, windows = normal.path.fork(), copy.deepcopy(normal.detector), copy.deepcopy(normal.windows)
    probation = Probation(normal.checked, normal.old, normal.good)
    began = int(normal.days[0].event_time[0])
    for rows in normal.days:
        for prepared in path.run(fault.alter(rows), size=SMALL_BATCH):
            _, summaries = probation.run(prepared)
            if case.detected:
                continue
            case.dead_letters += len(prepared.batch.dead)
            case.transactions += prepared.rows
            case.event_ms = prepared.event_time - began
            windows.add(summaries)
            for window in windows.close(prepared.event_time // HOUR_MS * HOUR_MS):
                opened = [event for event in detector.update(window).events if event.status == "open"]
                if opened and not case.detected:
                    case.subjects = list(opened[0].fields) or ["(none)"]
                    case.evidence = [f"{shift.kind} of {shift.info.name}" for shift in opened[0].series]
                    case.seconds = time.perf_counter() - started
    case.commands = probation.commands
    case.seconds = case.seconds or time.perf_counter() - started
    return case


def try_feed(normal: Normal, fault: UpstreamFault) -> UpstreamCase:
    """A normal day, then one altered by `fault`, in real time, until the detector of feeds finds a condition.

    The watch follows to the end of the day.
    """
    started, case, detector = time.perf_counter(), UpstreamCase(fault), FeedDetector()
    path, probation = normal.path.fork(), Probation(normal.checked, normal.old, normal.good)
    calm, faulty = normal.days[0], fault.alter(normal.days[1])
    for rows, bad in ((calm.slice(len(calm) // 2, len(calm)), False), (faulty, True)):
        arrival = rows.event_time + np.where(_of_partition(rows), fault.delay_ms if bad else 0, 0)
        order = np.argsort(arrival, kind="stable")
        rows, arrival = rows.take(order), arrival[order]
        for start in range(0, len(rows), REAL_TIME_BATCH):
            part, now = rows.slice(start, start + REAL_TIME_BATCH), int(arrival[start : start + REAL_TIME_BATCH][-1])
            prepared = path.step(part, encode_keys(part.customer_id), encode_values(part))
            _, summaries = probation.run(prepared)
            if case.detected:
                continue
            for summary in summaries:
                detector.add_summary(summary, now)
            found = detector.advance(now).conditions
            case.transactions += prepared.rows if bad else 0
            case.event_ms = now - int(arrival[0]) if bad else 0
            if found:
                case.subjects = [f"{c.subject.aspect} partition {c.subject.partition}" for c in found]
                case.evidence = [c.why for c in found]
                case.seconds = time.perf_counter() - started
    case.commands = probation.commands
    case.seconds = case.seconds or time.perf_counter() - started
    return case


FIELD_FAULTS = (
    UpstreamFault("amounts in another unit, 100 times as large", "amount", _unit),
    UpstreamFault("the categories of the channel are mapped to each other", "channel", _shuffled),
    UpstreamFault("one country disappears", "currency", _without_country),
    UpstreamFault("the network is null", "network_id", _null_network),
    UpstreamFault("the device is always the same", "device_id", _constant_device),
    UpstreamFault("amounts are rounded to whole tens", "amount", _rounded),
)
FEED_FAULTS = (
    UpstreamFault("one partition is silent", f"silent partition {PARTITION}", _silent_partition),
    UpstreamFault("one partition is late", f"late partition {PARTITION}", _unchanged, LATE_MS),
)
