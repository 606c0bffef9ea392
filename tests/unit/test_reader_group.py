"""How an input reader joins its group and reads, against librdkafka's own broker in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import cast

import pytest
from confluent_kafka import Producer

from stream_scorer.errors import LogTruncated
from stream_scorer.kafka.reader import REBALANCE_TIMEOUT_MS, GroupMember, InputReader
from stream_scorer.kafka.stall import Ends, StallWatch
from stream_scorer.pipeline.committer import COMMIT_DEADLINE_S
from stream_scorer.positions import SourcePartition

Made = Callable[..., InputReader]


@pytest.fixture
def make_reader() -> Iterator[Made]:
    producer = Producer({"bootstrap.servers": "memory", "test.mock.num.brokers": 1, "log_level": 0})
    (broker,) = producer.list_topics(timeout=10).brokers.values()
    producer.produce("in", b"{}", partition=0)
    assert producer.flush(10) == 0
    made: list[InputReader] = []

    def make(instance: str, start: int = 0) -> InputReader:
        reader = InputReader(
            f"{broker.host}:{broker.port}",
            GroupMember("group", instance, static=False),
            ["in"],
            on_assigned=lambda sources: dict.fromkeys(sources, start),
            on_revoked=lambda _lost: None,
            stopping=lambda: False,
            times_of={},
        )
        made.append(reader)
        return reader

    yield make
    for reader in made:
        reader.close()


def read_until(readers: list[InputReader], done: Callable[[], bool], seconds: float) -> None:
    give_up = time.monotonic() + seconds
    while not done() and time.monotonic() < give_up:
        for reader in readers:
            reader.read(10, 0.1)


def test_a_reader_that_does_not_read_yet_takes_no_partition_from_those_that_do(make_reader: Made) -> None:
    working = make_reader("working")
    read_until([working], lambda: bool(working.owned), 60.0)
    everything = sorted(working.owned)
    assert SourcePartition("in", 0) in everything
    starting = make_reader("starting")
    # Longer than the heartbeat by which the working one would learn of a rebalance.
    read_until([working], lambda: sorted(working.owned) != everything, 3.0)
    assert sorted(working.owned) == everything
    read_until([working, starting], lambda: bool(starting.owned and working.owned), 60.0)
    assert sorted(working.owned + starting.owned) == everything


def test_the_lag_counts_no_markers_of_transactions(make_reader: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    end = {SourcePartition("in", 0): 2}  # one record, one marker
    ends = SimpleNamespace(ask=lambda _sources: None, answers=lambda: end)
    reader = make_reader("one")
    monkeypatch.setattr(reader, "_known_end", lambda source: end.get(source, 0))
    reader._stalls = StallWatch(reader._known_end, cast(Ends, ends), look_s=0.05)
    read_until([reader], lambda: bool(reader.owned), 60.0)
    assert reader.lag() in (1, 2)
    read_until([reader], lambda: reader.lag() == 0, 10.0)
    assert reader.lag() == 0
    end[SourcePartition("in", 0)] = 5
    assert reader.lag() == 4


def test_a_scorer_that_waits_for_a_commit_keeps_its_partitions() -> None:
    assert REBALANCE_TIMEOUT_MS > COMMIT_DEADLINE_S * 1_000


def test_a_position_beyond_the_end_of_the_log_is_not_blamed_on_retention(make_reader: Made) -> None:
    reader = make_reader("one", start=7)
    with pytest.raises(LogTruncated, match=r"no longer has the records before the offset 7, .* Kafka has lost records"):
        read_until([reader], lambda: False, 60.0)
