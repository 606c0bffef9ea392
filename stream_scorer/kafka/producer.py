"""The producer of everything that is not written in a transaction."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from confluent_kafka import KafkaError, Message

from stream_scorer.errors import BrokerUnavailable
from stream_scorer.kafka.clients import open_producer
from stream_scorer.kafka.config import producer_config
from stream_scorer.kafka.errors import as_domain_error, is_denied

# How long a full queue may take to drain before the broker counts as gone; also the default bound of `flush`.
DELIVERY_TIMEOUT_S = 60.0
_POLL_S = 0.05
_HINT = "Is it running? `stream-scorer stack status`, or check the setting `kafka.bootstrap`."


class PlainProducer:
    """An idempotent producer without transactions. Every wait has a bound. A context manager.

    A record that the broker does not take is raised as `BrokerUnavailable` by the next call. While librdkafka's queue
    is full, a call waits for it. Leaving the context flushes, unless an error is on its way out.

    Attributes:
        client: the librdkafka producer, for metadata and for subclasses.
        sent: records handed over so far. acked: those the broker has confirmed, exact after `flush`.
    """

    def __init__(
        self,
        bootstrap: str,
        client_id: str,
        *,
        settings: Mapping[str, Any] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`settings` are librdkafka's and go before those of `producer_config`."""
        self.bootstrap = bootstrap
        self.monotonic = monotonic
        reports = {"on_delivery": self._on_delivery}
        self.client = open_producer(producer_config(bootstrap, client_id) | reports | dict(settings or {}))
        self._failed = 0
        self._failure: KafkaError | None = None
        self._failed_topic = ""
        self.sent = 0

    @property
    def acked(self) -> int:
        """Records confirmed by every in-sync replica, or fewer: librdkafka counts its own events as waiting too."""
        return max(self.sent - self._failed - len(self.client), 0)

    def produce_batch(self, topic: str, partition: int, records: list[dict[str, Any]]) -> None:
        """Hand over `records` (keys `key` and `value`), in order.

        Raises:
            BrokerUnavailable: a record was given up, or the queue stayed full.
            StreamScorerError: librdkafka refuses a record.
        """
        give_up = self.monotonic() + DELIVERY_TIMEOUT_S
        while records:
            taken = self.client.produce_batch(topic, records, partition=partition)
            self.sent += taken
            if taken == len(records):
                break
            records = [record for record in records if "_error" in record]
            for record in records:
                error = record.pop("_error")
                if error.code() != KafkaError._QUEUE_FULL:
                    raise as_domain_error(error, f"write to {topic}", self.bootstrap)
            self.wait_for_room(give_up)
        self.client.poll(0)
        self.raise_failure()

    def flush(self, timeout_s: float = DELIVERY_TIMEOUT_S) -> None:
        """Wait until everything sent is confirmed. Raises `BrokerUnavailable` if it is not within `timeout_s`."""
        left = self.client.flush(timeout_s)
        self.raise_failure()
        if left:
            raise BrokerUnavailable(
                f"{self.bootstrap} did not confirm {left} records within {timeout_s:.0f} s", hint=_HINT
            )

    def close(self) -> None:
        """Drop what is still queued and let go of the broker; call `flush` first to lose nothing."""
        self.client.purge()
        self.client.flush(1.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self.close()

    def wait_for_room(self, give_up: float) -> None:
        """Let the queue drain a little. Raises `BrokerUnavailable` if the time is past `give_up`."""
        if self.monotonic() > give_up:
            raise BrokerUnavailable(f"{self.bootstrap} takes no records: the queue stays full", hint=_HINT)
        self.client.poll(_POLL_S)
        self.raise_failure()

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        if error is not None and error.code() not in (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT):
            self._failed += 1
            if self._failure is None:
                self._failure, self._failed_topic = error, message.topic() or ""

    def raise_failure(self) -> None:
        """Raise `BrokerUnavailable` if a record was given up, `AccessDenied` if an ACL forbids it."""
        if self._failure is not None:
            if is_denied(self._failure):
                raise as_domain_error(self._failure, f"write to {self._failed_topic}", self.bootstrap)
            raise BrokerUnavailable(
                f"{self.bootstrap} did not take {self._failed} records: {self._failure.str()}", hint=_HINT
            )
