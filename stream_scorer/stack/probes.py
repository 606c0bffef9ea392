"""Readiness probes of the services: one short request each over a plain socket, without client libraries."""

from __future__ import annotations

import http.client
import socket
import struct
from collections.abc import Callable

from stream_scorer.stack.ports import LOOPBACK

_TIMEOUT = 1.0
_METADATA_KEY, _METADATA_VERSION = 3, 1


def kafka_answers(port: int) -> bool:
    """Whether the broker lists itself as alive.

    Requests metadata of no topic (Metadata v1, KIP-4) and counts the brokers. ApiVersions is no sufficient probe: it
    succeeds while the broker is still fenced and cannot create topics.
    """
    name = b"stack"
    request = struct.pack(">hhih", _METADATA_KEY, _METADATA_VERSION, 1, len(name)) + name + struct.pack(">i", 0)
    with socket.create_connection((LOOPBACK, port), _TIMEOUT) as link:
        link.sendall(struct.pack(">i", len(request)) + request)
        (size,) = struct.unpack(">i", _receive(link, 4))
        if not 8 <= size <= 65536:
            return False
        correlation, brokers = struct.unpack_from(">ii", _receive(link, size))
        return bool(correlation == 1 and brokers >= 1)


def redis_answers(port: int) -> bool:
    """Whether Redis replies PONG."""
    with socket.create_connection((LOOPBACK, port), _TIMEOUT) as link:
        link.sendall(b"PING\r\n")
        return _receive(link, 5) == b"+PONG"


def mlflow_answers(port: int) -> bool:
    """Whether ``GET /health`` returns 200."""
    link = http.client.HTTPConnection(LOOPBACK, port, timeout=_TIMEOUT)
    try:
        link.request("GET", "/health")
        return link.getresponse().status == 200
    except http.client.HTTPException:
        return False
    finally:
        link.close()


def answers(probe: Callable[[int], bool], port: int) -> bool:
    """The result of `probe`; False for a refused or broken connection."""
    try:
        return probe(port)
    except OSError:
        return False


def _receive(link: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = link.recv(size - len(parts))
        if not part:
            raise ConnectionError("connection closed within a response")
        parts += part
    return bytes(parts)
