"""Addresses that carry how to connect. Each is a text, the address alone, so messages and logs contain no secret.

`stream_scorer.settings` makes them. Code that only passes an address on need not know about security; the one place
that connects reads the attributes. A copy as plain `str` loses them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self
from urllib.parse import SplitResult, quote, urlsplit, urlunsplit

from stream_scorer.errors import SettingsError

_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class TokenSource:
    """Where OAUTHBEARER tokens come from: the output of `command` (no shell), or else the content of `file`."""

    command: tuple[str, ...] = ()
    file: str = ""

    def __bool__(self) -> bool:
        return bool(self.command or self.file)


class Brokers(str):
    """Bootstrap addresses of Kafka, as ``host:port,host:port``.

    Attributes:
        properties: librdkafka properties of every client. tokens: the source of OAUTHBEARER tokens.
    """

    properties: Mapping[str, str]
    tokens: TokenSource

    def __new__(
        cls, addresses: str, properties: Mapping[str, str] = _NOTHING, tokens: TokenSource | None = None
    ) -> Self:
        """See the class."""
        self = super().__new__(cls, addresses)
        self.properties = MappingProxyType(dict(properties))
        self.tokens = tokens or TokenSource()
        return self


class RegistryAddress(str):
    """URL of the MLflow registry, without credentials: these are `username`, `password` and `ca_file`.

    `refusal` is the reason why there is no URL, if the one of the local stack must not be used.
    """

    username: str
    password: str
    ca_file: str
    refusal: SettingsError | None

    def __new__(
        cls, url: str, username: str = "", password: str = "", ca_file: str = "", refusal: SettingsError | None = None
    ) -> Self:
        """See the class."""
        self = super().__new__(cls, url)
        self.username, self.password, self.ca_file, self.refusal = username, password, ca_file, refusal
        return self


def without_credentials(url: str) -> str:
    """The http `url` without user, password, query and a slash at its end."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


def _redis_parts(url: str) -> SplitResult:
    """The parts of `url`. A password with an unescaped "/", "#" or "?" would become a part of another kind."""
    try:
        parts = urlsplit(url)
        _port = parts.port
    except ValueError:
        parts = urlsplit("")
    misplaced = "@" in parts.path + parts.query + parts.fragment and parts.scheme != "unix"
    if "://" not in url:
        raise ValueError("an address that begins with redis:// (or rediss:// for TLS), as redis://host:6379/0")
    if parts.scheme not in ("redis", "rediss", "unix") or misplaced:
        raise ValueError(
            "an address as redis://user:password@host:6379/0; percent-encode special characters of the password, "
            "or use redis.password"
        )
    return parts


def redis_address(
    url: str, *, username: str = "", password: str = "", ca_file: str = "", cert_file: str = "", key_file: str = ""
) -> str:
    """`url` with the given user, password and TLS files in it, where redis-py expects them. They win over the URL's.

    Raises:
        ValueError: the URL cannot be parsed, or TLS files are given, but it does not begin with ``rediss://``. The
            message does not contain the URL.
    """
    parts = _redis_parts(url)
    files = {"ssl_ca_certs": ca_file, "ssl_certfile": cert_file, "ssl_keyfile": key_file}
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in files.items() if value)
    if not query and not username and not password:
        return url
    if query and parts.scheme != "rediss":
        raise ValueError("an address that begins with rediss://, because a TLS file is set")
    credentials, _at, host = parts.netloc.rpartition("@")
    user, _colon, secret = credentials.partition(":")
    user, secret = quote(username, safe="") or user, quote(password, safe="") or secret
    netloc = f"{user}:{secret}@{host}" if user or secret else host
    return urlunsplit((parts.scheme, netloc, parts.path, "&".join(filter(None, (parts.query, query))), ""))
