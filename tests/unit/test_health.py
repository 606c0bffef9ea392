"""Health and metrics over a real socket on loopback."""

from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from stream_scorer.errors import SettingsError
from stream_scorer.observability.health import HealthServer
from stream_scorer.observability.liveness import Health
from stream_scorer.observability.metrics import TRANSACTIONS, Metrics

HOST = "127.0.0.1"


class Served:
    """A server whose readiness a test sets."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.ready = (False, "waiting for partitions")
        self.problems: list[str] = []
        self.server = HealthServer(HOST, 0, self.metrics.registry, lambda: self.ready, lambda: self.problems)

    def get(self, path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{self.server.port}{path}", timeout=5) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def get_json(self, path: str) -> tuple[int, Any]:
        status, body = self.get(path)
        return status, json.loads(body)


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.server.close()


def test_alive_is_not_ready(served: Served) -> None:
    assert served.get_json("/healthz") == (200, {"status": "ok"})
    assert served.get_json("/readyz") == (503, {"ready": False, "reason": "waiting for partitions"})
    served.ready = (True, "serving")
    assert served.get_json("/readyz") == (200, {"ready": True, "reason": "serving"})
    served.ready = (False, "Redis is not available")
    assert served.get_json("/readyz")[0] == 503
    assert served.get_json("/healthz")[0] == 200


def test_metrics_are_served_under_their_catalogued_names(served: Served) -> None:
    served.metrics.count(TRANSACTIONS, 3, "block")
    status, body = served.get("/metrics")
    assert status == 200
    assert f'{TRANSACTIONS.name}{{decision="block"}} 3.0' in body.decode()


def test_another_path_says_which_there_are(served: Served) -> None:
    assert served.get_json("/")[0] == 404


def test_a_taken_port_is_a_settings_error(served: Served) -> None:
    with pytest.raises(SettingsError, match=f"port {served.server.port} .* is taken") as caught:
        HealthServer(HOST, served.server.port, Metrics().registry, lambda: (True, ""))
    assert "metrics.port" in caught.value.hint


def test_a_host_that_is_not_ours_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match=r"192\.0\.2\.1"):
        HealthServer("192.0.2.1", 0, Metrics().registry, lambda: (True, ""))  # TEST-NET-1, never ours


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("host", ["::1", "::"])
def test_an_ipv6_address_is_served(host: str) -> None:
    try:
        server = HealthServer(host, 0, Metrics().registry, lambda: (True, ""))
    except SettingsError:
        assert not _has_ipv6()
        pytest.skip("this machine has no IPv6")
    try:
        with urllib.request.urlopen(f"http://[::1]:{server.port}/healthz", timeout=5) as answer:
            assert answer.status == 200
    finally:
        server.close()


def test_close_frees_the_port() -> None:
    served = Served()
    port = served.server.port
    served.server.close()
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind((HOST, port))


class StepClock:
    now = 0.0

    def now_ms(self) -> int:
        return int(self.now * 1_000)

    def monotonic(self) -> float:
        return self.now


def test_a_process_is_not_alive_when_a_thread_stops_or_makes_no_progress(served: Served) -> None:
    clock = StepClock()
    health = Health(clock)
    scoring, control = health.watch("scoring", 240), health.watch("control", 30)
    assert health.problems() == []  # neither has started
    thread = threading.Thread(target=control.beat)
    thread.start()
    thread.join()
    scoring.beat()
    assert health.problems() == ["the thread control has stopped"]
    control.end()
    assert health.problems() == []
    control.beat()
    clock.now = 31
    assert health.problems() == ["the thread control has made no progress for 31 s (limit: 30 s)"]
    served.problems = health.problems()
    assert served.get_json("/healthz") == (503, {"status": "failed", "problems": health.problems()})
    control.beat()
    assert health.problems() == []


def test_readiness_names_everything_that_is_missing() -> None:
    health = Health(StepClock())
    assert health.ready() == (False, "starting")
    partitions, control = "waiting for partitions", "control cannot be read: not authorized"
    health.require(lambda: partitions)
    health.require(lambda: control)
    assert health.ready() == (False, "waiting for partitions; control cannot be read: not authorized")
    partitions = control = ""
    assert health.ready() == (True, "serving")
