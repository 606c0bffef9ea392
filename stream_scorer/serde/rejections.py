"""Which records of a history the decoder rejects: a warning, or an error if they are too many to go on without."""

from __future__ import annotations

import logging
from collections import Counter

from stream_scorer.errors import RecordError, UsageError
from stream_scorer.serde.decoder import Rejected
from stream_scorer.serde.raw import RawRecords

# A larger share is a mistake in the file or in the spec rather than a few bad records.
MAX_SHARE = 0.05

_log = logging.getLogger(__name__)


def too_many(rejected: int, records: int) -> bool:
    """Whether the rejected ones of so many records are more than `MAX_SHARE`."""
    return rejected > MAX_SHARE * records


class Rejections:
    """The rejected records of one source; `what` they are: transactions or labels."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._codes: Counter[str] = Counter()
        self._records = 0
        self._first: tuple[str, RecordError] | None = None

    @property
    def count(self) -> int:
        """The number of rejected records so far."""
        return self._codes.total()

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

    def require_few(self, source: object) -> None:
        """After the last record: raise `UsageError`, which names `source`, if they are more than `MAX_SHARE`."""
        if too_many(self.count, self._records):
            raise UsageError(
                self._message(source),
                hint=f"Correct them, or the spec: at most {MAX_SHARE:.0%} may be left out. docs/errors.md explains the "
                "codes.",
            )

    def close(self, source: object) -> int:
        """Their number, with a warning if there are any. Raises `UsageError`, see `require_few`."""
        self.require_few(source)
        if self.count:
            _log.warning("%s", self._message(source))
        return self.count

    def _message(self, source: object) -> str:
        assert self._first is not None
        place, error = self._first
        codes = ", ".join(f"{n} {code}" for code, n in self._codes.most_common())
        return (
            f"{source}: {self.count:,} of {self._records:,} {self._what} are rejected ({codes}); the first is {place}: "
            f"{error.message} at {error.path or '$'}"
        )
