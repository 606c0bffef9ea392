"""The paired comparison of a probation or a canary: does the new version alert on more or on fewer cards?

A comparison of two periods would mix the effect of the version with every other change. So both versions score the same
transactions, and the cards on which their alerts differ are the evidence (`control/cards.py`, `control/verdict.py`).
Counts of transactions are shown, but they decide nothing: a burst on one card would be many of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import msgspec

from stream_scorer.control.attribution import Attribution
from stream_scorer.control.cards import AlertedCards, ArmShare
from stream_scorer.control.evidence import log_evidence_of_share
from stream_scorer.control.ladder import next_step
from stream_scorer.control.state import History
from stream_scorer.control.summary_reader import BEFORE_MS
from stream_scorer.control.verdict import Basis, Tolerances, Verdict, judge
from stream_scorer.records import (
    Action,
    CanaryState,
    CardAlerts,
    Cause,
    Command,
    ScoreSummary,
    ServedVersion,
    ServingState,
)

GRACE_MS = 600_000


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two versions that score the same transactions.

    Attributes:
        candidate, baseline: the version under test, and the version that it is compared with.
        since: offset of the command that put `candidate` in play. at: time of that command, ms.
        ends: the command that withdraws `candidate`.
        expected_rise: the relative change of alerted cards that this command declares.
        share, until: of a canary; None for a promotion.
        untrusted: whether `baseline` is on probation itself. Then nothing follows from the comparison.
        shares_since: of a canary, whether its `recover` also restored a probation, whose pair has the same `since`.
    """

    ensemble: str
    candidate: ServedVersion
    baseline: ServedVersion
    since: int
    at: int
    ends: Action
    expected_rise: float = 0.0
    share: float | None = None
    until: int | None = None
    untrusted: bool = False
    shares_since: bool = False

    @property
    def start(self) -> int | str:
        """`since`, made distinct if two pairs share it. It stays the same while the pair lasts."""
        return f"{self.since}-canary" if self.shares_since else self.since


@dataclass(slots=True)
class ComparisonCounts:
    """Exact counts of one pair, accumulated from summaries.

    Attributes:
        tolerances: what the pair may change, without the declared change.
        grace_ms: event time in which the other version may alert a card as well.
        both, candidate_only, baseline_only, neither: number of transactions that count, by which version alerts. They
            decide nothing.
        counted, excluded: transactions that count as evidence, and those that do not.
        unpaired: transactions that only one of the versions scored. elsewhere: transactions of the champion's arm that
            both scored, for a canary.
        members: for each member of the candidate, the number of alerts that exist only because of it, and of
            alerts that it prevents. before: the same for the baseline before the comparison began, over `rows_before`
            transactions.
        differences: of the members of both versions.
        cards: the alerted cards. arms: the cards of both arms, for a canary.
    """

    comparison: Comparison
    tolerances: Tolerances = field(default_factory=Tolerances)
    grace_ms: int = GRACE_MS
    both: int = 0
    candidate_only: int = 0
    baseline_only: int = 0
    neither: int = 0
    counted: int = 0
    excluded: int = 0
    unpaired: int = 0
    elsewhere: int = 0
    members: dict[str, tuple[int, int]] = field(default_factory=dict)
    before: dict[str, tuple[int, int]] = field(default_factory=dict)
    rows_before: int = 0
    differences: Attribution = field(default_factory=Attribution)
    cards: AlertedCards = field(init=False)
    arms: ArmShare | None = field(init=False)

    def __post_init__(self) -> None:
        """Start with no cards."""
        comparison = self.comparison
        self.cards = AlertedCards(self.grace_ms)
        self.arms = None if comparison.share is None else ArmShare(comparison.share, comparison.until)

    @property
    def rows(self) -> int:
        """Number of transactions that count."""
        return self.both + self.candidate_only + self.baseline_only + self.neither

    @property
    def basis(self) -> Basis:
        """What the verdict is based on."""
        arms = self.arms
        return Basis(
            self.cards.counts,
            self.cards.waiting,
            self.counted,
            self.excluded,
            self.unpaired,
            self.elsewhere,
            0.0 if arms is None else log_evidence_of_share(arms.inside, arms.total, arms.share),
            self.cards.full,
            self.comparison.untrusted,
        )

    @property
    def verdict(self) -> Verdict:
        """The verdict on the candidate."""
        return judge(self.basis, replace(self.tolerances, expected_rise=self.comparison.expected_rise))

    def more_ms(self, more_rows: int | None) -> int | None:
        """Event time that `more_rows` transactions take at the rate so far; None if the rate is not known."""
        first, newest = self.cards.first, self.cards.newest
        if more_rows is None or first is None or newest is None or newest <= first or not self.counted:
            return None
        return round(more_rows * (newest - first) / self.counted)

    def add(self, summary: ScoreSummary, at: int = 0) -> None:
        """Add the counts of a summary with its record timestamp `at`, ms. One of other versions changes nothing."""
        comparison = self.comparison
        if summary.ensemble != comparison.ensemble or summary.control_offset is None:
            return
        if summary.control_offset >= comparison.since and summary.version == comparison.candidate.version:
            self._add_candidate(summary, at)
        elif summary.control_offset >= comparison.since and summary.version == comparison.baseline.version:
            self._add_champion(summary)
        elif summary.version == comparison.baseline.version and at >= comparison.at + BEFORE_MS:
            # A scorer that cannot load the version under test stays at the command before.
            self.unpaired += sum(pane.rows for pane in summary.panes)
        elif summary.version == comparison.baseline.version:
            for pane in summary.panes:
                self.rows_before += pane.rows
                _count_members(self.before, pane.left_out)

    def _add_candidate(self, summary: ScoreSummary, at: int) -> None:
        baseline = self.comparison.baseline.version
        self.unpaired += sum(pane.rows for pane in summary.panes if baseline not in pane.against)
        cards = summary.cards.get(baseline)
        if cards is not None:
            self._add_alerts(summary, cards)
            self.counted += cards.rows
            self.excluded += cards.excluded
            self.cards.add(summary.partition, cards, summary.newest_at(at))
            if self.arms is not None:
                self.arms.add(cards.card, cards.other, canary=True)
        # Last: what names the cause may be unreadable, and decides nothing.
        differences = summary.differences.get(baseline)
        if differences is not None:
            self.differences.add(differences)

    def _add_alerts(self, summary: ScoreSummary, cards: CardAlerts) -> None:
        """Add the transactions by which version alerts them. Those that do not count show nothing about the change."""
        if not cards.rows:
            return
        both, this, other, neither = cards.against
        self.both += both
        self.candidate_only += this
        self.baseline_only += other
        self.neither += neither
        for pane in summary.panes:
            _count_members(self.members, pane.left_out)

    def _add_champion(self, summary: ScoreSummary) -> None:
        """Add a summary of the champion's arm beside a canary. A scorer without the canary decides too much there."""
        cards = summary.cards.get(self.comparison.candidate.version)
        if self.arms is None:
            return
        if cards is None:
            # A part of a summary that was split has no cards, but both versions scored its transactions.
            alone = [pane.rows for pane in summary.panes if self.comparison.candidate.version not in pane.against]
            self.unpaired += sum(alone)
            return
        self.elsewhere += cards.rows + cards.excluded
        self.arms.add(cards.card, cards.this, canary=False)

    def culprit(self, *, falls: bool = False) -> tuple[str, float] | None:
        """The member that changed alerts most per 1,000 transactions, and by how many; None if no member did.

        An alert belongs to a member if it disappears when the member is left out and the other weights are
        renormalised. If alerts fall, the culprit is the member with the largest loss of such alerts, together with the
        alerts that appear when it is left out. It may be a member that did not change, so it is not named if summaries
        compare the members.
        """
        if not self.rows or not self.members or self.differences.rows:
            return None
        sign = -1 if falls else 1
        change = {}
        for member, (only, prevented) in self.members.items():
            only_before, prevented_before = self.before.get(member, (0, 0))
            now = only - prevented if falls else only
            before = only_before - prevented_before if falls else only_before
            change[member] = sign * 1_000 * (now / self.rows - before / max(self.rows_before, 1))
        worst = max(change, key=lambda member: (change[member], member))
        return (worst, change[worst]) if change[worst] > 0 else None

    def cause(self, *, falls: bool) -> Cause | None:
        """What moved the alerts: a member and how it differs; None if the differences do not explain it."""
        return self.differences.cause(falls=falls, change=self.candidate_only - self.baseline_only)

    def summary(self) -> str:
        """The result in one sentence, used as the reason of the command."""
        verdict, counts, comparison = self.verdict, self.cards.counts, self.comparison
        change = f"{counts.rise:+.1%}" if not math.isnan(counts.rise) else "no comparison"
        text = (
            f"version {comparison.candidate.version} alerts on {counts.both + counts.candidate_only:,} cards, version "
            f"{comparison.baseline.version} on {counts.both + counts.baseline_only:,} ({change}; "
            f"{self._evidence(verdict)}); "
            f"{self.both + self.candidate_only:,} and {self.both + self.baseline_only:,} of {self.rows:,} transactions"
        )
        falls = verdict.finding == "fall"
        if verdict.finding not in ("rise", "fall"):
            return text
        kind = "fewer" if falls else "more"
        if (cause := self.cause(falls=falls)) is not None:
            more = f"{cause.per_thousand:.1f} {kind} alerts per 1,000 transactions"
            than = f"than in version {comparison.baseline.version}"
            return f"{text}; {cause.subject} causes {more} {than}: {cause.difference}"
        if self.differences.rows:
            return f"{text}; no difference of the versions explains this alone"
        culprit = self.culprit(falls=falls)
        if culprit is None:
            return text
        more = (
            f"{kind} alerts per 1,000 transactions than before"
            if self.rows_before
            else "alerts per 1,000 transactions that no other member causes"
        )
        return f"{text}; member {culprit[0]} causes {culprit[1]:.1f} {more}"

    def _evidence(self, verdict: Verdict) -> str:
        low, high = verdict.limits
        evidence = verdict.evidence
        tens = math.log(10)
        if verdict.finding == "harmless":
            least = min(evidence.no_rise, evidence.no_fall)
            return f"evidence 10^{least / tens:.1f} for a harmless change"
        if evidence.fall > evidence.rise:
            return f"evidence 10^{evidence.fall / tens:.1f} for less than {low - 1:+.0%}"
        return f"evidence 10^{evidence.rise / tens:.1f} for more than {high - 1:+.0%}"


def comparisons(state: ServingState, history: History) -> list[Comparison]:
    """The pairs of `state`: champion and last good version during a probation, canary and champion."""
    found = []
    if state.probation and state.last_good is not None:
        found.append(_comparison(state, history, state.champion, state.last_good, None))
    if state.canary is not None:
        found.append(_comparison(state, history, state.canary.version, state.champion, state.canary))
    return found


def after_harmless(state: ServingState, comparison: Comparison) -> Action | None:
    """The command that follows evidence of a harmless change: `confirm`, or the next step of a confirmed canary.

    None for a confirmed canary without a ladder. It is watched further.
    """
    canary = state.canary
    if comparison.ends != "stop" or canary is None or not canary.confirmed:
        return "confirm"
    step = next_step(canary)
    return None if step is None else step[0]


def raised(command: Command, canary: CanaryState, expected_rise: float) -> Command:
    """`command` as the next step of a confirmed `canary`: a larger share of the same entities, or the promotion."""
    step = next_step(canary)
    assert step is not None
    command = msgspec.structs.replace(command, version=canary.version, expect_rise=expected_rise or None)
    if step[0] == "promote":
        return command
    return msgspec.structs.replace(command, share=step[1], salt=canary.salt, until=canary.until, ladder=canary.ladder)


def acted_since(history: History, ensemble: str, at: int, action: Action = "stop") -> bool:
    """Whether a monitor has withdrawn a version since `at`, by the broker's times of the commands.

    For a `rollback`, only another rollback counts: a canary that was stopped says nothing about a version that serves.
    """
    earlier: tuple[Action, ...] = ("rollback",) if action == "rollback" else ("rollback", "stop")
    return any(history.withdrawn_at.get((ensemble, each), at) > at for each in earlier)


def _count_members(counts: dict[str, tuple[int, int]], left_out: dict[str, list[int]]) -> None:
    for member, (_, only, prevented, _) in left_out.items():
        before = counts.get(member, (0, 0))
        counts[member] = before[0] + only, before[1] + prevented


def _comparison(
    state: ServingState, history: History, candidate: ServedVersion, baseline: ServedVersion, canary: CanaryState | None
) -> Comparison:
    since, at, command = _since(state, history, candidate, "promote" if canary is None else "canary")
    recovered = None if command is None or canary is None else command.state
    return Comparison(
        state.ensemble,
        candidate,
        baseline,
        since,
        at,
        "rollback" if canary is None else "stop",
        command.expect_rise or 0.0 if command is not None else 0.0,
        None if canary is None else canary.share,
        None if canary is None else canary.until,
        untrusted=canary is not None and state.probation,
        shares_since=recovered is not None and recovered.probation,
    )


def _since(
    state: ServingState, history: History, version: ServedVersion, action: Action
) -> tuple[int, int, Command | None]:
    """Offset and time of the last command that gave `version` its role, and the command.

    A new share of a canary starts a new pair. The time is the broker's, because the author's clock may be wrong; the
    author's if the log has none.
    """
    start = history.starts.get((state.ensemble, action))
    if start is None or start.command is None or start.command.version != version:
        return state.control_offset, state.at, None
    return start.offset, start.timestamp or start.command.at, start.command
