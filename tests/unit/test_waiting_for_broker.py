"""A processor without a broker: it reports that, and ends only for errors that waiting cannot cure."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from stream_scorer.errors import AccessDenied, BrokerUnavailable, StartPending
from stream_scorer.observability.metrics import RESYNCS, Metrics
from stream_scorer.pipeline import processor as module
from stream_scorer.pipeline.committer import Committer
from stream_scorer.pipeline.cut import Inputs
from stream_scorer.pipeline.processor import OnAssigned, OnRevoked, Pacing, Processor
from stream_scorer.positions import SourcePartition
from stream_scorer.serde.raw import Read

SOURCE = SourcePartition("transactions", 0)


class Away:
    """A reader that has partitions at first. Each read runs the next of `events`; then the scorer is stopped."""

    def __init__(self, on_assigned: OnAssigned, on_revoked: OnRevoked) -> None:
        self.on_assigned, self.on_revoked = on_assigned, on_revoked
        self.stop = threading.Event()
        self.events: list[Callable[[], object]] = []
        self.owned = [SOURCE]
        self.sought: list[dict[SourcePartition, int]] = []
        self.steps: list[str] = []
        self.refusal: AccessDenied | None = None

    def read(self, _max_records: int, _wait_s: float) -> Read:
        if self.events:
            self.events.pop(0)()
        else:
            self.stop.set()
        return Read([], {}, None)

    def seek_all(self, offsets: dict[SourcePartition, int]) -> None:
        self.sought.append(offsets)

    def lag(self) -> int:
        return 0

    def find_refusal(self) -> AccessDenied | None:
        return self.refusal

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> tuple[Processor, Away, Metrics, list[BrokerUnavailable]]:
    """A processor whose lookups fail as long as there are errors."""
    monkeypatch.setattr(module, "OUTAGE_PAUSE_S", 0.0)
    failures: list[BrokerUnavailable] = []

    def start(_reader: Any, sources: list[SourcePartition]) -> SimpleNamespace:
        made[0].steps.append("look up")
        if failures:
            raise failures.pop()
        return SimpleNamespace(read_from=dict.fromkeys(sources, 5), score_from=dict.fromkeys(sources, 5))

    def restore() -> None:
        made[0].steps.append("restore")

    nothing = SimpleNamespace(
        check=lambda: "", start=start, close=lambda: None, restore=restore, stop=lambda _deadline: None,
        idle=lambda: None, forget=lambda: None, updates_wait=False,
        availability=SimpleNamespace(readiness=(True, "serving")),
    )  # fmt: skip
    metrics = Metrics()
    made: list[Away] = []

    def make_reader(assigned: OnAssigned, revoked: OnRevoked, _stopping: Callable[[], bool]) -> Any:
        made.append(Away(assigned, revoked))
        return made[0]

    processor = Processor(
        make_reader=make_reader, producers=cast(Any, nothing), stages=[], committer=Committer([]),
        state=cast(Any, nothing), inputs=Inputs("transactions", "labels"), pacing=Pacing(1, 0.0), metrics=metrics,
    )  # fmt: skip
    return processor, made[0], metrics, failures


def test_it_is_not_ready_before_lookups_succeed_again(parts: Any) -> None:
    processor, reader, metrics, failures = parts
    states: list[tuple[bool, str]] = []

    def assign() -> None:
        failures.extend(BrokerUnavailable("no Kafka broker answers") for _ in range(3))
        assert reader.on_assigned([SOURCE]) == {}  # the callback waits for no broker

    def look() -> None:
        states.append(processor.ready())

    reader.events = [look, assign, look, look, look, look, lambda: reader.on_revoked(True), look]
    processor.run(reader.stop, beat=lambda: None)
    assert states[0] == (False, "waiting for partitions")
    assert states[1:4] == [(False, "no Kafka broker answers")] * 3
    assert states[4] == (True, "serving")
    assert states[5][1].startswith("waiting for partitions: Kafka did not answer in time")
    assert reader.sought == [{SOURCE: 5}]
    assert metrics.registry.get_sample_value(RESYNCS.name, {"cause": "broker_unavailable"}) == 3


def test_it_is_not_ready_between_a_revoke_and_the_next_assignment_and_a_spare_is(parts: Any) -> None:
    processor, reader, _, _ = parts
    states: list[tuple[bool, str]] = []

    def revoke() -> None:
        reader.on_revoked(False)
        reader.owned = []

    def look() -> None:
        states.append(processor.ready())

    reader.events = [lambda: reader.on_assigned([SOURCE]), look, revoke, look, lambda: reader.on_assigned([]), look]
    processor.run(reader.stop, beat=lambda: None)
    assert states == [
        (True, "serving"),
        (False, "waiting for partitions: the consumer group is rebalancing"),
        (True, "spare: no partition is assigned"),
    ]


def test_it_waits_for_the_scorer_that_commits_where_a_new_group_begins(parts: Any) -> None:
    processor, reader, _, failures = parts
    states: list[tuple[bool, str]] = []

    def assign() -> None:
        failures.extend(StartPending("the group is new") for _ in range(3))
        assert reader.on_assigned([SOURCE]) == {}

    reader.events = [assign, *[lambda: states.append(processor.ready())] * 4]
    processor.run(reader.stop, beat=lambda: None)
    assert states == [(False, "the group is new")] * 3 + [(True, "serving")]
    assert reader.sought == [{SOURCE: 5}]


def test_brokers_that_refuse_the_client_end_the_scorer(parts: Any) -> None:
    processor, reader, _, failures = parts
    failures.extend(BrokerUnavailable("no Kafka broker answers") for _ in range(3))
    reader.refusal = AccessDenied("the broker does not accept the credentials")
    reader.events = [lambda: reader.on_assigned([SOURCE])]
    with pytest.raises(AccessDenied):
        processor.run(reader.stop, beat=lambda: None)
    assert len(failures) == 1  # the first failure may come from a broker that stops


def test_a_scorer_that_lacks_one_broker_for_long_gives_its_partitions_away(
    parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor, reader, _, failures = parts
    monkeypatch.setattr(module, "PARTIAL_OUTAGE_S", 0.05)
    failures.extend(BrokerUnavailable("no Kafka broker answers") for _ in range(9))
    reader.events = [lambda: reader.on_assigned([SOURCE])]
    reader.events += [lambda: time.sleep(0.03)] * 9
    with pytest.raises(BrokerUnavailable):
        processor.run(reader.stop, beat=lambda: None)
    assert reader.events


def test_an_assignment_ends_former_transactions_before_it_looks_offsets_up(parts: Any) -> None:
    processor, reader, _, _ = parts
    reader.events = [lambda: reader.on_assigned([SOURCE])]
    processor.run(reader.stop, beat=lambda: None)
    assert reader.steps == ["restore", "look up"]
