"""Names the member, and the input, whose change moved the alerts of a version (ADR 0034).

The counts are of the kind "alert by the candidate" against "alert if this member were as in the baseline". Their
difference is the number of alerts that exist because of the member's change, whatever happened to the others. So it
also names the bad member if all members were retrained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import median

from stream_scorer.records import Cause, CauseKind, InputChange, MemberPair, PairDifferences, PreparedInput

# A member is named if it explains at least this share of the net change of alerts, and this many alerts.
MIN_SHARE = 0.1
MIN_ALERTS = 3
# If the policy differs too, a member with a difference that training does not make is named from this share of the
# change on, one with a weight that training may have changed only from a larger share (measured: up to 0.1).
MIN_KNOWN_SHARE, MIN_WEIGHT_SHARE = 0.15, 0.25
# Training every member again changes the ratio of a weight to the others by less than this factor (measured: 1.9).
MAX_TRAINED_FACTOR = 2.5
# An input that is prepared differently counts as a cause from this mean distance in bins; a retrained standardisation
# moves values by less than a tenth of a bin.
MIN_DISTANCE = 0.25
# An input explains a difference of scores from this share of its variance, adjusted for the number of bins.
MIN_EXPLAINED = 0.3
# Fewer transactions than this reveal no kind of difference.
MIN_ROWS = 30
_REGULAR, _MISSING, _CLIPPED = range(3)


@dataclass(slots=True)
class _Input:
    """Merged counts of one input that is prepared differently."""

    candidate: list[float | None]
    baseline: list[float | None]
    rows: list[int]
    alerted: list[int]

    def distance(self, kind: int | None = None) -> float:
        """Mean distance in bins: the larger one of all transactions and of alerted ones; of one class or of all."""
        found = [0.0]
        for counts in (self.rows, self.alerted):
            rows = sum(counts[0::3])
            if rows >= MIN_ROWS:
                found.append(sum(counts[2::3] if kind is None else counts[3 * kind + 2 : 3 * kind + 3]) / rows)
        return max(found)

    @property
    def moved(self) -> float:
        """Share of all transactions in which the versions see values of different bins."""
        rows = sum(self.rows[0::3])
        return sum(self.rows[1::3]) / rows if rows else 0.0


@dataclass(slots=True)
class _Member:
    """Merged counts of one member; see `records.MemberPair`."""

    newest: MemberPair
    output: list[int] = field(default_factory=list)
    weight: list[int] = field(default_factory=list)
    member: list[int] = field(default_factory=list)
    scores: list[int] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)
    answers: dict[str, dict[int, list[int]]] = field(default_factory=dict)
    inputs: dict[str, _Input] = field(default_factory=dict)

    def add(self, pair: MemberPair) -> None:
        self.newest = pair
        self.output = _add(self.output, pair.output)
        self.weight = _add(self.weight, pair.weight)
        self.member = _add(self.member, pair.member)
        self.scores = _add(self.scores, pair.scores)
        self.answered = _add(self.answered, pair.answered)
        for name, flat in pair.answers.items():
            bins = self.answers.setdefault(name, {})
            for place in range(0, len(flat), 3):
                bins[flat[place]] = _add(bins.get(flat[place], []), flat[place + 1 : place + 3])
        for name, prepared in pair.inputs.items():
            self._add_input(name, prepared)

    def _add_input(self, name: str, prepared: PreparedInput) -> None:
        found = self.inputs.setdefault(name, _Input(prepared.candidate, prepared.baseline, [], []))
        found.rows = _add(found.rows, prepared.rows)
        found.alerted = _add(found.alerted, prepared.alerted)

    @property
    def net(self) -> int:
        """Alerts that exist because of the member's change, less those that it prevents."""
        return _net(self.member or self.output or self.weight)

    def known(self, sign: int, usual: float, change: int) -> int:
        """The part of `net` in the direction `sign` that has a cause which training again hardly produces.

        It is 0 if it explains too little of the `change` of alerts. Training shifts the scores of all members,
        and the threshold follows; it moves weights and preparation little. So an output counts only with an
        input that is prepared differently, or if the score is inverted. A weight counts by itself if it differs
        from the `usual` ratio of weights by a large factor. Otherwise it counts at most as much as weight and
        output together: a member with higher scores can have a lower weight, so that they cancel.
        """
        net, weight = sign * self.net, sign * _net(self.weight)
        fault, reweighed = _fault(self) is not None, self._reweighed(usual)
        found = max([net] * fault + [weight] * reweighed, default=min(weight, net))
        share = MIN_KNOWN_SHARE if fault or reweighed else MIN_WEIGHT_SHARE
        return found if found >= max(MIN_ALERTS, share * change) else 0

    def _reweighed(self, usual: float) -> bool:
        return self.ratio > 0 and usual > 0 and abs(math.log(self.ratio / usual)) >= math.log(MAX_TRAINED_FACTOR)

    @property
    def ratio(self) -> float:
        """Ratio of its shares of the weight, or of its coefficients; 0 without one in the other version."""
        now, before = self.newest.coefficients or self.newest.shares
        return now / before if before else 0.0


class Attribution:
    """Accumulates the differences of one pair of versions."""

    def __init__(self) -> None:
        self.rows = 0
        self._members: dict[str, _Member] = {}
        # Counts of the policy, or of the combination of members.
        self._rest: list[int] = []
        self._changes: list[str] = []

    def add(self, found: PairDifferences) -> None:
        """Add the counts of a micro-batch."""
        self.rows += found.rows
        self._rest = _add(self._rest, found.combination or found.policy)
        self._changes = found.changes or self._changes
        for name, pair in found.members.items():
            self._members.setdefault(name, _Member(pair)).add(pair)

    def cause(self, *, falls: bool, change: int) -> Cause | None:
        """What moved the alerts most in the direction of the finding; None if nothing explains enough of it.

        Args:
            falls: whether alerts fall. change: net change of alerts between the two versions, on the same transactions.
        """
        sign = -1 if falls else 1
        moved = {name: sign * member.net for name, member in self._members.items()}
        name = max(moved, key=lambda each: (moved[each], each), default=None)
        if self._rest:
            usual = median(member.ratio for member in self._members.values()) if self._members else 0.0
            largest = max(abs(change), 0 if name is None else moved[name])
            known = {name: member.known(sign, usual, largest) for name, member in self._members.items()}
            first = max(known, key=lambda each: (known[each], each), default=None)
            if first is not None and known[first] > 0:
                return self._named(first, known[first], falls)
        least = max(MIN_ALERTS, MIN_SHARE * abs(change))
        rest = sign * _net(self._rest)
        # A version that is trained again has another scale of scores, and thresholds that follow it. Such a policy
        # alone would move far more alerts than the whole version did, so the one nearest to that change is named.
        unlike = abs(sign * change - rest)
        if rest >= least and (name is None or moved[name] < least or unlike < abs(sign * change - moved[name])):
            kind: CauseKind = "combination" if self._changes else "policy"
            text = "; ".join(self._changes) or "its final calibrator or thresholds differ"
            return Cause(kind, None, None, text, self._per_thousand(rest))
        if name is None or moved[name] < least:
            return None
        return self._named(name, moved[name], falls)

    def _named(self, name: str, alerts: int, falls: bool) -> Cause:
        kind, input_name, text = _difference(self._members[name], falls=falls)
        return Cause(kind, name, input_name, text, self._per_thousand(alerts))

    def inputs(self) -> list[InputChange]:
        """The inputs that members see differently in the two versions, largest difference first."""
        found = []
        for name, member in self._members.items():
            for input_name, each in member.inputs.items():
                if each.distance() >= MIN_DISTANCE:
                    kind, text = _preparation(input_name, each, member.newest.categories)
                    found.append(InputChange(name, input_name, kind, text, each.moved, each.distance()))
            for input_name in (*member.newest.added, *member.newest.removed):
                kind, text = _read(input_name, member.newest)
                found.append(InputChange(name, input_name, kind, text, 1.0, 0.0))
        return sorted(found, key=lambda each: (-each.distance, each.member, each.input))

    def _per_thousand(self, alerts: int) -> float:
        return 1_000 * alerts / self.rows


def _difference(member: _Member, *, falls: bool) -> tuple[CauseKind, str | None, str]:
    """Kind, input and description of the difference of a member that moved alerts."""
    sign = -1 if falls else 1
    output, weight = sign * _net(member.output), sign * _net(member.weight)
    share = _weight(member.newest)
    fault = _fault(member)
    if fault is not None and output > 0:
        # A fault that a higher weight amplifies is both.
        kind, input_name, text = fault
        return kind, input_name, f"{text}, and {share}" if weight >= MIN_SHARE * sign * member.net else text
    if not member.output or weight > output:
        return "weight", None, share
    if member.newest.ranked:
        return "score", None, "its scores are ranked by the scores of other reference rows"
    explained = {name: _explained(bins, member.answered) for name, bins in member.answers.items()}
    name = max(explained, key=lambda each: (explained[each], each), default="")
    if name and explained[name] >= MIN_EXPLAINED:
        if name in member.newest.categories:
            return "mapping", name, f"answers differently to the categories of {name}"
        return "response", name, f"answers differently to {name}"
    unequal = [*member.newest.added, *member.newest.removed]
    if unequal:
        return (_read(unequal[0], member.newest)[0], unequal[0], _read(unequal[0], member.newest)[1])
    return "score", None, _score(member)


def _fault(member: _Member) -> tuple[CauseKind, str | None, str] | None:
    """The input that is prepared most differently, or that the score is inverted; None if neither is so."""
    changed = {name: each for name, each in member.inputs.items() if each.distance() >= MIN_DISTANCE}
    if changed:
        name = max(changed, key=lambda each: (changed[each].distance(), each))
        kind, text = _preparation(name, changed[name], member.newest.categories)
        return kind, name, text
    correlation = _correlation(member.scores)
    if correlation is not None and correlation < 0:
        return "inverted", None, "its score falls where the score of the other version rises"
    return None


def _preparation(name: str, found: _Input, categories: list[str]) -> tuple[CauseKind, str]:
    """Kind and description of the larger part of the difference of an input that is prepared differently."""
    (impute, low, high, offset, scale), (impute_, low_, high_, offset_, scale_) = found.candidate, found.baseline
    assert offset is not None and scale is not None and offset_ is not None and scale_ is not None
    part = max((_REGULAR, _MISSING, _CLIPPED), key=found.distance)
    if part == _MISSING and impute != impute_:
        return "imputation", f"reads {name} as {_value(impute)} instead of {_value(impute_)} if it is missing"
    if part == _CLIPPED:
        return "clip", f"clips {name} to {_range(low, high)} instead of {_range(low_, high_)}"
    ratio = scale_ / scale
    if name in categories:
        codes = ", ".join(f"{(code - offset) * ratio + offset_:.3g}" for code in range(3))
        return "mapping", f"reads the codes 0, 1, 2 of {name} as {codes}"
    if ratio < 0 or abs(math.log(ratio)) >= abs(offset - offset_) / abs(scale_):
        return "scale", f"reads {name} {ratio:.3g} times as large"
    return "offset", f"reads {name} shifted by {(offset_ - offset) / scale:+.3g}"


def _weight(pair: MemberPair) -> str:
    if pair.coefficients is not None:
        now, before = pair.coefficients
        return f"its coefficient is {now:.4g} instead of {before:.4g}"
    now, before = pair.shares
    return f"its share of the weight is {now:.0%} instead of {before:.0%}"


def _read(name: str, pair: MemberPair) -> tuple[CauseKind, str]:
    return ("added", f"reads {name} in addition") if name in pair.added else ("removed", f"no longer reads {name}")


def _score(member: _Member) -> str:
    if not member.scores or not member.scores[0]:
        return "the other version has no scores of it"
    n, a, b = member.scores[:3]
    return f"its scores are {(a - b) / n / 1_000:+.2f} higher on average, on the scale of the link"


def _correlation(sums: list[int]) -> float | None:
    """Correlation of a member's scores in the two versions; None with too few or constant scores."""
    if not sums or sums[0] < MIN_ROWS:
        return None
    n, a, b, aa, bb, ab = sums
    # Integers of any size: the differences are exact.
    one, two = n * aa - a * a, n * bb - b * b
    return (n * ab - a * b) / math.sqrt(one) / math.sqrt(two) if one > 0 and two > 0 else None


def _explained(bins: dict[int, list[int]], answered: list[int]) -> float:
    """Share of the variance that the bins explain, adjusted for their number (epsilon squared, Kelley 1935)."""
    n, total, squares = answered
    spread = squares - total * total / n
    between = sum(value * value / rows for rows, value in bins.values()) - total * total / n
    k = len(bins)
    if n < MIN_ROWS or n <= k or spread <= 0:
        return 0.0
    within = (spread - between) / (n - k)
    return (between - (k - 1) * within) / spread


def _net(square: list[int]) -> int:
    return square[1] - square[2] if square else 0


def _add(before: list[int], more: list[int]) -> list[int]:
    if not before or not more:
        return before or list(more)
    return [a + b for a, b in zip(before, more, strict=True)]


def _value(value: float | None) -> str:
    return "missing" if value is None else f"{value:.4g}"


def _range(low: float | None, high: float | None) -> str:
    return f"{'any' if low is None else f'{low:.4g}'} to {'any' if high is None else f'{high:.4g}'}"
