"""Counts summaries and outcomes into integer cells.

A cell is one event-time pane of one ensemble version and arm. Its fields::

    n, dup, deg, fb, inc           rows, duplicates, degraded, decided by fallback, scored without features
    d:<decision>  v:<decision>     transactions and money by decision
    ma:<member>                    transactions that the member alone would have alerted
    sc:<bin>  m:<member>:<bin>  f:<series>:<bin>   histograms on the reference profile's bins
    lo:<member>:<0..3>             alert of the ensemble against alert without the member, 2x2
    o:<decision>:<label>           labelled transactions      ov:… their money
    os:<decision>:<label>:<source> by source of the label     op:<decision>:<label>:<p> by review probability

Sources that the spec does not list are counted as `OTHER_SOURCE`, and review probabilities are rounded, so that labels
cannot add fields without bound.
"""

from __future__ import annotations

import json
from collections import defaultdict

from stream_scorer.records import Outcome, ScoreSummary
from stream_scorer.state.counters import Cell

OTHER_SOURCE = "other"
# Three significant digits down to a millionth: at most 5,400 values, and weights 1/p within half a percent.
PROBABILITY_DIGITS, MIN_PROBABILITY = 3, 1e-6

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
        by_name = (pane.decisions, pane.member_alerts)
        plain = [pane.rows, pane.duplicates, pane.degraded, pane.fallback, pane.incomplete]
        histograms = [pane.score, *pane.members.values(), *pane.features.values()]
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


def count_outcome(cells: Cells, outcome: Outcome, sources: frozenset[str]) -> None:
    """Add one outcome to `cells`: increments the new label and decrements the label that it replaces.

    `sources` are the label sources that are counted separately.
    """
    counts = cells[outcome.pane, cell_label(outcome.ensemble, outcome.version, outcome.arm)]
    if outcome.previous_label is not None:
        _add_label(
            counts,
            f"{outcome.decision}:{outcome.previous_label}",
            listed(outcome.previous_source or "", sources),
            outcome.previous_review_probability,
            outcome.value,
            -1,
        )
    _add_label(
        counts,
        f"{outcome.decision}:{outcome.label}",
        listed(outcome.source, sources),
        outcome.review_probability,
        outcome.value,
        1,
    )


def listed(source: str, sources: frozenset[str]) -> str:
    """The name under which labels of `source` are counted."""
    return source if source in sources else OTHER_SOURCE


def _add_label(
    counts: dict[str, int], what: str, source: str, probability: float | None, value: int, sign: int
) -> None:
    counts[f"o:{what}"] += sign
    counts[f"ov:{what}"] += sign * value
    counts[f"os:{what}:{source}"] += sign
    if probability is not None:
        # Cells hold integers, so a reader applies the weight 1/p.
        rounded = float(f"{max(probability, MIN_PROBABILITY):.{PROBABILITY_DIGITS}g}")
        counts[f"op:{what}:{rounded!r}"] += sign


def _add_histogram(counts: dict[str, int], prefix: str, sparse: list[int]) -> None:
    for place in range(0, len(sparse), 2):
        counts[f"{prefix}{sparse[place]}"] += sparse[place + 1]
