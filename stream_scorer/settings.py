"""Settings: one catalogue, four sources: flags, then the environment, then `stream-scorer.toml`, then defaults.

A setting ``kafka.bootstrap`` is ``[kafka] bootstrap`` in the file, ``STREAM_SCORER_KAFKA_BOOTSTRAP`` in the environment
(or ``..._FILE``, naming a file to read it from), and ``--bootstrap`` on the command line. Addresses set nowhere
come from a local stack that is up (`stream-scorer stack up`).
"""

from __future__ import annotations

import os
import socket
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stream_scorer.errors import SettingsError

SETTINGS_FILE = "stream-scorer.toml"
_PREFIX = "STREAM_SCORER_"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of the catalogue. `kind` parses text; `choices` bounds it; a `secret` is never shown."""

    name: str
    help: str
    default: Any
    kind: Callable[[str], Any] = str
    choices: tuple[str, ...] = ()
    secret: bool = False

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return _PREFIX + self.name.replace(".", "_").upper()


CATALOGUE: tuple[Setting, ...] = (
    Setting("kafka.bootstrap", "Kafka brokers, host:port, comma separated.", ""),
    Setting("redis.url", "Redis, redis://host:port/db.", "", secret=True),
    Setting("redis.shards", "Shards of the features (docs/features.md); a change makes features be rebuilt.", 1, int),
    Setting("redis.cluster", "Whether `redis.url` is a node of a Redis Cluster.", "no", choices=("no", "yes")),
    Setting("mlflow.url", "MLflow registry, http://host:port.", "", secret=True),
    Setting("topics.prefix", "Put before every topic name.", ""),
    Setting("scorer.spec", "Path of the pipeline spec.", ""),
    Setting(
        "scorer.ensemble",
        "Whose commands to follow, and what serves at the very first start: name@alias, name:version or a folder.",
        "cards@champion",
    ),
    Setting("scorer.group", "Consumer group; its name is part of the features' namespace.", "stream-scorer"),
    Setting("scorer.instance", "This scorer's stable name; unique in its group.", socket.gethostname),
    Setting("scorer.start", "Where a new group starts scoring.", "earliest", choices=("earliest", "latest")),
    Setting("scorer.batch", "Most records in a micro-batch.", 1024, int),
    Setting("scorer.pace_ms", "Least time from one batch to the next, in milliseconds.", 20, int),
    Setting("scorer.member_threads", "How many members of an ensemble are asked at once.", 2, int),
    Setting("scorer.member_budget_ms", "Most time of one member for one batch, in milliseconds.", 1_000, int),
    Setting("scorer.member_limit_s", "Seconds until a member that hangs is ended with the scorer; 0: never.", 10, int),
    Setting(
        "scorer.look_into_alerts",
        "Most alerts of a micro-batch that name their members' strongest features (about 1 ms each); 0: none.",
        0,
        int,
    ),
    Setting(
        "monitor.mode",
        "What the monitor does about a version on probation or a canary that alerts too much: act, say so, or neither.",
        "propose",
        choices=("off", "propose", "auto"),
    ),
    Setting(
        "monitor.probation",
        "Transactions after which a probation is over if nothing speaks for more alerts.",
        100_000,
        int,
    ),
    Setting("monitor.cooldown_s", "Seconds in which the monitor takes but one version out of play.", 3_600, int),
    Setting("cache.dir", "Where downloaded models are kept.", "~/.cache/stream-scorer"),
    Setting("metrics.host", "Interface of /metrics, /healthz and /readyz.", "127.0.0.1"),
    Setting("metrics.port", "Port of /metrics, /healthz and /readyz; 0 takes a free one, -1 none.", 9464, int),
    Setting("logs.format", "Form of the logs on stderr.", "text", choices=("text", "json")),
    Setting("logs.level", "Least level logged.", "info", choices=("debug", "info", "warning", "error")),
)
_BY_NAME = {setting.name: setting for setting in CATALOGUE}


class Settings:
    """Resolved settings: ``settings["kafka.bootstrap"]``; `source` tells where each value came from."""

    def __init__(self, values: dict[str, Any], sources: dict[str, str]) -> None:
        self._values = values
        self._sources = sources

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def source(self, name: str) -> str:
        """Where the value of `name` came from: a flag, a variable, the file, the local stack, or the default."""
        return self._sources[name]

    def require(self, name: str) -> Any:
        """The value of `name`. Raises `SettingsError` if it is set nowhere."""
        value = self._values[name]
        if value in ("", None):
            setting = _BY_NAME[name]
            more = " or start a local stack: `stream-scorer stack up`" if name in _STACK else ""
            raise SettingsError(
                f"{name} is not set ({setting.help.rstrip('.')})",
                hint=f"Set {setting.variable}, or {name} in {SETTINGS_FILE},{more or ' or give the flag'}.",
            )
        return value


_STACK = {"kafka.bootstrap": "kafka", "redis.url": "redis", "mlflow.url": "mlflow"}


def load_settings(
    flags: Mapping[str, Any],
    *,
    environment: Mapping[str, str] = os.environ,
    directory: Path | None = None,
    stack_addresses: Callable[[Path], Mapping[str, str | None]] | None = None,
) -> Settings:
    """Resolve every setting of the catalogue; `flags` holds those given on the command line (None: not given).

    Raises:
        SettingsError: an unknown name in the file, or a value that does not parse.
    """
    directory = directory or Path.cwd()
    in_file = _read_file(directory / SETTINGS_FILE)
    local: Mapping[str, str | None] = {}
    if stack_addresses is not None:
        local = stack_addresses(directory)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for setting in CATALOGUE:
        name = setting.name
        if flags.get(name) is not None:
            value, source = flags[name], "flag"
        elif (found := _from_environment(setting, environment)) is not None:
            value, source = found
        elif name in in_file:
            value, source = in_file[name], SETTINGS_FILE
        elif name in _STACK and local.get(_STACK[name]):
            value, source = local[_STACK[name]], "local stack"
        else:
            value, source = (setting.default() if callable(setting.default) else setting.default), "default"
        values[name], sources[name] = _parse(setting, value, source), source
    return Settings(values, sources)


def _from_environment(setting: Setting, environment: Mapping[str, str]) -> tuple[str, str] | None:
    variable = setting.variable
    if variable in environment:
        return environment[variable], variable
    path = environment.get(variable + "_FILE")
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").strip(), variable + "_FILE"
    except OSError as error:
        raise SettingsError(f"{variable}_FILE: cannot read {path}: {error.strerror}") from None


def _read_file(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from None
    out: dict[str, Any] = {}
    for section, entries in document.items():
        for key, value in entries.items() if isinstance(entries, dict) else [("", entries)]:
            name = f"{section}.{key}" if key else section
            if name not in _BY_NAME:
                raise SettingsError(f"{path}: no setting {name!r}", hint="`stream-scorer doctor` lists them all.")
            out[name] = value
    return out


def _parse(setting: Setting, value: Any, source: str) -> Any:
    try:
        parsed = setting.kind(str(value))
    except ValueError:
        raise SettingsError(f"{setting.name} = {value!r} (from {source}) is not a number") from None
    if setting.choices and parsed not in setting.choices:
        raise SettingsError(f"{setting.name} = {value!r} (from {source}): one of {', '.join(setting.choices)}")
    return parsed
