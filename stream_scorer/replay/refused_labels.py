"""Labels that cannot be read: without them, fraud counts as genuine, so a file that has many is refused."""

from __future__ import annotations

from pathlib import Path

from stream_scorer.errors import UsageError
from stream_scorer.serde.decoder import Rejected
from stream_scorer.serde.raw import RawRecords

# As in a training (`train.rejections`).
MAX_SHARE = 0.05


class RefusedLabels:
    """Counts them.

    Attributes:
        count: how many cannot be read. records: how many there are.
    """

    def __init__(self) -> None:
        self.count = self.records = 0
        self._first = ""

    def add(self, rejected: Rejected, records: RawRecords) -> None:
        """The `rejected` ones of the next `records`."""
        if rejected and not self._first:
            index, error = rejected[0]
            self._first = f"row {self.records + index + 1}: {error.message} at {error.path or '$'}"
        self.count += len(rejected)
        self.records += len(records)

    def require_few(self, path: Path) -> None:
        """Raise `UsageError` if they are more than `MAX_SHARE` of the file `path`."""
        if self.count > MAX_SHARE * self.records:
            raise UsageError(
                f"{path}: {self.count:,} of {self.records:,} labels cannot be read; the first is {self._first}",
                hint=f"Correct them: at most {MAX_SHARE:.0%} may be left out. A label is `fraud` or `genuine`.",
            )
