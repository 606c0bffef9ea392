"""The verdicts on versions under test, on their topic, so that any reader sees what the monitor sees."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from stream_scorer.control.commands import CommandLog
from stream_scorer.control.incidents import counted_cards, incident_id
from stream_scorer.control.probation import Paired
from stream_scorer.record_log import LogRecord, read_to_end
from stream_scorer.records import NOT_A_RECORD, Action, VerdictEvidence, VerdictRecord

_log = logging.getLogger(__name__)
# Counts change with every summary; a record that differs in its counts only is written this often.
WRITE_EVERY_MS = 5_000
# Inputs that members see differently, at most.
MAX_INPUTS = 10


def verdict_record(paired: Paired, due: Action | None, held_back: str, at: int) -> VerdictRecord:
    """The record of a comparison at the time `at`, ms."""
    pair, verdict = paired.pair, paired.verdict
    evidence = verdict.evidence
    return VerdictRecord(
        id=incident_id(pair),
        ensemble=pair.ensemble,
        version=pair.served.version,
        other=pair.other.version,
        since=pair.since,
        at=at,
        finding=verdict.finding,
        why=paired.summary(),
        rows=paired.rows,
        both=paired.both,
        only=paired.served,
        lacking=paired.other,
        excluded=paired.excluded,
        cards=counted_cards(paired),
        evidence=VerdictEvidence(evidence.rise, evidence.fall, evidence.no_rise, evidence.no_fall),
        missing=list(verdict.missing),
        more_rows=verdict.more_rows,
        more_ms=paired.more_ms(verdict.more_rows),
        due=due,
        held_back=held_back,
        cause=paired.cause(falls=verdict.finding == "fall") if verdict.finding in ("rise", "fall") else None,
        inputs=paired.differences.inputs()[:MAX_INPUTS],
        began=pair.at,
        manifest_sha256=pair.served.manifest_sha256,
        disagreements=list(paired.cards.disagreements) if verdict.finding in ("rise", "fall") else [],
        common=list(paired.cards.common) if verdict.finding in ("rise", "fall") else [],
    )


class Verdicts:
    """Writes the newest verdict of each comparison. `append` takes key and value of a record."""

    def __init__(self, append: Callable[[str, bytes], object]) -> None:
        self._append = append
        self._written: dict[str, VerdictRecord] = {}

    def write(self, record: VerdictRecord) -> None:
        """Write `record` if it decides otherwise than the last one, or if that one is old.

        Raises:
            BrokerUnavailable: the broker does not confirm the record.
        """
        before = self._written.get(record.id)
        if before is not None:
            same = (before.finding, before.due, before.held_back) == (record.finding, record.due, record.held_back)
            unchanged = msgspec.structs.replace(before, at=record.at) == record
            if same and (unchanged or record.at - before.at < WRITE_EVERY_MS):
                return
        self._append(record.id, msgspec.json.encode(record))
        self._written[record.id] = record


def read_verdicts(log: CommandLog) -> dict[str, VerdictRecord]:
    """The newest verdict of each comparison on the topic, by id. Raises `BrokerUnavailable`."""
    found: dict[str, VerdictRecord] = {}

    def add(record: LogRecord) -> None:
        try:
            verdict = msgspec.json.decode(record.value or b"", type=VerdictRecord)
        except NOT_A_RECORD as error:
            _log.warning("record %d of verdicts cannot be read: %s", record.offset, error)
            return
        found[verdict.id] = verdict

    read_to_end(log, add, "verdicts")
    return found
