"""An open-loop load generator: each record has a due time that does not depend on the consumers.

Run as ``load.py BOOTSTRAP TOPIC RECORDS RATE`` (RECORDS: lines of id, key and value, separated by tabs). It prints
``ready``, reads the due time of the first record from standard input (nanoseconds of CLOCK_MONOTONIC, which all
processes share), and prints one JSON line at the end: the number of sent records and the maximum lateness.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

# Records due within a tick are sent together: a shorter tick would take a tenth of a core from the measured processes.
TICK_S = 0.001


def main(bootstrap: str, topic: str, path: str, per_second: str) -> int:
    """Send all records; return 1 if the broker did not confirm all of them."""
    records = [line.split(b"\t") for line in Path(path).read_bytes().splitlines()]
    rate = float(per_second)
    failures: list[str] = []

    def note_failure(error: Any, _message: Any) -> None:
        if error is not None:
            failures.append(str(error))

    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "broker.address.family": "v4",
            "enable.idempotence": True,
            "linger.ms": 5,  # the default of Kafka 4's own producer (KIP-1030)
            "compression.type": "lz4",
            "partitioner": "murmur2_random",
            "delivery.report.only.error": True,
            "on_delivery": note_failure,
        }
    )
    producer.list_topics(topic, 10)
    print("ready", flush=True)  # noqa: T201 - standard output carries the result
    start_s = int(sys.stdin.readline()) / 1e9
    sent, behind_s = 0, 0.0
    while sent < len(records):
        elapsed = time.monotonic() - start_s
        due = min(int(elapsed * rate) + 1, len(records)) if elapsed >= 0 else 0
        if sent < due:
            behind_s = max(behind_s, elapsed - sent / rate)
        for _, key, value in records[sent:due]:
            producer.produce(topic, value, key)
        sent = max(sent, due)
        producer.poll(0)
        time.sleep(max(TICK_S, -elapsed))
    left = producer.flush(30.0)
    if left or failures:
        sys.stderr.write(f"{left} records unconfirmed, {len(failures)} refused: {failures[:1]}\n")
        return 1
    print(json.dumps({"sent": sent, "behind_ms": round(behind_s * 1e3, 3)}))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
