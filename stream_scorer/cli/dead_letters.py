"""Dead letters by error code: counts, and the newest examples with their source coordinates."""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush
from typing import Any

import msgspec

from stream_scorer.cli.formatting import when
from stream_scorer.cli.topic_io import ReadRecord, Redaction, text_header
from stream_scorer.console import columns


class DeadLetter(msgspec.Struct, frozen=True):
    """One dead letter. `source` is ``topic:partition:offset``; `about` is what `Redaction` allows of the value."""

    path: str
    message: str
    source: str
    timestamp: int
    partition: int
    offset: int
    about: dict[str, Any]


class DeadLetterGroup(msgspec.Struct, frozen=True):
    """The number of dead letters with one error code, and some examples, newest first."""

    code: str
    count: int
    examples: list[DeadLetter]


def group_dead_letters(
    records: Iterable[ReadRecord], redaction: Redaction, *, examples: int, code: str | None = None
) -> list[DeadLetterGroup]:
    """Group `records` of the dead-letter topic by code, most frequent first. Keeps `examples` records per code."""
    counts: dict[str, int] = {}
    # Heaps with the oldest example first: partitions are read interleaved, not in the order of time.
    newest: dict[str, list[tuple[int, int, ReadRecord]]] = {}
    for record in records:
        found = text_header(record.headers, "error.code") or "(no code)"
        if code is not None and found != code:
            continue
        counts[found] = counts.get(found, 0) + 1
        heap = newest.setdefault(found, [])
        heappush(heap, (record.timestamp_ms, counts[found], record))
        if len(heap) > examples:
            heappop(heap)
    order = sorted(counts, key=lambda name: (-counts[name], name))
    return [
        DeadLetterGroup(
            name, counts[name], [_dead_letter(each[-1], redaction) for each in sorted(newest[name], reverse=True)]
        )
        for name in order
    ]


def dead_letter_lines(groups: list[DeadLetterGroup]) -> list[str]:
    """A text table: one line per code with its newest example, further examples below it."""
    if not groups:
        return []
    rows = [["count", "code", "path", "from", "time (UTC)", "message"]]
    for group in groups:
        rows.append([str(group.count), group.code, *_cells(group.examples[0])] if group.examples else
                    [str(group.count), group.code, "", "", "", ""])  # fmt: skip
        rows += [["", "", *_cells(letter)] for letter in group.examples[1:]]
    return columns(rows)


def _cells(letter: DeadLetter) -> list[str]:
    content = {name: value for name, value in letter.about.items() if name != "bytes"}
    value = "  " + msgspec.json.encode(next(iter(content.values()))).decode() if content else ""
    return [letter.path or "-", letter.source, when(letter.timestamp), letter.message + value]


def _dead_letter(record: ReadRecord, redaction: Redaction) -> DeadLetter:
    headers = record.headers
    return DeadLetter(
        path=text_header(headers, "error.path"),
        message=text_header(headers, "error.message"),
        source=":".join(text_header(headers, f"source.{part}") for part in ("topic", "partition", "offset")),
        timestamp=record.timestamp_ms,
        partition=record.partition,
        offset=record.offset,
        about=redaction.value(record.value),
    )
