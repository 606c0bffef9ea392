"""librdkafka properties that the user sets for every Kafka client: where they come from, and which are refused.

A property is an entry of ``[kafka.client]`` in the settings file, with or without quotes (``"sasl.username"`` or
``sasl.username``), or a variable: ``STREAM_SCORER_KAFKA_CLIENT_SASL_USERNAME`` is ``sasl.username``. With the suffix
``_file`` or ``_FILE`` the value is the path of a file that contains the property's value. A variable wins over the
settings file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stream_scorer.errors import SettingsError

SECTION = "kafka.client"
PREFIX = "STREAM_SCORER_KAFKA_CLIENT_"
_FILE = "_file"
# Properties whose own name ends in "file".
_ARE_FILES = frozenset(
    f"sasl.oauthbearer.assertion.{name}" for name in ("file", "private.key.file", "jwt.template.file")
)
_SECRET = re.compile(r"password|passphrase|secret|token(?!\.endpoint)|\.pem$|private|jaas|oauthbearer\.config")
_NAME = re.compile(r"[a-z0-9]+(\.[a-z0-9]+)*\Z")

_EXACTLY_ONCE = "exactly-once processing depends on it"
_PARTITIONS = "partitions of outputs depend on it"
# Properties that the product sets itself, each with the reason.
REFUSED: Mapping[str, str] = {
    "bootstrap.servers": "use the setting kafka.bootstrap",
    "metadata.broker.list": "use the setting kafka.bootstrap",
    "isolation.level": _EXACTLY_ONCE,
    "transactional.id": _EXACTLY_ONCE,
    "transaction.timeout.ms": _EXACTLY_ONCE,
    "enable.idempotence": _EXACTLY_ONCE,
    "enable.gapless.guarantee": _EXACTLY_ONCE,
    "acks": _EXACTLY_ONCE,
    "request.required.acks": _EXACTLY_ONCE,
    "retries": _EXACTLY_ONCE,
    "message.send.max.retries": _EXACTLY_ONCE,
    "max.in.flight": _EXACTLY_ONCE,
    "max.in.flight.requests.per.connection": _EXACTLY_ONCE,
    "enable.auto.commit": _EXACTLY_ONCE,
    "auto.commit.enable": _EXACTLY_ONCE,
    "enable.auto.offset.store": _EXACTLY_ONCE,
    "auto.offset.reset": _EXACTLY_ONCE,
    "group.id": "use the settings scorer.group and monitor.group",
    "group.instance.id": "use the settings scorer.instance and monitor.instance",
    "client.id": "each client has its own, which quotas and logs of the broker refer to",
    "group.protocol": _EXACTLY_ONCE,
    "group.protocol.type": _EXACTLY_ONCE,
    "group.remote.assignor": _EXACTLY_ONCE,
    "partition.assignment.strategy": _PARTITIONS,
    "partitioner": _PARTITIONS,
    "enable.partition.eof": "clients rely on its value",
    "session.timeout.ms": "the transaction timeouts depend on it",
    "heartbeat.interval.ms": "the session timeout depends on it",
    "max.poll.interval.ms": "the wait for a commit and the length of rebalances depend on it",
    "message.max.bytes": "topics are created with the same limit",
    "message.timeout.ms": "each client has its own deadline",
    "delivery.timeout.ms": "each client has its own deadline",
}


@dataclass(frozen=True, slots=True)
class ClientProperty:
    """One property. `source` is the variable or the settings file."""

    name: str
    value: str = field(repr=False)
    source: str

    @property
    def secret(self) -> bool:
        """Whether the value is never printed."""
        return is_secret(self.name)


def is_secret(name: str) -> bool:
    """Whether the value of the property `name` is a password, a token or key material."""
    return _SECRET.search(name) is not None


def read_properties(
    in_file: Mapping[str, object], environment: Mapping[str, str], *, file_name: str
) -> dict[str, ClientProperty]:
    """The properties by name, from the section of the settings file and from the environment.

    Raises:
        SettingsError: a property is refused, is not a text or number, or its file cannot be read.
    """
    found: dict[str, ClientProperty] = {}
    for key, value, source in (*_of_section(in_file, file_name), *_of_environment(environment)):
        name = key.removesuffix(_FILE) if key not in _ARE_FILES else key
        if name in REFUSED or name.endswith("_cb"):
            reason = REFUSED.get(name, "it is not text")
            raise SettingsError(
                f"{SECTION}: {name} cannot be set (from {source}): {reason}",
                hint="docs/security.md lists the properties that the product sets itself.",
            )
        if not _NAME.match(name):
            raise SettingsError(f"{SECTION} (from {source}): {name!r} is not the name of a librdkafka property")
        found[name] = ClientProperty(name, _read(value, source) if name != key else value, source)
    return found


def _of_section(section: Mapping[str, object], file_name: str, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(key, value, source) of every entry; TOML nests an unquoted ``sasl.username``."""
    for key, value in section.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _of_section(value, file_name, f"{name}.")
        elif isinstance(value, bool):
            yield name, str(value).lower(), file_name
        elif isinstance(value, str | int | float):
            yield name, str(value), file_name
        else:
            raise SettingsError(f"{SECTION}: {name} (from {file_name}) must be a text, a number or true or false")


def _of_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    for variable in sorted(environment):
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower().replace("_", ".")
        if name not in _ARE_FILES and name.endswith(".file"):
            if variable.removesuffix("_FILE") in environment:
                continue  # as for every setting, the variable itself wins
            name = name.removesuffix(".file") + _FILE
        # A Secret that was made from a text file ends in a newline.
        yield name, environment[variable].rstrip("\r\n"), variable


def _read(path: str, source: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the file is not UTF-8 text"
        raise SettingsError(f"{source}: cannot read {path}: {reason}") from None
