"""Counts summaries and outcomes into integer cells.

A cell is one event-time pane of one ensemble version and arm. Its fields::

    n, dup, deg, fb, inc           rows, duplicates, degraded, decided by fallback, scored without features
    d:<decision>  v:<decision>     transactions and money by decision
    ma:<member>                    transactions that the member alone would have alerted
    sc:<bin>  m:<member>:<bin>  f:<series>:<bin>   histograms on the reference profile's bins
    lo:<member>:<0..3>             alert of the ensemble against alert without the member, 2x2
    o:<decision>:<label>           labelled transactions      ov:… their money
    os:<decision>:<label>:<source> by source of the label     op:<decision>:<label>:<p> by review probability
    mo:<member index>:<label>      labelled transactions that the member alone would have alerted
    la:<source>:<bin>              first labels by age, see `age_bin`

and, with each event id once,

    rs                             approved transactions in the random review sample
    gd:<decision>:<group>          transactions by random group of the card, and go:<decision>:<label>:<group> labelled
                                   ones; gw:… adds their weights 1/p, in thousandths
    sd:<rule>:<decision>           transactions by segment or list of the policy, and so:<rule>:<decision>:<label>

The review probability p of an approved transaction is the one that its score states, whatever a label states; that of
an alerted one is the one that its label states.

Sources that the spec does not list are counted as `OTHER_SOURCE`, and review probabilities are rounded, so that labels
cannot add fields without bound.
"""

from __future__ import annotations

import json
from collections import defaultdict

from stream_scorer.records import Decision, LabelValue, Outcome, PaneSummary, ScoreSummary
from stream_scorer.state.counters import Cell

OTHER_SOURCE = "other"
DAY_MS = 86_400_000
# Three significant digits down to a millionth: at most 5,400 values, and weights 1/p within half a percent.
PROBABILITY_DIGITS, MIN_PROBABILITY = 3, 1e-6

# Bins of the label horizon in the histogram of label ages.
AGE_BINS = 24
# Weights 1/p are counted in thousandths.
WEIGHT_UNIT = 1_000

Cells = dict[Cell, dict[str, int]]


def new_cells() -> Cells:
    """An empty tally."""
    return defaultdict(lambda: defaultdict(int))


def cell_label(ensemble: str, version: str, arm: str) -> str:
    """Ensemble, version and arm of a cell as one unambiguous string."""
    return json.dumps([ensemble, version, arm], separators=(",", ":"))


def parse_label(label: str) -> tuple[str, str, str]:
    """Ensemble, version and arm of a cell."""
    ensemble, version, arm = json.loads(label)
    return ensemble, version, arm


def require_counts(summary: ScoreSummary) -> None:
    """Check the shape of the counts of a summary.

    Raises:
        ValueError: a count is negative, a histogram has no count for its last bin, or a square has not four counts.
    """
    for pane in summary.panes:
        by_name = (pane.decisions, pane.member_alerts, *pane.rules.values())
        plain = [pane.rows, pane.duplicates, pane.degraded, pane.fallback, pane.incomplete, pane.sampled]
        histograms = [pane.score, *pane.members.values(), *pane.features.values(), *pane.groups.values()]
        squares = [*pane.left_out.values(), *pane.against.values()]
        if any(len(sparse) % 2 for sparse in histograms) or any(len(square) != 4 for square in squares):
            raise ValueError(f"pane {pane.pane} has counts of the wrong length")
        counts = [plain, *(list(named.values()) for named in by_name), *histograms, *squares]
        if any(min(some, default=0) < 0 for some in counts):
            raise ValueError(f"pane {pane.pane} has negative counts")


def count_summary(cells: Cells, summary: ScoreSummary) -> None:
    """Add one summary to `cells`."""
    label = cell_label(summary.ensemble, summary.version, summary.arm)
    for pane in summary.panes:
        counts = cells[pane.pane, label]
        counts["n"] += pane.rows
        for name, number in (
            ("dup", pane.duplicates),
            ("deg", pane.degraded),
            ("fb", pane.fallback),
            ("inc", pane.incomplete),
        ):
            if number:
                counts[name] += number
        for prefix, numbers in (("d:", pane.decisions), ("v:", pane.money), ("ma:", pane.member_alerts)):
            for name, number in numbers.items():
                counts[prefix + name] += number
        _add_histogram(counts, "sc:", pane.score)
        for member, bins in pane.members.items():
            _add_histogram(counts, f"m:{member}:", bins)
        for series, bins in pane.features.items():
            _add_histogram(counts, f"f:{series}:", bins)
        for member, square in pane.left_out.items():
            for place, number in enumerate(square):
                counts[f"lo:{member}:{place}"] += number
        _count_rates(counts, pane)


def _count_rates(counts: dict[str, int], pane: PaneSummary) -> None:
    if pane.sampled:
        counts["rs"] += pane.sampled
    for decision, sparse in pane.groups.items():
        _add_histogram(counts, f"gd:{decision}:", sparse)
    for rule, decisions in pane.rules.items():
        for decision, number in decisions.items():
            counts[f"sd:{rule}:{decision}"] += number


def count_outcome(
    cells: Cells, outcome: Outcome, sources: frozenset[str], *, pane_ms: int, horizon_ms: int = DAY_MS
) -> None:
    """Add one outcome to `cells`: increments the new label and decrements the label that it replaces.

    Args:
        sources: the label sources that are counted separately. pane_ms: length of the panes of `cells`.
        horizon_ms: ``labels.horizon``.
    """
    pane = outcome.event_time - outcome.event_time % pane_ms
    counts = cells[pane, cell_label(outcome.ensemble, outcome.version, outcome.arm)]
    source = listed(outcome.source, sources)
    if outcome.previous_label is not None:
        before = listed(outcome.previous_source or "", sources)
        _add_label(counts, outcome, outcome.previous_label, before, outcome.previous_review_probability, -1)
    else:
        counts[f"la:{source}:{age_bin(outcome.age, horizon_ms)}"] += 1
    _add_label(counts, outcome, outcome.label, source, outcome.review_probability, 1)


def age_bin(age_ms: int, horizon_ms: int) -> int:
    """The bin of a label age: bin b has ages from b to b + 1 times a 24th of the horizon; the last begins at two.

    With a horizon of 0, every label arrives after it.
    """
    if not horizon_ms:
        return 2 * AGE_BINS
    return min(max(age_ms, 0) * AGE_BINS // horizon_ms, 2 * AGE_BINS)


def review_probability(decision: Decision, logged: float | None, stated: float | None) -> float | None:
    """The probability with which a labelled transaction was picked for review, rounded; None if it is not known.

    Args:
        logged: what the score states. stated: what the label states.
    """
    probability = logged if decision == "approve" else stated
    if probability is None:
        return None
    return float(f"{max(probability, MIN_PROBABILITY):.{PROBABILITY_DIGITS}g}")


def listed(source: str, sources: frozenset[str]) -> str:
    """The name under which labels of `source` are counted."""
    return source if source in sources else OTHER_SOURCE


def _add_label(
    counts: dict[str, int], outcome: Outcome, label: LabelValue, source: str, stated: float | None, sign: int
) -> None:
    what = f"{outcome.decision}:{label}"
    counts[f"o:{what}"] += sign
    counts[f"ov:{what}"] += sign * outcome.value
    counts[f"os:{what}:{source}"] += sign
    probability = review_probability(outcome.decision, outcome.review_propensity, stated)
    if probability is not None:
        # Cells hold integers, so a reader applies the weight 1/p.
        counts[f"op:{what}:{probability!r}"] += sign
    if outcome.card_group is not None:
        counts[f"go:{what}:{outcome.card_group}"] += sign
        if probability is not None:
            counts[f"gw:{what}:{outcome.card_group}"] += sign * round(WEIGHT_UNIT / probability)
    if outcome.rule is not None:
        counts[f"so:{outcome.rule}:{what}"] += sign
    for member in range(outcome.member_alerts.bit_length()):
        if outcome.member_alerts >> member & 1:
            counts[f"mo:{member}:{label}"] += sign


def _add_histogram(counts: dict[str, int], prefix: str, sparse: list[int]) -> None:
    for place in range(0, len(sparse), 2):
        counts[f"{prefix}{sparse[place]}"] += sparse[place + 1]
