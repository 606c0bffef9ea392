"""The result of a gate: one line per rule."""

from __future__ import annotations

from typing import Literal

from stream_scorer.records import Record

Verdict = Literal["pass", "refuse"]


class RuleResult(Record, frozen=True):
    """One rule.

    Attributes:
        rule: the section of the rules file, with metric or segment, as in ``quality.roc_auc`` or ``fairness.channel``.
        measured: the number that was compared with the limit; null if it could not be measured, which refuses.
        limit: the number must be at most this; null if the rule has no number.
        reason: what was found, or what is missing.
    """

    rule: str
    measured: float | None
    limit: float | None
    verdict: Verdict
    reason: str


class GateReport(Record, frozen=True):
    """All rules of a gate, in the order of the rules file.

    Attributes:
        candidate, champion: ``name version``; the champion is null if there was none.
        rules_sha256: digest of the rules, independent of the layout of their file.
        transactions: those of the range, on which traffic was measured. rejected: records in the range that cannot be
            read; each has the time of the transaction before it. seconds: wall-clock seconds of the gate.
        mature: the share of the transactions that are older than the label horizon; null without a rule on labels.
    """

    passed: bool
    candidate: str
    champion: str | None
    rules_sha256: str
    transactions: int
    rejected: int
    seconds: float
    rules: list[RuleResult]
    mature: float | None = None

    @property
    def refusals(self) -> list[RuleResult]:
        """The rules that refuse the candidate."""
        return [rule for rule in self.rules if rule.verdict == "refuse"]


def at_most(rule: str, measured: float, limit: float, reason: str) -> RuleResult:
    """The result of a rule whose number must be at most `limit`; a NaN refuses."""
    return RuleResult(rule, measured, limit, "pass" if measured <= limit else "refuse", reason)


def not_measured(rule: str, limit: float | None, reason: str) -> RuleResult:
    """A rule that could not be measured: it refuses."""
    return RuleResult(rule, None, limit, "refuse", f"not measured: {reason}")
