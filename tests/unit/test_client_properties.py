"""Properties of the Kafka clients: sources, refusals, and that every client gets them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import stream_scorer.kafka
from stream_scorer.client_properties import REFUSED, is_secret
from stream_scorer.connections import Brokers
from stream_scorer.errors import SettingsError
from stream_scorer.kafka.clients import open_producer
from stream_scorer.kafka.config import client_config, consumer_config, producer_config
from stream_scorer.settings import SETTINGS_FILE, Settings, load_settings

VARIABLE = "STREAM_SCORER_KAFKA_CLIENT_"


def load(folder: Path, text: str = "", **environment: str) -> Settings:
    (folder / SETTINGS_FILE).write_text(text)
    return load_settings({}, environment=environment, directory=folder)


def test_quoted_nested_and_file_entries_of_the_settings_file_are_properties(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("hush-hush\n")
    text = f"""
    [kafka]
    bootstrap = "broker:9093"
    [kafka.client]
    "security.protocol" = "SASL_SSL"
    sasl.username = "scorer"
    "sasl.password_file" = "{secret}"
    "socket.keepalive.enable" = true
    "socket.timeout.ms" = 30000
    """
    settings = load(tmp_path, text)
    brokers = settings["kafka.bootstrap"]
    assert brokers == "broker:9093"
    assert dict(brokers.properties) == {
        "security.protocol": "SASL_SSL",
        "sasl.username": "scorer",
        "sasl.password": "hush-hush",
        "socket.keepalive.enable": "true",
        "socket.timeout.ms": "30000",
    }
    assert "hush-hush" in settings.secrets
    assert "scorer" not in settings.secrets


def test_a_variable_wins_over_the_file_and_over_the_variable_of_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("by file\n")
    text = '[kafka.client]\n"sasl.password" = "by toml"\n'
    by_file = {f"{VARIABLE}SASL_PASSWORD_FILE": str(secret)}
    assert load(tmp_path, text).properties["sasl.password"].value == "by toml"
    found = load(tmp_path, text, **by_file).properties["sasl.password"]
    assert (found.value, found.source) == ("by file", f"{VARIABLE}SASL_PASSWORD_FILE")
    found = load(tmp_path, text, **by_file, **{f"{VARIABLE}SASL_PASSWORD": "by variable\r\n"}).properties[
        "sasl.password"
    ]
    assert (found.value, found.source) == ("by variable", f"{VARIABLE}SASL_PASSWORD")


def test_a_property_whose_name_ends_in_file_is_not_read(tmp_path: Path) -> None:
    settings = load(tmp_path, **{f"{VARIABLE}SASL_OAUTHBEARER_ASSERTION_PRIVATE_KEY_FILE": "/run/key"})
    assert settings.properties["sasl.oauthbearer.assertion.private.key.file"].value == "/run/key"


@pytest.mark.parametrize("name", [*REFUSED, "error_cb"])
def test_a_property_that_the_product_sets_is_refused_in_one_message(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=f"kafka.client: {name} cannot be set .from {SETTINGS_FILE}.: ") as caught:
        load(tmp_path, f'[kafka.client]\n"{name}" = "x"\n')
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[kafka.client]\n"sasl.username" = ["a"]\n', "sasl.username"),
        ('[kafka.client]\n"Sasl Username" = "a"\n', "Sasl Username"),
        ('[kafka.client]\n"sasl.password_file" = "/nothing/here"\n', "/nothing/here"),
        ('[kafka]\nclient = "a"\n', "table"),
        ('[kafka.oauth]\ntoken_file = "a"\n', "OAUTHBEARER"),
        ('[kafka.oauth]\ntoken_file = "a"\ntoken_command = ["b"]\n', "exclude each other"),
        ('[kafka.oauth]\ntoken_command = "a \'b"\n', "balanced quotes"),
        ('[redis]\nurl = "redis://:hush@r:1"\nca_file = "/ca.pem"\n', "rediss://"),
        ('[redis]\nurl = "redis://s:su/p@r:1/0"\n', "percent-encode"),
        ('[redis]\nurl = "redis://:su#p@r:1/0"\n', "percent-encode"),
        ('[redis]\nurl = "redis://:su?p@r:1/0"\n', "percent-encode"),
        ('[redis]\nurl = "redis://r:port/0"\n', "redis.url must be"),
        ('[kafka.client]\n"ssl.ca.location" = "/ca.pem"\n', "PLAINTEXT .the default., but ssl properties are set"),
        ('[kafka.client]\n"security.protocol" = "SSL"\n"sasl.username" = "a"\n', "is SSL, but sasl properties are set"),
    ],
)
def test_a_wrong_entry_is_an_error_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        load(tmp_path, text)
    assert "hush" not in str(caught.value)


def test_properties_win_over_tuning_in_every_kind_of_client() -> None:
    brokers = Brokers("broker:1", {"linger.ms": "7", "sasl.mechanisms": "PLAIN", "fetch.max.bytes": "9"})
    for config in (client_config(brokers, "a"), producer_config(brokers, "a"), consumer_config(brokers, "a", "g")):
        assert (config["linger.ms"], config["sasl.mechanism"], config["fetch.max.bytes"]) == ("7", "PLAIN", "9")
    assert consumer_config(brokers, "a", "g")["isolation.level"] == "read_committed"
    assert client_config("broker:1", "a").keys() == client_config(Brokers("broker:1"), "a").keys()


def test_only_one_module_creates_clients() -> None:
    """So every client gets the properties, and its errors are mapped."""
    made = set()
    for path in Path(stream_scorer.kafka.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                if node.func.id in ("Consumer", "Producer", "AdminClient"):
                    made.add(path.name)
                if node.func.id in ("open_consumer", "open_producer", "open_admin"):
                    (argument,) = node.args
                    assert "config" in ast.unparse(argument), f"{path.name}: {ast.unparse(node)}"
    assert made == set()


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({"sasl.usrname": "x"}, "sasl.usrname"),
        ({"security.protocol": "TLS"}, "security.protocol"),
        ({"security.protocol": "SSL", "ssl.ca.location": "/nothing/here.pem"}, "/nothing/here.pem"),
        ({"security.protocol": "SSL", "ssl.key.pem": "secret material"}, "ssl"),
    ],
)
def test_a_property_that_librdkafka_refuses_is_one_message(properties: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        open_producer(client_config(Brokers("127.0.0.1:1", properties), "a"))
    assert "secret material" not in str(caught.value)


@pytest.mark.parametrize(
    ("addresses", "family"),
    [
        ("localhost:9092", "v4"),
        ("127.0.0.1:9092,localhost:9093", "v4"),
        ("[::1]:9092", "any"),
        ("kafka.example:9092", "any"),
        ("127.0.0.1:9092, [2001:db8::1]:9092", "any"),
    ],
)
def test_ipv6_is_used_unless_all_addresses_are_ipv4_or_local(addresses: str, family: str) -> None:
    assert client_config(addresses, "a")["broker.address.family"] == family


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("sasl.password", True),
        ("ssl.key.password", True),
        ("ssl.key.pem", True),
        ("sasl.oauthbearer.client.secret", True),
        ("sasl.oauthbearer.config", True),
        ("sasl.username", False),
        ("ssl.key.location", False),
        ("sasl.oauthbearer.token.endpoint.url", False),
    ],
)
def test_secrets_are_known_by_name(name: str, secret: bool) -> None:
    assert is_secret(name) is secret
