"""The checks of `doctor`: every setting with its source, then one check per part. This module prints nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit, urlunsplit

import msgspec

from stream_scorer.client_properties import PREFIX, SECTION, ClientProperty
from stream_scorer.errors import AccessDenied, ArtifactError, BrokerUnavailable, StreamScorerError, UsageError
from stream_scorer.observability.scrub import HIDDEN
from stream_scorer.settings import CATALOGUE, Setting, Settings

if TYPE_CHECKING:
    from stream_scorer.kafka.permissions import Role
    from stream_scorer.kafka.topics import TopicAdmin, Topics
    from stream_scorer.serde.raw import RawRecords
    from stream_scorer.spec import CheckedSpec

# The same as `requires-python` in pyproject.toml.
PYTHON_MIN, PYTHON_BELOW = (3, 11), (3, 13)
# How many of the newest records per partition, and for how long, the checks of transactions and of labels read.
NEWEST_PER_PARTITION, NEWEST_TIMEOUT_S = 100, 5.0
# Of a Redis that permits this user neither CONFIG GET nor INFO.
NO_POLICY = "answers; its maxmemory-policy cannot be read: it must be noeviction"


class SettingRow(msgspec.Struct, frozen=True):
    """One setting without secrets. `allowed` is empty if every text is allowed."""

    name: str
    value: str
    source: str
    variable: str
    flag: str
    default: str
    allowed: str
    help: str


class Check(msgspec.Struct, frozen=True):
    """One check: ``ok``, ``failed``, or ``skipped`` if its settings are missing or an earlier check already failed."""

    name: str
    state: Literal["ok", "failed", "skipped"]
    message: str
    hint: str = ""


class _SkippedError(Exception):
    """A setting that the check needs is missing, or an earlier check already reported the cause."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


def setting_rows(settings: Settings) -> list[SettingRow]:
    """Every setting of the catalogue, then the librdkafka properties that are set.

    Hides passwords in addresses, and every other secret completely.
    """
    return [*_catalogue_rows(settings), *map(_property_row, settings.properties.values())]


def _property_row(found: ClientProperty) -> SettingRow:
    value = _without_credentials(found.value) if "://" in found.value else found.value
    variable = PREFIX + found.name.upper().replace(".", "_")
    help_text = "Property of every Kafka client."
    return SettingRow(
        f"{SECTION}.{found.name}", HIDDEN if found.secret else value, found.source, variable, "", "", "", help_text
    )


def _catalogue_rows(settings: Settings) -> list[SettingRow]:
    return [
        SettingRow(
            s.name,
            shown_value(s, settings[s.name]),
            settings.source(s.name),
            s.variable,
            s.flag,
            "" if callable(s.default) else s.text(s.default),
            s.allowed,
            s.help,
        )
        for s in CATALOGUE
    ]


def shown_value(setting: Setting, value: object) -> str:
    """The value without secrets. An address keeps its host and loses user, password and query."""
    text = setting.text(value)
    if setting.name == "kafka.bootstrap" or "://" not in text:
        # A list of brokers or a text without a scheme has no user part, so an "@" means a misplaced password.
        misplaced = "@" in text and setting.name in ("kafka.bootstrap", "topics.prefix", "scorer.group", "metrics.host")
        return HIDDEN if misplaced or (setting.secret and text) else text
    if setting.name == "monitor.webhook_url":  # its path is often the secret itself
        return _without_credentials(text, path=False)
    return _without_credentials(text)


def run_checks(settings: Settings, role: Role = "scorer") -> Iterator[Check]:
    """Run every check and yield each result at once. Changes nothing, except that a download may fill the cache.

    `role` selects the permissions on Kafka that are checked.
    """
    for name, check in _checks(role):
        try:
            message = check(settings)
        except _SkippedError as skipped:
            yield Check(name, "skipped", skipped.message, skipped.hint)
        except StreamScorerError as error:
            yield Check(name, "failed", _scrubbed(error.message, settings), _scrubbed(error.hint, settings))
        else:
            yield Check(name, "ok", message)


def _checks(role: Role) -> list[tuple[str, Callable[[Settings], str]]]:
    of_role: list[tuple[str, Callable[[Settings], str]]] = [
        ("group", partial(_group, role=role)),
        ("topics", partial(_topics, role=role)),
        ("permissions", partial(_permissions, role=role)),
        ("record keys", partial(_record_keys, role=role)),
        ("label ids", partial(_label_ids, role=role)),
    ]
    return [*_CHECKS[:3], *of_role, *_CHECKS[3:]]


def _python(_settings: Settings) -> str:
    version = ".".join(map(str, sys.version_info[:3]))
    if not PYTHON_MIN <= sys.version_info[:2] < PYTHON_BELOW:
        raise StreamScorerError(f"Python {version} is not supported", hint="Use Python 3.11 or 3.12.")
    return version


def _spec(settings: Settings) -> str:
    from stream_scorer.spec import load_spec

    checked = load_spec(_wanted(settings, "scorer.spec"), settings["scorer.id_key"])
    _ = checked.pseudonyms  # raises if the secret of hashed ids is missing
    return f"{checked.spec.name} version {checked.spec.version}, {len(checked.features)} features"


def _broker(settings: Settings) -> str:
    from stream_scorer.kafka.topics import TopicAdmin

    found = TopicAdmin(_wanted(settings, "kafka.bootstrap")).partitions()
    return f"answers, {len(found)} topics"


def _group(settings: Settings, role: Role) -> str:
    from stream_scorer.kafka.permissions import GROUPS

    if role not in GROUPS:
        raise _SkippedError(f"the role {role} uses no group of this installation")
    setting = next(s for s in CATALOGUE if s.name == GROUPS[role])
    return shown_value(setting, settings.group(setting.name))


def _topics(settings: Settings, role: Role) -> str:
    from stream_scorer.cli.topics import spans_of_spec
    from stream_scorer.kafka.topic_config import find_problems
    from stream_scorer.kafka.topics import TopicAdmin, Topics

    admin = TopicAdmin(_wanted(settings, "kafka.bootstrap"))
    try:
        topics = Topics.of(settings)
        visible = _visible_topics(admin, topics, role, settings)
        counts = admin.require([name for name in topics.of_partitions() if name in visible])
        admin.require([name for name in topics.of_one_partition() if name in visible])
        if not counts:
            return "none for this role"
        configs, replicas, brokers = admin.configs(visible), admin.replicas(), admin.brokers()
    except BrokerUnavailable:
        raise _SkippedError("the broker does not answer") from None
    except AccessDenied as error:
        raise _SkippedError(error.message) from None
    replicas = {name: count for name, count in replicas.items() if name in visible}
    problems = find_problems(topics, configs, replicas, *spans_of_spec(settings), brokers=brokers)
    if problems:
        raise StreamScorerError(
            "; ".join(f"{name}: {', '.join(found)}" for name, found in problems.items()),
            hint="See `stream-scorer topics check --spec SPEC`.",
        )
    return f"{len(counts)} topics of {next(iter(counts.values()))} partitions"


def _visible_topics(admin: TopicAdmin, topics: Topics, role: Role, settings: Settings) -> list[str]:
    """All topics, or those of the role if an ACL hides the others."""
    from stream_scorer.kafka.permissions import names_of, permissions

    if admin.partitions().keys() >= set(topics.all()):
        return topics.all()
    try:
        admin.require(topics.all(), same_count=False)
    except AccessDenied:
        return [found.name for found in permissions(role, names_of(settings)) if found.kind == "topic"]
    return topics.all()


def _permissions(settings: Settings, role: Role) -> str:
    from stream_scorer.kafka.permissions import missing_permissions, names_of, permissions

    bootstrap = _wanted(settings, "kafka.bootstrap")
    try:
        missing = missing_permissions(bootstrap, permissions(role, names_of(settings)))
    except (BrokerUnavailable, UsageError) as error:
        raise _SkippedError(error.message) from None
    if missing:
        raise StreamScorerError(
            f"missing for the role {role}: {', '.join(missing)}",
            hint=f"`stream-scorer topics acls --role {role}` prints the ACLs of the role.",
        )
    return f"suffice for the role {role}"


def _record_keys(settings: Settings, role: Role) -> str:
    from stream_scorer.serde.decoder import TransactionDecoder
    from stream_scorer.serde.record_keys import wrong_keys

    topic, checked = _readable(settings, role, "transactions")
    if not checked.spec.entities or (entity := checked.spec.partition_entity) is None:
        return "any, because the spec has no entities"
    records = _newest(settings, topic)
    transactions, _ = TransactionDecoder(checked).decode(records.value, records.timestamp)
    keys, rows = checked.pseudonyms.record_keys(records.key), transactions.row.tolist()
    wrong = wrong_keys([keys[row] for row in rows], transactions.entity_ids[entity])
    if wrong:
        first = rows[wrong[0]]
        raise StreamScorerError(
            f"{len(wrong)} of the {len(rows)} newest transactions have a key that is not the id of their {entity}, "
            f"such as {topic}[{records.partition[first]}] at offset {records.offset[first]}",
            hint=f"Let the producer send {checked.spec.entities[entity].field} as the key (docs/features.md).",
        )
    return (
        f"those of the {len(rows)} newest transactions are the ids of the {entity}" if rows else "no transactions yet"
    )


def _label_ids(settings: Settings, role: Role) -> str:
    from stream_scorer.serde.decoder import LabelDecoder
    from stream_scorer.serde.label_ids import MissingLabelIds

    topic, checked = _readable(settings, role, "labels")
    if not checked.label_entities:
        return "none needed, because the spec has no features of labels"
    records = _newest(settings, topic)
    labels, _ = LabelDecoder(checked).decode(records.value, records.timestamp)
    problems, fields = [], []
    for entity, places in MissingLabelIds(checked).find(labels).items():
        first, lacking = int(labels.row[places[0]]), labels.entity_ids[entity].count(None)
        problems.append(
            f"{lacking} of the {len(labels)} newest labels lack the id of their {entity}, "
            f"such as {topic}[{records.partition[first]}] at offset {records.offset[first]}"
        )
        fields.append(checked.spec.entities[entity].field)
    if problems:
        hint = f"Let their producer send {', '.join(fields)} (docs/features.md)."
        raise StreamScorerError("; ".join(problems), hint=hint)
    # Too few to be a problem, see `MissingLabelIds`.
    rest = {entity: labels.entity_ids[entity].count(None) for entity in checked.label_entities}
    allowed = "".join(f"; {n} lack the optional id of their {entity}" for entity, n in rest.items() if n)
    return f"those of the {len(labels)} newest labels suffice{allowed}" if len(labels) else "no labels yet"


def _readable(settings: Settings, role: Role, topic: Literal["transactions", "labels"]) -> tuple[str, CheckedSpec]:
    """The name of `topic`, and the spec. Skips the check if `role` does not read the topic, or the spec is wrong."""
    from stream_scorer.kafka.permissions import names_of, permissions
    from stream_scorer.spec import load_spec

    _wanted(settings, "kafka.bootstrap")
    spec, names = _wanted(settings, "scorer.spec"), names_of(settings)
    name: str = getattr(names.topics, topic)
    if not any(found.name == name and "Read" in found.operations for found in permissions(role, names)):
        raise _SkippedError(f"the role {role} does not read {name}")
    try:
        checked = load_spec(spec, settings["scorer.id_key"])
        _ = checked.pseudonyms  # raises if the secret of hashed ids is missing
    except UsageError as error:
        raise _SkippedError(error.message) from None
    return name, checked


def _newest(settings: Settings, topic: str) -> RawRecords:
    """The newest records of `topic`. Skips the check if they cannot be read."""
    from stream_scorer.kafka.newest import newest_records

    bootstrap = _wanted(settings, "kafka.bootstrap")
    try:
        return newest_records(bootstrap, topic, NEWEST_PER_PARTITION, NEWEST_TIMEOUT_S)
    except (UsageError, BrokerUnavailable, AccessDenied) as error:
        raise _SkippedError(error.message) from None


def _redis(settings: Settings) -> str:
    from stream_scorer.state.client import connect, connect_cluster, ping
    from stream_scorer.state.redis_rows import RedisRowStore

    url = _wanted(settings, "redis.url")
    client = connect_cluster(url) if settings["redis.cluster"] else connect(url)
    try:
        ping(client, url)
        # A store without partitions checks the server's policy as a scorer does, and writes nothing.
        store = RedisRowStore(client, "doctor", [], labels_topic="", horizon_ms=0)
        known = store.check_eviction_policy()
    finally:
        client.close()
    return "answers, evicts no keys" if known else NO_POLICY


def _mlflow(settings: Settings) -> str:
    from stream_scorer.ensemble.registry import list_versions, parse_reference

    url, name = _wanted(settings, "mlflow.url"), ""
    with suppress(ArtifactError):  # the check of the ensemble reports it
        name = parse_reference(settings["scorer.ensemble"]).name
    found = len(list_versions(url, name))
    return f"answers, {found} version{'' if found == 1 else 's'} of {name or 'all ensembles'}"


def _ensemble(settings: Settings) -> str:
    from stream_scorer.spec import load_spec

    checked = load_spec(_wanted(settings, "scorer.spec"))
    # Imported late: the libraries of the members take seconds to import.
    from stream_scorer.app import load_serving_ensemble
    from stream_scorer.ensemble.registry import parse_reference

    reference = parse_reference(settings["scorer.ensemble"])
    if reference.folder is None:
        _wanted(settings, "mlflow.url")
    ensemble = load_serving_ensemble(settings, checked)
    if reference.folder is None:
        ensemble.check_name(reference.name)
    return f"{ensemble.name} {ensemble.version}, {len(ensemble.member_names)} members, matches the spec"


def _port(settings: Settings) -> str:
    from prometheus_client import CollectorRegistry

    from stream_scorer.observability.health import HealthServer

    host, port = settings["metrics.host"], settings["metrics.port"]
    if port < 0:
        raise _SkippedError("the metrics server is disabled")
    HealthServer(host, port, CollectorRegistry(), lambda: (False, "a check")).close()
    return f"{host}:{port} is free" if port else f"any free port on {host}"


_CHECKS: tuple[tuple[str, Callable[[Settings], str]], ...] = (
    ("python", _python),
    ("spec", _spec),
    ("broker", _broker),
    ("redis", _redis),
    ("mlflow", _mlflow),
    ("ensemble", _ensemble),
    ("metrics port", _port),
)


def _scrubbed(text: str, settings: Settings) -> str:
    """`text` with the credentials removed from every address."""
    for found in settings.properties.values():
        if found.secret and found.value:
            text = text.replace(found.value, HIDDEN)
    for setting in CATALOGUE:
        value = setting.text(settings[setting.name])
        if value and value != (shown := shown_value(setting, settings[setting.name])):
            text = text.replace(value, shown)
    return text


def _wanted(settings: Settings, name: str) -> str:
    """The value of `name`. Skips the check if it is not set, as a missing setting is not an error of `doctor`."""
    if not settings[name]:
        settings.refuse_mixed(name)
        variable = next(s.variable for s in CATALOGUE if s.name == name)
        raise _SkippedError(f"{name} is not set", f"Set {variable}.")
    value: str = settings[name]  # an address carries how to connect: str() would lose that
    return str(Path(value).expanduser()) if name == "scorer.spec" else value


def _without_credentials(address: str, *, path: bool = True) -> str:
    """The address with `***` for user and password, for the query, and without `path` for what follows the host."""
    try:
        parts = urlsplit(address)
        _user, at, host = parts.netloc.rpartition("@")
    except ValueError:
        return HIDDEN
    if "@" in parts.path + parts.fragment:  # a password with "/" or "#" that is not percent-encoded
        return HIDDEN
    query = HIDDEN if parts.query else ""
    shown = parts.path if path or parts.path in ("", "/") else f"/{HIDDEN}"
    return urlunsplit((parts.scheme, f"{HIDDEN}@{host}" if at else host, shown, query, ""))
