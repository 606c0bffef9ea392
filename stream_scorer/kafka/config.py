"""librdkafka settings that every client shares, each with its reason."""

from __future__ import annotations

import logging
from typing import Any

# Above the 5 MB of a hostile record with its headers; the broker and the topics carry the same bound.
MAX_MESSAGE_BYTES = 10 * 1024 * 1024

_log = logging.getLogger("stream_scorer.kafka.librdkafka")


def client_config(bootstrap: str, client_id: str) -> dict[str, Any]:
    """Settings of any client."""
    return {
        "bootstrap.servers": bootstrap,
        "client.id": client_id,
        "logger": _log,
        "log.connection.close": False,
        "broker.address.family": "v4",
        "message.max.bytes": MAX_MESSAGE_BYTES,
        # A broker that restarts is back in seconds; the default of up to 10 s between tries would double its outage.
        "reconnect.backoff.max.ms": 1_000,
        "topic.metadata.refresh.interval.ms": 10_000,
    }


def producer_config(bootstrap: str, client_id: str) -> dict[str, Any]:
    """Settings of an idempotent producer."""
    return client_config(bootstrap, client_id) | {
        "enable.idempotence": True,
        "acks": "all",
        "linger.ms": 1,
        "compression.type": "lz4",
        "batch.size": 1_000_000,
        "queue.buffering.max.messages": 1_000_000,
        "queue.buffering.max.kbytes": 262_144,
        # Java's default partitioner: a producer in another language puts a key on the same partition.
        "partitioner": "murmur2_random",
        # 100 ms by default: a transaction begun right after the last meets CONCURRENT_TRANSACTIONS and waits it out.
        "retry.backoff.ms": 2,
        "retry.backoff.max.ms": 200,
    }


# How long a broker may hold a request while there is nothing to send, in ms. Whoever reads on in order does best with
# librdkafka's 500: the first record is answered at once either way, with fewer requests while there is none. Who pauses
# and seeks has to wait for the request under way.
SHORT_FETCH_WAIT = {"fetch.wait.max.ms": 10}


def consumer_config(bootstrap: str, client_id: str, group: str) -> dict[str, Any]:
    """Settings of a consumer that sees committed records only and never commits by itself."""
    return client_config(bootstrap, client_id) | {
        "group.id": group,
        "isolation.level": "read_committed",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "fetch.max.bytes": 52_428_800,
        "fetch.message.max.bytes": MAX_MESSAGE_BYTES,
        "receive.message.max.bytes": 104_857_600,
        # Prefetch bound: a few seconds of backlog at full speed, not the librdkafka default of 64 MB a partition.
        "queued.max.messages.kbytes": 32_768,
    }
