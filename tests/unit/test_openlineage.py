"""OpenLineage events: what they contain, and that they fail no command."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from openlineage.client import event_v2

from stream_scorer.observability import openlineage
from stream_scorer.observability.openlineage import Dataset, configured, file_dataset, lineage_run


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in openlineage.os.environ if name.startswith("OPENLINEAGE")]:
        monkeypatch.delenv(name)


class Kept:
    """A client that keeps its events; `error` is raised, and `seconds` pass, at each."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.error: Exception | None = None
        self.seconds = 0.0

    def emit(self, event: event_v2.RunEvent) -> None:
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        self.events.append(event)

    def close(self, _timeout: float) -> None: ...


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Kept:
    kept = Kept()
    monkeypatch.setenv("OPENLINEAGE_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(openlineage, "_client", lambda: kept)
    return kept


def test_only_variables_of_the_client_turn_events_on() -> None:
    assert not configured({})
    assert not configured({"OPENLINEAGE_URL": "", "OPENLINEAGE_NAMESPACE": "n"})
    assert configured({"OPENLINEAGE_CONFIG": "openlineage.yml"})
    assert configured({"OPENLINEAGE__TRANSPORT__TYPE": "console"})
    assert not configured({"OPENLINEAGE_URL": "http://x", "OPENLINEAGE_DISABLED": "True"})


def test_without_configuration_nothing_is_computed() -> None:
    def fail() -> list[Dataset]:
        raise AssertionError

    with lineage_run("train", fail) as run:
        assert run is None


def test_a_run_has_its_datasets_and_their_versions(client: Kept, tmp_path: Path) -> None:
    path = tmp_path / "history.parquet"
    path.write_bytes(b"rows")
    with lineage_run("train", lambda: [file_dataset(path), file_dataset(tmp_path / "none")]) as run:
        assert run is not None
        run.add(outputs=[Dataset("file", "/ensemble", "ab")])
    first, last = client.events
    assert [first.eventType.value, last.eventType.value] == ["START", "COMPLETE"]
    assert first.run.runId == last.run.runId
    assert (first.job.namespace, first.job.name, first.outputs) == ("stream-scorer", "train", [])
    assert [d.name for d in last.inputs] == [str(path.resolve()), str(tmp_path / "none")]
    assert last.inputs[0].facets["version"].datasetVersion == hashlib.sha256(b"rows").hexdigest()
    assert last.inputs[1].facets == {}
    assert last.outputs[0].facets["version"].datasetVersion == "ab"


def test_a_command_that_fails_sends_fail_without_secrets(client: Kept) -> None:
    with pytest.raises(ValueError, match="secret"), lineage_run("promote", list):
        raise ValueError("redis://user:secret@host")
    assert [event.eventType.value for event in client.events] == ["START", "FAIL"]
    assert client.events[-1].run.facets["errorMessage"].message == "ValueError: redis://***@host"


def test_errors_of_the_client_are_one_warning(client: Kept, caplog: pytest.LogCaptureFixture) -> None:
    client.error = ConnectionError("http://user:secret@host refuses")
    with caplog.at_level(logging.WARNING), lineage_run("train", list):
        pass
    (record,) = caplog.records
    assert record.getMessage() == "an OpenLineage event was not sent: ConnectionError: http://***@host refuses"


def test_a_client_that_is_not_installed_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENLINEAGE_URL", "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "openlineage.client", None)
    with caplog.at_level(logging.WARNING), lineage_run("train", list) as run:
        assert run is not None
    (record,) = caplog.records
    assert "openlineage.client" in record.getMessage()


def test_a_server_that_hangs_delays_a_command_little_and_changes_no_order(
    client: Kept, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(openlineage, "EMIT_TIMEOUT_S", 0.05)
    client.seconds = 0.15
    began = time.monotonic()
    with caplog.at_level(logging.WARNING), lineage_run("train", list):
        pass
    assert time.monotonic() - began < 0.3
    assert len(caplog.records) == 1
    deadline = time.monotonic() + 5
    while len(client.events) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [event.eventType.value for event in client.events] == ["START", "COMPLETE"]


def test_events_are_json_of_the_specification(client: Kept) -> None:
    from openlineage.client.serde import Serde

    with lineage_run("evaluate", lambda: [Dataset("file", "/x", "1")]):
        pass
    event = json.loads(Serde.to_json(client.events[0]))
    assert event["schemaURL"].startswith("https://openlineage.io/spec/")
    assert event["producer"].startswith("stream-scorer/")
    assert event["eventTime"].endswith("+00:00")
