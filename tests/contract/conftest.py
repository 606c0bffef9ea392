"""What several contract suites share: the broker, in memory and real."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.kafka_parts import Broker, KafkaParts, MemoryParts


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.integration)])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """A broker with empty topics and a new group."""
    memory = request.param == "memory"
    parts = MemoryParts() if memory else KafkaParts(str(request.getfixturevalue("shared_stack").kafka))
    yield parts
    parts.close()
