"""The webhook: the JSON of Alertmanager, sent once per change, with bounded attempts, and without secrets in logs."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import requests

from stream_scorer.cli.incident import _row, safe_name
from stream_scorer.errors import SettingsError
from stream_scorer.incidents import webhook
from stream_scorer.incidents.log import Condition, IncidentLog, Subject
from stream_scorer.incidents.webhook import AGAIN_MS, ATTEMPTS, WEBHOOK_METRICS, Webhook, check_url, notification
from stream_scorer.observability.metrics import Metrics
from stream_scorer.records import Affected, Incident
from stream_scorer.reports.incident_page import IncidentRecords, incident_page
from stream_scorer.settings import load_settings
from tests.support.control import MemoryControlLog

TOKEN = "/services/T000/B000/s3cr3t-t0ken"
CONDITION = Condition(
    "breaker",
    Subject("cards", member="gbdt"),
    120,
    "gbdt is not called",
    affected=Affected(10, money=2_500),
    done="left out",
)


class Clock:
    now = 1_700_000_000_000

    def now_ms(self) -> int:
        return self.now

    def monotonic(self) -> float:
        return self.now / 1_000


@contextmanager
def receiver(statuses: list[int]) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """A server on the loopback that answers with `statuses` in turn, then 200; yields its address and the requests."""
    seen: list[tuple[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.append((self.path, json.loads(body)))
            self.send_response(statuses.pop(0) if statuses else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}{TOKEN}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "FIRST_PAUSE_S", 0.0)


def sent(metrics: Metrics, result: str) -> float:
    return metrics.registry.get_sample_value("stream_scorer_webhook_notifications_total", {"result": result}) or 0.0


def test_an_incident_is_posted_when_it_opens_and_when_it_closes_as_alertmanager_does() -> None:
    incidents, clock, metrics = MemoryControlLog(), Clock(), Metrics(WEBHOOK_METRICS)
    monitor = IncidentLog(MemoryControlLog(incidents.records))
    with receiver([]) as (url, seen):
        hook = Webhook(url, IncidentLog(incidents), clock, metrics)
        stop = threading.Event()
        hook.step(stop)
        monitor.report(CONDITION, clock.now)
        for _ in range(3):
            hook.step(stop)
        monitor.report(
            Condition("breaker", CONDITION.subject, 120, "figures only", done="left out"), clock.now + 120_000
        )
        hook.step(stop)
        monitor.close_incident("breaker-member-gbdt-of-cards-120", "it answers again", clock.now + 180_000)
        hook.step(stop)
    (path, opened), (_, closed) = seen
    assert path == TOKEN
    assert (opened["version"], opened["status"], closed["status"]) == ("4", "firing", "resolved")
    assert opened.keys() == {
        "version", "groupKey", "truncatedAlerts", "status", "receiver", "groupLabels", "commonLabels",
        "commonAnnotations", "externalURL", "alerts",
    }  # fmt: skip
    (alert,), (ended,) = opened["alerts"], closed["alerts"]
    assert alert["labels"] == {
        "alertname": "StreamScorerIncident", "incident": "breaker-member-gbdt-of-cards-120", "kind": "breaker",
        "severity": "ticket", "ensemble": "cards", "member": "gbdt",
    }  # fmt: skip
    assert alert["annotations"]["affected_money"] == "2500"
    assert (alert["startsAt"], alert["endsAt"]) == ("2023-11-14T22:13:20.000Z", "0001-01-01T00:00:00Z")
    assert ended["endsAt"] == "2023-11-14T22:16:20.000Z"
    assert alert["fingerprint"] == ended["fingerprint"]
    assert sent(metrics, "sent") == 2


@pytest.mark.parametrize(
    ("kind", "due", "severity"),
    [
        ("verdict", "rollback", "page"),
        ("verdict", "promote", "ticket"),
        ("errors", None, "page"),
        ("feed", None, "ticket"),
    ],
)
def test_a_proposal_to_promote_a_cleared_version_can_wait(kind: Any, due: Any, severity: str) -> None:
    incident = Incident(id="i", ensemble="cards", opened=1, why="", kind=kind, due=due)
    assert notification(incident)["alerts"][0]["labels"]["severity"] == severity


def test_attempts_are_bounded_and_the_next_incident_is_sent_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    incidents, clock, metrics = MemoryControlLog(), Clock(), Metrics(WEBHOOK_METRICS)
    log = IncidentLog(incidents)
    log.report(CONDITION, clock.now)
    log.report(Condition("errors", Subject("cards"), 120, "no scores"), clock.now)
    with caplog.at_level(logging.DEBUG, "stream_scorer"), receiver([503] * ATTEMPTS + [429]) as (url, seen):
        Webhook(url, log, clock, metrics).step(threading.Event())
    assert [body["alerts"][0]["labels"]["kind"] for _, body in seen] == ["breaker"] * ATTEMPTS + ["errors"] * 2
    assert (sent(metrics, "failed"), sent(metrics, "sent")) == (1, 1)
    assert "the webhook at 127.0.0.1 did not accept" in caplog.text
    assert "s3cr3t" not in caplog.text


def test_an_unreachable_receiver_or_a_refusal_ends_the_attempts_and_logs_no_secret(
    caplog: pytest.LogCaptureFixture,
) -> None:
    incidents, clock, metrics = MemoryControlLog(), Clock(), Metrics(WEBHOOK_METRICS)
    log = IncidentLog(incidents)
    log.report(CONDITION, clock.now)
    calls = []

    def post(url: str, body: dict[str, Any]) -> int:
        calls.append(url)
        raise requests.ConnectionError(f"cannot reach {url}")

    with caplog.at_level(logging.DEBUG):
        Webhook(f"https://user:passw0rd@example.org{TOKEN}", log, clock, metrics, post).step(threading.Event())
    assert len(calls) == ATTEMPTS
    refused = Webhook("https://example.org/x", log, clock, metrics, lambda url, body: calls.append(url) or 404)  # type: ignore[func-returns-value]
    refused.step(threading.Event())
    assert len(calls) == ATTEMPTS + 1
    assert "s3cr3t" not in caplog.text and "passw0rd" not in caplog.text


def test_a_notification_that_failed_is_sent_again_until_the_receiver_answers() -> None:
    incidents, clock = MemoryControlLog(), Clock()
    log, calls, up = IncidentLog(incidents), [], False
    log.report(CONDITION, clock.now)

    def post(_url: str, body: dict[str, Any]) -> int:
        calls.append(body["status"])
        return 200 if up else 503

    hook, stop = Webhook("http://localhost/x", log, clock, Metrics(WEBHOOK_METRICS), post), threading.Event()
    for _ in range(3):
        hook.step(stop)
    assert len(calls) == ATTEMPTS
    clock.now += 300_000
    hook.step(stop)
    hook.step(stop)
    assert len(calls) == ATTEMPTS + 1
    up = True
    for _ in range(3):
        clock.now += 300_000
        hook.step(stop)
    assert calls == ["firing"] * (ATTEMPTS + 2)
    # One that closed long ago is given up.
    up = False
    log.close_incident("breaker-member-gbdt-of-cards-120", "over", clock.now)
    hook.step(stop)
    clock.now += AGAIN_MS + 1
    hook.step(stop)
    hook.step(stop)
    assert calls[ATTEMPTS + 2 :] == ["resolved"] * ATTEMPTS and hook._again == {}


def test_a_restart_sends_open_and_recently_closed_incidents_again_and_no_old_ones() -> None:
    incidents, clock = MemoryControlLog(), Clock()
    log = IncidentLog(incidents)
    for start, closed in ((1, clock.now - AGAIN_MS - 1), (2, clock.now - 1), (3, None)):
        log.report(Condition("errors", Subject("cards"), start, "no scores"), clock.now - 2 * AGAIN_MS)
        if closed is not None:
            log.close_incident(f"errors-cards-{start}", "over", closed)
    seen: list[str] = []
    hook = Webhook(
        "http://localhost/x", log, clock, Metrics(WEBHOOK_METRICS),
        lambda url, body: seen.append(body["groupLabels"]["incident"]) or 200,  # type: ignore[func-returns-value]
    )  # fmt: skip
    hook.step(threading.Event())
    assert seen == ["errors-cards-2", "errors-cards-3"]


def test_a_stop_ends_the_attempts() -> None:
    incidents, clock = MemoryControlLog(), Clock()
    log = IncidentLog(incidents)
    log.report(CONDITION, clock.now)
    stop, calls = threading.Event(), []

    def post(url: str, body: dict[str, Any]) -> int:
        calls.append(url)
        stop.set()
        return 503

    Webhook("http://localhost/x", log, clock, Metrics(WEBHOOK_METRICS), post).step(stop)
    assert len(calls) == 1


@pytest.mark.parametrize("url", ["ftp://host/x", "host/x", "https://", "https://[::1", "https://host:port/x"])
def test_an_address_that_is_none_is_refused_without_its_text(url: str) -> None:
    with pytest.raises(SettingsError) as refused:
        check_url(url)
    assert str(refused.value) == "monitor.webhook_url must be an address as https://host/path"


def test_the_address_is_a_secret_that_a_file_may_hold(tmp_path: Any) -> None:
    path = tmp_path / "url"
    path.write_text(f"https://example.org{TOKEN}\n")
    settings = load_settings({}, environment={"STREAM_SCORER_MONITOR_WEBHOOK_URL_FILE": str(path)}, directory=tmp_path)
    assert settings["monitor.webhook_url"] == f"https://example.org{TOKEN}"
    assert "***" in settings.describe("monitor.webhook_url")
    assert TOKEN in settings.secrets


def test_a_receiver_that_does_not_answer_does_not_delay_readiness() -> None:
    incidents, clock = MemoryControlLog(), Clock()
    log = IncidentLog(incidents)
    log.report(CONDITION, clock.now)
    stop, order = threading.Event(), []

    def post(_url: str, _body: dict[str, Any]) -> int:
        order.append("post")
        stop.set()
        return 503

    Webhook("http://localhost/x", log, clock, Metrics(WEBHOOK_METRICS), post).run(stop, lambda: order.append("ready"))
    assert order == ["ready", "post"]


def test_an_address_that_is_none_stays_a_secret(tmp_path: Any) -> None:
    url = f"https://[example.org{TOKEN}"
    settings = load_settings({}, environment={"STREAM_SCORER_MONITOR_WEBHOOK_URL": url}, directory=tmp_path)
    assert url in settings.secrets


@pytest.mark.parametrize("head", [b"HTTP/1.1 204 OK\r\nContent-Length: 9999\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: "])
def test_a_receiver_that_drips_its_answer_delays_an_attempt_by_the_limit_only(
    monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    monkeypatch.setattr(webhook, "TIMEOUT_S", 0.3)
    done = threading.Event()

    def drip() -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(head)
            with suppress(OSError):  # the other side does not read the body
                while not done.wait(0.02):
                    connection.sendall(b"a")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip)
        thread.start()
        began = time.monotonic()
        try:
            if head.endswith(b"\r\n\r\n"):
                assert webhook._post(f"http://127.0.0.1:{server.getsockname()[1]}/", {}) == 204
            else:
                with pytest.raises(TimeoutError):
                    webhook._post(f"http://127.0.0.1:{server.getsockname()[1]}/", {})
        finally:
            took = time.monotonic() - began
            done.set()
            thread.join()
    assert took < 3.0


def test_requests_that_are_late_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "TIMEOUT_S", 0.01)
    release, calls = threading.Event(), list[int]()
    monkeypatch.setattr(webhook, "_request", lambda *_: calls.append(1) or (release.wait() and 200))
    try:
        for _ in range(webhook.MAX_LATE + 2):
            with pytest.raises(TimeoutError):
                webhook._post("http://localhost/", {})
        assert len(calls) == webhook.MAX_LATE
    finally:
        release.set()


@pytest.mark.parametrize(
    ("opened", "text"), [(10**17, "9999-12-31T23:59:59.000Z"), (-(10**17), "1000-01-01T00:00:00.000Z")]
)
def test_a_foreign_record_with_an_impossible_time_stops_nothing(opened: int, text: str) -> None:
    log, clock, seen = IncidentLog(MemoryControlLog()), Clock(), []
    log.report(CONDITION, opened)
    hook = Webhook(
        "http://localhost/x", log, clock, Metrics(WEBHOOK_METRICS),
        lambda url, body: seen.append(body["alerts"][0]["startsAt"]) or 200,  # type: ignore[func-returns-value]
    )  # fmt: skip
    hook.step(threading.Event())
    assert seen == [text]
    (incident,) = log.open()
    assert _row(incident)[3] == str(opened)
    assert str(opened) in incident_page(IncidentRecords([incident]))


@pytest.mark.parametrize(
    ("incident_id", "name"),
    [
        ("feed-a_b.c-1", "feed-a_b.c-1"),
        ("../../etc/x", "etc-x"),
        ("/", "incident"),
        ("a\x1b[b", "a-b"),
        ("..", "incident"),
    ],
)
def test_the_default_file_of_a_page_is_in_this_folder(incident_id: str, name: str) -> None:
    assert safe_name(incident_id) == name
