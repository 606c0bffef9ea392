"""Read a topic for display: records with headers, live or up to the end, and the redaction of sensitive data."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from stream_scorer.console import plain
from stream_scorer.errors import BrokerUnavailable
from stream_scorer.kafka.follower import RecordFollower
from stream_scorer.records import NOT_A_RECORD
from stream_scorer.settings import Settings
from stream_scorer.spec import load_spec
from stream_scorer.spec.model import CheckedSpec

# Topics with the user's own values, which can contain fields that the spec declares sensitive.
USER_TOPICS = ("transactions", "labels", "transactions.dlq")
_POLL_S = 0.5
# Maximum time without an answer. A restarting broker answers again within half a minute.
SILENCE_S = 40.0


class ReadRecord(NamedTuple):
    """One committed record. `headers` has the last value per name; `timestamp_ms` is the Kafka timestamp."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    headers: dict[str, bytes | None]


class TopicReader(RecordFollower):
    """A `RecordFollower` that reads up to the end and returns headers by name."""

    NOTES_ENDS = True

    def read(self, max_records: int = 1_000, timeout_s: float = 0.5) -> list[ReadRecord]:
        """Up to `max_records` records; waits at most `timeout_s` for the first one.

        Raises:
            StreamScorerError: the topic was deleted, or the broker refuses. An unavailable broker is not an error.
        """
        return [
            ReadRecord(r.partition, r.offset, r.key, r.value, r.timestamp_ms, dict(r.headers or ()))
            for r in self.poll(max_records, timeout_s)
        ]

    def read_to_end(self) -> Iterator[ReadRecord]:
        """Every record up to the present end of the topic.

        Offsets without a record, such as transaction markers, count as read when the broker reports the end after them.

        Raises:
            BrokerUnavailable: the broker did not answer for `SILENCE_S`.
        """
        ends = self.ends()
        left = {p: end for p, end in ends.items() if end > self.starts.get(p, 0)}
        answered_at = time.monotonic()
        while left:
            self.reached.clear()
            records = self.read(timeout_s=_POLL_S)
            for record in records:
                end = ends.get(record.partition, 0)
                if record.offset < end:
                    yield record
                if record.offset + 1 >= end:
                    left.pop(record.partition, None)
            if records or self.reached:
                answered_at = time.monotonic()
                self._drop_finished(left)
            elif time.monotonic() - answered_at > SILENCE_S:
                raise BrokerUnavailable(f"the broker at {self._bootstrap} does not answer: read {self._topic}")

    def _drop_finished(self, left: dict[int, int]) -> None:
        """Remove the partitions that are read to their end."""
        behind = [p for p, offset in self.reached.items() if p in left and offset < left[p]]
        # A follower, and a new leader, know the end of a partition a moment late. So the leader is asked again.
        ends = self.ends() if behind else {}
        for partition, offset in self.reached.items():
            if partition in left and offset >= min(left[partition], ends.get(partition, left[partition])):
                del left[partition]


def quiet_client() -> None:
    """Silence librdkafka's log, for commands that end at the first failure and print one message of their own."""
    logging.getLogger("stream_scorer.kafka.librdkafka").setLevel(logging.CRITICAL)


def optional_spec(settings: Settings) -> CheckedSpec | None:
    """The spec of the setting `scorer.spec`, None if that is not set. Raises `SpecError`."""
    return load_spec(settings["scorer.spec"]) if settings["scorer.spec"] else None


class Redaction:
    """Decides which of the user's data may be printed: values only with `values`, and never a sensitive field.

    Without a spec, no field counts as sensitive, and `values` prints all of them.
    """

    def __init__(self, checked: CheckedSpec | None, *, values: bool) -> None:
        self.values = values
        self._sensitive = frozenset(checked.sensitive_fields) if checked else frozenset()
        entity = checked.spec.entities.get(checked.spec.partition_entity or "") if checked else None
        # The key is the id of the partition entity, so it is as sensitive as that field.
        self._hides_key = entity is not None and entity.field in self._sensitive

    def key(self, key: bytes | None) -> str | None:
        """The key as text, or None if there is none or it is sensitive."""
        return None if key is None or self._hides_key else plain(key.decode("utf-8", "backslashreplace"))

    def document(self, value: bytes | None) -> Any:
        """The JSON document in `value` without sensitive fields; None if `value` is not JSON."""
        try:
            return self._without_sensitive(msgspec.json.decode(value or b""))
        except NOT_A_RECORD:
            return None

    def value(self, value: bytes | None) -> dict[str, Any]:
        """The description of a user's value: always its size, and its content as far as it may be printed."""
        about: dict[str, Any] = {"bytes": len(value or b"")}
        if not self.values or value is None:
            return about
        document = self.document(value)
        if document is not None:
            about["value"] = document
        elif self._sensitive:
            about["withheld"] = "the value is not JSON, so sensitive fields cannot be removed from it"
        else:
            try:
                about["value"] = value.decode("utf-8")
            except UnicodeDecodeError:
                about["value_base64"] = base64.b64encode(value).decode()
        return about

    def _without_sensitive(self, node: Any) -> Any:
        if not self._sensitive:
            return node
        if isinstance(node, dict):
            return {k: self._without_sensitive(v) for k, v in node.items() if k not in self._sensitive}
        if isinstance(node, list):
            return [self._without_sensitive(v) for v in node]
        return node


def text_header(headers: dict[str, bytes | None], name: str) -> str:
    """A header as printable text, empty if it is absent."""
    return plain((headers.get(name) or b"").decode("utf-8", "backslashreplace"))
