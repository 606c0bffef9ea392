"""A TCP proxy in front of a service: it delays bytes, holds them back, resets connections, and changes its target."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress

from stream_scorer.stack.ports import LOOPBACK, free_port

_READ_BYTES = 1 << 16
_CONNECT_S = 2.0
# A close with this option sends RST instead of FIN.
_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Forwards connections to `target`, a port on loopback. Faults apply to connections that are open, too."""

    def __init__(self, target: int) -> None:
        self.target = target
        # Seconds that each chunk of bytes waits.
        self.delay_s = 0.0
        self._flowing = threading.Event()
        self._flowing.set()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server((LOOPBACK, free_port()))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def hold(self) -> None:
        """Forward nothing until `resume`; connections stay open."""
        self._flowing.clear()

    def resume(self) -> None:
        """End `hold`."""
        self._flowing.set()

    def reset(self) -> int:
        """Reset every connection; returns how many there were."""
        with self._lock:
            found, self._open = self._open, set()
        for end in found:
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            _shut(end)
        return len(found) // 2

    def close(self) -> None:
        """Stop listening and reset every connection."""
        self.resume()
        _shut(self._listener)
        self.reset()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        self._flowing.wait()
        try:
            server = socket.create_connection((LOOPBACK, self.target), _CONNECT_S)
        except OSError:
            _shut(client)
            return
        server.settimeout(None)
        for end in (client, server):
            with suppress(OSError):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._open |= {client, server}
        threading.Thread(target=self._pump, args=(server, client), daemon=True).start()
        self._pump(client, server)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(_READ_BYTES):
                if self.delay_s:
                    time.sleep(self.delay_s)
                self._flowing.wait()
                sink.sendall(data)
        with self._lock:
            self._open -= {source, sink}
        _shut(source)
        _shut(sink)


def _shut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    with suppress(OSError):
        end.close()
