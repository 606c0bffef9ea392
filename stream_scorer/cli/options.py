"""Flags that several commands share, and settings resolved from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from stream_scorer.observability.logs import configure
from stream_scorer.settings import CATALOGUE, Settings, load_settings

F = TypeVar("F", bound=Callable[..., Any])

# Flag of each setting; the rest of its name is what people type.
_FLAGS = {
    "kafka.bootstrap": "--bootstrap",
    "redis.url": "--redis",
    "redis.shards": "--shards",
    "redis.cluster": "--redis-cluster",
    "mlflow.url": "--mlflow",
    "topics.prefix": "--topic-prefix",
    "scorer.spec": "--spec",
    "scorer.ensemble": "--ensemble",
    "scorer.group": "--group",
    "scorer.instance": "--instance",
    "scorer.start": "--start",
    "scorer.batch": "--batch",
    "scorer.pace_ms": "--pace-ms",
    "scorer.member_threads": "--member-threads",
    "scorer.member_budget_ms": "--member-budget-ms",
    "scorer.member_limit_s": "--member-limit-s",
    "scorer.look_into_alerts": "--look-into-alerts",
    "monitor.mode": "--mode",
    "monitor.probation": "--probation",
    "monitor.cooldown_s": "--cooldown-s",
    "cache.dir": "--cache",
    "metrics.host": "--metrics-host",
    "metrics.port": "--metrics-port",
    "logs.format": "--log-format",
    "logs.level": "--log-level",
}


def with_settings(*names: str) -> Callable[[F], F]:
    """Give a command the flags of the settings `names` (and the logs'), and resolved `settings` as first argument."""
    wanted = [s for s in CATALOGUE if s.name in names or s.name.startswith("logs.")]

    def decorate(command: F) -> F:
        @wraps(command)
        def call(**arguments: Any) -> Any:
            flags = {s.name: arguments.pop(_parameter(s.name)) for s in wanted}
            settings = resolve_settings(flags)
            configure(settings["logs.format"], settings["logs.level"])
            return command(settings, **arguments)

        decorated: Any = call
        for setting in reversed(wanted):
            kind = click.Choice(setting.choices) if setting.choices else (int if setting.kind is int else str)
            decorated = click.option(
                _FLAGS[setting.name], _parameter(setting.name), type=kind, default=None, help=setting.help
            )(decorated)
        return decorated  # type: ignore[no-any-return]

    return decorate


def resolve_settings(flags: Mapping[str, Any]) -> Settings:
    """Settings of this folder, with `flags` above all; addresses set nowhere come from a local stack that is up."""
    return load_settings(flags, stack_addresses=_stack_addresses)


def _parameter(name: str) -> str:
    return name.replace(".", "_")


def _stack_addresses(directory: Path) -> Mapping[str, str | None]:
    from stream_scorer.stack import read_state

    addresses = read_state(directory)
    if addresses is None:
        return {}
    return {"kafka": addresses.kafka, "redis": addresses.redis, "mlflow": addresses.mlflow}
