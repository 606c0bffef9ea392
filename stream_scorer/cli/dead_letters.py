"""Dead letters by error code: counts, and the newest examples with where they came from."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import msgspec

from stream_scorer.cli.formatting import when
from stream_scorer.cli.topic_io import ReadRecord, Shown, columns, text_header


class Letter(msgspec.Struct, frozen=True):
    """One dead letter, without its value unless that may be shown. `source` is ``topic:partition:offset``."""

    path: str
    message: str
    source: str
    timestamp: int
    partition: int
    offset: int
    about: dict[str, Any]


class LetterGroup(msgspec.Struct, frozen=True):
    """The dead letters of one error code: how many, and the newest few, newest first."""

    code: str
    count: int
    examples: list[Letter]


def group_letters(
    records: Iterable[ReadRecord], shown: Shown, *, examples: int, code: str | None = None
) -> list[LetterGroup]:
    """Group `records` of the dead-letter topic by code, most frequent first; memory grows with `examples` only."""
    counts: dict[str, int] = {}
    newest: dict[str, deque[ReadRecord]] = {}
    for record in records:
        found = text_header(record.headers, "error.code") or "(no code)"
        if code is not None and found != code:
            continue
        counts[found] = counts.get(found, 0) + 1
        newest.setdefault(found, deque(maxlen=examples)).append(record)
    order = sorted(counts, key=lambda name: (-counts[name], name))
    return [LetterGroup(name, counts[name], [_letter(r, shown) for r in reversed(newest[name])]) for name in order]


def letter_lines(groups: list[LetterGroup]) -> list[str]:
    """A table for people: one line a code with its newest example, further examples below it."""
    if not groups:
        return []
    rows = [["count", "code", "path", "from", "time (UTC)", "message"]]
    for group in groups:
        rows.append([str(group.count), group.code, *_cells(group.examples[0])] if group.examples else
                    [str(group.count), group.code, "", "", "", ""])  # fmt: skip
        rows += [["", "", *_cells(letter)] for letter in group.examples[1:]]
    return columns(rows)


def _cells(letter: Letter) -> list[str]:
    content = {name: value for name, value in letter.about.items() if name != "bytes"}
    told = "  " + msgspec.json.encode(next(iter(content.values()))).decode() if content else ""
    return [letter.path or "-", letter.source, when(letter.timestamp), letter.message + told]


def _letter(record: ReadRecord, shown: Shown) -> Letter:
    headers = record.headers
    return Letter(
        path=text_header(headers, "error.path"),
        message=text_header(headers, "error.message"),
        source=":".join(text_header(headers, f"source.{part}") for part in ("topic", "partition", "offset")),
        timestamp=record.timestamp_ms,
        partition=record.partition,
        offset=record.offset,
        about=shown.value(record.value),
    )
