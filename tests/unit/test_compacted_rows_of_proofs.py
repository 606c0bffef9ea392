"""The check of compacted rows that proofs use: panes that no window needs any more may lack entries, others may not."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from proofs.compacted import compacted_row_differs, plan_of
from stream_scorer.arrays import Ints
from stream_scorer.features.panes import folded
from stream_scorer.simulate.config import DAY_MS
from stream_scorer.spec import load_spec
from stream_scorer.state.row_format import pack
from tests.support.stages import CARDS

LIMIT = 2


@pytest.mark.parametrize(("newest", "allowed"), [(40 * DAY_MS, True), (30 * DAY_MS, False)])
def test_a_pane_that_a_late_entry_begins_anew_may_lack_what_was_dropped(newest: int, allowed: bool) -> None:
    plan = plan_of(load_spec(CARDS))["terminal", False, None]
    times = [0, newest - 2, newest - 1, 1_000, newest, newest]

    def entries(of: list[int]) -> Ints:
        return pack(np.array(of), np.full(len(of), 7), np.arange(len(of)))

    # At first another partition is far ahead, so the pane of the first entry is dropped. Then a late entry comes.
    dropped = folded(entries(times[:3]), plan, LIMIT, 40 * DAY_MS)
    held = folded(np.concatenate([dropped, entries(times[3:])]), plan, LIMIT, 0)
    wanted = Counter((time, 7) for time in times), Counter[tuple[int, int]]()
    assert (compacted_row_differs(held, plan, wanted, LIMIT, newest) == "") == allowed
    whole = folded(entries(times), plan, LIMIT, 0)
    assert not compacted_row_differs(whole, plan, wanted, LIMIT, newest)
    fewer = wanted[0] - Counter({(0, 7): 1}), wanted[1]
    assert "pane of" in compacted_row_differs(whole, plan, fewer, LIMIT, newest)
