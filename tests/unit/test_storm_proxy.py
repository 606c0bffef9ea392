"""The proxy of the storm forwards bytes, and disturbs connections on request."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from proofs.storm_proxy import Proxy


class Echo:
    """A server that answers each message with its name and the message."""

    def __init__(self, name: bytes) -> None:
        self._name = name
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(1_000):
                connection.sendall(self._name + data)


@pytest.fixture
def echoes() -> Iterator[tuple[Echo, Echo]]:
    first, second = Echo(b"1"), Echo(b"2")
    yield first, second
    first.close()
    second.close()


@pytest.fixture
def proxy(echoes: tuple[Echo, Echo]) -> Iterator[Proxy]:
    found = Proxy(echoes[0].port)
    yield found
    found.close()


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), 10)


def test_bytes_are_forwarded_both_ways(proxy: Proxy) -> None:
    with connect(proxy) as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"1hello"


def test_nothing_arrives_while_it_holds_and_everything_afterwards(proxy: Proxy) -> None:
    with connect(proxy) as client:
        client.sendall(b"a")
        assert client.recv(100) == b"1a"
        proxy.hold()
        client.sendall(b"b")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(100)
        client.settimeout(10)
        proxy.resume()
        assert client.recv(100) == b"1b"


def test_a_reset_ends_connections_and_new_ones_reach_the_new_target(proxy: Proxy, echoes: tuple[Echo, Echo]) -> None:
    with connect(proxy) as client:
        client.sendall(b"a")
        assert client.recv(100) == b"1a"
        proxy.target = echoes[1].port
        assert proxy.reset() == 1
        try:
            assert client.recv(100) == b""
        except ConnectionResetError:
            pass
    with connect(proxy) as client:
        client.sendall(b"a")
        assert client.recv(100) == b"2a"
