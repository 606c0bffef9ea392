"""Counts a pair of versions from `score-summaries`. A part of the summaries shows nothing: see `Counting.read`."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from stream_scorer.control.probation import ComparisonCounts
from stream_scorer.control.summary_reader import UNREADABLE, SummaryReader, SummaryRecord
from stream_scorer.records import ScoreSummary

_log = logging.getLogger(__name__)
MAX_SUMMARIES = 5_000
# Longest time that one call reads a backlog. Then new commands are read.
BACKLOG_S = 1.0


class Counting:
    """Reads summaries into the counts of one pair.

    Each pair has a reader of its own: the days of summaries of an old canary delay no verdict on a new version.

    Attributes:
        counts: the counts.
    """

    def __init__(self, reader: SummaryReader, counts: ComparisonCounts, monotonic: Callable[[], float]) -> None:
        self.counts = counts
        self._reader, self._monotonic = reader, monotonic
        self._caught_up = False
        self._decode = msgspec.json.Decoder(ScoreSummary).decode

    def read(self, wait_s: float) -> bool:
        """Count new summaries; wait at most `wait_s` for the first one.

        Returns whether the counts may be judged: whether all summaries are counted that were there when counting began.
        """
        give_up = self._monotonic() + BACKLOG_S
        while True:
            records = self._reader.poll(MAX_SUMMARIES, wait_s)
            for record in records:
                self._add(record)
            self._caught_up = self._caught_up or self._reader.caught_up()
            if self._caught_up or not records or self._monotonic() > give_up:
                return self._caught_up

    def close(self) -> None:
        """Close the reader."""
        self._reader.close()

    def _add(self, record: SummaryRecord) -> None:
        try:
            self.counts.add(self._decode(record.value or b""), record.timestamp_ms)
        except UNREADABLE as error:
            _log.warning("an unreadable summary is ignored: %s", error)
