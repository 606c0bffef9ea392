"""Which services integration tests get: containers where a Docker engine answers, else the local stack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import services as module


@pytest.mark.parametrize(
    ("choice", "engine", "containers"),
    [("", True, True), ("", False, False), ("local", True, False), ("docker", False, True)],
)
def test_the_engine_decides_unless_the_variable_does(
    monkeypatch: pytest.MonkeyPatch, choice: str, engine: bool, containers: bool
) -> None:
    monkeypatch.setenv(module.CHOICE, choice)
    monkeypatch.setattr(module, "_engine_answers", lambda: engine)
    assert module.in_containers() is containers


def test_another_choice_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(module.CHOICE, "podman")
    with pytest.raises(pytest.UsageError, match="podman"):
        module.in_containers()


def test_containers_are_those_of_the_compose_file_on_ports_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    @contextmanager
    def compose(context: Path, file: str, *, env_file: str, services: list[str]) -> Iterator[None]:
        variables = dict(line.split("=") for line in Path(env_file).read_text().splitlines())
        asked.append({"file": context / file, "services": services} | variables)
        yield

    monkeypatch.setenv(module.CHOICE, "docker")
    monkeypatch.setattr("testcontainers.compose.DockerCompose", compose)
    with module.services("kafka", "redis") as both, module.services("redis") as one:
        first, second = asked
    assert first["COMPOSE_PROJECT_NAME"] != second["COMPOSE_PROJECT_NAME"]
    assert both.kafka == f"127.0.0.1:{first['STACK_KAFKA_PORT']}"
    assert both.redis == f"redis://127.0.0.1:{first['STACK_REDIS_PORT']}/0"
    assert (one.kafka, second["services"]) == (None, ["redis"])
    text = first["file"].read_text()
    assert all(f"${{{name}" in text for name in ("STACK_KAFKA_PORT", "STACK_REDIS_PORT"))
    assert {"kafka", "redis"} <= yaml.safe_load(text)["services"].keys()
