"""What all tests share: one Kafka and one Redis for each pytest process, started when the first test asks for them."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from stream_scorer.stack.services import JVM_FLAGS

if TYPE_CHECKING:
    from stream_scorer.stack import StackAddresses

# Brokers of the tests live for a minute: the second compiler of their JVM would take a third of their CPU time.
os.environ.setdefault(JVM_FLAGS, "-XX:TieredStopAtLevel=1")

# How long an example takes depends on what else the machine does.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


_run = ExitStack()


def pytest_configure(config: pytest.Config) -> None:
    """Called by pytest. All of its processes share the ensembles that tests train."""
    if not hasattr(config, "workerinput"):
        os.environ["PROOF_TRAINED"] = _run.enter_context(tempfile.TemporaryDirectory(prefix="trained-"))


def pytest_unconfigure() -> None:
    """Called by pytest at its end."""
    _run.close()


def pytest_collection_finish() -> None:
    """Called by pytest. What is loaded by now stays: garbage collections need not look at it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_stack() -> Iterator[StackAddresses]:
    """A real Kafka and Redis (see tests/support/services.py). Tests use topics of their own, and empty Redis first."""
    from tests.support.services import services

    with services("kafka", "redis") as addresses:
        yield addresses


@pytest.fixture(scope="session")
def redis_client(shared_stack: StackAddresses) -> Iterator[Any]:
    """A client of the shared Redis."""
    from stream_scorer.state.client import connect

    client = connect(str(shared_stack.redis))
    yield client
    client.close()
