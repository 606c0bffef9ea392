"""Which manifests of versions a monitor keeps in memory, and what it does without a registry."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from stream_scorer.clock import SystemClock
from stream_scorer.ensemble import registry
from stream_scorer.ensemble.manifest import Manifest
from stream_scorer.errors import (
    AccessDenied,
    ArtifactError,
    BrokerUnavailable,
    RegistryUnavailable,
    StreamScorerError,
    UsageError,
)
from stream_scorer.kafka.topics import Topics
from stream_scorer.monitor import service
from stream_scorer.monitor.reference import KEPT_VERSIONS, RETRY_S, EnsembleReferences
from stream_scorer.monitor.windows import WindowRules
from tests.support.ensembles import compose


def test_manifests_do_not_pile_up_with_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, loaded, refuses = tmp_path / "ens", [], False
    manifest = compose(folder)

    def resolve(reference: str, _uri: str | None, _cache: Path) -> tuple[Manifest, str]:
        if refuses:
            raise AccessDenied("MLflow denies access")
        loaded.append(reference)
        return manifest, "local-1" if reference == str(folder) else reference.partition(":")[2]

    monkeypatch.setattr(registry, "resolve_manifest", resolve)
    clock = SystemClock()
    at = [0.0]
    monkeypatch.setattr(clock, "monotonic", lambda: at[0])
    references = EnsembleReferences("http://mlflow", tmp_path, clock, initial=str(folder))
    references.load_initial()
    for version in range(2 * KEPT_VERSIONS):
        assert references.members(manifest.name, str(version)) == manifest.member_names
        assert references.profile(manifest.name, "0") is not None  # in use, so it stays
    assert len(loaded) == 1 + 2 * KEPT_VERSIONS
    assert references.manifest(manifest.name, "local-1") is not None  # a folder's version cannot be loaded again
    assert references.manifest(manifest.name, "1") is not None
    assert len(loaded) == 2 + 2 * KEPT_VERSIONS
    refuses = True
    assert references.profile(manifest.name, "1000") is None
    refuses = False
    assert references.profile(manifest.name, "1000") is None
    at[0] += RETRY_S + 1
    assert references.profile(manifest.name, "1000") is not None


@pytest.mark.parametrize(
    ("error", "ends"), [(AccessDenied("no"), False), (RegistryUnavailable("no"), False), (ArtifactError("no"), True)]
)
def test_windows_are_counted_without_a_first_profile_unless_it_is_damaged(
    error: StreamScorerError, ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(problem: StreamScorerError) -> None:
        raise problem

    next_step = BrokerUnavailable("the next step")
    monkeypatch.setattr(service, "connect", lambda _redis: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(service, "ping", lambda *_: None)
    monkeypatch.setattr(service, "require_no_eviction", lambda _client: True)
    monkeypatch.setattr(service, "TopicAdmin", lambda _bootstrap: fail(next_step))
    windows = object.__new__(service._Windows)
    windows._settings = SimpleNamespace(state_dir=tmp_path, redis="", bootstrap="")  # type: ignore[assignment]
    windows._references = SimpleNamespace(load_initial=lambda: fail(error))  # type: ignore[assignment]
    with pytest.raises(type(error) if ends else BrokerUnavailable):
        windows.run(threading.Event(), lambda: None)


def test_counts_are_bound_to_the_length_of_a_pane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts of panes of another length are no counts of these windows: everything is counted again."""
    bound: list[dict[str, str]] = []

    class Store:
        def __init__(self, *_args: object, **_more: object) -> None: ...

        def bind(self, identity: dict[str, str]) -> bool:
            bound.append(identity)
            raise BrokerUnavailable("enough")

    monkeypatch.setattr(service, "connect", lambda _redis: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(service, "ping", lambda *_: None)
    monkeypatch.setattr(service, "require_no_eviction", lambda _client: True)
    monkeypatch.setattr(
        service, "TopicAdmin", lambda _bootstrap: SimpleNamespace(topic_id=lambda name: f"id of {name}")
    )
    monkeypatch.setattr(service, "CounterStore", Store)
    windows = object.__new__(service._Windows)
    windows._settings = SimpleNamespace(  # type: ignore[assignment]
        state_dir=tmp_path, redis="", bootstrap="", group="g", namespace="", max_outage_s=0
    )
    windows._references = SimpleNamespace(load_initial=lambda: None)  # type: ignore[assignment]
    windows._topics = Topics()
    windows._rules = WindowRules(60_000, 0, 0)
    with pytest.raises(BrokerUnavailable, match="enough"):
        windows.run(threading.Event(), lambda: None)
    assert bound == [
        {"score-summaries": "id of score-summaries", "outcomes": "id of outcomes", "monitor.pane": "60000"}
    ]


def test_windows_are_not_counted_in_a_redis_that_may_evict_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = SimpleNamespace(config_get=lambda _name: {"maxmemory-policy": "volatile-lru"}, close=lambda: None)
    monkeypatch.setattr(service, "connect", lambda _redis: client)
    monkeypatch.setattr(service, "ping", lambda *_: None)
    windows = object.__new__(service._Windows)
    windows._settings = SimpleNamespace(state_dir=tmp_path, redis="", bootstrap="")  # type: ignore[assignment]
    with pytest.raises(UsageError, match="maxmemory-policy volatile-lru"):
        windows.run(threading.Event(), lambda: None)
