"""``/metrics``, ``/healthz`` and ``/readyz`` on one loopback port, from a daemon thread."""

from __future__ import annotations

import errno
import json
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from stream_scorer.errors import SettingsError

# (ready, reason): the reason explains to an operator why the process is not ready.
Readiness = Callable[[], tuple[bool, str]]
# Why the process must be restarted; empty if it is alive.
Problems = Callable[[], list[str]]


def _no_problems() -> list[str]:
    return []


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # A port in use must be an error; with SO_REUSEPORT, two processes would share it.
    allow_reuse_port = False


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: probes arrive every few seconds."""


class HealthServer:
    """Serves until `close`. `port` 0 picks a free port; `self.port` is the port in use.

    Args:
        details: further fields of the answer to `/readyz`.

    Raises:
        SettingsError: the port is in use, or the host is not an interface of this machine.
    """

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        ready: Readiness,
        problems: Problems = _no_problems,
        *,
        details: Callable[[], Mapping[str, object]] = dict,
    ) -> None:
        metrics = make_wsgi_app(registry)

        def app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
            path = environ.get("PATH_INFO", "/")
            if path == "/metrics":
                return metrics(environ, start)  # type: ignore[no-any-return]
            if path == "/healthz":
                found = problems()
                if found:
                    return _answer(start, "503 Service Unavailable", {"status": "failed", "problems": found})
                return _answer(start, "200 OK", {"status": "ok"})
            if path == "/readyz":
                is_ready, reason = ready()
                body = {"ready": is_ready, "reason": reason, **details()}
                return _answer(start, "200 OK" if is_ready else "503 Service Unavailable", body)
            return _answer(start, "404 Not Found", {"paths": ["/metrics", "/healthz", "/readyz"]})

        try:
            server_class = _Server6 if ":" in host else _Server
            self._server = make_server(host, port, app, server_class=server_class, handler_class=_Quiet)
        except OSError as error:
            why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
            raise SettingsError(
                f"port {port} on {host} {why}", hint="Set another `metrics.port`, or 0 for a free one."
            ) from None
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


def _answer(start: Callable[..., Any], status: str, body: dict[str, object]) -> Iterable[bytes]:
    start(status, [("Content-Type", "application/json")])
    return [json.dumps(body).encode()]
