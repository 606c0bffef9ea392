"""What every reader of the input does: in memory and on Kafka."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from stream_scorer.errors import StreamScorerError
from stream_scorer.pipeline.ports import Reader
from stream_scorer.positions import SourcePartition
from stream_scorer.serde.raw import Read
from tests.support import kafka_parts
from tests.support.kafka_parts import NOW_MS, Broker, from_start


def values(first: int, stop: int) -> list[bytes | None]:
    return [b"%d" % number for number in range(first, stop)]


class Drain:
    """Reads with some members in turn, and keeps what each of them brought."""

    def __init__(self, *readers: Reader, most: int = 100) -> None:
        self.readers = readers
        self.most = most
        self.reads: list[Read] = []
        self.records: list[tuple[SourcePartition, int, bytes | None]] = []

    def until(self, done: Callable[[], bool]) -> None:
        give_up = time.monotonic() + kafka_parts.PATIENCE_S
        while not done():
            assert time.monotonic() < give_up, f"after {kafka_parts.PATIENCE_S} s: {self.records}"
            for reader in self.readers:
                self.keep(reader.read(self.most, 0.05))

    def count(self, count: int) -> None:
        """Read until `count` records are there; reads on a little to find any that are too many."""
        self.until(lambda: len(self.records) >= count)
        for reader in self.readers:
            self.keep(reader.read(self.most, 0.05))
        assert len(self.records) == count

    def keep(self, read: Read) -> None:
        self.reads.append(read)
        for records in read.records:
            for partition, offset, value in zip(
                records.partition.tolist(), records.offset.tolist(), records.value, strict=True
            ):
                self.records.append((SourcePartition(records.topic, partition), offset, value))

    def of(self, source: SourcePartition) -> list[bytes | None]:
        return [value for at, _, value in self.records if at == source]

    def offsets(self, source: SourcePartition) -> list[int]:
        return [offset for at, offset, _ in self.records if at == source]


def own_all(broker: Broker, reader: Reader) -> Drain:
    """A drain whose reader has joined the group and holds all partitions."""
    drain = Drain(reader)
    drain.until(lambda: len(reader.owned) == len(broker.inputs))
    return drain


class TestReading:
    def test_every_record_comes_once_in_the_order_of_its_partition(self, broker: Broker) -> None:
        for source in broker.inputs:
            broker.append(source, values(0, 30))
        drain = Drain(broker.reader(), most=7)
        drain.count(60)
        for source in broker.inputs:
            assert drain.of(source) == values(0, 30)
            assert drain.offsets(source) == list(range(30))

    def test_records_that_arrive_later_come_too(self, broker: Broker) -> None:
        drain = Drain(broker.reader())
        for first in range(0, 9, 3):
            broker.append(broker.inputs[0], values(first, first + 3))
            drain.count(first + 3)
        assert drain.of(broker.inputs[0]) == values(0, 9)

    @pytest.mark.parametrize("most", [1, 5])
    def test_a_read_brings_at_most_what_it_is_asked_for(self, broker: Broker, most: int) -> None:
        for source in broker.inputs:
            broker.append(source, values(0, 8))
        drain = Drain(broker.reader(), most=most)
        drain.count(16)
        assert max(len(read) for read in drain.reads) <= most

    def test_a_read_without_records_is_empty(self, broker: Broker) -> None:
        reader = broker.reader()
        own_all(broker, reader)
        read = reader.read(10, 0.01)
        assert (len(read), read.records, read.positions) == (0, [], {})

    def test_a_record_keeps_its_bytes_time_and_headers(self, broker: Broker) -> None:
        source = broker.inputs[1]
        broker.append(source, [b"\x00value"], key=b"\xffkey", timestamp=NOW_MS - 5, headers=[("h", b"1"), ("h", b"2")])
        broker.append(source, [None], key=None, timestamp=NOW_MS - 4)
        drain = Drain(broker.reader())
        drain.count(2)
        found = [
            row
            for read in drain.reads
            for records in read.records
            for row in zip(records.key, records.value, records.timestamp.tolist(), records.headers, strict=True)
        ]
        assert found[0] == (b"\xffkey", b"\x00value", NOW_MS - 5, [("h", b"1"), ("h", b"2")])
        assert found[1][:3] == (None, None, NOW_MS - 4)
        assert not found[1][3]

    def test_positions_of_reads_follow_each_other(self, broker: Broker) -> None:
        for source in broker.inputs:
            broker.append(source, values(0, 20))
        drain = Drain(broker.reader(), most=6)
        drain.count(40)
        at = from_start(list(broker.inputs))
        for read in drain.reads:
            for source, (start, stop) in read.positions.items():
                assert start == at[source] < stop
                at[source] = stop
        assert at == dict.fromkeys(broker.inputs, 20)

    def test_read_more_adds_what_has_arrived(self, broker: Broker) -> None:
        source = broker.inputs[0]
        broker.append(source, values(0, 4))
        reader = broker.reader()
        drain = own_all(broker, reader)
        drain.until(lambda: len(drain.records) == 4)
        broker.append(source, values(4, 5))
        read = reader.read(1, 5.0)
        while not len(read):
            read = reader.read(1, 1.0)
        broker.append(source, values(5, 12))
        give_up = time.monotonic() + kafka_parts.PATIENCE_S
        while len(read) < 8 and time.monotonic() < give_up:
            before = len(read)
            read = reader.read_more(read, 3)
            assert len(read) <= before + 3
        assert read.positions == {source: (4, 12)}
        assert [value for records in read.records for value in records.value] == values(4, 12)
        assert reader.read_more(read, 0).positions == {source: (4, 12)}


class TestTransactionalInput:
    def test_only_committed_records_come(self, broker: Broker) -> None:
        source = broker.inputs[0]
        producers = broker.producers()
        for number, commit in enumerate([True, False, True]):
            transaction = producers.next()
            transaction.begin()
            for value in values(10 * number, 10 * number + 3):
                transaction.produce(source.topic, source.partition, None, value)
            transaction.flush()
            transaction.commit({}, None) if commit else transaction.abort()
        drain = Drain(broker.reader())
        drain.count(6)
        assert drain.of(source) == values(0, 3) + values(20, 23)

    def test_control_records_leave_holes_that_positions_reach_over(self, broker: Broker) -> None:
        source = broker.inputs[0]
        producers = broker.producers()
        for number in range(3):
            transaction = producers.next()
            transaction.begin()
            transaction.produce(source.topic, source.partition, None, b"%d" % number)
            transaction.commit({}, None)
        drain = Drain(broker.reader(), most=1)
        drain.count(3)
        assert drain.offsets(source) == [0, 2, 4]
        spans = [read.positions[source] for read in drain.reads if read.positions]
        assert spans == [(0, 1), (1, 3), (3, 5)]

    def test_records_after_an_open_transaction_wait_for_its_end(self, broker: Broker) -> None:
        source, other = broker.inputs
        transaction = broker.producers().next()
        transaction.begin()
        transaction.produce(source.topic, source.partition, None, b"open")
        transaction.flush()
        broker.append(source, [b"after"])
        broker.append(other, [b"elsewhere"])
        drain = Drain(broker.reader())
        drain.count(1)
        assert drain.of(other) == [b"elsewhere"]
        transaction.commit({}, None)
        drain.count(3)
        assert drain.of(source) == [b"open", b"after"]

    def test_bounds_end_where_an_open_transaction_begins(self, broker: Broker) -> None:
        source = broker.inputs[0]
        broker.append(source, values(0, 3))
        transaction = broker.producers().next()
        transaction.begin()
        transaction.produce(source.topic, source.partition, None, b"open")
        transaction.flush()
        reader = broker.reader()
        assert reader.offset_bounds(source) == (0, 3)
        transaction.abort()
        give_up = time.monotonic() + kafka_parts.PATIENCE_S
        while reader.offset_bounds(source) == (0, 3) and time.monotonic() < give_up:
            time.sleep(0.01)  # a real broker ends a transaction some time after the call
        assert reader.offset_bounds(source) == (0, 5)


class TestPositions:
    def test_reading_begins_where_the_callback_says(self, broker: Broker) -> None:
        first, second = broker.inputs
        for source in broker.inputs:
            broker.append(source, values(0, 10))
        drain = Drain(broker.reader(on_assigned=lambda sources: {first: 7, second: 10}))
        drain.count(3)
        assert drain.of(first) == values(7, 10)

    def test_partitions_taken_up_without_an_offset_are_owned_and_read_after_a_seek(self, broker: Broker) -> None:
        for source in broker.inputs:
            broker.append(source, values(0, 6))
        reader = broker.reader(on_assigned=lambda sources: {})
        drain = own_all(broker, reader)
        for _ in range(5):
            drain.keep(reader.read(100, 0.1))
        assert (drain.records, reader.lag()) == ([], 0)
        reader.seek_all(dict.fromkeys(broker.inputs, 2))
        drain.count(8)
        assert drain.offsets(broker.inputs[0]) == [2, 3, 4, 5]

    def test_seeking_back_reads_again_and_leaves_the_others(self, broker: Broker) -> None:
        first, second = broker.inputs
        for source in broker.inputs:
            broker.append(source, values(0, 6))
        reader = broker.reader()
        drain = Drain(reader)
        drain.count(12)
        reader.seek_all({first: 4})
        drain.count(14)
        assert drain.offsets(first) == [*range(6), 4, 5]
        assert drain.offsets(second) == list(range(6))

    def test_seeking_forward_leaves_records_out(self, broker: Broker) -> None:
        source = broker.inputs[0]
        reader = broker.reader()
        drain = own_all(broker, reader)
        broker.append(source, values(0, 8))
        reader.seek_all({source: 5})
        drain.count(3)
        assert drain.of(source) == values(5, 8)

    def test_reading_on_beyond_the_end_of_the_log_is_an_error(self, broker: Broker) -> None:
        source = broker.inputs[0]
        broker.append(source, values(0, 3))
        drain = Drain(broker.reader(on_assigned=lambda sources: from_start(sources) | {source: 7}))
        with pytest.raises(StreamScorerError):
            drain.until(lambda: False)

    def test_bounds_grow_with_the_log(self, broker: Broker) -> None:
        reader = broker.reader()
        assert reader.offset_bounds(broker.inputs[1]) == (0, 0)
        broker.append(broker.inputs[1], values(0, 3))
        assert reader.offset_bounds(broker.inputs[1]) == (0, 3)
        assert reader.offset_bounds(broker.inputs[0]) == (0, 0)

    def test_the_lag_is_what_has_arrived_and_was_not_read(self, broker: Broker) -> None:
        reader = broker.reader()
        drain = own_all(broker, reader)
        broker.append(broker.inputs[0], values(0, 6))
        drain.count(6)
        assert reader.lag() == 0
        broker.append(broker.inputs[0], values(6, 9))
        broker.append(broker.inputs[1], values(0, 2))
        give_up = time.monotonic() + kafka_parts.PATIENCE_S
        while reader.lag() < 5 and time.monotonic() < give_up:
            time.sleep(0.01)
        assert reader.lag() == 5
        drain.count(11)
        assert reader.lag() == 0


class TestCommittedOffsets:
    def test_a_new_group_has_none(self, broker: Broker) -> None:
        assert broker.reader().committed(list(broker.inputs)) == dict.fromkeys(broker.inputs)

    def test_what_was_committed_is_answered(self, broker: Broker) -> None:
        first, second = broker.inputs
        reader = broker.reader()
        own_all(broker, reader)
        reader.commit({first: 4})
        assert reader.committed([first, second]) == {first: 4, second: None}
        assert reader.committed([second]) == {second: None}

    def test_the_last_commit_counts(self, broker: Broker) -> None:
        source = broker.inputs[0]
        reader = broker.reader()
        own_all(broker, reader)
        for offset in (4, 9, 6):
            reader.commit({source: offset})
        assert reader.committed([source]) == {source: 6}

    def test_offsets_may_be_committed_and_asked_for_while_partitions_are_taken_up(self, broker: Broker) -> None:
        found = []

        def take_up(sources: list[SourcePartition]) -> dict[SourcePartition, int]:
            found.append(reader.committed(sources))
            reader.commit(dict.fromkeys(sources, 2))
            found.append(reader.committed(sources))
            return from_start(sources)

        reader = broker.reader(on_assigned=take_up)
        own_all(broker, reader)
        assert found == [dict.fromkeys(broker.inputs), dict.fromkeys(broker.inputs, 2)]

    def test_another_member_finds_them(self, broker: Broker) -> None:
        source = broker.inputs[0]
        first = broker.reader()
        own_all(broker, first)
        first.commit({source: 3})
        assert broker.reader("two").committed([source]) == {source: 3}


class TestGroup:
    def test_a_member_alone_is_assigned_everything_once(self, broker: Broker) -> None:
        calls = []

        def assigned(sources: list[SourcePartition]) -> dict[SourcePartition, int]:
            calls.append(sorted(sources))
            return from_start(sources)

        reader = broker.reader(on_assigned=assigned)
        assert reader.owned == []
        own_all(broker, reader)
        reader.read(10, 0.05)
        assert calls == [list(broker.inputs)]
        assert sorted(reader.owned) == list(broker.inputs)

    def test_two_members_share_the_partitions(self, broker: Broker) -> None:
        revoked: list[bool] = []
        one = broker.reader("one", on_revoked=revoked.append)
        own_all(broker, one)
        two = broker.reader("two")
        drain = Drain(one, two)
        drain.until(lambda: len(one.owned) == 1 and len(two.owned) == 1)
        assert sorted(one.owned + two.owned) == list(broker.inputs)
        assert revoked == [False]  # in time to finish what was under way
        for source in broker.inputs:
            broker.append(source, values(0, 5))
        drain.count(10)

    def test_what_a_member_that_leaves_held_goes_to_the_other(self, broker: Broker) -> None:
        revoked: list[bool] = []
        one, two = broker.reader("one"), broker.reader("two", on_revoked=revoked.append)
        Drain(one, two).until(lambda: len(one.owned) == 1 and len(two.owned) == 1)
        revoked.clear()
        two.close()
        assert revoked == [False]
        own_all(broker, one)
        broker.append(broker.inputs[0], values(0, 2))
        broker.append(broker.inputs[1], values(0, 2))
        Drain(one).count(4)

    def test_the_one_that_follows_reads_on_at_the_committed_offsets(self, broker: Broker) -> None:
        for source in broker.inputs:
            broker.append(source, values(0, 6))

        def resume(reader: Callable[[], Reader]) -> Callable[[list[SourcePartition]], dict[SourcePartition, int]]:
            return lambda sources: {s: at or 0 for s, at in reader().committed(sources).items()}

        one: Reader = broker.reader("one", on_assigned=resume(lambda: one))
        Drain(one).count(12)
        one.commit(dict.fromkeys(broker.inputs, 4))
        one.close()
        two: Reader = broker.reader("two", on_assigned=resume(lambda: two))
        drain = Drain(two)
        drain.count(4)
        assert {offset for _, offset, _ in drain.records} == {4, 5}

    def test_a_member_that_was_assigned_nothing_cannot_commit(self, broker: Broker) -> None:
        one = broker.reader("one")
        own_all(broker, one)
        two = broker.reader("two")
        with pytest.raises(StreamScorerError):
            two.commit({broker.inputs[0]: 1})
        assert one.committed([broker.inputs[0]]) == {broker.inputs[0]: None}

    def test_an_error_of_ours_while_giving_up_is_not_raised(self, broker: Broker) -> None:
        def refuse(lost: bool) -> None:
            raise StreamScorerError("could not finish")

        reader = broker.reader(on_revoked=refuse)
        own_all(broker, reader)
        reader.close()
        assert reader.owned == []

    @pytest.mark.parametrize("error", [StreamScorerError("ours"), ZeroDivisionError("a mistake")])
    def test_an_error_while_taking_up_is_raised_by_read(self, broker: Broker, error: Exception) -> None:
        def fail(sources: list[SourcePartition]) -> dict[SourcePartition, int]:
            raise error

        reader = broker.reader(on_assigned=fail)
        drain = Drain(reader)
        with pytest.raises(type(error), match=str(error)):
            drain.until(lambda: False)
        assert reader.owned == []
