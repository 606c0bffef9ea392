"""Drift events as incidents: what changed, since when, which members read it, and that nothing is rolled back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from stream_scorer.incidents.detector import NO_ACTION, DetectedConditions, percent
from stream_scorer.incidents.log import Condition, Subject
from stream_scorer.monitor.drift_types import DriftEvent, SeriesShift
from stream_scorer.records import Affected

# Members and inputs that the text names.
SHOWN = 3
_MEMBER = "member:"
_ENDED = {
    "recovered": "the traffic is as before again",
    "accepted": "the change lasted, so it is the new reference",
    "replaced": "a new version does not have this series, or has it with other bins, so it is learnt again",
}


def subject_of(event: DriftEvent) -> Subject:
    """The field that explains the event best; the member or series itself if no field does."""
    name = event.series[0].info.name
    if not event.fields and name.startswith(_MEMBER):
        return Subject(event.ensemble, member=name.removeprefix(_MEMBER), aspect=event.kind)
    return Subject(event.ensemble, field=event.fields[0] if event.fields else name, aspect=event.kind)


def condition_of(event: DriftEvent) -> Condition:
    """The condition of an open event."""
    subject, first = subject_of(event), event.series[0]
    since = f"{datetime.fromtimestamp(event.first_window / 1_000, UTC):%Y-%m-%d %H:%M}"
    subject_text = f"member {subject.member}" if subject.member is not None else f"{subject.field}"
    parts = [
        f"{subject_text} {_change(first)} since {since} UTC",
        _listed("changed inputs", [shift.info.name for shift in event.series]),
        _listed("entities", list(dict.fromkeys(event.entities))),
        _listed("affected members", [f"{each.member} ({each.effect:+.3g})" for each in event.members]),
    ]
    return Condition(
        kind="drift",
        subject=subject,
        start=event.id,
        why="; ".join(part for part in parts if part),
        event_time=event.detected_window + event.pane_ms,
        opened_event=event.first_window,
        affected=Affected(event.rows, how="transactions since the first window with the change"),
        done=NO_ACTION,
        statistics={
            "log_evidence": round(event.log_evidence, 3),
            "distance": round(first.distance, 4),
            "windows": event.windows,
            "factor": first.factor,
        },
        details={"version": event.version},
    )


def _change(shift: SeriesShift) -> str:
    if shift.kind == "scale" and shift.factor is not None:
        return f"is about {shift.factor:.3g} times as large"
    if shift.kind == "missing":
        return f"is missing in {percent(shift.missing)} of the transactions, before in {percent(shift.missing_before)}"
    return {
        "scale": "has another scale",
        "mapping": "has other categories, or maps them differently",
        "volume": "occurs at another rate",
    }.get(shift.kind, "has another distribution")


def _listed(label: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{label}: {', '.join(names[:SHOWN])}{more}"


class DriftBoard:
    """Hands the events of the windows, which need Redis, to the signals, which report them. Each is one thread."""

    def __init__(self) -> None:
        self._events: tuple[DriftEvent, ...] = ()

    def publish(self, events: Sequence[DriftEvent]) -> None:
        """Set the open events, and those that ended recently."""
        self._events = tuple(events)

    def findings(self) -> DetectedConditions:
        """The conditions of the open events, and the ends of the others."""
        found = DetectedConditions()
        for event in self._events:
            if event.status == "open":
                found.conditions.append(condition_of(event))
            else:
                ended = None if event.ended is None else event.ended + event.pane_ms
                found.end("drift", subject_of(event), _ENDED[event.status], ended)
        return found
