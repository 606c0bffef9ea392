"""A reader that waits for the end of a topic ends soon after a stop, although the broker is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from stream_scorer.control.commands import catch_up
from stream_scorer.control.label_watch import LabelWatch
from stream_scorer.control.state import History
from stream_scorer.control.verdicts import read_verdicts
from stream_scorer.errors import Stopped
from stream_scorer.incidents.log import IncidentLog
from stream_scorer.kafka.control_log import ControlLog
from tests.support.control import MemoryControlLog

# Nothing listens on this port.
NOWHERE = "127.0.0.1:9"
STOP_AFTER_S, MAX_S = 0.3, 5.0


class CutOff(ControlLog):
    """A topic with three records; the broker disappeared after it had given the end."""

    def end(self) -> int:
        return 3


def _label_watch(log: ControlLog) -> None:
    incidents = IncidentLog(MemoryControlLog())
    watch = LabelWatch(log, lambda _key, _value: None, lambda _since: pytest.fail("nothing to follow"), incidents, 1)
    watch.step(History(), set(), 0)


READERS: dict[str, Callable[[ControlLog], object]] = {
    "incidents": lambda log: IncidentLog(log).open(),
    "report of an incident": lambda log: IncidentLog(log).close_incident("cards-1", "over", 0),
    "commands": lambda log: catch_up(log, History(), log.end()),
    "labels": _label_watch,
    "verdicts": read_verdicts,
}


def stops(work: Callable[[threading.Event], object]) -> tuple[BaseException | None, float]:
    """What `work` raised, and how long it took from the stop to its end; it must not end before."""
    stop = threading.Event()
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work(stop)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(STOP_AFTER_S)
    assert thread.is_alive()
    stop.set()
    started = time.monotonic()
    thread.join(MAX_S)
    return (raised[0] if raised else None), time.monotonic() - started


@pytest.mark.parametrize("reader", READERS)
def test_a_reader_ends_after_a_stop(reader: str) -> None:
    def work(stop: threading.Event) -> None:
        with closing(CutOff(NOWHERE, "topic", stop)) as log:
            READERS[reader](log)

    raised, seconds = stops(work)
    assert isinstance(raised, Stopped) and seconds < MAX_S


@pytest.mark.parametrize("call", ["end", "append"])
def test_a_call_that_waits_for_the_broker_ends_after_a_stop(call: str) -> None:
    def work(stop: threading.Event) -> None:
        with closing(ControlLog(NOWHERE, "topic", stop)) as log:
            log.end() if call == "end" else log.append("key", b"value")

    raised, seconds = stops(work)
    assert isinstance(raised, Stopped) and seconds < MAX_S


def test_a_partition_that_a_starting_broker_does_not_know_yet_is_looked_up_again() -> None:
    answers: list[KafkaException | tuple[int, int]] = [
        KafkaException(KafkaError(KafkaError._UNKNOWN_PARTITION)),
        (0, 7),
    ]

    class Consumer:
        def get_watermark_offsets(self, *_args: object) -> tuple[int, int]:
            answer = answers.pop(0)
            if isinstance(answer, KafkaException):
                raise answer
            return answer

    log: Any = object.__new__(ControlLog)
    log._stop, log._consumer, log._source, log._topic, log._bootstrap = None, Consumer(), None, "control", ""
    assert log.end() == 7
