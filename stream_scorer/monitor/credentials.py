"""Faust's credentials for the same properties that librdkafka gets: the windows of the monitor use aiokafka.

Properties that protect a connection and have no equivalent in aiokafka are refused, so that no connection is less
protected than it was meant to be. Other properties, such as buffer sizes, have no effect on the windows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from aiokafka.abc import AbstractTokenProvider
from faust.auth import Credentials, OAuthCredentials, SASLCredentials, SSLCredentials

from stream_scorer.connections import Brokers
from stream_scorer.errors import SettingsError
from stream_scorer.kafka.oauth import Tokens, tokens_of
from stream_scorer.kafka.tls import tls_context

MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
_USED = frozenset(
    {
        "security.protocol",
        "sasl.mechanism",
        "sasl.mechanisms",
        "sasl.username",
        "sasl.password",
        "ssl.ca.location",
        "ssl.ca.pem",
        "ssl.certificate.location",
        "ssl.certificate.pem",
        "ssl.key.location",
        "ssl.key.pem",
        "ssl.key.password",
        "ssl.endpoint.identification.algorithm",
        "enable.ssl.certificate.verification",
    }
)
_SECURITY = ("ssl.", "sasl.", "security.", "https.", "enable.ssl.", "enable.sasl.")
_log = logging.getLogger(__name__)


class TokenProvider(AbstractTokenProvider):  # type: ignore[misc]
    """aiokafka asks for a token at each connection; the token is cached, and fetched in a thread of its own."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def token(self) -> str:
        """The present token. Raises `AccessDenied`."""
        return (await asyncio.to_thread(self._tokens.get)).value


def credentials(bootstrap: str) -> Credentials | None:
    """Faust's credentials for the brokers; None for connections without TLS and SASL.

    Raises:
        SettingsError: a property has no equivalent in aiokafka, or a certificate or key cannot be read.
    """
    if not isinstance(bootstrap, Brokers):
        return None
    properties = bootstrap.properties
    check_properties(properties)
    protocol = properties.get("security.protocol", "plaintext").upper()
    if protocol == "PLAINTEXT":
        return None
    context = tls_context(properties) if protocol in ("SSL", "SASL_SSL") else None
    if protocol == "SSL":
        return SSLCredentials(context)
    mechanism = properties.get("sasl.mechanism") or properties.get("sasl.mechanisms") or "GSSAPI"
    if mechanism not in MECHANISMS:
        raise SettingsError(
            f"kafka.client: the monitor cannot use sasl.mechanism {mechanism}",
            hint=f"It supports {', '.join(MECHANISMS)}.",
        )
    if mechanism == "OAUTHBEARER":
        if not bootstrap.tokens:
            raise SettingsError(
                "kafka.client: the monitor has no source of OAUTHBEARER tokens",
                hint="Set kafka.oauth.token_command or kafka.oauth.token_file.",
            )
        return OAuthCredentials(oauth_cb=TokenProvider(tokens_of(bootstrap.tokens)), ssl_context=context)
    return SASLCredentials(
        username=properties.get("sasl.username"),
        password=properties.get("sasl.password"),
        ssl_context=context,
        mechanism=mechanism,
    )


def check_properties(properties: Mapping[str, str]) -> None:
    """Raise `SettingsError` for a property of the connection's security without an equivalent; log the other ones."""
    other = sorted(name for name in properties if name not in _USED)
    refused = [name for name in other if name.startswith(_SECURITY)]
    if refused:
        raise SettingsError(
            f"kafka.client: the monitor cannot use {', '.join(refused)}",
            hint="Its windows use aiokafka, which has no equivalent; docs/security.md lists the supported properties.",
        )
    if other:
        _log.info("these properties of kafka.client have no effect on the windows: %s", ", ".join(other))
