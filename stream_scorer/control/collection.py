"""Collects cards for labels while a withdrawn version is scored as a shadow (ADR 0050).

State of a collection, by id:

    running ── enough cards, or the time is over ──► complete ── `stop` ──► gone
       └──────────────── any command that ends it ───────────────────────────┘

It stores nothing itself. The serving state has the version, `score-summaries` its cards before and after the
withdrawal, and the record of the withdrawal on `verdicts` whether the collection is complete. A complete one never
changes that record again, because the labels of its cards are judged from then on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from stream_scorer.control.cards import AlertedCards
from stream_scorer.control.commands import CommandLog
from stream_scorer.control.probation import GRACE_MS
from stream_scorer.control.state import History
from stream_scorer.control.summary_reader import BEFORE_MS, UNREADABLE, SummaryReader
from stream_scorer.observability.metrics import Metric, Metrics
from stream_scorer.record_log import LogRecord, read_to_end
from stream_scorer.records import NOT_A_RECORD, Collection, ScoreSummary, ServedVersion, VerdictRecord

_log = logging.getLogger(__name__)
# Cards that only the withdrawn version alerted. In 60 simulated runs, the labels of 150 clear a version whose
# additional alerts have the precision of the others in 60, half of it in 41, and confirm harm at 1 % fraud in 60. With
# 100 cards it is 60, 27 and 57 (ADR 0050).
ENOUGH = 150
# The default label age: a version that alerts hardly any card alone is not scored longer.
MAX_EVENT_MS = 7 * 86_400_000
# Counts are published at most this often.
WRITE_EVERY_MS = 5_000
# Bound of one step, which delays the verdicts of the watch: about 50 ms.
_MAX_SUMMARIES = 1_000

COLLECTED = Metric(
    "gauge",
    "stream_scorer_withdrawn_cards",
    "Cards that only a withdrawn version alerts, while it stays in shadow until labels can judge it.",
    ("ensemble", "version", "baseline"),
)


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """A version that a monitor rolled back and that stays in shadow.

    Attributes:
        version, baseline: the withdrawn version, and the champion, with which it is compared.
        since: offset of the command that promoted it. at: time of that command, ms. until: offset of the rollback.
    """

    ensemble: str
    version: ServedVersion
    baseline: ServedVersion
    since: int
    at: int
    until: int

    @property
    def id(self) -> str:
        """The id of its verdict, as in `incidents.incident_id`."""
        return f"{self.ensemble}-{self.since}"


def withdrawals(history: History) -> list[Withdrawal]:
    """The withdrawn versions that are in play."""
    found = []
    for name, state in history.states.items():
        promoted, rolled_back = history.starts.get((name, "promote")), history.starts.get((name, "rollback"))
        if state.withdrawn is None or promoted is None or promoted.command is None or rolled_back is None:
            continue
        at = promoted.timestamp or promoted.command.at
        found.append(Withdrawal(name, state.withdrawn, state.champion, promoted.offset, at, rolled_back.offset))
    return found


class Collected:
    """The cards of one withdrawal: those of the probation, and those since the rollback.

    Attributes:
        cards: those of the withdrawn version, the candidate, and of the champion.
    """

    def __init__(self, withdrawal: Withdrawal, grace_ms: int = GRACE_MS) -> None:
        self.withdrawal = withdrawal
        self.cards = AlertedCards(grace_ms)
        # The end that the record on `verdicts` states: the summaries of the probation may be deleted by now.
        self.stated: int | None = None
        # The newest event times under the probation and since the rollback, and the first one since.
        self._before: int | None = None
        self._first: int | None = None
        self._newest = -1

    @property
    def candidate_only(self) -> int:
        """Number of cards that only the withdrawn version alerts."""
        return self.cards.counts.candidate_only

    @property
    def until(self) -> int | None:
        """Event time at which the collection ends, ms; None before the first transaction."""
        if self._before is not None:
            return self._before + MAX_EVENT_MS
        if self.stated is not None or self._first is None:
            return self.stated
        return self._first + MAX_EVENT_MS

    @property
    def ended(self) -> str:
        """Why the collection is complete; empty while it runs. Depends on alerts and event time only."""
        if self.candidate_only >= ENOUGH:
            return "enough cards"
        until = self.until
        if until is not None and self._newest >= until:
            return f"{MAX_EVENT_MS // 86_400_000} days of event time are over"
        return "no more cards are counted" if self.cards.full else ""

    def add(self, summary: ScoreSummary, at: int = 0) -> None:
        """Add the cards of a summary of the version that decided, with its record timestamp `at`, ms.

        Any other summary changes nothing.
        """
        found, offset, newest = self.withdrawal, summary.control_offset, summary.newest_at(at)
        if summary.ensemble != found.ensemble or offset is None:
            return
        if found.since <= offset < found.until and summary.version == found.version.version:
            if newest is not None:
                self._before = max(self._before or 0, newest)
            cards = summary.cards.get(found.baseline.version)
            if cards is not None:
                self.cards.add(summary.partition, cards, newest)
        elif offset >= found.until and summary.version == found.baseline.version:
            if newest is not None:
                self._first = newest if self._first is None else self._first
                self._newest = max(self._newest, newest)
            cards = summary.cards.get(found.version.version)
            if cards is not None:
                # A summary of the champion, so the withdrawn version is the other one.
                cards = msgspec.structs.replace(cards, this=cards.other, other=cards.this)
                self.cards.add(summary.partition, cards, newest, shadow=True)

    def extend(self, record: VerdictRecord, ended: str, at: int) -> VerdictRecord:
        """The `record` of the withdrawal with the cards so far, at the time `at`, ms.

        It keeps its own cards if they are more: then not all summaries are read yet, or retention deleted some.
        """
        cards, before = self.cards, 0 if record.collection is None else record.collection.cards
        if len(cards.disagreements) + len(cards.common) >= len(record.disagreements) + len(record.common):
            record = msgspec.structs.replace(record, disagreements=[*cards.disagreements], common=[*cards.common])
        progress = Collection(max(self.candidate_only, before), ENOUGH, self.until, ended)
        return msgspec.structs.replace(record, collection=progress, labels=None, at=at)


class CollectionWatch:
    """See the module.

    Args:
        open_verdicts: opens the topic `verdicts` at its start. append: writes key and value of a verdict.
        follow: opens `score-summaries` at a record timestamp, ms.
    """

    def __init__(
        self,
        open_verdicts: Callable[[], CommandLog],
        append: Callable[[str, bytes], object],
        follow: Callable[[int], SummaryReader],
        metrics: Metrics,
        grace_ms: int = GRACE_MS,
    ) -> None:
        self._open_verdicts, self._append, self._follow = open_verdicts, append, follow
        self._metrics, self._grace_ms = metrics, grace_ms
        self._collected: dict[Withdrawal, Collected] = {}
        self._verdicts: CommandLog | None = None
        self._reader: SummaryReader | None = None
        self._caught_up = False
        # The newest record on `verdicts` of each withdrawal.
        self._records: dict[str, VerdictRecord] = {}
        self._written_at: dict[str, int] = {}
        self._complete: set[str] = set()
        self._decode = msgspec.json.Decoder(ScoreSummary).decode

    def running(self, history: History) -> set[str]:
        """Ids of the withdrawals whose cards are not complete: their labels wait."""
        return {found.id for found in withdrawals(history)} - self._complete

    def wants(self, cards: int) -> bool:
        """Whether a version stays in shadow after its withdrawal if so far only it alerted `cards` cards."""
        return cards < ENOUGH

    def step(self, history: History, now: int) -> list[tuple[Withdrawal, str]]:
        """Read new summaries and publish progress.

        Returns the withdrawals that are complete and still in play, each with the reason for its end.

        Raises:
            ReaderLost: a topic brings nothing any more: another watch must read again.
            StreamScorerError: Kafka does not answer. The next step tries again.
        """
        found = withdrawals(history)
        if set(found) != set(self._collected):
            self._begin(found, now)
        if self._reader is None:
            return []
        for record in self._reader.poll(_MAX_SUMMARIES, 0.0):
            try:
                summary = self._decode(record.value or b"")
                for collected in self._collected.values():
                    collected.add(summary, record.timestamp_ms)
            except UNREADABLE as error:
                _log.warning("an unreadable summary is ignored: %s", error)
        # A part of the summaries shows neither the cards nor the end.
        self._caught_up = self._caught_up or self._reader.caught_up()
        if self._caught_up:
            for collected in self._collected.values():
                self._publish(collected, collected.ended, now)
        return [(each, self._reason(each)) for each in found if each.id in self._complete]

    def close(self) -> None:
        """Close the logs. The collections are counted again by the next step."""
        for each in self._collected:
            self._show(each, 0)
        for log in (self._reader, self._verdicts):
            if log is not None:
                log.close()
        self._reader = self._verdicts = None
        self._caught_up = False
        self._collected, self._records, self._complete = {}, {}, set()

    def _begin(self, found: list[Withdrawal], now: int) -> None:
        """Start to count `found`, after a last record of those that another command ended."""
        for withdrawal, collected in self._collected.items():
            if withdrawal not in found:
                ended = collected.ended if self._caught_up else ""
                self._publish(collected, ended or "another command ended it", now)
        self.close()
        if not found:
            return
        self._verdicts = self._open_verdicts()
        self._reader = self._follow(max(min(each.at for each in found) - BEFORE_MS, 0))
        # Only now: what fails before is tried again.
        self._collected = {each: Collected(each, self._grace_ms) for each in found}
        self._read_verdicts()

    def _read_verdicts(self) -> None:
        """Read `verdicts` to its end: another monitor may have written."""
        assert self._verdicts is not None
        read_to_end(self._verdicts, self._add_verdict, "verdicts")
        for each, collected in self._collected.items():
            verdict_of = self._records.get(each.id)
            if verdict_of is None and each.id not in self._complete:
                _log.warning("%s has no record on verdicts: its cards are not collected", each.id)
            if verdict_of is not None and verdict_of.collection is not None:
                collected.stated = verdict_of.collection.until
            if verdict_of is None or (verdict_of.collection is not None and verdict_of.collection.ended):
                self._complete.add(each.id)

    def _add_verdict(self, record: LogRecord) -> None:
        try:
            verdict = msgspec.json.decode(record.value or b"", type=VerdictRecord)
        except NOT_A_RECORD:
            return
        # Another monitor may be a moment behind: its undecided verdict does not replace the one that counts.
        behind = verdict.finding in ("undecided", "harmless") and verdict.id in self._records
        if not behind and any(verdict.id == each.id for each in self._collected):
            self._records[verdict.id] = verdict

    def _publish(self, collected: Collected, ended: str, now: int) -> None:
        """Write what is new: at most every `WRITE_EVERY_MS`, and at once when the collection has ended."""
        withdrawal = collected.withdrawal
        key = withdrawal.id
        self._show(withdrawal, collected.candidate_only)
        progress = self._records[key].collection if key in self._records else None
        grown = progress is None or collected.candidate_only > progress.cards or progress.until != collected.until
        due = grown and now - self._written_at.get(key, now - WRITE_EVERY_MS) >= WRITE_EVERY_MS
        if key in self._complete or not (due or ended):
            return
        self._read_verdicts()
        if key in self._complete:
            return
        record = collected.extend(self._records[key], ended, now)
        self._append(key, msgspec.json.encode(record))
        self._records[key], self._written_at[key] = record, now
        if ended:
            self._complete.add(key)
            _log.warning(
                "version %s in shadow: %d cards, %s", withdrawal.version.version, collected.candidate_only, ended
            )

    def _reason(self, withdrawal: Withdrawal) -> str:
        record, version = self._records.get(withdrawal.id), withdrawal.version.version
        if record is None or record.collection is None:
            return f"the verdict on version {version} is not recorded, so labels cannot judge it"
        found = record.collection
        return f"{found.cards:,} cards that only version {version} alerts are collected for labels: {found.ended}"

    def _show(self, withdrawal: Withdrawal, cards: int) -> None:
        names = (withdrawal.ensemble, withdrawal.version.version, withdrawal.baseline.version)
        self._metrics.set(COLLECTED, cards, *names)
