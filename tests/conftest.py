"""What all tests share: the order of tests, and services of each pytest process, started when a test asks for them."""

from __future__ import annotations

import gc
import json
import os
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from stream_scorer.cli.main import GC_THRESHOLD
from stream_scorer.stack.services import JVM_FLAGS

if TYPE_CHECKING:
    from stream_scorer.stack import StackAddresses

# As commands do: collecting the tests imports a thousand modules.
gc.set_threshold(GC_THRESHOLD, *gc.get_threshold()[1:])

# Brokers of the tests live for a minute: the second compiler of their JVM would take a third of their CPU time.
os.environ.setdefault(JVM_FLAGS, "-XX:TieredStopAtLevel=1")

# How long an example takes depends on what else the machine does.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


# The tests that take longest, longest first, by the name of their file or a part of their own name. They start first,
# so that the processes of a test run end at about the same time.
LONGEST = (
    "test_world_proofs.py",
    "test_holes.py",
    "test_fpr_oracle.py",
    "test_train.py",
    "test_it_passes_and_leaves_its_report",
    "test_a_short_storm",
    "test_monitor.py",
    "test_replay.py",
    "test_pipeline_monitor.py",
    "test_bench.py",
    "test_outages.py",
    "[features-flush]",
    "test_registry.py",
    "test_stack.py",
    "[features-own-data]",
    "[refusal]",
    "[leaks]",
    "[lineage]",
    "[kill-once]",
    "[control-race]",
    "[swap-under-load]",
    "[usage]",
    "[features-batch]",
    "[additive]",
    "[garbage]",
    "test_simulate_kafka.py",
    "test_secured.py",
    "test_control.py",
)

# Environment variable: a folder of trained ensembles that processes share; see `proofs.kit`, which is imported later.
TRAINED = "PROOF_TRAINED"


def pytest_configure(config: pytest.Config) -> None:
    """Called by pytest, also by the runs that some tests start in this process. All share the ensembles they train."""
    if TRAINED in os.environ:
        return
    folder = tempfile.TemporaryDirectory(prefix="trained-")
    os.environ[TRAINED] = folder.name

    def forget() -> None:
        del os.environ[TRAINED]
        folder.cleanup()

    config.add_cleanup(forget)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Called by pytest. The integration tests of a file stay together, as they share fixtures; each proof is alone."""

    def place(item: pytest.Item) -> int:
        where = (at for at, part in enumerate(LONGEST) if item.path.name == part or part in item.name)
        return next(where, len(LONGEST))

    for item in items:
        alone = item.path.name in ("test_proofs.py", "test_demo.py") or not item.get_closest_marker("integration")
        if not alone and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Called by pytest. What is loaded by now stays: garbage collections need not look at it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_stack() -> Iterator[StackAddresses]:
    """A real Kafka and Redis (see tests/support/services.py). Tests use topics of their own, and empty Redis first.

    Proofs (see `shared_services`) empty both first. No proof comes between the tests of a file.
    """
    from tests.support.services import services

    with services("kafka", "redis") as addresses:
        yield addresses


@pytest.fixture(scope="session")
def shared_mlflow() -> Iterator[str]:
    """The address of a real MLflow server. Tests register models under names of their own."""
    from stream_scorer.stack import LocalStack

    with LocalStack(services=("mlflow",)) as stack:
        yield str(stack.addresses.mlflow)


@pytest.fixture
def shared_services(shared_stack: StackAddresses, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The services that `proofs.kit.services` uses in this test instead of starting its own, by name."""
    from proofs.kit import SHARED_STACK

    offered = {"kafka": str(shared_stack.kafka), "redis": str(shared_stack.redis)}
    monkeypatch.setenv(SHARED_STACK, json.dumps(offered))
    return offered


@pytest.fixture(scope="session")
def redis_client(shared_stack: StackAddresses) -> Iterator[Any]:
    """A client of the shared Redis."""
    from stream_scorer.state.client import connect

    client = connect(str(shared_stack.redis))
    yield client
    client.close()
