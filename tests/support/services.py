"""Kafka and Redis for tests: in containers where a Docker engine answers, else the local stack.

``TEST_SERVICES=local`` or ``TEST_SERVICES=docker`` decides instead of the engine. The containers are those of
docker-compose.yml, started by testcontainers under a project name and ports of their own. CI and the developers of this
project run the local stack; the containers are not run there.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from stream_scorer.stack import LocalStack, StackAddresses
from stream_scorer.stack.docker import engine_answers
from stream_scorer.stack.ports import LOOPBACK, free_port

ROOT = Path(__file__).resolve().parents[2]
CHOICE = "TEST_SERVICES"


@contextmanager
def services(*names: str) -> Iterator[StackAddresses]:
    """Run `names`, of ``kafka`` and ``redis``, for as long as the block. Tests that stop a service use `LocalStack`."""
    if in_containers():
        with _containers(names) as addresses:
            yield addresses
    else:
        with LocalStack(services=names) as stack:
            yield stack.addresses


def in_containers() -> bool:
    """Whether `services` starts containers."""
    choice = os.environ.get(CHOICE) or "auto"
    if choice not in ("auto", "docker", "local"):
        raise pytest.UsageError(f"{CHOICE} is {choice!r}: auto, docker and local are possible")
    return _engine_answers() if choice == "auto" else choice == "docker"


@cache
def _engine_answers() -> bool:
    return engine_answers()


@contextmanager
def _containers(names: tuple[str, ...]) -> Iterator[StackAddresses]:
    from testcontainers.compose import DockerCompose

    kafka, redis = free_port(), free_port()
    # Test processes run side by side: each has a project of its own, and a broker must know the port it is reached at.
    variables = {
        "COMPOSE_PROJECT_NAME": f"stream-scorer-test-{uuid.uuid4().hex[:8]}",
        "STACK_KAFKA_PORT": str(kafka),
        "STACK_REDIS_PORT": str(redis),
    }
    made = {"kafka": f"{LOOPBACK}:{kafka}", "redis": f"redis://{LOOPBACK}:{redis}/0"}
    with TemporaryDirectory() as folder:
        env_file = Path(folder) / "env"
        env_file.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
        with DockerCompose(ROOT, "docker-compose.yml", env_file=str(env_file), services=list(names)):
            yield StackAddresses(**{name: made[name] for name in names})
