"""The same services in containers, on request and if a Docker engine runs. A thin wrapper on purpose."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from stream_scorer.errors import UnavailableError, UsageError
from stream_scorer.stack.model import StackAddresses
from stream_scorer.stack.ports import LOOPBACK

COMPOSE_FILE = Path("docker-compose.yml")
_INFO_SECONDS = 3.0
_UP_SECONDS = 600.0  # includes pulling images


def engine_answers() -> bool:
    """Whether ``docker info`` succeeds within 3 s."""
    docker = shutil.which("docker")
    if docker is None:
        return False
    try:
        answer = subprocess.run([docker, "info"], capture_output=True, timeout=_INFO_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0


def compose_up(services: tuple[str, ...]) -> StackAddresses:
    """``docker compose up -d --wait``. Raises UsageError without a compose file, UnavailableError when it fails."""
    if not engine_answers():
        raise UnavailableError("no Docker engine responds", hint="Start it, or leave out --docker: it is optional.")
    _compose("up", "-d", "--wait", *services)
    ports = {name: os.environ.get(f"STACK_{name.upper()}_PORT") or port for name, port in _PORTS.items()}
    made = {
        "kafka": f"{LOOPBACK}:{ports['kafka']}",
        "redis": f"redis://{LOOPBACK}:{ports['redis']}/0",
        "mlflow": f"http://{LOOPBACK}:{ports['mlflow']}",
    }
    return StackAddresses(**{name: made[name] for name in services})


def compose_down() -> None:
    """``docker compose down``. Raises as `compose_up`."""
    _compose("down")


def answers(address: str) -> bool:
    """Whether a server listens at `address`."""
    parts = urlsplit(address if "://" in address else f"tcp://{address}")
    try:
        socket.create_connection((parts.hostname or LOOPBACK, parts.port or 0), 1.0).close()
    except OSError:
        return False
    return True


_PORTS = {"kafka": "9092", "redis": "6379", "mlflow": "5000"}


def _compose(*arguments: str) -> None:
    if not COMPOSE_FILE.exists():
        raise UsageError(f"there is no {COMPOSE_FILE} here", hint="Run the command in the repository's folder.")
    command = ["docker", "compose", "-f", str(COMPOSE_FILE), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_UP_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"docker compose failed: {error}", hint="Run it manually to see the cause.") from error
    if answer.returncode != 0:
        lines = "\n".join(answer.stderr.splitlines()[-15:])
        raise UnavailableError(
            f"docker compose {arguments[0]} failed:\n{lines}", hint="Run it manually to see the cause."
        )
