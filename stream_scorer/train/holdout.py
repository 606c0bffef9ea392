"""The record of opened holdouts: a holdout is an honest test only once, so a second opening needs a recorded reason.

Openings are lines of JSON in a file next to the training spec, which is meant to be committed with it. The line is
written before the figures are computed, so that a run that fails afterwards counts too.
"""

from __future__ import annotations

import fcntl
import os
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from stream_scorer.errors import UsageError

RECORD_NAME = "holdout-openings.jsonl"


class Opening(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One opening. Times are UTC epoch milliseconds; the holdout is ``[start, end)`` of event time.

    `data_sha256` is the digest of the event times and labels of the holdout, `training_sha256` that of the training
    spec; `reason` is empty for a first opening.
    """

    opened_at: int
    opened_by: str
    pipeline: str
    start: int
    end: int
    rows: int
    data_sha256: str
    training_sha256: str
    reason: str = ""


def read_openings(path: Path) -> list[Opening]:
    """The openings in the file at `path`, oldest first; none if there is no file. Raises `UsageError`."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error}") from None
    out = []
    for number, line in enumerate(lines, 1):
        try:
            out.append(msgspec.json.decode(line, type=Opening))
        except msgspec.DecodeError as error:
            raise UsageError(
                f"{path}: line {number} is not the record of an opening: {error}", hint="Restore the file."
            ) from None
    return out


def record_opening(path: Path, opening: Opening) -> list[Opening]:
    """Append `opening` to the file at `path`; returns the earlier openings of an overlapping holdout.

    A holdout overlaps another one if both are of the same pipeline spec and share an instant.

    Raises:
        UsageError: an overlapping holdout was opened before and `opening` has no reason, or the file is not writable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            # Two runs at once must not both find an unopened holdout.
            fcntl.flock(file, fcntl.LOCK_EX)
            earlier = [each for each in read_openings(path) if _overlap(each, opening)]
            if earlier and not opening.reason.strip():
                last = earlier[-1]
                raise UsageError(
                    f"this holdout was opened on {_day(last.opened_at)} by {last.opened_by} ({_day(last.start)} to "
                    f"{_day(last.end)}, {path})",
                    hint="A figure from a holdout that was seen before is too good. Declare a newer one, or open it "
                    'again with --reason "…", which is recorded.',
                )
            file.write(msgspec.json.encode(opening) + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error}") from None
    return earlier


def _overlap(a: Opening, b: Opening) -> bool:
    return a.pipeline == b.pipeline and a.start < b.end and b.start < a.end


def _day(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1_000, UTC):%Y-%m-%d}"
