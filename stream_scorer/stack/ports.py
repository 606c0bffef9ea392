"""Free TCP ports on loopback."""

from __future__ import annotations

import random
import socket
from pathlib import Path

LOOPBACK = "127.0.0.1"
_LOWEST = 20_000
_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def free_port(choose: random.Random | None = None) -> int:
    """A port without a listener, if possible below the kernel's range of ephemeral ports.

    A port of that range (as from binding port 0) can get lost while its service restarts: a client that keeps
    connecting may get the same port as its source port, connect to itself, and so occupy the port.
    """
    try:
        ceiling = int(_EPHEMERAL_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        ceiling = 0
    if ceiling > _LOWEST:
        choose = choose or random.SystemRandom()
        for _ in range(100):
            if is_free(port := choose.randrange(_LOWEST, ceiling)):
                return port
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
