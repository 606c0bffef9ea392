"""The verdicts on versions under test, on their topic, so that any reader sees what the monitor sees."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from stream_scorer.control.commands import CommandLog
from stream_scorer.control.incidents import counted_cards, incident_id
from stream_scorer.control.probation import ComparisonCounts
from stream_scorer.record_log import LogRecord, read_to_end
from stream_scorer.records import NOT_A_RECORD, Action, VerdictEvidence, VerdictRecord

_log = logging.getLogger(__name__)
# Counts change with every summary; a record that differs in its counts only is written this often.
WRITE_EVERY_MS = 5_000
# Inputs that members see differently, at most.
MAX_INPUTS = 10


def verdict_record(counts: ComparisonCounts, due: Action | None, held_back: str, at: int) -> VerdictRecord:
    """The record of a comparison at the time `at`, ms."""
    comparison, verdict = counts.comparison, counts.verdict
    evidence = verdict.evidence
    return VerdictRecord(
        id=incident_id(comparison),
        ensemble=comparison.ensemble,
        version=comparison.candidate.version,
        baseline=comparison.baseline.version,
        since=comparison.since,
        at=at,
        finding=verdict.finding,
        why=counts.summary(),
        rows=counts.rows,
        both=counts.both,
        candidate_only=counts.candidate_only,
        baseline_only=counts.baseline_only,
        excluded=counts.excluded,
        cards=counted_cards(counts),
        evidence=VerdictEvidence(evidence.rise, evidence.fall, evidence.no_rise, evidence.no_fall),
        missing=list(verdict.missing),
        more_rows=verdict.more_rows,
        more_ms=counts.more_ms(verdict.more_rows),
        due=due,
        held_back=held_back,
        cause=counts.cause(falls=verdict.finding == "fall") if verdict.finding in ("rise", "fall") else None,
        inputs=counts.differences.inputs()[:MAX_INPUTS],
        began=comparison.at,
        manifest_sha256=comparison.candidate.manifest_sha256,
        disagreements=list(counts.cards.disagreements) if verdict.finding in ("rise", "fall") else [],
        common=list(counts.cards.common) if verdict.finding in ("rise", "fall") else [],
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
