"""Records of a topic as columns, from the messages of the client."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from confluent_kafka import Message

from stream_scorer.kafka.headers import headers_of
from stream_scorer.serde.raw import RawRecords


def records_of(topic: str, messages: Sequence[Message]) -> RawRecords:
    """The records of `messages`, which have no error and are all of `topic`."""
    return RawRecords(
        topic=topic,
        partition=np.array([m.partition() for m in messages], dtype=np.int32),
        offset=np.array([m.offset() for m in messages], dtype=np.int64),
        timestamp=np.array([m.timestamp()[1] for m in messages], dtype=np.int64),
        key=[m.key() for m in messages],
        value=[m.value() for m in messages],
        headers=[headers_of(m) for m in messages],
    )
