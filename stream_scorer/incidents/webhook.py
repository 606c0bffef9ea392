"""Sends incidents to a webhook, in version 4 of the JSON that Alertmanager sends to its receivers.

https://prometheus.io/docs/alerting/latest/configuration/#webhook_config. A receiver that understands Alertmanager needs
no other set-up. A notification follows when an incident opens, when the product acts otherwise, and when it closes;
figures alone send nothing. Delivery is at least once: after a restart, open incidents and those closed in the last hour
are sent again, with the same fingerprint.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from stream_scorer.clock import Clock
from stream_scorer.errors import SettingsError
from stream_scorer.incidents.log import IncidentLog, IncidentTable
from stream_scorer.kafka.call_timeout import CallTimedOut, TimedCaller
from stream_scorer.observability.metrics import Metric, Metrics
from stream_scorer.records import Incident, IncidentKind

_log = logging.getLogger(__name__)

SENT = Metric(
    "counter",
    "stream_scorer_webhook_notifications_total",
    "Notifications of incidents to the webhook, by result: sent, or failed after all attempts.",
    ("result",),
)
WEBHOOK_METRICS = (SENT,)

POLL_S = 1.0
TIMEOUT_S = 5.0
# Most requests whose answers are late. With more, an attempt fails at once.
MAX_LATE = 8
_THREAD = "webhook-request"
# Attempts per notification, with pauses of 1, 2, 4 and 8 s between them.
ATTEMPTS, FIRST_PAUSE_S = 5, 1.0
# A notification whose attempts all failed is sent again at this interval, with one attempt each.
AGAIN_S = 300.0
# Incidents that closed longer ago are not sent again, neither after a failure nor after a start.
AGAIN_MS = 3_600_000
# Answers after which another attempt may succeed, beside all 5xx.
_TRANSIENT = (408, 425, 429)
# Transactions are decided wrongly, late, or without the model. In deploy/prometheus/alerts.yml, `UrgentIncidentOpen`
# and `NewVersionChangesAlerts` page for the same.
PAGE_KINDS: tuple[IncidentKind, ...] = ("verdict", "errors", "latency")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Milliseconds from the epoch to the first and to the last second of years with four digits.
_FIRST_MS, _LAST_MS = -30_610_224_000_000, 253_402_300_799_000
# What Alertmanager sends as the end of an alert that has not ended.
_NO_END = "0001-01-01T00:00:00Z"


def check_url(url: str) -> str:
    """The host of `url`, for messages: other parts may be secret. Raises `SettingsError` if it is no http address."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host:
        raise SettingsError("monitor.webhook_url must be an address as https://host/path")
    return host


def notification(incident: Incident) -> dict[str, Any]:
    """The body of the request for one incident."""
    labels = {
        "alertname": "StreamScorerIncident",
        "incident": incident.id,
        "kind": incident.kind,
        # A version that labels have cleared may be promoted again, which can wait.
        "severity": "page" if incident.kind in PAGE_KINDS and incident.due != "promote" else "ticket",
        "ensemble": incident.ensemble,
        "version": incident.version,
        "member": incident.member or "",
        "field": incident.field or "",
        "topic": incident.topic,
        "partition": "" if incident.partition is None else str(incident.partition),
        "source": incident.source,
    }
    labels = {name: value for name, value in labels.items() if value}
    affected = incident.affected
    annotations = {
        "summary": f"{incident.kind}: {incident.subject or incident.version}",
        "description": incident.why,
        "done": incident.done,
        "held_back": incident.held_back,
        "ended": incident.ended,
    }
    for name in () if affected is None else ("transactions", "cards", "money"):
        count = getattr(affected, name)
        annotations[f"affected_{name}"] = "" if count is None else str(count)
    annotations = {name: value for name, value in annotations.items() if value}
    status = "firing" if incident.closed is None else "resolved"
    alert = {
        "status": status,
        "labels": labels,
        "annotations": annotations,
        "startsAt": _time(incident.opened),
        "endsAt": _NO_END if incident.closed is None else _time(incident.closed),
        "generatorURL": "",
        "fingerprint": hashlib.sha256(incident.id.encode()).hexdigest()[:16],
    }
    return {
        "version": "4",
        "groupKey": f'{{}}:{{incident="{incident.id}"}}',
        "truncatedAlerts": 0,
        "status": status,
        "receiver": "stream-scorer",
        "groupLabels": {"incident": incident.id},
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": "",
        "alerts": [alert],
    }


def _time(ms: int) -> str:
    # Receivers parse the text, so a time outside of the calendar becomes its nearest end.
    return f"{_EPOCH + timedelta(milliseconds=min(max(ms, _FIRST_MS), _LAST_MS)):%FT%T}.{ms % 1_000:03d}Z"


class Webhook:
    """Follows the log of incidents and posts what changed. It runs in a thread of its own, and delays nothing else.

    Args:
        url: may contain secrets; only its host is logged. post: sends a body and returns the HTTP status; raises
            OSError, of which `requests.RequestException` is a subclass.
    """

    def __init__(
        self,
        url: str,
        log: IncidentLog,
        clock: Clock,
        metrics: Metrics,
        post: Callable[[str, dict[str, Any]], int] | None = None,
    ) -> None:
        self._host = check_url(url)
        self._url, self._log, self._clock, self._metrics = url, log, clock, metrics
        self._post = post or _post
        metrics.begin(SENT, ("sent", "failed"))
        # What was sent of each incident, and when the notification of an incident is due again that failed.
        self._sent: dict[str, tuple[object, ...]] = {}
        self._again: dict[str, float] = {}
        self._started = False

    def run(self, stop: threading.Event, on_ready: Callable[[], None] = lambda: None) -> None:
        """Send until `stop`, then close the log. Raises `StreamScorerError` if Kafka does not answer."""
        try:
            while not stop.is_set():
                # Before it sends: a receiver that does not answer takes minutes, and must not delay the monitor.
                self._log.read()
                on_ready()
                self.step(stop)
                stop.wait(POLL_S)
        finally:
            self._log.close()

    def step(self, stop: threading.Event) -> None:
        """Send the notifications that are due."""
        table = self._log.read()
        if not self._started:
            self._skip_old(table)
            self._started = True
        # New ones come first: a receiver that does not answer delays each by seconds.
        for incident in sorted(table.newest.values(), key=lambda each: each.id in self._again):
            if stop.is_set():
                return
            state, again = _state(incident), self._again.get(incident.id)
            if self._sent.get(incident.id) != state:
                done = self._send(incident, stop, ATTEMPTS)
            elif again is not None and self._clock.monotonic() >= again:
                done = self._is_old(incident) or self._send(incident, stop, 1)
            else:
                continue
            self._sent[incident.id] = state
            self._again.pop(incident.id, None)
            if not done:
                self._again[incident.id] = self._clock.monotonic() + AGAIN_S

    def _skip_old(self, table: IncidentTable) -> None:
        for incident in table.newest.values():
            if self._is_old(incident):
                self._sent[incident.id] = _state(incident)

    def _is_old(self, incident: Incident) -> bool:
        return incident.closed is not None and incident.closed < self._clock.now_ms() - AGAIN_MS

    def _send(self, incident: Incident, stop: threading.Event, attempts: int) -> bool:
        """Post one notification, with a bounded number of attempts; false if it may succeed later."""
        pause, problem, refused = FIRST_PAUSE_S, "", False
        for attempt in range(attempts):
            if attempt and stop.wait(pause * 2 ** (attempt - 1)):
                return False
            try:
                status = self._post(self._url, notification(incident))
            except OSError as error:
                problem = type(error).__name__  # its text contains the address
                continue
            if status < 300:
                self._metrics.count(SENT, 1, "sent")
                return True
            problem = f"HTTP status {status}"
            if refused := status < 500 and status not in _TRANSIENT:
                break
        self._metrics.count(SENT, 1, "failed")
        _log.error("the webhook at %s did not accept the incident %s: %s", self._host, incident.id, problem)
        return refused


def _state(incident: Incident) -> tuple[object, ...]:
    """What is notified when it changes."""
    return incident.closed, incident.due, incident.held_back, incident.done


def _post(url: str, body: dict[str, Any]) -> int:
    """The status of the answer. Raises OSError, also if it takes longer than `TIMEOUT_S` in all.

    Timeouts of `requests` bound single reads, and not the look-up of the host. So the request runs in a thread, which
    is abandoned if it is late.
    """
    if sum(thread.name == _THREAD for thread in threading.enumerate()) >= MAX_LATE:
        raise TimeoutError("earlier requests are still waiting for their answers")
    caller, statuses = TimedCaller(_THREAD), []
    try:
        caller.call(lambda: statuses.append(_request(url, body)), TIMEOUT_S)
    except CallTimedOut:
        raise TimeoutError("no answer in time") from None
    finally:
        caller.close()
    return statuses[0]


def _request(url: str, body: dict[str, Any]) -> int:
    import requests  # a tenth of the import time of scorers, which have no webhook

    # A redirect could send the body to another host. The body of the answer is not read.
    with requests.post(url, json=body, timeout=TIMEOUT_S, allow_redirects=False, stream=True) as response:
        return response.status_code
