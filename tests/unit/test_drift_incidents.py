"""Drift events become incidents that name the field, the members and the money, and lead to no command."""

from __future__ import annotations

import msgspec

from stream_scorer.incidents.log import IncidentLog
from stream_scorer.incidents.signals import INCIDENT_METRICS, SignalRules, Signals, apply
from stream_scorer.monitor.drift_incidents import DriftBoard, condition_of
from stream_scorer.monitor.drift_types import DriftEvent, MemberEffect, SeriesInfo, SeriesShift
from stream_scorer.observability.metrics import Metrics
from stream_scorer.records import Affected, Incident, PaneSummary, ScoreSummary
from tests.support.control import MemoryControlLog

HOUR = 3_600_000
FIRST = 1_699_999_200_000


def event(**more: object) -> DriftEvent:
    infos = [SeriesInfo(name, "feature", ("amount",)) for name in ("amount_log", "customer.sum_24h", "x", "y")]
    shifts = [SeriesShift(info, "scale", 0.4, 1.0, 0.5, 30.0, 900, 0.0, 0.0, 0.01) for info in infos]
    fields: dict[str, object] = {
        "id": "cards/amount_log:1", "ensemble": "cards", "version": "7", "kind": "scale", "series": shifts,
        "fields": ["amount"], "entities": ["customer"], "members": [MemberEffect("gbdt", ("amount_log",), 0.0123)],
        "first_window": FIRST, "detected_window": FIRST + HOUR, "pane_ms": HOUR, "rows": 900, "log_evidence": 9.0,
        "run_length": 2_190.0, "false_alarms_per_year": 4.0,
    }  # fmt: skip
    return DriftEvent(**(fields | more))  # type: ignore[arg-type]


def test_an_event_names_field_inputs_and_members_and_promises_no_command() -> None:
    found = condition_of(event())
    assert found.subject.text == "cards, field amount, scale"
    assert found.id == "drift-cards-field-amount-scale-cards-amount_log-1"
    assert found.why.startswith("amount is about 0.01 times as large since 2023-11-14 22:00 UTC")
    assert "changed inputs: amount_log, customer.sum_24h, x and 1 more" in found.why
    assert "affected members: gbdt (+0.0123)" in found.why
    assert (found.opened_event, found.details) == (FIRST, {"version": "7"})
    assert "never lead to a rollback" in found.done


def test_an_event_of_a_member_alone_names_the_member() -> None:
    info = SeriesInfo("member:nn", "member", (), members=("nn",))
    shift = SeriesShift(info, "offset", 0.4, 1.0, 0.5, 30.0, 900, 0.0, 0.0)
    found = condition_of(event(series=[shift], fields=[], kind="offset"))
    assert (found.subject.member, found.subject.field) == ("nn", None)
    assert found.why.startswith("member nn has another distribution")


def test_an_event_opens_one_incident_and_its_end_closes_it() -> None:
    incidents, board = MemoryControlLog(), DriftBoard()
    log = IncidentLog(incidents)
    board.publish([event()])
    for at in (1, 2):
        apply(board.findings(), log, at)
    board.publish([event(status="recovered", ended=FIRST + 5 * HOUR)])
    for at in (3, 4):
        apply(board.findings(), log, at)
    opened, closed = [msgspec.json.decode(value, type=Incident) for value in incidents.records]
    assert (opened.kind, opened.closed, closed.closed) == ("drift", None, 3)
    assert (closed.ended, closed.closed_event) == ("the traffic is as before again", FIRST + 6 * HOUR)
    assert opened.due is None


def test_transactions_and_money_are_counted_from_the_first_changed_window_on() -> None:
    class Clock:
        def now_ms(self) -> int:
            return FIRST + 2 * HOUR

        def monotonic(self) -> float:
            return 1.0

    incidents, board = MemoryControlLog(), DriftBoard()
    signals = Signals(
        IncidentLog(incidents), lambda topic, since: None, dict, Clock(), Metrics(INCIDENT_METRICS), SignalRules(),
        board.findings,
    )  # type: ignore[arg-type]  # fmt: skip
    board.publish([event()])
    signals.evaluate()
    for hour, rows in ((-1, 5_000), (0, 600), (1, 700)):
        pane = PaneSummary(
            FIRST + hour * HOUR, rows, 0, 0, 0, {}, {"approve": 2 * rows, "block": rows}, {}, {}, {}, [], {}
        )
        signals._detectors.add_summary(
            ScoreSummary("cards", "7", "champion", HOUR, "transactions", 0, 0, 1, 0, [pane], 1, {}, FIRST), FIRST
        )
    board.publish([event(id="2", fields=["terminal"])])
    signals.evaluate()
    how = "transactions since the first window with the change"
    found = [msgspec.json.decode(value, type=Incident) for value in incidents.records]
    assert [incident.affected for incident in found if incident.kind == "drift"] == [
        Affected(900, how=how),
        Affected(1_300, money=3_900, how=how),
    ]
