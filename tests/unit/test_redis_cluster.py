"""A client of a Redis Cluster, on servers in this process that answer as nodes do."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator

import pytest

from stream_scorer.errors import StateUnavailable
from stream_scorer.state.client import connect_cluster, mapped_errors

_COMMANDS = b"*1\r\n*6\r\n$3\r\nget\r\n:2\r\n*1\r\n+readonly\r\n:1\r\n:1\r\n:1\r\n"


class Cluster:
    """Nodes that answer; `primary` is the port of the one that holds all slots."""

    def __init__(self) -> None:
        self.primary = 0
        self._nodes: dict[int, _Node] = {}

    def start(self, port: int = 0) -> int:
        """Start a node; its port."""
        node = _Node(("127.0.0.1", port), _handler(self))
        threading.Thread(target=node.serve_forever, daemon=True).start()
        self._nodes[node.port] = node
        return node.port

    def stop(self, port: int) -> None:
        """End a node and its connections."""
        node = self._nodes.pop(port)
        node.shutdown()
        node.server_close()
        for connection in node.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End all nodes."""
        for port in list(self._nodes):
            self.stop(port)


class _Node(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[socketserver.BaseRequestHandler]) -> None:
        super().__init__(address, handler)
        self.port = int(self.server_address[1])
        self.connections: list[socket.socket] = []


def _handler(cluster: Cluster) -> type[socketserver.StreamRequestHandler]:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            assert isinstance(self.server, _Node)
            self.server.connections.append(self.connection)
            with contextlib.suppress(OSError):
                while head := self.rfile.readline():
                    words = []
                    for _ in range(int(head[1:])):
                        size = int(self.rfile.readline()[1:])
                        words.append(self.rfile.read(size + 2)[:size])
                    self.wfile.write(self._answer(words[0].upper(), self.server.port))

        @staticmethod
        def _answer(command: bytes, port: int) -> bytes:
            if command == b"HELLO":
                return b"%%1\r\n%s:3\r\n" % _bulk("proto")
            if command == b"CLUSTER":
                node = _bulk("127.0.0.1") + b":%d\r\n" % cluster.primary + _bulk("id")
                return b"*1\r\n*3\r\n:0\r\n:16383\r\n*3\r\n" + node
            return {b"COMMAND": _COMMANDS, b"GET": _bulk(str(port))}.get(command, b"+OK\r\n")

    return Handler


def _bulk(text: str) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(text), text.encode())


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    made.close()


def _eventually(url: str, call: Callable[[], object]) -> object:
    """The answer to one of three calls: the first ones may find that connections and nodes are gone."""
    for _ in range(2):
        with contextlib.suppress(StateUnavailable), mapped_errors(url):
            return call()
    with mapped_errors(url):
        return call()


def test_a_cluster_whose_nodes_all_get_other_addresses_is_found_again(cluster: Cluster) -> None:
    entry, cluster.primary = cluster.start(), cluster.start()  # the name in the URL always leads to a node
    url = f"redis://127.0.0.1:{entry}"
    client = connect_cluster(url, timeout_s=1.5, connect_timeout_s=0.5)
    for _ in range(2):
        assert client.get("k") == b"%d" % cluster.primary
        cluster.stop(cluster.primary)
        cluster.primary = cluster.start()
        assert _eventually(url, lambda: client.get("k")) == b"%d" % cluster.primary
    client.close()


def test_a_cluster_is_found_again_by_a_known_node_while_that_of_the_url_is_away(cluster: Cluster) -> None:
    entry, cluster.primary = cluster.start(), cluster.start()
    url = f"redis://127.0.0.1:{entry}"
    client = connect_cluster(url, timeout_s=1.5, connect_timeout_s=0.5)
    cluster.stop(entry)
    cluster.stop(cluster.primary)
    for _ in range(2):
        with pytest.raises(StateUnavailable), mapped_errors(url):
            client.get("k")
    cluster.start(cluster.primary)
    assert _eventually(url, lambda: client.get("k")) == b"%d" % cluster.primary
    client.close()
