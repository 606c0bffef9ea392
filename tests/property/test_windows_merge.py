"""Sketches merge exactly: in any grouping and order, the counts and the figures are those of everything at once."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from stream_scorer.monitor.tally import count_summary, new_cells
from stream_scorer.monitor.windows import WindowRules, figures, merge
from stream_scorer.records import DECISIONS, PaneSummary, ScoreSummary

HOUR = 3_600_000
RULES = WindowRules(HOUR, HOUR, 48 * HOUR)
BINS = 6
# One row: pane, bins of a feature, a member and the score, decision, money.
ROWS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.integers(0, BINS - 1),
        st.integers(0, BINS - 1),
        st.integers(0, BINS - 1),
        st.integers(0, 2),
        st.integers(0, 10**12),
    ),
    max_size=40,
)
PROFILE = {name: ([0.1, 0.2, 0.3, 0.4], [5, 4, 3, 2, 1, 0]) for name in ("amount", "member:gbm", "score")}

Row = tuple[int, int, int, int, int, int]


def sparse(bins: list[int]) -> list[int]:
    return [x for b in sorted(set(bins)) for x in (b, bins.count(b))]


def summarise(rows: list[Row]) -> ScoreSummary:
    """What a scorer would say of these rows, built row by row."""
    panes = []
    for pane in sorted({row[0] for row in rows}):
        here = [row for row in rows if row[0] == pane]
        panes.append(
            PaneSummary(
                pane * HOUR,
                len(here),
                0,
                0,
                0,
                {d: sum(DECISIONS[r[4]] == d for r in here) for d in DECISIONS},
                {d: sum(r[5] for r in here if DECISIONS[r[4]] == d) for d in DECISIONS},
                {"amount": sparse([r[1] for r in here])},
                {"gbm": sparse([r[2] for r in here])},
                {"gbm": sum(r[2] > 2 for r in here)},
                sparse([r[3] for r in here]),
                {"gbm": [0, 0, 0, len(here)]},
            )
        )
    return ScoreSummary("cards", "1", "champion", HOUR, "transactions", 0, 0, len(rows), 0, panes)


def tally(batches: list[list[Row]]) -> dict[tuple[int, str], dict[str, int]]:
    cells = new_cells()
    for batch in batches:
        count_summary(cells, summarise(batch))
    return {cell: {name: n for name, n in counts.items() if n} for cell, counts in cells.items()}


@given(rows=ROWS, cuts=st.lists(st.integers(0, 40), max_size=6), seed=st.integers(0, 2**32))
def test_any_batching_and_order_counts_the_same(rows: list[Row], cuts: list[int], seed: int) -> None:
    at_once = tally([rows]) if rows else {}
    shuffled = rows[:]
    random.Random(seed).shuffle(shuffled)
    bounds = [0, *sorted(min(c, len(rows)) for c in cuts), len(rows)]
    batches = [shuffled[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    assert tally([b for b in batches if b]) == at_once


@given(rows=ROWS, seed=st.integers(0, 2**32))
def test_larger_windows_are_sums_of_panes(rows: list[Row], seed: int) -> None:
    cells = list(tally([[row] for row in rows]).values())
    random.Random(seed).shuffle(cells)
    half = len(cells) // 2
    grouped = merge([merge(cells[:half]), merge(cells[half:])])
    one_pane = tally([[(0, *row[1:]) for row in rows]]) if rows else {}
    assert grouped == (next(iter(one_pane.values())) if one_pane else {})
    assert figures(grouped, PROFILE, RULES) == figures(merge(cells[::-1]), PROFILE, RULES)
    assert sum(grouped.get(f"d:{d}", 0) for d in DECISIONS) == grouped.get("n", 0) == len(rows)
