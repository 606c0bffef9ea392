"""The headers of a record. A producer in another language may send names that are not UTF-8."""

from __future__ import annotations

import logging
from functools import cache
from typing import cast

from confluent_kafka import Message

from stream_scorer.serde.raw import Headers

_log = logging.getLogger(__name__)


def headers_of(message: Message) -> Headers | None:
    """The headers of `message`; None without any, and if a name is not UTF-8: the client cannot read them then."""
    try:
        return cast(Headers | None, message.headers())
    except (SystemError, UnicodeDecodeError):
        _report(message.topic(), message.partition())
        return None


@cache
def _report(topic: str | None, partition: int | None) -> None:
    _log.warning(
        "%s[%s] has records with header names that are not UTF-8: their headers are left out", topic, partition
    )
