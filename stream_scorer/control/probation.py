"""The paired test of a probation or a canary: does the new version alert more often than the other one?

A comparison of two periods would mix the effect of the version with every other change. So both versions score the same
transactions, and the test uses the transactions on which they disagree. The null hypothesis is that alerts rise by at
most `RISE`. The test is a betting test (an e-process): for every transaction it bets a share of its wealth on "an alert
by the new version", at odds that are fair or unfavourable under the null hypothesis. Under the null hypothesis, wealth
that starts at 1 ever reaches 1 / `ALPHA` with probability at most `ALPHA` (Ville's inequality). This holds for any
number of evaluations, so the test needs neither a correction for repeated looks nor a fixed end. The wealth depends on
three counts only, so it does not depend on how the transactions were split into batches.

Source: Ramdas, Grunwald, Vovk, Shafer: Game-theoretic statistics and safe anytime-valid inference, 2023.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stream_scorer.control.state import History
from stream_scorer.records import Action, ScoreSummary, ServedVersion, ServingState

RISE = 0.05
ALPHA = 0.001
# Bets, as shares of the largest bet that cannot lose everything. The best one depends on how often the versions
# disagree, so the initial wealth is split evenly over all of them; the total grows like the best one's, minus a
# constant.
_BETS = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7]) / (1.0 + RISE)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two versions that score the same transactions.

    Attributes:
        served, other: the version under test, and the version that it is compared with.
        since: offset of the command that put `served` in play. at: time of that command, ms.
        ends: the command that withdraws `served` if it alerts more often.
    """

    ensemble: str
    served: ServedVersion
    other: ServedVersion
    since: int
    at: int
    ends: Action


def log_evidence(both: NDArray[np.int64], served: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.float64]:
    """Natural logarithm of the wealth, given the numbers of alerts by both and by one version only; all ``(n,)``."""
    fair = 1.0 + RISE
    logs = (
        np.multiply.outer(served, np.log1p(_BETS))
        + np.multiply.outer(both, np.log1p(_BETS * (1.0 - fair)))
        + np.multiply.outer(other, np.log1p(-_BETS * fair))
    )
    return np.asarray(np.logaddexp.reduce(logs, axis=-1) - math.log(len(_BETS)), dtype=np.float64)


@dataclass(slots=True)
class Paired:
    """Exact counts of one pair, accumulated from summaries.

    Attributes:
        both, served, other, neither: number of transactions by which version alerts.
        members: for each member of the served version, the number of alerts that exist only because of it.
        before: the same for the other version before the pair began, over `rows_before` transactions.
    """

    pair: Pair
    both: int = 0
    served: int = 0
    other: int = 0
    neither: int = 0
    members: dict[str, int] = field(default_factory=dict)
    before: dict[str, int] = field(default_factory=dict)
    rows_before: int = 0

    @property
    def rows(self) -> int:
        """Number of transactions that both versions scored."""
        return self.both + self.served + self.other + self.neither

    @property
    def rise(self) -> float:
        """Relative increase of alerts from the other version to the served one; NaN if the other has no alerts."""
        alerts = self.both + self.other
        return (self.both + self.served) / alerts - 1.0 if alerts else math.nan

    @property
    def log_evidence(self) -> float:
        """Natural logarithm of the wealth: the evidence against a rise of at most `RISE`."""
        return float(log_evidence(*np.array([[self.both], [self.served], [self.other]]))[0])

    @property
    def risen(self) -> bool:
        """Whether the evidence is sufficient at level `ALPHA`."""
        return self.log_evidence >= -math.log(ALPHA)

    @property
    def calm(self) -> bool:
        """Whether there is no evidence at all: the wealth is at most its initial value."""
        return self.log_evidence <= 0.0

    def add(self, summary: ScoreSummary) -> None:
        """Add the counts of a summary. A summary of other versions changes nothing."""
        pair = self.pair
        if summary.ensemble != pair.ensemble or summary.control_offset is None:
            return
        if summary.control_offset >= pair.since and summary.version == pair.served.version:
            for pane in summary.panes:
                square = pane.against.get(pair.other.version)
                if square is None:
                    continue
                both, served, other, neither = square
                self.both += both
                self.served += served
                self.other += other
                self.neither += neither
                for member, left_out in pane.left_out.items():
                    self.members[member] = self.members.get(member, 0) + left_out[1]
        elif summary.control_offset < pair.since and summary.version == pair.other.version:
            for pane in summary.panes:
                self.rows_before += pane.rows
                for member, left_out in pane.left_out.items():
                    self.before[member] = self.before.get(member, 0) + left_out[1]

    def culprit(self) -> tuple[str, float] | None:
        """The member with the largest increase of alerts per 1,000 transactions, and that increase; None if none rose.

        An alert belongs to a member if it disappears when the member is left out and the other weights are
        renormalised.
        """
        if not self.rows or not self.members:
            return None
        more = {
            member: 1_000 * (count / self.rows - self.before.get(member, 0) / max(self.rows_before, 1))
            for member, count in self.members.items()
        }
        worst = max(more, key=lambda member: (more[member], member))
        return (worst, more[worst]) if more[worst] > 0 else None

    def summary(self) -> str:
        """The result in one sentence, used as the reason of the command."""
        text = (
            f"version {self.pair.served.version} alerts on {self.both + self.served:,} of {self.rows:,} transactions, "
            f"version {self.pair.other.version} on {self.both + self.other:,} ({self.rise:+.1%}; evidence "
            f"10^{self.log_evidence / math.log(10):.1f} against a rise of at most {RISE:.0%})"
        )
        culprit = self.culprit()
        if not self.risen or culprit is None:
            return text
        more = (
            "more alerts per 1,000 transactions than before"
            if self.rows_before
            else "alerts per 1,000 transactions that no other member causes"
        )
        return f"{text}; member {culprit[0]} causes {culprit[1]:.1f} {more}"


def pairs(state: ServingState, history: History) -> list[Pair]:
    """The pairs of `state`: champion and last good version during a probation, canary and champion."""
    found = []
    if state.probation and state.last_good is not None:
        since, at = _since(state, history, state.champion, "promote")
        found.append(Pair(state.ensemble, state.champion, state.last_good, since, at, "rollback"))
    if state.canary is not None:
        since, at = _since(state, history, state.canary.version, "canary")
        found.append(Pair(state.ensemble, state.canary.version, state.champion, since, at, "stop"))
    return found


def acted_since(history: History, ensemble: str, at: int) -> bool:
    """Whether a monitor has withdrawn a version since `at`, by the times of the commands."""
    withdrawn_at = history.withdrawn_at.get(ensemble)
    return withdrawn_at is not None and withdrawn_at > at


def _since(state: ServingState, history: History, version: ServedVersion, action: Action) -> tuple[int, int]:
    """Offset and time of the last command that gave `version` its role; a new share of a canary starts a new pair.

    The time is the broker's, because the author's clock may be wrong; the author's if the log has none.
    """
    start = history.starts.get((state.ensemble, action))
    if start is None or start.command is None or start.command.version != version:
        return state.control_offset, state.at
    return start.offset, start.timestamp or start.command.at
