"""The log of incidents: one condition gives one incident, regardless of how many monitors report it and how often.

Every reader folds the topic `incidents` in the same way (`IncidentTable`): a later record of an id replaces the earlier
one, and a new id whose kind and subject already have an open incident is ignored. So several monitors, or one before
and after a restart, end up with one incident per condition. What a person closed stays closed: a later record of a
monitor, which had not read that yet, is ignored.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from stream_scorer.errors import StreamScorerError, UsageError
from stream_scorer.record_log import RecordLog, read_to_end
from stream_scorer.records import NOT_A_RECORD, Affected, Incident, IncidentKind, Source

_log = logging.getLogger(__name__)
# Figures change with every record that a detector reads. An update that changes nothing else is written after a minute,
# and later after a twentieth of the time that the incident has lasted, so that a long one has few records.
UPDATE_EVERY_MS, UPDATE_SHARE = 60_000, 0.05
# Longest part of an id that a subject contributes. A longer subject is shortened and made unique by a hash.
_MAX_SLUG = 80
_UNSAFE = r"[^A-Za-z0-9._-]+"

# Fields whose change is written at once.
_DECISIVE = ("due", "held_back", "done", "ended_by", "finding", "saved")


@dataclass(frozen=True, slots=True)
class Subject:
    """What has a condition. Only the parts that apply are set; together they identify it within a kind.

    `aspect` distinguishes conditions that one subject can have at once, such as ``silent`` and ``dead letters``.
    """

    ensemble: str = ""
    version: str = ""
    member: str | None = None
    field: str | None = None
    topic: str = ""
    partition: int | None = None
    source: str = ""
    aspect: str = ""

    @property
    def text(self) -> str:
        """The subject in words, such as ``member gbdt of cards 7`` or ``transactions, partition 3, field amount``."""
        whose = " ".join(filter(None, (self.ensemble, self.version)))
        parts = []
        if self.member is not None:
            parts.append(f"member {self.member}" + (f" of {whose}" if whose else ""))
        elif whose:
            parts.append(whose)
        if self.topic:
            parts.append(self.topic)
        if self.partition is not None:
            parts.append(f"partition {self.partition}")
        if self.source:
            parts.append(f"source {self.source}")
        if self.field is not None:
            parts.append(f"field {self.field}")
        if self.aspect:
            parts.append(self.aspect)
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition that lasts, as one monitor sees it now.

    Attributes:
        start: where it began, in terms of the log (an offset, an event time, a bucket of record timestamps), so that
            every monitor derives the same id. event_time: the newest event time that the condition covers, ms.
        opened_event: the event time at which it began. began: the record timestamp at which it began as far as this
            monitor has read, ms; None if only the event time is known; of a verdict, the time of the command that put
            the version in play. why: what changed, one sentence.
        done: what the product did about it, or that it does nothing.
        details: further fields of `Incident`, such as `due`, `held_back`, or those of a verdict.
    """

    kind: IncidentKind
    subject: Subject
    start: int | str
    why: str
    event_time: int | None = None
    opened_event: int | None = None
    first: Sequence[Source] = ()
    affected: Affected | None = None
    done: str = ""
    statistics: Mapping[str, float | int | None] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    began: int | None = None

    @property
    def id(self) -> str:
        """The id of the incident, safe as a file name. A verdict keeps the form ``<ensemble>-<offset>``."""
        if self.kind == "verdict":
            return f"{self.subject.ensemble}-{self.start}"
        return f"{self.kind}-{_slug(self.subject.text)}-{re.sub(_UNSAFE, '-', str(self.start))}"


def _slug(text: str) -> str:
    found = re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-")
    # Texts that differ only in replaced characters, or beyond the limit, keep different slugs.
    if found == text.replace(", ", "-").replace(" ", "-") and len(found) <= _MAX_SLUG:
        return found
    return f"{found[:_MAX_SLUG]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def key_of(incident: Incident) -> tuple[str, str]:
    """What at most one open incident has: kind and subject. Verdicts of different commands are different subjects."""
    if incident.kind == "verdict":
        return incident.kind, incident.id
    return incident.kind, incident.subject


class IncidentTable:
    """The newest record of each incident, as a fold of the topic in the order of its offsets.

    Attributes:
        newest: by id, in the order in which they were opened. history: all records by id, if they are kept.
    """

    def __init__(self, *, keep_history: bool = False) -> None:
        self.newest: dict[str, Incident] = {}
        self.history: dict[str, list[Incident]] = {}
        self._keeps = keep_history
        self._open: dict[tuple[str, str], str] = {}
        self._last: dict[tuple[str, str], str] = {}

    def add(self, value: bytes | None, offset: int) -> Incident | None:
        """Add a record, and return it; None if it is unreadable, or a second incident of an open one's subject."""
        try:
            incident = msgspec.json.decode(value or b"", type=Incident)
        except NOT_A_RECORD as error:
            _log.warning("record %d of incidents cannot be read: %s", offset, error)
            return None
        return incident if self.put(incident) else None

    def put(self, incident: Incident) -> bool:
        """Add a decoded record, and return whether it counts."""
        key, before = key_of(incident), self.newest.get(incident.id)
        if before is None and self._open.get(key, incident.id) != incident.id:
            return False
        if before is not None and before.closed_by and not incident.closed_by:
            return False
        self.newest[incident.id] = incident
        if before is None:
            self._last[key] = incident.id
        if self._keeps:
            self.history.setdefault(incident.id, []).append(incident)
        if incident.closed is None:
            self._open[key] = incident.id
        elif self._open.get(key) == incident.id:
            del self._open[key]
        return True

    def open_of(self, kind: str, subject: str) -> Incident | None:
        """The open incident of a kind and subject."""
        found = self._open.get((kind, subject))
        return None if found is None else self.newest[found]

    def last_of(self, kind: str, subject: str) -> Incident | None:
        """The incident of a kind and subject that was opened last, open or closed."""
        found = self._last.get((kind, subject))
        return None if found is None else self.newest[found]

    def open(self) -> list[Incident]:
        """The incidents that are not closed, oldest first."""
        return [incident for incident in self.newest.values() if incident.closed is None]


class IncidentLog:
    """Reports conditions and their end on the topic. Every write first reads the topic to its end.

    `report`, `close_incident` and `amend` are idempotent. They do not raise if Kafka fails: they log it and return
    false, and the next report tries again. `at` is the clock of the monitor, ms. One thread uses an object.
    """

    def __init__(self, log: RecordLog, *, keep_history: bool = False) -> None:
        self._log = log
        self._table = IncidentTable(keep_history=keep_history)

    def open(self) -> list[Incident]:
        """The incidents that are not closed, oldest first. Raises as `read`."""
        return self.read().open()

    def read(self) -> IncidentTable:
        """The fold of the whole topic. Raises `BrokerUnavailable` or `ReaderLost` as `read_to_end`."""
        read_to_end(self._log, lambda record: self._table.add(record.value, record.offset), "incidents")
        return self._table

    def report(self, condition: Condition, at: int) -> bool:
        """Open the incident of `condition`, or update it; return whether the topic has it.

        An incident that is closed stays closed: a monitor that sees the end later than another one does not reopen it.
        Only a verdict that a monitor closed may be reopened, as its versions may be compared again. If a person closed
        the last incident of the subject, the condition opens another one only if it began after that.
        """
        try:
            table = self.read()
            condition = _with_own_id(table, condition)
            before = self._find(table, condition)
            if before is not None and before.closed is not None and (condition.kind != "verdict" or before.closed_by):
                return True
            if before is None and _dismissed(table, condition):
                return True
            incident = _make(condition, before, at)
            if before is None or _differs(before, incident, at):
                self._write(incident)
        except StreamScorerError as error:
            _log.warning("the incident %s could not be reported: %s", condition.id, error.message)
            return False
        return True

    def close_incident(
        self, incident_id: str, ended: str, at: int, *, event_time: int | None = None, **changes: Any
    ) -> bool:
        """Close an incident with the reason `ended`; return whether the topic has it closed, or not at all.

        Args:
            event_time: when it ended, ms. changes: further fields of `Incident` to set.
        """
        try:
            before = self.read().newest.get(incident_id)
            if before is None or before.closed is not None:
                return True
            own = {"closed": at, "closed_event": event_time, "ended": ended}
            self._write(msgspec.structs.replace(before, **(own | changes)))
        except StreamScorerError as error:
            _log.warning("the incident %s could not be closed: %s", incident_id, error.message)
            return False
        return True

    def close_by(self, incident_id: str, who: str, why: str, at: int) -> Incident:
        """Close an open incident for the person `who` with the reason `why`, and return it.

        Raises:
            UsageError: there is no such incident, it is closed, or a text is empty.
            StreamScorerError: the broker does not answer, or refuses the record.
        """
        if not who.strip() or not why.strip():
            raise UsageError("an incident is closed by a person with a reason: neither may be empty")
        before = self.read().newest.get(incident_id)
        if before is None:
            raise UsageError(
                f"there is no incident {incident_id!r}", hint="`stream-scorer incident list` lists the open incidents."
            )
        if before.closed is not None:
            by = f"by {before.closed_by}" if before.closed_by else "by the monitor"
            raise UsageError(f"the incident {incident_id!r} is already closed, {by}: {before.ended}")
        closed = msgspec.structs.replace(before, closed=at, closed_by=who, ended=why)
        self._write(closed)
        return closed

    def amend(self, incident_id: str, **changes: Any) -> bool:
        """Change fields of an incident, open or closed; return whether the topic has the change."""
        try:
            before = self.read().newest.get(incident_id)
            if before is None:
                return False
            after = msgspec.structs.replace(before, **changes)
            if after != before:
                self._write(after)
        except StreamScorerError as error:
            _log.warning("the incident %s could not be changed: %s", incident_id, error.message)
            return False
        return True

    def close(self) -> None:
        """Close the log."""
        self._log.close()

    @staticmethod
    def _find(table: IncidentTable, condition: Condition) -> Incident | None:
        """The incident that `condition` belongs to: the one with its id, or the open one of its kind and subject."""
        found = table.newest.get(condition.id)
        if found is None and condition.kind != "verdict":
            found = table.open_of(condition.kind, condition.subject.text)
        return found

    def _write(self, incident: Incident) -> None:
        self._log.append(incident.ensemble, msgspec.json.encode(incident))


def is_of_comparison(incident: Incident, version: str, baseline: str, began: int | None) -> bool:
    """Whether a verdict with the same control offset is on the comparison of `version` with `baseline`.

    Args:
        began: time of the command that put `version` in play, ms; None or 0 if it is not known.
    """
    if (incident.version, incident.baseline) != (version, baseline):
        return False
    return not began or not incident.began or incident.began == began


def _with_own_id(table: IncidentTable, condition: Condition) -> Condition:
    """`condition` with an id that no other comparison has.

    After the topic `control` was created again, its offsets repeat. The id of the second verdict at an offset contains
    the time of its command, which every monitor reads from the log.
    """
    before, baseline = table.newest.get(condition.id), condition.details.get("baseline", "")
    if condition.kind != "verdict" or before is None:
        return condition
    if is_of_comparison(before, condition.subject.version, baseline, condition.began):
        return condition
    return replace(condition, start=f"{condition.began or 0}-{condition.start}")


def _dismissed(table: IncidentTable, condition: Condition) -> bool:
    """Whether a person closed the last incident of the subject, and `condition` began before that.

    A monitor may derive another beginning, and so another id, for a condition that it began to read in the middle.
    """
    last = table.last_of(condition.kind, condition.subject.text)
    if last is None or last.closed is None or not last.closed_by:
        return False
    if condition.began is not None:
        return condition.began <= last.closed
    if condition.opened_event is None or last.updated_event is None:
        return False
    return condition.opened_event <= last.updated_event


def _make(condition: Condition, before: Incident | None, at: int) -> Incident:
    subject = condition.subject
    first = list(condition.first)
    if before is not None and before.first:
        # The first report has the earliest offsets: a monitor that restarts may begin to read after them.
        known = {(source.topic, source.partition) for source in before.first}
        first = before.first + [source for source in first if (source.topic, source.partition) not in known]
    incident = Incident(
        id=before.id if before is not None else condition.id,
        kind=condition.kind,
        subject=subject.text,
        ensemble=subject.ensemble,
        version=subject.version,
        member=subject.member,
        field=subject.field,
        topic=subject.topic,
        partition=subject.partition,
        source=subject.source,
        aspect=subject.aspect,
        opened=before.opened if before is not None else at,
        opened_event=before.opened_event if before is not None else condition.opened_event,
        updated=None if before is None else at,
        updated_event=condition.event_time,
        why=condition.why,
        first=first,
        affected=condition.affected,
        done=condition.done,
        statistics=dict(condition.statistics),
        limits=dict(condition.limits),
    )
    return msgspec.structs.replace(incident, **condition.details)


def _differs(before: Incident, after: Incident, at: int) -> bool:
    """Whether `after` must be written: at once if the product acts otherwise, now and then if figures changed."""
    if before.closed is not None or any(getattr(before, name) != getattr(after, name) for name in _DECISIVE):
        return True
    if before.kind == "verdict":
        return False
    last = before.opened if before.updated is None else before.updated
    unchanged = msgspec.structs.replace(after, updated=before.updated) == before
    return not unchanged and at - last >= max(UPDATE_EVERY_MS, UPDATE_SHARE * (at - before.opened))
