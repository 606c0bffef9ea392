"""An independent consumer that reads only committed records and measures the arrival time of each.

Run as ``arrivals.py BOOTSTRAP TOPIC RECORDS SECONDS`` (RECORDS: lines that begin with an event id and a tab). It starts
at the end of the topic and prints ``ready``. After the last id, or after SECONDS, it prints one JSON line and ends: the
arrival time per record (nanoseconds of CLOCK_MONOTONIC, which all processes share), -1 if it never arrived.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path

import msgspec
from confluent_kafka import Consumer, TopicPartition


class _Event(msgspec.Struct):
    event_id: str


def main(bootstrap: str, topic: str, path: str, seconds: str) -> int:
    """Measure arrivals until all records have arrived or the time is up."""
    ids = [line.partition(b"\t")[0].decode() for line in Path(path).read_bytes().splitlines()]
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "broker.address.family": "v4",
            "group.id": "bench-arrivals",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 500,
            "fetch.min.bytes": 1,
        }
    )
    partitions = sorted(consumer.list_topics(topic, 10).topics[topic].partitions)
    places = [TopicPartition(topic, number) for number in partitions]
    # From explicit offsets, not from "the end": librdkafka would resolve that later, maybe after the first record.
    consumer.assign([TopicPartition(topic, p.partition, consumer.get_watermark_offsets(p, 10)[1]) for p in places])
    consumer.poll(0.2)
    decode = msgspec.json.Decoder(_Event).decode
    missing, seen = set(ids), {}
    gc.disable()
    print("ready", flush=True)  # noqa: T201 - standard output carries the result
    give_up = time.monotonic() + float(seconds)
    while missing and time.monotonic() < give_up:
        messages = consumer.consume(1, 0.1)
        if messages:
            messages += consumer.consume(9_999, 0)
        now = time.monotonic_ns()
        for message in messages:
            if message.error() is not None:
                continue  # librdkafka retries; records that never arrive are reported as missing
            event_id = decode(message.value() or b"").event_id
            if event_id in missing:
                missing.discard(event_id)
                seen[event_id] = now
    consumer.close()
    print(json.dumps([seen.get(event_id, -1) for event_id in ids]))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
