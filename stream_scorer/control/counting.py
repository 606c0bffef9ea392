"""Counts pairs from `score-summaries`. A part of the summaries shows nothing: see `Counting.read`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable

import msgspec

from stream_scorer.control.probation import Pair, Paired
from stream_scorer.control.summary_reader import UNREADABLE, SummaryReader, SummaryRecord
from stream_scorer.records import ScoreSummary

_log = logging.getLogger(__name__)
MAX_SUMMARIES = 5_000
# Longest time that one call reads a backlog. Then new commands are read.
BACKLOG_S = 1.0


class Counting:
    """The pairs whose counting began at the same time, with a reader of their own.

    So a command for other versions delays nothing: their summaries are read by another reader.

    Attributes:
        paired: the counts by pair.
    """

    def __init__(self, reader: SummaryReader, paired: Iterable[Paired], monotonic: Callable[[], float]) -> None:
        self.paired = {each.pair: each for each in paired}
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

    def keep(self, pairs: Container[Pair]) -> list[Pair]:
        """Forget all other pairs, and return them. Without pairs left, the reader is closed."""
        gone = [pair for pair in self.paired if pair not in pairs]
        for pair in gone:
            del self.paired[pair]
        if not self.paired:
            self._reader.close()
        return gone

    def _add(self, record: SummaryRecord) -> None:
        try:
            summary = self._decode(record.value or b"")
            for paired in self.paired.values():
                paired.add(summary, record.timestamp_ms)
        except UNREADABLE as error:
            _log.warning("an unreadable summary is ignored: %s", error)
