"""Settings: one catalogue with type, default and bounds, and four sources: flag, environment, file, default.

The setting ``kafka.bootstrap`` is ``--bootstrap`` on the command line, ``STREAM_SCORER_KAFKA_BOOTSTRAP`` in the
environment (or ``..._FILE``, the path of a file that contains the value), and ``[kafka] bootstrap`` in
`stream-scorer.toml`. A running local stack (`stream-scorer stack up`) supplies the addresses if no source sets any.
`[kafka.client]` holds librdkafka properties (`stream_scorer.client_properties`).

`CATALOGUE` is the only place that defines a setting. Commands take their flags from it, `stream-scorer doctor` and
docs/settings.md print it, and `load_settings` checks every value against it. `RULES` holds the checks that involve more
than one setting.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal
from urllib.parse import SplitResult, unquote, urlsplit

from stream_scorer.client_properties import PREFIX as CLIENT_PREFIX
from stream_scorer.client_properties import SECTION, ClientProperty, read_properties
from stream_scorer.connections import Brokers, RegistryAddress, TokenSource, redis_address
from stream_scorer.errors import SettingsError

SETTINGS_FILE = "stream-scorer.toml"
_PREFIX = "STREAM_SCORER_"
_YES, _NO = ("yes", "true", "1", "on"), ("no", "false", "0", "off")
_DAY_S = 86_400
# To hide a shorter text would make logs unreadable.
MIN_SECRET_LENGTH = 4

_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}\Z")

Kind = Literal["text", "integer", "number", "yes or no", "integers", "words"]


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting.

    Attributes:
        name: section and key, as in ``scorer.batch``.
        flag: the command line flag; ``--a/--no-a`` is a switch; empty if there is none.
        default: the value if no source sets one; a function is called at load time.
        kind: the type. "integers" is a list: ``1,24`` as text, an array in the file; bounds apply to each entry.
            "words" is a command with arguments: as a person types it, or an array in the file.
        minimum, maximum: inclusive bounds of a number, in `unit`.
        choices: the allowed values of a text.
        secret: never printed. An address is printed without user, password and query.
    """

    name: str
    flag: str
    help: str
    default: Any
    kind: Kind = "text"
    minimum: float | None = None
    maximum: float | None = None
    unit: str = ""
    choices: tuple[str, ...] = ()
    secret: bool = False

    @property
    def variable(self) -> str:
        """The environment variable."""
        return _variable(self.name)

    @property
    def default_text(self) -> str:
        """The default as a person types it, or in words; empty if there is none."""
        if callable(self.default):
            return "the machine's host name" if self.default is socket.gethostname else "computed at start"
        return self.text(self.default)

    @property
    def allowed(self) -> str:
        """The allowed values in words, as in ``1 to 10000 records``; empty if every text is allowed."""
        if self.choices:
            return ", ".join(self.choices)
        if self.kind == "yes or no":
            return "yes, no"
        if self.minimum is None or self.maximum is None:
            return ""
        each = " each" if self.kind == "integers" else ""
        return f"{self.minimum:g} to {self.maximum:.10g} {self.unit}".rstrip() + each

    def text(self, value: Any) -> str:
        """`value` of this setting's type as a person types it."""
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, tuple):
            return shlex.join(value) if self.kind == "words" else ",".join(map(str, value))
        return str(value)

    def parse(self, value: Any) -> Any:
        """`value`, from any source, as this setting's type. Raises `ValueError` with a text that follows "must be"."""
        if self.kind == "integers":
            entries = value if isinstance(value, list | tuple) else str(value).split(",")
            if not entries:
                raise ValueError("a list of at least one integer")
            return tuple(self._number(entry) for entry in entries)
        if self.kind in ("integer", "number"):
            return self._number(value)
        if self.kind == "words":
            return _words(value)
        text = str(value)
        if self.kind == "yes or no":
            if text.lower() not in _YES + _NO:
                raise ValueError("yes or no")
            return text.lower() in _YES
        if self.choices and text not in self.choices:
            raise ValueError(f"one of {self.allowed}")
        return text

    def _number(self, value: Any) -> int | float:
        number: int | float
        try:
            number = float(str(value)) if self.kind == "number" else int(str(value))
        except ValueError:
            raise ValueError("a number" if self.kind == "number" else "an integer") from None
        # A NaN fails every comparison and is refused here too.
        if self.minimum is not None and self.maximum is not None and not self.minimum <= number <= self.maximum:
            raise ValueError(self.allowed)
        return number


def _words(value: Any) -> tuple[str, ...]:
    if isinstance(value, list | tuple):
        if not all(isinstance(word, str) for word in value):
            raise ValueError("a list of texts")
        return tuple(value)
    try:
        return tuple(shlex.split(str(value)))
    except ValueError:
        raise ValueError("a command with balanced quotes") from None


def _topic(key: str, default: str) -> Setting:
    return Setting(f"topics.{key}", "", f"Name of the topic `{default}`; by default the prefix and `{default}`.", "")


# Every topic: key of its setting (`topics.<key>`) and default name, in the order of docs/topics.md.
TOPICS: Mapping[str, str] = {
    "transactions": "transactions",
    "labels": "labels",
    "scores": "scores",
    "contributions": "contributions",
    "lineage": "lineage",
    "alerts": "alerts",
    "review_sample": "review-sample",
    "score_summaries": "score-summaries",
    "dead_letters": "transactions.dlq",
    "outcomes": "outcomes",
    "monitor_metrics": "monitor-metrics",
    "control": "control",
    "serving_state": "serving-state",
    "scorer_status": "scorer-status",
    "audit": "audit",
    "incidents": "incidents",
    "verdicts": "verdicts",
}

CATALOGUE: tuple[Setting, ...] = (
    Setting("kafka.bootstrap", "--bootstrap", "Kafka brokers as host:port, comma separated.", ""),
    Setting(
        "kafka.oauth.token_command",
        "",
        "Command that prints an OAUTHBEARER token. It runs without a shell, and again before the token expires.",
        (),
        "words",
        secret=True,
    ),
    Setting("kafka.oauth.token_file", "", "File with the OAUTHBEARER token. It is read again before it expires.", ""),
    Setting("redis.url", "--redis", "Redis, as redis://host:port/db, or rediss:// with TLS.", "", secret=True),
    Setting("redis.username", "", "ACL user in Redis; wins over that of the URL.", ""),
    Setting("redis.password", "", "Password in Redis; wins over that of the URL.", "", secret=True),
    Setting("redis.ca_file", "", "PEM file of the authorities that sign Redis's certificate.", ""),
    Setting("redis.cert_file", "", "PEM file of the client certificate for Redis.", ""),
    Setting("redis.key_file", "", "PEM file of the key of the client certificate for Redis.", ""),
    Setting(
        "redis.shards",
        "--shards",
        "Number of shards of the features (docs/features.md). A change triggers a rebuild of the features. "
        "Every micro-batch writes to every shard.",
        1,
        "integer",
        minimum=1,
        maximum=64,
        unit="shards",
    ),
    Setting("redis.cluster", "--redis-cluster", "Whether `redis.url` is a Redis Cluster node.", False, "yes or no"),
    Setting("mlflow.url", "--mlflow", "MLflow registry, as http://host:port or https://host:port.", "", secret=True),
    Setting("mlflow.username", "", "User of the MLflow registry (basic authentication).", ""),
    Setting("mlflow.password", "", "Password of the MLflow registry (basic authentication).", "", secret=True),
    Setting("mlflow.ca_file", "", "PEM file of the authorities that sign the registry's certificate.", ""),
    Setting(
        "mlflow.champion_alias",
        "",
        "Whether `promote`, `rollback` and the monitor move the registry's alias `champion` to the version that "
        "serves. Of the installations that share a registered ensemble, one may (docs/control.md).",
        True,
        "yes or no",
    ),
    Setting("topics.prefix", "--topic-prefix", "Prefix of every topic name that is not set.", ""),
    *(_topic(key, default) for key, default in TOPICS.items()),
    Setting("scorer.spec", "--spec", "Path of the pipeline spec.", ""),
    Setting(
        "scorer.id_key",
        "--id-key",
        "Secret of the hashes that replace ids of sensitive entities (at least 32 characters; set it by the variable "
        "with the suffix _FILE).",
        "",
        secret=True,
    ),
    Setting(
        "scorer.ensemble",
        "--ensemble",
        "Ensemble: a folder, name@alias or name:version. `run` follows the commands for the ensemble, and uses the "
        "version at the very first start only.",
        "cards@champion",
    ),
    Setting(
        "scorer.group", "--group", "Consumer group. It is part of the features' namespace in Redis.", "stream-scorer"
    ),
    Setting("scorer.instance", "--instance", "Stable name of this scorer, unique in its group.", socket.gethostname),
    Setting(
        "scorer.start",
        "--start",
        "Offset at which a new group starts to score. The same for all scorers of the group. Partitions that are "
        "added later are scored from their beginning.",
        "earliest",
        choices=("earliest", "latest"),
    ),
    Setting(
        "scorer.batch",
        "--batch",
        "Maximum size of a micro-batch.",
        1024,
        "integer",
        minimum=1,
        maximum=10_000,
        unit="records",
    ),
    Setting(
        "scorer.pace_ms",
        "--pace-ms",
        "Minimum time between the starts of two micro-batches.",
        20,
        "integer",
        minimum=0,
        maximum=10_000,
        unit="ms",
    ),
    Setting(
        "scorer.member_threads",
        "--member-threads",
        "Number of members of an ensemble that score at the same time.",
        2,
        "integer",
        minimum=1,
        maximum=16,
        unit="threads",
    ),
    Setting(
        "scorer.member_timeout_ms",
        "--member-timeout-ms",
        "Maximum time of one member for one micro-batch. A slower member is missing from the scores of that batch.",
        1_000,
        "integer",
        minimum=10,
        maximum=60_000,
        unit="ms",
    ),
    Setting(
        "scorer.watchdog_timeout_s",
        "--watchdog-timeout-s",
        "Time after which the watchdog ends a scorer whose member hangs in native code; 0 disables the watchdog.",
        10,
        "integer",
        minimum=0,
        maximum=600,
        unit="s",
    ),
    Setting(
        "scorer.explain_alerts",
        "--explain-alerts",
        "Maximum number of alerts per micro-batch that list the strongest features of each member (about 1 ms per "
        "alert); 0 disables this.",
        0,
        "integer",
        minimum=0,
        maximum=10_000,
        unit="alerts",
    ),
    Setting(
        "monitor.mode",
        "--mode",
        "What the monitor does when a version on probation or a canary alerts on too many or too few cards: nothing "
        "(off), write an incident (propose), or also issue the command (auto).",
        "propose",
        choices=("off", "propose", "auto"),
    ),
    Setting(
        "monitor.probation",
        "--probation",
        "Minimum number of transactions before the monitor confirms a version. A confirmation also needs evidence that "
        "the change of alerted cards is harmless.",
        100_000,
        "integer",
        minimum=1,
        maximum=1_000_000_000,
        unit="transactions",
    ),
    Setting(
        "monitor.max_rise",
        "--max-rise",
        "Tolerated rise of alerted cards of a version, compared with the version before it.",
        5.0,
        "number",
        minimum=0.1,
        maximum=100,
        unit="percent",
    ),
    Setting(
        "monitor.max_fall",
        "--max-fall",
        "Tolerated fall of alerted cards.",
        5.0,
        "number",
        minimum=0.1,
        maximum=90,
        unit="percent",
    ),
    Setting(
        "monitor.ladder",
        "",
        "Shares of the entities, in percent, through which the monitor raises a canary that was started with "
        "`ensemble canary --ladder`. Each needs a confirmation of its own; the last one is the promotion.",
        "1,5,25,50,100",
    ),
    Setting(
        "monitor.grace_s",
        "--grace-s",
        "Event time after a card's first alert in which the other version may alert the card as well.",
        600,
        "integer",
        minimum=0,
        maximum=_DAY_S,
        unit="s",
    ),
    Setting(
        "monitor.cooldown_s",
        "--cooldown-s",
        "Minimum time between two versions that the monitor withdraws; the second one is only proposed. A canary that "
        "was stopped delays no rollback.",
        3_600,
        "integer",
        minimum=0,
        maximum=30 * _DAY_S,
        unit="s",
    ),
    Setting(
        "monitor.max_latency_ms",
        "--max-latency-ms",
        "P95 of the time from the arrival of a transaction to its committed score above which an incident opens.",
        200,
        "integer",
        minimum=1,
        maximum=3_600_000,
        unit="ms",
    ),
    Setting(
        "monitor.max_errors",
        "--max-errors",
        "Share of transactions without a model score, or of a member's failures, above which an incident opens.",
        1.0,
        "number",
        minimum=0,
        maximum=100,
        unit="percent",
    ),
    Setting(
        "monitor.max_dead_letters",
        "--max-dead-letters",
        "Share of dead letters above which an incident opens.",
        1.0,
        "number",
        minimum=0,
        maximum=100,
        unit="percent",
    ),
    Setting(
        "monitor.feed_silent_s",
        "--feed-silent-s",
        "Time without any transaction after which an incident opens. One silent partition is detected earlier.",
        900,
        "integer",
        minimum=60,
        maximum=30 * _DAY_S,
        unit="s",
    ),
    Setting(
        "monitor.feed_late_s",
        "--feed-late-s",
        "How much further than usual the event times of a partition may be behind the other partitions.",
        900,
        "integer",
        minimum=1,
        maximum=30 * _DAY_S,
        unit="s",
    ),
    Setting(
        "monitor.labels_silent_s",
        "--labels-silent-s",
        "Shortest pause of a label source that opens an incident, if it is also three times its longest usual pause.",
        6 * 3_600,
        "integer",
        minimum=60,
        maximum=90 * _DAY_S,
        unit="s",
    ),
    Setting(
        "monitor.webhook_url",
        "",
        "Address that gets incidents, in the JSON format of Alertmanager's webhooks; empty: none.",
        "",
        secret=True,
    ),
    Setting(
        "monitor.false_alarms_per_year",
        "--false-alarms-per-year",
        "Drift events that healthy traffic may cause, over all features, members and scores of an ensemble together.",
        4.0,
        "number",
        minimum=0.1,
        maximum=365,
    ),
    Setting(
        "monitor.state_dir",
        "--state-dir",
        "Folder of the label joiner's store. Each monitor needs its own.",
        ".stream-scorer/monitor",
    ),
    Setting("monitor.group", "--monitor-group", "Consumer group of the monitor.", "stream-scorer-monitor"),
    Setting("monitor.instance", "--monitor-instance", "Stable name of this monitor, unique in its group.", "monitor-1"),
    Setting(
        "monitor.joiner",
        "--joiner/--no-joiner",
        "Whether this monitor joins labels. Exactly one monitor of a group does.",
        True,
        "yes or no",
    ),
    Setting(
        "monitor.namespace",
        "--namespace",
        "Prefix of the window counters in Redis; by default derived from the monitor's group and the topic.",
        "",
    ),
    Setting(
        "monitor.windows",
        "--window",
        "Window lengths; the flag may be repeated. Windows of one pane are always computed.",
        (1, 24),
        "integers",
        minimum=1,
        maximum=1_024,
        unit="panes",
    ),
    Setting(
        "monitor.idle_after_s",
        "--idle-after",
        "Time after which a partition without new or unread summaries is idle. Windows do not wait for it then.",
        30.0,
        "number",
        minimum=0.1,
        maximum=_DAY_S,
        unit="s",
    ),
    Setting(
        "monitor.emit_every_s",
        "--emit-every",
        "Time between two evaluations of changed windows.",
        1.0,
        "number",
        minimum=0.05,
        maximum=3_600,
        unit="s",
    ),
    Setting(
        "monitor.max_outage_s",
        "--max-outage-s",
        "Longest outage of the monitor that its window counters in Redis survive.",
        7 * _DAY_S,
        "integer",
        minimum=60,
        maximum=90 * _DAY_S,
        unit="s",
    ),
    Setting(
        "monitor.unreported_cap",
        "--unreported-cap",
        "Assumption: maximum probability that an approved transaction without a label is fraud.",
        0.02,
        "number",
        minimum=0,
        maximum=1,
    ),
    Setting(
        "monitor.reviewer_miss",
        "--reviewer-miss",
        "Assumption: maximum probability that a reviewer labels fraud as genuine.",
        0.05,
        "number",
        minimum=0,
        maximum=0.5,
    ),
    Setting(
        "monitor.reviewer_false",
        "--reviewer-false",
        "Assumption: maximum probability that a reviewer labels a genuine transaction as fraud.",
        0.01,
        "number",
        minimum=0,
        maximum=0.5,
    ),
    Setting(
        "gate.rules",
        "--gate",
        "Rules file that a version must pass before `ensemble promote` or `ensemble weights` lets it serve "
        "(docs/gate.md). Not set, or empty in the file: there is no gate. An empty flag or variable is refused.",
        "",
    ),
    Setting("cache.dir", "--cache", "Folder of downloaded models.", "~/.cache/stream-scorer"),
    Setting("metrics.host", "--metrics-host", "Interface of /metrics, /healthz and /readyz.", "127.0.0.1"),
    Setting(
        "metrics.port",
        "--metrics-port",
        "Port of /metrics, /healthz and /readyz; 0 picks a free port, -1 disables the server.",
        9464,
        "integer",
        minimum=-1,
        maximum=65_535,
    ),
    Setting("logs.format", "--log-format", "Format of the logs on stderr.", "text", choices=("text", "json")),
    Setting(
        "logs.level", "--log-level", "Minimum level of the logs.", "info", choices=("debug", "info", "warning", "error")
    ),
)
_BY_NAME = {setting.name: setting for setting in CATALOGUE}


class Settings:
    """Resolved settings: ``settings["kafka.bootstrap"]``.

    The addresses of the services carry how to connect: see `stream_scorer.connections`.

    Attributes:
        warnings: variables that look like a misspelled setting.
        properties: the librdkafka properties that a source sets, by name.
    """

    def __init__(
        self,
        values: dict[str, Any],
        sources: dict[str, str],
        warnings: tuple[str, ...] = (),
        properties: Mapping[str, ClientProperty] | None = None,
        refused: Mapping[str, SettingsError] | None = None,
    ) -> None:
        self._values = values
        self._sources = sources
        self.warnings = warnings
        self.properties = dict(properties or {})
        self.refused = dict(refused or {})

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    @property
    def secrets(self) -> tuple[str, ...]:
        """Texts that must not reach a log: values of secret settings, and passwords and queries in addresses."""
        found = {given.value for given in self.properties.values() if given.secret}
        for value in (s.text(self._values[s.name]) for s in CATALOGUE if s.secret):
            parts = _address(value)
            found |= {value} if parts is None else {parts.password or "", unquote(parts.password or ""), parts.query}
        # The address of a webhook often is the secret itself.
        hook = self._values["monitor.webhook_url"]
        parts = _address(hook)
        found |= {hook, "" if parts is None else parts.path}
        # Clients may log a text without the spaces around it.
        texts = {text.strip() for text in found}
        return tuple(sorted((text for text in texts if len(text) >= MIN_SECRET_LENGTH), key=len, reverse=True))

    def source(self, name: str) -> str:
        """The source of the value of `name`: the flag, a variable, the file, the local stack, or the default."""
        return self._sources[name]

    def describe(self, name: str) -> str:
        """``name = value (from source)``, for messages."""
        setting = _BY_NAME[name]
        value = "***" if setting.secret else setting.text(self._values[name])
        return f"{name} = {value} (from {self._sources[name]})"

    def refuse_mixed(self, *names: str) -> None:
        """Raise `SettingsError` if one of the addresses `names` would be that of a local stack, and others are not."""
        for name in names:
            if name in self.refused:
                raise self.refused[name]

    def group(self, name: str) -> str:
        """The consumer group in the setting `name`.

        Raises:
            SettingsError: it is the default one, but `topics.prefix` is set. The prefix separates the topics of
                installations on the same brokers; with the same group, they would share the partitions and the
                transactional ids, and so fence each other.
        """
        group: str = self._values[name]
        if not self._values["topics.prefix"] or self._sources[name] != "default":
            return group
        setting = _BY_NAME[name]
        own = f"{self._values['topics.prefix']}{group}"
        raise SettingsError(
            f"{self.describe('topics.prefix')}, but {name} is not set: installations on the same brokers must not "
            f"share the group {group}, which is the default",
            hint=f"Set {setting.variable}, or {name} in {SETTINGS_FILE}, to {group} if this installation has used it "
            f"so far and no other one does: a new group begins anew. Otherwise to a name of its own, such as {own}.",
        )

    def require(self, name: str) -> Any:
        """The value of `name`. Raises `SettingsError` if no source sets it."""
        self.refuse_mixed(name)
        value = self._values[name]
        if value in ("", None):
            setting = _BY_NAME[name]
            more = " or start a local stack: `stream-scorer stack up`" if name in ADDRESSES else ""
            raise SettingsError(
                f"{name} is not set ({setting.help.rstrip('.')})",
                hint=f"Set {setting.variable}, or {name} in {SETTINGS_FILE},{more or ' or give the flag'}.",
            )
        return value


def _address(text: str) -> SplitResult | None:
    """The parts of an address; None if `text` is none."""
    try:
        return urlsplit(text) if "://" in text else None
    except ValueError:
        return None


def _watchdog_exceeds_timeout(settings: Settings) -> str:
    watchdog_s, timeout_ms = settings["scorer.watchdog_timeout_s"], settings["scorer.member_timeout_ms"]
    if watchdog_s == 0 or watchdog_s * 1_000 > timeout_ms:
        return ""
    return (
        f"{settings.describe('scorer.watchdog_timeout_s')} must be 0 or longer than "
        f"{settings.describe('scorer.member_timeout_ms')}: a member must time out before the watchdog ends the scorer"
    )


def _topics_differ(settings: Settings) -> str:
    given = {key: settings[f"topics.{key}"] for key in TOPICS}
    for key, name in given.items():
        if name and (not _TOPIC.match(name) or name in (".", "..")):
            return f"{settings.describe(f'topics.{key}')} is not a topic name: use letters, digits, '.', '_' and '-'"
    names = [given[key] or settings["topics.prefix"] + default for key, default in TOPICS.items()]
    twice = sorted({name for name in names if names.count(name) > 1})
    return f"two topics have the same name: {', '.join(twice)}" if twice else ""


def _one_token_source(settings: Settings) -> str:
    command, file = settings["kafka.oauth.token_command"], settings["kafka.oauth.token_file"]
    if command and file:
        return "kafka.oauth.token_command and kafka.oauth.token_file exclude each other"
    names = (settings.properties.get(name) for name in ("sasl.mechanism", "sasl.mechanisms"))
    mechanism = next((found.value for found in names if found is not None), "")
    if (command or file) and mechanism != "OAUTHBEARER":
        return "kafka.oauth is set, but sasl.mechanism in [kafka.client] is not OAUTHBEARER"
    return ""


# Properties that show that the connection was meant to be protected.
_NEED_PROTOCOL = ("sasl.mechanism", "sasl.username", "ssl.ca.", "ssl.certificate.", "ssl.keystore.")


def _protocol_fits(settings: Settings) -> str:
    """Without this check, a forgotten protocol would connect in plain text and without credentials."""
    given = settings.properties.get("security.protocol")
    protocol, by = (given.value.upper(), "") if given else ("PLAINTEXT", " (the default)")
    kinds = {name.split(".")[0] for name in settings.properties if name.startswith(_NEED_PROTOCOL)}
    if settings["kafka.oauth.token_command"] or settings["kafka.oauth.token_file"]:
        kinds.add("sasl")
    for kind, allowed in (("sasl", ("SASL_PLAINTEXT", "SASL_SSL")), ("ssl", ("SSL", "SASL_SSL"))):
        if kind in kinds and protocol not in allowed:
            return (
                f"security.protocol in [{SECTION}] is {protocol}{by}, but {kind} properties "
                f"are set, which it ignores: set it to {' or '.join(allowed)}"
            )
    return ""


# Checks that involve more than one setting. Each returns a message, or an empty text if the settings are consistent.
RULES: tuple[Callable[[Settings], str], ...] = (
    _watchdog_exceeds_timeout,
    _topics_differ,
    _one_token_source,
    _protocol_fits,
)
# The addresses that a local stack supplies, and its names of them.
ADDRESSES = {"kafka.bootstrap": "kafka", "redis.url": "redis", "mlflow.url": "mlflow"}


def load_settings(
    flags: Mapping[str, Any],
    *,
    environment: Mapping[str, str] = os.environ,
    directory: Path | None = None,
    stack_addresses: Callable[[Path], Mapping[str, str | None]] | None = None,
) -> Settings:
    """Resolve and check every setting of the catalogue.

    Args:
        flags: values from the command line, by name; None means that the flag is absent.

    Raises:
        SettingsError: the file has an unknown name, or a value has the wrong type, is out of bounds or contradicts
            another one.
    """
    directory = directory or Path.cwd()
    in_file, client_section = _read_file(directory / SETTINGS_FILE)
    local: Mapping[str, str | None] = {}
    if stack_addresses is not None:
        local = stack_addresses(directory)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    explicit = {setting.name: _explicit(setting, flags, environment, in_file) for setting in CATALOGUE}
    refused = _mixed(explicit, local)
    for setting in CATALOGUE:
        name, found = setting.name, explicit[setting.name]
        if found is not None:
            value, source = found
        elif name in ADDRESSES and name not in refused and local.get(ADDRESSES[name]):
            value, source = local[ADDRESSES[name]], "local stack"
        else:
            value, source = (setting.default() if callable(setting.default) else setting.default), "default"
        try:
            values[name], sources[name] = setting.parse(value), source
        except ValueError as error:
            shown = "***" if setting.secret else repr(value)
            raise SettingsError(f"{name} = {shown} (from {source}) must be {error}") from None
    properties = read_properties(client_section, environment, file_name=SETTINGS_FILE)
    settings = Settings(values, sources, tuple(_misspelled(environment)), properties, refused)
    for rule in RULES:
        message = rule(settings)
        if message:
            raise SettingsError(message)
    _connect(values, properties, refused.get("mlflow.url"))
    return settings


def _mixed(explicit: Mapping[str, tuple[Any, str] | None], local: Mapping[str, str | None]) -> dict[str, SettingsError]:
    """Why the addresses of the local stack are not used, by name: a source sets another address to another service.

    Without this check, a scorer could read the brokers of production and write to a Redis of the local stack.
    """
    by_stack = [name for name, key in ADDRESSES.items() if explicit[name] is None and local.get(key)]
    others = {
        name: found[1]
        for name, key in ADDRESSES.items()
        if (found := explicit[name]) is not None and found[0] not in ("", local.get(key))
    }
    if not others:
        return {}
    given = " and ".join(f"{name} is set (from {source})" for name, source in others.items())
    missing = " and ".join(f"{name} ({_BY_NAME[name].variable} or {_BY_NAME[name].flag})" for name in by_stack)
    hint = (
        f"Set {missing} as well; an empty mlflow.url means no registry. Without {' and '.join(others)}, all addresses "
        "are those of the local stack."
    )
    return {
        name: SettingsError(f"{name} would be that of the local stack in this directory, but {given}", hint=hint)
        for name in by_stack
    }


def _connect(
    values: dict[str, Any], properties: Mapping[str, ClientProperty], no_registry: SettingsError | None
) -> None:
    """Replace the addresses of the services by addresses that carry how to connect. Raises `SettingsError`."""
    values["kafka.bootstrap"] = Brokers(
        values["kafka.bootstrap"],
        {name: found.value for name, found in properties.items()},
        TokenSource(values["kafka.oauth.token_command"], values["kafka.oauth.token_file"]),
    )
    if values["redis.url"]:
        parts = {key: values[f"redis.{key}"] for key in ("username", "password", "ca_file", "cert_file", "key_file")}
        try:
            values["redis.url"] = redis_address(values["redis.url"], **parts)
        except ValueError as error:
            # The message does not contain the value, which may include a password.
            raise SettingsError(f"redis.url must be {error}") from None
    registry = {key: values[f"mlflow.{key}"] for key in ("username", "password", "ca_file")}
    values["mlflow.url"] = RegistryAddress(values["mlflow.url"], **registry, refusal=no_registry)


def _explicit(
    setting: Setting, flags: Mapping[str, Any], environment: Mapping[str, str], in_file: Mapping[str, Any]
) -> tuple[Any, str] | None:
    """The value that the first of flag, environment and file sets, and its source."""
    if flags.get(setting.name) is not None:
        return flags[setting.name], "flag"
    if (found := _from_environment(setting.variable, environment)) is not None:
        return found
    return (in_file[setting.name], SETTINGS_FILE) if setting.name in in_file else None


def _variable(name: str) -> str:
    return _PREFIX + name.replace(".", "_").upper()


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence with the most similar name, and a space; empty if none is similar."""
    similar = get_close_matches(name, known, n=1, cutoff=0.8)
    return f"Did you mean {similar[0]!r}? " if similar else ""


def _misspelled(environment: Mapping[str, str]) -> Iterator[str]:
    """Warnings about variables that no setting has, but that are similar to that of a setting.

    Others are no mistake: Kubernetes, for example, sets variables that begin with the name of a service.
    """
    known = {s.variable for s in CATALOGUE}
    known |= {f"{variable}_FILE" for variable in known}
    ours = (name for name in environment if name.startswith(_PREFIX) and not name.startswith(CLIENT_PREFIX))
    for name in sorted(set(ours) - known):
        if similar := get_close_matches(name, known, n=1, cutoff=0.9):
            yield f"the variable {name} is not that of a setting and has no effect: did you mean {similar[0]}?"


def _from_environment(variable: str, environment: Mapping[str, str]) -> tuple[str, str] | None:
    if variable in environment:
        # A Secret that was made from a text file ends in a newline.
        return environment[variable].rstrip("\r\n"), variable
    path = environment.get(variable + "_FILE")
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").strip(), variable + "_FILE"
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the file is not UTF-8 text"
        raise SettingsError(f"{variable}_FILE: cannot read {path}: {reason}") from None


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values by name, and the section `[kafka.client]`."""
    if not path.exists():
        return {}, {}
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from None
    kafka = document.get("kafka")
    client = kafka.pop("client", {}) if isinstance(kafka, dict) else {}
    if not isinstance(client, dict):
        raise SettingsError(f"{path}: {SECTION} must be a table: [{SECTION}]")
    return _flat(document, path), client


def _flat(section: Mapping[str, Any], path: Path, prefix: str = "") -> dict[str, Any]:
    """The entries of `section` and of its tables by setting name. Raises `SettingsError` for an unknown name."""
    out: dict[str, Any] = {}
    for key, value in section.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            out |= _flat(value, path, f"{name}.")
        elif name not in _BY_NAME:
            raise SettingsError(
                f"{path}: there is no setting {name!r}",
                hint=f"{_did_you_mean(name, _BY_NAME)}docs/settings.md lists all settings.",
            )
        else:
            out[name] = value
    return out
