"""Whether a new version alerts more than the one it stands beside: the paired test of a probation or a canary.

Before and after differ by much else than the version. So both are asked about the same transactions, and what counts
is where they disagree. The null hypothesis is that alerts rise by at most `RISE`. The test is a bet: for every
transaction a share of the fortune is put on "an alert by the new version", at odds that the null makes unfavourable or
fair. If it holds, a fortune that begins at 1 ever reaches 1 / `ALPHA` with probability at most `ALPHA` (Ville's
inequality), however often one looks; so there is no number of looks to correct for, and no end to wait for. The fortune
depends on three counts only, so it is the same however the transactions were cut into batches.

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
# Shares of the most that may be bet without ruin. Which is best depends on how often the two disagree; the fortune is
# spread over all of them and grows like the best one's, less its share.
_BETS = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7]) / (1.0 + RISE)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two versions scored side by side: what `ends` it, should the first alert more than the second.

    `since` is the offset of the command that put the first in play; `at` that command's clock, ms.
    """

    ensemble: str
    served: ServedVersion
    other: ServedVersion
    since: int
    at: int
    ends: Action


def log_evidence(both: NDArray[np.int64], served: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.float64]:
    """Natural logarithm of the fortune after so many alerts by both, and by one of the two only; all ``(n,)``."""
    fair = 1.0 + RISE
    logs = (
        np.multiply.outer(served, np.log1p(_BETS))
        + np.multiply.outer(both, np.log1p(_BETS * (1.0 - fair)))
        + np.multiply.outer(other, np.log1p(-_BETS * fair))
    )
    return np.asarray(np.logaddexp.reduce(logs, axis=-1) - math.log(len(_BETS)), dtype=np.float64)


@dataclass(slots=True)
class Paired:
    """Exact counts of one pair, to which summaries are added.

    Attributes:
        both, served, other, neither: transactions by who alerts. members: of each of the served version's members, how
            many alerts there were only because of it; before: the same of the other version before, in `rows_before`.
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
        """How many transactions both were asked about."""
        return self.both + self.served + self.other + self.neither

    @property
    def rise(self) -> float:
        """By how much the served version alerts more, as a share of the other's alerts; NaN without any."""
        alerts = self.both + self.other
        return (self.both + self.served) / alerts - 1.0 if alerts else math.nan

    @property
    def log_evidence(self) -> float:
        """Natural logarithm of the fortune: the evidence against a rise of at most `RISE`."""
        return float(log_evidence(*np.array([[self.both], [self.served], [self.other]]))[0])

    @property
    def risen(self) -> bool:
        """Whether the evidence suffices."""
        return self.log_evidence >= -math.log(ALPHA)

    @property
    def calm(self) -> bool:
        """Whether the bets have won nothing: counts that were once enough evidence, and are not now, are not calm."""
        return self.log_evidence <= 0.0

    def add(self, summary: ScoreSummary) -> None:
        """Take a summary; whatever is not of this pair changes nothing."""
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
        """The member that makes most alerts more than before, and how many in 1,000 transactions that are.

        An alert is a member's if there would be none with it left out (and the others' weights made up to one).
        """
        if not self.rows or not self.members:
            return None
        more = {
            member: 1_000 * (count / self.rows - self.before.get(member, 0) / max(self.rows_before, 1))
            for member, count in self.members.items()
        }
        worst = max(more, key=lambda member: (more[member], member))
        return (worst, more[worst]) if more[worst] > 0 else None

    def told(self) -> str:
        """What was found, for people and for the command's reason."""
        text = (
            f"of {self.rows:,} transactions version {self.pair.served.version} alerts {self.both + self.served:,}, "
            f"version {self.pair.other.version} {self.both + self.other:,} ({self.rise:+.1%}; evidence "
            f"10^{self.log_evidence / math.log(10):.1f} against a rise of at most {RISE:.0%})"
        )
        culprit = self.culprit()
        if not self.risen or culprit is None:
            return text
        more = (
            "more alerts a thousand than before" if self.rows_before else "alerts a thousand that no other would make"
        )
        return f"{text}; member {culprit[0]} makes {culprit[1]:.1f} {more}"


def pairs(state: ServingState, history: History) -> list[Pair]:
    """What stands side by side in `state`: champion and last good version on probation, canary and champion."""
    found = []
    if state.probation and state.last_good is not None:
        since, at = _since(state, history, state.champion, "promote")
        found.append(Pair(state.ensemble, state.champion, state.last_good, since, at, "rollback"))
    if state.canary is not None:
        since, at = _since(state, history, state.canary.version, "canary")
        found.append(Pair(state.ensemble, state.canary.version, state.champion, since, at, "stop"))
    return found


def acted_since(history: History, ensemble: str, at: int) -> bool:
    """Whether a monitor has taken a version out of play since `at` by the commands' clocks."""
    return any(
        entry.command is not None
        and not entry.refused
        and entry.command.author == "monitor"
        and entry.command.ensemble == ensemble
        and entry.command.action in ("rollback", "stop")
        and entry.command.at > at
        for entry in history.entries
    )


def _since(state: ServingState, history: History, version: ServedVersion, action: Action) -> tuple[int, int]:
    """Offset and clock of the last command that put `version` where it is; a canary's new share counts anew."""
    offset, at = state.control_offset, state.at
    for entry in reversed(history.entries):
        command = entry.command
        if command is None or entry.refused or command.ensemble != state.ensemble:
            continue
        if command.action == action and command.version == version:
            return entry.offset, command.at
    return offset, at
