"""The log of incidents: one condition gives one incident, whichever process reports it."""

from __future__ import annotations

import msgspec
import pytest

from stream_scorer.control.incidents import Incidents
from stream_scorer.control.probation import Comparison
from stream_scorer.errors import BrokerUnavailable, ReaderLost, UsageError
from stream_scorer.incidents.log import UPDATE_EVERY_MS, Condition, IncidentLog, IncidentTable, Subject
from stream_scorer.records import Affected, Incident, ServedVersion, Source
from tests.support.control import MARKER, ControlRecord, MemoryControlLog

SILENT = Subject(topic="transactions", partition=3)


def condition(start: int = 120, **more: object) -> Condition:
    fields: dict[str, object] = {"kind": "feed", "subject": SILENT, "start": start, "why": "no transactions"}
    return Condition(**(fields | more))  # type: ignore[arg-type]


def records(log: MemoryControlLog) -> list[Incident]:
    return [msgspec.json.decode(value, type=Incident) for value in log.records if value != MARKER]


def test_a_condition_is_opened_once_by_two_monitors_and_by_one_after_a_restart() -> None:
    log = MemoryControlLog()
    one, two = (IncidentLog(MemoryControlLog(log.records)) for _ in range(2))
    for monitor in (one, two, one, IncidentLog(MemoryControlLog(log.records))):
        assert monitor.report(condition(), 1_000)
    (incident,) = records(log)
    assert incident.id == "feed-transactions-partition-3-120"
    assert (incident.kind, incident.subject, incident.opened) == ("feed", "transactions, partition 3", 1_000)
    assert (incident.closed, incident.updated, incident.due) == (None, None, None)


def test_a_monitor_that_sees_another_beginning_updates_the_open_incident() -> None:
    log = MemoryControlLog()
    IncidentLog(MemoryControlLog(log.records)).report(condition(120, first=[Source("transactions", 3, 120)]), 0)
    later = condition(150, first=[Source("transactions", 3, 150), Source("transactions", 4, 9)], why="still none")
    restarted = IncidentLog(MemoryControlLog(log.records))
    restarted.report(later, UPDATE_EVERY_MS)
    first, second = records(log)
    assert (second.id, second.opened, second.updated, second.why) == (first.id, 0, UPDATE_EVERY_MS, "still none")
    assert second.first == [Source("transactions", 3, 120), Source("transactions", 4, 9)]


def test_two_monitors_that_open_at_the_same_time_with_different_beginnings_have_one_incident() -> None:
    log = MemoryControlLog()
    one, two = (IncidentLog(MemoryControlLog(log.records)) for _ in range(2))
    one.report(condition(120), 0)
    # Both had read the topic before the other one wrote.
    blind = msgspec.structs.replace(records(log)[0], id="feed-transactions-partition-3-121")
    log.records.append(msgspec.json.encode(blind))
    assert [incident.id for incident in two.open()] == ["feed-transactions-partition-3-120"]
    two.close_incident("feed-transactions-partition-3-120", "transactions arrive again", 5)
    for monitor in (one, two, IncidentLog(log)):
        assert monitor.open() == []


def test_a_closed_incident_stays_closed_and_a_new_condition_is_a_new_one() -> None:
    log = MemoryControlLog()
    monitor = IncidentLog(log)
    monitor.report(condition(120), 0)
    monitor.close_incident(records(log)[0].id, "transactions arrive again", 7, event_time=5)
    monitor.close_incident(records(log)[0].id, "transactions arrive again", 8)
    monitor.report(condition(120), 9)
    opened, closed = records(log)
    assert closed == msgspec.structs.replace(opened, closed=7, closed_event=5, ended="transactions arrive again")
    monitor.report(condition(500), 20)
    assert [incident.id for incident in monitor.open()] == ["feed-transactions-partition-3-500"]


def test_a_person_closes_an_incident_with_a_reason_and_no_monitor_reopens_the_same_condition() -> None:
    log = MemoryControlLog()
    running = IncidentLog(MemoryControlLog(log.records))
    running.report(condition(120, began=100), 1_000)
    closed = IncidentLog(MemoryControlLog(log.records)).close_by(records(log)[0].id, "ann", "the feed is gone", 2_000)
    assert closed == records(log)[-1]
    assert (closed.closed, closed.closed_by, closed.ended) == (2_000, "ann", "the feed is gone")
    # One that runs, and one after a restart, which derives another beginning.
    running.report(condition(120, began=100), 3_000)
    for began in (100, 2_000):
        IncidentLog(MemoryControlLog(log.records)).report(condition(500, began=began), 4_000)
    assert len(log.records) == 2 and running.open() == []
    # It began again.
    running.report(condition(700, began=2_001), 5_000)
    assert [incident.id for incident in running.open()] == ["feed-transactions-partition-3-700"]


def test_without_a_record_timestamp_event_times_show_whether_a_condition_is_the_one_that_a_person_closed() -> None:
    log = MemoryControlLog()
    monitor = IncidentLog(log)
    drift: dict[str, object] = {"kind": "drift", "subject": Subject("cards", field="amount", aspect="scale")}
    monitor.report(condition("amount-50", opened_event=50, event_time=60, **drift), 1_000)
    monitor.close_by(records(log)[0].id, "ann", "its state is lost", 2_000)
    # The windows are read again after a loss of Redis, and the same change is found in another window.
    monitor.report(condition("amount-60", opened_event=60, event_time=70, **drift), 3_000)
    assert monitor.open() == []
    monitor.report(condition("amount-61", opened_event=61, event_time=70, **drift), 4_000)
    assert len(monitor.open()) == 1


def test_a_monitor_that_writes_at_the_same_time_does_not_reopen_what_a_person_closed() -> None:
    log = MemoryControlLog()
    monitor = IncidentLog(MemoryControlLog(log.records))
    monitor.report(condition(120), 0)
    (opened,) = records(log)
    IncidentLog(MemoryControlLog(log.records)).close_by(opened.id, "ann", "gone", 5)
    # It had read the topic before the person wrote.
    log.records.append(msgspec.json.encode(msgspec.structs.replace(opened, updated=6)))
    log.records.append(msgspec.json.encode(msgspec.structs.replace(opened, closed=7, ended="over")))
    for reader in (monitor, IncidentLog(MemoryControlLog(log.records))):
        table = reader.read()
        assert table.open() == [] and table.newest[opened.id].closed_by == "ann"
    # Further figures of it are still added, such as what an action saved.
    assert monitor.amend(opened.id, done="a person was called")
    assert monitor.read().newest[opened.id].done == "a person was called"


def test_a_verdict_that_a_person_closed_is_not_reopened() -> None:
    log = MemoryControlLog()
    monitor = IncidentLog(log)
    verdict = condition(4, kind="verdict", subject=Subject("cards", "8"))
    monitor.report(verdict, 0)
    monitor.close_incident("cards-4", "the versions are no longer compared", 1)
    monitor.report(verdict, 2)
    assert [incident.id for incident in monitor.open()] == ["cards-4"]
    monitor.close_by("cards-4", "ann", "known", 3)
    monitor.report(verdict, 4)
    assert monitor.open() == []


def verdict(version: str, began: int, start: int | str = 4) -> Condition:
    """A verdict on a version that was put in play at control offset 4."""
    details = {"baseline": "7", "since": 4, "began": began}
    return condition(start, kind="verdict", subject=Subject("cards", version), began=began, details=details)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", ["8", "9"])
def test_an_incident_of_a_former_control_topic_does_not_take_the_place_of_a_new_one(version: str) -> None:
    log = MemoryControlLog()
    one, two = (IncidentLog(MemoryControlLog(log.records)) for _ in range(2))
    for start in (4, "4-labels"):
        one.report(verdict("8", 1_000, start), 1_001)
        one.close_by(f"cards-{start}", "ann", "known", 1_002)
    # The topic was created again: the same offset, and perhaps the same version.
    for monitor in (one, two, one):
        for start in (4, "4-labels"):
            assert monitor.report(verdict(version, 2_000, start), 2_001)
            # That of the former topic is still known to a monitor that has not read the new one.
            assert monitor.report(verdict("8", 1_000, start), 2_002)
    assert [each.id for each in two.open()] == ["cards-2000-4", "cards-2000-4-labels"]
    one.close_by("cards-2000-4", "ann", "known too", 3)
    assert len(log.records) == 7
    two.report(verdict(version, 2_000), 2_003)
    assert len(log.records) == 7


def test_an_incident_of_a_former_control_topic_is_closed_although_its_offset_is_in_use_again() -> None:
    log = MemoryControlLog()
    incidents = Incidents(log)
    for began in (1_000, 2_000):
        incidents.log.report(verdict("8", began), began)
    comparison = Comparison("cards", ServedVersion("8", "8" * 64), ServedVersion("7", "7" * 64), 4, 2_000, "rollback")
    incidents.close_all_but([comparison], {"cards": 5}, 3_000)
    assert [each.id for each in incidents.open()] == ["cards-2000-4"]
    incidents.close_all_but([], {"cards": 6}, 4_000)
    assert incidents.open() == []


def test_only_an_open_incident_can_be_closed_and_only_with_a_name_and_a_reason() -> None:
    log = MemoryControlLog()
    monitor = IncidentLog(log)
    for number in (1, 2):
        monitor.report(condition(number, subject=Subject(topic="transactions", partition=number)), 0)
    one, two = (incident.id for incident in records(log))
    monitor.close_incident(one, "transactions arrive again", 1)
    with pytest.raises(UsageError, match="no incident 'nope'"):
        monitor.close_by("nope", "ann", "so", 2)
    with pytest.raises(UsageError, match="already closed, by the monitor: transactions arrive again"):
        monitor.close_by(one, "ann", "so", 2)
    for who, why in (("ann", " "), ("", "so")):
        with pytest.raises(UsageError, match="neither may be empty"):
            monitor.close_by(two, who, why, 2)
    monitor.close_by(two, "ann", "so", 2)
    with pytest.raises(UsageError, match="already closed, by ann: so"):
        monitor.close_by(two, "bob", "too", 3)
    assert len(log.records) == 4


def test_figures_are_written_now_and_then_and_actions_at_once() -> None:
    log = MemoryControlLog()
    monitor = IncidentLog(log)
    monitor.report(condition(affected=Affected(transactions=1)), 0)
    monitor.report(condition(affected=Affected(transactions=2)), UPDATE_EVERY_MS - 1)
    assert len(log.records) == 1
    monitor.report(condition(affected=Affected(transactions=3)), UPDATE_EVERY_MS)
    monitor.report(condition(affected=Affected(transactions=4), done="a person was called"), UPDATE_EVERY_MS + 1)
    monitor.report(condition(affected=Affected(transactions=4), done="a person was called"), 3 * UPDATE_EVERY_MS)
    assert [i.affected.transactions for i in records(log) if i.affected] == [1, 3, 4]
    # After ten days, one update a minute would be too many.
    late = 10 * 86_400_000
    for minute in range(60):
        monitor.report(condition(affected=Affected(transactions=5 + minute)), late + minute * UPDATE_EVERY_MS)
    assert len(log.records) == 4


def test_a_topic_that_cannot_be_written_or_read_raises_nothing_and_the_next_report_tries_again() -> None:
    class Moody(MemoryControlLog):
        broken = True

        def append(self, key: str, value: bytes) -> int:
            if self.broken:
                raise BrokerUnavailable("not now")
            return super().append(key, value)

    log = Moody()
    monitor = IncidentLog(log)
    assert not monitor.report(condition(), 0)
    log.broken = False
    assert monitor.report(condition(), 1)
    log.broken = True
    assert not monitor.close_incident(records(log)[0].id, "over", 2)
    log.records.append(MARKER)
    log.fails = BrokerUnavailable("no broker")
    assert not monitor.report(condition(), 3)
    assert records(log)[0].closed is None


def test_a_record_that_cannot_be_read_is_no_incident() -> None:
    table = IncidentTable(keep_history=True)
    found = table.add(msgspec.json.encode(Incident(id="cards-4", ensemble="cards", opened=9, why="w")), 0)
    assert found is not None
    assert table.add(b"junk", 1) is None
    assert table.history == {"cards-4": [found]}


@pytest.mark.parametrize("name", ["a b/c", "x" * 300, "übertrag"])
def test_an_id_is_safe_as_a_file_name_and_differs_between_subjects(name: str) -> None:
    found = condition(subject=Subject(field=name)).id
    other = condition(subject=Subject(field=name.replace("/", "?") + "!")).id
    assert found != other
    assert len(found) < 120 and set(found) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def test_a_log_whose_broker_is_gone_is_an_error_and_not_a_wait_without_end() -> None:
    class Gone(MemoryControlLog):
        def end(self) -> int:
            return 5

        def read(self, wait_s: float) -> list[ControlRecord]:
            return []

    log = IncidentLog(Gone())
    with pytest.raises(BrokerUnavailable, match="from offset 0 on"):
        log.read()
    assert not log.report(Condition("errors", Subject("cards"), 1, "no scores"), 0)


def test_a_topic_that_is_created_again_is_an_error_and_an_end_that_is_known_late_is_none() -> None:
    log = MemoryControlLog()
    monitor, ends = IncidentLog(log), [1, 0, 1]
    log.append("", msgspec.json.encode(Incident(id="a", ensemble="cards", opened=1, why="")))
    log.end = lambda: ends.pop(0)  # type: ignore[method-assign]
    assert len(monitor.open()) == len(monitor.open()) == 1
    log.end = lambda: 0  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(ReaderLost, match="incidents ends at offset 0, and offset 0 was read"):
            monitor.read()
    assert not monitor.report(condition(500), 1)
