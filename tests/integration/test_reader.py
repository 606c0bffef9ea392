"""Reading on a real broker: the input reader mends a partition whose records no longer come; ends of topics."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from stream_scorer.kafka import reader as reader_module
from stream_scorer.kafka import stall
from stream_scorer.kafka.ends import TopicEnds
from stream_scorer.kafka.reader import GroupMember, InputReader
from stream_scorer.kafka.topics import TopicAdmin
from stream_scorer.positions import SourcePartition
from stream_scorer.stack import StackAddresses

pytestmark = pytest.mark.integration
TOPIC = "stalled"


@pytest.fixture
def bootstrap(shared_stack: StackAddresses) -> str:
    return str(shared_stack.kafka)


def read_until(reader: InputReader, done: Callable[[], bool]) -> None:
    """Read until `done`."""
    give_up = time.monotonic() + 30.0
    while not done():
        assert time.monotonic() < give_up
        reader.read(100, 0.1)


def test_a_partition_that_is_no_longer_fetched_is_noticed_and_read_on(
    bootstrap: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stall, "LOOK_S", 0.5)
    TopicAdmin(bootstrap).create([TOPIC], 2)
    producer = Producer({"bootstrap.servers": bootstrap})

    def send(count: int) -> None:
        for number in range(count):
            for partition in range(2):
                producer.produce(TOPIC, str(number).encode(), partition=partition)
        assert producer.flush(10.0) == 0

    read: dict[SourcePartition, list[int]] = {SourcePartition(TOPIC, p): [] for p in range(2)}
    at = dict.fromkeys(read, 0)

    def assigned(sources: list[SourcePartition]) -> dict[SourcePartition, int]:
        return {source: at[source] for source in sources}

    reader = InputReader(
        bootstrap,
        GroupMember("group", "one", static=True),
        [TOPIC],
        on_assigned=assigned,
        on_revoked=lambda lost: None,
        stopping=lambda: False,
        times_of={},
    )

    def read_to(each: int) -> None:
        give_up = time.monotonic() + 30.0
        while any(len(offsets) < each for offsets in read.values()):
            assert time.monotonic() < give_up, read
            for records in reader.read(100, 0.1).records:
                for partition, offset in zip(records.partition.tolist(), records.offset.tolist(), strict=True):
                    source = SourcePartition(records.topic, partition)
                    read[source].append(offset)
                    at[source] = offset + 1

    try:
        send(10)
        read_to(10)
        # Whatever stalls a fetch looks like this from outside: assigned, no error, nothing comes.
        reader._consumer.pause([TopicPartition(TOPIC, 1)])
        time.sleep(0.5)  # a fetch that was under way still reports a new end
        send(10)
        with caplog.at_level(logging.WARNING):
            read_to(20)
    finally:
        reader.close()
    assert all(offsets == list(range(20)) for offsets in read.values())
    assert "no records arrive from stalled[1], although the broker has more" in caplog.text


def test_a_scorer_that_is_busy_for_too_long_gives_up_its_partitions_and_gets_them_again(
    bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "SESSION_TIMEOUT_MS", 6_000)
    monkeypatch.setattr(reader_module, "REBALANCE_TIMEOUT_MS", 6_000)
    TopicAdmin(bootstrap).create(["busy"], 1)
    revoked: list[bool] = []
    reader = InputReader(
        bootstrap,
        GroupMember("busy-group", "one", static=True),
        ["busy"],
        on_assigned=lambda sources: dict.fromkeys(sources, 0),
        on_revoked=revoked.append,
        stopping=lambda: False,
        times_of={},
    )

    try:
        read_until(reader, lambda: bool(reader.owned))
        time.sleep(8.0)  # in place of a broker or a Redis that does not answer
        read_until(reader, lambda: bool(revoked))
        read_until(reader, lambda: bool(reader.owned))
    finally:
        reader.close()
    assert revoked[0] is True


def test_the_ends_of_topics_are_looked_up_without_reading_them(bootstrap: str) -> None:
    TopicAdmin(bootstrap).create(["ends"], 3)
    producer = Producer({"bootstrap.servers": bootstrap})
    for _ in range(5):
        producer.produce("ends", b"x", partition=2)
    assert producer.flush(10.0) == 0
    ends = TopicEnds(bootstrap, {"ends": 3}, client_id="test")
    give_up = time.monotonic() + 30.0
    while len(found := ends()) < 3:  # a new partition has no leader for a moment
        assert time.monotonic() < give_up, found
    assert found == {("ends", 0): 0, ("ends", 1): 0, ("ends", 2): 5}


def test_the_offset_of_a_topic_goes_with_it_and_the_others_of_the_group_stay(bootstrap: str) -> None:
    kept, again, admin = SourcePartition("kept", 0), SourcePartition("again", 0), TopicAdmin(bootstrap)
    admin.create([kept.topic, again.topic], 1)
    first_id = admin.topic_id(again.topic)
    reader = InputReader(
        bootstrap,
        GroupMember("again-group", "one", static=True),
        [kept.topic, again.topic],
        on_assigned=lambda sources: dict.fromkeys(sources, 0),
        on_revoked=lambda lost: None,
        stopping=lambda: False,
        times_of={},
    )

    try:
        read_until(reader, lambda: len(reader.owned) == 2)
        reader.commit({kept: 3, again: 5})
        assert reader.committed([kept, again]) == {kept: 3, again: 5}
        client = AdminClient({"bootstrap.servers": bootstrap})
        client.delete_topics([again.topic])[again.topic].result()
        read_until(reader, lambda: again.topic not in admin.partitions())
        admin.create([again.topic], 1)
        # A scorer names its rows by the ids of the topics, so it begins with new ones and finds no contradiction.
        assert admin.topic_id(again.topic) != first_id
        assert reader.committed([kept, again]) == {kept: 3, again: None}
    finally:
        reader.close()
