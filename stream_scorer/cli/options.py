"""Flags that several commands share, and settings resolved from them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from stream_scorer.clock import SystemClock
from stream_scorer.observability.logs import configure
from stream_scorer.settings import CATALOGUE, Setting, Settings, load_settings

_log = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., Any])


def with_settings(*names: str) -> Callable[[F], F]:
    """Give a command the flags of the settings `names` and of the logs, and `Settings` as its first argument.

    Flags carry text: the catalogue checks values from every source in the same way.
    """
    wanted = [s for s in CATALOGUE if s.flag and (s.name in names or s.name.startswith("logs."))]

    def decorate(command: F) -> F:
        @wraps(command)
        def call(**arguments: Any) -> Any:
            flags = {}
            for setting in wanted:
                value = arguments.pop(_parameter(setting.name))
                flags[setting.name] = (",".join(value) or None) if isinstance(value, tuple) else value
            settings = resolve_settings(flags)
            configure(settings["logs.format"], settings["logs.level"], settings.secrets)
            for warning in settings.warnings:
                _log.warning("%s", warning)
            try:
                return command(settings, **arguments)
            finally:
                if "cache.dir" in names:
                    _clean_cache(settings)

        decorated: Any = call
        for setting in reversed(wanted):
            decorated = _option(setting)(decorated)
        return decorated  # type: ignore[no-any-return]

    return decorate


def _clean_cache(settings: Settings) -> None:
    """Bound the disk cache that the command may have filled: only scorers and monitors do it while they run."""
    # Others have resolved no ensemble, so they do not wait for the import.
    if "stream_scorer.ensemble.registry" in sys.modules:
        from stream_scorer.ensemble.cache_cleanup import clean_cache

        clean_cache(Path(settings["cache.dir"]).expanduser(), SystemClock())


def reason_option(help_text: str) -> Callable[[Any], Any]:
    """The required option `--why`, which must not be blank."""
    return click.option("--why", required=True, callback=_not_blank, help=help_text)


def _not_blank(_context: click.Context, _option: click.Parameter, text: str) -> str:
    if not text.strip():
        raise click.BadParameter("give a reason, not an empty text")
    return text


def resolve_settings(flags: Mapping[str, Any]) -> Settings:
    """The settings of this folder; `flags` win. A running local stack supplies the addresses if no source sets any."""
    return load_settings(flags, stack_addresses=_stack_addresses)


def _option(setting: Setting) -> Callable[[Any], Any]:
    name = _parameter(setting.name)
    if "/" in setting.flag:
        return click.option(setting.flag, name, default=None, help=_help(setting))
    return click.option(
        setting.flag,
        name,
        type=click.Choice(setting.choices) if setting.choices else str,
        metavar=_metavar(setting),
        multiple=setting.kind == "integers",
        default=None,
        help=_help(setting),
    )


def _metavar(setting: Setting) -> str | None:
    """The placeholder in the help text; click derives that of choices."""
    if setting.choices:
        return None
    return {"text": "TEXT", "yes or no": "[yes|no]"}.get(setting.kind, "NUMBER")


def _help(setting: Setting) -> str:
    """The help text with default and bounds; click adds the choices itself."""
    default = f"default: {setting.default_text}" if setting.default_text else ""
    bounds = setting.allowed if setting.minimum is not None else ""
    more = "; ".join(filter(None, (default, bounds)))
    return f"{setting.help}  [{more}]" if more else setting.help


def _parameter(name: str) -> str:
    return name.replace(".", "_")


def _stack_addresses(directory: Path) -> Mapping[str, str | None]:
    from stream_scorer.stack import read_state

    addresses = read_state(directory)
    if addresses is None:
        return {}
    return {"kafka": addresses.kafka, "redis": addresses.redis, "mlflow": addresses.mlflow}
