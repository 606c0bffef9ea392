"""A TCP proxy with which a test takes a service away from its clients, and gives it back."""

from __future__ import annotations

import contextlib
import socket
import threading

from stream_scorer.stack.ports import free_port


class Gate:
    """A way to the service at `target` (a URL) that can be shut: connections are then refused, and open ones end.

    It is shut at first.
    """

    def __init__(self, target: str) -> None:
        host, port = target.partition("://")[2].split("/")[0].rsplit(":", 1)
        self._target = (host, int(port))
        self.port = free_port()
        self._server: socket.socket | None = None
        self._open: list[socket.socket] = []

    def open(self) -> None:
        """Listen."""
        self._server = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._server,), daemon=True).start()

    def shut(self) -> None:
        """End all connections, and refuse new ones."""
        assert self._server is not None
        for end in (self._server, *self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._open.clear()

    def _accept(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, far = server.accept()[0], socket.create_connection(self._target)
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
