"""The verdict on a version under test: a rise or a fall of alerted cards, harmless, or undecided (ADR 0030).

The verdict is a pure function of counts. `undecided` is the default: only evidence leads to another verdict, and
missing data is no evidence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_scorer.control.cards import CardCounts
from stream_scorer.control.evidence import Counts, log_evidence, log_evidence_below
from stream_scorer.records import Finding

# Probability that a version within the tolerances is ever withdrawn, for a rise and a fall together.
ALPHA = 0.001
# A version is confirmed if there is this much evidence against a change by `HARMLESS` or more, in each direction.
CONFIRM_EVIDENCE = 20.0
HARMLESS = 0.15
# A confirmation needs the scores of both versions for at least this share of the transactions.
MIN_PAIRED = 0.99
# The expected time to a decision is looked for at this many times the cards so far, up to 64 times.
_GROWTH = 1.05 ** np.arange(86)


@dataclass(frozen=True, slots=True)
class Tolerances:
    """What a promotion may change.

    Attributes:
        max_rise, max_fall: relative change of alerted cards that is tolerated.
        expected_rise: the change that the command declares; tolerances are relative to it.
        min_rows: minimum number of transactions before a version is confirmed.
    """

    max_rise: float = 0.05
    max_fall: float = 0.05
    expected_rise: float = 0.0
    min_rows: int = 100_000

    @property
    def limits(self) -> tuple[float, float]:
        """The lowest and the highest tolerated ratio of alerted cards."""
        return (1 + self.expected_rise) * (1 - self.max_fall), (1 + self.expected_rise) * (1 + self.max_rise)

    @property
    def harmless(self) -> tuple[float, float]:
        """The ratios between which a version is confirmed. They are never narrower than the tolerances."""
        fall, rise = max(HARMLESS, self.max_fall), max(HARMLESS, self.max_rise)
        return (1 + self.expected_rise) * (1 - fall), (1 + self.expected_rise) * (1 + rise)


def log_evidences(
    both: Counts, candidate_only: Counts, baseline_only: Counts, tolerances: Tolerances
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The fields of `Evidence`, each ``(n,)``, for numbers of cards ``(n,)``."""
    low, high = tolerances.limits
    lower, higher = tolerances.harmless
    return (
        log_evidence(both, candidate_only, baseline_only, high) - math.log(2),
        log_evidence_below(both, candidate_only, baseline_only, low) - math.log(2),
        log_evidence_below(both, candidate_only, baseline_only, higher),
        log_evidence(both, candidate_only, baseline_only, lower),
    )


@dataclass(frozen=True, slots=True)
class Evidence:
    """Natural logarithms of evidence, each 0 without cards.

    Attributes:
        rise, fall: for a change beyond the tolerances. Each starts with half of the wealth, so `ALPHA` holds for both
            together; without cards they are log(1/2).
        no_rise, no_fall: against a change that would prevent a confirmation.
    """

    rise: float
    fall: float
    no_rise: float
    no_fall: float

    @classmethod
    def of(cls, cards: CardCounts, tolerances: Tolerances) -> Evidence:
        """The evidence of counted cards."""
        both, candidate_only, baseline_only = np.array(
            [[cards.both], [cards.candidate_only], [cards.baseline_only]], dtype=np.int64
        )
        return cls(*(float(log[0]) for log in log_evidences(both, candidate_only, baseline_only, tolerances)))

    @property
    def finding(self) -> Finding:
        """What the evidence alone supports."""
        if max(self.rise, self.fall) >= -math.log(ALPHA):
            return "rise" if self.rise > self.fall else "fall"
        return "harmless" if min(self.no_rise, self.no_fall) >= math.log(CONFIRM_EVIDENCE) else "undecided"


@dataclass(frozen=True, slots=True)
class Basis:
    """What a verdict is based on.

    Attributes:
        cards: counted cards. waiting: cards whose class is not fixed yet.
        rows: transactions that count. excluded: transactions that do not, see `records.CardAlerts`.
        unpaired: transactions that only one of the versions scored. elsewhere: transactions of the champion's arm that
            both versions scored; 0 for a promotion.
        share_evidence: natural logarithm of the evidence that a canary decides another share of the cards than
            requested; 0 for a promotion. full: whether no more cards are counted.
        untrusted: whether the version that it is compared with is on probation itself.
    """

    cards: CardCounts
    waiting: int
    rows: int
    excluded: int
    unpaired: int
    elsewhere: int = 0
    share_evidence: float = 0.0
    full: bool = False
    untrusted: bool = False

    @property
    def paired_share(self) -> float:
        """Share of the transactions that both versions scored; 1 without transactions."""
        known = self.rows + self.excluded + self.elsewhere
        return known / (known + self.unpaired) if known + self.unpaired else 1.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """A finding and its reasons.

    Attributes:
        missing: what prevents a decision; empty if there is one.
        more_rows: transactions until a decision at the proportions so far; None if none is expected soon.
        limits: the lowest and the highest tolerated ratio of alerted cards.
    """

    finding: Finding
    evidence: Evidence
    missing: tuple[str, ...]
    more_rows: int | None
    limits: tuple[float, float]


def judge(basis: Basis, tolerances: Tolerances) -> Verdict:
    """The verdict on `basis`."""
    evidence, limits = Evidence.of(basis.cards, tolerances), tolerances.limits
    finding, missing = evidence.finding, []
    if basis.untrusted:  # what looks like a fault of a canary may be one of the version that serves
        missing.append("the version that serves, with which it is compared, is on probation")
        return Verdict("undecided", evidence, tuple(missing), None, limits)
    if basis.share_evidence >= -math.log(ALPHA):
        missing.append("the canary decides another share of the cards than requested")
    elif finding in ("rise", "fall"):
        return Verdict(finding, evidence, (), 0, limits)
    if basis.paired_share < MIN_PAIRED:
        missing.append(f"both versions scored only {basis.paired_share:.0%} of the transactions")
    blocked = bool(missing)
    if basis.rows < tolerances.min_rows:
        missing.append(f"{tolerances.min_rows - basis.rows:,} more transactions")
    if finding == "undecided":
        missing.append("evidence from more alerted cards" if basis.cards.total else "alerted cards")
        if basis.full:
            missing.append("no more cards are counted: the change is at the tolerance")
    if finding == "harmless" and not missing:
        return Verdict(finding, evidence, (), 0, limits)
    if basis.excluded > basis.rows:
        why = "no features, no card, fallback, list, repeat, or a changed member is disabled"
        missing.append(f"{basis.excluded:,} of {basis.rows + basis.excluded:,} transactions do not count ({why})")
    more_rows = None if blocked else _more_rows(basis, tolerances)
    return Verdict("undecided", evidence, tuple(missing), more_rows, limits)


def _more_rows(basis: Basis, tolerances: Tolerances) -> int | None:
    """Transactions until a decision if the proportions of cards stay as they are; None if that is far away."""
    cards, rows = basis.cards, basis.rows
    if not cards.total or not rows or basis.full:
        return None
    both, candidate_only, baseline_only = (
        np.rint(n * _GROWTH).astype(np.int64) for n in (cards.both, cards.candidate_only, cards.baseline_only)
    )
    logs = log_evidences(both, candidate_only, baseline_only, tolerances)
    withdrawn = np.maximum(logs[0], logs[1]) >= -math.log(ALPHA)
    decided = np.flatnonzero(withdrawn | (np.minimum(logs[2], logs[3]) >= math.log(CONFIRM_EVIDENCE)))
    if not len(decided):
        return None
    first = int(decided[0])
    then = math.ceil(rows * float(_GROWTH[first]))
    return max(then if withdrawn[first] else max(then, tolerances.min_rows), rows + 1) - rows
