"""What every pair of transactional producers does: in memory and on Kafka."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import reduce
from typing import Any

import pytest

from stream_scorer.errors import TransactionAborted, UsageError
from stream_scorer.pipeline.ports import OpenTransaction, Reader
from stream_scorer.positions import SourcePartition
from stream_scorer.serde.raw import RawRecords
from tests.support import kafka_parts
from tests.support.kafka_parts import Broker


def written(broker: Broker, source: SourcePartition) -> list[bytes | None]:
    """Every committed value of a partition."""
    log = broker.log()
    return [v for records in log.read(source, *log.bounds(source.topic)[source]) for v in records.value]


def shows(broker: Broker, source: SourcePartition, expected: list[bytes | None]) -> bool:
    """Whether a partition comes to hold `expected`: a real broker ends a transaction some time after the call."""
    give_up = time.monotonic() + kafka_parts.PATIENCE_S
    while (found := written(broker, source)) != expected and time.monotonic() < give_up:
        time.sleep(0.01)
    return found == expected


def produce(transaction: OpenTransaction, source: SourcePartition, *values: bytes) -> None:
    for value in values:
        transaction.produce(source.topic, source.partition, None, value)


def produce_and_commit(
    transaction: OpenTransaction, source: SourcePartition, values: list[bytes], *, begin: bool = False
) -> None:
    if begin:
        transaction.begin()
    produce(transaction, source, *values)
    transaction.flush()
    transaction.commit({}, None)


def begun(transaction: OpenTransaction) -> OpenTransaction:
    transaction.begin()
    return transaction


class Member:
    """A member of the group that has read ten records of each partition."""

    def __init__(self, broker: Broker, name: str = "one") -> None:
        self.reader: Reader = broker.reader(name)
        for source in broker.inputs:
            broker.append(source, [b"x"] * 10)
        self.metadata: Any = None
        count, give_up = 0, time.monotonic() + kafka_parts.PATIENCE_S
        while count < 20:
            assert time.monotonic() < give_up
            read = self.reader.read(100, 0.05)
            count += len(read)
            self.metadata = read.group_metadata or self.metadata

    def committed(self, sources: Sequence[SourcePartition]) -> list[int | None]:
        found = self.reader.committed(list(sources))
        return [found[source] for source in sources]


class TestOne:
    def test_records_and_offsets_appear_together(self, broker: Broker) -> None:
        member, (out, more) = Member(broker), broker.outputs
        transaction = begun(broker.producers().next())
        produce(transaction, out, b"a", b"b")
        produce(transaction, more, b"c")
        transaction.flush()
        assert written(broker, out) == written(broker, more) == []
        assert member.committed(broker.inputs) == [None, None]
        transaction.commit(dict(zip(broker.inputs, (7, 9), strict=True)), member.metadata)
        assert shows(broker, out, [b"a", b"b"])
        assert shows(broker, more, [b"c"])
        assert member.committed(broker.inputs) == [7, 9]

    def test_what_is_aborted_leaves_nothing(self, broker: Broker) -> None:
        member = Member(broker)
        producers = broker.producers()
        transaction = begun(producers.next())
        produce(transaction, broker.outputs[0], b"a")
        transaction.flush()
        transaction.abort()
        assert written(broker, broker.outputs[0]) == []
        assert member.committed(broker.inputs) == [None, None]

    def test_offsets_alone_are_committed(self, broker: Broker) -> None:
        member = Member(broker)
        begun(broker.producers().next()).commit({broker.inputs[1]: 5}, member.metadata)
        assert member.committed(broker.inputs) == [None, 5]

    def test_records_alone_need_no_group(self, broker: Broker) -> None:
        transaction = begun(broker.producers().next())
        produce(transaction, broker.outputs[0], b"a")
        transaction.commit({}, None)
        assert shows(broker, broker.outputs[0], [b"a"])

    def test_one_without_anything_is_committed(self, broker: Broker) -> None:
        begun(broker.producers().next()).commit({}, None)
        assert written(broker, broker.outputs[0]) == []

    def test_records_keep_key_value_headers_and_partition(self, broker: Broker) -> None:
        transaction = begun(broker.producers().next())
        out = broker.outputs[1]
        transaction.produce(out.topic, out.partition, b"\xffk", b"\x00v", [("h", b"1"), ("none", None)])
        transaction.produce(out.topic, out.partition, b"gone", None)
        transaction.commit({}, None)
        assert shows(broker, out, [b"\x00v", None])
        records = reduce(RawRecords.concatenate, broker.log().read(out, 0, 10))
        assert (records.key, records.value) == ([b"\xffk", b"gone"], [b"\x00v", None])
        assert records.headers[0] == [("h", b"1"), ("none", None)]
        assert records.partition.tolist() == [1, 1]
        assert records.offset.tolist() == [0, 1]

    def test_an_abort_before_the_beginning_does_nothing(self, broker: Broker) -> None:
        producers = broker.producers()
        producers.next().abort()
        transaction = begun(producers.next())
        produce(transaction, broker.outputs[0], b"a")
        transaction.commit({}, None)
        transaction.abort()  # too late to undo anything
        assert shows(broker, broker.outputs[0], [b"a"])

    def test_a_second_abort_does_nothing(self, broker: Broker) -> None:
        producers = broker.producers()
        transaction = begun(producers.next())
        produce(transaction, broker.outputs[0], b"a")
        transaction.abort()
        transaction.abort()
        for _ in range(2):
            later = begun(producers.next())
            produce(later, broker.outputs[0], b"b")
            later.commit({}, None)
        assert shows(broker, broker.outputs[0], [b"b", b"b"])

    def test_a_transaction_leaves_a_control_record(self, broker: Broker) -> None:
        producers, out = broker.producers(), broker.outputs[0]
        for commit in (True, False, True):
            transaction = begun(producers.next())
            produce(transaction, out, b"a")
            transaction.flush()
            transaction.commit({}, None) if commit else transaction.abort()
        assert shows(broker, out, [b"a", b"a"])
        found = [offset for records in broker.log().read(out, 0, 10) for offset in records.offset.tolist()]
        assert found == [0, 4]
        assert broker.log().bounds(out.topic)[out] == (0, 6)


class TestPair:
    def test_a_transaction_may_be_filled_while_the_last_one_commits(self, broker: Broker) -> None:
        producers, out = broker.producers(), broker.outputs[0]
        first = begun(producers.next())
        produce(first, out, b"1", b"2")
        first.flush()
        second = begun(producers.next())
        produce(second, out, b"3")
        second.flush()
        first.commit({}, None)
        assert shows(broker, out, [b"1", b"2"])
        second.commit({}, None)
        assert shows(broker, out, [b"1", b"2", b"3"])

    def test_the_second_waits_for_the_first_however_early_it_commits(self, broker: Broker) -> None:
        producers, out = broker.producers(), broker.outputs[0]
        first = begun(producers.next())
        produce(first, out, b"1")
        first.flush()
        second = begun(producers.next())
        produce(second, out, b"2")
        second.flush()
        second.commit({}, None)
        assert written(broker, out) == []
        first.commit({}, None)
        assert shows(broker, out, [b"1", b"2"])

    def test_the_second_stands_when_the_first_is_aborted(self, broker: Broker) -> None:
        producers, out = broker.producers(), broker.outputs[0]
        first, second = begun(producers.next()), begun(producers.next())
        produce(first, out, b"1")
        first.flush()
        produce(second, out, b"2")
        second.flush()
        first.abort()
        second.commit({}, None)
        assert shows(broker, out, [b"2"])

    def test_many_in_turn_keep_their_order(self, broker: Broker) -> None:
        member, producers, out = Member(broker), broker.producers(), broker.outputs[0]
        for number in range(6):
            transaction = begun(producers.next())
            produce(transaction, out, b"%d" % number)
            transaction.flush()
            transaction.commit({broker.inputs[0]: number + 1}, member.metadata)
            assert member.committed(broker.inputs[:1]) == [number + 1]
        assert shows(broker, out, [b"%d" % number for number in range(6)])

    def test_after_an_abort_both_producers_go_on(self, broker: Broker) -> None:
        member, producers, out = Member(broker), broker.producers(), broker.outputs[0]
        aborted = begun(producers.next())
        produce(aborted, out, b"aborted")
        aborted.flush()
        aborted.abort()
        for number in range(3):
            transaction = begun(producers.next())
            produce(transaction, out, b"%d" % number)
            transaction.commit({broker.inputs[0]: number}, member.metadata)
        assert shows(broker, out, [b"0", b"1", b"2"])
        assert member.committed(broker.inputs[:1]) == [2]


class TestStale:
    def test_a_member_that_has_left_commits_nothing(self, broker: Broker) -> None:
        member = Member(broker)
        transaction = begun(broker.producers().next())
        produce(transaction, broker.outputs[0], b"a")
        member.reader.close()
        with pytest.raises(TransactionAborted):
            transaction.commit({broker.inputs[0]: 3}, member.metadata)
        assert written(broker, broker.outputs[0]) == []
        assert broker.reader("two").committed(list(broker.inputs)) == dict.fromkeys(broker.inputs)

    def test_a_member_of_an_earlier_generation_commits_nothing(self, broker: Broker) -> None:
        member = Member(broker)
        other = broker.reader("two")
        give_up = time.monotonic() + kafka_parts.PATIENCE_S
        while len(other.owned) != 1 or len(member.reader.owned) != 1:
            assert time.monotonic() < give_up
            other.read(10, 0.05)
            member.reader.read(10, 0.05)
        transaction = begun(broker.producers().next())
        produce(transaction, broker.outputs[0], b"a")
        with pytest.raises(TransactionAborted):
            transaction.commit({broker.inputs[0]: 3}, member.metadata)
        assert written(broker, broker.outputs[0]) == []
        assert member.committed(broker.inputs) == [None, None]

    def test_after_a_refusal_the_producers_go_on(self, broker: Broker) -> None:
        member, producers = Member(broker), broker.producers()
        member.reader.close()
        with pytest.raises(TransactionAborted):
            begun(producers.next()).commit({broker.inputs[0]: 3}, member.metadata)
        fresh = Member(broker, "two")
        for number in range(2):
            transaction = begun(producers.next())
            produce(transaction, broker.outputs[0], b"%d" % number)
            transaction.commit({broker.inputs[0]: number}, fresh.metadata)
        assert shows(broker, broker.outputs[0], [b"0", b"1"])

    def test_a_newer_producer_of_the_name_aborts_what_the_older_has_open(self, broker: Broker) -> None:
        out = broker.outputs[0]
        older = begun(broker.producers().next())
        produce(older, out, b"older")
        older.flush()
        newer = begun(broker.producers().next())
        produce(newer, out, b"newer")
        newer.commit({}, None)
        assert shows(broker, out, [b"newer"])

    @pytest.mark.parametrize("more", [0, 3])
    def test_a_fenced_producer_gets_nothing_into_the_log(self, broker: Broker, more: int) -> None:
        out = broker.outputs[0]
        older = begun(broker.producers().next())
        produce(older, out, b"older")
        older.flush()
        broker.producers()
        with pytest.raises(TransactionAborted):
            produce_and_commit(older, out, [b"more"] * more)
        assert written(broker, out) == []

    def test_a_fenced_pair_goes_on_and_fences_the_newer(self, broker: Broker) -> None:
        out, older = broker.outputs[0], broker.producers()
        newer = broker.producers()
        for _ in range(2):  # each of its producers finds out for itself
            with pytest.raises(TransactionAborted):
                produce_and_commit(older.next(), out, [b"lost"], begin=True)
        for _ in range(2):
            produce_and_commit(older.next(), out, [b"older"], begin=True)
        with pytest.raises(TransactionAborted):
            produce_and_commit(newer.next(), out, [b"newer"], begin=True)
        assert shows(broker, out, [b"older", b"older"])

    def test_a_producer_of_another_name_is_not_fenced(self, broker: Broker) -> None:
        out = broker.outputs[0]
        one = begun(broker.producers("one").next())
        produce(one, out, b"one")
        one.flush()
        other = begun(broker.producers("other").next())
        produce(other, out, b"other")
        other.flush()
        one.commit({}, None)
        other.commit({}, None)
        assert shows(broker, out, [b"one", b"other"])

    def test_what_a_closed_producer_left_open_is_never_visible(self, broker: Broker) -> None:
        out = broker.outputs[0]
        producers = broker.producers()
        transaction = begun(producers.next())
        produce(transaction, out, b"open")
        transaction.flush()
        producers.close()
        broker.append(out, [b"after"])
        assert written(broker, out) == []
        broker.producers()
        assert shows(broker, out, [b"after"])


class TestLog:
    """Readers of ranges, by which outputs are read above."""

    def test_a_range_holds_its_first_and_not_its_last_offset(self, broker: Broker) -> None:
        source = broker.inputs[0]
        broker.append(source, [b"%d" % number for number in range(10)])
        found = list(broker.log().read(source, 3, 6))
        assert [offset for records in found for offset in records.offset.tolist()] == [3, 4, 5]
        assert {records.topic for records in found} == {source.topic}

    @pytest.mark.parametrize(("start", "stop"), [(4, 4), (6, 2), (10, 10)])
    def test_an_empty_range_brings_nothing(self, broker: Broker, start: int, stop: int) -> None:
        broker.append(broker.inputs[0], [b"x"] * 10)
        assert list(broker.log().read(broker.inputs[0], start, stop)) == []

    def test_a_range_beyond_the_end_stops_at_the_end(self, broker: Broker) -> None:
        broker.append(broker.inputs[0], [b"x"] * 3)
        assert sum(map(len, broker.log().read(broker.inputs[0], 1, 99))) == 2

    def test_bounds_are_those_of_every_partition(self, broker: Broker) -> None:
        broker.append(broker.inputs[1], [b"x"] * 3)
        assert broker.log().bounds(broker.inputs[0].topic) == {broker.inputs[0]: (0, 0), broker.inputs[1]: (0, 3)}

    def test_several_ranges_are_read_side_by_side(self, broker: Broker) -> None:
        for source in broker.inputs:
            broker.append(source, [b"x"] * 5)
        log = broker.log()
        found = zip(*(log.read(source, 0, 5) for source in broker.inputs), strict=False)
        assert sum(len(first) + len(second) for first, second in found) >= 2

    def test_a_topic_that_is_not_there_is_an_error(self, broker: Broker) -> None:
        with pytest.raises(UsageError):
            broker.log().bounds("nowhere")

    def test_reading_a_range_moves_no_offsets(self, broker: Broker) -> None:
        member = Member(broker)
        assert shows(broker, broker.inputs[0], [b"x"] * 10)
        assert member.committed(broker.inputs) == [None, None]
