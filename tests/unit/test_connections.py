"""Addresses that carry how to connect, OAUTHBEARER tokens, and the monitor's credentials for the same properties."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import pytest
import redis

from stream_scorer.connections import Brokers, TokenSource, redis_address
from stream_scorer.errors import AccessDenied, SettingsError, StateUnavailable
from stream_scorer.kafka.oauth import OPAQUE_LIFETIME_S, Tokens, parse_token
from stream_scorer.monitor.credentials import credentials
from stream_scorer.settings import SETTINGS_FILE, load_settings
from stream_scorer.state.client import connect, hide_password, mapped_errors


def jwt(**claims: object) -> str:
    head, body = (base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in ({}, claims))
    return f"{head}.{body}.signature"


def test_redis_gets_user_password_and_tls_files() -> None:
    url = redis_address(
        "rediss://old:gone@[::1]:7000/2",
        username="scorer",
        password="p@ss/word",
        ca_file="/etc/ca files/ca.pem",
        cert_file="/c.pem",
        key_file="/k.pem",
    )
    client = connect(url)
    options = client.connection_pool.connection_kwargs
    assert (options["host"], options["port"], options["db"]) == ("::1", 7000, 2)
    assert (options["username"], options["password"]) == ("scorer", "p@ss/word")
    assert (options["ssl_ca_certs"], options["ssl_certfile"]) == ("/etc/ca files/ca.pem", "/c.pem")
    assert options["ssl_keyfile"] == "/k.pem"
    assert hide_password(url) == "rediss://[::1]:7000/2"
    assert redis_address("redis://r:1/0") == "redis://r:1/0"


def test_a_server_without_resp3_is_named_and_the_password_that_it_quotes_is_not() -> None:
    quoted = redis.ResponseError("unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `scorer`, `p@ss`, ")
    with pytest.raises(StateUnavailable, match="Redis 6 or later") as caught, mapped_errors("redis://scorer:x@r/0"):
        raise quoted
    assert caught.value.message == "Redis at redis://r:6379/0 does not accept the command HELLO 3"
    assert caught.value.__suppress_context__


def test_the_settings_supply_credentials_that_are_not_in_the_text(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("hush\n")
    (tmp_path / SETTINGS_FILE).write_text('[mlflow]\nurl = "https://m:1"\nusername = "scorer"\nca_file = "/ca.pem"\n')
    environment = {"STREAM_SCORER_MLFLOW_PASSWORD_FILE": str(tmp_path / "password")}
    registry = load_settings({}, environment=environment, directory=tmp_path)["mlflow.url"]
    assert registry == "https://m:1"
    assert (registry.username, registry.password, registry.ca_file) == ("scorer", "hush", "/ca.pem")
    assert "hush" not in repr(registry)


def test_a_jwt_brings_its_expiry_and_subject() -> None:
    token = parse_token(jwt(exp=1_900, sub="scorer"), now=1_000)
    assert (token.expires_at, token.principal) == (1_900, "scorer")
    assert parse_token(json.dumps({"access_token": "abc", "expires_in": 60}), now=1_000).expires_at == 1_060
    assert parse_token("opaque", now=1_000).expires_at == 1_000 + OPAQUE_LIFETIME_S
    assert parse_token("a.b.c", now=1_000).expires_at == 1_000 + OPAQUE_LIFETIME_S


@pytest.mark.parametrize("text", ["", "two words", "{}", '{"access_token": 1}', jwt(exp=999)])
def test_a_token_that_cannot_be_used_is_refused(text: str) -> None:
    with pytest.raises(AccessDenied) as caught:
        parse_token(text, now=1_000)
    assert not text or text not in str(caught.value)


def test_a_token_is_fetched_again_after_most_of_its_lifetime(tmp_path: Path) -> None:
    file, now = tmp_path / "token", [1_000.0]
    tokens = Tokens(TokenSource(file=str(file)), lambda: now[0])
    file.write_text(jwt(exp=2_000, sub="first"))
    assert tokens.get().principal == "first"
    file.write_text(jwt(exp=3_000, sub="second"))
    now[0] = 1_799
    assert tokens.get().principal == "first"
    now[0] = 1_800
    assert tokens.get().principal == "second"


def test_a_token_command_runs_without_a_shell(tmp_path: Path) -> None:
    command = (sys.executable, "-c", "import sys; print(sys.argv[1])", "$(id)`id`")
    assert Tokens(TokenSource(command=command)).get().value == "$(id)`id`"


@pytest.mark.parametrize("command", [("/nothing/here",), (sys.executable, "-c", "print('hush'); exit(3)")])
def test_a_token_command_that_fails_is_one_message_without_its_output(command: tuple[str, ...]) -> None:
    with pytest.raises(AccessDenied, match=command[0]) as caught:
        Tokens(TokenSource(command=command)).get()
    assert "hush" not in str(caught.value)


def test_the_monitor_uses_the_same_credentials() -> None:
    assert credentials("broker:1") is None
    assert credentials(Brokers("broker:1")) is None
    found = credentials(
        Brokers(
            "broker:1",
            {
                "security.protocol": "sasl_ssl",
                "sasl.mechanism": "SCRAM-SHA-512",
                "sasl.username": "monitor",
                "sasl.password": "hush",
                "linger.ms": "5",
            },
        )
    )
    assert (found.protocol.value, found.mechanism.value) == ("SASL_SSL", "SCRAM-SHA-512")
    assert (found.username, found.password) == ("monitor", "hush")
    assert "hush" not in repr(found)
    assert credentials(Brokers("broker:1", {"security.protocol": "SSL"})).context.check_hostname


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({"security.protocol": "SSL", "ssl.crl.location": "/crl"}, "ssl.crl.location"),
        ({"security.protocol": "SASL_SSL", "sasl.mechanism": "GSSAPI"}, "GSSAPI"),
        ({"security.protocol": "SASL_SSL", "sasl.mechanism": "OAUTHBEARER"}, "token"),
        ({"security.protocol": "SSL", "ssl.ca.location": "/nothing/here"}, "No such file"),
    ],
)
def test_the_monitor_refuses_what_it_cannot_use(properties: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        credentials(Brokers("broker:1", properties))


def test_a_token_that_cannot_be_renewed_is_used_until_it_expires(tmp_path: Path) -> None:
    file, now = tmp_path / "token", [1_000.0]
    tokens = Tokens(TokenSource(file=str(file)), lambda: now[0])
    file.write_text(jwt(exp=2_000, sub="first"))
    tokens.get()
    file.unlink()
    now[0] = 1_900
    assert tokens.get().principal == "first"
    now[0] = 2_000
    with pytest.raises(AccessDenied, match="No such file"):
        tokens.get()
