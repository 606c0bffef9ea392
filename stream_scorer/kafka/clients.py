"""Creates every librdkafka client of the product, and finds out why a cluster refuses one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from stream_scorer.client_properties import is_secret
from stream_scorer.connections import Brokers
from stream_scorer.errors import AccessDenied, SettingsError
from stream_scorer.kafka.config import client_config
from stream_scorer.kafka.tls import find_tls_problem

T = TypeVar("T")
# librdkafka connects at once and reports a refusal within milliseconds, a slow broker within a second or two.
REFUSAL_TIMEOUT_S = 5.0
_REFUSALS = {
    KafkaError._AUTHENTICATION: "the broker does not accept the credentials",
    KafkaError.SASL_AUTHENTICATION_FAILED: "the broker does not accept the credentials",
    KafkaError._SSL: "the TLS connection fails",
}


def open_consumer(config: Mapping[str, Any]) -> Consumer:
    """A consumer with `config`.

    Raises:
        SettingsError: librdkafka refuses a property. AccessDenied: there is no OAUTHBEARER token.
    """
    return _open(Consumer, config)


def open_producer(config: Mapping[str, Any]) -> Producer:
    """A producer with `config`. Raises as `open_consumer`."""
    return _open(Producer, config)


def open_admin(config: Mapping[str, Any]) -> AdminClient:
    """An admin client with `config`. Raises as `open_consumer`."""
    return _open(AdminClient, config)


def _open(kind: Callable[[dict[str, Any]], T], config: Mapping[str, Any]) -> T:
    if "oauth_cb" in config:
        config["oauth_cb"]("")  # the client would wait for the token and not report why it does not come
    try:
        return kind(dict(config))
    except (KafkaException, ValueError, TypeError) as exception:
        error = exception.args[0] if exception.args else exception
        reason = error.str() if isinstance(error, KafkaError) else str(error)
        for name, value in config.items():
            if is_secret(name) and isinstance(value, str) and value:
                reason = reason.replace(value, "***")
        unreadable = [
            str(value)
            for name, value in config.items()
            if name.startswith("ssl.") and name.endswith(".location") and not os.access(str(value), os.R_OK)
        ]
        if unreadable:
            reason = f"cannot read {', '.join(unreadable)}"
        raise SettingsError(
            f"a property of [kafka.client] is refused: {reason}",
            hint="librdkafka's CONFIGURATION.md lists all properties; docs/security.md has examples.",
        ) from None


def find_refusal(bootstrap: str) -> AccessDenied | None:
    """Why the brokers refuse this client: credentials or certificate. None if neither is the cause.

    A call that fails only reports that no broker answers; the cause arrives at the error callback. So this connects
    once more and waits for it, at most `REFUSAL_TIMEOUT_S`.
    """
    if not isinstance(bootstrap, Brokers) or not bootstrap.properties:
        return None
    protocol = bootstrap.properties.get("security.protocol", "").upper()
    if protocol in ("SSL", "SASL_SSL"):
        for address in bootstrap.split(","):
            if problem := find_tls_problem(address, bootstrap.properties):
                return AccessDenied(
                    f"Kafka at {bootstrap}: {problem}",
                    hint="Check ssl.ca.location, ssl.certificate.location and ssl.key.location in [kafka.client].",
                )
    found: list[KafkaError] = []
    probe = open_producer(client_config(bootstrap, "stream-scorer-probe") | {"error_cb": found.append})
    deadline = time.monotonic() + REFUSAL_TIMEOUT_S
    while time.monotonic() < deadline:
        probe.poll(0.1)
        for error in found:
            if error.code() in _REFUSALS:
                return AccessDenied(
                    f"Kafka at {bootstrap}: {_REFUSALS[error.code()]}: {_cause(error.str())}",
                    hint="Check [kafka.client] and its secrets; `stream-scorer doctor` prints the sources.",
                )
    return None


def _cause(text: str) -> str:
    """`text` of librdkafka without the address of the connection in front and the times behind."""
    text = text.partition("/bootstrap: ")[2] or text
    return text.partition(" (after ")[0].strip().rstrip(".")
