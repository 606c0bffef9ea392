"""Which records of a history the decoder rejects: a warning, or an error if they are too many to train without."""

from __future__ import annotations

import logging
from collections import Counter

from stream_scorer.errors import RecordError, UsageError
from stream_scorer.serde.decoder import Rejected
from stream_scorer.serde.raw import RawRecords

# A larger share is a mistake in the file or in the spec rather than a few bad records.
MAX_SHARE = 0.05

_log = logging.getLogger(__name__)


class Rejections:
    """The rejected records of one source, which `source` names in messages; `what` they are: transactions or labels."""

    def __init__(self, source: object, what: str) -> None:
        self._source, self._what = source, what
        self._codes: Counter[str] = Counter()
        self._records = 0
        self._first: tuple[str, RecordError] | None = None

    def add(self, rejected: Rejected, n: int, records: RawRecords | None = None) -> None:
        """The rejected ones of the next `n` records; `records` if they are of a topic."""
        if rejected and self._first is None:
            index, error = rejected[0]
            place = f"row {self._records + index + 1}"
            if records is not None:
                place = f"partition {records.partition[index]}, offset {records.offset[index]}"
            self._first = place, error
        self._records += n
        self._codes.update(error.code for _, error in rejected)

    def close(self) -> int:
        """The number of rejected records, after the last one. Raises `UsageError` if they are more than `MAX_SHARE`."""
        count = self._codes.total()
        if self._first is None:
            return 0
        place, error = self._first
        codes = ", ".join(f"{n} {code}" for code, n in self._codes.most_common())
        message = (
            f"{self._source}: {count} of {self._records} {self._what} are rejected ({codes}); the first is {place}: "
            f"{error.message} at {error.path or '$'}"
        )
        if count > MAX_SHARE * self._records:
            raise UsageError(
                message,
                hint=f"Correct them, or the spec: training leaves out at most {MAX_SHARE:.0%}. docs/errors.md has the "
                "meaning of the codes.",
            )
        _log.warning("%s", message)
        return count
