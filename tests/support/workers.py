"""Workers in this process, to compute in shards without Ray."""

from __future__ import annotations

from typing import Any

from stream_scorer.workers import Actor


class LocalActor:
    """An actor in this process. A handle is the value itself."""

    def __init__(self, instance: Any) -> None:
        self._instance = instance

    def call(self, method: str, *arguments: Any, returns: int = 1) -> list[Any]:
        """See `Actor.call`."""
        result = getattr(self._instance, method)(*arguments)
        return [result] if returns == 1 else list(result)


class LocalWorkers:
    """Actors in this process: the same code as on Ray, one call after another."""

    def __init__(self, count: int) -> None:
        self.count = count

    def start(self, kind: type[Any], *arguments: Any, cores: int = 1) -> Actor:
        """See `Workers.start`."""
        return LocalActor(kind(*arguments))

    def put(self, value: Any) -> Any:
        """See `Workers.put`."""
        return value

    def get(self, handle: Any) -> Any:
        """See `Workers.get`."""
        return handle
