"""Common librdkafka settings of all clients, each with its reason. Properties that the user sets win over these."""

from __future__ import annotations

import ipaddress
import logging
from typing import Any

from stream_scorer.connections import Brokers
from stream_scorer.kafka.oauth import tokens_of

# More than the 5 MB of a malicious record with its headers. Broker and topics have the same bound.
MAX_MESSAGE_BYTES = 10 * 1024 * 1024
# What a topic takes that was created without a limit of its own.
DEFAULT_MESSAGE_BYTES = 1024 * 1024

_log = logging.getLogger("stream_scorer.kafka.librdkafka")


def client_config(bootstrap: str, client_id: str) -> dict[str, Any]:
    """Settings of all clients."""
    return _with_properties(_client_config(bootstrap, client_id), bootstrap)


def _client_config(bootstrap: str, client_id: str) -> dict[str, Any]:
    return {
        "bootstrap.servers": str(bootstrap),
        "client.id": client_id,
        "logger": _log,
        "log.connection.close": False,
        "broker.address.family": _address_family(bootstrap),
        "message.max.bytes": MAX_MESSAGE_BYTES,
        # A restarting broker answers again within seconds. The default of up to 10 s between attempts would double its
        # outage.
        "reconnect.backoff.max.ms": 1_000,
        "topic.metadata.refresh.interval.ms": 10_000,
        # By default, a producer or admin client that only asks about a topic creates it, where the broker permits that:
        # with the broker's number of partitions and a retention that loses commands.
        "allow.auto.create.topics": False,
    }


def _with_properties(config: dict[str, Any], bootstrap: str) -> dict[str, Any]:
    """`config` with the properties that the address carries."""
    if not isinstance(bootstrap, Brokers):
        return config
    # librdkafka has two names for this property; with both, the later one would win.
    known = {"sasl.mechanisms": "sasl.mechanism"}
    config = config | {known.get(name, name): value for name, value in bootstrap.properties.items()}
    return config | ({"oauth_cb": tokens_of(bootstrap.tokens).callback} if bootstrap.tokens else {})


def _address_family(bootstrap: str) -> str:
    """``v4`` for the local machine and for IPv4 addresses: `localhost` often has an IPv6 address without a listener."""
    hosts = [address.strip().rpartition(":")[0] for address in bootstrap.split(",")]
    return "v4" if all(host == "localhost" or _is_v4(host) for host in hosts) else "any"


def _is_v4(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 4
    except ValueError:
        return False


def producer_config(bootstrap: str, client_id: str) -> dict[str, Any]:
    """Settings of an idempotent producer."""
    config = _client_config(bootstrap, client_id) | {
        "enable.idempotence": True,
        "acks": "all",
        "linger.ms": 1,
        "compression.type": "lz4",
        "batch.size": 1_000_000,
        "queue.buffering.max.messages": 1_000_000,
        "queue.buffering.max.kbytes": 262_144,
        # The default partitioner of Java clients, so that producers in other languages select the same partition.
        "partitioner": "murmur2_random",
        # The default is 100 ms, which a transaction waits that starts right after another one
        # (CONCURRENT_TRANSACTIONS).
        "retry.backoff.ms": 2,
        "retry.backoff.max.ms": 200,
    }
    return _with_properties(config, bootstrap)


# Maximum time in ms that a broker holds a fetch request without records. For sequential reading, librdkafka's default
# of 500 is best: the broker answers at once when a record arrives, and idle partitions need fewer requests. A client
# that pauses and seeks must wait for the pending request, so it uses this shorter time.
SHORT_FETCH_WAIT = {"fetch.wait.max.ms": 10}


# A follower is started again and again at some past time. With the prefetch of `consumer_config` each start would take
# some 100 MB for a moment. A small queue is full often; the next fetch must not wait for librdkafka's default of 1 s.
SMALL_PREFETCH = {
    "queued.max.messages.kbytes": 4_096,
    "fetch.message.max.bytes": 262_144,
    "fetch.max.bytes": MAX_MESSAGE_BYTES,
    "fetch.queue.backoff.ms": 5,
}


def consumer_config(bootstrap: str, client_id: str, group: str) -> dict[str, Any]:
    """Settings of a consumer that reads committed records only and never commits automatically."""
    config = _client_config(bootstrap, client_id) | {
        "group.id": group,
        "isolation.level": "read_committed",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "fetch.max.bytes": 52_428_800,
        "fetch.message.max.bytes": MAX_MESSAGE_BYTES,
        "receive.message.max.bytes": 104_857_600,
        # Prefetch bound: a few seconds of backlog at full speed. librdkafka's default is 64 MB per partition.
        "queued.max.messages.kbytes": 32_768,
    }
    return _with_properties(config, bootstrap)
