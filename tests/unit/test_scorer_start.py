"""What a scorer refuses when it starts, and does not end for once it runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from stream_scorer import app
from stream_scorer.errors import StateUnavailable, StreamScorerError, UsageError
from stream_scorer.observability.liveness import Health
from stream_scorer.observability.metrics import Metrics


class _Settings(dict[str, Any]):
    def require(self, name: str) -> Any:
        return self[name]


class _NextStep(Exception):
    """The check of Redis is over."""


@pytest.mark.parametrize(
    ("found", "ends"),
    [
        (UsageError("Redis runs with maxmemory-policy allkeys-lru"), UsageError),
        (StateUnavailable("Redis does not answer"), _NextStep),  # it may come later
    ],
)
def test_a_scorer_does_not_start_with_a_redis_that_may_evict_features(
    monkeypatch: pytest.MonkeyPatch, found: StreamScorerError, ends: type[Exception]
) -> None:
    def check() -> bool:
        raise found

    def next_step() -> None:
        raise _NextStep

    store = SimpleNamespace(check_eviction_policy=check, twin=next_step)
    for name, value in {
        "load_spec": None, "FeatureEngine": None, "input_partitions": (None, []), "_warm": None, "make_store": store,
    }.items():  # fmt: skip
        monkeypatch.setattr(app, name, lambda *_arguments, value=value: value)
    settings: Any = _Settings({"scorer.spec": "", "scorer.id_key": ""})
    health: Any = Health(SimpleNamespace(monotonic=lambda: 0.0))  # type: ignore[arg-type]
    with pytest.raises(ends), app.scorer(settings, Metrics(), health):
        pass
