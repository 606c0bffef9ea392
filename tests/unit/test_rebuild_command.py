"""`features rebuild` keeps the rows that it builds for as long as it runs."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from stream_scorer import app
from stream_scorer.cli import features
from stream_scorer.pipeline import catch_up, starting_points
from stream_scorer.state.rows import Beginning


def test_a_rebuild_refreshes_its_mark_until_it_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    ready = threading.Event()

    def keep() -> None:
        calls.append("keep")
        if len(calls) == 3:
            ready.set()

    built = SimpleNamespace(
        open=lambda: None, init=lambda *_: True, keep=keep, take_over=lambda: calls.append("take over") or True,
        twin=lambda beside: None,
    )  # fmt: skip
    live: Any = SimpleNamespace(twin=lambda beside: built, delete_old_epochs=lambda: 0)
    work = SimpleNamespace(ready=ready, failure=None, committed=lambda _spans: None, stop=lambda _deadline: True)
    log = SimpleNamespace(committed=lambda _group, inputs: {}, bounds=lambda _topic: {})
    monkeypatch.setattr(features, "_POLL_S", 0.001)
    monkeypatch.setattr(app, "open_log", lambda _settings: nullcontext(log))
    monkeypatch.setattr(catch_up, "CatchUp", lambda *_: work)
    monkeypatch.setattr(starting_points, "find_beginning", lambda *_: Beginning())
    settings: Any = SimpleNamespace(group=lambda _name: "g")
    topics: Any = SimpleNamespace(transactions="transactions", labels="labels")
    nothing: Any = None
    features._rebuild_rows(settings, nothing, nothing, live, topics, [])
    assert calls == ["keep", "keep", "keep", "take over"]
